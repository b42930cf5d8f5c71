"""SpanLibrary: every span seen in a namespace, with the KV of its donor."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..log import get_logger
from .block import KVBlock
from .span_index import SpanIndex, SpanMatch

logger = get_logger(__name__)

Origin = Literal["output", "prompt", "warm"]

_TWINS = 4  # donors of the same words
_WARM_SHARE = 0.5  # of the budget that spans nobody has read yet may take


@dataclass(frozen=True, slots=True)
class Tagged:
    """Tokens `start:stop` of a prompt are a message that carries the tag of a span."""

    start: int
    stop: int
    tag: str


@dataclass(eq=False, slots=True)
class Span:
    """A run of tokens, and its KV in the context where it was first computed.

    Args:
        id: within its namespace.
        ids: `[tokens]` int64.
        base: un-rotated donor KV.
        producer: the agent whose context the donor is; of a warmed span, its place in the warm-up.
        origin: `output` if the producer wrote it, `prompt` if its prompt held it first, `warm` if no agent
            has read it yet and its base was computed ahead, outside of any context.
        exact: whether the donor context held no approximate KV.
        sources: the spans that stood in the donor context.
        embedding: `[dim]` float32 of length 1, once it was computed.
        reading: the donor is an exact reading of another's text, the best donor there is.
        read: which of its tokens stood in prompts of another agent before, by agent: `[tokens]` bool.
    """

    id: int
    ids: NDArray[np.int64]
    base: KVBlock
    producer: str
    origin: Origin
    exact: bool
    sources: frozenset[int]
    embedding: Tensor | None = None
    reading: bool = False
    read: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Its length."""
        return len(self.ids)

    @property
    def warmed(self) -> bool:
        """Whether its base comes from a warm-up, not from a donor."""
        return self.origin == "warm"


class SpanLibrary:
    """Known spans of one namespace, found by content, within a byte budget, least recently used out first.

    Args:
        budget: bytes of donor KV.
        min_span: tokens; shorter runs are not kept and not found.
        scope: what its spans are of: the model and the namespace. Tags of another scope are unknown here.
    """

    def __init__(self, budget: int, min_span: int, scope: str = "") -> None:
        self.budget, self.min_span, self.scope = budget, min_span, scope
        self.nbytes = self._warm_bytes = 0
        self._index = SpanIndex(window=min(8, min_span), min_span=min_span)
        self._spans: OrderedDict[int, Span] = OrderedDict()
        self._by_content: defaultdict[bytes, list[int]] = defaultdict(list)
        self._texts: defaultdict[str, set[int]] = defaultdict(set)
        self._tags: dict[str, int] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, span: int) -> bool:
        return span in self._spans

    def __getitem__(self, span: int) -> Span:
        return self._spans[span]

    def spans(self) -> list[Span]:
        """All spans, least recently used first."""
        return list(self._spans.values())

    def add(
        self,
        ids: Sequence[int],
        base: KVBlock,
        *,
        producer: str,
        origin: Origin,
        exact: bool,
        sources: frozenset[int] = frozenset(),
    ) -> Span | None:
        """Keep a span, or the one already known by the same ids; `None` if it is too short.

        An exact donor replaces an approximate one, under the same id: others name it among their sources.
        Agents who write the same words, say by quoting one another, are donors each: their contexts differ.
        """
        array = np.asarray(ids, dtype=np.int64)
        if len(array) < self.min_span or base.nbytes > self.budget:
            return None
        twins = self._by_content[array.tobytes()]
        known = next((twin for twin in twins if self._same(twin, producer, origin)), None)
        if known is None and len(twins) >= _TWINS:
            known = twins[-1]
        if known is not None and (self._spans[known].exact or not exact):
            self._spans.move_to_end(known)
            return self._spans[known]
        place, read = len(twins), dict[str, NDArray[np.bool_]]()
        if known is None:
            known = self._next
            self._next += 1
        else:
            place, read = twins.index(known), self._spans[known].read
            self._remove(known)
            twins = self._by_content[array.tobytes()]
        span = Span(known, array, base, producer, origin, exact, sources, read=read)
        self._spans[span.id] = span
        twins.insert(place, span.id)
        self._index.add(span.id, ids)
        if origin == "output":
            self._tags[self.tag(producer, ids)] = span.id
        for agent in {producer, *read} if origin == "prompt" else ():
            self._texts[agent].add(span.id)
        self.nbytes += base.nbytes
        if span.warmed:  # a large warm-up pushes out its like, not donors
            self._warm_bytes += base.nbytes
            while self._warm_bytes > max(_WARM_SHARE * self.budget, base.nbytes):
                self._remove(next(one.id for one in self._spans.values() if one.warmed))
        before = len(self._spans)
        while self.nbytes > self.budget:
            self._remove(next(iter(self._spans)))
        if len(self._spans) < before:
            logger.debug("texts over their budget: %d of %d forgotten", before - len(self._spans), before)
        return span

    def shrink(self, nbytes: int) -> None:
        """Forget spans, least recently used first, until no more than so many bytes of KV are held."""
        while self.nbytes > nbytes and self._spans:
            self._remove(next(iter(self._spans)))

    def tag(self, producer: str, ids: Sequence[int]) -> str:
        """The name, for messages to carry, of what an agent wrote: the same wherever and whenever it is made."""
        content = np.asarray(ids, dtype="<i8").tobytes()
        return hashlib.blake2b(f"{self.scope}\0{producer}\0".encode() + content, digest_size=12).hexdigest()

    def pin(self, ids: Sequence[int], tagged: Sequence[Tagged]) -> list[SpanMatch]:
        """Messages that are, token by token, the span they are tagged with, in order. Other tags mean nothing."""
        pins: list[SpanMatch] = []
        for one in sorted(tagged, key=lambda one: one.start):
            span = self._tags.get(one.tag)
            if span is not None and (not pins or pins[-1].stop <= one.start):
                match = self._index.align(ids, one.start, one.stop, span)
                if match is not None:
                    pins.append(match)
        return pins

    def settle(self, span: int, start: int, base: KVBlock, producer: str) -> None:
        """The context of an exact reader becomes the donor of a span, from token `start` on.

        Who wrote a text stays its author; a text that no agent had read is from now on one that stood in a prompt.

        Args:
            span: stays the same span.
            start: tokens before it stay as they were warmed, and so do those behind `base`.
            base: un-rotated KV in that context, which is exact.
            producer: the reader.
        """
        known = self._spans[span]
        whole = known.base.clone()
        whole.keys[:, :, start : start + base.tokens] = base.keys
        whole.values[:, :, start : start + base.tokens] = base.values
        if known.warmed:
            self._warm_bytes -= known.base.nbytes
            known.origin, known.producer = "prompt", producer
            self._texts[producer].add(span)
        known.base, known.exact, known.reading = whole, True, True

    def find(
        self, ids: Sequence[int], start: int, prefer: Collection[int] = (), pinned: Sequence[SpanMatch] = ()
    ) -> list[SpanMatch]:
        """Known spans in `ids[start:]`, in order, without overlap; `prefer` and `pinned` as in `SpanIndex.find`."""
        matches = self._index.find(ids, start, prefer, pinned)
        for match in matches:
            self._spans.move_to_end(match.span)
        return matches

    def twin(self, span: int, number: int) -> int:
        """Of the spans with the same ids, the one added as `number` (from 0), or the last of them."""
        twins = self._by_content[self._spans[span].ids.tobytes()]
        return twins[min(number, len(twins) - 1)]

    def _same(self, span: int, producer: str, origin: Origin) -> bool:
        """Whether a span with the same ids need not be kept twice."""
        known = self._spans[span]
        return origin == "prompt" or (known.origin == origin and known.producer == producer)

    def texts_of(self, agent: str) -> set[int]:
        """Spans that stood in prompts of this agent before and were written by none."""
        return self._texts[agent]

    def mark_read(self, span: int, agent: str, start: int, stop: int) -> None:
        """Tokens `start:stop` of a span that no agent wrote stood in a prompt of this agent."""
        known = self._spans[span]
        if agent not in known.read:
            known.read[agent] = np.zeros(known.tokens, dtype=np.bool_)
        known.read[agent][start:stop] = True
        self._texts[agent].add(span)

    def _remove(self, span: int) -> None:
        gone = self._spans.pop(span)
        if gone.origin == "output":
            self._tags.pop(self.tag(gone.producer, gone.ids.tolist()), None)
        for agent in (gone.producer, *gone.read):
            self._texts[agent].discard(span)
        twins = self._by_content[gone.ids.tobytes()]
        twins.remove(span)
        if not twins:
            del self._by_content[gone.ids.tobytes()]
        self._index.remove(span)
        self.nbytes -= gone.base.nbytes
        self._warm_bytes -= gone.base.nbytes if gone.warmed else 0

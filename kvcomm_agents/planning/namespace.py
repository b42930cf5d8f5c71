"""Memory: what one namespace has learned: its spans, how they are corrected for their readers, and the guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.filesize import decimal

from ..config import GiB, ReuseConfig
from ..correction.embedding import Embedder
from ..correction.saved.anchor_file import Snapshot
from ..correction.saved.manifest import GUARD, MANIFEST, UNKNOWN, Owner
from ..correction.span_corrector import SpanCorrector
from ..correction.static_text import StaticText
from ..kv.block import Capture, KVBlock
from ..kv.span_library import Span, SpanLibrary, Tagged
from ..log import get_logger
from .calibration import SAFE_DEFAULT, Calibration
from .candidates import EARNED, Candidates
from .guard import Guard
from .ladder import Sources
from .ledger import Ledger
from .segments import Segment, after, competing, segment

Lesson = tuple[Segment, KVBlock]

logger = get_logger(__name__)

_READ = 0.9  # share of a text's tokens that counts as the text
_RANKS = 16  # places in a warm-up that are told apart


@dataclass(slots=True, eq=False)
class Namespace:
    """One namespace. Not thread-safe: its owner serialises.

    Args:
        config: budgets and policy.
        fingerprint: of the model and its tokenizer; what another one learned is refused.
        embedder: names anchors; called off the critical path.
        decode: token ids -> text, for the embedder.
        namespace: its name.
        model: its name, and the tokenizer's fingerprint, for those who look at what was saved.
        calibration: of the model, for the guard.
        span_budget, anchor_budget, map_budget: bytes that it may take of each; all namespaces share them.
    """

    config: ReuseConfig
    fingerprint: str
    embedder: Callable[[], Embedder]
    decode: Callable[[Sequence[int]], str]
    namespace: str = "default"
    model: str = UNKNOWN
    tokenizer: str = UNKNOWN
    calibration: Calibration = SAFE_DEFAULT
    span_budget: int = GiB
    anchor_budget: int = GiB
    map_budget: int = GiB
    library: SpanLibrary = field(init=False)
    corrections: SpanCorrector = field(init=False)
    guard: Guard = field(init=False)
    ledger: Ledger = field(default_factory=Ledger, init=False)
    _own: StaticText = field(default_factory=StaticText)

    def __post_init__(self) -> None:
        scope = f"{self.fingerprint}\0{self.namespace}"
        self.library = SpanLibrary(self.span_budget, self.config.min_span, scope)
        self.corrections = SpanCorrector(self.config, self.fingerprint, self.anchor_budget, self.map_budget)
        self.guard = self._make_guard()

    def _make_guard(self) -> Guard:
        return Guard(self.config.max_divergence, self.calibration, self.config.max_divergence_quantile)

    def propose(
        self, ids: Sequence[int], agent: str, start: int, cuts: Sequence[int] = (), tagged: Sequence[Tagged] = ()
    ) -> Candidates:
        """What could be placed in `ids[start:]`; `cuts` and `tagged` as in `segment`."""
        whole = segment(ids, agent, self.library, cuts, tagged)
        segments = after(whole, start)
        spans = [each.tokens for each in whole if each.kind == "span"]
        judge = competing(whole, self.library, list(zip(cuts[::2], cuts[1::2], strict=False)))
        candidates = self.candidates(agent, segments)
        return replace(candidates, judge=judge, spans_found=len(spans), span_tokens=sum(spans))

    def candidates(self, agent: str, segments: tuple[Segment, ...]) -> Candidates:
        """What could be placed of segments."""
        sources, examples = self.sources(agent, segments), self.corrections.examples(agent)
        return Candidates(segments, sources, lambda: self.mapped(segments), examples)

    def sources(self, agent: str, segments: Sequence[Segment]) -> Sources:
        """The KV that there is for each segment, by its index, before any map has changed it."""
        raw, static = dict[int, KVBlock](), dict[int, KVBlock]()
        for index, each in enumerate(segments):
            if not self._placeable(each):
                continue
            raw[index] = self.library[each.span].base.slice(each.offset, each.offset + each.tokens)
            if each.slot is None:
                mean = self._own.block(agent, each.span, each.offset, each.offset + each.tokens)
                if mean is not None:
                    static[index] = mean
        return Sources(raw, static, {})

    def mapped(self, segments: Sequence[Segment]) -> dict[int, KVBlock]:
        """The spans among segments, corrected by the maps of their reader, by index."""
        blocks: dict[int, KVBlock] = {}
        for index, each in enumerate(segments):
            if each.slot is not None and self._placeable(each):
                corrected = self.corrections.prepare(self.library[each.span], each.slot).block
                blocks[index] = corrected.slice(each.offset, each.offset + each.tokens)
        return blocks

    def _placeable(self, segment: Segment) -> bool:
        """Whether it is known, and long enough to be placed."""
        if segment.kind == "new" or segment.span not in self.library:
            return False
        return segment.slot is None or segment.tokens >= self.config.min_placed

    def register(
        self,
        agent: str,
        segments: Sequence[Segment],
        ids: Sequence[int],
        output_start: int,
        capture: Capture,
        *,
        exact: bool,
    ) -> list[Span]:
        """Keep the new text of a context, and what was written after it, as spans with their donor KV.

        Args:
            agent: whose context.
            segments: of its prompt.
            ids: prompt and output, as far as their KV is known.
            output_start: where the output begins.
            capture: un-rotated KV of the context.
            exact: whether that KV is.
        """
        added = []
        here = frozenset(one.span for one in segments if one.kind != "new" and self._foreign(one.span, agent))
        for one in segments:
            if one.span in here and self.library[one.span].origin == "prompt":
                self.library.mark_read(one.span, agent, one.offset, one.offset + one.tokens)
        for one in segments:
            if one.kind == "new" and one.tokens >= self.config.min_span:
                block = capture(one.start, one.stop)
                added.append(
                    self.library.add(
                        ids[one.start : one.stop], block, producer=agent, origin="prompt", exact=exact, sources=here
                    )
                )
        sources = here | {span.id for span in added if span is not None}
        if len(ids) - output_start >= self.config.min_span:
            block = capture(output_start, len(ids))
            added.append(
                self.library.add(
                    ids[output_start:], block, producer=agent, origin="output", exact=exact, sources=sources
                )
            )
        return [span for span in added if span is not None]

    def covers(self, ids: Sequence[int]) -> bool:
        """Whether a text is known already, but for its edges."""
        return sum(match.stop - match.start for match in self.library.find(ids, 0)) >= _READ * len(ids)

    def warm(self, ids: Sequence[int], base: KVBlock, rank: int) -> Span | None:
        """Keep a text that no agent has read, with a base from outside any context; `None` if it is too short.

        Args:
            ids: its tokens.
            base: un-rotated.
            rank: its place in the warm-up: a slot reads the same places again and again.
        """
        return self.library.add(ids, base, producer=f"warm-up {min(rank, _RANKS)}", origin="warm", exact=True)

    def learn(self, agent: str, lessons: Sequence[Lesson]) -> None:
        """Learn from a context whose KV is exact: every span and every recurring text in it is an example.

        Args:
            agent: whose context.
            lessons: segments of its prompt, with their un-rotated KV in it.
        """
        for one, true in lessons:
            if one.kind == "new" or one.span not in self.library:
                continue
            span = self.library[one.span]
            if one.slot is None:
                self._own.learn(agent, span, one.offset, true)
                continue
            self._embed(span)
            self.corrections.learn(span, one.slot, one.offset, true)
            if one.tokens >= _READ * span.tokens and (span.warmed or not span.reading):
                # As an agent read it is a better donor than as its author wrote it, or as no agent ever saw it.
                self.library.settle(span.id, one.offset, true, agent)
        self._own.prune(self.library)
        self.corrections.outdate(agent)

    def foresee(self, spans: Sequence[Span]) -> None:
        """Correct new spans for the slots that usually read their producer."""
        for span in spans:
            for slot in self.corrections.readers.often(span):
                if span.id in self.library and self.corrections.examples(slot.agent) >= EARNED:
                    self._embed(span)
                    self.corrections.prepare(span, slot)

    def snapshot(self) -> Snapshot:
        """Anchors, maps and audits, to be written; spans are not kept, they come again with the next prompts."""
        owner = Owner(self.fingerprint, self.model, self.tokenizer, self.namespace)
        return self.corrections.snapshot({GUARD: self.guard.state()}, owner)

    def load(self, folder: Path) -> None:
        """Take over what a snapshot wrote; nothing happens if the folder holds nothing.

        Raises:
            SavedMemoryError: what is there is damaged or of another model; this memory stays as it was.
        """
        if not (folder / MANIFEST).exists():
            return
        corrections, extra = SpanCorrector.load(
            folder, self.config, self.fingerprint, self.anchor_budget, self.map_budget
        )
        guard = self._make_guard()
        guard.load_state(extra[GUARD])
        self.corrections, self.guard = corrections, guard
        logger.info("loaded %s from %s", self, folder)

    def __str__(self) -> str:
        pool = self.corrections.pool
        return f"memory of {self.namespace}: {len(pool)} anchors ({decimal(pool.nbytes)}), {len(self.guard)} audits"

    @property
    def nbytes(self) -> int:
        """Bytes of everything learned, donors included."""
        return self.span_bytes + self.anchor_bytes + self.map_bytes

    @property
    def span_bytes(self) -> int:
        """Bytes of donor KV."""
        return self.library.nbytes

    @property
    def anchor_bytes(self) -> int:
        """Bytes of anchors."""
        return self.corrections.pool.nbytes

    @property
    def map_bytes(self) -> int:
        """Bytes of maps, of spans that they corrected ahead, and of the means of text that agents always read."""
        return self.corrections.map_bytes + self._own.nbytes

    def shrink_spans(self, nbytes: int) -> None:
        """Forget the spans used least recently until no more than so many bytes are held."""
        self.library.shrink(nbytes)
        self._own.prune(self.library)

    def shrink_anchors(self, nbytes: int) -> None:
        """Forget the least useful anchors until no more than so many bytes are held."""
        self.corrections.pool.shrink(nbytes)

    def shrink_maps(self, nbytes: int) -> None:
        """Drop what was corrected ahead, then maps, then means, until no more than so many bytes are held."""
        self.corrections.shrink_maps(max(nbytes - self._own.nbytes, 0))
        if self.map_bytes > nbytes:
            self._own.clear()

    def _embed(self, span: Span) -> None:
        if span.embedding is None:
            span.embedding = self.embedder().embed([self.decode(span.ids.tolist())])[0]

    def _foreign(self, span: int, agent: str) -> bool:
        """Whether a span came from an agent's output, or from another agent's prompt."""
        if span not in self.library:
            return False
        return self.library[span].origin == "output" or self.library[span].producer != agent

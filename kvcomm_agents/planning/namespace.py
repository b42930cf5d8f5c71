"""Memory: what one namespace has learned: its spans, how they are corrected for their readers, and the guard."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.filesize import decimal

from ..config import ReuseConfig
from ..correction.embedding import Embedder
from ..correction.saved.manifest import GUARD, MANIFEST, UNKNOWN, Owner
from ..correction.span_corrector import Prepared, SpanCorrector
from ..correction.static_text import StaticText
from ..kv.block import Capture, KVBlock
from ..kv.span_library import Span, SpanLibrary, Tagged
from .candidates import Candidates, features_of
from .guard import Features, Guard
from .ledger import Ledger
from .segments import Segment, after, competing, segment

Lesson = tuple[Segment, KVBlock]

logger = logging.getLogger(__name__)

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
    """

    config: ReuseConfig
    fingerprint: str
    embedder: Callable[[], Embedder]
    decode: Callable[[Sequence[int]], str]
    namespace: str = "default"
    model: str = UNKNOWN
    tokenizer: str = UNKNOWN
    library: SpanLibrary = field(init=False)
    corrections: SpanCorrector = field(init=False)
    guard: Guard = field(init=False)
    ledger: Ledger = field(default_factory=Ledger, init=False)
    _own: StaticText = field(default_factory=StaticText)

    def __post_init__(self) -> None:
        scope = f"{self.fingerprint}\0{self.namespace}"
        self.library = SpanLibrary(self.config.span_bytes, self.config.min_span, scope)
        self.corrections = SpanCorrector(self.config, self.fingerprint)
        self.guard = Guard(self.config.max_divergence)

    def propose(
        self, ids: Sequence[int], agent: str, start: int, cuts: Sequence[int] = (), tagged: Sequence[Tagged] = ()
    ) -> Candidates:
        """What could be placed in `ids[start:]`; `cuts` and `tagged` as in `segment`."""
        whole = segment(ids, agent, self.library, cuts, tagged)
        segments = after(whole, start)
        blocks, features = self.blocks(agent, segments)
        found = [one.tokens for one in whole if one.kind == "span"]
        judge = competing(whole, self.library, list(zip(cuts[::2], cuts[1::2], strict=False)))
        return Candidates(segments, blocks, features, judge, len(found), sum(found))

    def blocks(self, agent: str, segments: Sequence[Segment]) -> tuple[dict[int, KVBlock], Features | None]:
        """The KV to place for each segment that has any, by its index, and what the guard wants to know."""
        blocks: dict[int, KVBlock] = {}
        prepared: list[tuple[Prepared, int]] = []
        for index, one in enumerate(segments):
            if one.kind == "new" or one.span not in self.library:
                continue
            if one.slot is not None and one.tokens < self.config.min_placed:
                continue
            if one.slot is not None:
                made = self.corrections.prepare(self.library[one.span], one.slot)
                prepared.append((made, one.tokens))
                block = made.block
            else:
                mean = self._own.block(agent, one)
                if mean is not None:
                    blocks[index] = mean
                    continue
                block = self.library[one.span].base
            blocks[index] = block.slice(one.offset, one.offset + one.tokens)
        return blocks, features_of(prepared)

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
                self._own.learn(agent, one, span, true)
                continue
            self._embed(span)
            self.corrections.learn(span, one.slot, one.offset, true)
            if span.warmed and one.tokens >= _READ * span.tokens:  # learned from as such; from now on it has a donor
                self.library.settle(span.id, one.offset, true, agent)
        self._own.keep(self.library)
        self.corrections.outdate(agent)

    def foresee(self, spans: Sequence[Span]) -> None:
        """Correct new spans for the slots that usually read their producer."""
        for span in spans:
            for slot in self.corrections.readers.often(span):
                if span.id in self.library:
                    self._embed(span)
                    self.corrections.prepare(span, slot)

    def save(self, folder: Path) -> None:
        """Write anchors, maps and audits; spans are not kept, they come again with the next prompts.

        Raises:
            SavedMemoryError: it could not be written; what was saved before is still whole.
        """
        started = time.perf_counter()
        owner = Owner(self.fingerprint, self.model, self.tokenizer, self.namespace)
        self.corrections.save(folder, {GUARD: self.guard.state()}, owner)
        logger.info("saved %s to %s in %.2f s", self, folder, time.perf_counter() - started)

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote; nothing happens if the folder holds nothing.

        Raises:
            SavedMemoryError: what is there is damaged or of another model; this memory stays as it was.
        """
        if not (folder / MANIFEST).exists():
            return
        corrections, extra = SpanCorrector.load(folder, self.config, self.fingerprint)
        guard = Guard(self.config.max_divergence)
        guard.load_state(extra[GUARD])
        self.corrections, self.guard = corrections, guard
        logger.info("loaded %s from %s", self, folder)

    def __str__(self) -> str:
        pool = self.corrections.pool
        return f"memory of {self.namespace}: {len(pool)} anchors ({decimal(pool.nbytes)}), {len(self.guard)} audits"

    @property
    def nbytes(self) -> int:
        """Bytes of everything learned, donors included."""
        return self.library.nbytes + self.corrections.nbytes + self._own.nbytes

    def _embed(self, span: Span) -> None:
        if span.embedding is None:
            span.embedding = self.embedder().embed([self.decode(span.ids.tolist())])[0]

    def _foreign(self, span: int, agent: str) -> bool:
        """Whether a span came from an agent's output, or from another agent's prompt."""
        if span not in self.library:
            return False
        return self.library[span].origin == "output" or self.library[span].producer != agent

"""Corrections: what a namespace has learned of how spans change, and the spans it has corrected by that."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..config import GiB, ReuseConfig
from ..kv.block import KVBlock
from ..kv.slot import Slot
from ..kv.span_library import Span
from .anchors import AnchorPool
from .base import Example
from .linear import LinearConfig, LinearCorrector
from .readers import Readers
from .saved.anchor_file import Snapshot
from .saved.manifest import WARMED, Owner

_PREPARED = 256  # corrections kept for spans about to be read


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A span corrected for a slot.

    `base` is the donor KV that was corrected: another donor needs another correction.
    """

    base: KVBlock
    block: KVBlock


class SpanCorrector:
    """Anchors, the correctors that learn from them, and who reads what.

    Args:
        config: budgets and policy.
        fingerprint: of the model and its tokenizer.
        anchor_bytes, map_bytes: budgets of both.
    """

    def __init__(self, config: ReuseConfig, fingerprint: str, anchor_bytes: int = GiB, map_bytes: int = GiB) -> None:
        self.config, self.fingerprint = config, fingerprint
        self.pool = AnchorPool(anchor_bytes, fingerprint)
        self._map_config = LinearConfig(budget=map_bytes)
        self.linear = LinearCorrector(config=self._map_config)
        self.readers = Readers()
        self._taught: Counter[str] = Counter()
        self._prepared: OrderedDict[tuple[int, Slot], Prepared] = OrderedDict()

    @property
    def map_bytes(self) -> int:
        """Bytes of maps, and of the spans that they corrected ahead."""
        return self.linear.nbytes + sum(prepared.block.nbytes for prepared in self._prepared.values())

    def shrink_maps(self, nbytes: int) -> None:
        """Drop what was corrected ahead, then maps, until no more than so many bytes are held."""
        while self._prepared and self.map_bytes > nbytes:
            self._prepared.popitem(last=False)
        if self.map_bytes > nbytes:
            self.linear.shrink(nbytes)
        if not self.linear.nbytes:
            self._taught.clear()

    @property
    def prepared(self) -> tuple[tuple[int, Slot], ...]:
        """The spans that are corrected already, by id, and for which slot."""
        return tuple(self._prepared)

    def examples(self, agent: str) -> int:
        """Readings that taught an agent's maps; the map of a slot leans on all of them."""
        return self._taught[agent] if self.linear.knows(Slot(agent, "")) else 0

    def prepare(self, span: Span, slot: Slot) -> Prepared:
        """A span corrected for a slot, from memory if that was done when it was produced.

        Of the change that a map makes, n / (n + 1) is taken after n examples: a young map goes too far.
        """
        slot = self._reading(span, slot)
        known = self._prepared.get((span.id, slot))
        if known is not None and known.base is span.base:
            self._prepared.move_to_end((span.id, slot))
            return known
        block = self.linear.correct(slot, span.base, span.embedding, step=True).block
        made = self._prepared[span.id, slot] = Prepared(span.base, block)
        while len(self._prepared) > _PREPARED:
            self._prepared.popitem(last=False)
        return made

    def learn(self, span: Span, slot: Slot, offset: int, true: KVBlock) -> None:
        """An example: what a span, from `offset` on, really was at a slot. Its text is embedded already.

        Args:
            span: whose donor KV is known.
            slot: where it was read.
            offset: of its first token in the span.
            true: un-rotated KV there.
        """
        base = span.base.slice(offset, offset + true.tokens)
        read = _as_read(span, slot)
        example = Example(base, true, span.embedding, self._weight(read, base), offset)
        self.linear.learn(read, example)
        self.pool.add(read, example)
        self.readers.learn(span, slot)
        self.linear.solve(read)

    def outdate(self, agent: str) -> None:
        """An agent's maps have changed by a reading: what was corrected by them is no longer the best."""
        self._taught[agent] += 1
        for key in [key for key in self._prepared if key[1].agent in (agent, agent + WARMED)]:
            del self._prepared[key]

    def snapshot(self, extra: Mapping[str, Tensor], owner: Owner) -> Snapshot:
        """Anchors and maps as they are now, and `extra` with them, to be written."""
        return self.pool.snapshot({**self.linear.state(), **extra}, owner)

    @classmethod
    def load(
        cls,
        folder: Path,
        config: ReuseConfig,
        fingerprint: str,
        anchor_bytes: int = GiB,
        map_bytes: int = GiB,
    ) -> tuple[SpanCorrector, dict[str, Tensor]]:
        """What `save` wrote, and all that was saved with it.

        Raises:
            SavedMemoryError: what is there is damaged or of another model.
        """
        made = cls(config, fingerprint, anchor_bytes, map_bytes)
        made.pool, extra = AnchorPool.load(folder, fingerprint, anchor_bytes)
        if not made.linear.load_state(extra):
            made.linear = LinearCorrector(made.pool, made._map_config)
        return made, extra

    def _weight(self, slot: Slot, base: KVBlock) -> float:
        """Novel examples count more: a few of them repair the map for their kind of text."""
        if not self.linear.knows(slot):
            return 1.0
        leverage = self.linear.leverage(slot, base)
        return min(max(leverage / self.config.novel_leverage, 1.0), self.config.novel_weight)

    def _reading(self, span: Span, slot: Slot) -> Slot:
        """The slot whose map is for this span.

        A place never learned from, say behind a passage that came by chance, is taken for the one where the agent
        usually reads this voice: that is what is corrected ahead.
        """
        own = _as_read(span, slot)
        usual = None if self.linear.seen(own) else self.readers.usual(span, slot.agent)
        return own if usual is None else _as_read(span, usual)


def _as_read(span: Span, slot: Slot) -> Slot:
    """The slot as it reads this span: warmed bases lack what donors have, and need other corrections.

    Not a place of its own but an agent: maps of slots shrink towards their agent's, which must not mix the two.
    """
    return replace(slot, agent=slot.agent + WARMED) if span.warmed else slot

"""Corrections: what a namespace has learned of how spans change, and the spans it has corrected by that."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import ReuseConfig
from ..kv.block import KVBlock
from ..kv.slot import Slot
from ..kv.span_library import Span
from .anchors import AnchorPool
from .base import Example
from .linear import LinearCorrector
from .readers import Readers
from .saved.manifest import WARMED, Owner
from .token_knn import TokenKnnCorrector

_SAMPLE = 48  # tokens of a span that the second corrector is asked about
_PREPARED = 256  # corrections kept for spans about to be read


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A span corrected for a slot, and what the guard wants to know of it; `warmed` if its base has no donor.

    `base` is the donor KV that was corrected: another donor needs another correction.
    """

    base: KVBlock
    block: KVBlock
    examples: int
    leverage: float
    disagreement: float
    novelty: float
    warmed: bool = False


class SpanCorrector:
    """Anchors, the correctors that learn from them, and who reads what.

    Args:
        config: budgets and policy.
        fingerprint: of the model and its tokenizer.
    """

    def __init__(self, config: ReuseConfig, fingerprint: str) -> None:
        self.config, self.fingerprint = config, fingerprint
        self.pool = AnchorPool(config.anchor_bytes, fingerprint)
        self.linear, self.second = LinearCorrector(), TokenKnnCorrector()
        self.readers = Readers()
        self._prepared: OrderedDict[tuple[int, Slot], Prepared] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of anchors and maps."""
        return self.pool.nbytes + self.linear.nbytes + self.second.nbytes

    @property
    def prepared(self) -> tuple[tuple[int, Slot], ...]:
        """The spans that are corrected already, by id, and for which slot."""
        return tuple(self._prepared)

    def prepare(self, span: Span, slot: Slot) -> Prepared:
        """A span corrected for a slot, from memory if that was done when it was produced."""
        slot = self._reading(span, slot)
        known = self._prepared.get((span.id, slot))
        if known is not None and known.base is span.base:
            self._prepared.move_to_end((span.id, slot))
            return known
        correction = self.linear.correct(slot, span.base, span.embedding)
        some = torch.linspace(0, span.tokens - 1, min(span.tokens, _SAMPLE)).long().to(span.base.keys.device)
        few = pick(span.base, some)
        second = self.second.correct(slot, few, span.embedding)
        made = Prepared(
            span.base,
            correction.block,
            self.linear.knows(Slot(slot.agent, "")),  # the map of a slot leans on all its agent's
            self.linear.leverage(slot, span.base) if correction.examples else float("inf"),
            distance(pick(correction.block, some), second.block, few),
            self.pool.novelty(slot, span.embedding) if span.embedding is not None else 0.0,
            span.warmed,
        )
        self._prepared[span.id, slot] = made
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
        self.second.learn(read, example)
        self.pool.add(read, example)
        self.readers.learn(span, slot)
        self.linear.solve(read)

    def outdate(self, agent: str) -> None:
        """An agent's maps have changed: what was corrected by them is no longer the best."""
        for key in [key for key in self._prepared if key[1].agent in (agent, agent + WARMED)]:
            del self._prepared[key]

    def save(self, folder: Path, extra: dict[str, Tensor], owner: Owner) -> None:
        """Write anchors and maps, and `extra` with them.

        Raises:
            SavedMemoryError: it could not be written; what was saved before is still whole.
        """
        self.pool.save(folder, {**self.linear.state(), **extra}, owner)

    @classmethod
    def load(cls, folder: Path, config: ReuseConfig, fingerprint: str) -> tuple[SpanCorrector, dict[str, Tensor]]:
        """What `save` wrote, and all that was saved with it.

        Raises:
            SavedMemoryError: what is there is damaged or of another model.
        """
        made = cls(config, fingerprint)
        made.pool, extra = AnchorPool.load(folder, fingerprint, config.anchor_bytes)
        if not made.linear.load_state(extra):
            made.linear = LinearCorrector(made.pool)
        made.second = TokenKnnCorrector(made.pool)
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


def pick(block: KVBlock, tokens: Tensor) -> KVBlock:
    """Some tokens of a block, by index `[n]`."""
    return KVBlock(block.keys.index_select(2, tokens), block.values.index_select(2, tokens))


def distance(a: KVBlock, b: KVBlock, base: KVBlock) -> float:
    """Distance of two corrections relative to the size of the donor KV."""
    gap = (a.keys - b.keys).float().square().sum() + (a.values - b.values).float().square().sum()
    size = base.keys.float().square().sum() + base.values.float().square().sum()
    return float((gap / size).sqrt())

"""`mean`: the mean offset of a slot's examples, token index by token index."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kvcomm_agents.config import GiB
from kvcomm_agents.correction import flat
from kvcomm_agents.correction.base import Correction, Example, unchanged
from kvcomm_agents.correction.slots import SlotTable
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot


class _MeanSums:
    """Weighted sums of offsets by token index, `[layers - 1, positions, features]`, and their weights."""

    def __init__(self) -> None:
        self.examples = 0
        self.sums = torch.empty(0, 0, 0)
        self.weights = torch.empty(0)

    @property
    def nbytes(self) -> int:
        return self.sums.nbytes + self.weights.nbytes

    def grow(self, positions: int, like: Tensor) -> None:
        """Room for `positions` token indices."""
        have = self.weights.shape[0]
        if positions > have:
            sums = like.new_zeros(like.shape[0], positions, like.shape[2])
            weights = like.new_zeros(positions)
            if have:
                sums[:, :have], weights[:have] = self.sums, self.weights
            self.sums, self.weights = sums, weights

    def merge(self, other: _MeanSums) -> None:
        if other.examples:
            count = other.weights.shape[0]
            self.grow(count, other.sums)
            self.sums[:, :count] += other.sums
            self.weights[:count] += other.weights
            self.examples += other.examples


class MeanCorrector:
    """Adds the mean offset: the slot's, else its agent's, else nothing.

    Args:
        pool: examples to start from, oldest first, such as an `AnchorPool`.
        positions: token indices that have a mean of their own; what lies beyond them, or beyond the
            longest example, gets the mean over all indices.
        budget: bytes of everything learned.
    """

    name = "mean"

    def __init__(
        self, pool: Iterable[tuple[Slot, Example]] = (), *, positions: int = 128, budget: int = GiB // 4
    ) -> None:
        self.positions = positions
        self._table = SlotTable(budget, _MeanSums)
        for slot, example in pool:
            self.learn(slot, example)

    @torch.no_grad()
    def learn(self, slot: Slot, example: Example) -> None:
        """Add one example's offsets to the running sums; a part from a span's middle has no index of its own."""
        if example.offset > 1:
            return
        offsets = flat.delta(example.base.slice(0, self.positions), example.true.slice(0, self.positions))
        sums = self._table.make(slot)
        count = offsets.shape[1]
        sums.grow(count, offsets)
        sums.sums[:, :count] += example.weight * offsets
        sums.weights[:count] += example.weight
        sums.examples += 1
        self._table.shrink()

    @torch.no_grad()
    def correct(self, slot: Slot, base: KVBlock, embedding: Tensor | None = None, offset: int = 0) -> Correction:
        """Base plus the mean offset at each token's index."""
        found = self._table.get(slot) or self._table.total(slot.reader)
        if found is None or not found.examples:
            return unchanged(base)
        covered = max(0, min(base.tokens, found.weights.shape[0] - offset))
        overall = found.sums.sum(1, keepdim=True) / found.weights.sum()
        change = overall.expand(-1, base.tokens, -1).clone()
        if covered:
            own = slice(offset, offset + covered)
            change[:, :covered] = found.sums[:, own] / found.weights[own, None]
        count = found.examples
        return Correction(flat.add(base, change), count / (count + 1), count)

    def knows(self, slot: Slot) -> int:
        """Examples behind a slot: its own, or its agent's if it has none."""
        return self._table.knows(slot)

    def forget(self, agent: str | None = None) -> None:
        """Forget an agent, or everything."""
        self._table.forget(agent)

    @property
    def nbytes(self) -> int:
        """Bytes of the running sums."""
        return self._table.nbytes

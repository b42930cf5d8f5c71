"""`token_knn`: each token takes the offsets of the anchor tokens whose base KV is nearest to its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from kvcomm_agents.config import GiB
from kvcomm_agents.correction import flat
from kvcomm_agents.correction.base import Correction, Example, unchanged
from kvcomm_agents.correction.slots import SlotTable
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot


class _Tokens:
    """A ring of anchor tokens: what they are found by, and their offsets.

    `found_by` is `[capacity, dim]` float32, `offsets` `[layers - 1, capacity, features]` in the
    dtype of the examples, `weights` `[capacity]`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.examples = self.count = self.next = 0
        self.found_by = torch.empty(0, 0)
        self.offsets = torch.empty(0, 0, 0)
        self.weights = torch.empty(0)

    @property
    def nbytes(self) -> int:
        return self.found_by.nbytes + self.offsets.nbytes + self.weights.nbytes

    def append(self, found_by: Tensor, offsets: Tensor, weights: Tensor) -> None:
        """Add tokens; the oldest beyond the capacity are overwritten."""
        found_by, offsets, weights = (
            found_by[-self.capacity :],
            offsets[:, -self.capacity :],
            weights[-self.capacity :],
        )
        new, have = weights.shape[0], self.weights.shape[0]
        if have < min(self.capacity, self.count + new):  # never after the ring has come round
            room = min(self.capacity, max(self.count + new, 2 * have))
            grown = (
                found_by.new_empty(room, found_by.shape[1]),
                offsets.new_empty(offsets.shape[0], room, offsets.shape[2]),
                weights.new_empty(room),
            )
            if self.count:
                grown[0][: self.count] = self.found_by[: self.count]
                grown[1][:, : self.count] = self.offsets[:, : self.count]
                grown[2][: self.count] = self.weights[: self.count]
            self.found_by, self.offsets, self.weights = grown
            self.next = self.count
        room = self.weights.shape[0]
        at = (self.next + torch.arange(new, device=weights.device)) % room
        self.found_by[at], self.weights[at] = found_by, weights
        self.offsets.index_copy_(1, at, offsets.to(self.offsets.dtype))
        self.count = min(self.count + new, room)
        self.next = (self.next + new) % room

    def merge(self, other: _Tokens) -> None:
        if other.count:
            some = slice(0, other.count)
            self.append(other.found_by[some], other.offsets[:, some], other.weights[some])
            self.examples += other.examples


class TokenKnnCorrector:
    """Per token, the offsets of the nearest anchor tokens of the slot, else of its agent, averaged.

    Distance is `2 - 2 cos`, summed over the un-rotated keys and the values of a few layers; each anchor
    token counts by its weight over its squared distance.

    Args:
        pool: examples to start from, oldest first, such as an `AnchorPool`.
        neighbours: anchor tokens averaged per token.
        layers: how many layers, evenly spread, tokens are compared by.
        capacity: anchor tokens kept per slot; the oldest go first.
        budget: bytes of everything learned.
    """

    name = "token_knn"

    def __init__(
        self,
        pool: Iterable[tuple[Slot, Example]] = (),
        *,
        neighbours: int = 4,
        layers: int = 4,
        capacity: int = 2048,
        budget: int = GiB // 2,
    ) -> None:
        self.neighbours, self.layers, self.capacity = neighbours, layers, capacity
        self._table = SlotTable(budget, lambda: _Tokens(capacity))
        self._lock = threading.RLock()
        for slot, example in pool:
            self.learn(slot, example)

    def _found_by(self, block: KVBlock) -> Tensor:
        """`[tokens, dim]` float32 of length `sqrt(2 * layers)`: unit keys and values of a few layers."""
        top = block.keys.shape[0] - 1
        picked = sorted({max(1, round(top * (i + 1) / self.layers)) for i in range(self.layers)})
        parts = [part[picked].transpose(1, 2).flatten(2).float() for part in (block.keys, block.values)]
        unit = torch.cat([torch.nn.functional.normalize(part, dim=-1) for part in parts], dim=-1)
        return unit.transpose(0, 1).flatten(1)

    @torch.no_grad()
    def learn(self, slot: Slot, example: Example) -> None:
        """Keep an example's tokens."""
        if example.base.keys.shape[0] < 2 or example.base.tokens == 0:
            return
        offsets = flat.delta(example.base, example.true).to(example.base.keys.dtype)
        found_by = self._found_by(example.base)
        weights = torch.full((example.base.tokens,), example.weight, device=found_by.device)
        with self._lock:
            tokens = self._table.make(slot)
            tokens.append(found_by, offsets, weights)
            tokens.examples += 1
            self._table.shrink()

    @torch.no_grad()
    def correct(self, slot: Slot, base: KVBlock, embedding: Tensor | None = None, offset: int = 0) -> Correction:
        """Base plus the weighted offsets of each token's nearest anchor tokens."""
        with self._lock:
            own = self._table.get(slot)
            # An agent's other slots are asked one by one: they are large, and no copy of them is made.
            found = [one for one in ([own] if own else self._table.of_reader(slot.reader)) if one.count]
            if not found or not base.tokens:
                return unchanged(base)
            wanted = self._found_by(base)
            parts = 2.0 * wanted.square().sum(1, keepdim=True)
            alike = torch.cat([wanted @ one.found_by[: one.count].T for one in found], dim=1)
            distance = (parts - 2.0 * alike).clamp_min_(0.0)
            nearest, index = distance.topk(min(self.neighbours, distance.shape[1]), dim=1, largest=False)
            weights = torch.cat([one.weights[: one.count] for one in found])[index] / (nearest + 1e-3 * parts)
            weights /= weights.sum(1, keepdim=True)
            change: Tensor | None = None
            for rank in range(index.shape[1]):  # one gather per neighbour: k times less memory than one for all
                share = _gather(found, index[:, rank]) * weights[:, rank, None]
                change = share if change is None else change.add_(share)
            count = sum(one.examples for one in found)
        if change is None:
            return unchanged(base)
        # Distance relative to that of unrelated tokens (cos 0): near 1 when the like has been seen.
        likeness = 1.0 - float((nearest[:, 0] / parts[:, 0]).mean())
        return Correction(flat.add(base, change), max(0.0, likeness) * count / (count + 1), count)

    def knows(self, slot: Slot) -> int:
        """Examples behind a slot: its own, or its agent's if it has none."""
        return self._table.knows(slot)

    def forget(self, agent: str | None = None) -> None:
        """Forget an agent, or everything."""
        with self._lock:
            self._table.forget(agent)

    @property
    def nbytes(self) -> int:
        """Bytes of the anchor tokens."""
        return self._table.nbytes


def _gather(found: Sequence[_Tokens], index: Tensor) -> Tensor:
    """Offsets `[layers - 1, tokens, features]` float32 of anchor tokens, numbered through all of `found`."""
    if len(found) == 1:
        return found[0].offsets.index_select(1, index).float()
    taken = torch.empty(found[0].offsets.shape[0], len(index), found[0].offsets.shape[2], device=index.device)
    start = 0
    for one in found:
        here = ((index >= start) & (index < start + one.count)).nonzero()[:, 0]
        taken[:, here] = one.offsets.index_select(1, index[here] - start).float()
        start += one.count
    return taken

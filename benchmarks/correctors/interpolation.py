"""`interpolation`: KVCOMM's anchors (arXiv 2510.12872, section 3), as published.

Offsets of past spans, weighted by how near their base KV is to the new span's, token by token:
`KV = base + sum_a softmax(-d_a) * offset_a`, over the anchors at least as long as the span (Eq. 3-4).
A span is shareable, i.e. not itself a new anchor, unless it is longer than every anchor or the entropy
of its weights exceeds `gamma * log|A|` (Eq. 5). At most `capacity` anchors live; of the `window` oldest,
the least used goes. Layer 0 is left as it is.

Where the paper and its released code differ, this follows the paper:
keys are compared, and offsets added, without their rotation (the code compares keys in the frame of
whichever agent wrote last); one long-enough anchor suffices (the code wants two); a static segment is
weighted by one number per anchor (the code: one per channel); `capacity` is the number that live (the
code: one more); a use is credited to the smallest set of anchors with 0.9 of the weight (the code, most
often, to all). The paper leaves the distance open beyond "embedding"; it is the code's: mean absolute
difference per token for the weights, Frobenius norm over the values for the entropy.
The pool of a placeholder is shared by all agents there; here every slot has its own, with the same offsets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcomm_agents.config import GiB
from kvcomm_agents.correction import flat
from kvcomm_agents.correction.base import Correction, Example, unchanged
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot

_TOP_P = 0.9


@dataclass(slots=True, eq=False)
class _Anchor:
    base: KVBlock
    offset: KVBlock
    following: KVBlock | None = None
    uses: int = 0

    @property
    def nbytes(self) -> int:
        return self.base.nbytes + self.offset.nbytes + (self.following.nbytes if self.following else 0)


def _offset(example: Example) -> KVBlock:
    return KVBlock(example.true.keys - example.base.keys, example.true.values - example.base.values)


class InterpolationCorrector:
    """The published anchor pool, one per slot. A slot without anchors is not corrected.

    Args:
        pool: examples to start from, oldest first, such as an `AnchorPool`.
        gamma: share of the largest entropy above which a span is not shareable.
        capacity: anchors per slot (V in the paper).
        window: oldest anchors among which the least used is dropped.
        budget: bytes of all anchors; beyond it, slots lose anchors, least recently used slot first.
    """

    name = "interpolation"

    def __init__(
        self,
        pool: Iterable[tuple[Slot, Example]] = (),
        *,
        gamma: float = 0.3,
        capacity: int = 20,
        window: int = 5,
        budget: int = GiB,
    ) -> None:
        self.gamma, self.capacity, self.window, self.budget = gamma, capacity, window, budget
        self._pools: dict[Slot, list[_Anchor]] = {}
        for slot, example in pool:
            self.learn(slot, example)

    def _fitting(self, slot: Slot, stop: int) -> list[_Anchor]:
        return [anchor for anchor in self._pools.get(slot, []) if anchor.base.tokens >= stop]

    @torch.no_grad()
    def learn(self, slot: Slot, example: Example) -> None:
        """Make the example an anchor. The published admission: only if not `shareable(slot, base)`."""
        pool = self._pools.pop(slot, [])
        self._pools[slot] = pool  # most recently used last
        if len(pool) >= self.capacity:
            pool.remove(min(pool[: self.window], key=lambda anchor: anchor.uses))
        pool.append(_Anchor(flat.owned(example.base), _offset(example)))
        while self.nbytes > self.budget and sum(map(len, self._pools.values())) > 1:
            oldest = next(iter(self._pools))
            drop = min(self._pools[oldest][: self.window], key=lambda anchor: anchor.uses)
            self._pools[oldest].remove(drop)
            if not self._pools[oldest]:
                del self._pools[oldest]

    @torch.no_grad()
    def learn_following(self, slot: Slot, static_example: Example) -> None:
        """Add the static segment after the span of the slot's newest anchor to that anchor."""
        if pool := self._pools.get(slot):
            pool[-1].following = _offset(static_example)

    def _likeness(self, fitting: list[_Anchor], base: KVBlock, offset: int) -> Tensor:
        """Softmax over anchors of minus the Frobenius distance of the values (Eq. 4): `[anchors]`."""
        stop = offset + base.tokens
        values = torch.stack([anchor.base.values[:, :, offset:stop] for anchor in fitting]).float()
        return torch.softmax(-(values - base.values.float()).flatten(1).norm(dim=1), dim=0)

    @torch.no_grad()
    def shareable(self, slot: Slot, base: KVBlock, offset: int = 0) -> bool:
        """Whether the slot's anchors cover the span: long enough, and near enough to few of them (Eq. 5)."""
        fitting = self._fitting(slot, offset + base.tokens)
        return bool(fitting) and self._covers(self._likeness(fitting, base, offset))

    def _covers(self, likeness: Tensor) -> bool:
        entropy = float(torch.special.entr(likeness).sum())
        return entropy <= self.gamma * math.log(likeness.shape[0]) + 1e-5  # of rounding

    @torch.no_grad()
    def weights(self, slot: Slot, base: KVBlock, offset: int = 0) -> Tensor:
        """Weights of the slot's long-enough anchors: `[2 (keys, values), anchors, tokens]`, 1 over anchors."""
        fitting = self._fitting(slot, offset + base.tokens)
        return _weights(fitting, base, offset)

    @torch.no_grad()
    def correct(self, slot: Slot, base: KVBlock, embedding: Tensor | None = None, offset: int = 0) -> Correction:
        """Base plus the interpolated offsets; the base unchanged if it is not shareable."""
        stop = offset + base.tokens
        fitting = self._fitting(slot, stop)
        if not fitting or not base.tokens:
            return unchanged(base)
        likeness = self._likeness(fitting, base, offset)
        if not self._covers(likeness):
            return unchanged(base)
        self._pools[slot] = self._pools.pop(slot)
        ranked = likeness.argsort(descending=True)
        reached = int((likeness[ranked].cumsum(0) < _TOP_P).sum()) + 1
        for index in ranked[:reached].tolist():
            fitting[index].uses += 1
        weights = _weights(fitting, base, offset)
        moved = _mix(base, [anchor.offset.slice(offset, stop) for anchor in fitting], weights)
        count = len(fitting)
        return Correction(moved, count / (count + 1), count)

    @torch.no_grad()
    def correct_following(self, slot: Slot, span_base: KVBlock, static_base: KVBlock) -> Correction:
        """The static segment after a span, by the anchors of that span and the span's distance to them."""
        fitting = self._fitting(slot, span_base.tokens)
        fitting = [a for a in fitting if a.following and a.following.tokens == static_base.tokens]
        if not fitting or not self._covers(self._likeness(fitting, span_base, 0)):
            return unchanged(static_base)
        weights = _weights(fitting, span_base, 0).mean(2, keepdim=True)
        offsets = [anchor.following for anchor in fitting if anchor.following]
        moved = _mix(static_base, offsets, weights)
        return Correction(moved, len(fitting) / (len(fitting) + 1), len(fitting))

    def knows(self, slot: Slot) -> int:
        """Anchors of a slot. The paper has no other to fall back on."""
        return len(self._pools.get(slot, []))

    def forget(self, agent: str | None = None) -> None:
        """Forget an agent, or everything."""
        for slot in [slot for slot in self._pools if agent is None or slot.agent == agent]:
            del self._pools[slot]

    @property
    def nbytes(self) -> int:
        """Bytes of all anchors."""
        return sum(anchor.nbytes for pool in self._pools.values() for anchor in pool)


def _weights(fitting: list[_Anchor], base: KVBlock, offset: int) -> Tensor:
    """Per token, softmax over anchors of minus the mean absolute difference of base KV."""
    stop = offset + base.tokens
    if not fitting:
        return base.keys.new_empty(2, 0, base.tokens, dtype=torch.float32)
    keys = torch.stack([anchor.base.keys[:, :, offset:stop] for anchor in fitting]).float() - base.keys.float()
    values = torch.stack([anchor.base.values[:, :, offset:stop] for anchor in fitting]).float()
    values -= base.values.float()
    distance = torch.stack([part.abs().mean(dim=(1, 2, 4)) for part in (keys, values)])
    return torch.softmax(-distance, dim=1)


def _mix(base: KVBlock, offsets: list[KVBlock], weights: Tensor) -> KVBlock:
    """`base + sum_a w_a * offset_a` above layer 0; weights `[2, anchors, tokens or 1]`."""
    mixed = []
    parts = ((base.keys, [o.keys for o in offsets]), (base.values, [o.values for o in offsets]))
    for kind, (part, moves) in enumerate(parts):
        change = torch.einsum("alhtd,at->lhtd", torch.stack(moves).float(), weights[kind].expand(-1, part.shape[2]))
        change[0] = 0.0
        mixed.append((part.float() + change).to(part.dtype))
    return KVBlock(mixed[0], mixed[1])

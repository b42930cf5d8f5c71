"""Proposal: what could be placed in a prompt, and what the guard wants to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .guard import Features
from .kv import KVBlock
from .segments import Segment


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


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """What could be placed in a prompt: its segments, their KV, and how sure we are of it.

    Args:
        segments: of the prompt behind its stored prefix.
        blocks: what to place, by index of the segment.
        features: for the guard; `None` if nothing could be placed.
        judge: the prompt holds competing answers.
        spans_found, span_tokens: what others wrote that was found in the whole prompt.
    """

    segments: tuple[Segment, ...]
    blocks: dict[int, KVBlock]
    features: Features | None
    judge: bool
    spans_found: int = 0
    span_tokens: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest run behind the prefix that others wrote or read first; 0 if there is none."""
        return max((one.tokens for one in self.segments if one.slot is not None), default=0)


def pick(block: KVBlock, tokens: Tensor) -> KVBlock:
    """Some tokens of a block, by index `[n]`."""
    return KVBlock(block.keys.index_select(2, tokens), block.values.index_select(2, tokens))


def distance(a: KVBlock, b: KVBlock, base: KVBlock) -> float:
    """Distance of two corrections relative to the size of the donor KV."""
    gap = (a.keys - b.keys).float().square().sum() + (a.values - b.values).float().square().sum()
    size = base.keys.float().square().sum() + base.values.float().square().sum()
    return float((gap / size).sqrt())


def features_of(prepared: Sequence[tuple[Prepared, int]]) -> Features | None:
    """Leverage weighted by tokens; disagreement and novelty of the worst span, examples of the one with fewest."""
    tokens = sum(count for _, count in prepared)
    if not tokens:
        return None
    return Features(
        leverage=sum(one.leverage * count for one, count in prepared) / tokens,
        disagreement=max(one.disagreement for one, _ in prepared),
        novelty=max(one.novelty for one, _ in prepared),
        examples=min(one.examples for one, _ in prepared),
        warmed=sum(count for one, count in prepared if one.warmed) / tokens,
    )

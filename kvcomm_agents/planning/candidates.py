"""Proposal: what could be placed in a prompt, and what the guard wants to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..correction.span_corrector import Prepared
from ..kv.block import KVBlock
from .guard import Features
from .segments import Segment


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
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

"""Candidates: what could be placed in a prompt, and what the guard wants to know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..kv.block import KVBlock
from ..plan import Placed, PrefillPlan
from .guard import Option, Situation
from .ladder import LADDER, Rung, Sources, corrected_plan
from .segments import Segment

EARNED = 4
"""Examples of a reader from which on its maps are looked at."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What could be placed in a prompt.

    Args:
        segments: of the prompt behind its stored prefix.
        sources: their KV. What maps make of it is left out: `mapped` makes it.
        mapped: the spans corrected by their reader's maps, by index of the segment; made when it is called.
        examples: behind these maps, the fewest; 0 where there are none.
        judge: the prompt holds competing answers.
        spans_found, span_tokens: what others wrote that was found in the whole prompt.
    """

    segments: tuple[Segment, ...]
    sources: Sources
    mapped: Callable[[], Mapping[int, KVBlock]]
    examples: int = 0
    judge: bool = False
    spans_found: int = 0
    span_tokens: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest run behind the prefix that others wrote or read first; 0 if there is none."""
        return max((segment.tokens for segment in self.segments if segment.slot is not None), default=0)

    def rungs(self) -> list[Rung]:
        """Those that there are sources for."""
        return [
            rung
            for rung in LADDER
            if (not rung.maps or self.examples >= EARNED) and (not rung.static or self.sources.static)
        ]

    def plan(
        self, length: int, prefix: Sequence[Placed], rung: Rung, min_run: int, block: int, *, shape: bool = False
    ) -> PrefillPlan:
        """The plan of a rung; with `shape` it says what is computed, and holds donor KV where maps would change it."""
        mapped = self.sources.raw if shape or not rung.maps else self.mapped()
        sources = replace(self.sources, mapped=mapped)
        return corrected_plan(length, prefix, self.segments, sources, rung, min_run, block)

    def option(self, rung: Rung, plan: PrefillPlan) -> Option:
        """A rung and the prompt's situation on it."""
        approximate = plan.placed_tokens(exact=False)
        spans = [segment for index, segment in enumerate(self.segments) if index in self.sources.raw]
        tokens = sum(segment.tokens for segment in spans)
        warmed = sum(segment.tokens for segment in spans if segment.warmed) / max(tokens, 1)
        examples = self.examples if rung.maps else 0
        situation = Situation(max(tokens, approximate), approximate / plan.length, len(spans), examples, warmed)
        return Option(rung.name, plan.computed_tokens, situation)

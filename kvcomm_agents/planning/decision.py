"""PrefillDecision: how one request is prefilled, and why."""

from __future__ import annotations

from dataclasses import dataclass

from ..kv.span_library import Tagged
from ..plan import PrefillPlan
from .guard import Features
from .ladder import LADDER
from .segments import Segment


@dataclass(frozen=True, slots=True, eq=False)
class PrefillDecision:
    """How a request is prefilled, and what to remember of why.

    Args:
        plan: what the runner executes.
        rung: index into `LADDER`; `None` where nothing approximate is placed.
        features: what the guard went by.
        predicted: mean KL per token it expects.
        cuts: where its messages begin and end.
        tagged: which of them carry the tag of a span.
        audited: the request's distributions are to be kept for an audit or a trial.
        learns: it may be learned from.
        spans_found, span_tokens: what others wrote that was found in the prompt.
        seen: segments of the prompt as far as anybody looked, for reports.
        reason: why so much was computed, in a few words, for reports.
        saved: prompt tokens that an exact prefix cache would have computed and that are placed.
    """

    plan: PrefillPlan
    rung: int | None = None
    features: Features | None = None
    predicted: float = 0.0
    cuts: tuple[int, ...] = ()
    tagged: tuple[Tagged, ...] = ()
    audited: bool = False
    learns: bool = False
    spans_found: int = 0
    span_tokens: int = 0
    seen: tuple[Segment, ...] = ()
    reason: str = ""
    saved: int = 0

    @property
    def rung_name(self) -> str:
        """For reports."""
        if self.rung is not None:
            return LADDER[self.rung].name
        return "exact" if self.plan.placed else "dense"

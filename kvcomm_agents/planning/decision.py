"""PrefillDecision: how one request is prefilled, and why."""

from __future__ import annotations

from dataclasses import dataclass

from ..kv.span_library import Tagged
from ..plan import PrefillPlan
from .guard import Option
from .segments import Segment


@dataclass(frozen=True, slots=True, eq=False)
class PrefillDecision:
    """How a request is prefilled, and what to remember of why.

    Args:
        plan: what the engine executes.
        option: the rung that was taken, and the prompt's situation on it; `None` where nothing approximate is placed.
        predicted: mean KL per token the guard expects.
        basis: what the prediction goes by: the `calibration`, measurements of the `app` or of the `agent`.
        trial: a rung to be measured beside, if the request is measured.
        measured: of so many first positions of the answer the distributions are kept, to measure it.
        exact: tokens of the prompt that an exact prefix cache would have computed.
        cuts: where its messages begin and end.
        tagged: which of them carry the tag of a span.
        learns: it may be learned from.
        spans_found, span_tokens: what others wrote that was found in the prompt.
        seen: segments of the prompt as far as anybody looked, for reports.
        reason: why so much was computed, in a few words, for reports.
    """

    plan: PrefillPlan
    option: Option | None = None
    predicted: float = 0.0
    basis: str = ""
    trial: Option | None = None
    measured: int = 0
    exact: int = 0
    cuts: tuple[int, ...] = ()
    tagged: tuple[Tagged, ...] = ()
    learns: bool = False
    spans_found: int = 0
    span_tokens: int = 0
    seen: tuple[Segment, ...] = ()
    reason: str = ""

    @property
    def rung_name(self) -> str:
        """For reports."""
        if self.option is not None:
            return self.option.rung
        return "exact" if self.plan.placed else "dense"

    @property
    def saved(self) -> int:
        """Tokens that an exact prefix cache would have computed and that are placed; 0 where nothing approximate is."""
        return self.exact - self.plan.computed_tokens if self.option is not None else 0

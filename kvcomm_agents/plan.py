"""PrefillPlan: for every token of a prompt, whether it is computed or placed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import PlanError
from .kv.block import KVBlock


@dataclass(frozen=True, slots=True)
class Computed:
    """Tokens `start:stop` go through the model."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Tokens `start:stop` take their KV from a block, its keys moved to where they stand.

    Args:
        exact: the KV equals what a dense prefill of this very prompt gives. Anything else is
            approximate, and so is every token computed after it.
        source: the agent in whose context the KV was computed, for reports.
    """

    start: int
    stop: int
    block: KVBlock
    exact: bool
    source: str = ""


Run = Computed | Placed


@dataclass(frozen=True, slots=True, eq=False)
class PrefillPlan:
    """An ordered list of runs that covers a prompt exactly once. Its last token is computed.

    Raises:
        PlanError: the runs leave a gap, overlap, are empty, carry a block of another length, or
            the last token is not computed.
    """

    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        at = 0
        for run in self.runs:
            if run.start != at or run.stop <= run.start:
                raise PlanError(f"the run {run.start}:{run.stop} should start at {at} and hold at least one token")
            if isinstance(run, Placed) and run.block.tokens != run.stop - run.start:
                raise PlanError(f"the run {run.start}:{run.stop} is placed from a block of {run.block.tokens} tokens")
            at = run.stop
        if not self.runs or isinstance(self.runs[-1], Placed):
            raise PlanError("the last token of a prompt must be computed: its logits choose the first new token")

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.runs[-1].stop

    @property
    def computed(self) -> tuple[Computed, ...]:
        """The runs that go through the model."""
        return tuple(run for run in self.runs if isinstance(run, Computed))

    @property
    def placed(self) -> tuple[Placed, ...]:
        """The runs that come from the store."""
        return tuple(run for run in self.runs if isinstance(run, Placed))

    @property
    def computed_tokens(self) -> int:
        """Tokens that go through the model."""
        return _tokens(self.computed)

    def computed_piece(self, start: int, count: int) -> tuple[Computed, ...]:
        """The runs of up to `count` computed tokens, after the first `start` of them."""
        piece, stop = list[Computed](), start + count
        for run in self.computed:
            tokens = run.stop - run.start
            first, last = max(start, 0), min(stop, tokens)
            if first < last:
                piece.append(Computed(run.start + first, run.start + last))
            start, stop = start - tokens, stop - tokens
        return tuple(piece)

    def placed_tokens(self, *, exact: bool) -> int:
        """Tokens placed with exact KV, or with approximate KV."""
        return _tokens(run for run in self.placed if run.exact is exact)

    @property
    def tainted_from(self) -> int:
        """Position from which on this context's KV is approximate; `length` if none of the prompt's is.

        What is generated after a tainted prompt is tainted too, whatever this number.
        """
        return min((run.start for run in self.placed if not run.exact), default=self.length)

    @property
    def is_exact(self) -> bool:
        """Whether nothing in the plan is approximate."""
        return all(run.exact for run in self.placed)


def _tokens(runs: Iterable[Run]) -> int:
    return sum(run.stop - run.start for run in runs)


def dense(length: int) -> PrefillPlan:
    """Everything computed."""
    return PrefillPlan((Computed(0, length),))

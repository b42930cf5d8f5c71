"""Runs: the same calls served by several columns, side by side.

Columns take turns on each call, in an order that rotates. What is done beside the critical path is
timed too; nothing is compared with a time taken in another run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from kvcomm_agents.backend import Divergence
from kvcomm_agents.planning.auditor import SCORED

from .calls import Call
from .columns import Column, LostColumnError, Served
from .session import Tell

SAME = Divergence(0.0, 0.0, 0.0, 1.0)
"""Of what is computed exactly."""


@dataclass(frozen=True, slots=True)
class Row:
    """One call served by one column; `apart` is its divergence from the dense column, `None` if nobody looked."""

    call: Call
    column: str
    served: Served
    apart: Divergence | None = None

    @property
    def kl(self) -> float | None:
        """Mean KL(dense || column) per token, nats."""
        return self.apart.mean if self.apart else None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, rounded to microseconds."""
        served = {one.name: getattr(self.served, one.name) for one in fields(Served) if one.name != "scores"}
        return {
            "request": self.call.request,
            "agent": self.call.agent,
            "column": self.column,
            "prompt": len(self.call.ids),
            "output": len(self.call.output),
            **{name: round(value, 6) if isinstance(value, float) else value for name, value in served.items()},
            "kl": self.kl,
        }


@dataclass(slots=True)
class Run:
    """What was measured.

    Args:
        cold, steady: rows of either phase; of the cold one, those of columns that learn.
        held: the most bytes that each column held.
        lost: why a column could not go on, by its name. None of its rows is kept: they would be of fewer calls.
    """

    cold: list[Row] = field(default_factory=list)
    steady: list[Row] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    def of(self, column: str) -> list[Row]:
        """A column's steady rows."""
        return [row for row in self.steady if row.column == column]

    def lose(self, column: str, why: str) -> None:
        """Go on without a column."""
        self.lost[column] = why
        self.cold = [row for row in self.cold if row.column != column]
        self.steady = [row for row in self.steady if row.column != column]
        self.held.pop(column, None)


def serve_all(
    columns: Sequence[Column],
    requests: Sequence[Sequence[Call]],
    cold: int = 0,
    positions: int = SCORED,
    tell: Tell = lambda stage, done, total: None,
    before: Callable[[int, Run], None] = lambda request, run: None,
) -> Run:
    """Serve requests with every column. Interrupted (Ctrl-C) while it measures, it returns what there is.

    Args:
        columns: which; divergences are from the one called `dense`.
        requests: their calls, in order.
        cold: of the first requests, only columns that learn serve all; the rest come in with the
            last of them, uncounted, so that prefixes are stored and memory is touched.
        positions: of each answer's tokens that distributions are compared at; by default as many as the
            guard's own audits look at.
        tell: called with the requests done.
        before: called ahead of each request, with its number and what was measured so far.
    """
    run, turn = Run(), 0
    for column in columns:  # the first pass of a process is slow; those who keep nothing take it for all
        if column.stateless:
            _take([column], requests[0][0], 0, run)
    try:
        for number, calls in enumerate(requests):
            before(number, run)
            steady = number >= cold
            for call in calls:
                here = [column for column in columns if column.name not in run.lost]
                served = [column for column in here if steady or column.learns or number == cold - 1]
                turn += 1
                at = turn % max(len(served), 1)
                rows = _take([*served[at:], *served[:at]], call, positions if steady else 0, run)
                if steady:
                    run.steady += rows
                else:
                    learning = {column.name for column in columns if column.learns}
                    run.cold += [row for row in rows if row.column in learning]
                for column in here:
                    if column.name not in run.lost:
                        run.held[column.name] = max(run.held.get(column.name, 0), column.held_bytes)
            tell("requests", number + 1, len(requests))
    except KeyboardInterrupt:
        if not run.steady:
            raise
    return run


def _take(columns: Sequence[Column], call: Call, positions: int, run: Run) -> list[Row]:
    """A call served by one column after the other. A peer that fails is lost, and the others go on."""
    taken = dict[str, Served]()
    for column in columns:
        try:
            taken[column.name] = column.serve(call, positions)
        except LostColumnError as error:
            run.lose(column.name, str(error))
    truth = taken["dense"] if "dense" in taken else None
    return [Row(call, name, replace(one, scores=None), _apart(truth, one)) for name, one in taken.items()]


def _apart(truth: Served | None, served: Served) -> Divergence | None:
    if truth is None or truth.scores is None or served.scores is None:
        return None
    return truth.scores.divergence(served.scores) if served.corrected else SAME

"""`kvcomm bench ttft`: time to first token, agent by agent, of every way of serving the same calls.

Columns take turns on each call, in an order that rotates. What is done beside the critical path is
timed too and charged in figures of its own; nothing is compared with a time taken in another run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from kvcomm_agents.planning.divergence import divergence

from .calls import Call
from .columns import Column, First, LostColumnError, Rest
from .console import Tell, quietly

POSITIONS = 64
"""Tokens of each answer at which distributions are compared: as many as the guard's own audits look at."""
HIDDEN = ("donors_s", "prepare_s", "audit_s", "learn_s")


@dataclass(frozen=True, slots=True)
class Row:
    """One call served by one column: its first token, what was hidden, and mean KL(dense || column) per token."""

    call: Call
    column: str
    first: First
    rest: Rest
    kl: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, rounded to microseconds."""
        first = asdict(self.first)
        shown = {name: round(value, 6) if isinstance(value, float) else value for name, value in first.items()}
        hidden = {name: round(getattr(self.rest, name), 6) for name in HIDDEN}
        return {
            "request": self.call.request,
            "agent": self.call.agent,
            "column": self.column,
            "prompt": len(self.call.ids),
            "output": len(self.call.output),
            **shown,
            **hidden,
            "passes": self.rest.passes,
            "kl": self.kl,
        }


@dataclass(slots=True)
class Run:
    """What was measured: rows of the cold and of the steady phase, the most that each column held, and who was lost."""

    cold: list[Row] = field(default_factory=list)
    steady: list[Row] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    """Why a column could not go on, by its name. None of its rows is kept: they would be of fewer calls."""

    def lose(self, column: str, why: str) -> None:
        """Go on without a column."""
        self.lost[column] = why
        self.cold = [row for row in self.cold if row.column != column]
        self.steady = [row for row in self.steady if row.column != column]
        self.held.pop(column, None)


def run(
    columns: Sequence[Column],
    requests: Sequence[Sequence[Call]],
    cold: int,
    positions: int = POSITIONS,
    tell: Tell = quietly,
) -> Run:
    """Serve requests with every column. Interrupted (Ctrl-C) while it measures, it returns what there is.

    Args:
        columns: which.
        requests: their calls, in order.
        cold: of the first requests, only columns that learn serve all; the rest come in with the
            last of them, untimed, so that prefixes are stored and memory is touched.
        positions: of each answer's tokens that distributions are compared at.
        tell: called with the requests done.
    """
    found = Run()
    turn = 0
    for column in columns:  # the first pass of a process is slow; those who keep nothing take it for all
        if column.stateless:
            _take([column], requests[0][0], 0, found)
    try:
        for number, calls in enumerate(requests):
            steady = number >= cold
            for call in calls:
                here = [one for one in columns if one.name not in found.lost]
                served = [one for one in here if steady or one.learns or number == cold - 1]
                turn += 1
                at = turn % max(len(served), 1)
                rows = _rows(call, _take([*served[at:], *served[:at]], call, positions if steady else 0, found))
                if steady:
                    found.steady += rows
                else:
                    found.cold += [row for row in rows if any(one.learns for one in columns if one.name == row.column)]
                for one in here:
                    if one.name not in found.lost:
                        found.held[one.name] = max(found.held.get(one.name, 0), one.held_bytes)
            tell("requests", number + 1, len(requests))
    except KeyboardInterrupt:
        if not found.steady:
            raise
    return found


def _take(columns: Sequence[Column], call: Call, positions: int, found: Run) -> list[tuple[str, First, Rest]]:
    """A call served by one column after the other. A peer that fails is lost, and the others go on."""
    taken = []
    for column in columns:
        busy = time.process_time()
        try:
            first = replace(column.first(call), cpu_s=time.process_time() - busy)
            taken.append((column.name, first, column.rest(call, positions)))
        except LostColumnError as error:
            found.lose(column.name, str(error))
    return taken


def _rows(call: Call, taken: Sequence[tuple[str, First, Rest]]) -> list[Row]:
    truth = next((rest.logits for name, _, rest in taken if name == "dense"), None)
    return [Row(call, name, first, _bare(rest), _kl(truth, first, rest)) for name, first, rest in taken]


def _bare(rest: Rest) -> Rest:
    return Rest(None, rest.donors_s, rest.prepare_s, rest.audit_s, rest.learn_s, rest.passes)


def _kl(truth: Tensor | None, first: First, rest: Rest) -> float | None:
    if truth is None or rest.logits is None:
        return None
    both = min(truth.shape[0], rest.logits.shape[0])
    return 0.0 if not first.corrected else divergence(truth[:both], rest.logits[:both]).mean

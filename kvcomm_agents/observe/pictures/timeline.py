"""Where calls go in a picture: a lane for every agent, and a time axis that leaves out idle time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..report import RequestReport

_LONG_GAP = 0.12  # an idle time longer than this share of the busy time is cut out
_CUT = 0.02  # and drawn as wide as this share


@dataclass(frozen=True, slots=True)
class Lane:
    """One line of the picture: calls of one agent that do not overlap, by their index."""

    agent: str
    calls: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """Seconds since the first call -> a place in [0, 1].

    Args:
        pieces: `(first, last, at)`: the seconds shown, and where on the axis they begin, in seconds too.
        width: of the whole axis, in seconds.
    """

    pieces: tuple[tuple[float, float, float], ...]
    width: float

    def __call__(self, seconds: float) -> float:
        """Where a moment is drawn."""
        for first, last, at in reversed(self.pieces):
            if seconds >= first:
                return (at + min(seconds, last) - first) / self.width
        return 0.0

    @property
    def cuts(self) -> list[tuple[float, float, float]]:
        """Idle times left out: where they begin and end on the axis, and their seconds."""
        return [
            ((at + last - first) / self.width, next_at / self.width, next_first - last)
            for (first, last, at), (next_first, _, next_at) in zip(self.pieces, self.pieces[1:], strict=False)
        ]

    @property
    def ticks(self) -> list[tuple[float, float]]:
        """Where to write how many seconds have passed: round steps, at most ten, in every piece."""
        step = next((s for s in _STEPS if self.width / s <= 8), _STEPS[-1])
        found = []
        for first, last, _ in self.pieces:
            tick = -(-first // step) * step
            while tick <= last + 1e-9:
                found.append((self(tick), tick))
                tick += step
        return found


_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)


def lanes_of(reports: Sequence[RequestReport]) -> list[Lane]:
    """Agents in the order in which they first called; calls that overlap are in lanes of their own."""
    lanes: dict[str, list[list[int]]] = {}
    for index in sorted(range(len(reports)), key=lambda index: reports[index].started_at):
        report = reports[index]
        mine = lanes.setdefault(report.agent, [])
        free = [lane for lane in mine if _end(reports[lane[-1]]) <= report.started_at + 1e-3]
        if free:
            free[0].append(index)
        else:
            mine.append([index])
    return [Lane(agent, tuple(lane)) for agent, of_agent in lanes.items() for lane in of_agent]


def axis_of(reports: Sequence[RequestReport]) -> Axis:
    """The axis on which these calls fit."""
    if not reports:
        return Axis(((0.0, 1.0, 0.0),), 1.0)
    origin = min(report.started_at for report in reports)
    busy: list[list[float]] = []
    for report in sorted(reports, key=lambda report: report.started_at):
        start, stop = report.started_at - origin, _end(report) - origin
        if busy and start <= busy[-1][1]:
            busy[-1][1] = max(busy[-1][1], stop)
        else:
            busy.append([start, stop])
    total = max(sum(stop - start for start, stop in busy), 1e-3)
    pieces: list[list[float]] = [busy[0]]
    for start, stop in busy[1:]:
        if start - pieces[-1][1] > _LONG_GAP * total:
            pieces.append([start, stop])
        else:
            pieces[-1][1] = stop
    at, placed = 0.0, []
    for start, stop in pieces:
        placed.append((start, stop, at))
        at += stop - start + _CUT * total
    return Axis(tuple(placed), max(at - _CUT * total, 1e-3))


def _end(report: RequestReport) -> float:
    return report.started_at + report.total_s

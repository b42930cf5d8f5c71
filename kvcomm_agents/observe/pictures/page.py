"""Reports as one HTML page that needs no network and no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..report import AuditReport, RequestReport, TokenRun
from ..report_file import Recorded
from .style import KIND_WORDS, KINDS, PHASE_COLORS, PHASE_WORDS
from .timeline import Axis, axis_of, lanes_of

_LABEL_PERCENT = 13.0  # of the page's width: a shorter run has no room for words


@dataclass(frozen=True, slots=True)
class _Bar:
    """A call in the timeline: percent of the axis, and the share of each phase in it."""

    number: int
    left: float
    width: float
    phases: tuple[tuple[str, float], ...]
    words: str


@dataclass(frozen=True, slots=True)
class _Part:
    """A run in a prompt's strip, percent of the longest prompt."""

    run: TokenRun
    width: float
    label: str


@dataclass(frozen=True, slots=True)
class _Agent:
    """A row of the table of agents."""

    name: str
    calls: int
    failed: int
    prompt_tokens: int
    shares: dict[str, float]
    ttft_s: float
    expected: float
    measured: float | None
    audits: int


def report_page(recorded: Recorded, title: str = "kvcomm report", last: int = 200) -> str:
    """The page.

    Args:
        recorded: what to show.
        title: of the page.
        last: only this many calls are drawn, the newest; the figures above are of all of them.
    """
    reports = recorded.requests
    drawn = reports[-last:]
    first = len(reports) - len(drawn)
    axis = axis_of(drawn)
    longest = max((report.prompt_tokens for report in drawn), default=1) or 1
    environment = Environment(
        loader=PackageLoader("kvcomm_agents.observe.pictures", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=title,
        total=len(reports),
        drawn=len(drawn),
        models=", ".join(sorted({report.model for report in reports if report.model})),
        failed=sum(bool(report.error) for report in reports),
        tokens=sum(report.prompt_tokens for report in reports),
        shares=_shares(reports),
        ttft_s=median([report.ttft_s for report in reports if not report.error] or [0.0]),
        agents=_agents(reports, recorded.audits),
        lanes=[
            (lane.agent, [_bar(index + first + 1, drawn[index], drawn, axis) for index in lane.calls])
            for lane in lanes_of(drawn)
        ],
        ticks=[(100 * at, f"{seconds:g}") for at, seconds in axis.ticks],
        cuts=[(100 * left, 100 * (right - left), seconds) for left, right, seconds in axis.cuts],
        calls=[(index + first + 1, report, _parts(report, longest)) for index, report in enumerate(drawn)],
        kinds=[(kind, color, KIND_WORDS[kind]) for kind, color in KINDS.items()],
        phases=[(phase, color, PHASE_WORDS[phase]) for phase, color in PHASE_COLORS.items()],
    )


def _shares(reports: Sequence[RequestReport]) -> dict[str, float]:
    """Percent of all prompt tokens that were placed exactly, corrected, and computed."""
    tokens = sum(report.prompt_tokens for report in reports) or 1
    return {
        "exact": 100 * sum(report.placed_exact_tokens for report in reports) / tokens,
        "corrected": 100 * sum(report.placed_corrected_tokens for report in reports) / tokens,
        "computed": 100 * sum(report.computed_tokens for report in reports) / tokens,
    }


def _agents(reports: Sequence[RequestReport], audits: Sequence[AuditReport]) -> list[_Agent]:
    rows = []
    for name in dict.fromkeys(report.agent for report in reports):
        mine = [report for report in reports if report.agent == name]
        done = [report for report in mine if not report.error]
        approximate = [report.predicted_divergence for report in done if report.placed_corrected_tokens]
        audited = [audit.divergence for audit in audits if audit.agent == name]
        rows.append(
            _Agent(
                name or "unknown",
                len(mine),
                len(mine) - len(done),
                sum(report.prompt_tokens for report in done),
                _shares(done),
                median([report.ttft_s for report in done] or [0.0]),
                fmean(approximate) if approximate else 0.0,
                fmean(audited) if audited else None,
                len(audited),
            )
        )
    return rows


def _bar(number: int, report: RequestReport, drawn: Sequence[RequestReport], axis: Axis) -> _Bar:
    at = report.started_at - min(one.started_at for one in drawn)
    left, right = 100 * axis(at), 100 * axis(at + report.total_s)
    phases = [(phase, 100 * seconds / (report.total_s or 1.0)) for phase, seconds in report.phases.items()]
    words = f"call {number}, {report}; " + ", ".join(f"{name} {_time(s)}" for name, s in report.phases.items())
    return _Bar(number, left, right - left, () if report.error else tuple(phases), words)


def _parts(report: RequestReport, longest: int) -> list[_Part]:
    parts = []
    for run in report.runs:
        width = 100 * run.tokens / longest
        label = {"answer": f"{run.source}’s answer", "prompt": f"read by {run.source}", "own": "own text"}.get(
            run.text, "" if run.text == "unknown" else run.text
        )
        parts.append(_Part(run, width, label if width >= _LABEL_PERCENT else ""))
    return parts


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"

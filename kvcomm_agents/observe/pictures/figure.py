"""Reports as a matplotlib figure: a timeline of calls, and a strip for every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ...errors import MissingExtraError
from ..report import RequestReport
from .style import KINDS, PHASE_COLORS
from .timeline import axis_of, lanes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABEL_SHARE = 0.11  # of the longest prompt: a shorter run has no room for words


class Picture:
    """A drawn figure; the value of a notebook cell shows as an image.

    Args:
        figure: matplotlib's, to be changed or saved as usual.
    """

    def __init__(self, figure: Figure) -> None:
        self.figure = figure

    def save(self, file: Any, **options: Any) -> None:
        """Write it to a path or file, in the format of its suffix."""
        self.figure.savefig(file, **options)

    def _repr_png_(self) -> bytes:
        out = BytesIO()
        self.figure.savefig(out, format="png", dpi=90)
        return out.getvalue()


def draw(reports: Sequence[RequestReport], title: str = "") -> Picture:
    """Draw the calls of an app: who called when and where the time went, and what every prompt was made of.

    Args:
        reports: such as `engine.reports`, or some of them.
        title: written above.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(f'a picture needs matplotlib: pip install "kvcomm-agents[plot]" ({error})') from error
    lanes = lanes_of(reports)
    drawn = [index for index, report in enumerate(reports) if not report.error]
    heights = (0.42 * len(lanes) + 0.9, 0.4 * len(drawn) + 1.1)
    figure = Figure(figsize=(11, sum(heights) + 0.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=heights)
    if title:
        figure.suptitle(title, fontsize=12)
    _draw_timeline(upper, reports)
    _draw_prompts(lower, reports, drawn)
    return Picture(figure)


def _draw_timeline(axes: Axes, reports: Sequence[RequestReport]) -> None:
    from matplotlib.patches import Patch

    lanes, axis = lanes_of(reports), axis_of(reports)
    origin = min((report.started_at for report in reports), default=0.0)
    for row, lane in enumerate(lanes):
        for index in lane.calls:
            report = reports[index]
            at = report.started_at - origin
            if report.error:
                axes.barh(row, max(axis(at + report.total_s) - axis(at), 2e-3), left=axis(at), color="#c0392b")
                continue
            left = at
            for phase, seconds in report.phases.items():
                axes.barh(
                    row,
                    axis(at + seconds) - axis(at),
                    left=axis(at),
                    color=PHASE_COLORS[phase],
                    height=0.7,
                    linewidth=0,
                )
                at += seconds
            axes.text((axis(left) + axis(at)) / 2, row, str(index + 1), ha="center", va="center", fontsize=8)
    for left, right, seconds in axis.cuts:
        axes.axvspan(left, right, color="#eeeeee", zorder=0)
        axes.text((left + right) / 2, -0.62, f"{seconds:.0f} s", ha="center", va="bottom", fontsize=7, color="#555555")
    axes.set_yticks(range(len(lanes)), [lane.agent for lane in lanes])
    axes.set_ylim(len(lanes) - 0.4, -0.7)
    axes.set_xlim(0, 1)
    axes.set_xticks([at for at, _ in axis.ticks], [f"{seconds:g}" for _, seconds in axis.ticks])
    axes.set_xlabel("seconds since the first call")
    patches = [Patch(color=color, label=phase) for phase, color in PHASE_COLORS.items()]
    if any(report.error for report in reports):
        patches.append(Patch(color="#c0392b", label="failed"))
    axes.legend(handles=patches, ncols=len(patches), loc="lower left", bbox_to_anchor=(0, 1), fontsize=8, frameon=False)
    _plain(axes)


def _draw_prompts(axes: Axes, reports: Sequence[RequestReport], drawn: Sequence[int]) -> None:
    from matplotlib.patches import Patch

    longest = max((reports[index].prompt_tokens for index in drawn), default=1)
    for row, index in enumerate(drawn):
        for run in reports[index].runs:
            hatch = "////" if run.kind == "corrected" else None
            axes.barh(
                row, run.tokens, left=run.start, color=KINDS[run.kind], hatch=hatch, edgecolor="white", linewidth=0.6
            )
            words = run.source if run.text in ("answer", "prompt") else run.text
            if run.tokens > _LABEL_SHARE * longest and words != "unknown":
                box = {"facecolor": KINDS[run.kind], "edgecolor": "none", "pad": 1.0}
                middle, color = (run.start + run.stop) / 2, "white" if run.kind == "exact" else "black"
                axes.text(middle, row, words, ha="center", va="center", fontsize=7.5, color=color, bbox=box)
    axes.set_yticks(range(len(drawn)), [f"{index + 1}  {reports[index].agent}" for index in drawn])
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_xlim(0, longest)
    axes.set_xlabel("tokens of the prompt; in a run: whose text it is")
    patches = [Patch(facecolor=KINDS["exact"], label="placed exactly")]
    patches.append(Patch(facecolor=KINDS["corrected"], hatch="////", edgecolor="white", label="placed and corrected"))
    patches.append(Patch(facecolor=KINDS["computed"], label="computed"))
    axes.legend(handles=patches, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8, frameon=False)
    _plain(axes)


def _plain(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)

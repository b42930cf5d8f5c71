"""Canvas: what all figures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvcomm_agents.errors import ConfigError

RED, DARK, BLUE, GREY = "#c0392b", "#2c3e50", "#2980b9", "#7f8c8d"


def panels(rows: int, columns: int, size: tuple[float, float], **more: Any) -> tuple[Any, Any]:
    """A figure of matplotlib without a display, and its axes, `[rows, columns]`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(f"a plot needs matplotlib: pip install 'kvcomm-agents[plot]' ({error})") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, **more)
    return figure, axes


def finish(
    axes: Any, x: str = "", y: str = "", *, log: str = "", base: float = 10, legend: float = 0, **grid: Any
) -> None:
    """Label a panel, with logarithmic axes named in `log` (`x`, `y`), a grid and a legend of that font size."""
    if "x" in log:
        axes.set_xscale("log", base=base)
    if "y" in log:
        axes.set_yscale("log")
    if x:
        axes.set_xlabel(x)
    if y:
        axes.set_ylabel(y)
    if legend:
        axes.legend(fontsize=legend)
    axes.grid(alpha=0.25, **grid)


def lines(axes: Any, rows: Sequence[Mapping[str, Any]], x: str, ys: Mapping[str, str], scale: float = 1.0) -> None:
    """A line for each key of `ys` that rows have, labelled by its value."""
    for key, label in ys.items():
        having = [row for row in rows if key in row]
        if having:
            axes.plot([row[x] for row in having], [scale * row[key] for row in having], marker="o", label=label)


def save(figure: Any, file: Path, title: str = "") -> None:
    """Write a figure.

    Raises:
        ConfigError: it cannot be written there.
    """
    if title:
        figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    try:
        figure.savefig(file, dpi=130)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the plot cannot be written to {file}: {error}") from error

"""Figures of the measurements. matplotlib is imported here only, and only when a figure is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvcomm_agents.errors import ConfigError

_FLOOR = 1e-4  # strategies without divergence are drawn here: a log axis has no zero
_COLORS = {"guarded": "#c0392b", "linear": "#d35400", "interpolation": "#2c3e50", "epic": "#2980b9", "blend": "#27ae60"}


def pyplot_module() -> Any:
    """Matplotlib's pyplot, without a display.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(f"a plot needs matplotlib: pip install 'kvcomm-agents[plot]' ({error})") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _color(name: str) -> str:
    return next((color for stem, color in _COLORS.items() if name.startswith(stem)), "#7f8c8d")


def plot_fidelity(report: Mapping[str, Any], file: Path) -> None:
    """KL against tokens computed, one labelled point a strategy, with 95 % intervals."""
    pyplot = pyplot_module()
    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    taken: list[tuple[float, float]] = []
    margin = 0.03  # at the left, of the axis
    shown = {name: one for name, one in report["strategies"].items() if one["kl_mean"] > _FLOOR}
    for name, one in sorted(shown.items(), key=lambda item: -item[1]["kl_mean"]):
        x, y = 100 * one["computed_fraction"], one["kl_mean"]
        low, high = one["kl_mean_95"]
        axes.errorbar(
            [x],
            [y],
            yerr=[[max(0.0, y - low)], [max(0.0, high - y)]],
            fmt="*" if name == "guarded" else "o",
            markersize=15 if name == "guarded" else 6,
            color=_color(name),
            elinewidth=0.8,
            alpha=0.9,
        )
        points = ((100 * other["computed_fraction"], other["kl_mean"]) for other in shown.values())
        left = any(0 < at - x < 4 and 0.85 < y / above < 1.18 for at, above in points)  # a point would be under it
        if name == "guarded":  # below its interval
            axes.annotate(name, (x, y), xytext=(x, 0.96 * low), ha="center", va="top", fontsize=9, weight="bold")
            continue
        margin = max(margin, 0.14 if left and x < 4 else 0.0)
        label_x, label_y = x + (-0.8 if left else 0.8), y
        # Labels that would lie on one another move down.
        while any(abs(label_x - at) < 7 and 0.90 < label_y / above < 1.11 for at, above in taken):
            label_y *= 0.97
        taken.append((label_x, label_y))
        axes.annotate(name, (x, y), xytext=(label_x, label_y), ha="right" if left else "left", va="center", fontsize=9)
    axes.set_yscale("log")
    widest = max((100 * one["computed_fraction"] for one in shown.values()), default=1.0)
    axes.set_xlim(-margin * widest, 1.13 * widest)  # room for labels
    axes.set_xlabel("prompt tokens through the model, % of all")
    axes.set_ylabel("mean KL(dense ‖ strategy) per token, nats")
    exact = [name for name, one in report["strategies"].items() if one["kl_mean"] <= _FLOOR]
    title = (
        f"{report['model']}, {report['data']}: {report['warmup']} questions to learn from, {report['eval']} measured"
    )
    note = ", ".join(f"{name} {100 * report['strategies'][name]['computed_fraction']:.0f} %" for name in exact)
    axes.set_title(title + (f"\nwithout divergence: {note}" if note else ""), fontsize=10)
    axes.grid(alpha=0.25, which="both")
    save(figure, file)


def plot_stream(report: Mapping[str, Any], file: Path) -> None:
    """Reuse, tokens computed and divergence, question by question."""
    pyplot = pyplot_module()
    points: Sequence[Mapping[str, Any]] = report["questions"]
    at = [point["question"] + 1 for point in points]
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(9, 6.5), sharex=True)
    upper.plot(at, [100 * v for v in _smooth([p["reused_share"] for p in points])], label="agent calls reused")
    upper.plot(at, [100 * v for v in _smooth([p["computed_fraction"] for p in points])], label="prompt tokens computed")
    upper.plot(
        at,
        [100 * v for v in _smooth([p["prefix_only_fraction"] for p in points])],
        label="computed with an exact prefix cache",
        linestyle=":",
        color="gray",
    )
    upper.set_ylabel("%, mean of 8 questions")
    upper.set_ylim(0, 103)
    upper.legend(loc="center right", fontsize=9)
    lower.plot(at, _smooth([p["kl_mean"] for p in points]), label="true mean KL", color="#c0392b")
    audited = [(p["question"] + 1, kl) for p in points for kl in p["audited_kl"]]
    if audited:
        lower.scatter(*zip(*audited, strict=True), s=18, color="#2c3e50", label="audits", zorder=3)
    lower.axhline(report["max_divergence"], linestyle="--", color="gray", linewidth=1, label="max_divergence")
    edge = 0
    for phase in report.get("phases", []):
        edge += phase["questions"]
        for axes in (upper, lower):
            axes.axvline(edge + 0.5, color="black", linewidth=0.6)
        upper.text(edge - phase["questions"] / 2 + 0.5, 104, phase["name"], ha="center", va="bottom", fontsize=9)
    lower.set_ylabel("KL per token, nats")
    lower.set_xlabel("question")
    lower.legend(loc="upper right", fontsize=9)
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    save(figure, file)


def plot_decode(report: Mapping[str, Any], file: Path) -> None:
    """Tokens per second and time between tokens against concurrent requests, together and in turn."""
    plt = pyplot_module()
    figure, (rate, gap) = plt.subplots(1, 2, figsize=(10, 4))
    counts = [int(count) for count in report["requests"]]
    for way, label, color in (("together", "together", "#c0392b"), ("in_turn", "in turn", "#2c3e50")):
        rows = [row[way] for row in report["requests"].values()]
        rate.plot(counts, [row["tokens_per_s"] for row in rows], "o-", color=color, label=label)
        gap.plot(counts, [1e3 * row["gap_p95_s"] for row in rows], "o-", color=color, label=label)
    rate.set_ylabel("tokens per second, all requests")
    gap.set_ylabel("time between tokens, 95th percentile, ms")
    for axes in (rate, gap):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("concurrent requests")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=9)
    figure.suptitle(
        f"{report['model']}, {report['dtype']}, {report['device']}, {report['threads']} threads", fontsize=10
    )
    save(figure, file)


def _smooth(values: Sequence[float], window: int = 8) -> list[float]:
    """Mean of the last few values."""
    return [
        sum(values[max(0, at - window + 1) : at + 1]) / len(values[max(0, at - window + 1) : at + 1])
        for at in range(len(values))
    ]


def save(figure: Any, file: Path) -> None:
    """Write a figure.

    Raises:
        ConfigError: it cannot be written there.
    """
    figure.tight_layout()
    try:
        figure.savefig(file, dpi=130)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the plot cannot be written to {file}: {error}") from error

"""Figures of divergence: by strategy, and question by question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .canvas import BLUE, DARK, GREY, RED, finish, panels, save

_FLOOR = 1e-4  # strategies without divergence are named in the title: a log axis has no zero
_COLORS = {"guarded": RED, "linear": "#d35400", "interpolation": DARK, "epic": BLUE, "blend": "#27ae60"}


def plot_fidelity(report: Mapping[str, Any], file: Path) -> None:
    """KL against tokens computed, one labelled point a strategy, with 95 % intervals."""
    figure, ((axes,),) = panels(1, 1, (9, 5.5))
    shown = {name: one for name, one in report["strategies"].items() if one["kl_mean"] > _FLOOR}
    points = {name: (100 * one["computed_fraction"], one["kl_mean"]) for name, one in shown.items()}
    taken, margin = list[tuple[float, float]](), 0.03  # room at the left, of the axis
    for name, (x, y) in sorted(points.items(), key=lambda item: -item[1][1]):
        low, high = shown[name]["kl_mean_95"]
        guarded = name == "guarded"
        axes.errorbar(
            [x],
            [y],
            yerr=[[max(0.0, y - low)], [max(0.0, high - y)]],
            fmt="*" if guarded else "o",
            markersize=15 if guarded else 6,
            color=next((color for stem, color in _COLORS.items() if name.startswith(stem)), GREY),
            elinewidth=0.8,
            alpha=0.9,
        )
        if guarded:  # its name stands below its interval
            axes.annotate(name, (x, y), xytext=(x, 0.96 * low), ha="center", va="top", fontsize=9, weight="bold")
            continue
        # A label at the right would lie on a point there.
        left = any(0 < at - x < 4 and 0.85 < y / above < 1.18 for at, above in points.values())
        margin = max(margin, 0.14 if left and x < 4 else 0.0)
        label_x, label_y = x + (-0.8 if left else 0.8), y
        # Labels that would lie on one another move down.
        while any(abs(label_x - at) < 7 and 0.90 < label_y / above < 1.11 for at, above in taken):
            label_y *= 0.97
        taken.append((label_x, label_y))
        axes.annotate(name, (x, y), xytext=(label_x, label_y), ha="right" if left else "left", va="center", fontsize=9)
    widest = max((x for x, _ in points.values()), default=1.0)
    axes.set_xlim(-margin * widest, 1.13 * widest)  # room for labels
    finish(
        axes,
        "prompt tokens through the model, % of all",
        "mean KL(dense ‖ strategy) per token, nats",
        log="y",
        which="both",
    )
    exact = [
        f"{name} {100 * one['computed_fraction']:.0f} %"
        for name, one in report["strategies"].items()
        if name not in shown
    ]
    counts = f"{report['warmup']} questions to learn from, {report['eval']} measured"
    note = f"\nwithout divergence: {', '.join(exact)}" if exact else ""
    axes.set_title(f"{report['model']}, {report['data']}: {counts}{note}", fontsize=10)
    save(figure, file)


def plot_online(report: Mapping[str, Any], file: Path) -> None:
    """Reuse, tokens computed and divergence, question by question."""
    points: Sequence[Mapping[str, Any]] = report["questions"]
    at = [point["question"] + 1 for point in points]
    figure, ((upper,), (lower,)) = panels(2, 1, (9, 6.5), sharex=True)
    drawn: tuple[tuple[str, str, dict[str, str]], ...] = (
        ("reused_share", "agent calls reused", {}),
        ("computed_fraction", "prompt tokens computed", {}),
        ("prefix_only_fraction", "computed with an exact prefix cache", {"linestyle": ":", "color": "gray"}),
    )
    for key, label, style in drawn:
        upper.plot(at, [100 * value for value in _smooth([point[key] for point in points])], label=label, **style)
    upper.set_ylim(0, 103)
    finish(upper, "", "%, mean of 8 questions")
    upper.legend(loc="center right", fontsize=9)
    lower.plot(at, _smooth([point["kl_mean"] for point in points]), label="true mean KL", color=RED)
    audited = [(point["question"] + 1, kl) for point in points for kl in point["audited_kl"]]
    if audited:
        lower.scatter(*zip(*audited, strict=True), s=18, color=DARK, label="audits", zorder=3)
    lower.axhline(report["max_divergence"], linestyle="--", color="gray", linewidth=1, label="max_divergence")
    edge = 0
    for phase in report["phases"]:
        edge += phase["questions"]
        for axes in (upper, lower):
            axes.axvline(edge + 0.5, color="black", linewidth=0.6)
        upper.text(edge - phase["questions"] / 2 + 0.5, 104, phase["name"], ha="center", va="bottom", fontsize=9)
    finish(lower, "question", "KL per token, nats")
    lower.legend(loc="upper right", fontsize=9)
    save(figure, file)


def _smooth(values: Sequence[float], window: int = 8) -> list[float]:
    """Mean of the last few values."""
    parts = (values[max(0, at - window + 1) : at + 1] for at in range(len(values)))
    return [sum(part) / len(part) for part in parts]

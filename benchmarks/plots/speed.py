"""Figures of speed: time to first token, where it goes, how all of it grows, and concurrent requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .canvas import BLUE, DARK, GREY, RED, finish, panels, save

_COLORS = {
    "generate": "#95a5a6",
    "dense": GREY,
    "prefix": BLUE,
    "exact": "#5dade2",
    "guarded": RED,
    "corrected": "#e59866",
    "llama.cpp": "#27ae60",
    "llama.cpp-reuse": "#82e0aa",
    "vllm": "#8e44ad",
}
_PARTS = {"match_s": "#f4d03f", "correct_s": "#e67e22", "assemble_s": "#3498db", "forward_s": RED, "other_s": "#95a5a6"}


def plot_ttft(report: Mapping[str, Any], file: Path) -> None:
    """TTFT per agent, speedup against prompt length, and where the time of our columns goes."""
    figure, ((left, middle, right),) = panels(1, 3, (16, 5))
    _bars(left, report)
    _speedups(middle, report)
    _parts(right, report)
    left.set_title(f"{report['model']}, {report['dtype']}: {report['setting']['what']}", fontsize=10)
    save(figure, file)


def _bars(axes: Any, report: Mapping[str, Any]) -> None:
    agents, columns = report["agents"], list(report["columns"])
    if len(agents) > 16:  # a replay: many agents, few calls each
        agents = sorted(agents, key=lambda one: -one["prompt"])[:16]
    width = 0.85 / len(columns)
    for place, name in enumerate(columns):
        at = [index + (place - (len(columns) - 1) / 2) * width for index in range(len(agents))]
        heights = [1e3 * one["ttft_s"].get(name, 0.0) for one in agents]
        axes.bar(at, heights, width, label=name, color=_COLORS.get(name))
    long = any(len(one["agent"]) > 8 for one in agents)
    labels = [f"{one['agent'][:18]}\n{one['prompt']}" for one in agents]
    axes.set_xticks(range(len(agents)), labels, fontsize=7 if long else 9, rotation=60 if long else 0)
    finish(axes, "agent and prompt tokens", "time to first token, ms, median", log="y", axis="y")
    tallest = max(1e3 * seconds for one in agents for seconds in one["ttft_s"].values())
    axes.set_ylim(top=8 * tallest)  # room for the legend
    axes.legend(fontsize=8, ncols=2)


def _speedups(axes: Any, report: Mapping[str, Any]) -> None:
    def key(row: Mapping[str, Any]) -> tuple[int, str, int]:
        return row["request"], row["agent"], row["prompt"]

    dense = {key(row): row["ttft_s"] for row in report["steady"] if row["column"] == "dense"}
    for name in report["columns"]:
        rows = [row for row in report["steady"] if row["column"] == name and key(row) in dense]
        if rows and name not in ("dense", "generate"):
            points = [(row["prompt"], dense[key(row)] / row["ttft_s"]) for row in rows]
            axes.scatter(*zip(*points, strict=True), s=10, alpha=0.5, color=_COLORS.get(name))
            axes.plot(*zip(*_medians(points), strict=True), color=_COLORS.get(name), label=name)
    axes.axhline(1, color="gray", linewidth=0.8)
    finish(axes, "prompt tokens", "times faster than dense", log="y", legend=8, which="both")


def _medians(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The median of every prompt length, or of eight groups of neighbours where lengths are many."""
    lengths = sorted({x for x, _ in points})
    if len(lengths) <= 12:
        groups = [[point for point in points if point[0] == length] for length in lengths]
    else:
        ordered, size = sorted(points), -(-len(points) // 8)
        groups = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    return [(median(x for x, _ in group), median(y for _, y in group)) for group in groups]


def _parts(axes: Any, report: Mapping[str, Any]) -> None:
    name = next((one for one in ("guarded", "corrected", "exact") if one in report["columns"]), "")
    agents = [one for one in report["agents"] if name in one["parts_s"]][:16]
    bottom = [0.0] * len(agents)
    for part, color in _PARTS.items():
        heights = [1e3 * one["parts_s"][name][part] for one in agents]
        axes.bar(range(len(agents)), heights, 0.6, bottom=bottom, label=part.removesuffix("_s"), color=color)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    floors = [(index, one["floor"][name]) for index, one in enumerate(agents) if name in one["floor"]]
    for key, style, label in (("total_s", "-", "floor: forward + copy"), ("attended_s", ":", "and attention")):
        for place, (index, floor) in enumerate(floors):
            at, height = [index - 0.35, index + 0.35], [1e3 * floor[key]] * 2
            axes.plot(at, height, color=DARK, linewidth=2, linestyle=style, label="" if place else label)
    axes.set_xticks(range(len(agents)), [str(one["prompt"]) for one in agents], fontsize=8)
    finish(axes, "prompt tokens of each agent", f"{name}: where the time goes, ms", legend=8, axis="y")


def plot_growth(report: Mapping[str, Any], file: Path) -> None:
    """TTFT, match time and memory against length, agents and known spans: a row of panels for what was measured."""
    units = {"context": "prompt tokens", "agents": "agents", "spans": "known spans"}
    kinds = [kind for kind in units if kind in report]
    figure, grid = panels(len(kinds), 3, (14, 4 * len(kinds)))
    shown = (
        ("time to first token, s", 1.0, {"dense_s": "dense", "prefix_s": "prefix", "ttft_s": "corrected"}),
        ("match, ms", 1e3, {"match_s": "corrected"}),
        ("held beside the weights, MB", 1e-6, {"held_bytes": "corrected"}),
    )
    for row, kind in zip(grid, kinds, strict=True):
        at, figures = [int(key) for key in report[kind]], list(report[kind].values())
        for axes, (label, scale, keys) in zip(row, shown, strict=True):
            for key, name in keys.items():
                if key in figures[0]:
                    values = [scale * one[key] for one in figures]
                    axes.plot(at, values, marker="o", label=name, color=_COLORS[name])
            finish(axes, units[kind], label, log="x", base=10 if kind == "spans" else 2)
            axes.set_xticks(at, [f"{size:,}" for size in at], fontsize=8)
            axes.minorticks_off()
            axes.set_ylim(bottom=0)
        row[0].legend(fontsize=8)
    save(figure, file)


def plot_decode(report: Mapping[str, Any], file: Path) -> None:
    """Tokens per second and time between tokens against concurrent requests, together and in turn."""
    figure, (row,) = panels(1, 2, (10, 4))
    counts = [int(count) for count in report["requests"]]
    shown = (
        ("tokens_per_s", 1.0, "tokens per second, all requests"),
        ("gap_p95_s", 1e3, "time between tokens, 95th percentile, ms"),
    )
    for axes, (key, scale, label) in zip(row, shown, strict=True):
        for way, name, color in (("together", "together", RED), ("in_turn", "in turn", DARK)):
            values = [scale * one[way][key] for one in report["requests"].values()]
            axes.plot(counts, values, "o-", color=color, label=name)
        finish(axes, "concurrent requests", label, log="x", base=2, legend=9)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_ylim(bottom=0)
    save(figure, file, f"{report['model']}, {report['dtype']}, {report['device']}, {report['threads']} threads")

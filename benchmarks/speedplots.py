"""Figures of speed: time to first token, where it goes, and how all of it grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .plots import pyplot_module, save

_COLORS = {
    "generate": "#95a5a6",
    "dense": "#7f8c8d",
    "prefix": "#2980b9",
    "exact": "#5dade2",
    "guarded": "#c0392b",
    "corrected": "#e59866",
    "llama.cpp": "#27ae60",
    "llama.cpp-reuse": "#82e0aa",
    "vllm": "#8e44ad",
    "floor": "#2c3e50",
}
_PARTS = {
    "match_s": ("match", "#f4d03f"),
    "correct_s": ("correct", "#e67e22"),
    "assemble_s": ("assemble", "#3498db"),
    "forward_s": ("forward", "#c0392b"),
    "other_s": ("other", "#95a5a6"),
}


def plot_ttft(report: Mapping[str, Any], file: Path) -> None:
    """TTFT per agent, speedup against prompt length, and where the time of our columns goes."""
    pyplot = pyplot_module()
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(16, 5))
    _bars(left, report)
    _speedups(middle, report)
    _parts(right, report)
    left.set_title(f"{report['model']}, {report['dtype']}: {report['setting']['what']}", fontsize=10)
    save(figure, file)


def _bars(axes: Any, report: Mapping[str, Any]) -> None:
    agents = report["agents"]
    if len(agents) > 16:  # a replay: many agents, few calls each
        agents = sorted(agents, key=lambda one: -one["prompt"])[:16]
    names = list(report["columns"])
    width = 0.85 / len(names)
    for place, name in enumerate(names):
        at = [index + (place - (len(names) - 1) / 2) * width for index in range(len(agents))]
        heights = [1e3 * one["ttft_s"].get(name, 0.0) for one in agents]
        axes.bar(at, heights, width, label=name, color=_COLORS.get(name))
    axes.set_yscale("log")
    axes.set_xticks(range(len(agents)))
    long = any(len(one["agent"]) > 8 for one in agents)
    labels = [f"{one['agent'][:18]}\n{one['prompt']}" for one in agents]
    axes.set_xticklabels(labels, fontsize=7 if long else 9, rotation=60 if long else 0)
    axes.set_ylabel("time to first token, ms, median")
    axes.set_xlabel("agent and prompt tokens")
    tallest = max(1e3 * seconds for one in agents for seconds in one["ttft_s"].values())
    axes.set_ylim(top=8 * tallest)  # room for the legend
    axes.legend(fontsize=8, ncols=2)
    axes.grid(alpha=0.25, axis="y")


def _speedups(axes: Any, report: Mapping[str, Any]) -> None:
    rows = report["steady"]
    dense = {(row["request"], row["agent"], row["prompt"]): row["ttft_s"] for row in rows if row["column"] == "dense"}
    for name in report["columns"]:
        if name in ("dense", "generate"):
            continue
        points = [
            (row["prompt"], dense[key] / row["ttft_s"])
            for row in rows
            if row["column"] == name and (key := (row["request"], row["agent"], row["prompt"])) in dense
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), s=10, alpha=0.5, color=_COLORS.get(name))
            line = _medians(points)
            axes.plot(*zip(*line, strict=True), color=_COLORS.get(name), label=name)
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel("prompt tokens")
    axes.set_ylabel("times faster than dense")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25, which="both")


def _medians(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The median of every prompt length, or of eight groups of neighbours where lengths are many."""
    lengths = sorted({x for x, _ in points})
    if len(lengths) <= 12:
        groups = [[point for point in points if point[0] == length] for length in lengths]
    else:
        ordered = sorted(points)
        size = -(-len(ordered) // 8)
        groups = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    return [(median(x for x, _ in group), median(y for _, y in group)) for group in groups]


def _parts(axes: Any, report: Mapping[str, Any]) -> None:
    name = next((one for one in ("guarded", "corrected", "exact") if one in report["columns"]), None)
    agents = [one for one in report["agents"] if name in one["parts_s"]][:16]
    bottom = [0.0] * len(agents)
    for part, (label, color) in _PARTS.items():
        heights = [1e3 * one["parts_s"][name][part] for one in agents]
        axes.bar(range(len(agents)), heights, 0.6, bottom=bottom, label=label, color=color)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    floors = [(index, one["floor"][name]) for index, one in enumerate(agents) if name in one.get("floor", {})]
    for key, style, label in (("total_s", "-", "floor: forward + copy"), ("attended_s", ":", "and attention")):
        for index, floor in floors:
            middle = [index - 0.35, index + 0.35]
            axes.plot(middle, [1e3 * floor[key]] * 2, color=_COLORS["floor"], linewidth=2, linestyle=style)
        if floors:
            axes.plot([], [], color=_COLORS["floor"], linewidth=2, linestyle=style, label=label)
    axes.set_xticks(range(len(agents)))
    axes.set_xticklabels([str(one["prompt"]) for one in agents], fontsize=8)
    axes.set_xlabel("prompt tokens of each agent")
    axes.set_ylabel(f"{name}: where the time goes, ms")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25, axis="y")


def plot_growth(report: Mapping[str, Any], file: Path) -> None:
    """TTFT, match time and memory against length, agents and known spans: a row of panels for what was measured."""
    pyplot = pyplot_module()
    kinds = [kind for kind in ("context", "agents", "spans") if kind in report]
    figure, grid = pyplot.subplots(len(kinds), 3, figsize=(14, 4 * len(kinds)), squeeze=False)
    units = {"context": "prompt tokens", "agents": "agents", "spans": "known spans"}
    for line, kind in zip(grid, kinds, strict=True):
        at = [int(key) for key in report[kind]]
        rows = list(report[kind].values())
        for axes, part, label in zip(
            line,
            (("dense_s", "prefix_s", "ttft_s"), ("match_s",), ("held_bytes",)),
            ("time to first token, s", "match, ms", "held beside the weights, MB"),
            strict=True,
        ):
            for name in part:
                if any(name in row for row in rows):
                    scale = {"match_s": 1e3, "held_bytes": 1e-6}.get(name, 1.0)
                    shown = {"dense_s": "dense", "prefix_s": "prefix", "ttft_s": "corrected"}.get(name, "corrected")
                    values = [scale * row[name] for row in rows]
                    axes.plot(at, values, marker="o", label=shown, color=_COLORS[shown])
            axes.set_xscale("log", base=10 if kind == "spans" else 2)
            axes.set_xticks(at)
            axes.set_xticklabels([f"{n:,}" for n in at], fontsize=8)
            axes.minorticks_off()
            axes.set_ylim(bottom=0)
            axes.set_xlabel(units[kind])
            axes.set_ylabel(label)
            axes.grid(alpha=0.25)
        line[0].legend(fontsize=8)
    save(figure, file)

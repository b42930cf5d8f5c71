"""Figures of the warm-up and the numerics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .canvas import BLUE, RED, finish, lines, panels, save


def plot_rag(report: Mapping[str, Any], file: Path) -> None:
    """Time to first token and divergence, agent by agent, one bar a condition."""
    figure, ((times, apart),) = panels(1, 2, (10, 4))
    conditions, agents = report["conditions"], list(report["conditions"]["exact"])
    width = 0.8 / len(conditions)
    for place, (name, by_agent) in enumerate(conditions.items()):
        at = [index + place * width for index in range(len(agents))]
        rows = [by_agent[agent] for agent in agents]
        ttft = [one["ttft_of_exact"] for one in rows]
        bars = times.bar(at, ttft, width, label=name)
        color = bars[0].get_facecolor()
        ahead = [one["charged_of_exact"] - one["ttft_of_exact"] for one in rows]
        times.bar(at, ahead, width, bottom=ttft, color="none", edgecolor=color, hatch="//")
        if name != "exact":
            apart.bar(at, [one["kl_mean"] for one in rows], width, color=color)
    for axes in (times, apart):
        axes.set_xticks([index + 1.5 * width for index in range(len(agents))], agents)
    finish(times, "", "first token, share of the exact prefix cache's\n(hatched: done ahead)", legend=8, axis="y")
    finish(apart, "", "mean KL(exact ‖ condition) per token, nats", axis="y")
    save(figure, file, f"{report['model']}, {report['data']}, {report['measured']} questions, {report['mode']}")


def plot_numerics(report: Mapping[str, Any], file: Path) -> None:
    """Change of attention under a shift, key error and KL over moves."""
    figure, ((change, error, apart),) = panels(1, 3, (13, 4))
    for weights, dtypes in report["shifts"].items():
        for dtype, row in dtypes.items():
            shifts, rows = list(row["shifts"]), list(row["shifts"].values())
            style = {"linestyle": "-" if weights == "trained" else ":", "color": RED if dtype == "bfloat16" else BLUE}
            whole = [one["attention_change"] for one in rows]
            first = [one["first_share"] * one["attention_change"] for one in rows]
            change.plot(shifts, whole, marker="o", label=f"{weights}, {dtype}", **style)
            change.plot(shifts, first, marker="x", alpha=0.5, **style)
    for name, one in report["moves"]["stores"].items():
        error.plot(one["error"], marker="o", markersize=3, label=name)
        apart.plot([max(kl, 1e-12) for kl in one["kl"]], marker="o", markersize=3, label=name)
    moved = f"moves by {report['moves']['hop']} positions"
    finish(change, "shift of all positions", "change of attention (x: on the first key)", log="y", legend=8)
    finish(error, moved, "relative error of keys", log="y", legend=8)
    finish(apart, moved, "KL per token behind them, nats", log="y")
    save(figure, file, f"{report['model']}, {report['tokens']} tokens")


def plot_packs(report: Mapping[str, Any], file: Path) -> None:
    """Packed over separate, the size of packs, and attention with its masks."""
    figure, ((texts, sizes, attention),) = panels(1, 3, (13, 4))
    for length in sorted({one["length"] for one in report["texts"]}):
        rows = [one for one in report["texts"] if one["length"] == length]
        lines(texts, rows, "count", {"ratio": f"{length} tokens"})
    texts.axhline(1, color="gray", linewidth=0.8)
    finish(texts, "texts", "seconds, one pack / one by one", log="x", base=2, legend=8)
    lines(sizes, report["budgets"], "tokens", {"pack_s": "a pack, s"})
    lines(sizes, report["budgets"], "tokens", {"token_s": "100 tokens in it, s"}, scale=100)
    finish(sizes, "tokens of a pack", log="xy", base=2, legend=8)
    names = {
        "causal_s": "SDPA, causal",
        "masked_s": "SDPA, dense mask",
        "flex_s": "FlexAttention",
        "block_mask_s": "its mask",
    }
    lines(attention, report["attention"], "tokens", names, scale=1e3)
    finish(attention, "tokens of a pack", "attention of one layer, ms", log="xy", base=2, legend=8)
    save(figure, file, f"{report['model']}, {report['dtype']}, {report['device']}, {report['threads']} threads")

"""Figures of the warm-up and the numerics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .plots import pyplot_module, save


def plot_rag(report: Mapping[str, Any], file: Path) -> None:
    """Time to first token and divergence, agent by agent, one bar a condition."""
    pyplot = pyplot_module()
    conditions, agents = list(report["conditions"]), list(report["conditions"]["exact"])
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    width = 0.8 / len(conditions)
    for place, name in enumerate(conditions):
        at = [index + place * width for index in range(len(agents))]
        rows = [report["conditions"][name][agent] for agent in agents]
        bars = axes[0].bar(at, [one["ttft_of_exact"] for one in rows], width, label=name)
        ahead = [one["charged_of_exact"] - one["ttft_of_exact"] for one in rows]
        axes[0].bar(
            at,
            ahead,
            width,
            bottom=[one["ttft_of_exact"] for one in rows],
            color="none",
            edgecolor=bars[0].get_facecolor(),
            hatch="//",
        )
        if name != "exact":
            axes[1].bar(at, [one["kl_mean"] for one in rows], width, color=bars[0].get_facecolor())
    axes[0].set_ylabel("first token, share of the exact prefix cache's\n(hatched: done ahead)")
    axes[1].set_ylabel("mean KL(exact ‖ condition) per token, nats")
    for one in axes:
        one.set_xticks([index + 1.5 * width for index in range(len(agents))], agents)
        one.grid(alpha=0.25, axis="y")
    axes[0].legend(fontsize=8)
    figure.suptitle(
        f"{report['model']}, {report['data']}, {report['measured']} questions, {report['mode']}", fontsize=10
    )
    save(figure, file)


def plot_numerics(report: Mapping[str, Any], file: Path) -> None:
    """Change of attention under a shift, key error and KL over moves."""
    pyplot = pyplot_module()
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4))
    for weights, dtypes in report["shifts"].items():
        for dtype, row in dtypes.items():
            shifts = list(row["shifts"])
            style = "-" if weights == "trained" else ":"
            color = "#c0392b" if dtype == "bfloat16" else "#2980b9"
            whole = [row["shifts"][shift]["attention_change"] for shift in shifts]
            first = [row["shifts"][shift]["first_share"] * one for shift, one in zip(shifts, whole, strict=True)]
            axes[0].plot(shifts, whole, style, color=color, marker="o", label=f"{weights}, {dtype}")
            axes[0].plot(shifts, first, style, color=color, marker="x", alpha=0.5)
    axes[0].set_yscale("log")
    axes[0].set_xlabel("shift of all positions")
    axes[0].set_ylabel("change of attention (x: on the first key)")
    axes[0].legend(fontsize=8)
    for name, one in report["moves"]["stores"].items():
        axes[1].plot(one["error"], marker="o", markersize=3, label=name)
        axes[2].plot([max(kl, 1e-12) for kl in one["kl"]], marker="o", markersize=3, label=name)
    for place, label in ((1, "relative error of keys"), (2, "KL per token behind them, nats")):
        axes[place].set_yscale("log")
        axes[place].set_xlabel(f"moves by {report['moves']['hop']} positions")
        axes[place].set_ylabel(label)
    axes[1].legend(fontsize=8)
    for one in axes:
        one.grid(alpha=0.25)
    figure.suptitle(f"{report['model']}, {report['tokens']} tokens", fontsize=10)
    save(figure, file)


def plot_packs(report: Mapping[str, Any], file: Path) -> None:
    """Packed over separate, the size of packs, and attention with its masks."""
    pyplot = pyplot_module()
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4))
    for length in sorted({one["length"] for one in report["texts"]}):
        rows = [one for one in report["texts"] if one["length"] == length]
        axes[0].plot(
            [one["count"] for one in rows], [one["ratio"] for one in rows], marker="o", label=f"{length} tokens"
        )
    axes[0].axhline(1, color="gray", linewidth=0.8)
    axes[0].set_xscale("log", base=2)
    axes[0].set_xlabel("texts")
    axes[0].set_ylabel("seconds, one pack / one by one")
    axes[0].legend(fontsize=8)
    sizes = [one["tokens"] for one in report["budgets"]]
    axes[1].plot(sizes, [one["pack_s"] for one in report["budgets"]], marker="o", label="a pack, s")
    axes[1].plot(sizes, [100 * one["token_s"] for one in report["budgets"]], marker="o", label="100 tokens in it, s")
    axes[1].set_xscale("log", base=2)
    axes[1].set_yscale("log")
    axes[1].set_xlabel("tokens of a pack")
    axes[1].legend(fontsize=8)
    names = {
        "causal_s": "SDPA, causal",
        "masked_s": "SDPA, dense mask",
        "flex_s": "FlexAttention",
        "block_mask_s": "its mask",
    }
    for name, label in names.items():
        rows = [one for one in report["attention"] if name in one]
        if rows:
            axes[2].plot([one["tokens"] for one in rows], [1e3 * one[name] for one in rows], marker="o", label=label)
    axes[2].set_xscale("log", base=2)
    axes[2].set_yscale("log")
    axes[2].set_xlabel("tokens of a pack")
    axes[2].set_ylabel("attention of one layer, ms")
    axes[2].legend(fontsize=8)
    for one in axes:
        one.grid(alpha=0.25)
    figure.suptitle(
        f"{report['model']}, {report['dtype']}, {report['device']}, {report['threads']} threads", fontsize=10
    )
    save(figure, file)

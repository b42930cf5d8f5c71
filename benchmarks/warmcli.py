"""`kvcomm bench warm`, `rag` and `numerics`: what a warm-up costs and brings, and what rounding does to positions."""

from __future__ import annotations

from typing import Annotated

import typer

from kvcomm_agents.entrypoints.cli.console import DTypeName, Model, table
from kvcomm_agents.entrypoints.cli.terminal import plain_errors

from .console import model_name, progress, writable, write
from .options import Count, Data, Evaluation, Json, Plot, load

warm_app = typer.Typer()


@warm_app.command()
def rag(
    model: Model = "default",
    data: Data = None,
    warmup: Count = 8,
    evaluation: Evaluation = 12,
    passages: Count = 4,
    words: Annotated[int, typer.Option(min=10, help="Of each passage.")] = 80,
    mode: Annotated[str, typer.Option(help="auto or corrected.")] = "auto",
    max_divergence: float = 0.02,
    dtype: DTypeName = "float32",
    json_path: Json = None,
    plot: Plot = None,
) -> None:
    """A team that reads retrieved passages, with and without a warm-up of these."""
    with plain_errors():
        from kvcomm_agents.config import ReuseConfig

        from .data import load_rows
        from .rag import lookups, measure_rag
        from .warmplots import plot_rag

        writable(json_path, plot)
        reuse = ReuseConfig(mode=mode, max_divergence=max_divergence)  # type: ignore[arg-type]  # checked there
        found = lookups(load_rows("musique", data)[: warmup + evaluation], passages, words)
        loaded = load(model, dtype)
        named = {"model": model_name(loaded), "data": "musique"}
        with progress() as tell:
            report = measure_rag(
                loaded, found, warmup, reuse, tell=tell, keep=lambda so_far: write({**named, **so_far}, json_path)
            )
        report = {**named, **report}
        write(report, json_path)
        if plot is not None:
            plot_rag(report, plot)
        rows: list[tuple[str, ...]] = [
            (
                f"{name}: {agent}",
                f"{100 * one['computed_fraction']:.0f} %",
                f"{one['ttft_s']:.2f} s",
                f"{one['ttft_of_exact']:.2f}",
                f"{one['charged_of_exact']:.2f}",
                f"{one['kl_first']:.4f}",
                f"{one['kl_mean']:.4f}",
                f"{one['top1']:.3f}",
            )
            for name, agents in report["conditions"].items()
            for agent, one in agents.items()
        ]
        columns = ("condition: agent", "computed", "TTFT", "/ exact", "charged", "KL first", "KL mean", "top-1")
        table(f"{report['model']}, {report['measured']} questions, reuse={mode}", columns, rows)


@warm_app.command()
def warm(
    model: Model = "default",
    dtype: DTypeName = "float32",
    rounds: Count = 3,
    most: Annotated[int, typer.Option(min=64, help="Tokens in the largest pack.")] = 2048,
    flex: Annotated[bool, typer.Option(help="Measure FlexAttention too; it is compiled for every length.")] = True,
    json_path: Json = None,
    plot: Plot = None,
) -> None:
    """Packs and their masks against prefilling every text by itself."""
    with plain_errors():
        from .packs import measure_masks, measure_packs
        from .warmplots import plot_packs

        writable(json_path, plot)
        loaded = load(model, dtype)
        with progress() as tell:
            report = {"model": model_name(loaded), **measure_packs(loaded, most=most, rounds=rounds, tell=tell)}
            report["attention"] = measure_masks(flex=flex, rounds=rounds, tell=tell)
        write(report, json_path)
        if plot is not None:
            plot_packs(report, plot)
        rows: list[tuple[str, ...]] = [
            (
                f"{one['count']} x {one['length']}",
                f"{one['separate_s']:.2f}",
                f"{one['packed_s']:.2f}",
                f"{one['ratio']:.2f}",
            )
            for one in report["texts"]
        ]
        table(f"{report['model']}: texts x tokens, seconds", ("texts", "separate", "packed", "ratio"), rows)
        rows = [
            (str(one["tokens"]), f"{one['pack_s']:.2f} s", f"{1e3 * one['token_s']:.2f} ms")
            for one in report["budgets"]
        ]
        table("A pack, which a request may wait for", ("tokens", "a pack", "a token"), rows)
        names = ("causal_s", "masked_s", "mask_s", "flex_s", "block_mask_s")
        rows = [
            (
                f"{one['tokens']}, {one['documents']} documents",
                *(f"{1e3 * one[name]:.1f}" if name in one else "-" for name in names),
                f"{one['compile_s']:.1f} s" if "compile_s" in one else str(one.get("flex_error", "-"))[:40],
            )
            for one in report["attention"]
        ]
        columns = ("tokens", "causal", "dense mask", "making it", "flex", "block mask", "compiling")
        table("Attention of one layer, milliseconds", columns, rows)


@warm_app.command()
def numerics(
    model: Model = "default",
    tokens: Annotated[int, typer.Option(min=32, help="Of the text that is shifted and moved.")] = 256,
    json_path: Json = None,
    plot: Plot = None,
) -> None:
    """What a shift of all positions changes, by dtype, and what moving stored keys does to them."""
    with plain_errors():
        from .numerics import measure_moves, measure_shifts
        from .warmplots import plot_numerics

        writable(json_path, plot)
        exact, coarse = load(model, "float32"), load(model, "bfloat16")
        with progress() as tell:
            shifts = measure_shifts({"float32": exact, "bfloat16": coarse}, tokens, tell=tell)
            moves = measure_moves(exact, tokens, tell=tell)
        report = {"model": model_name(exact), "tokens": tokens, "shifts": shifts, "moves": moves}
        write(report, json_path)
        if plot is not None:
            plot_numerics(report, plot)
        rows: list[tuple[str, ...]] = [
            (
                f"{weights}, {dtype}, +{shift}",
                f"{one['attention_change']:.2g}",
                f"{one['first_share']:.2f}",
                f"{one['first_mass']:.2f}",
                f"{one['logit_mean']:.2g}",
                f"{one['logit_max']:.2g}",
                f"{one['kl']:.1e}",
            )
            for weights, dtypes in shifts.items()
            for dtype, row in dtypes.items()
            for shift, one in row["shifts"].items()
        ]
        columns = ("all positions shifted", "attention", "on first", "its mass", "logits", "at most", "KL")
        table(f"{report['model']}, {tokens} tokens", columns, rows)
        stores = moves["stores"]
        rows = [
            (name, *(f"{one['error'][at]:.1e} / {one['kl'][at]:.0e}" for at in (0, 1, 3, 10)))
            for name, one in stores.items()
        ]
        table("Key error / KL behind them", ("kept as bfloat16, moved", "0", "1", "3", "10 times"), rows)

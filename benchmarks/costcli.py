"""`kvcomm bench engine`, `hitpath` and `decode`: what the engine's parts cost. Light to import."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from kvcomm_agents.entrypoints.cli.console import DTypeName, Model, table
from kvcomm_agents.entrypoints.cli.terminal import plain_errors

from .console import progress, writable, write
from .options import Count, Data, Json, Plot, load

cost_app = typer.Typer()


@cost_app.command()
def engine(model: Model = "default", dtype: DTypeName = "float32", json_path: Json = None, rounds: Count = 7) -> None:
    """The runner against transformers itself, and a prefix hit against its floor."""
    with plain_errors():
        from .engine import measure_engine

        writable(json_path)
        report = measure_engine(load(model, dtype), rounds=rounds)
        write(report, json_path)
        grid = Table("prompt", "prefill / transformers", "decode / its best cache", title="Our seconds over theirs")
        for length, row in report["lengths"].items():
            grid.add_row(length, f"{row['prefill_ratio']:.2f}", f"{row['decode_ratio']:.2f}")
        Console().print(grid)
        hit = report["prefix"]
        Console().print(
            f"{hit['prefix_tokens']} tokens placed, {hit['computed_tokens']} computed:"
            f" {hit['dense_over_hit']:.1f}x faster than dense,"
            f" {hit['hit_over_floor']:.2f}x its floor of one short forward and the copy",
            highlight=False,
        )


@cost_app.command()
def hitpath(
    model: Model = "default",
    dtype: DTypeName = "float32",
    json_path: Json = None,
    known: Count = 10_000,
    rounds: Count = 5,
) -> None:
    """What finding, correcting and placing spans costs beside what it saves."""
    with plain_errors():
        from .hitpath import measure_hitpath

        writable(json_path)
        report = measure_hitpath(load(model, dtype), known=known, rounds=rounds)
        write(report, json_path)
        names = ("match", "correct", "assemble", "forward", "dense")
        grid = Table("prompt", *names, "cost / saved", title="Milliseconds")
        for length, row in report["lengths"].items():
            parts = [f"{1e3 * row[f'{name}_s']:.1f}" for name in names]
            grid.add_row(length, *parts, f"{row['overhead_of_saved']:.1%}")
        Console().print(grid)


@cost_app.command()
def decode(
    model: Model = "default",
    data: Data = None,
    requests: Annotated[str, typer.Option(help="How many at once, separated by commas.")] = "1,2,4,8,16",
    tokens: Count = 48,
    rounds: Count = 3,
    dtype: DTypeName = "float32",
    json_path: Json = None,
    plot: Plot = None,
) -> None:
    """Tokens per second and time between tokens of concurrent requests, decoded together and in turn."""
    with plain_errors():
        from .data import load_questions
        from .decode import counted, measure_decode, prompts
        from .plots import plot_decode

        writable(json_path, plot)
        counts = counted(requests)
        loaded = load(model, dtype)
        texts = prompts(loaded.tokenizer, load_questions("gsm8k", 200, data), max(counts))
        with progress() as tell:
            report = measure_decode(loaded, texts, counts, tokens, rounds, tell)
        write(report, json_path)
        if plot is not None:
            plot_decode(report, plot)
        rows = []
        for count, row in report["requests"].items():
            cells = [f"{row[way]['tokens_per_s']:.1f}" for way in ("in_turn", "together")]
            gaps = [f"{1e3 * row[way]['gap_p95_s']:.0f}" for way in ("in_turn", "together")]
            rows.append((count, *cells, f"{row['speedup']:.2f}", *gaps, "yes" if row["same_answers"] else "no"))
        columns = ("requests", "in turn", "together", "ratio", "p95 gap in turn", "together", "same answers")
        table(f"{report['model']}, {report['dtype']}: tokens per second, ms", columns, rows)
        late = report["arrival"]
        Console().print(
            f"a prompt of {late['prompt_tokens']} tokens beside {late['streams']} streams: longest gap"
            f" {late['together']['longest_gap_s']:.2f} s (in turn {late['in_turn']['longest_gap_s']:.2f}), its first"
            f" token after {late['together']['first_token_s']:.2f} s (in turn {late['in_turn']['first_token_s']:.2f})",
            highlight=False,
        )

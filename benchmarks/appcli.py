"""`kvcomm bench apps` and `serve`: LangChain apps as they are. Light to import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kvcomm_agents.entrypoints.cli.console import DTypeName, Model, table
from kvcomm_agents.entrypoints.cli.terminal import plain_errors

from .console import model_name, progress, writable, write
from .options import Count, Json, load

app_app = typer.Typer()


@app_app.command()
def apps(
    files: Annotated[
        list[Path], typer.Argument(help="Python files with `build(llm)`, `INPUT` and `MORE`, or folders.")
    ],
    model: Model = "default",
    runs: Count = 8,
    max_tokens: Count = 40,
    dtype: DTypeName = "auto",
    json_path: Json = None,
) -> None:
    """What is found and placed in LangChain apps, from their second run on."""
    with plain_errors():
        from .apps import load_app, measure_app, rows

        writable(json_path)
        found = [one for file in files for one in (sorted(file.glob("[!_]*.py")) if file.is_dir() else [file])]
        loaded = [load_app(file) for file in found]
        name = model_name(load(model, dtype))
        report: dict[str, Any] = {"model": name, "runs": runs, "max_tokens": max_tokens, "apps": {}}
        with progress() as tell:
            for one in loaded:
                report["apps"][one.name] = measure_app(one, model, dtype, runs, max_tokens, tell)
                write(report, json_path)  # after each: it takes long
        table(
            f"{name}, runs 2 to {runs}; shares of the prompt tokens",
            ("app", "calls", "spans", "in spans", "exact", "corrected", "last run", "placed", "mode corrected"),
            rows(report),
        )


@app_app.command()
def serve(
    model: Model = "default",
    reuse: Annotated[str, typer.Option(help="exact, auto, corrected or off.")] = "exact",
    runs: Count = 16,
    rounds: Count = 2,
    max_tokens: Count = 16,
    dtype: DTypeName = "auto",
    json_path: Json = None,
) -> None:
    """1, 4 and 16 runs of a LangGraph team at the same time, on one model."""
    with plain_errors():
        from .serve import measure_serve, rows

        writable(json_path)
        with progress() as tell:
            report = measure_serve(model, dtype, reuse, runs, rounds, max_tokens, tell=tell)
        write(report, json_path)
        table(
            f"{report['model']}, reuse={reuse}: {runs} runs of three calls, {rounds} rounds",
            ("at a time", "runs/s", "tokens/s", "against 1", "TTFT ms", "p95", "answers as alone"),
            rows(report),
        )

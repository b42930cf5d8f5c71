"""`kvcomm bench`: a command for every benchmark, which writes JSON, prints tables and draws. Light to import."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from kvcomm_agents.entrypoints.cli.console import JsonFile, require_folders, say, table, write_json
from kvcomm_agents.entrypoints.cli.terminal import plain_errors

from .options import ModelOptions, NameOptions
from .registry import BENCHMARKS, Benchmark
from .session import Session, Table, progress

bench_app = typer.Typer(
    help="Measure how far reuse diverges from a dense prefill, and what it saves.", no_args_is_help=True
)
_Plot = Annotated[Path | None, typer.Option(help="Draw a plot to this file (needs matplotlib).")]
_FILES = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
    for name, kind in (("json_path", JsonFile), ("plot", _Plot))
]


def run(benchmark: Benchmark, options: NameOptions, json_path: Path | None = None, plot: Path | None = None) -> None:
    """Measure, write, draw, and print."""
    require_folders(json_path, plot)
    module = import_module(f"benchmarks.{benchmark.module}")
    with progress() as tell:
        note = partial(Console(stderr=True, soft_wrap=True).print, highlight=False, markup=False)
        session = Session(partial(_load, options), tell, note, partial(write_json, file=json_path))
        report = module.measure(options, session)
    write_json(report, json_path)
    if plot is not None:
        pkgutil.resolve_name(f"benchmarks.plots.{benchmark.plot}")(report, plot)
    for shown in module.tables(report):
        if isinstance(shown, Table):
            table(shown.title, tuple(shown.columns), shown.rows)
        else:
            say(shown)


def _load(options: NameOptions) -> Any:
    """The model that the options name, or random weights of a shape."""
    from kvcomm_agents.models.loading import load_model

    from .shapes import random_model

    if not isinstance(options, ModelOptions):
        return load_model(options.model, dtype=options.dtype)  # type: ignore[arg-type]  # checked there
    if options.shape:
        return random_model(options.shape, options.device, options.dtype)  # type: ignore[arg-type]
    return load_model(options.model, device=options.device, dtype=options.dtype)  # type: ignore[arg-type]


def _command(benchmark: Benchmark) -> Callable[..., None]:
    """A function whose parameters are the benchmark's options, for typer to read."""

    def command(json_path: Path | None = None, plot: Path | None = None, **values: Any) -> None:
        with plain_errors():
            run(benchmark, benchmark.options(**values), json_path, plot)

    hints = get_type_hints(benchmark.options, include_extras=True)
    asked = [
        one.replace(annotation=hints[name]) for name, one in inspect.signature(benchmark.options).parameters.items()
    ]
    files = [one for one in _FILES if one.name != "plot" or benchmark.plot]
    command.__signature__ = inspect.Signature([*asked, *files])  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in (*asked, *files)}
    command.__doc__ = benchmark.options.__doc__
    return command


for _benchmark in BENCHMARKS:
    bench_app.command(_benchmark.name)(_command(_benchmark))

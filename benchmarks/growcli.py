"""`kvcomm bench growth` and `grid`. Light to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvcomm_agents.entrypoints.cli.console import DTypeName, Model, table
from kvcomm_agents.entrypoints.cli.terminal import plain_errors
from kvcomm_agents.errors import ConfigError

from .console import model_name, progress, writable, write
from .options import Data, Device, Json, Plot, Shape, chosen, load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

grow_app = typer.Typer()


@grow_app.command()
def growth(
    model: Model = "default",
    data: Data = None,
    dtype: DTypeName = "auto",
    device: Device = "auto",
    shape: Shape = "",
    kinds: Annotated[str, typer.Option(help="context, agents, spans; all if left out.")] = "",
    json_path: Json = None,
    plot: Plot = None,
) -> None:
    """Time to first token, match time and memory: 0.5K to 8K tokens, 2 to 16 agents, 10 to 100,000 known spans."""
    with plain_errors():
        from .growth import KINDS, grow
        from .machine import machine
        from .speedplots import plot_growth

        writable(json_path, plot)
        wanted = chosen(kinds) or KINDS
        if unknown := set(wanted) - set(KINDS):
            raise ConfigError(f"{', '.join(unknown)} does not grow here; choose from {', '.join(KINDS)}")
        loaded = load(model, dtype, device, shape)
        with progress() as tell:
            found = grow(loaded, wanted, data, tell)
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        report = {"model": model_name(loaded), "dtype": dtype, **machine(loaded.model.device), **found}
        write(report, json_path)
        if plot is not None:
            plot_growth(report, plot)
        for kind in found:
            rows = found[kind]
            parts = ("dense_s", "prefix_s", "ttft_s", "match_s", "kl")
            shown = [part for part in parts if part in next(iter(rows.values()))]
            table(
                f"{report['model']}, {dtype}: {kind}",
                (kind, *(part.replace("_s", " ms").replace("ttft", "hit") for part in shown), "held MB"),
                [_cells(key, row, shown) for key, row in rows.items()],
            )


def _cells(key: str, row: Mapping[str, float], parts: Sequence[str]) -> tuple[str, ...]:
    cells = (f"{row[part]:.4f}" if part == "kl" else f"{1e3 * row[part]:.1f}" for part in parts)
    return (key, *cells, f"{row['held_bytes'] / 1e6:.0f}")


@grow_app.command()
def grid(
    model: Model = "default",
    data: Data = None,
    dtype: DTypeName = "auto",
    device: Device = "auto",
    shape: Shape = "",
    prefixes: Annotated[str, typer.Option(help="Tokens, by commas; the paper's five if left out.")] = "",
    outputs: Annotated[str, typer.Option(help="Tokens, by commas; the paper's four if left out.")] = "",
    question: Annotated[int, typer.Option(min=1)] = 512,
    json_path: Json = None,
) -> None:
    """Mean speedup of three agents by the lengths of their instructions and answers (the paper's Table 3)."""
    with plain_errors():
        from .grid import OUTPUTS, PREFIXES, measure_grid
        from .machine import machine

        writable(json_path)
        columns, lines = _numbers(prefixes) or PREFIXES, _numbers(outputs) or OUTPUTS
        loaded = load(model, dtype, device, shape)
        with progress() as tell:
            cells = measure_grid(loaded, columns, lines, question, folder=data, tell=tell)
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        report: dict[str, Any] = {"model": model_name(loaded), "dtype": dtype, **machine(loaded.model.device)}
        write({**report, "cells": cells}, json_path)
        table(
            f"{report['model']}, {dtype}: times faster, mean of 3 agents, question {question}, everything placed",
            ("prefix", "output", "over dense", "paper", "over prefix cache", "KL"),
            [
                (
                    str(cell["prefix"]),
                    str(cell["output"]),
                    f"{cell['speedup_over_dense']:.2f}",
                    "-" if cell["paper"] is None else f"{cell['paper']:.2f}",
                    f"{cell['speedup_over_prefix']:.2f}",
                    f"{cell['kl_mean']:.4f}",
                )
                for cell in cells
            ],
        )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in chosen(text))
    except ValueError as error:
        raise ConfigError(f"{text!r} is no list of numbers: {error}") from error

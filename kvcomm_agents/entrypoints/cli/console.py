"""Console: what several commands print, and the options they share. Light to import."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

Model = Annotated[str, typer.Option(help="Folder, GGUF file or hub id.")]
DTypeName = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


def print_json(found: object) -> None:
    """Print it for other programs to read."""
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False))


def table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], words: int = 1) -> None:
    """Print one; every column but the first, or the first `words`, is of numbers."""
    grid = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index < words else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    console = Console()
    # Written to a file, no terminal says how wide it may be.
    (console if console.is_terminal else Console(width=120)).print(grid)

"""Console: what several commands print and write, and the options they share. Light to import."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...errors import ConfigError

Model = Annotated[str, typer.Option(help="Folder, GGUF file or hub id.")]
DTypeName = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")]


def say(text: str, style: str = "") -> None:
    """Print a line as it is: long ones are not broken, and brackets mean nothing."""
    Console(soft_wrap=True).print(Text(text, style))


def say_checked(name: str, problems: Sequence[str]) -> None:
    """Print whether something passed a check: `ok`, or what is wrong with it."""
    verdict = ("; ".join(problems), "red") if problems else ("ok", "green")
    Console(soft_wrap=True).print(Text.assemble(f"{name}: ", verdict))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> None:
    """Print one; every column but the first, or the first `words`, is of numbers."""
    grid = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index < words else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    console = Console()
    # Written to a file, no terminal says how wide it may be.
    (console if console.is_terminal else Console(width=120)).print(grid)


def print_json(found: object) -> None:
    """Print it for other programs to read."""
    typer.echo(_as_json(found))


def write_json(found: object, file: Path | None) -> None:
    """Write it, if a file was named."""
    if file is not None:
        file.write_text(_as_json(found) + "\n", encoding="utf-8")


def require_folders(*files: Path | None) -> None:
    """Fail before long work if one of the files it is to write has no folder.

    Raises:
        ConfigError: its folder is not there.
    """
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"no folder {file.parent} to write {file.name} to")


def _as_json(found: object) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False)

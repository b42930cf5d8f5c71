"""How a command of `kvcomm` fails: in one line. Light to import."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from ...errors import KVCommError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn a `KVCommError` into one red line on stderr and exit code 2."""
    try:
        yield
    except KVCommError as error:
        message = " ".join(str(error).split())
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {escape(message)}", highlight=False)
        raise typer.Exit(2) from error

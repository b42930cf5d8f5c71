"""What only a checkout of the project has: the benchmarks, which are no part of the wheel."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import typer

_ROOT = Path(__file__).parents[3]


def find_benchmarks() -> typer.Typer | None:
    """The commands of `kvcomm bench`; `None` where the package does not stand in a checkout of the project."""
    if not (_ROOT / "benchmarks" / "commands.py").is_file() or not (_ROOT / "pyproject.toml").is_file():
        return None
    if str(_ROOT) not in sys.path:
        sys.path.append(str(_ROOT))
    commands = importlib.import_module("benchmarks.commands").bench_app
    return commands if isinstance(commands, typer.Typer) else None

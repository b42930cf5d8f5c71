"""What the commands of `kvcomm bench` share: a progress bar, tables, and their JSON. Light to import."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from kvcomm_agents.errors import ConfigError

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    from kvcomm_agents.models.loading import LoadedModel

Tell = Callable[[str, int, int], None]
"""Called with the stage, what is done of it, and how much there is."""


def quietly(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


@contextmanager
def progress() -> Iterator[Tell]:
    """A bar for each stage, on stderr so that output can be piped."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        yield tell


def writable(*files: Path | None) -> None:
    """Fail before a long run if one of the files cannot be written.

    Raises:
        ConfigError: its folder is not there.
    """
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"no folder {file.parent} to write {file.name} to")


def write(report: Mapping[str, Any], json_path: Path | None) -> None:
    """Write a report, if a file was named."""
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def model_name(loaded: LoadedModel) -> str:
    """What the model calls itself, rather than where it lies."""
    path = Path(loaded.folder or loaded.name)
    return re.sub(r"-[0-9a-f]{16}$", "", path.name) if path.is_dir() else loaded.name

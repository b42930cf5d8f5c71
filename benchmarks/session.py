"""A session: one run of a benchmark, with its model, who hears of progress, and where figures are kept meanwhile."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from kvcomm_agents.models.loading import LoadedModel

Report = dict[str, Any]
"""Figures in plain JSON types."""
Tell = Callable[[str, int, int], None]
"""Called with the stage, what is done of it, and how much there is."""


@dataclass(frozen=True, slots=True)
class Table:
    """What is printed of a report; the first column is of words, the others are of numbers.

    Args:
        title: above it.
        columns: by their heads, where a cell comes from and how it is written: `key:.2f`, `outer/inner:.1%`, and with
            `ms` or `ms1` in milliseconds. What is missing is written `-`. `:key` is the name of the record.
        records: one a row, by name or in order.
    """

    title: str
    columns: Mapping[str, str]
    records: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]]

    @property
    def rows(self) -> list[list[str]]:
        """The cells."""
        named = self.records.items() if isinstance(self.records, Mapping) else (("", one) for one in self.records)
        return [[_cell(name, record, spec) for spec in self.columns.values()] for name, record in named]


def _cell(name: str, record: Mapping[str, Any], spec: str) -> str:
    path, _, form = spec.partition(":")
    if not path:
        return name
    value: Any = record
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return "-"
    return f"{1e3 * value:.{form[2:] or 0}f}" if form.startswith("ms") else format(value, form)


@dataclass(eq=False)
class Session:
    """What a measurement is given beside its options.

    Args:
        load: gives the model; called when it is first wanted.
        tell: hears of progress.
        say: is told what a user should know meanwhile.
        keep: is given the report so far where a run takes long, so that a killed one is not lost.
    """

    load: Callable[[], LoadedModel]
    tell: Tell = lambda stage, done, total: None
    say: Callable[[str], None] = lambda text: None
    keep: Callable[[Mapping[str, Any]], None] = lambda report: None

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model."""
        return self.load()

    @cached_property
    def described(self) -> Report:
        """The head of a report: the model, and where it runs."""
        return describe(self.loaded)


def describe(loaded: LoadedModel) -> Report:
    """A model, and where it runs."""
    import torch
    import transformers

    device = loaded.model.device
    return {
        "model": model_name(loaded),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def model_name(loaded: LoadedModel) -> str:
    """What the model calls itself, rather than where it lies."""
    path = Path(loaded.folder or loaded.name)
    return re.sub(r"-[0-9a-f]{16}$", "", path.name) if path.is_dir() else loaded.name


def title(report: Mapping[str, Any], text: str) -> str:
    """The title of a table: model, dtype, and what it is of."""
    return f"{report['model']}, {report['dtype']}: {text}"


@contextmanager
def progress() -> Iterator[Tell]:
    """A bar for each stage, on stderr so that output can be piped."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield tell


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()

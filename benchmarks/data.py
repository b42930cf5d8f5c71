"""Text to measure with, from a folder or from the hub: question sets, passages, and logs of agents at work."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcomm_agents.errors import ConfigError

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Where one set of questions comes from, and how a row of it becomes a text.

    Args:
        file: its name in a folder, as JSON lines, gzipped.
        hub: name, configuration and split, where a hub has it in this form.
        text: of a row.
    """

    file: str
    hub: tuple[str, str, str] | None
    text: Callable[[Row], str]


def _question(row: Row) -> str:
    return str(row["question"]).strip()


SETS: dict[str, QuestionSet] = {
    "gsm8k": QuestionSet("gsm8k.jsonl.gz", ("openai/gsm8k", "main", "test"), _question),
    "humaneval": QuestionSet(
        "humaneval.jsonl.gz",
        ("openai/openai_humaneval", "openai_humaneval", "test"),
        lambda row: f"Complete this Python function.\n{str(row['prompt']).strip()}",
    ),
    "mt_bench": QuestionSet("mt_bench.jsonl.gz", None, lambda row: str(row["turns"][0]).strip()),
    "musique": QuestionSet("musique.jsonl.gz", None, _question),
    "autogen": QuestionSet("whowhen_autogen.jsonl.gz", None, _question),
    "magentic": QuestionSet("whowhen_magentic.jsonl.gz", None, _question),
}


def load_questions(name: str, count: int, folder: Path | None = None) -> list[str]:
    """The first questions of a set.

    Args:
        name: one of `SETS`.
        count: how many.
        folder: holds the set as JSON lines, gzipped or not; `None` tries `$KVCOMM_DATA`, then the hub.

    Raises:
        ConfigError: no such set, it is nowhere to be had, is damaged, or holds fewer questions.
    """
    rows = load_rows(name, folder, count)
    try:
        return [SETS[name].text(row) for row in rows[:count]]
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"a row of {name} has not the fields of that set: {error!r}") from error


def load_rows(name: str, folder: Path | None = None, least: int = 0) -> list[Row]:
    """All rows of a set, as they are.

    Raises:
        ConfigError: as `load_questions`; there are fewer than `least`.
    """
    if name not in SETS:
        raise ConfigError(f"there is no question set {name!r}; choose one of {', '.join(SETS)}")
    rows = _rows(name, folder)
    if len(rows) < least:
        raise ConfigError(f"{least} rows of {name} were asked for and there are {len(rows)}")
    return rows


def _rows(name: str, folder: Path | None) -> list[Row]:
    where = folder or (Path(os.environ["KVCOMM_DATA"]) if os.environ.get("KVCOMM_DATA") else None)
    if where is None:
        return list(_from_hub(name))
    for file in (where / SETS[name].file, (where / SETS[name].file).with_suffix("")):
        if file.is_file():
            return _read(file)
    raise ConfigError(f"no {SETS[name].file} in {where}; put it there, or leave --data out to take it from the hub")


def _read(file: Path) -> list[Row]:
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as JSON lines: {error}") from error


def _from_hub(name: str) -> Iterable[Row]:
    way_out = f"name a folder that holds {SETS[name].file} with --data or $KVCOMM_DATA"
    place = SETS[name].hub
    if place is None:
        raise ConfigError(f"no hub has {name} in this form; {way_out}")
    hub, configuration, split = place
    try:
        from datasets import load_dataset  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ConfigError(f"no questions here, and the hub needs: pip install datasets; or {way_out}") from error
    try:
        rows: Iterable[Row] = load_dataset(hub, configuration, split=split)
    except Exception as error:  # whatever the hub client raises, the way out is the same
        raise ConfigError(f"{hub} cannot be loaded from the hub ({error}); {way_out}") from error
    return rows

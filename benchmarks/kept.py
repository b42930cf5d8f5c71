"""Kept: what long runs measured, on disk row by row, so that a killed run goes on where it stopped.

Every row carries a hash of the code that it was measured with. Rows of other code are left alone and not used. What a
model says when it is prefilled densely is its own and no code's: such rows are kept for all code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import kvcomm_agents
from kvcomm_agents.models.cache import cache_root

CODE = (Path(kvcomm_agents.__file__).parent, Path(__file__).parent)
"""The packages whose code decides what is measured."""


@cache
def sources(packages: tuple[Path, ...]) -> str:
    """A hash of every Python file of some packages, with their names; how figures are drawn does not count."""
    digest = hashlib.blake2b(digest_size=12)
    for package in packages:
        for file in sorted(package.rglob("*.py")):
            name = file.relative_to(package).as_posix()
            if not name.startswith("plots/"):
                digest.update(f"{name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


class Kept:
    """Rows of one setting, in the user's cache.

    Args:
        name: of what is kept, for its file and for messages.
        setting: all that rows depend on beside the code; a value whose `repr` says everything.
        key: fields of a row that tell it from the others.
        say: is told what is used again and what is not.
        code: packages whose code rows depend on, `CODE` if left out; empty if rows depend on the setting alone.
    """

    def __init__(
        self,
        name: str,
        setting: object,
        key: tuple[str, ...],
        say: Callable[[str], None],
        code: tuple[Path, ...] | None = None,
    ) -> None:
        digest = hashlib.blake2b(repr(setting).encode(), digest_size=8).hexdigest()
        self.file = cache_root() / "bench" / f"{name}-{digest}.jsonl"
        code = CODE if code is None else code
        self._code, self._key = sources(code), key
        text = self.file.read_text(encoding="utf-8") if self.file.is_file() else ""
        self._cut_off = text != "" and not text.endswith("\n")
        lines = list(_lines(text))
        own = [line["row"] for line in lines if line.get("sources") == self._code]
        self.rows = {self._key_of(row): row for row in own}
        if stale := len(lines) - len(own):
            say(f"{name}: {stale} rows on disk were measured with other code and are not used")
        if own:
            same = "this code and these settings" if code else "these settings"
            say(f"{name}: {len(own)} rows of an earlier run with {same} are used again")

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row, so that it is there if the process dies right after."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"sources": self._code, "row": row}) + "\n"
        with self.file.open("a", encoding="utf-8") as text:
            text.write("\n" + line if self._cut_off else line)
        self._cut_off = False
        self.rows[self._key_of(row)] = dict(row)

    def _key_of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[field] for field in self._key)


def _lines(text: str) -> Iterator[dict[str, Any]]:
    """The lines of a file, without those that a killed process cut off."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)

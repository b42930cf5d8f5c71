"""Saved memory: the folders an engine wrote to its `memory_folder`, looked at and cleared without a model.

Light to import: it reads the headers of the data files, and no tensor but the guard's records.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ...errors import SavedMemoryError
from ...files import file_sha256
from .manifest import DATA, EXTRA, GUARD, MANIFEST, PARTS, Manifest, locked


@dataclass(frozen=True, slots=True)
class Saved:
    """What one model learned in one namespace.

    Args:
        folder: where it is.
        manifest: of it; `None` if that cannot be read.
        problem: why not.
    """

    folder: Path
    manifest: Manifest | None
    problem: str = ""

    @property
    def bytes(self) -> int:
        """Of all its files, leftovers too."""
        return sum(_size(path) for path in _files(self.folder))


@dataclass(frozen=True, slots=True)
class AgentStats:
    """What is kept of an agent.

    Args:
        agent: its name.
        places: in its prompt where anchors were seen.
        anchors: how many.
        tokens: in them.
        bytes: of their tensors.
        audits: measurements of the guard.
        divergence: of audited requests that had been let through, mean KL per token; `None` if there was none.
    """

    agent: str
    places: int = 0
    anchors: int = 0
    tokens: int = 0
    bytes: int = 0
    audits: int = 0
    divergence: float | None = None


def find_saved(root: Path) -> list[Saved]:
    """Everything saved under a memory folder, or in one of its subfolders alone.

    Raises:
        SavedMemoryError: there is no such folder.
    """
    if not root.is_dir():
        raise SavedMemoryError(f"no folder {root}")
    folders = [root] if (root / MANIFEST).exists() else sorted(path for path in root.iterdir() if path.is_dir())
    return [_read(folder) for folder in folders if any(True for _ in _files(folder))]


def verify_saved(saved: Saved) -> list[str]:
    """What is wrong with it, a line each; none if it loads. Reads the whole data file."""
    if saved.manifest is None:
        return [saved.problem]
    manifest = saved.manifest
    data = saved.folder / manifest.data
    if not data.is_file():
        again = _read(saved.folder)
        if again.manifest is not None and again.manifest.data != manifest.data:
            return verify_saved(again)  # a process saved just now
        return [f"{manifest.data} is missing"]
    found = []
    if (size := _size(data)) != manifest.bytes:
        found.append(f"{manifest.data} has {size} bytes, not {manifest.bytes}")
    elif file_sha256(data) != manifest.sha256:
        found.append(f"the checksum of {manifest.data} is not the one in {MANIFEST}")
    else:
        wanted = {f"{index}.{part}" for index in range(len(manifest.anchors)) for part in PARTS}
        if missing := sorted(wanted - _shapes(data).keys()):
            found.append(f"{len(missing)} tensors are missing, the first of them {missing[0]}")
    return found


def agents_of(saved: Saved) -> list[AgentStats]:
    """What is kept of each agent, most bytes first.

    Raises:
        SavedMemoryError: it is damaged.
    """
    manifest, data = _whole(saved)
    try:
        shapes = _shapes(data)
        audits, served = _audits(data)
        by_agent: defaultdict[str, list[int]] = defaultdict(list)
        for index, row in enumerate(manifest.anchors):
            by_agent[row.agent].append(index)
        rows = []
        for agent in by_agent.keys() | audits.keys():
            mine = by_agent.get(agent, [])
            kl = served.get(agent, [])
            rows.append(
                AgentStats(
                    agent,
                    len({manifest.anchors[index].place for index in mine}),
                    len(mine),
                    sum(shapes[f"{index}.base_keys"][0][2] for index in mine),
                    sum(shapes[f"{index}.{part}"][1] for index in mine for part in PARTS),
                    audits.get(agent, 0),
                    sum(kl) / len(kl) if kl else None,
                )
            )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        raise SavedMemoryError(f"{data} is damaged: {type(error).__name__}: {error}") from error
    return sorted(rows, key=lambda row: (-row.bytes, row.agent))


def bytes_of(saved: Saved) -> dict[str, int]:
    """Bytes of the data file by kind: `anchors`, `maps` of the corrector, `audits`.

    Raises:
        SavedMemoryError: it is damaged.
    """
    _, data = _whole(saved)
    found = dict.fromkeys(("anchors", "maps", "audits"), 0)
    try:
        for name, (_, size) in _shapes(data).items():
            kind = "anchors" if not name.startswith(EXTRA) else "audits" if name == EXTRA + GUARD else "maps"
            found[kind] += size
    except (OSError, SafetensorError) as error:
        raise SavedMemoryError(f"{data} is damaged: {type(error).__name__}: {error}") from error
    return found


def forget_saved(folder: Path) -> None:
    """Remove what is saved in a folder, if anything is.

    Raises:
        SavedMemoryError: it cannot be removed.
    """
    if folder.is_dir():
        clear_saved(Saved(folder, None))


def clear_saved(saved: Saved) -> int:
    """Remove it; returns the bytes freed. Other files in its folder stay.

    Raises:
        SavedMemoryError: it cannot be removed.
    """
    freed = 0
    try:
        with locked(saved.folder):
            for path in sorted(_files(saved.folder), key=lambda path: path.name != MANIFEST):  # the manifest first
                freed += _size(path)
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else is in it
                saved.folder.rmdir()
    except OSError as error:
        raise SavedMemoryError(f"{saved.folder} cannot be cleared: {error}") from error
    return freed


def _read(folder: Path) -> Saved:
    try:
        return Saved(folder, Manifest.read(folder))
    except SavedMemoryError as error:
        return Saved(folder, None, str(error))


def _whole(saved: Saved) -> tuple[Manifest, Path]:
    if saved.manifest is None:
        raise SavedMemoryError(saved.problem)
    return saved.manifest, saved.folder / saved.manifest.data


def _files(folder: Path) -> Iterator[Path]:
    for pattern in (MANIFEST, *DATA):
        yield from folder.glob(pattern)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a save took it away
        return 0


def _shapes(data: Path) -> dict[str, tuple[list[int], int]]:
    """Shape and bytes of every tensor, from the file's header."""
    with data.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: (one["shape"], one["data_offsets"][1] - one["data_offsets"][0]) for name, one in header.items()}


def _audits(data: Path) -> tuple[dict[str, int], dict[str, list[float]]]:
    """By agent: measurements, and the KL of requests that had been let through."""
    counts: defaultdict[str, int] = defaultdict(int)
    served: defaultdict[str, list[float]] = defaultdict(list)
    with safe_open(data, framework="numpy") as file:
        if EXTRA + GUARD in file.keys():
            saved = json.loads(bytes(file.get_tensor(EXTRA + GUARD).tolist()))
            for record in saved["records"] if isinstance(saved, dict) else saved:  # of earlier versions
                counts[record["agent"]] += 1
                if record.get("predicted") is not None:
                    served[record["agent"]].append(float(record["kl"]))
    return counts, served

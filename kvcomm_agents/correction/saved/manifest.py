"""Manifest: what a folder of saved anchors holds, and whose it is. Light to import: no torch.

Version 1 did not say whose they are; it is read, and what it did not say is `UNKNOWN`. From version 3 on a checksum
covers the manifest itself, and anchors of warmed texts say so; version 2 hid that in the agent's name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from ...errors import SavedMemoryError

MANIFEST = "anchors.json"
VERSION = 3
UNKNOWN = "unknown"

PARTS = ("base_keys", "base_values", "true_keys", "true_values")
"""Tensors of anchor `n` in the data file are `n.base_keys`, ..., and `n.embedding` if it has one."""
EXTRA = "extra."
"""All others begin with this."""
GUARD = "guard.records"
"""The guard's, JSON as uint8, among the others."""
DATA = ("anchors-*.safetensors", "anchors-*.json", ".tmp*")
"""Data files, manifests that are being written, and what safetensors leaves of a file that it was killed at: what the
manifest does not name is a leftover."""

_READABLE = (1, 2, VERSION)
_WARMED = "\0warm"  # ended agents' names in version 2
_LARGEST = 64 << 20  # bytes of a manifest; a larger one is nobody's
_PATIENCE_S = 60.0  # for another process that saves to the same folder


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose anchors they are.

    Args:
        fingerprint: of model and tokenizer together; what another one saved is refused.
        model: its name as the user gave it.
        tokenizer: fingerprint of the tokenizer alone.
        namespace: the wall between tenants.
    """

    fingerprint: str
    model: str = UNKNOWN
    tokenizer: str = UNKNOWN
    namespace: str = UNKNOWN


@dataclass(frozen=True, slots=True)
class Row:
    """One anchor: its slot, how much it counts, where in its span it begins, how often it was found."""

    agent: str
    place: str
    weight: float
    offset: int
    hits: int
    warmed: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is saved in a folder.

    Args:
        owner: whose it is.
        data: name of the safetensors file beside the manifest.
        sha256: of that file.
        bytes: of that file.
        made_at: when something was first saved there, ISO 8601 with a time zone.
        saved_at: when this was.
        anchors: one each, in the order of the file.
        version: of the format.
    """

    owner: Owner
    data: str
    sha256: str
    bytes: int
    made_at: str
    saved_at: str
    anchors: tuple[Row, ...]
    version: int = VERSION

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder. Its data file may be gone by now, if another process saves there.

        Raises:
            SavedMemoryError: it is missing, damaged or of another version; says which.
        """
        path = folder / MANIFEST
        try:
            found = json.loads(read_file(path, _LARGEST).decode("utf-8"))
            version = found["version"]
            if version not in _READABLE:
                raise SavedMemoryError(
                    f"{path} has version {version}; this is version {VERSION} of the format, and older ones are read."
                    " Remove it with `kvcomm memory clear`, or use the release that wrote it"
                )
            data = found["data"]
            if Path(data).name != data:
                raise SavedMemoryError(f"{path} names a data file outside its folder: {data!r}")
            if version >= 3 and found.pop("checksum", "") != checksum_of(found):
                raise SavedMemoryError(f"{path} is damaged: its checksum is not that of what it says")
            if version == 1:
                found |= _added_since(path, folder / data)
            owner = Owner(found["fingerprint"], found["model"], found["tokenizer"], found["namespace"])
            rows = tuple(_row(row) for row in found["anchors"])
            times = found["made_at"], found["saved_at"]
            for time in times:
                datetime.fromisoformat(time)
            return cls(owner, data, found["sha256"], int(found["bytes"]), *times, rows, version)
        except SavedMemoryError:
            raise
        except FileNotFoundError as error:
            raise SavedMemoryError(f"no saved anchors: {error.filename} is missing") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
            raise SavedMemoryError(f"{path} is damaged: {type(error).__name__}: {error}") from error

    def write(self, path: Path) -> None:
        """Write it; `Manifest.read` finds it under the name `MANIFEST` only."""
        record = {"version": self.version, **asdict(self.owner), **asdict(self)}
        del record["owner"]
        record = json.loads(json.dumps(record))
        path.write_text(json.dumps({**record, "checksum": checksum_of(record)}), encoding="utf-8")
        path.chmod(0o600)  # what agents said can be told from it


def locked(folder: Path) -> FileLock:
    """Keeps other processes from writing to a folder of anchors. Beside it, so that the folder may be removed.

    Entering it raises an `OSError` if another process holds it for a minute.
    """
    whole = folder.expanduser().absolute()
    whole.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return FileLock(whole.with_name(f".{whole.name}.lock"), timeout=_PATIENCE_S)


def now() -> str:
    """The time as manifests have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_file(path: Path, largest: int | None = None) -> bytes:
    """The content of a regular file: a pipe would keep its reader waiting for ever.

    Raises:
        FileNotFoundError: there is none.
        SavedMemoryError: it is no regular file, or larger than `largest` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise SavedMemoryError(f"{path} is no regular file")
        size = status.st_size
        if largest is not None and size > largest:
            raise SavedMemoryError(f"{path} has {size} bytes; a manifest has {largest} at most")
        return file.read()


def checksum_of(record: Mapping[str, Any]) -> str:
    """Hex digest of what a manifest says."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _row(row: Mapping[str, Any]) -> Row:
    """One anchor's row.

    Raises:
        ValueError: a number in it is out of range.
    """
    agent, weight, offset = row["agent"], float(row["weight"]), int(row["offset"])
    if not isinstance(agent, str) or not isinstance(row["place"], str):
        raise ValueError(f"the slot of an anchor is no text: {agent!r}")
    if not (math.isfinite(weight) and 0 < weight <= 1e6 and 0 <= offset < 1 << 31 and 0 <= int(row["hits"]) < 1 << 62):
        raise ValueError(f"an anchor with weight {weight} and offset {offset} is out of range")
    warmed = bool(row.get("warmed", agent.endswith(_WARMED)))
    return Row(agent.removesuffix(_WARMED), row["place"], weight, offset, int(row["hits"]), warmed)


def _added_since(manifest: Path, data: Path) -> dict[str, Any]:
    """What version 1 did not say."""
    times = {}
    for name in ("made_at", "saved_at"):
        times[name] = datetime.fromtimestamp(manifest.stat().st_mtime, UTC).isoformat(timespec="seconds")
    size = data.stat().st_size if data.is_file() else 0
    return {"model": UNKNOWN, "tokenizer": UNKNOWN, "namespace": UNKNOWN, "bytes": size, **times}

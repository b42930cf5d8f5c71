"""Manifest: what a folder of saved anchors holds, and whose it is. Light to import: no torch.

Version 1 did not say whose they are; it is read, and what it did not say is `UNKNOWN`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from ...errors import SavedMemoryError

MANIFEST = "anchors.json"
VERSION = 2
UNKNOWN = "unknown"

PARTS = ("base_keys", "base_values", "true_keys", "true_values")
"""Tensors of anchor `n` in the data file are `n.base_keys`, ..., and `n.embedding` if it has one."""
EXTRA = "extra."
"""All others begin with this."""
GUARD = "guard.records"
"""The guard's, JSON as uint8, among the others."""
WARMED = "\0warm"
"""Ends the name under which an agent's readings of warmed texts are kept, apart from its others."""
DATA = ("anchors-*.safetensors", "anchors-*.json")
"""Data files, and manifests that are being written: what the manifest does not name is a leftover."""

_READABLE = (1, VERSION)
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
            found = json.loads(path.read_text(encoding="utf-8"))
            version = found["version"]
            if version not in _READABLE:
                raise SavedMemoryError(
                    f"{path} has version {version}; this is version {VERSION} of the format, which also reads 1."
                    " Remove it with `kvcomm memory clear`, or use the release that wrote it"
                )
            data = found["data"]
            if Path(data).name != data:
                raise SavedMemoryError(f"{path} names a data file outside its folder: {data!r}")
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
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SavedMemoryError(f"{path} is damaged: {type(error).__name__}: {error}") from error

    def write(self, path: Path) -> None:
        """Write it; `Manifest.read` finds it under the name `MANIFEST` only."""
        record = {"version": self.version, **asdict(self.owner), **asdict(self)}
        del record["owner"]
        path.write_text(json.dumps(record), encoding="utf-8")


def locked(folder: Path) -> FileLock:
    """Keeps other processes from writing to a folder of anchors. Beside it, so that the folder may be removed.

    Entering it raises an `OSError` if another process holds it for a minute.
    """
    whole = folder.expanduser().absolute()
    whole.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(whole.with_name(f".{whole.name}.lock"), timeout=_PATIENCE_S)


def now() -> str:
    """The time as manifests have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _row(row: Mapping[str, Any]) -> Row:
    return Row(str(row["agent"]), str(row["place"]), float(row["weight"]), int(row["offset"]), int(row["hits"]))


def _added_since(manifest: Path, data: Path) -> dict[str, Any]:
    """What version 1 did not say."""
    times = {}
    for name in ("made_at", "saved_at"):
        times[name] = datetime.fromtimestamp(manifest.stat().st_mtime, UTC).isoformat(timespec="seconds")
    size = data.stat().st_size if data.is_file() else 0
    return {"model": UNKNOWN, "tokenizer": UNKNOWN, "namespace": UNKNOWN, "bytes": size, **times}

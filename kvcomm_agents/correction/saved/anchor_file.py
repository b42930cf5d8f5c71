"""Anchors on disk: a safetensors file with a random name, and a JSON manifest that names it.

The data file is complete and synced before the manifest that names it, with its sha256, replaces the
old manifest in one rename. Whatever is interrupted, a manifest names a whole file, the old or the new.
Processes that save to one folder do so one after another; the last one's state is what is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from ...errors import SavedMemoryError
from ...files import file_sha256
from ...kv.block import KVBlock
from ...kv.slot import Slot
from ..base import Example
from .manifest import DATA, EXTRA, MANIFEST, PARTS, Manifest, Owner, Row, locked, now

Saved = tuple[Slot, Example, int]
"""A slot, an example at it, and how often it was found."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What is to be saved, as it was at one moment: it may be written on any thread, while learning goes on.

    Args:
        owner: whose it is.
        anchors: all of them.
        extra: more tensors to keep with them, such as a corrector's state.
    """

    owner: Owner
    anchors: Sequence[Saved]
    extra: Mapping[str, Tensor]

    def write(self, folder: Path) -> None:
        """Write it to a folder, made if missing, atomically. Waits for other processes that save there.

        Raises:
            SavedMemoryError: it could not be written, for want of room say; what the folder held still loads.
        """
        try:
            with locked(folder):
                _write(folder, self.owner, self.anchors, self.extra)
        except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
            raise SavedMemoryError(f"the anchors could not be saved to {folder}: {error}") from error


def _write(folder: Path, owner: Owner, anchors: Sequence[Saved], extra: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {EXTRA + name: tensor.detach().cpu().contiguous().clone() for name, tensor in extra.items()}
    rows = []
    for index, (slot, example, hits) in enumerate(anchors):
        blocks = (example.base.keys, example.base.values, example.true.keys, example.true.values)
        for part, tensor in zip(PARTS, blocks, strict=True):
            tensors[f"{index}.{part}"] = tensor.detach().cpu().contiguous().clone()
        if example.embedding is not None:
            tensors[f"{index}.embedding"] = example.embedding.cpu().clone()
        rows.append(Row(slot.agent, slot.place, example.weight, example.offset, hits))
    data = folder / f"anchors-{secrets.token_hex(8)}.safetensors"
    temporary = data.with_suffix(".json")
    try:
        save_file(tensors, data)
        _sync(data)
        size, time = data.stat().st_size, now()
        made_at = _made_at(folder) or time
        Manifest(owner, data.name, file_sha256(data), size, made_at, time, tuple(rows)).write(temporary)
        _sync(temporary)
        temporary.replace(folder / MANIFEST)
    except BaseException:
        temporary.unlink(missing_ok=True)
        if not _names(folder / MANIFEST, data.name):  # an interrupt may come just after the rename
            data.unlink(missing_ok=True)
        raise
    _sync(folder)
    for old in [path for pattern in DATA for path in folder.glob(pattern)]:
        if old != data:
            with contextlib.suppress(OSError):  # a reader may hold it open; the next save tries again
                old.unlink()


def read_anchors(folder: Path, fingerprint: str) -> tuple[list[Saved], dict[str, Tensor]]:
    """Everything `Snapshot.write` wrote.

    Raises:
        SavedMemoryError: it is missing, damaged, of another version, or of another model; says which.
    """
    path = folder / MANIFEST
    try:
        while True:
            manifest = Manifest.read(folder)
            owner = manifest.owner
            if owner.fingerprint != fingerprint:
                raise SavedMemoryError(f"{path} was made by {owner.fingerprint!r}, not by {fingerprint!r}")
            try:
                content = (folder / manifest.data).read_bytes()
                break
            except FileNotFoundError:
                if _names(path, manifest.data):
                    raise
                # a save came in between, and took the old file away
        if hashlib.sha256(content).hexdigest() != manifest.sha256:
            raise SavedMemoryError(f"{folder / manifest.data} is damaged: its checksum is not the one in {path}")
        tensors = load(content)
        anchors = [_example(index, row, tensors) for index, row in enumerate(manifest.anchors)]
    except SavedMemoryError:
        raise
    except FileNotFoundError as error:
        raise SavedMemoryError(f"no saved anchors: {error.filename} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise SavedMemoryError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return anchors, {name[len(EXTRA) :]: t for name, t in tensors.items() if name.startswith(EXTRA)}


def _example(index: int, row: Row, tensors: dict[str, Tensor]) -> Saved:
    base_keys, base_values, true_keys, true_values = (tensors[f"{index}.{part}"] for part in PARTS)
    example = Example(
        KVBlock(base_keys, base_values),
        KVBlock(true_keys, true_values),
        tensors.get(f"{index}.embedding"),
        row.weight,
        row.offset,
    )
    return Slot(row.agent, row.place), example, row.hits


def _made_at(folder: Path) -> str:
    """When something was first saved there, if that can still be read."""
    with contextlib.suppress(SavedMemoryError):
        return Manifest.read(folder).made_at
    return ""


def _names(manifest: Path, data: str) -> bool:
    """Whether a manifest names this data file."""
    return manifest.exists() and data in manifest.read_text(encoding="utf-8")


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Anchors on disk: a safetensors file with a random name, and a JSON manifest that names it.

The data file is complete and synced before the manifest that names it, with its sha256, replaces the
old manifest in one rename. Whatever is interrupted, a manifest names a whole file, the old or the new.
Processes that save to one folder do so one after another; the last one's state is what is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from .correction.base import Example, Slot
from .errors import StoreError
from .kv import KVBlock

MANIFEST = "anchors.json"
VERSION = 1
_EXTRA = "extra."
_PATIENCE_S = 60.0  # for another process that saves to the same folder
_PARTS = ("base_keys", "base_values", "true_keys", "true_values")

Saved = tuple[Slot, Example, int]
"""A slot, an example at it, and how often it was found."""


def write_anchors(folder: Path, fingerprint: str, anchors: Sequence[Saved], extra: dict[str, Tensor]) -> None:
    """Write all of them, atomically.

    Raises:
        StoreError: they could not be written, for want of room say; what the folder held still loads.
    """
    try:
        with locked(folder):
            _write(folder, fingerprint, anchors, extra)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        raise StoreError(f"the anchors could not be saved to {folder}: {error}") from error


def locked(folder: Path) -> FileLock:
    """Keeps other processes from writing to a folder of anchors. Beside it, so that the folder may be removed.

    Entering it raises an `OSError` if another process holds it for a minute.
    """
    whole = folder.expanduser().absolute()
    whole.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(whole.with_name(f".{whole.name}.lock"), timeout=_PATIENCE_S)


def _write(folder: Path, fingerprint: str, anchors: Sequence[Saved], extra: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_EXTRA + name: tensor.detach().cpu().contiguous().clone() for name, tensor in extra.items()}
    rows: list[dict[str, Any]] = []
    for index, (slot, example, hits) in enumerate(anchors):
        blocks = (example.base.keys, example.base.values, example.true.keys, example.true.values)
        for part, tensor in zip(_PARTS, blocks, strict=True):
            tensors[f"{index}.{part}"] = tensor.detach().cpu().contiguous().clone()
        if example.embedding is not None:
            tensors[f"{index}.embedding"] = example.embedding.cpu().clone()
        rows.append({"agent": slot.agent, "place": slot.place, "weight": example.weight})
        rows[-1] |= {"offset": example.offset, "hits": hits}
    data = folder / f"anchors-{secrets.token_hex(8)}.safetensors"
    try:
        save_file(tensors, data)
        _sync(data)
        manifest = {
            "version": VERSION,
            "fingerprint": fingerprint,
            "data": data.name,
            "sha256": _sha256(data),
            "anchors": rows,
        }
        temporary = data.with_suffix(".json")
        temporary.write_text(json.dumps(manifest), encoding="utf-8")
        _sync(temporary)
        temporary.replace(folder / MANIFEST)
    except BaseException:
        data.with_suffix(".json").unlink(missing_ok=True)
        if not _names(folder / MANIFEST, data.name):  # an interrupt may come just after the rename
            data.unlink(missing_ok=True)
        raise
    _sync(folder)
    for old in [*folder.glob("anchors-*.safetensors"), *folder.glob("anchors-*.json")]:
        if old != data:
            with contextlib.suppress(OSError):  # a reader may hold it open; the next save tries again
                old.unlink()


def read_anchors(folder: Path, fingerprint: str) -> tuple[list[Saved], dict[str, Tensor]]:
    """Everything `write_anchors` wrote.

    Raises:
        StoreError: it is missing, damaged, of another version, or of another model; says which.
    """
    path = folder / MANIFEST
    try:
        while True:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["version"] != VERSION:
                raise StoreError(f"{path} has version {manifest['version']}; this is version {VERSION}")
            if manifest["fingerprint"] != fingerprint:
                raise StoreError(f"{path} was made by {manifest['fingerprint']!r}, not by {fingerprint!r}")
            name = manifest["data"]
            if Path(name).name != name:
                raise StoreError(f"{path} names a data file outside its folder: {name!r}")
            try:
                content = (folder / name).read_bytes()
                break
            except FileNotFoundError:
                if _names(path, name):
                    raise
                # a save came in between, and took the old file away
        if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
            raise StoreError(f"{folder / name} is damaged: its checksum is not the one in {path}")
        tensors = load(content)
        anchors = [_example(index, row, tensors) for index, row in enumerate(manifest["anchors"])]
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise StoreError(f"no saved anchors: {error.filename} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise StoreError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return anchors, {name[len(_EXTRA) :]: t for name, t in tensors.items() if name.startswith(_EXTRA)}


def _example(index: int, row: dict[str, Any], tensors: dict[str, Tensor]) -> Saved:
    base_keys, base_values, true_keys, true_values = (tensors[f"{index}.{part}"] for part in _PARTS)
    example = Example(
        KVBlock(base_keys, base_values),
        KVBlock(true_keys, true_values),
        tensors.get(f"{index}.embedding"),
        float(row["weight"]),
        int(row["offset"]),
    )
    return Slot(str(row["agent"]), str(row["place"])), example, int(row["hits"])


def _names(manifest: Path, data: str) -> bool:
    """Whether a manifest names this data file."""
    return manifest.exists() and data in manifest.read_text(encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

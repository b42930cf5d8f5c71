"""The model cache: converted models as folders in the user's cache.

A folder appears in the cache by one rename after its last byte was written, so a folder that is there is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ModelError
from ..files import file_sha256
from ..log import get_logger

logger = get_logger(__name__)


MANIFEST = "kvcomm.json"


CONVERTER = 1  # raise it when the same GGUF would give another folder


WeightDType = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A converted model in the cache.

    Attributes:
        name: what to pass to `load_model`: the hub id of the default model, or the folder.
        folder: where its safetensors, config and tokenizer are.
        source: the GGUF file, or the distribution, that it was made from.
        source_sha256: hex digest of that GGUF file.
        dtype: of the stored weights.
        size: bytes of all its files.
    """

    name: str
    folder: Path
    source: str
    source_sha256: str
    dtype: str
    size: int


def cache_root() -> Path:
    """`$KVCOMM_CACHE`, else `$XDG_CACHE_HOME/kvcomm`, else `~/.cache/kvcomm`; not created here."""
    if own := os.environ.get("KVCOMM_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "kvcomm"
    return Path.home() / ".cache" / "kvcomm"


def cached_folder(stem: str, identity: str, dtype: WeightDType) -> Path:
    """Where the conversion of the file with that identity is, or will be."""
    key = hashlib.sha256(f"{identity}|{dtype}|{CONVERTER}".encode()).hexdigest()[:16]
    return cache_root() / "models" / f"{re.sub(r'[^a-z0-9.]+', '-', stem.lower()).strip('-')}-{key}"


def is_complete(folder: Path) -> bool:
    """Whether a conversion was finished there; cheap, reads no weights."""
    return (folder / MANIFEST).is_file()


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Run `build` on a scratch folder and rename that to `target`; at most one process builds at a time.

    Raises:
        ModelError: the cache folder cannot be written.
    """
    from filelock import FileLock

    if is_complete(target):
        return target
    scratch = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if is_complete(target):  # another process was first
                return target
            for leftover in (scratch, target):  # of a process that was killed, or damaged by hand
                shutil.rmtree(leftover, ignore_errors=True)
            scratch.mkdir()
            try:
                build(scratch)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        if isinstance(error, ModelError):  # ModelNotFoundError is an OSError too
            raise
        raise ModelError(f"cannot write {target.parent}: {error}; KVCOMM_CACHE names another place") from error
    return target


def verify(folder: Path) -> list[str]:
    """Compare every file of a converted model with the manifest; one line per problem, none when whole."""
    try:
        files: dict[str, dict[str, Any]] = _manifest(folder)["files"]
        expected = {name: str(entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read: {error!r}"]
    problems = []
    for name, sha256 in expected.items():
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif file_sha256(folder / name) != sha256:
            problems.append(f"{name} differs from what was written")
    return problems


def list_cached() -> list[CachedModel]:
    """Every converted model in the cache, by name; a damaged manifest is skipped with a warning."""
    found = []
    for path in sorted((cache_root() / "models").glob(f"[!.]*/{MANIFEST}")):
        try:
            entry = _manifest(path.parent)
            size = sum(file["bytes"] for file in entry["files"].values())
            found.append(
                CachedModel(entry["name"], path.parent, entry["source"], entry["source_sha256"], entry["dtype"], size)
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("skipping %s: its manifest cannot be read (%r)", path.parent, error)
    return sorted(found, key=lambda model: model.name)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest

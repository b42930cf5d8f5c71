"""GGUF files, dequantised once into safetensors folders kept in the user's cache.

Reading a GGUF file takes 15-40 s, reading the folder 2-8 s. A folder appears in the cache by one
rename after its last byte was written, so a folder that is there is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import ModelError, ModelNotFoundError, UnsupportedModelError

logger = logging.getLogger(__name__)

MANIFEST = "kvcomm.json"
CONVERTER = 1  # raise it when the same GGUF would give another folder
WeightDType = Literal["bfloat16", "float16", "float32"]

_BLOCK = 1 << 20  # bytes


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


def convert_gguf(path: str | os.PathLike[str], *, dtype: WeightDType = "bfloat16") -> Path:
    """Dequantise a GGUF file into a cached safetensors folder, or find the one made before.

    Weights are stored in bfloat16 unless asked: what a 4- to 8-bit block dequantises to is itself
    known to less than bfloat16's rounding, and the folder is half the size. Ask for float32 to keep
    the dequantised values to the bit.

    A file is known again by its size, modification time and sampled content, so a second call costs
    milliseconds; a moved file is known again, a copied one is converted again.

    Raises:
        ModelNotFoundError: no such file.
        ModelError: not a GGUF file, damaged, or the cache folder cannot be written.
        UnsupportedModelError: transformers cannot read GGUF files of that architecture.
    """
    source, target = _conversion(path, dtype)
    return build_once(target, lambda folder: dequantise(source, folder, dtype, name=str(target), origin=str(source)))


def converted(path: str | os.PathLike[str], *, dtype: WeightDType = "bfloat16") -> Path | None:
    """The folder that `convert_gguf` made of a file before; `None` if it did not.

    Raises:
        ModelNotFoundError: no such file.
    """
    target = _conversion(path, dtype)[1]
    return target if is_complete(target) else None


def _conversion(path: str | os.PathLike[str], dtype: WeightDType) -> tuple[Path, Path]:
    """The file, and where its conversion is or will be."""
    source = Path(path).expanduser().resolve()
    if not source.is_file():
        raise ModelNotFoundError(f"no GGUF file at {source}")
    return source, cached_folder(source.stem, _sampled_digest(source), dtype)


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


def dequantise(source: Path, folder: Path, dtype: WeightDType, *, name: str, origin: str) -> None:
    """Write the model and tokenizer in `source` to `folder`, the manifest last.

    Raises:
        ModelError, UnsupportedModelError: as `convert_gguf`.
    """
    with source.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{source} is not a GGUF file: it does not begin with the letters GGUF")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"gguf_file": source.name}
    try:
        # the GGUF reader draws a bar that no setting of transformers turns off
        with quiet(f"converting {source.name} (once)"), redirect_stderr(io.StringIO()):
            AutoTokenizer.from_pretrained(source.parent, **where).save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(
                source.parent,
                dtype=getattr(torch, dtype),
                quantization_config=GgufConfig(dequantize=True),
                **where,
            )
            # the weights are plain by now; transformers refuses to save them while these say otherwise
            model.hf_quantizer = None  # type: ignore[assignment]
            model.is_quantized = False  # type: ignore[assignment]
            vars(model.config).pop("quantization_config", None)
            model.save_pretrained(folder)
    except Exception as error:  # a damaged file makes the parsers below fail in any way at all
        if isinstance(error, OSError) and error.errno:  # the disk, not the file
            raise
        if isinstance(error, NotImplementedError) or "not supported" in str(error):
            raise UnsupportedModelError(f"{source.name}: {error}") from error
        raise ModelError(f"{source} cannot be read as GGUF: {error!r}") from error
    files = sorted(file for file in folder.iterdir() if file.is_file())
    manifest = {
        "name": name,
        "source": origin,
        "source_sha256": file_sha256(source),
        "dtype": dtype,
        "converter": CONVERTER,
        "files": {file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in files},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


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


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def quiet(what: str) -> Iterator[None]:
    """One spinner on a terminal's stderr, one log line elsewhere, instead of transformers' bars."""
    from transformers.utils import logging as hf_logging

    had_bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        if sys.stderr.isatty():
            from rich.console import Console

            with Console(file=sys.stderr).status(what):
                yield
        else:
            logger.info("%s", what)
            yield
    finally:
        if had_bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _sampled_digest(path: Path) -> str:
    """Identity of a large file in milliseconds: size, time, its head (all metadata) and 16 samples."""
    stat = path.stat()
    digest = hashlib.sha256(f"{stat.st_size}|{stat.st_mtime_ns}".encode())
    with path.open("rb") as file:
        digest.update(file.read(_BLOCK))
        for part in range(1, 17):
            file.seek(max(0, stat.st_size * part // 16 - 4096))
            digest.update(file.read(4096))
    return digest.hexdigest()

"""GGUF files, dequantised once into safetensors folders kept in the user's cache.

Reading a GGUF file takes 15-40 s, reading the folder 2-8 s. A folder appears in the cache by one
rename after its last byte was written, so a folder that is there is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from ..errors import ModelError, ModelNotFoundError, UnsupportedModelError
from ..files import file_sha256
from .cache import CONVERTER, MANIFEST, WeightDType, build_once, cached_folder, is_complete
from .quiet import quiet

_BLOCK = 1 << 20  # bytes


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

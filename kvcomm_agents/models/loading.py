"""Model name → local folder → weights, shared by everything in the process.

A name is `default` or the default model's hub id, a local folder, a GGUF file, or any hub id.
Importing this is cheap: torch and transformers come in with the first load.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args
from weakref import WeakValueDictionary

from ..config import DType
from ..errors import ConfigError, ModelError, ModelNotFoundError, UnsupportedModelError
from ..forks import at_fork
from ..log import get_logger
from .cache import CachedModel, list_cached, verify
from .gguf import convert_gguf
from .quiet import quiet
from .resolve import DEFAULT_MODEL, fetch_default, not_found, resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "DEFAULT_MODEL",
    "CachedModel",
    "LoadedModel",
    "convert_gguf",
    "fetch_default",
    "list_cached",
    "load_model",
    "load_tokenizer",
    "resolve",
    "verify",
]

logger = get_logger(__name__)

_PROBE = "The  quick-brown fox\n\tjumps 12345 über 'lazy' dogs; 東京 is not <|a|> token."


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LoadedModel:
    """A causal language model ready to run: eval mode, no gradients.

    Attributes:
        name: as the user gave it.
        folder: local folder, or the hub id where transformers found it itself.
        model: on its device, in its dtype.
        tokenizer: not to be reconfigured (padding, truncation), since it is shared too.
        fingerprint: hex; equal for equal weights, config, tokenizer and dtype, on any device or path.
    """

    name: str
    folder: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    @classmethod
    def of(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str = "", folder: str = ""
    ) -> LoadedModel:
        """Wrap a model that the caller built; switches it to eval mode and off gradients.

        Raises:
            UnsupportedModelError: no causal language model.
        """
        kind = type(model).__name__
        if kind not in _causal_classes() or model.config.is_encoder_decoder:  # a class of the caller's own, or none
            require_causal(model.config, name or kind)
        model.train(False).requires_grad_(False)
        return cls(name or type(model).__name__, folder, model, tokenizer, _fingerprint(model, tokenizer))


_models: WeakValueDictionary[tuple[str, str, str], LoadedModel] = WeakValueDictionary()
_tokenizers: WeakValueDictionary[str, PreTrainedTokenizerBase] = WeakValueDictionary()
_locks: defaultdict[object, threading.Lock] = defaultdict(threading.Lock)
_locks_guard = threading.Lock()


def load_model(name: str | os.PathLike[str], *, device: str = "auto", dtype: DType = "auto") -> LoadedModel:
    """Load a model, or share the one that this process holds; concurrent first loads load once.

    Weights are freed when the last holder of the `LoadedModel` lets go.

    Args:
        name: see the module's docstring.
        device: `auto` (CUDA if there is one, else CPU) or any torch device string.
        dtype: `auto` is the checkpoint's own on CUDA, float32 elsewhere.

    Raises:
        ModelNotFoundError: as `resolve`, or the hub could not be reached.
        UnsupportedModelError: an encoder-decoder, or anything else that is no causal language model.
        ConfigError: no such device or dtype.
        ModelError: the files there cannot be loaded.
    """
    if dtype not in get_args(DType):
        raise ConfigError(f"dtype {dtype!r} is none of {get_args(DType)}")
    place = torch_device(device)
    if chosen_dtype(dtype, place)[0] == "float32":
        dtype = "float32"
    folder = str(resolve(name))
    key = (folder, str(place), dtype)
    with _lock(key):
        if (shared := _models.get(key)) is not None:
            return shared
        tokenizer = load_tokenizer(name)
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        started = time.perf_counter()
        with quiet(f"loading {name}"), as_model_errors(os.fspath(name), folder):
            require_causal(AutoConfig.from_pretrained(folder), os.fspath(name))
            # attn_implementation is left out: transformers then takes sdpa where the architecture has it
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto" if dtype == "auto" else getattr(torch, dtype), device_map=place
            )
        loaded = LoadedModel.of(model, tokenizer, name=os.fspath(name), folder=folder)
        _models[key] = loaded
    logger.info(  # without the lock: a handler may ask for the model
        "loaded %s: %.0f M parameters, %s on %s, in %.1f s",
        name,
        loaded.model.num_parameters() / 1e6,
        str(model.dtype).removeprefix("torch."),
        place,
        time.perf_counter() - started,
    )
    return loaded


def load_tokenizer(name: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer without its weights, shared like `load_model`'s.

    Raises:
        ModelNotFoundError, ModelError: as `load_model`.
    """
    folder = str(resolve(name))
    with _lock(folder):
        if (shared := _tokenizers.get(folder)) is not None:
            return shared
        from transformers import AutoTokenizer

        with as_model_errors(os.fspath(name), folder):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        _tokenizers[folder] = tokenizer
        return tokenizer


def torch_device(device: str) -> torch.device:
    """The device of that name; `auto` is CUDA if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is no torch device: {error}") from error
    if place.type == "cuda":
        count = torch.cuda.device_count()
        if (place.index or 0) >= count:
            raise ConfigError(f"device {device!r} was asked for, and torch sees {count} CUDA devices")
        place = torch.device("cuda", place.index or 0)
    return place


def chosen_dtype(dtype: DType, device: torch.device, stored: object = None) -> tuple[str, str]:
    """What a model is run in, and why.

    Args:
        dtype: as configured.
        device: where it runs.
        stored: the checkpoint's own, if that is known.
    """
    if dtype != "auto":
        return dtype, "asked for"
    if device.type != "cuda":
        return "float32", "auto: float32 everywhere but on CUDA"
    return str(stored or "auto").removeprefix("torch."), "auto: the checkpoint's own, on CUDA"


def _lock(key: object) -> threading.Lock:
    with _locks_guard:
        return _locks[key]


def _free_locks() -> None:
    """In a forked child, whoever held one is not there."""
    global _locks_guard
    _locks_guard = threading.Lock()
    _locks.clear()


at_fork(in_child=_free_locks)


@contextmanager
def as_model_errors(name: str, folder: str) -> Iterator[None]:
    """What transformers raises while it reads a model, as our errors."""
    from safetensors import SafetensorError

    try:
        yield
    except ModelError:
        raise
    except (SafetensorError, RuntimeError) as error:  # damaged, of other shapes, or no memory for it
        raise ModelError(f"{name}: {error}") from error
    except OSError as error:
        if os.path.isdir(folder):
            raise ModelError(f"{name}: {error}") from error
        raise ModelNotFoundError(not_found(name)) from error
    except ValueError as error:  # transformers' word for an architecture it does not know
        raise UnsupportedModelError(f"{name}: {error}") from error


def require_causal(config: Any, name: str) -> None:
    """Refuse a model that is none, by its config.

    Raises:
        UnsupportedModelError: an encoder-decoder, or anything else that is no causal language model.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder; KV is reused in decoder-only models")
    # Checkpoints of models that also see name the class that does; their text model is one of these.
    known = _causal_classes() | set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
    classes = config.architectures or []
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (classes and not known.intersection(classes)):
        raise UnsupportedModelError(f"{name} ({', '.join(classes) or config.model_type}) is no causal language model")


def _causal_classes() -> set[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


def _fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the config, of 64 values of every tensor, and of how the tokenizer cuts a probe text."""
    import torch

    volatile = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures")
    config = {key: value for key, value in model.config.to_dict().items() if key not in volatile}
    described: list[object] = [config]
    samples = []
    for name, tensor in sorted(model.state_dict().items()):
        described.append((name, list(tensor.shape), str(tensor.dtype)))
        flat = tensor.reshape(-1)
        samples.append(flat[:: max(1, flat.numel() // 64)][:64].contiguous().view(torch.uint8))
    digest = _digest([*described, *_tokenization(tokenizer)])
    digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex; equal for tokenizers that cut text alike, as far as a sample of their tokens and a probe text tell."""
    return _digest(_tokenization(tokenizer)).hexdigest()


def _tokenization(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    tokens = range(0, len(tokenizer), max(1, len(tokenizer) // 512))
    return [len(tokenizer), tokenizer.convert_ids_to_tokens(list(tokens)), tokenizer(_PROBE)["input_ids"]]


def _digest(described: list[object]) -> hashlib.blake2b:
    return hashlib.blake2b(json.dumps(described, sort_keys=True, default=str).encode(), digest_size=16)

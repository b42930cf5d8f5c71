"""TransformersBackend: executes plans on a transformers model, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from rich.filesize import decimal

from ...backend import Capabilities, Generation, Handle, Positions
from ...errors import DeviceMemoryError
from ...kv.block import KVBlock
from ...kv.layout import KVLayout
from ...log import get_logger
from ...models.loading import LoadedModel
from ...plan import PrefillPlan
from .batching import Batch
from .constraint import Matcher
from .packing import pack
from .runner import Runner
from .sampling import Sampler
from .scoring import ChunkedScoring
from .sequence import RunningSequence

logger = get_logger(__name__)

T = TypeVar("T")

_FIRST_RESERVE = 256  # tokens of output to make room for at once; more when they come


class TransformersBackend:
    """See `backend.Backend`.

    Args:
        loaded: the model.
        chunk: tokens of a prompt that are computed at once while others wait.
        max_context: tokens a context may hold.
        graphs: whether small passes are recorded, where CUDA is.
        relieve: frees stored KV for a request that finds no memory; returns the bytes freed.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        chunk: int = 128,
        max_context: int | None = None,
        graphs: bool = True,
        relieve: Callable[[], int] = lambda: 0,
    ) -> None:
        self.loaded, self.chunk, self._relieve = loaded, chunk, relieve
        self.max_context = min(context_limit(loaded), max_context or context_limit(loaded))
        self.runner = Runner(loaded.model, graphs=graphs, max_context=self.max_context)
        self._batch = Batch(self.runner, chunk, self._with_room)
        self._sequences: list[RunningSequence] = []
        self._eos = _eos(loaded)

    @property
    def layout(self) -> KVLayout:
        """What the model's KV looks like."""
        return self.runner.layout

    @property
    def capabilities(self) -> Capabilities:
        """Any plan at level `full`, prefixes alone at `exact`, and none but dense ones at `plain`."""
        return Capabilities(scattered=self.layout.level == "full", capture=self.layout.level != "plain")

    @property
    def has_room(self) -> bool:
        """Whether prompts wait for less than the next step computes."""
        return sum(sequence.left for sequence in self._sequences) < self.chunk

    @property
    def together(self) -> bool:
        """Whether generations share forward passes."""
        return self.runner.ragged

    @property
    def spare_bytes(self) -> int | None:
        """Bytes that caches may hold while they wait; `None` is no limit."""
        return self.runner.spare_budget

    @spare_bytes.setter
    def spare_bytes(self, nbytes: int | None) -> None:
        self.runner.spare_budget = nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of caches that wait for their next use."""
        return self.runner.spare_bytes

    def start(self, generation: Generation) -> RunningSequence:
        """Place what the plan places; what is computed waits for `step`."""
        matcher = self._matcher(generation)
        capacity = len(generation.ids) + min(generation.max_tokens, _FIRST_RESERVE)
        cache = self._with_room(lambda: self.runner.open(capacity))
        try:
            assembled = self._with_room(lambda: self.runner.assemble(cache, generation.plan))
            sampler = Sampler(generation.params, generation.ids, self.runner.device)
            sequence = RunningSequence(generation, cache, sampler, self._eos, matcher)
        except BaseException:
            self.runner.close(cache)
            raise
        sequence.times.assemble_s = assembled
        self._sequences.append(sequence)
        return sequence

    def step(self) -> None:
        """One forward pass over all that goes on."""
        self._batch.step(self._sequences)
        self._sequences = [sequence for sequence in self._sequences if sequence.going]

    def cancel(self, handle: Handle) -> None:
        """Compute no more of it."""
        self._sequences = [sequence for sequence in self._sequences if sequence is not handle]

    def capture(self, handle: Handle, start: int, stop: int) -> KVBlock:
        """A copy of the KV of positions `start:stop`, keys as cached."""
        return _own(handle).context().capture(start, stop)

    def close(self, handle: Handle) -> None:
        """Give its context back."""
        self.cancel(handle)
        sequence = _own(handle)
        cache, sequence.cache = sequence.cache, None
        sequence.rows = []
        if cache is not None:
            self.runner.close(cache)

    def score(
        self, ids: Sequence[int], output: Sequence[int], plan: PrefillPlan, chunk: int | None = None
    ) -> ChunkedScoring:
        """Prepare a prompt and an output to be run in chunks."""
        size = min(chunk or self.chunk, self.chunk)
        return ChunkedScoring(self.runner, ids, output, plan, size, self._with_room)

    def prefill_texts(
        self, texts: Sequence[Sequence[int]], first: int, positions: Positions = "reset"
    ) -> list[KVBlock]:
        """The un-rotated KV of each text, from one forward pass."""
        row = pack(texts, first, positions)
        return self._with_room(lambda: self.runner.prefill_pack(row))

    def free_memory(self) -> int:
        """Free caches that wait for their next use."""
        freed = self.runner.spare_bytes
        self.runner.drop_spare()
        if self.runner.device.type == "cuda":
            torch.cuda.empty_cache()
        return freed

    def _matcher(self, generation: Generation) -> Matcher | None:
        if generation.constraint is None:
            return None
        vocabulary = int(self.loaded.model.config.get_text_config(decoder=True).vocab_size)
        return Matcher(
            generation.constraint, generation.tools, generation.format, self.loaded.tokenizer, vocabulary, self._eos
        )

    def _with_room(self, work: Callable[[], T]) -> T:
        """Do it; if the device has no memory, free what can be freed and try once more.

        Raises:
            DeviceMemoryError: no room even then.
        """
        try:
            return work()
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
        logger.warning("out of device memory: evicting stored KV and trying once more")
        freed = self._relieve() + self.free_memory()
        logger.info("%s of stored KV evicted", decimal(freed))
        try:
            return work()
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            raise DeviceMemoryError(
                "no device memory for this request even after evicting all stored KV;"
                " send a shorter prompt, lower max_tokens or set a smaller max_context"
            ) from error


def context_limit(loaded: LoadedModel) -> int:
    """Tokens the model's context holds by its config."""
    return getattr(loaded.model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 1 << 20


def _eos(loaded: LoadedModel) -> frozenset[int]:
    """The tokens that end an answer: of the model's generation settings, else of its tokenizer."""
    eos = loaded.model.generation_config.eos_token_id if loaded.model.generation_config else None
    eos = loaded.tokenizer.eos_token_id if eos is None else eos
    return frozenset([eos] if isinstance(eos, int) else eos or ())


def _own(handle: Handle) -> RunningSequence:
    if not isinstance(handle, RunningSequence):
        raise TypeError(f"not a generation of this engine: {type(handle).__name__}")
    return handle


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)

"""Inference: takes requests from messages to tokens on one model. Single-threaded: the worker's own."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from rich.filesize import decimal

from ..backends.transformers.batching import Batch
from ..backends.transformers.constraint import Matcher
from ..backends.transformers.runner import Runner
from ..backends.transformers.sampling import Sampler
from ..backends.transformers.sequence import RunningSequence
from ..config import EngineConfig
from ..correction.embedding import Embedder, make_embedder
from ..errors import ContextLengthError, DeviceMemoryError, PromptError, SavedMemoryError
from ..kv.prefix_cache import PrefixCache
from ..kv.span_library import Tagged
from ..models.loading import LoadedModel, tokenizer_fingerprint
from ..observe.telemetry import Telemetry
from ..planning.namespace import Namespace
from ..planning.policy import Reuse
from ..request import Completion, Message, Request
from ..text.detokenizer import Detokenizer, StopStrings
from ..text.prompt import PromptRenderer, Rendered, agent_name
from .job import Job
from .warmup import WarmOrder, Warmup

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_RESERVE = 256  # tokens of output to make room for at once; more when they come


class EngineCore:
    """The parts of an engine, and how a request passes through them.

    Args:
        loaded: the model.
        config: budgets and policy.
        telemetry: told of every answer and audit.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, telemetry: Telemetry | None = None) -> None:
        self.loaded, self.config, self.telemetry = loaded, config, telemetry or Telemetry()
        self._made_embedder: Embedder | None = None
        self.runner = Runner(loaded.model, graphs=config.cuda_graphs)
        if config.reuse.mode == "corrected":
            self.runner.layout.require_movable()
        self.batch = Batch(self.runner, config.prefill_chunk, self._with_room)
        self.store = PrefixCache(self.runner.device, config.device_cache_bytes, config.host_cache_bytes)
        self.reuse = Reuse(self.runner, self.store, config.reuse, self._remembered, self.telemetry.audit)
        self.renderer = PromptRenderer(loaded.tokenizer, config.control_strings)
        self.max_context = max_context(loaded, config)
        reuse = config.reuse
        self.warmup = Warmup(self.runner, self.reuse.memory, reuse.pack_tokens, reuse.pack_positions, self.max_context)
        self._vocabulary = int(loaded.model.config.get_text_config(decoder=True).vocab_size)
        eos = loaded.model.generation_config.eos_token_id if loaded.model.generation_config else None
        eos = loaded.tokenizer.eos_token_id if eos is None else eos
        self._eos = frozenset([eos] if isinstance(eos, int) else eos or ())
        logger.info("%s", self)

    def __str__(self) -> str:
        layout, config = self.runner.layout, self.config
        moved = "can be moved" if layout.rope is not None else f"cannot be moved ({layout.immovable})"
        bound = f", mean KL of {config.reuse.max_divergence} at most" if config.reuse.mode == "auto" else ""
        return (
            f"serving {self.loaded.name} on {layout.device} in {str(layout.dtype).removeprefix('torch.')}:"
            f" {decimal(layout.token_bytes)} of KV a token, which {moved}; contexts of {self.max_context} tokens,"
            f" up to {config.max_concurrent} {'together' if self.runner.ragged else 'in turn'};"
            f" reuse {config.reuse.mode}{bound}; prefixes in {decimal(config.device_cache_bytes)} on the device"
            f" and {decimal(config.host_cache_bytes)} on the host; memory kept in {config.memory_folder or 'no folder'}"
        )

    def begin(self, job: Job) -> RunningSequence:
        """Plan a request's prefill and place what is placed; what is computed waits for `step`.

        Raises:
            PromptError, ContextLengthError, DeviceMemoryError: this request cannot be served.
        """
        started = job.begun = time.perf_counter()
        request, params = job.request, job.request.params
        if request.prompt_ids is None:
            rendered = self.renderer.segments(request.messages, request.tools, request.constraint)
        else:
            rendered = Rendered(request.prompt_ids, ())
        ids, cuts = rendered.ids, [edge for part in rendered.parts for edge in (part.start, part.stop)]
        said = request.messages
        tagged = [Tagged(one.start, one.stop, tag) for one in rendered.parts for tag in said[one.message].spans]
        room = self.max_context - len(ids)
        if not ids:
            raise PromptError("the prompt is empty; it needs at least one token")
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens and the context holds {self.max_context}, one of them for the"
                " answer; shorten the messages or raise max_context if the model allows it"
            )
        if (largest := max(ids)) >= self._vocabulary:
            raise PromptError(f"prompt_ids hold {largest}, and the model's vocabulary ends at {self._vocabulary - 1}")
        matcher = self._matcher(request)
        matching = time.perf_counter()
        agent = request.agent or agent_name(request.messages, ids)
        choice = self.reuse.choose(ids, agent, request.namespace, request.reuse, cuts, tagged)
        matched = time.perf_counter()
        max_tokens = min(params.max_tokens or room, room)
        cache = self._with_room(lambda: self.runner.open(len(ids) + min(max_tokens, _FIRST_RESERVE)))
        try:
            assembled = self._with_room(lambda: self.runner.assemble(cache, choice.plan))
            job.running = RunningSequence(
                job=job,
                agent=agent,
                ids=ids,
                choice=choice,
                cache=cache,
                sampler=Sampler(params, ids, self.runner.device),
                detokenizer=Detokenizer(self.loaded.tokenizer, keep_special=bool(request.tools)),
                stops=StopStrings(params.stop),
                max_tokens=max_tokens,
                eos=self._eos,
                seconds={
                    "queue_s": started - job.submitted,
                    "render_s": matching - started,
                    "match_s": matched - matching,
                    "assemble_s": assembled,
                    "prefill_s": 0.0,
                },
                begun=time.perf_counter(),
                matcher=matcher,
                logits=[] if self.reuse.wants_logits(choice, agent, request.namespace) else None,
            )
            return job.running
        except BaseException:
            self.runner.close(cache)
            raise

    def step(self, running: Sequence[RunningSequence]) -> list[tuple[RunningSequence, Exception]]:
        """Take requests one forward pass on: a token each, or a piece of the prompt. Returns those that failed."""
        return self.batch.step(running)

    def full(self, running: Sequence[RunningSequence]) -> bool:
        """Whether prompts wait for more than the next step computes."""
        return sum(one.left for one in running) >= self.config.prefill_chunk

    def finish(self, running: RunningSequence) -> None:
        """Answer a finished request, then remember its KV."""
        if running.finished is None:
            raise RuntimeError("finish() before the request has finished")
        if not running.stops.hit:
            running.tell(running.stops.push(running.detokenizer.flush()) + running.stops.flush())
        report = running.report(self.loaded.name, running.finished)
        running.job.context.run(self.telemetry.request, report)
        said = running.output[: max(running.cache.length - len(running.ids), 0)]
        spans = self.reuse.tags(running.choice, said, running.agent, running.job.request.namespace)
        running.job.emit(Completion("".join(running.text), tuple(running.output), running.finished, report, spans))
        self.release(running)

    def release(self, running: RunningSequence) -> None:
        """Remember what was computed so far and give the cache back. For cancelled requests too: their KV is good."""
        try:
            self.reuse.remember(
                running.choice,
                running.ids,
                running.output,
                running.agent,
                running.job.request.namespace,
                running.cache,
                running.logits or (),
            )
        finally:
            self.runner.close(running.cache)

    def expect(self, texts: Sequence[str], namespace: str, *, warm: bool = False) -> None:
        """Have what is known of texts corrected for its likely readers, and with `warm` the other texts warmed."""
        ids = [self.renderer.content_ids(text) for text in texts]
        unknown = [one for one in ids if not self.reuse.expect(one, namespace) and len(one) < self.max_context]
        if warm and unknown and self.runner.layout.rope is not None:
            first = self.renderer.ids((Message("user", "."),))[0]
            self.warmup.submit(WarmOrder(unknown, first, namespace))

    def forget(self, namespace: str | None = None) -> None:
        """Drop what a namespace has stored and learned, or all of it."""
        logger.info("forgetting %s", "everything" if namespace is None else f"namespace {namespace}")
        self.warmup.drop(namespace)
        self.store.clear(namespace)
        self.reuse.forget(namespace)

    def save(self) -> None:
        """Write what every namespace has learned to the configured folder."""
        if self.config.memory_folder is not None:
            for namespace, memory in self.reuse.memories():
                memory.save(self._folder(self.config.memory_folder, namespace))

    def close(self) -> None:
        """End what waits to be warmed, and save, if there is a folder to save to.

        A failure to save is logged: what was saved before is still whole.
        """
        self.warmup.close()
        try:
            self.save()
        except (SavedMemoryError, OSError):
            logger.exception("what was learned could not be saved")

    def _remembered(self, namespace: str) -> Namespace:
        """A namespace's memory, with what an earlier process saved of it if that is whole and of this model."""
        tokenizer = self.loaded.tokenizer
        memory = Namespace(
            self.config.reuse,
            self.loaded.fingerprint,
            self._embedder,
            lambda ids: str(tokenizer.decode(list(ids))),
            namespace,
            self.loaded.name,
            tokenizer_fingerprint(tokenizer),
        )
        if self.config.memory_folder is not None:
            folder = self._folder(self.config.memory_folder, namespace)
            try:
                memory.load(folder)
            except SavedMemoryError as error:
                logger.error("starting with an empty memory: %s", error)
        return memory

    def _folder(self, root: str, namespace: str) -> Path:
        name = hashlib.sha256(f"{self.loaded.fingerprint}\n{namespace}".encode()).hexdigest()[:16]
        return Path(root).expanduser() / name

    def _embedder(self) -> Embedder:
        if self._made_embedder is None:
            self._made_embedder = make_embedder(self.config.embedder, self.loaded.model, self.loaded.tokenizer)
        return self._made_embedder

    def _matcher(self, request: Request) -> Matcher | None:
        if request.constraint is None:
            return None
        return Matcher(
            request.constraint,
            request.tools,
            self.renderer.format,
            self.loaded.tokenizer,
            self._vocabulary,
            self._eos,
        )

    def _with_room(self, work: Callable[[], T]) -> T:
        """Do it; if the device has no memory, evict and try once more.

        Raises:
            DeviceMemoryError: no room even then.
        """
        try:
            return work()
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
        logger.warning("out of device memory: evicting stored KV and trying once more")
        self.runner.drop_spare()
        logger.info("%s of stored KV evicted", decimal(self.store.release_device()))
        if self.runner.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            return work()
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            raise DeviceMemoryError(
                "no device memory for this request even after evicting all stored KV;"
                " send a shorter prompt, lower max_tokens or set a smaller max_context"
            ) from error


def max_context(loaded: LoadedModel, config: EngineConfig) -> int:
    """Tokens a context may hold: the model's limit, or the configured one if that is lower."""
    limit = getattr(loaded.model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 1 << 20
    return min(limit, config.max_context or limit)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)

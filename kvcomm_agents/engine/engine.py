"""Engine: requests in, text out, on one model, from any thread or event loop.

This is the face of it. Requests wait in the queue of the one thread that owns the model (`worker`), which takes
them through `core`. Sync and async callers are served by the same path.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from functools import cached_property
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from ..backends.transformers.backend import context_limit
from ..checks import any_texts, checked, identity, instance
from ..config import EngineConfig
from ..errors import ConfigError, EngineClosedError
from ..forks import at_fork
from ..log import get_logger
from ..models.loading import LoadedModel, load_model, load_tokenizer
from ..observe.report import RequestReport
from ..observe.report_file import ReportFile
from ..observe.stats import Account, EngineStats, IdleStats, Learned
from ..observe.telemetry import Observer, Telemetry
from ..planning.learned import learned
from ..request import Completion, Message, Request, TextChunk, ToolSpec
from ..text.prompt import PromptRenderer
from ..text.tool_format import CallFormat
from .core import EngineCore, write_all
from .job import Event, Job, Sink
from .warmup import WarmReport, WarmWork
from .worker import Worker

logger = get_logger(__name__)

T = TypeVar("T")


class Engine:
    """Serves requests on one model, from any thread or event loop. Making one is instant.

    Args:
        model: hub id, local folder or GGUF file, loaded with the first request; or a loaded model.
        config: see `EngineConfig`.

    Example:
        >>> engine = Engine("HuggingFaceTB/SmolLM2-135M-Instruct")
        >>> engine.generate(Request((Message("user", "Hello"),))).text
    """

    def __init__(self, model: str | LoadedModel, config: EngineConfig = EngineConfig()) -> None:
        self.config = config
        self.name = model if isinstance(model, str) else model.name
        self._loaded = None if isinstance(model, str) else model
        self._telemetry = Telemetry()
        if config.report_file is not None:
            self.observe(ReportFile(config.report_file))
        self._worker = Worker(self._make, self.name, self._telemetry.close)
        self._process = os.getpid()
        self._at_exit = weakref.WeakMethod(self._exit)
        atexit.register(_call, self._at_exit)

    def submit(self, request: Request, sink: Sink) -> Job:
        """Queue a request; its events reach `sink` on the worker's thread, a `Completion` or an exception last.

        Raises:
            ConfigError: it is no `Request`.
            EngineClosedError: after `close`.
            EngineForkedError: in a child that cannot use the engine: when the process was forked, it was in the
                middle of something, or had its weights on an accelerator.
        """
        checked("request", request, instance(Request))
        job = Job(request, lambda event: self._tell(job, sink, event), clock=self._worker.idle_seconds)
        self._worker.submit(job)
        return job

    def generate(self, request: Request) -> Completion:
        """The whole answer. Blocks; raises what went wrong (see `errors`)."""
        for event in self.stream(request):
            if isinstance(event, Completion):
                return event
        raise EngineClosedError("the request ended without an answer")

    def stream(self, request: Request) -> Iterator[TextChunk | Completion]:
        """The answer as it is written; a `Completion` comes last. Closing the iterator cancels the request."""
        self._worker.check_waiting()
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        job = self.submit(request, events.put)
        try:
            while True:
                job.check_process()
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Completion):
                    return
        finally:
            job.cancel()

    async def agenerate(self, request: Request) -> Completion:
        """As `generate`; cancelling the task cancels the request."""
        async with aclosing(self.astream(request)) as events:
            async for event in events:
                if isinstance(event, Completion):
                    return event
        raise EngineClosedError("the request ended without an answer")

    async def astream(self, request: Request) -> AsyncGenerator[TextChunk | Completion, None]:
        """As `stream`; closing the iterator or cancelling the task cancels the request."""
        self._worker.check_waiting()
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()
        job = self.submit(request, lambda event: _post(loop, events, event))
        try:
            while True:
                job.check_process()
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Completion):
                    return
        finally:
            job.cancel()

    def submit_warm(self, texts: Sequence[str], namespace: str = "default") -> Future[WarmReport]:
        """Compute the KV of texts before any agent reads them, when the model has nothing else to do.

        They are then spans that the next prompts may place, corrected, as far as the guard lets them.
        Many are computed in one forward pass, behind a shared first token. A request that comes in
        between waits for one piece of `pack_tokens` at most.

        Args:
            texts: as prompts will hold them, in the order in which they will.
            namespace: whose they are.

        Returns:
            A future of what was done. It fails with `UnsupportedModelError` if the keys of this model
            cannot be moved, `ContextLengthError` if a text is longer than the context. Cancelling it
            drops what was not done yet.

        Raises:
            ConfigError: what was warmed could never be used in this reuse mode, or something is no text.
            EngineClosedError: after `close`.
        """
        if not self.config.reuse.learns:
            raise ConfigError(
                f"reuse mode {self.config.reuse.mode!r} never places what was computed outside of a prompt;"
                " to warm texts set mode='auto' or 'corrected'"
            )
        namespace = checked("namespace", namespace, identity)
        ids = [self._renderer.content_ids(text) for text in checked("texts", texts, any_texts)]
        work = WarmWork(ids, self.render((Message("user", "."),))[0], namespace)
        queued = self._worker.call(lambda core: core.warm(work))
        queued.add_done_callback(lambda done: work.fail(error) if (error := done.exception()) else None)
        return work.future

    def warm(self, texts: Sequence[str], namespace: str = "default") -> WarmReport:
        """As `submit_warm`, and wait until it is done."""
        self._worker.check_waiting()
        return self.submit_warm(texts, namespace).result()

    async def awarm(self, texts: Sequence[str], namespace: str = "default") -> WarmReport:
        """As `warm`; cancelling the task drops what was not done yet."""
        self._worker.check_waiting()
        # In a thread: the tokenizer may have to be loaded.
        submitted = asyncio.ensure_future(asyncio.to_thread(self.submit_warm, texts, namespace))
        try:
            future = await asyncio.shield(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(_drop_warm_up)
            raise
        return await asyncio.wrap_future(future)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, loaded without the weights."""
        return self._loaded.tokenizer if self._loaded else load_tokenizer(self.name)

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> tuple[int, ...]:
        """The prompt ids of a conversation.

        Raises:
            PromptError: the messages make no prompt.
        """
        return self._renderer.ids(messages, tools)

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> int:
        """Length of the rendered prompt, in tokens."""
        return len(self.render(messages, tools))

    @property
    def call_format(self) -> CallFormat:
        """How this model writes tool calls; `tools.CallParser` reads them by it."""
        return self._renderer.format

    @cached_property
    def _renderer(self) -> PromptRenderer:
        return PromptRenderer(self.tokenizer, self.config.control_strings)

    @property
    def max_context(self) -> int:
        """Tokens a prompt and its answer may hold together. Loads the model."""
        limit = context_limit(self.load())
        return min(limit, self.config.max_context or limit)

    def load(self) -> LoadedModel:
        """Load the weights now instead of with the first request."""
        if self._loaded is None:
            self._loaded = load_model(self.name, device=self.config.device, dtype=self.config.dtype)
        return self._loaded

    def expect(self, texts: Sequence[str], namespace: str = "default", *, warm: bool = False) -> None:
        """Say what prompts are about to hold. Returns at once; may be called from any thread.

        Spans in these texts that are known already are embedded, and corrected for the agents that usually
        read their like, before a prompt asks for it. No forward pass is spent on that. Nothing happens
        before the first request, or where nothing is learned.

        Args:
            texts: as prompts will hold them, alone or among other text.
            namespace: whose they are.
            warm: texts of which nothing is known are warmed, as by `submit_warm`.

        Raises:
            EngineClosedError: after `close`.
        """
        if self.config.reuse.learns and self._worker.core is not None:
            said, whose = checked("texts", texts, any_texts), checked("namespace", namespace, identity)
            self._worker.call(lambda core: core.expect(said, whose, warm=warm))

    @property
    def reports(self) -> tuple[RequestReport, ...]:
        """Reports of the last requests, failed ones too, oldest first."""
        return self._telemetry.reports

    def observe(self, observer: Observer) -> None:
        """Tell an observer of every request and audit from now on: one of `exporters`, or your own."""
        self._telemetry.observe(observer)

    @property
    def max_divergence(self) -> float:
        """The bound that the guard keeps: mean KL per token, in nats."""
        return self.config.reuse.max_divergence

    @property
    def waiting(self) -> int:
        """Requests in the queue that the worker has not taken yet."""
        return self._worker.waiting

    @property
    def stats(self) -> EngineStats:
        """What is held now: prefixes, and every part of the memory that `memory_bytes` divides."""
        core = self._worker.core
        if core is None:
            return EngineStats()
        prefixes = core.prefixes.stats()
        return EngineStats(prefixes.device_bytes, prefixes.host_bytes, prefixes.nodes, prefixes.tokens, core.memory())

    @property
    def learned(self) -> Learned:
        """What all namespaces have learned so far: spans, anchors, and how the guard's bound held."""
        core = self._worker.core
        return learned(namespace for _, namespace in core.namespaces) if core else Learned()

    @property
    def idle(self) -> IdleStats:
        """What was done when nobody waited, what it took, and what is left to do."""
        core = self._worker.core
        return core.idle.stats if core else IdleStats()

    def ledger(self, namespace: str | None = None) -> Account:
        """What reuse has saved and what hidden work has cost, in tokens: of a namespace, or of all."""
        core = self._worker.core
        return core.account(namespace) if core else Account()

    def forget(self, namespace: str | None = None) -> None:
        """Drop what a namespace has stored and learned and what was left to do for it, or all of it.

        In a sink or an observer, on the engine's own thread, it is done once that is through with what it is doing,
        and before anything else is served.
        """
        if self._worker.core:
            self._have_done(self._worker.call(lambda core: core.forget(namespace)))

    def save(self) -> None:
        """Write what was learned to `config.memory_folder`; `close` does this too.

        In a sink or an observer it is done afterwards, as with `forget`, and a failure is logged.

        Raises:
            ConfigError: no folder is configured.
            SavedMemoryError: it could not be written; what was saved before is still whole.
        """
        if self.config.memory_folder is None:
            raise ConfigError("there is nowhere to save to; set memory_folder in EngineConfig")
        if not self._worker.core:
            return
        if self._worker.is_current:
            self._have_done(self._worker.call(lambda core: core.save()))
        else:  # requests go on while files are written, or while another process keeps this one from writing
            write_all(self._worker.call(lambda core: core.snapshots()).result())

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until every request is answered and learned from; whether that came in time.

        Raises:
            EngineThreadError: in a sink or an observer, on the engine's own thread.
        """
        return self._worker.wait_idle(timeout_s)

    settle = wait_idle  # its name in 0.1

    def inspect(self, look: Callable[[EngineCore], T]) -> T:
        """What `look` sees of the engine's parts, on the thread that owns them, between two tokens.

        For tests and tools: parts may change from version to version, and what is changed there is at your risk.

        Raises:
            EngineThreadError: in a sink or an observer, on the engine's own thread.
        """
        self._worker.check_waiting()
        return self._worker.call(look).result()

    def close(self) -> None:
        """Stop the worker and free what it holds. Weights shared with other engines stay."""
        served = self._worker.core is not None
        self._worker.close()
        if served:
            logger.info("closed the engine of %s", self.name)
        atexit.unregister(self._at_exit)
        with _registry_lock:
            for key in [key for key, engine in _registry.items() if engine is self]:
                del _registry[key]

    def _exit(self) -> None:
        """The process ends. A child that never used the engine leaves it, and its observers, to the parent."""
        if self._worker.started or self._process == os.getpid():
            self.close()

    def _have_done(self, future: Future[None]) -> None:
        """Wait for what was called for. Its own thread does it next, and only says if it failed."""
        if self._worker.is_current:
            future.add_done_callback(_log_failure)
        else:
            future.result()

    def _make(self) -> EngineCore:
        return EngineCore(self.load(), self.config, self._telemetry)

    def _tell(self, job: Job, sink: Sink, event: Event) -> None:
        try:
            if isinstance(event, BaseException):
                job.context.run(self._telemetry.request, job.failed(event, self.name))
        except BaseException:  # a report that cannot be made must not keep the caller waiting
            logger.exception("a failed request could not be reported")
        finally:
            sink(event)


_registry: dict[tuple[str, EngineConfig], Engine] = {}
_registry_lock = threading.Lock()


def shared_engine(model: str, config: EngineConfig = EngineConfig()) -> Engine:
    """The process's one engine for this model and config: instant, its weights load with the first request."""
    with _registry_lock:
        engine = find_engine(model, config)
        if engine is None:
            engine = _registry[model, config] = Engine(model, config)
        return engine


def _begin_in_child() -> None:
    """Engines stay, since each begins anew by itself; the lock may have been held by a thread that is not here."""
    global _registry_lock
    _registry_lock = threading.Lock()


at_fork(in_child=_begin_in_child)


def find_engine(model: str, config: EngineConfig) -> Engine | None:
    """The engine that `shared_engine` would give, if it is made already. Waits for nothing."""
    return _registry.get((model, config))


def _drop_warm_up(submitted: asyncio.Future[Future[WarmReport]]) -> None:
    """Nobody waits any more for a warm-up that was being submitted."""
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


def _post(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)


def _log_failure(done: Future[None]) -> None:
    if error := done.exception():
        logger.error("what was left to the engine's thread failed: %s", error, exc_info=error)


def _call(method: weakref.WeakMethod) -> None:  # type: ignore[type-arg]
    bound = method()
    if bound is not None:
        bound()

"""Engine: requests in, text out, on one model.

The story of a request: it waits in the queue of the one thread that owns the model (`worker`);
its messages become prompt ids (`prompt`); the `planner` decides which tokens are placed from the
`store` and which are computed; the `runner` executes that plan in one forward pass; tokens are
drawn, within what a `constraint` allows, turned into text (`generation`, `running`) and handed to
the caller one by one; in the end the context's KV goes into the store. `inference` holds these
parts together. Sync and async callers are served by the same path.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from ..checks import any_texts, checked, identity, instance
from ..config import EngineConfig
from ..errors import ConfigError, EngineClosedError
from ..kv.prefix_cache import PrefixStats
from ..models.loading import LoadedModel, load_model, load_tokenizer
from ..observe.report import RequestReport
from ..observe.report_file import ReportFile
from ..observe.telemetry import Observer, Telemetry
from ..planning.learned import Learned, learned
from ..request import Completion, Message, Request, TextChunk, ToolSpec
from ..text.prompt import PromptRenderer
from ..text.tool_format import CallFormat
from .core import EngineCore, max_context
from .job import Event, Job, Sink
from .warmup import WarmOrder, WarmReport
from .worker import Worker

logger = logging.getLogger(__name__)


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
        self._worker = Worker(self._make, config.max_concurrent, self.name)
        self._close_at_exit = weakref.WeakMethod(self.close)
        atexit.register(_call, self._close_at_exit)

    def submit(self, request: Request, sink: Sink) -> Job:
        """Queue a request; its events reach `sink` on the worker's thread, a `Completion` or an exception last.

        Raises:
            ConfigError: it is no `Request`.
            EngineClosedError: after `close`.
        """
        checked("request", request, instance(Request))
        job = Job(request, lambda event: self._tell(job, sink, event))
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
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        job = self.submit(request, events.put)
        try:
            while True:
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
        async for event in self.astream(request):
            if isinstance(event, Completion):
                return event
        raise EngineClosedError("the request ended without an answer")

    async def astream(self, request: Request) -> AsyncIterator[TextChunk | Completion]:
        """As `stream`; closing the iterator or cancelling the task cancels the request."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()
        job = self.submit(request, lambda event: _post(loop, events, event))
        try:
            while True:
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
        # What every prompt of the model begins with: the token that the first place teaches it to lean on.
        order = WarmOrder(ids, self.render((Message("user", "."),))[0], namespace)
        queued = self._worker.call(lambda inference: inference.warmup.submit(order))
        queued.add_done_callback(lambda done: order.fail(error) if (error := done.exception()) else None)
        return order.future

    def warm(self, texts: Sequence[str], namespace: str = "default") -> WarmReport:
        """As `submit_warm`, and wait until it is done."""
        return self.submit_warm(texts, namespace).result()

    async def awarm(self, texts: Sequence[str], namespace: str = "default") -> WarmReport:
        """As `warm`; cancelling the task drops what was not done yet."""
        # In a thread: the tokenizer may have to be loaded.
        return await asyncio.wrap_future(await asyncio.to_thread(self.submit_warm, texts, namespace))

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
        return max_context(self.load(), self.config)

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
        if self.config.reuse.learns and self._worker.inference is not None:
            said, whose = checked("texts", texts, any_texts), checked("namespace", namespace, identity)
            self._worker.call(lambda inference: inference.expect(said, whose, warm=warm))

    @property
    def reports(self) -> tuple[RequestReport, ...]:
        """Reports of the last requests, failed ones too, oldest first."""
        return self._telemetry.reports

    def observe(self, observer: Observer) -> None:
        """Tell an observer of every request and audit from now on: one of `exporters`, or your own."""
        self._telemetry.observe(observer)

    @property
    def waiting(self) -> int:
        """Requests in the queue that the worker has not taken yet."""
        return self._worker.waiting

    @property
    def stats(self) -> PrefixStats:
        """What the store holds now: prefixes."""
        inference = self._worker.inference
        return inference.store.stats() if inference else PrefixStats(0, 0, 0, 0)

    @property
    def learned(self) -> Learned:
        """What all namespaces have learned so far: spans, anchors, and how the guard's bound held."""
        inference = self._worker.inference
        return learned(memory for _, memory in inference.reuse.memories()) if inference else Learned()

    def forget(self, namespace: str | None = None) -> None:
        """Drop what a namespace has stored and learned, or all of it."""
        if self._worker.inference:
            self._worker.call(lambda inference: inference.forget(namespace)).result()

    def save(self) -> None:
        """Write what was learned to `config.memory_folder`; `close` does this too.

        Raises:
            ConfigError: no folder is configured.
            SavedMemoryError: it could not be written; what was saved before is still whole.
        """
        if self.config.memory_folder is None:
            raise ConfigError("there is nowhere to save to; set memory_folder in EngineConfig")
        if self._worker.inference:
            self._worker.call(lambda inference: inference.save()).result()

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until every request is answered and learned from; whether that came in time."""
        return self._worker.settle(timeout_s)

    def close(self) -> None:
        """Stop the worker and free what it holds. Weights shared with other engines stay."""
        served = self._worker.inference is not None
        self._worker.close()
        if served:
            logger.info("closed the engine of %s", self.name)
        self._telemetry.close()
        atexit.unregister(self._close_at_exit)
        with _registry_lock:
            for key in [key for key, engine in _registry.items() if engine is self]:
                del _registry[key]

    def _make(self) -> EngineCore:
        return EngineCore(self.load(), self.config, self._telemetry)

    def _tell(self, job: Job, sink: Sink, event: Event) -> None:
        if isinstance(event, BaseException):
            job.context.run(self._telemetry.request, job.failed(event, self.name))
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


def find_engine(model: str, config: EngineConfig) -> Engine | None:
    """The engine that `shared_engine` would give, if it is made already. Waits for nothing."""
    return _registry.get((model, config))


def _post(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)


def _call(method: weakref.WeakMethod) -> None:  # type: ignore[type-arg]
    bound = method()
    if bound is not None:
        bound()

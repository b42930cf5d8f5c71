"""Code that is not the engine's own on the engine's thread: whatever it raises or calls harms one request at most."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from two_agents import QUESTIONS, WORDS, call, chain, made, make_speaker

from kvcomm_agents import Completion, EngineConfig, Message, Request, ReuseConfig, SamplingParams, TextChunk
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.errors import EngineClosedError, EngineThreadError, RequestCancelledError, RequestError
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.observe.report import AuditReport, RequestReport

T = TypeVar("T")

ERRORS = (
    ValueError,
    MemoryError,
    RecursionError,
    StopIteration,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    asyncio.CancelledError,
)
VICTIM = "Z"  # stands in the victim's prompt, and in no other
LOGGERS = [
    "kvcomm_agents.observe.telemetry",
    "kvcomm_agents.engine.core",
    "kvcomm_agents.engine.worker",
    "kvcomm_agents.engine.idle",
    "kvcomm_agents.engine.job",
    "kvcomm_agents.engine.warmup",
    "kvcomm_agents.backends.transformers.batching",
    "kvcomm_agents.planning.policy",
    "kvcomm_agents.planning.namespace",
]


@pytest.fixture(scope="module")
def speaker() -> LoadedModel:
    return make_speaker()


def request(text: str, *, tokens: int = 6, **options: Any) -> Request:
    return Request((Message("user", text),), SamplingParams(max_tokens=tokens), **options)


def within(work: Callable[[], T], seconds: float = 5.0) -> T:
    """What `work` gives, on a thread that may not take longer."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result(seconds)


class Calls(list[object]):
    """A sink that keeps what it is told, and says when the last event has come."""

    def __init__(self, on_event: Callable[[object], None] = lambda event: None) -> None:
        self.ended, self._on_event = threading.Event(), on_event

    def __call__(self, event: object) -> None:
        self.append(event)
        if not isinstance(event, TextChunk):
            self.ended.set()
        self._on_event(event)


class Observer:
    """Does something when it is told."""

    def __init__(self, **does: Callable[..., None]) -> None:
        self._does = does

    def on_request(self, report: RequestReport) -> None:
        self._does.get("on_request", lambda _: None)(report)

    def on_audit(self, report: AuditReport) -> None:
        self._does.get("on_audit", lambda _: None)(report)

    def close(self) -> None:
        self._does.get("close", lambda: None)()


class Raising:
    """Raises when it is called and armed."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error, self.armed, self.raised = error, True, 0

    def __call__(self, *_: object, **__: object) -> None:
        if self.armed:
            self.raised += 1
            raise self.error("raised by foreign code")


# Where foreign code runs for a request. Each makes it raise for the victim, and says whether the victim is answered.


def observer(engine: Engine, raises: Raising, patch: pytest.MonkeyPatch) -> bool:
    engine.observe(Observer(on_request=lambda report: raises() if report.agent == VICTIM else None))
    return True


def half_an_observer(engine: Engine, raises: Raising, patch: pytest.MonkeyPatch) -> bool:
    class Half:
        @property
        def on_request(self) -> object:
            return raises()

    engine.observe(Half())  # type: ignore[arg-type]
    return True


def model(engine: Engine, raises: Raising, patch: pytest.MonkeyPatch) -> bool:
    loaded = engine.load()
    marked = loaded.tokenizer(VICTIM)["input_ids"][0]
    middle = loaded.model.model.layers[1]
    seen: list[bool] = []

    def embed(module: object, args: tuple[torch.Tensor, ...]) -> None:
        seen[:] = [bool((args[0] == marked).any())]

    def compute(*_: object) -> None:
        if seen == [True]:
            raises()

    hooks = loaded.model.get_input_embeddings()._forward_pre_hooks, middle._forward_pre_hooks
    for known, hook in zip(hooks, (embed, compute), strict=True):
        patch.setitem(known, -1, hook)  # and removed when the trial is over
    return False


def tokenizer(engine: Engine, raises: Raising, patch: pytest.MonkeyPatch) -> bool:
    known, marked = engine.tokenizer, engine.tokenizer(VICTIM)["input_ids"][0]

    class Tokenizer(type(known)):  # type: ignore[misc]
        def __call__(self, text: object, *args: object, **options: object) -> Any:
            if VICTIM in str(text):
                raises()
            return super().__call__(text, *args, **options)

        def decode(self, ids: object, *args: object, **options: object) -> Any:
            if marked in (ids if isinstance(ids, list) else [ids]):
                raises()
            return super().decode(ids, *args, **options)

    patch.setattr(known, "__class__", Tokenizer)
    return False


def log(engine: Engine, raises: Raising, patch: pytest.MonkeyPatch) -> bool:
    for name in LOGGERS:
        patch.setattr(logging.getLogger(name), "filters", [raises])
    return True


PLACES = [observer, half_an_observer, model, tokenizer, log]


@pytest.fixture(scope="module")
def answers(speaker: LoadedModel) -> dict[str, tuple[int, ...]]:
    """What each question is answered where nothing is wrong."""
    engine = made(speaker, mode="exact")
    texts = [VICTIM, *(f"question {number}" for number in range(4))]
    found = {text: engine.generate(request(text)).token_ids for text in texts}
    engine.close()
    return found


@pytest.mark.parametrize("first", [True, False], ids=["first", "beside others"])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_raised_for_a_request_is_its_own_alone(
    place: Callable[[Engine, Raising, pytest.MonkeyPatch], bool],
    first: bool,
    speaker: LoadedModel,
    answers: dict[str, tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = made(speaker, mode="exact")
    for error in ERRORS[2::3] if first else ERRORS:
        if first:
            engine.close()
            engine = made(speaker, mode="exact")
        raises = Raising(error)
        with monkeypatch.context() as patch:
            answered = place(engine, raises, patch)
            others = {} if first else {text: Calls() for text in answers if text != VICTIM}
            for text, calls in others.items():
                engine.submit(request(text), calls)
            victim = Calls()
            engine.submit(request(VICTIM, agent=VICTIM), victim)
            assert victim.ended.wait(5), error
            last = victim[-1]
            if answered:
                assert isinstance(last, Completion), error
                assert last.token_ids == answers[VICTIM]
            else:
                assert isinstance(last, error if issubclass(error, Exception) else RequestError), error
            for text, calls in others.items():
                assert calls.ended.wait(5), error
                assert calls[-1].token_ids == answers[text], error  # type: ignore[attr-defined]
            assert raises.raised, "this trial tries nothing"
            raises.armed = False
        assert within(lambda e=engine: e.generate(request("question 0")).token_ids) == answers["question 0"]
    within(engine.close)


@pytest.mark.parametrize("when", [TextChunk, Completion], ids=["chunk", "last"])
def test_what_a_sink_raises_cancels_its_own_request(
    when: type, speaker: LoadedModel, answers: dict[str, tuple[int, ...]]
) -> None:
    engine = made(speaker, mode="exact")
    for error in ERRORS:
        raises = Raising(error)
        calls = Calls(lambda event, raises=raises: raises() if isinstance(event, when) else None)
        other = Calls()
        engine.submit(request(VICTIM, tokens=400 if when is TextChunk else 6), calls)
        engine.submit(request("question 1"), other)
        assert calls.ended.wait(5)
        assert other.ended.wait(5)
        assert isinstance(calls[-1], RequestCancelledError if when is TextChunk else Completion)
        assert other[-1].token_ids == answers["question 1"]  # type: ignore[attr-defined]
    engine.close()


def test_what_would_end_a_callers_thread_comes_as_an_error_of_the_request(speaker: LoadedModel) -> None:
    """A cancelled task that nobody cancelled, or an exit that nobody asked for, is the worst there is to debug."""
    engine = made(speaker, mode="exact")
    with pytest.MonkeyPatch.context() as patch:
        tokenizer(engine, Raising(asyncio.CancelledError), patch)

        async def ask() -> None:
            with pytest.raises(RequestError, match="CancelledError") as caught:
                await engine.agenerate(request(VICTIM))
            assert isinstance(caught.value.__cause__, asyncio.CancelledError)

        asyncio.run(ask())
    engine.close()


# Idle work.


class Embedder:
    name = "of the test"

    def __init__(self, does: Callable[[], None]) -> None:
        self._does = does

    def embed(self, texts: list[str]) -> torch.Tensor:
        self._does()
        return torch.nn.functional.normalize(torch.ones(len(texts), 4), dim=-1)


def idle_model(engine: Engine, raises: Raising) -> Callable[[], None]:
    core = engine.inspect(lambda core: core)
    middle = engine.load().model.model.layers[1]
    handle = middle.register_forward_pre_hook(lambda *_: None if core.active else raises())
    return handle.remove


def idle_embedder(engine: Engine, raises: Raising) -> Callable[[], None]:
    def make(core: Any) -> None:
        core._made_embedder = Embedder(raises)

    engine.inspect(make)
    return lambda: None


def idle_observer(engine: Engine, raises: Raising) -> Callable[[], None]:
    engine.observe(Observer(on_audit=raises))
    return lambda: None


@pytest.fixture(scope="module")
def learned(speaker: LoadedModel) -> Iterator[Engine]:
    """An engine that has learned enough to place corrected KV, and audits all that it places so."""
    engine = made(speaker, mode="auto", max_divergence=100.0, audit_share=1.0)
    for question in QUESTIONS[:6]:
        chain(engine, question)
    assert engine.learned.audited
    yield engine
    engine.close()


@pytest.mark.parametrize("place", [idle_model, idle_embedder, idle_observer])
def test_what_is_raised_in_idle_work_costs_that_work_alone(
    place: Callable[[Engine, Raising], Callable[[], None]], learned: Engine
) -> None:
    for number, error in enumerate(ERRORS):
        raises = Raising(error)
        undo = place(learned, raises)
        for trial in range(9):
            if raises.raised:
                break
            words = random.Random(f"{number} {trial} {place.__name__}").sample(WORDS, 9)
            question = f"What do you know of {' and '.join(words)}?"
            answers = within(lambda question=question: chain(learned, question))
            assert all(answer.token_ids for answer in answers)
            assert within(lambda: learned.wait_idle(4)), error
        assert raises.raised, error
        raises.armed = False
        undo()
    assert len(learned.inspect(lambda core: core.idle)) == 0


@pytest.mark.parametrize("place", [idle_model, idle_embedder])
def test_a_warm_up_that_fails_says_so(place: Callable[[Engine, Raising], Callable[[], None]]) -> None:
    engine = made(make_speaker(), mode="corrected")
    for question in QUESTIONS[:2]:
        chain(engine, question)
    for number, error in enumerate(ERRORS):
        raises = Raising(error)
        undo = place(engine, raises)
        future = engine.submit_warm([f"A text to be warmed, number {number}, of some length."])
        told = within(lambda future=future: future.exception(4))
        if place is idle_model:
            assert raises.raised
            assert isinstance(told, error if issubclass(error, Exception) else RequestError) or (
                error is StopIteration and isinstance(told, RuntimeError)
            )
        raises.armed = False
        undo()
    assert within(lambda: engine.warm(["A text that is warmed after all of these."])).warmed == 1
    engine.close()


def test_callbacks_of_futures_harm_nobody(speaker: LoadedModel) -> None:
    engine = made(speaker, mode="corrected")
    for number, error in enumerate(ERRORS):
        future, later = engine.submit_warm([f"{QUESTIONS[number]} That is number {number}."]), threading.Event()
        future.add_done_callback(Raising(error))
        future.add_done_callback(lambda _, later=later: later.set())
        assert later.wait(5), error
        assert future.result().warmed == 1
    engine.close()
    closed = made(speaker, mode="corrected")
    futures = [closed.submit_warm([f"A text with number {n} in it" for n in range(300)]) for _ in range(2)]
    for future in futures:
        future.add_done_callback(Raising(SystemExit))
    within(closed.close)
    for future in futures:
        assert isinstance(future.exception(1), EngineClosedError)


@pytest.mark.parametrize("error", ERRORS)
def test_what_is_raised_while_closing_stops_nothing(
    error: type[BaseException], speaker: LoadedModel, tmp_path: Path
) -> None:
    folder = tmp_path / "memory"
    config = EngineConfig(reuse=ReuseConfig(min_placed=12), memory_folder=str(folder))
    engine, raises = Engine(speaker, config), Raising(error)
    closed = threading.Event()
    engine.observe(Observer(on_request=raises, close=raises))
    engine.observe(Observer(close=closed.set))
    within(lambda: chain(engine, QUESTIONS[0]))
    running = [Calls(raises), Calls(raises)]
    for calls in running:
        engine.submit(request("long", tokens=400, reuse="exact"), calls)
    with pytest.MonkeyPatch.context() as patch:
        log(engine, raises, patch)
        within(engine.close)
    assert closed.is_set()
    assert all(calls.ended.wait(1) for calls in running)
    assert list(folder.glob("*/anchors.json")), "what was learned is saved all the same"
    with pytest.raises(EngineClosedError):
        engine.generate(request("after"))


def test_one_namespace_that_cannot_be_saved_does_not_keep_the_others(speaker: LoadedModel, tmp_path: Path) -> None:
    engine = Engine(speaker, EngineConfig(reuse=ReuseConfig(min_placed=12), memory_folder=str(tmp_path)))
    for name in ("a", "b", "c"):
        within(lambda name=name: chain(engine, QUESTIONS[0], namespace=name))

    def spoil(core: Any) -> None:
        core.namespaces.get("b").corrections.snapshot = Raising(RecursionError)

    engine.inspect(spoil)
    with pytest.raises(RecursionError):
        engine.save()
    assert len(list(tmp_path.glob("*/anchors.json"))) == 2
    engine.close()


def test_a_report_file_on_a_full_disk_costs_the_reports_alone(speaker: LoadedModel) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    engine = Engine(speaker, EngineConfig(reuse=ReuseConfig(mode="exact"), report_file="/dev/full"))
    assert within(lambda: engine.generate(request("hello"))).token_ids
    within(engine.close)


# Calls of the engine by code that runs on its own thread.

WAITS: dict[str, Callable[[Engine], object]] = {
    "generate": lambda engine: engine.generate(request("inner")),
    "stream": lambda engine: list(engine.stream(request("inner"))),
    "agenerate": lambda engine: asyncio.run(engine.agenerate(request("inner"))),
    "warm": lambda engine: engine.warm(["a text that is to be warmed"]),
    "awarm": lambda engine: asyncio.run(engine.awarm(["a text that is to be warmed"])),
    "wait_idle": lambda engine: engine.wait_idle(),
    "inspect": lambda engine: engine.inspect(lambda core: None),
}
GOES: dict[str, Callable[[Engine], object]] = {
    "submit": lambda engine: engine.submit(request("inner"), lambda _: None),
    "submit_warm": lambda engine: engine.submit_warm(["a text that is to be warmed"]),
    "expect": lambda engine: engine.expect(["a text that is expected"]),
    "forget": lambda engine: engine.forget(),
    "save": lambda engine: engine.save(),
    "read": lambda engine: (engine.reports, engine.stats, engine.learned, engine.idle, engine.ledger(), engine.waiting),
    "model": lambda engine: (engine.load(), engine.max_context, engine.count_tokens((Message("user", "x"),))),
    "observe": lambda engine: engine.observe(Observer()),
    "close": lambda engine: engine.close(),
}


class Trial:
    """Does something to an engine when it is first called."""

    def __init__(self, engine: Engine, does: Callable[[Engine], object]) -> None:
        self._engine, self._does, self._tried = engine, does, False
        self.raised: BaseException | None = None
        self.over = threading.Event()

    def __call__(self) -> None:
        if self._tried:
            return
        self._tried = True
        try:
            self._does(self._engine)
        except BaseException as error:
            self.raised = error
        self.over.set()


def in_sink(engine: Engine, does: Callable[[], None]) -> None:
    engine.submit(request("outer"), Calls(lambda _: does()))


def in_last_event(engine: Engine, does: Callable[[], None]) -> None:
    engine.submit(request("outer"), Calls(lambda event: does() if isinstance(event, Completion) else None))


def in_observer(engine: Engine, does: Callable[[], None]) -> None:
    engine.observe(Observer(on_request=lambda _: does()))
    engine.submit(request("outer"), Calls())


def in_callback(engine: Engine, does: Callable[[], None]) -> None:
    engine.submit_warm(["a text that is warmed for its callback"]).add_done_callback(lambda _: does())


def in_inspected(engine: Engine, does: Callable[[], None]) -> None:
    engine.inspect(lambda core: does())


def in_log(engine: Engine, does: Callable[[], None]) -> None:
    def told(_: logging.LogRecord) -> bool:
        if threading.current_thread().name.startswith("kvcomm "):
            does()
        return True

    logging.getLogger("kvcomm_agents.observe.telemetry").addFilter(told)
    try:
        calls = Calls()
        engine.submit(request("outer"), calls)
        calls.ended.wait(5)
    finally:
        logging.getLogger("kvcomm_agents.observe.telemetry").removeFilter(told)


@pytest.mark.parametrize("place", [in_sink, in_last_event, in_observer, in_callback, in_inspected, in_log])
def test_the_engines_own_thread_is_refused_what_would_wait_for_it(
    place: Callable[[Engine, Callable[[], None]], None], speaker: LoadedModel, tmp_path: Path
) -> None:
    engine = Engine(speaker, EngineConfig(reuse=ReuseConfig(min_placed=12), memory_folder=str(tmp_path)))
    engine.generate(request("before"))
    for name, does in {**WAITS, **GOES}.items():
        trial = Trial(engine, does)
        within(lambda trial=trial: place(engine, trial))
        assert trial.over.wait(5), name
        if name in WAITS:
            assert isinstance(trial.raised, EngineThreadError), name
        else:
            assert trial.raised is None, name
        if name != "close":
            assert within(lambda: engine.generate(request("after"))).token_ids
    with pytest.raises(EngineClosedError):
        within(lambda: engine.generate(request("after")))
    within(engine.close)


def held(engine: Engine) -> list[object]:
    """All that is left of any request."""
    core = engine.inspect(lambda core: core)
    nodes = [engine.stats.nodes] if engine.stats.nodes else []
    return [*nodes, *(name for name, _ in core.namespaces), *([engine.idle] if len(core.idle) else [])]


def test_what_an_observer_forgets_does_not_come_back(learned: Engine) -> None:
    """Neither from the request it was told of, which is not remembered yet, nor from an audit under way."""
    watched: list[str] = []

    def forget(report: RequestReport | AuditReport) -> None:
        watched.append(type(report).__name__)
        if watched[-1] == telling:
            learned.forget()

    learned.observe(Observer(on_request=forget, on_audit=forget))
    telling = "AuditReport"
    within(lambda: chain(learned, QUESTIONS[7]))
    assert within(lambda: learned.wait_idle(5))
    assert "AuditReport" in watched
    assert held(learned) == []
    telling = "RequestReport"
    within(lambda: chain(learned, QUESTIONS[8]))
    assert within(lambda: learned.wait_idle(5))
    assert held(learned) == []
    telling = ""


def test_what_an_embedder_forgets_does_not_come_back(speaker: LoadedModel) -> None:
    engine = made(speaker, mode="corrected")
    forgotten = threading.Event()

    def make(core: Any) -> None:
        core._made_embedder = Embedder(lambda: (engine.forget(), forgotten.set()))

    for question in QUESTIONS[:2]:
        within(lambda question=question: chain(engine, question))
    engine.inspect(make)
    for question in QUESTIONS[2:]:
        for agent in ("solver", "critic"):
            if not forgotten.is_set():
                within(lambda agent=agent, question=question: call(engine, agent, f"Q: {question}\nA:"))
    assert within(lambda: engine.wait_idle(5))
    assert forgotten.is_set()
    assert held(engine) == []
    engine.close()


@pytest.mark.parametrize("when", [TextChunk, Completion], ids=["chunk", "last"])
def test_a_sink_may_forget_its_own_request(when: type, speaker: LoadedModel) -> None:
    engine = made(speaker, mode="auto")
    calls = Calls(lambda event: engine.forget() if isinstance(event, when) else None)
    engine.submit(request("a secret of some length, to be forgotten"), calls)
    assert calls.ended.wait(5)
    assert within(lambda: engine.wait_idle(5))
    assert held(engine) == []
    engine.close()


@pytest.fixture(autouse=True)
def _no_thread_dies(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    died: list[object] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    caplog.set_level(logging.DEBUG, "kvcomm_agents")
    yield
    assert died == []
    assert not any("the next request starts it anew" in line for line in caplog.messages)

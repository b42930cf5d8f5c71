"""The engine's thread: nothing ends it, nobody waits for ever, and what it hides is said."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from two_agents import QUESTIONS, chain, made, make_speaker

from kvcomm_agents import Completion, Message, Request, RequestReport, SamplingParams, TextChunk
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.errors import (
    ConfigError,
    EngineClosedError,
    EngineError,
    EngineFailedError,
    RequestCancelledError,
)
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.observe.report import AuditReport


def request(text: str = "hello", tokens: int = 6, **options: Any) -> Request:
    return Request((Message("user", text),), SamplingParams(max_tokens=tokens), **options)


class Events(list[Any]):
    """A sink, and whether the last event has come."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self, event: object) -> None:
        self.append(event)
        (self.begun if isinstance(event, TextChunk) else self.ended).set()


def submitted(engine: Engine, *requests: Request) -> list[Events]:
    found = [Events() for _ in requests]
    for events, asked in zip(found, requests, strict=True):
        engine.submit(asked, events)
    return found


@pytest.fixture(scope="module")
def speaker() -> LoadedModel:
    return make_speaker()


@pytest.fixture
def engine(speaker: LoadedModel) -> Iterator[Engine]:
    engine = made(speaker, mode="auto")
    yield engine
    engine.close()


@pytest.mark.parametrize("timeout", ["5", (3, 10), object(), [1]])
def test_a_timeout_that_is_no_number_is_its_callers_alone(engine: Engine, timeout: object) -> None:
    (running,) = submitted(engine, request(tokens=60))
    assert running.begun.wait(5)
    with pytest.raises((ConfigError, TypeError)):
        engine.generate(request(timeout_s=timeout))
    assert running.ended.wait(5)
    assert isinstance(running[-1], Completion)
    assert engine.generate(request(timeout_s=5)).token_ids


@pytest.mark.parametrize("asked", [None, {}, "hello", Message("user", "x")])
def test_what_is_no_request_is_refused(engine: Engine, asked: Any) -> None:
    with pytest.raises(ConfigError, match="must be a Request"):
        engine.generate(asked)
    with pytest.raises(ConfigError, match="must be a Request"):
        asyncio.run(engine.agenerate(asked))
    assert engine.generate(request()).token_ids


def test_a_report_that_cannot_be_made_keeps_no_caller_waiting(engine: Engine) -> None:
    engine.generate(request())
    for cancelled in (True, False):
        (events,) = submitted(engine, running := request(tokens=400))
        assert events.begun.wait(5)
        active = engine.inspect(lambda core: core.active[0])
        del active.agent  # nothing can be said of it now
        if cancelled:
            active.job.cancel()
        assert events.ended.wait(5), running
        assert isinstance(events[-1], RequestCancelledError if cancelled else AttributeError)
    assert engine.generate(request()).token_ids


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, MemoryError])
def test_a_bug_that_ends_the_thread_fails_all_that_waits_and_the_next_request_starts_it_anew(
    error: type[BaseException], speaker: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = made(speaker, mode="auto", max_divergence=100.0)
    want = engine.generate(request()).token_ids
    engine.wait_idle(5)
    core, inside, go = engine.inspect(lambda core: core), threading.Event(), threading.Event()

    def broken() -> None:
        inside.set()
        go.wait(10)
        raise error("a bug")

    monkeypatch.setattr(core, "step", broken)
    found = submitted(engine, *(request(str(number), 40) for number in range(12)))
    assert inside.wait(5)
    warmed = engine.submit_warm([f"{question} and more" for question in QUESTIONS])
    with ThreadPoolExecutor(4) as pool:
        inspected = pool.submit(engine.inspect, lambda core: core)
        forgotten = pool.submit(engine.forget)
        idle = pool.submit(engine.wait_idle, 8)
        time.sleep(0.05)
        go.set()
        for events in found:
            assert events.ended.wait(5)
            assert isinstance(events[-1], EngineFailedError)
            assert "a bug" in str(events[-1])
        assert len({id(events[-1]) for events in found}) == len(found), "each caller raises an error of its own"
        for future in (inspected, forgotten, warmed):
            with pytest.raises(EngineError):
                future.result(5)
        assert idle.result(5)
    assert engine.generate(request()).token_ids == want
    assert engine.inspect(lambda core: core) is not core
    engine.close()


def test_where_no_thread_can_be_started_nothing_is_left_in_the_queue(
    speaker: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, events = made(speaker, mode="exact"), Events()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="thread"):
            engine.submit(request(), events)
        with pytest.raises(RuntimeError, match="thread"):
            engine.generate(request())
    assert engine.waiting == 0
    assert engine.generate(request()).token_ids
    assert events == []
    unused = made(speaker, mode="exact")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            unused.generate(request())
    unused.close()
    engine.close()


def test_closing_answers_everybody_and_tells_the_observers_last(speaker: LoadedModel) -> None:
    told: list[str] = []

    class Watcher:
        def on_request(self, report: RequestReport) -> None:
            told.append(report.error.partition(":")[0])

        def on_audit(self, report: AuditReport) -> None: ...

        def close(self) -> None:
            told.append("closed")

    engine = made(speaker, mode="exact")
    engine.observe(Watcher())
    found = submitted(engine, *(request(str(number), 400) for number in range(20)))
    assert found[0].begun.wait(5)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: engine.close(), range(3)))
    for events in found:
        assert events.ended.is_set()
        assert isinstance(events[-1], EngineClosedError)
    assert told == ["EngineClosedError"] * 20 + ["closed"]
    assert engine.wait_idle(1)
    unused = made(speaker, mode="exact")
    unused.observe(Watcher())
    unused.close()
    unused.close()
    assert told[21:] == ["closed"]


def test_an_observer_that_closes_the_engine_is_told_of_all_that_was_asked(speaker: LoadedModel) -> None:
    told: list[str] = []
    engine = made(speaker, mode="exact")

    class Closing:
        def on_request(self, report: RequestReport) -> None:
            told.append(report.finish_reason)
            engine.close()

        def on_audit(self, report: AuditReport) -> None: ...

        def close(self) -> None:
            told.append("closed")

    engine.observe(Closing())
    found = submitted(engine, request("short", 3), request("long", 400))
    assert all(events.ended.wait(5) for events in found)
    assert isinstance(found[0][-1], Completion)
    assert isinstance(found[1][-1], EngineClosedError)
    engine.close()
    assert told == ["length", "error", "closed"]


# Event loops.


def runs(engine: Engine) -> int:
    return engine.inspect(lambda core: len(core.active)) + engine.waiting


def until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


def test_a_task_cancelled_anywhere_stops_its_request_alone(engine: Engine) -> None:
    want = engine.generate(request("other", 20)).token_ids

    async def cancel(passes: int) -> None:
        other = asyncio.create_task(engine.agenerate(request("other", 20)))
        task = asyncio.create_task(engine.agenerate(request("long", 400)))
        for _ in range(passes):
            await asyncio.sleep(0 if passes < 4 else 0.003)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await other).token_ids == want

    for passes in range(9):
        asyncio.run(asyncio.wait_for(cancel(passes), 10))
        assert until(lambda: runs(engine) == 0)


def test_a_timeout_of_the_loop_and_a_stream_closed_early(engine: Engine) -> None:
    async def late() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await engine.agenerate(request("long", 400))
        events = engine.astream(request("long", 400))
        await anext(events)
        await events.aclose()
        async for _ in engine.astream(request("long", 400)):
            break  # what is left of it is collected some time

    asyncio.run(asyncio.wait_for(late(), 10))
    assert until(lambda: runs(engine) == 0)
    assert engine.generate(request()).token_ids


def test_a_loop_that_is_closed_while_its_request_runs_harms_nobody(engine: Engine) -> None:
    engine.generate(request())
    loop = asyncio.new_event_loop()
    events = engine.astream(request("long", 400))
    loop.run_until_complete(anext(events))
    loop.close()
    assert until(lambda: runs(engine) == 0)
    assert engine.generate(request()).token_ids


def test_two_loops_at_once(engine: Engine) -> None:
    want = [engine.generate(request(str(number), 12)).token_ids for number in range(4)]

    async def all_of_them() -> list[tuple[int, ...]]:
        answers = await asyncio.gather(*(engine.agenerate(request(str(number), 12)) for number in range(4)))
        return [answer.token_ids for answer in answers]

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(asyncio.run, all_of_them()) for _ in range(2)]
        assert [future.result(20) for future in found] == [want, want]


# What is hidden is said.


def test_a_report_says_how_long_a_request_waited_for_idle_work(engine: Engine) -> None:
    engine.generate(request())
    assert engine.reports[-1].idle_s == 0
    assert "idle" not in str(engine.reports[-1])
    backend, begun = engine.inspect(lambda core: core.backend), threading.Event()
    prefill = backend.prefill_texts

    def slow(*args: Any) -> Any:
        begun.set()
        time.sleep(0.2)
        return prefill(*args)

    backend.prefill_texts = slow  # type: ignore[method-assign]
    engine.submit_warm(QUESTIONS[:2])
    assert begun.wait(5)
    report = engine.generate(request("another")).report
    assert 0.05 < report.idle_s <= report.queue_s <= report.total_s
    assert f"{1e3 * report.idle_s:.0f} ms of them idle work" in str(report)
    begun.clear()
    engine.submit_warm(QUESTIONS[2:4])
    assert begun.wait(5)
    with pytest.raises(TimeoutError):
        engine.generate(request("late", timeout_s=0.01))
    report = engine.reports[-1]
    assert 0.05 < report.idle_s <= report.queue_s == report.total_s
    assert engine.idle.seconds > 0.3


def test_what_is_hidden_can_be_read_from_any_thread_at_any_time(engine: Engine) -> None:
    chain(engine, QUESTIONS[0])
    over, failed = threading.Event(), list[BaseException]()

    def read() -> None:
        try:
            while not over.is_set():
                assert engine.idle.seconds >= 0
                assert engine.ledger().spent_tokens >= 0
                assert engine.learned.namespaces >= 0
                assert engine.stats.nodes >= 0
        except BaseException as error:
            failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(30):
        engine.generate(request(f"{QUESTIONS[number % 9]} {number}", 3, namespace=str(number % 3)))
    over.set()
    for reader in readers:
        reader.join()
    assert failed == []

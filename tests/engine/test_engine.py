"""Requests through the whole engine: same answers whatever is reused, whoever else is served."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kvcomm_agents import Completion, EngineConfig, Message, Request, ReuseConfig, SamplingParams, TextChunk
from kvcomm_agents.engine.engine import Engine, shared_engine
from kvcomm_agents.errors import (
    ConfigError,
    ContextLengthError,
    DeviceMemoryError,
    EngineClosedError,
    PromptError,
    RequestCancelledError,
    RequestTimeoutError,
    UnsupportedModelError,
)
from kvcomm_agents.models.loading import LoadedModel

Tiny = Callable[[str], LoadedModel]


def ask(text: str, *, max_tokens: int = 12, system: str = "You are terse.", **options: object) -> Request:
    params = options.pop("params", None) or SamplingParams(max_tokens=max_tokens)
    messages = (Message("system", system), Message("user", text))
    return Request(messages, params, **options)  # type: ignore[arg-type]


def test_second_call_finds_its_prefix_and_says_the_same(engine: Engine) -> None:
    first = engine.generate(ask("What is a prefix cache good for?"))
    again = engine.generate(ask("What is a prefix cache good for?"))
    dense = engine.generate(ask("What is a prefix cache good for?", reuse="off"))
    assert first.report.placed_tokens == 0
    assert again.report.computed_tokens == 1
    assert again.report.placed_exact_tokens == again.report.prompt_tokens - 1
    assert dense.report.placed_tokens == 0
    assert first.token_ids == again.token_ids == dense.token_ids


def test_growing_conversation_reuses_generated_tokens(engine: Engine) -> None:
    history = [Message("system", "You are terse."), Message("user", "Hello there")]
    params = SamplingParams(max_tokens=10)
    answer = engine.generate(Request(tuple(history), params))
    history += [Message("assistant", answer.text), Message("user", "And now?")]
    second = engine.generate(Request(tuple(history), params))
    shared = answer.report.prompt_tokens + len(answer.token_ids) - 1
    assert second.report.placed_exact_tokens >= shared - 4  # bytes that are no text may re-tokenise
    assert second.token_ids == engine.generate(Request(tuple(history), params, reuse="off")).token_ids


def test_nothing_crosses_a_namespace(engine: Engine) -> None:
    request = ask("A secret of tenant a", namespace="a")
    engine.generate(request)
    other = engine.generate(ask("A secret of tenant a", namespace="b"))
    assert other.report.placed_tokens == 0
    engine.forget("a")
    assert engine.generate(request).report.placed_tokens == 0
    assert engine.generate(ask("A secret of tenant a", namespace="b")).report.placed_tokens > 0


def test_stream_says_what_generate_says_in_every_face(engine: Engine) -> None:
    request = ask("Sing, please", max_tokens=40)
    whole = engine.generate(request)
    events = list(engine.stream(request))
    chunks = [event for event in events[:-1] if isinstance(event, TextChunk)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert isinstance(events[-1], Completion)
    assert sum((chunk.token_ids for chunk in chunks), ()) == whole.token_ids[: sum(len(c.token_ids) for c in chunks)]

    async def asynchronous() -> tuple[Completion, str]:
        pieces = [event async for event in engine.astream(request)]
        return await engine.agenerate(request), "".join(e.text for e in pieces if isinstance(e, TextChunk))

    completion, text = asyncio.run(asynchronous())
    assert completion.token_ids == whole.token_ids
    assert text == whole.text


def test_report_adds_up(engine: Engine) -> None:
    engine.generate(ask("one"))
    report = engine.generate(ask("one and two", agent="counter")).report
    assert report.agent == "counter"
    assert report.prompt_tokens == report.computed_tokens + report.placed_exact_tokens + report.placed_corrected_tokens
    assert 0 < report.match_s + report.assemble_s + report.prefill_s <= report.ttft_s <= report.total_s
    assert engine.reports[-1] == report
    assert "counter" in str(report)


def test_agents_without_a_name_are_told_apart_by_their_system_message(engine: Engine) -> None:
    names = {engine.generate(ask(text, system=system)).report.agent for text in "xy" for system in ("One", "Two")}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (Request(()), PromptError, "empty"),
        (Request((Message("oracle", "x"),)), PromptError, "oracle"),
        (ask("x" * 600), ContextLengthError, "512"),
        (Request(prompt_ids=()), PromptError, "at least one token"),
    ],
)
def test_bad_requests_fail_alone(engine: Engine, request_: Request, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        engine.generate(request_)
    assert engine.generate(ask("still there?")).token_ids


def test_a_template_that_refuses_roles(tiny: Tiny) -> None:
    loaded = tiny("qwen2")
    template = loaded.tokenizer.chat_template
    loaded.tokenizer.chat_template = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }};{% endfor %}"
    )
    engine = Engine(loaded)
    try:
        with pytest.raises(PromptError, match="roles must alternate"):
            engine.generate(Request((Message("system", "x"), Message("user", "y"))))
        doubled = (Message("user", "a"), Message("user", "b"), Message("assistant", "c"))
        assert engine.render(doubled) == engine.render((Message("user", "a\n\nb"), Message("assistant", "c")))
    finally:
        loaded.tokenizer.chat_template = template
        engine.close()


def test_timeout_and_cancel_stop_and_the_worker_goes_on(engine: Engine) -> None:
    engine.generate(ask("warm"))
    with pytest.raises(RequestTimeoutError, match=r"0\.05"):
        engine.generate(ask("for ever", max_tokens=400, timeout_s=0.05))
    events: list[object] = []
    done = threading.Event()
    job = engine.submit(ask("for ever", max_tokens=400), lambda event: (events.append(event), done.set()))
    done.wait(5)
    job.cancel()
    deadline = time.monotonic() + 5
    while not isinstance(events[-1], BaseException) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(events[-1], RequestCancelledError)
    assert engine.generate(ask("warm")).token_ids


def test_a_waiting_job_times_out_while_another_runs(tiny: Tiny) -> None:
    engine = Engine(tiny("llama"), EngineConfig(max_concurrent=1))
    try:
        engine.generate(ask("warm"))
        running = engine.stream(ask("long", max_tokens=400))
        next(running)
        with pytest.raises(RequestTimeoutError):
            engine.generate(ask("short", timeout_s=0.02))
        running.close()
    finally:
        engine.close()


def test_max_tokens_is_bounded_by_the_context(engine: Engine) -> None:
    answer = engine.generate(ask("x" * 440, params=SamplingParams()))
    assert answer.report.prompt_tokens + len(answer.token_ids) <= 512
    assert answer.finish_reason == ("length" if len(answer.token_ids) == 512 - answer.report.prompt_tokens else "stop")


def test_sampling_is_reproducible_by_seed(engine: Engine) -> None:
    def draw(seed: int) -> tuple[int, ...]:
        params = SamplingParams(max_tokens=20, temperature=1.5, top_p=0.95, top_k=100, min_p=0.001, seed=seed)
        return engine.generate(ask("dice", params=params)).token_ids

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(5)}) > 1


def test_eight_threads_forty_requests_random_cancellations(tiny: Tiny) -> None:
    """Every answer that is not cancelled equals its single-threaded answer, and nothing leaks."""
    shared = "A long text that several agents read. " * 4
    requests = [
        ask(
            f"{shared if i % 2 else ''}question {i % 7}",
            max_tokens=8 + i % 9,
            system=f"Agent {i % 3}",
            namespace="ns",
        )
        for i in range(40)
    ]
    budget = 3 << 20
    config = EngineConfig(device_cache_bytes=budget, host_cache_bytes=0, reuse=ReuseConfig(mode="exact"))
    single = Engine(tiny("llama"), config)
    expected = [single.generate(request).token_ids for request in requests]
    single.close()
    engine = Engine(tiny("llama"), config)
    rng = random.Random(0)
    cancelled = {i for i in range(40) if rng.random() < 0.3}

    def serve(i: int) -> tuple[int, ...] | None:
        stream = engine.stream(requests[i])
        if i in cancelled:
            next(stream)
            stream.close()
            return None
        return next(event for event in stream if isinstance(event, Completion)).token_ids

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(serve, range(40)))
    assert all(answer == expected[i] for i, answer in enumerate(answers) if i not in cancelled)
    engine.generate(ask("last"))
    assert engine.stats.host_bytes <= budget
    assert engine.inspect(lambda core: core.backend).runner.spare_bytes <= 4 << 20
    engine.forget()
    assert engine.stats.host_bytes == engine.stats.nodes == 0
    engine.close()


def test_out_of_memory_evicts_and_retries_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.generate(ask("fill the store"))
    inference = engine.inspect(lambda core: core)
    forward, failures = inference.backend.runner.forward, [torch.OutOfMemoryError("CUDA out of memory")]

    def failing(*args: object, **kwargs: object) -> object:
        if failures:
            raise failures.pop()
        return forward(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(inference.backend.runner, "forward", failing)
    stored = engine.stats.host_bytes
    assert engine.generate(ask("squeeze", max_tokens=1)).token_ids
    assert engine.stats.host_bytes < stored
    failures[:] = [torch.OutOfMemoryError("CUDA out of memory")] * 2
    with pytest.raises(DeviceMemoryError):
        engine.generate(ask("too much"))
    assert engine.generate(ask("fine again")).token_ids


def test_an_internal_error_fails_one_request_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.generate(ask("warm"))
    inference = engine.inspect(lambda core: core)
    monkeypatch.setattr(inference.backend.runner, "forward", lambda *_: (_ for _ in ()).throw(ZeroDivisionError("bug")))
    with pytest.raises(ZeroDivisionError):
        engine.generate(ask("boom"))
    monkeypatch.undo()
    assert engine.generate(ask("boom", reuse="off")).token_ids == engine.generate(ask("boom")).token_ids


def test_immovable_models_refuse_corrected_reuse_and_serve_exact(tiny: Tiny) -> None:
    exact = Engine(tiny("dynamic-ntk"))
    assert exact.generate(ask("hello")).token_ids == exact.generate(ask("hello")).token_ids
    assert exact.reports[-1].placed_exact_tokens > 0
    exact.close()
    corrected = Engine(tiny("dynamic-ntk"), EngineConfig(reuse=ReuseConfig(mode="corrected")))
    with pytest.raises(UnsupportedModelError, match="depends on the length"):
        corrected.generate(ask("hello"))
    corrected.close()


def test_closed_engines_say_so(tiny: Tiny) -> None:
    engine = Engine(tiny("llama"))
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.generate(ask("anyone?"))


def test_engines_are_shared_by_model_and_config() -> None:
    assert shared_engine("some/model") is shared_engine("some/model")
    assert shared_engine("some/model") is not shared_engine("some/model", EngineConfig(max_context=64))


def test_settings_are_validated() -> None:
    for bad in (
        {"max_tokens": 0},
        {"temperature": -1},
        {"top_p": 0.0},
        {"top_k": 0},
        {"min_p": 2.0},
        {"stop": ("",)},
    ):
        with pytest.raises(ConfigError, match=next(iter(bad)).split("_")[0]):
            SamplingParams(**bad)  # type: ignore[arg-type]

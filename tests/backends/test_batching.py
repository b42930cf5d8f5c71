"""Requests that share forward passes: each answers as it would alone, whoever comes, goes or fails beside it."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import IMMOVABLE, MOVABLE
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm_agents import Completion, Constraint, EngineConfig, Message, Request, ReuseConfig, SamplingParams, TextChunk
from kvcomm_agents.backends.transformers.attention import Part
from kvcomm_agents.backends.transformers.batching import shares
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.errors import DeviceMemoryError, KVCommError, RequestCancelledError
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.plan import Computed, Placed, PrefillPlan

Tiny = Callable[[str], LoadedModel]


def words(length: int, seed: int) -> list[int]:
    return torch.randint(0, 255, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def runners(tiny: Tiny) -> Callable[[str], Runner]:
    made: dict[str, Runner] = {}
    return lambda family: made.setdefault(family, made.get(family) or Runner(tiny(family).model))


@pytest.mark.parametrize("family", [*MOVABLE, *IMMOVABLE])
def test_which_models_share_forward_passes(runners: Callable[[str], Runner], family: str) -> None:
    assert runners(family).ragged is (family in MOVABLE)


@pytest.mark.parametrize("family", MOVABLE)
def test_one_pass_over_many_contexts_gives_what_one_pass_each_does(
    runners: Callable[[str], Runner], family: str
) -> None:
    """A whole prompt, the end of one, scattered tokens, one token and several, all in one row."""
    runner = runners(family)
    texts = [words(40 + 7 * index, index) for index in range(5)]
    expected, parts = [], []
    for index, ids in enumerate(texts):
        cache = runner.open(len(ids))
        whole = runner.prefill(cache, ids, keep=3).logits
        expected.append(whole[-(index % 3 + 1) :])
        block = cache.capture(0, len(ids))
        shared = runner.open(len(ids))
        start = [0, 20, 0, len(ids) - 1, len(ids) - 4][index]
        runs = (Computed(start, len(ids)),)
        placed = (Placed(0, start, block.slice(0, start), True),) if start else ()
        if index == 2:
            runs = (Computed(0, 5), Computed(30, len(ids)))
            placed = (Placed(5, 30, block.slice(5, 30), True),)
        runner.assemble(shared, PrefillPlan(tuple(sorted((*placed, *runs), key=lambda run: run.start))))
        parts.append(runner.part(shared, ids, runs, keep=index % 3 + 1))
    for one, alone in zip(runner.forward(parts), expected, strict=True):
        torch.testing.assert_close(one, alone, atol=1e-4, rtol=1e-4)
    assert [part.cache.length for part in parts] == [len(ids) for ids in texts]


@settings(max_examples=20, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 90), min_size=1, max_size=8),
    scattered=st.booleans(),
    attended=st.integers(1, 60),
    squared=st.sampled_from([-1.0, 1 / 3, 100.0]),
)
def test_a_prompt_in_pieces_is_the_prompt(
    runners: Callable[[str], Runner], pieces: list[int], scattered: bool, attended: int, squared: float
) -> None:
    """In any pieces of a prompt that are computed one after the other, and any that attention takes at once."""
    runner, ids = runners("llama"), words(90, 1)
    cache = runner.open(90)
    expected = runner.prefill(cache, ids).logits[0]
    block = cache.capture(0, 90)
    plan = PrefillPlan((Computed(0, 90),))
    if scattered:
        middle = Placed(12, 30, block.slice(12, 30), True), Computed(30, 44), Placed(44, 70, block.slice(44, 70), True)
        plan = PrefillPlan((Computed(0, 12), *middle, Computed(70, 90)))
    piecewise, done = runner.open(90), 0
    runner.assemble(piecewise, plan)
    for size in [*pieces, 90]:
        if done < plan.computed_tokens:
            part: Part = runner.part(piecewise, ids, plan.computed_piece(done, size))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("kvcomm_agents.backends.transformers.query_blocks._PIECE", attended)
                patch.setattr("kvcomm_agents.backends.transformers.query_blocks._LEAD", squared)
                logits = runner.forward([part])[0]
            done += len(part.tokens)
            assert piecewise.length == part.end
    assert done == plan.computed_tokens
    torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=200)
@given(left=st.lists(st.integers(0, 500), max_size=20), budget=st.integers(1, 300))
def test_shares_of_a_pass(left: list[int], budget: int) -> None:
    given_ = shares(left, budget)
    assert all(0 <= share <= tokens for share, tokens in zip(given_, left, strict=True))
    assert sum(given_) == min(budget, sum(left))
    waiting = [index for index, tokens in enumerate(left) if tokens]
    if waiting:  # the first come gets on, whatever comes after it
        assert given_[waiting[0]] >= min(left[waiting[0]], budget / 2)


def ask(seed: int, length: int, max_tokens: int, **options: object) -> Request:
    return Request(
        prompt_ids=tuple(words(length, seed)),
        params=SamplingParams(max_tokens=max_tokens, stop=("q",) if seed % 5 == 0 else ()),
        namespace=f"n{seed % 3}",
        **options,  # type: ignore[arg-type]
    )


def alone(loaded: LoadedModel, requests: list[Request]) -> list[tuple[int, ...]]:
    engine = Engine(loaded, EngineConfig(max_concurrent=1, reuse=ReuseConfig(mode="off")))
    answers = [engine.generate(request).token_ids for request in requests]
    engine.close()
    return answers


@pytest.mark.parametrize(
    ("family", "seed"),
    [("llama", 0), ("llama", 1), ("llama", 2), ("qwen3", 3), ("cohere-interleaved", 4), ("sliding-window", 5)],
)
def test_any_mix_of_arrivals_and_cancellations_answers_as_alone(tiny: Tiny, family: str, seed: int) -> None:
    rng = random.Random(seed)
    requests = [ask(rng.randrange(12), rng.choice([3, 30, 90]), rng.randrange(1, 20)) for _ in range(16)]
    expected = alone(tiny(family), requests)
    config = EngineConfig(max_concurrent=7, prefill_chunk=rng.choice([5, 32, 128]), reuse=ReuseConfig(mode="exact"))
    engine = Engine(tiny(family), config)
    gone = {index for index in range(16) if rng.random() < 0.25}
    pauses = [rng.random() * 0.02 for _ in requests]

    def serve(index: int) -> tuple[int, ...] | None:
        threading.Event().wait(pauses[index])
        events: queue.SimpleQueue[object] = queue.SimpleQueue()
        job = engine.submit(requests[index], events.put)
        if index in gone:
            threading.Event().wait(pauses[-index])
            job.cancel()
        while True:
            event = events.get()
            if isinstance(event, Completion):
                return event.token_ids
            if isinstance(event, RequestCancelledError):
                return None
            assert isinstance(event, TextChunk)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(serve, range(16)))
    engine.close()
    for index, answer in enumerate(answers):
        assert answer == expected[index] or (answer is None and index in gone)


@pytest.fixture
def shared(tiny: Tiny) -> Iterator[Engine]:
    """An engine that waits for three requests before it goes on."""
    engine = Engine(tiny("llama"), EngineConfig(reuse=ReuseConfig(mode="exact")))
    engine.generate(ask(0, 5, 1))
    yield engine
    engine.close()


def together(engine: Engine, requests: list[Request]) -> list[Completion | BaseException]:
    """Answers of requests that the worker finds waiting all at once."""
    gate = threading.Event()
    worker = engine._worker
    worker.call(lambda _: gate.wait(10))
    results: list[queue.SimpleQueue[object]] = [queue.SimpleQueue() for _ in requests]
    for request, events in zip(requests, results, strict=True):
        engine.submit(request, events.put)
    gate.set()
    answers: list[Completion | BaseException] = []
    for events in results:
        while isinstance(event := events.get(timeout=30), TextChunk):
            pass
        assert isinstance(event, Completion | BaseException)
        answers.append(event)
    return answers


def test_they_do_share_forward_passes(shared: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    inference = shared.inspect(lambda core: core)
    forward, sizes = inference.backend.runner.forward, list[int]()

    def counting(parts: list[Part]) -> list[torch.Tensor]:
        sizes.append(len(parts))
        return forward(parts)

    monkeypatch.setattr(inference.backend.runner, "forward", counting)
    answers = together(shared, [ask(seed, 20, 10) for seed in (1, 2, 3)])
    assert all(isinstance(answer, Completion) for answer in answers)
    assert max(sizes) == 3
    assert len(sizes) <= 12


def test_a_long_prompt_does_not_hold_up_a_stream(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one decodes, each pass gives it a token and computes no more than a chunk of the other's prompt."""
    engine = Engine(tiny("llama"), EngineConfig(prefill_chunk=32, reuse=ReuseConfig(mode="exact")))
    engine.generate(ask(0, 5, 1))
    inference = engine.inspect(lambda core: core)
    forward, passes = inference.backend.runner.forward, list[list[int]]()

    def watching(parts: list[Part]) -> list[torch.Tensor]:
        passes.append([len(part.tokens) for part in parts])
        return forward(parts)

    monkeypatch.setattr(inference.backend.runner, "forward", watching)
    together(engine, [ask(1, 20, 40), ask(2, 450, 5)])
    engine.close()
    assert passes[0] == [20, 108]
    pieces = [tokens for tokens in passes[1:] if tokens[-1] > 1]
    assert [sum(tokens) for tokens in pieces[:-1]] == [33] * (len(pieces) - 1)
    assert len(pieces) == -(-(450 - 108) // 32)


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_request_that_breaks_the_pass_fails_alone(
    shared: Engine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    requests = [ask(1, 20, 12), ask(2, 60, 12), ask(3, 21, 12)]
    expected = alone(tiny("llama"), requests)
    inference = shared.inspect(lambda core: core)
    forward = inference.backend.runner.forward

    def breaking(parts: list[Part]) -> list[torch.Tensor]:
        if any(part.end == 60 + 5 for part in parts):  # the second one, at its sixth token
            forward(parts)
            raise error
        return forward(parts)

    monkeypatch.setattr(inference.backend.runner, "forward", breaking)
    first, second, third = together(shared, requests)
    assert isinstance(second, DeviceMemoryError if isinstance(error, torch.OutOfMemoryError) else ZeroDivisionError)
    assert isinstance(first, Completion)
    assert isinstance(third, Completion)
    assert (first.token_ids, third.token_ids) == (expected[0], expected[2])


def test_constraints_seeds_and_stop_strings_keep_to_their_own(shared: Engine) -> None:
    point = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    messages = (Message("user", "one"),)
    dice = SamplingParams(max_tokens=20, temperature=1.5, seed=7)
    mixed = [
        Request(messages, SamplingParams(max_tokens=30), constraint=Constraint(point)),
        Request(messages, dice),
        ask(5, 30, 25),
        Request(messages, SamplingParams(max_tokens=15, repetition_penalty=1.3)),
        Request(messages, SamplingParams(max_tokens=5), constraint=Constraint({"type": "no such type"})),
        ask(6, 600, 3),
    ]
    one_by_one = [together(shared, [request])[0] for request in mixed]
    at_once = together(shared, mixed)
    for single, joint in zip(one_by_one, at_once, strict=True):
        if isinstance(single, Completion):
            assert isinstance(joint, Completion)
            assert (joint.token_ids, joint.text, joint.finish_reason) == (
                single.token_ids,
                single.text,
                single.finish_reason,
            )
        else:
            assert type(joint) is type(single)
            assert isinstance(joint, KVCommError)


def test_a_prompt_given_up_half_way_leaves_the_store_sound(tiny: Tiny) -> None:
    engine = Engine(tiny("llama"), EngineConfig(prefill_chunk=8, reuse=ReuseConfig(mode="exact")))
    request = ask(3, 400, 8)
    expected = alone(tiny("llama"), [request])[0]
    engine.generate(ask(1, 5, 1))
    stream = engine.stream(ask(2, 10, 400))
    next(stream)
    events: queue.SimpleQueue[object] = queue.SimpleQueue()
    job = engine.submit(request, events.put)
    threading.Event().wait(0.05)
    job.cancel()
    assert isinstance(events.get(timeout=10), RequestCancelledError)
    stream.close()
    answer = engine.generate(request)
    assert answer.token_ids == expected
    engine.close()

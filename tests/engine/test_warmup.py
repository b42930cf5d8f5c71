"""Warm-up through the whole engine: spans before anybody has read them, and what must not come of it."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest
from two_agents import WORDS, made, make_speaker

from kvcomm_agents import Completion, EngineConfig, Message, Request, ReuseConfig, SamplingParams
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.errors import ConfigError, ContextLengthError, EngineClosedError, UnsupportedModelError
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.planning.guard import Guard, Situation
from kvcomm_agents.planning.namespace import Namespace

Tiny = Callable[[str], LoadedModel]


def passage(seed: int, words: int = 9) -> str:
    return "About " + ", ".join(random.Random(seed).choices(WORDS, k=words)) + f" we know {seed} things."


@pytest.fixture(scope="module")
def speaker() -> LoadedModel:
    return make_speaker()


@pytest.fixture
def engine(speaker: LoadedModel) -> Iterator[Engine]:
    engine = made(speaker, mode="corrected", audit_share=1.0, pack_tokens=128)
    yield engine
    engine.close()


def request(agent: str, seeds: tuple[int, ...], **options: object) -> Request:
    told = "\n".join(f"Passage {place}: {passage(seed)}" for place, seed in enumerate(seeds))
    system = Message("system", f"You are agent {agent} and have instructions of your own.")
    params = SamplingParams(max_tokens=6)
    return Request((system, Message("user", f"{told}\nWhat is that?")), params, agent=agent, **options)  # type: ignore[arg-type]


def ask(engine: Engine, agent: str, seeds: tuple[int, ...], **options: object) -> Completion:
    answer = engine.generate(request(agent, seeds, **options))
    engine.settle()
    return answer


def memory(engine: Engine, namespace: str = "default") -> Namespace:
    return engine.inspect(lambda core: core.policy.namespace(namespace))


def test_texts_are_spans_before_anybody_reads_them(engine: Engine) -> None:
    report = engine.warm([passage(1), passage(2), passage(2), "short"])
    assert (report.texts, report.warmed, report.known, report.short) == (3, 2, 0, 1)
    assert report.packs >= 1
    assert report.tokens == report.packs + sum(len(engine.tokenizer(passage(n))["input_ids"]) for n in (1, 2))
    assert report.seconds > 0
    again = engine.warm([passage(1), passage(3)])
    assert (again.warmed, again.known) == (1, 1)
    assert [span.warmed for span in memory(engine).library.spans()] == [True] * 3


def test_a_reader_who_knows_warmed_texts_is_given_new_ones(engine: Engine) -> None:
    for seed in range(0, 12, 2):
        engine.warm([passage(seed), passage(seed + 1)])
        report = ask(engine, "reader", (seed, seed + 1)).report
    assert report.placed_corrected_tokens > 60
    cold = ask(engine, "reader", (100, 101)).report
    assert cold.placed_corrected_tokens < report.placed_corrected_tokens - 60


def test_with_the_guard_warmed_texts_are_placed_and_read_from_then_on(speaker: LoadedModel) -> None:
    engine = made(speaker, mode="auto", max_divergence=100.0)
    placed = []
    for seed in range(9):
        engine.warm([passage(seed)])
        placed.append(ask(engine, "reader", (seed,)).report.placed_corrected_tokens)
    assert all(placed), "no measurement is needed to begin"
    assert placed[-1] > 20
    seen = {record.situation.warmed > 0 for record in memory(engine).guard._records}
    assert True in seen
    engine.close()


def test_warmed_and_true_donors_share_no_map(engine: Engine) -> None:
    for seed in range(4):
        engine.warm([passage(seed)])
        ask(engine, "first", (seed,), reuse="exact")
        ask(engine, "second", (seed,), reuse="exact")
    learned = memory(engine)
    first = {slot.warmed for slot, _ in learned.corrections.pool if slot.agent == "first"}
    second = {slot.warmed for slot, _ in learned.corrections.pool if slot.agent == "second"}
    assert first == {True}  # nobody had read the texts
    assert second == {False}  # the first reader's context was the donor by then


def test_the_first_exact_reader_becomes_the_donor(engine: Engine) -> None:
    engine.warm([passage(5)])
    (before,) = memory(engine).library.spans()
    base = before.base
    ask(engine, "first", (5,), reuse="exact")
    after = memory(engine).library[before.id]
    assert (after.warmed, after.producer) == (False, "first")
    assert (after.base.keys - base.keys).abs().max() > 1e-3
    assert (after.base.keys[0] - base.keys[0]).abs().max() < 1e-3  # the first layer knows no context


def test_exact_requests_never_read_what_was_warmed(speaker: LoadedModel, engine: Engine) -> None:
    plain = made(speaker, mode="exact")
    for seed in range(4):
        engine.warm([passage(seed)])
        warmed, dense = ask(engine, "reader", (seed,), reuse="exact"), ask(plain, "reader", (seed,), reuse="off")
        assert warmed.token_ids == dense.token_ids
        assert warmed.report.placed_corrected_tokens == 0
    plain.close()


def test_namespaces_are_walls(engine: Engine) -> None:
    engine.warm([passage(7)], namespace="a")
    assert len(memory(engine, "a").library) == 1
    assert len(memory(engine, "b").library) == 0
    assert engine.warm([passage(7)], namespace="b").warmed == 1
    engine.forget("a")
    assert len(memory(engine, "a").library) == 0


def test_the_guard_expects_more_divergence_of_warmed_texts() -> None:
    guard, read = Guard(0.02), Situation(300, 0.5)
    assert guard.predict("reader", "raw32", Situation(300, 0.5, warmed=1.0)) > 2 * guard.predict(
        "reader", "raw32", read
    )


def test_long_texts_are_computed_in_parts_and_to_the_same_base(speaker: LoadedModel) -> None:
    at_once = EngineConfig(prefill_chunk=500, reuse=ReuseConfig(mode="auto", pack_tokens=500))
    whole, parts = Engine(speaker, at_once), made(speaker, mode="auto", pack_tokens=32)
    text = passage(1, words=30)
    assert whole.warm([text]).packs == 1
    assert parts.warm([text]).packs > 4  # of 32 tokens each
    one, other = (memory(engine).library.spans()[0].base for engine in (whole, parts))
    assert (one.keys - other.keys).abs().max() / one.keys.abs().max() < 1e-4
    assert (one.values - other.values).abs().max() / one.values.abs().max() < 1e-4
    whole.close()
    parts.close()


def test_a_request_waits_for_one_pack_at_most(engine: Engine) -> None:
    """A request that comes while a hundred texts wait is answered before the second pack after it begins."""
    engine.generate(request("reader", (0,)))
    engine.settle()
    runner, warming = engine.inspect(lambda core: core.backend).runner, threading.Event()
    order, apart, forward = [], runner.prefill_apart, runner.forward

    def packed(*args: object) -> None:
        apart(*args)  # type: ignore[arg-type]
        order.append("pack")
        warming.set()

    def served(*args: object) -> object:
        order.append("request")
        return forward(*args)  # type: ignore[arg-type]

    runner.prefill_apart, runner.forward = packed, served  # type: ignore[method-assign, assignment]
    future = engine.submit_warm([passage(seed) for seed in range(100, 200)])
    assert warming.wait(10)
    before = len(order)
    engine.generate(request("reader", (1,)))
    at = order.index("request")
    assert at - before <= 2  # the pack in flight, and one that had begun before the request was queued
    assert not future.done()
    report = future.result()
    assert report.warmed == 100
    assert order.count("pack") > at + 2


def test_async_face_and_cancelling(engine: Engine) -> None:
    async def both() -> None:
        assert (await engine.awarm([passage(1)])).warmed == 1
        task = asyncio.create_task(engine.awarm([passage(seed) for seed in range(100, 400)]))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(both())
    assert engine.settle(10)
    assert len(memory(engine).library) < 300
    assert ask(engine, "reader", (1,)).report.output_tokens > 0


def test_what_cannot_be_warmed_is_refused_and_nothing_is_lost(tiny: Tiny, speaker: LoadedModel, engine: Engine) -> None:
    with pytest.raises(ContextLengthError, match="holds 512"):
        engine.warm([passage(1), "word " * 300])
    assert engine.warm([passage(1)]).warmed == 1
    with pytest.raises(ConfigError, match="int"):
        engine.warm([passage(1), 3])  # type: ignore[list-item]
    assert engine.warm([]).texts == 0
    exact = made(speaker, mode="exact")
    with pytest.raises(ConfigError, match="mode='auto'"):
        exact.warm([passage(1)])
    exact.close()
    closed = made(speaker, mode="auto")
    closed.close()
    with pytest.raises(EngineClosedError):
        closed.warm([passage(1)])
    fixed = Engine(tiny("sliding-window"), EngineConfig(reuse=ReuseConfig(mode="auto")))
    with pytest.raises(UnsupportedModelError, match="sliding-window"):
        fixed.warm([passage(1)])
    assert fixed.generate(request("a", (1,))).report.output_tokens > 0
    fixed.close()


def test_closing_ends_what_waits(speaker: LoadedModel) -> None:
    engine = made(speaker, mode="auto")
    future = engine.submit_warm([passage(seed) for seed in range(400)])
    engine.close()
    with pytest.raises((EngineClosedError, CancelledError)):
        future.result(10)


def test_a_large_warm_up_pushes_out_its_like_and_no_donor(speaker: LoadedModel) -> None:
    engine = made(speaker, mode="auto", span_bytes=200_000)
    ask(engine, "reader", (0,))
    donors = [span.id for span in memory(engine).library.spans()]
    engine.warm([passage(seed) for seed in range(100, 160)])
    library = memory(engine).library
    assert all(span in library for span in donors)
    assert library.nbytes <= 200_000
    warmed = [span.base.nbytes for span in library.spans() if span.warmed]
    assert 0 < sum(warmed) <= 100_000
    engine.close()


def test_an_audited_reader_becomes_the_donor_of_all_that_it_read(speaker: LoadedModel) -> None:
    """Though the first tokens of a text, which it computed, are in its exact prefix by then."""
    engine = made(speaker, mode="corrected", audit_share=1.0)
    for seed in range(6):
        engine.warm([passage(seed)])
        report = ask(engine, "reader", (seed,)).report
    assert report.placed_corrected_tokens > 20
    assert [span for span in memory(engine).library.spans() if span.warmed] == []
    engine.close()

"""The invariants of the runner and of reuse, on the real small model."""

from __future__ import annotations

import random

import pytest
import torch
from test_runner import greedy, split

from kvcomm_agents import EngineConfig, Message, Request, ReuseConfig, SamplingParams, load_model
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.models.loading import DEFAULT_MODEL, LoadedModel

pytestmark = pytest.mark.weights
TEXT = "A library lends books for three weeks. After that, each day costs ten cents, up to the price of the book. " * 8


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(DEFAULT_MODEL, device="cpu", dtype="float32")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("moved", [False, True])
def test_any_split_equals_dense(loaded: LoadedModel, seed: int, moved: bool) -> None:
    runner = Runner(loaded.model)
    ids = loaded.tokenizer(TEXT)["input_ids"][:180]
    cache = runner.open(len(ids))
    runner.prefill(cache, ids)
    block = cache.capture(0, len(ids))
    if moved:
        block = block.unrotated(runner.layout.require_movable())
    cuts = random.Random(seed).sample(range(1, len(ids) - 1), 7)
    expected_logits, expected = greedy(runner, ids, None, 32)
    logits, tokens = greedy(runner, ids, split(cuts, seed % 2 == 0, block, len(ids)), 32)
    torch.testing.assert_close(logits, expected_logits, atol=1e-3, rtol=1e-3)
    assert tokens == expected


def test_the_second_agent_places_the_first_ones_answer(loaded: LoadedModel) -> None:
    """After a few tasks the reviewer is given corrected KV, exact mode still equals dense, and audits agree."""
    engine = Engine(loaded, EngineConfig(reuse=ReuseConfig(max_divergence=0.5, audit_share=1.0, min_placed=12)))
    params = SamplingParams(max_tokens=32)

    def ask(agent: str, system: str, text: str, reuse: str | None = None) -> tuple[str, int, tuple[int, ...]]:
        messages = (Message("system", system), Message("user", text))
        answer = engine.generate(Request(messages, params, agent=agent, reuse=reuse))  # type: ignore[arg-type]
        engine.settle()
        return answer.text, answer.report.placed_corrected_tokens, answer.token_ids

    placed = 0
    topics = ["tides", "yeast", "rainbows", "magnets", "glaciers", "soap", "batteries", "echoes"]
    for topic in topics:
        question = f"Explain to a curious child, in two short sentences, how {topic} work and where one can see them."
        written, _, _ = ask("writer", "You explain things simply and never use difficult words.", question)
        review = f"The task was: {question}\n\nThe writer answered: {written}\n\nSay in one sentence what is missing."
        _, placed, _ = ask("reviewer", "You review short texts for a school book and are brief.", review)
    assert placed > 40
    exact = ask("reviewer", "You review short texts for a school book and are brief.", review, "exact")
    dense = ask("reviewer", "You review short texts for a school book and are brief.", review, "off")
    assert exact[1:] == (0, dense[2])
    policy = engine.inspect(lambda core: core.policy)
    audited, exceeded = policy.namespace("default").guard.coverage()
    assert audited > 0
    assert exceeded == 0
    engine.close()

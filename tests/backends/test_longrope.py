"""Longrope: a context has short or long factors by its own length, and answers what `generate` answers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import LONGROPE, byte_tokenizer, sharpened
from transformers import CONFIG_MAPPING

from kvcomm_agents import Constraint, EngineConfig, Request, ReuseConfig, SamplingParams
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.config import ReuseMode
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.models.loading import LoadedModel

ORIGINAL, ANSWER = 64, 20
LENGTHS = (40, 58, 63, 64, 65, 70, 130, 300)
"""Of prompts: answers that stay below the switch, cross it, begin at it and behind it."""

# phi3 and phimoe compute a context anew that crosses; a llama goes on with the keys that it has.
FAMILIES = {
    "phi3": {"original_max_position_embeddings": ORIGINAL, "sliding_window": None},
    "phimoe": {"original_max_position_embeddings": ORIGINAL, "num_local_experts": 4},
    "llama": {},
}
Make = Callable[[str, int], LoadedModel]


@pytest.fixture(scope="module")
def made() -> Make:
    models: dict[tuple[str, int], LoadedModel] = {}

    def get(family: str, seed: int) -> LoadedModel:
        if (family, seed) not in models:
            scales = {"short_mscale": 1.1, "long_mscale": 1.2} if family == "phimoe" else {}
            config = CONFIG_MAPPING[family](
                vocab_size=300,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                pad_token_id=None,
                bos_token_id=None,
                eos_token_id=257,
                rope_parameters=LONGROPE | scales,
                **FAMILIES[family],
            )
            models[family, seed] = LoadedModel.of(sharpened(config, seed), byte_tokenizer(), name=family)
        return models[family, seed]

    return get


def prompt(length: int, seed: int) -> list[int]:
    """Prompts of one seed are prefixes of each other."""
    return torch.randint(0, 255, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def generated(loaded: LoadedModel, ids: list[int], tokens: int = ANSWER) -> list[int]:
    """What transformers answers."""
    given = torch.tensor([ids])
    output = loaded.model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return [token for token in output[0, len(ids) :].tolist() if token != 257]


def answer(engine: Engine, ids: list[int], mode: ReuseMode | None = None, tokens: int = ANSWER) -> list[int]:
    params = SamplingParams(max_tokens=tokens, temperature=0)
    return list(engine.generate(Request((), prompt_ids=tuple(ids), params=params, reuse=mode)).token_ids)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("chunk", "max_context"), [(16, None), (64, None), (16, ORIGINAL)])
def test_answers_are_those_of_generate(made: Make, family: str, chunk: int, max_context: int | None) -> None:
    """In any pieces, alone and together, on prefixes stored by shorter, longer and crossing contexts."""
    loaded = made(family, 0)
    prompts = [prompt(length, 0) for length in LENGTHS if length + ANSWER <= (max_context or 512)]
    expected = [generated(loaded, ids) for ids in prompts]
    reuse = ReuseConfig(mode="exact", min_prefix=1)
    engine = Engine(loaded, EngineConfig(reuse=reuse, prefill_chunk=chunk, max_context=max_context))
    try:
        for mode in ("off", "exact", "exact"):
            assert [answer(engine, ids, mode) for ids in prompts] == expected, mode
        with ThreadPoolExecutor(len(prompts)) as pool:
            assert list(pool.map(lambda ids: answer(engine, ids), prompts)) == expected
    finally:
        engine.close()


def test_a_conversation_goes_on_across_the_switch(made: Make) -> None:
    """Each prompt is the one before, its answer, and more; prefixes are placed on both sides of the switch."""
    loaded = made("phi3", 0)
    engine = Engine(loaded, EngineConfig(reuse=ReuseConfig(mode="exact", min_prefix=1), prefill_chunk=32))
    try:
        ids, placed = prompt(20, 5), []
        for turn in range(5):
            params = SamplingParams(max_tokens=9, temperature=0)
            completion = engine.generate(Request((), prompt_ids=tuple(ids), params=params))
            assert list(completion.token_ids) == generated(loaded, ids, 9), turn
            placed.append((len(ids), completion.report.placed_exact_tokens))
            ids = [*ids, *completion.token_ids, *prompt(20, turn)]
        # The third prompt is the first long one, and takes nothing from short ones.
        assert [length for length, _ in placed[:4]] == [20, 49, 78, 107], placed
        assert [bool(tokens) for _, tokens in placed] == [False, True, False, True, True], placed
    finally:
        engine.close()


def test_forced_tokens_cross_the_switch(made: Make) -> None:
    """A constraint that forces many tokens at once across the switch ends as it would far below it."""
    loaded = made("phi3", 1)
    constraint = Constraint(schema={"enum": ["the one and only answer that may be given here"]})
    engine = Engine(loaded, EngineConfig(reuse=ReuseConfig(mode="exact"), prefill_chunk=16))
    try:
        texts = [
            engine.generate(Request((), prompt_ids=tuple(prompt(length, 3)), constraint=constraint)).text
            for length in (5, 50, 200)
        ]
    finally:
        engine.close()
    assert texts == ['"the one and only answer that may be given here"'] * 3


@pytest.mark.parametrize(("max_context", "movable"), [(None, False), (ORIGINAL + 1, False), (ORIGINAL, True)])
def test_a_context_below_the_switch_can_be_moved(made: Make, max_context: int | None, movable: bool) -> None:
    runner = Runner(made("phi3", 0).model, max_context=max_context)
    assert (runner.layout.rope is not None, runner.ragged) == (movable, movable)
    assert ("longrope" in runner.layout.reason) is not movable


def test_a_model_is_left_as_it_was(made: Make) -> None:
    """Whoever else uses it gets what transformers gives, after contexts of both kinds were served."""
    loaded = made("phi3", 0)
    before = [generated(loaded, prompt(length, 1)) for length in (40, 100)]
    engine = Engine(loaded, EngineConfig(reuse=ReuseConfig(mode="off")))
    try:
        for length in (40, 100, 40):
            answer(engine, prompt(length, 1))
        assert [generated(loaded, prompt(length, 1)) for length in (40, 100)] == before
    finally:
        engine.close()

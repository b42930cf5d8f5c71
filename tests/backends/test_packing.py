"""Documents packed behind a shared first token are as if each was alone behind it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import MOVABLE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from kvcomm_agents.backends.transformers.packing import IGNORED, Pack, Positions, pack, pack_rows, packed_mask, sees
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.errors import PackError, UnsupportedModelError
from kvcomm_agents.models.loading import LoadedModel

Tiny = Callable[[str], LoadedModel]
FIRST = 3


def documents(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 255, (length,), generator=generator).tolist() for length in lengths]


def separate(runner: Runner, row: Pack, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Un-rotated keys and values of one document computed alone behind the first token, at the same positions."""
    start, stop = row.edges[index]
    tokens = torch.cat([row.ids[:1], row.ids[start:stop]])[None]
    at = torch.cat([row.positions[:1], row.positions[start:stop]])[None]
    causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        layers = runner.model(tokens, attention_mask=causal, position_ids=at, use_cache=True).past_key_values.layers
    keys, values = torch.cat([one.keys for one in layers]), torch.cat([one.values for one in layers])
    rope = runner.layout.require_movable()
    return rope.unrotate(keys[:, :, 1:], int(at[0, 1])), values[:, :, 1:]


@pytest.mark.parametrize("positions", ["reset", "running"])
@pytest.mark.parametrize("family", MOVABLE)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_packed_equals_separate(tiny: Tiny, family: str, positions: Positions, lengths: list[int]) -> None:
    runner = Runner(tiny(family).model)
    row = pack(documents(lengths), FIRST, positions)
    for index, block in enumerate(runner.prefill_pack(row)):
        keys, values = separate(runner, row, index)
        scale = 1 + max(keys.abs().max(), values.abs().max())  # random models reach into the hundreds
        torch.testing.assert_close(block.keys / scale, keys / scale, atol=2e-5, rtol=0)
        torch.testing.assert_close(block.values / scale, values / scale, atol=2e-5, rtol=0)


def test_immovable_models_are_refused(tiny: Tiny) -> None:
    runner = Runner(tiny("sliding-window").model)
    with pytest.raises(UnsupportedModelError, match="sliding-window"):
        runner.prefill_pack(pack(documents([5]), FIRST))


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), shared=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_token_sees_its_document_and_the_first_token(lengths: list[int], shared: bool) -> None:
    row = pack(documents(lengths), FIRST)
    mask = packed_mask(row.segments, shared_first=shared)
    assert mask.shape == (1, 1, len(row.ids), len(row.ids))
    size = len(row.ids)
    assert torch.equal(mask, create_mask(sees(row.segments, shared_first=shared), 1, 1, size, size, "cpu"))
    for q in range(size):
        for k in range(size):
            same = row.segments[q] == row.segments[k] or (shared and k == 0)
            assert bool(mask[0, 0, q, k]) == bool(k <= q and same)


def test_positions_start_anew_or_run_on() -> None:
    assert pack(documents([2, 3]), FIRST, "reset").positions.tolist() == [0, 1, 2, 1, 2, 3]
    assert pack(documents([2, 3]), FIRST, "running").positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert pack(documents([2, 3]), FIRST).edges == ((1, 3), (3, 6))


def test_no_document_predicts_the_next_ones_first_token() -> None:
    row = pack([[7, 8], [9, 10, 11]], FIRST)
    assert row.labels.tolist() == [IGNORED, IGNORED, 8, IGNORED, 10, 11]


def test_rows_are_full_and_lose_no_token_but_the_last_ones() -> None:
    texts = documents([5, 17, 1, 8, 30])
    rows = pack_rows(texts, FIRST, 10)
    assert {len(row.ids) for row in rows} == {10}
    assert all(int(row.ids[0]) == FIRST for row in rows)
    told = [token for row in rows for token in row.ids[1:].tolist()]
    assert told == sum(texts, [])[: len(told)]
    assert len(sum(texts, [])) - len(told) < 9


def test_added_scores_and_eager_attention_say_the_same(tiny: Tiny) -> None:
    model = tiny("llama").model
    row = pack(documents([6, 9]), FIRST)
    with torch.no_grad():
        called = {"input_ids": row.ids[None], "position_ids": row.positions[None]}
        expected = model(attention_mask=packed_mask(row.segments), **called).logits
        added = packed_mask(row.segments, dtype=torch.float32)
        model.set_attn_implementation("eager")
        try:
            eager = model(attention_mask=added, **called).logits
        finally:
            model.set_attn_implementation("sdpa")
    torch.testing.assert_close(eager, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("texts", [[], [[1], []]])
def test_nothing_cannot_be_packed(texts: list[list[int]]) -> None:
    with pytest.raises(PackError, match=f"{len(texts)} documents"):
        pack(texts, FIRST)
    with pytest.raises(PackError, match="rows of 1"):
        pack_rows(documents([3]), FIRST, 1)


@pytest.mark.weights
@pytest.mark.parametrize("positions", ["reset", "running"])
def test_packed_equals_separate_on_the_small_model(positions: Positions) -> None:
    from kvcomm_agents import load_model
    from kvcomm_agents.models.loading import DEFAULT_MODEL

    loaded = load_model(DEFAULT_MODEL, device="cpu", dtype="float32")
    runner = Runner(loaded.model)
    text = loaded.tokenizer("The tide follows the moon, and the moon follows nobody. " * 20)["input_ids"]
    row = pack([text[:21], text[5:150], text[:1], text[30:90]], 1, positions)
    for index, block in enumerate(runner.prefill_pack(row)):
        keys, values = separate(runner, row, index)
        torch.testing.assert_close(block.keys, keys, atol=2e-4, rtol=0)
        torch.testing.assert_close(block.values, values, atol=2e-4, rtol=0)

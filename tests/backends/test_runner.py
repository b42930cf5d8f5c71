"""Any split of a prompt into placed and computed runs gives the dense result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import IMMOVABLE, MOVABLE
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.errors import UnsupportedModelError
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.plan import Computed, Placed, PrefillPlan, Run

LENGTH = 90


def prompt(length: int = LENGTH, seed: int = 1) -> list[int]:
    return torch.randint(0, 255, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def split(cuts: list[int], placed_first: bool, block: KVBlock, length: int = LENGTH) -> PrefillPlan:
    """Alternate placed and computed runs at the cuts; the last token is always computed."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < length - 1}), length - 1, length]
    runs: list[Run] = []
    for index, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        place = (index % 2 == 0) is placed_first and stop < length
        runs.append(Placed(start, stop, block.slice(start, stop), True) if place else Computed(start, stop))
    return PrefillPlan(tuple(runs))


def greedy(runner: Runner, ids: list[int], plan: PrefillPlan | None, tokens: int) -> tuple[torch.Tensor, list[int]]:
    cache = runner.open(len(ids) + tokens)
    first = logits = runner.prefill(cache, ids, plan).logits[0]
    output = [int(logits.argmax())]
    while len(output) < tokens:
        logits = runner.decode(cache, output[-1])
        output.append(int(logits.argmax()))
    runner.close(cache)
    return first, output


@pytest.fixture(scope="module")
def runners(tiny: Callable[[str], LoadedModel]) -> Callable[[str], Runner]:
    made: dict[str, Runner] = {}
    return lambda family: made.setdefault(family, made.get(family) or Runner(tiny(family).model))


@pytest.mark.parametrize("family", MOVABLE)
@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(1, LENGTH - 2), max_size=8), placed_first=st.booleans(), moved=st.booleans())
def test_any_split_equals_dense(
    runners: Callable[[str], Runner], family: str, cuts: list[int], placed_first: bool, moved: bool
) -> None:
    runner, ids = runners(family), prompt()
    cache = runner.open(LENGTH)
    runner.prefill(cache, ids)
    block = cache.capture(0, LENGTH)
    if moved:
        block = block.unrotated(runner.layout.require_movable())
    dense_logits, dense_tokens = greedy(runner, ids, None, 32)
    logits, tokens = greedy(runner, ids, split(cuts, placed_first, block), 32)
    torch.testing.assert_close(logits, dense_logits, atol=1e-4, rtol=1e-4)
    assert tokens == dense_tokens


@pytest.mark.parametrize("family", [*MOVABLE, *IMMOVABLE])
@pytest.mark.parametrize("prefix", [1, 40, LENGTH - 1])
def test_exact_prefix_equals_dense(runners: Callable[[str], Runner], family: str, prefix: int) -> None:
    runner, ids = runners(family), prompt()
    cache = runner.open(LENGTH)
    runner.prefill(cache, ids)
    plan = PrefillPlan((Placed(0, prefix, cache.capture(0, prefix), True), Computed(prefix, LENGTH)))
    dense_logits, dense_tokens = greedy(runner, ids, None, 24)
    logits, tokens = greedy(runner, ids, plan, 24)
    torch.testing.assert_close(logits, dense_logits, atol=1e-4, rtol=1e-4)
    assert tokens == dense_tokens


@pytest.mark.parametrize("family", [*MOVABLE, *IMMOVABLE])
def test_dense_and_decode_equal_transformers(
    runners: Callable[[str], Runner], tiny: Callable[[str], LoadedModel], family: str
) -> None:
    runner, ids, model = runners(family), prompt(), tiny(family).model
    logits, tokens = greedy(runner, ids, None, 8)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1]
        whole = model(torch.tensor([ids + tokens[:-1]])).logits[0, LENGTH - 1 :].argmax(-1)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert tokens == whole.tolist()


@pytest.mark.parametrize("family", IMMOVABLE)
def test_immovable_models_say_why(runners: Callable[[str], Runner], family: str) -> None:
    runner, ids = runners(family), prompt()
    reason = IMMOVABLE[family][2]
    assert reason in runner.layout.reason
    cache = runner.open(LENGTH)
    runner.prefill(cache, ids)
    moved = PrefillPlan((Computed(0, 10), Placed(10, 20, cache.capture(0, 10), False), Computed(20, LENGTH)))
    with pytest.raises(UnsupportedModelError, match=reason):
        runner.prefill(cache, ids, moved)


def test_scattered_tokens_see_only_what_is_before_them(runners: Callable[[str], Runner]) -> None:
    """A placed block of nonsense after a computed token must not change that token's KV."""
    runner, ids = runners("llama"), prompt()
    cache = runner.open(LENGTH)
    runner.prefill(cache, ids)
    dense = cache.capture(0, LENGTH)
    nonsense = KVBlock(torch.randn_like(dense.keys), torch.randn_like(dense.values), None).slice(0, 30)
    runner.prefill(cache, ids, PrefillPlan((Computed(0, 50), Placed(50, 80, nonsense, False), Computed(80, LENGTH))))
    torch.testing.assert_close(cache.capture(0, 50).values, dense.values[:, :, :50], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(cache.capture(80, 90).values[-1], dense.values[-1, :, 80:90], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_prefix_is_bit_exact(dtype: torch.dtype) -> None:
    from conftest import tiny_model

    runner, ids = Runner(tiny_model("llama", dtype).model), prompt()
    assert runner.layout.rope is not None
    cache = runner.open(LENGTH)
    runner.prefill(cache, ids)
    own = cache.capture(0, 60)
    again = runner.open(LENGTH)
    runner.prefill(again, ids, PrefillPlan((Placed(0, 60, own, True), Computed(60, LENGTH))))
    assert torch.equal(again.capture(0, 60).keys, own.keys)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_any_split_equals_dense_on_cuda() -> None:
    from conftest import tiny_model

    model = tiny_model("llama").model.to("cuda")
    runner, ids = Runner(model), prompt()
    cache = runner.open(LENGTH)
    expected = runner.prefill(cache, ids).logits[0]
    block = cache.capture(0, LENGTH).unrotated(runner.layout.require_movable())
    logits = runner.prefill(runner.open(LENGTH), ids, split([10, 30, 31, 60], True, block)).logits[0]
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)

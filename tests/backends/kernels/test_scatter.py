"""One launch writes what the plain path writes. Without CUDA, Triton interprets the kernel if `TRITON_INTERPRET=1`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import MOVABLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvcomm_agents.backends.transformers.kernels import launch as kernels
from kvcomm_agents.backends.transformers.kernels import scatter
from kvcomm_agents.backends.transformers.probe import inspect
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.layout import KVLayout
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.plan import Computed, Placed, PrefillPlan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(not kernels.available(DEVICE), reason="needs CUDA, or TRITON_INTERPRET=1 and Triton")


def stored(layout: KVLayout, tokens: int, position: int | None, dtype: torch.dtype, seed: int, cut: int) -> KVBlock:
    """Random KV, lying in the middle of something larger if it is cut."""
    generator = torch.Generator().manual_seed(seed)

    def random(dim: int) -> torch.Tensor:
        return torch.randn(layout.layers, layout.kv_heads, tokens + cut, dim, generator=generator).to(DEVICE, dtype)

    block = KVBlock(random(layout.key_dim), random(layout.value_dim), None if position is None else position - cut)
    return block.slice(cut, tokens + cut)


@pytest.mark.parametrize("family", MOVABLE)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_the_plain_path(tiny: Callable[[str], LoadedModel], family: str, data: st.DataObject) -> None:
    layout = inspect(tiny(family).model)
    rope = layout.require_movable()
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    runs, at = list[Placed](), 0
    for seed in range(data.draw(st.integers(1, 4))):
        at += data.draw(st.integers(0, 9))
        tokens, cut = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 5))
        position = data.draw(st.sampled_from([None, at, at + 700]))
        cut = cut if position is None or position >= cut else 0
        runs.append(Placed(at, at + tokens, stored(layout, tokens, position, dtype, seed, cut), exact=False))
        at += tokens
    shape = (layout.layers, layout.kv_heads, at + 3)
    ours = [torch.zeros(*shape, dim, device=DEVICE, dtype=dtype) for dim in (layout.key_dim, layout.value_dim)]
    plain = [one.clone() for one in ours]
    assert scatter.scatter(runs, ours[0], ours[1], rope)
    for run in runs:
        where = slice(run.start, run.stop)
        run.block.write(plain[0][:, :, where], plain[1][:, :, where], run.start, rope)
    assert torch.equal(ours[1], plain[1])
    # Products may be fused with sums here and not there: half a unit in the last place, at most, of each.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(ours[0], plain[0], atol=8 * unit if dtype == torch.float32 else unit, rtol=2 * unit)


def test_what_it_cannot_write_is_left_to_the_plain_path(tiny: Callable[[str], LoadedModel]) -> None:
    layout = inspect(tiny("llama").model)
    rope = layout.require_movable()
    keys, values = (one.to(DEVICE) for one in layout.empty(32))
    keys.zero_()

    def run(block: KVBlock) -> Placed:
        return Placed(0, block.tokens, block, exact=False)

    good = stored(layout, 8, None, keys.dtype, 0, 0)
    sparse = KVBlock(good.keys.repeat_interleave(2, -1)[..., ::2], good.values)
    other = KVBlock(good.keys.to(torch.bfloat16), good.values)
    for bad in (sparse, other):
        assert not scatter.scatter([run(good), run(bad)], keys, values, rope)
    assert not scatter.scatter([run(good)], keys, values, None)
    assert not scatter.scatter([], keys, values, rope)
    assert not keys.any()


def test_the_runner_prefills_through_it(tiny: Callable[[str], LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(tiny("llama").model.to(DEVICE))
    ids = list(range(3, 43))
    cache = runner.open(64)
    runner.prefill(cache, ids)
    block = cache.capture(0, 40)
    plan = PrefillPlan(
        (
            Placed(0, 8, block.slice(0, 8), exact=True),
            Computed(8, 20),
            Placed(20, 32, block.slice(20, 32), exact=False),
            Computed(32, 40),
        )
    )
    launched = list[int]()
    real = scatter.scatter
    monkeypatch.setattr(scatter, "scatter", lambda runs, *rest: launched.append(len(runs)) or real(runs, *rest))
    through = runner.prefill(cache, ids, plan).logits
    assert launched == [2]
    torch.testing.assert_close(through, runner.prefill(runner.open(64), ids).logits, atol=1e-4, rtol=1e-4)

"""Passes laid out in tiles give what plain ones give, and a recorded one is used only if it does.

Without CUDA, and with `TRITON_INTERPRET=1`, what is recorded is run anew: all but the graph is tested.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import pytest
import torch
from conftest import tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvcomm_agents.backends.transformers import attention
from kvcomm_agents.backends.transformers.attention import Part
from kvcomm_agents.backends.transformers.cache import PlanCache
from kvcomm_agents.backends.transformers.cuda_graphs import CudaGraphs
from kvcomm_agents.backends.transformers.kernels import launch as kernels
from kvcomm_agents.backends.transformers.kernels.tiles import Tiles, fits
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.plan import Computed, Placed, PrefillPlan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(not kernels.available(DEVICE), reason="needs CUDA, or TRITON_INTERPRET=1 and Triton")


def on_device(loaded: LoadedModel) -> Runner:
    return Runner(loaded.model.to(DEVICE))


def context(runner: Runner, tokens: int, seed: int) -> PlanCache:
    """Random text, computed plainly."""
    generator = torch.Generator().manual_seed(seed)
    cache = runner.open(tokens + 64)
    ids = torch.randint(0, 256, (tokens,), generator=generator).tolist()
    attention.forward(runner.model, [Part(cache, ids, slice(0, tokens), 0)])
    cache.length = tokens
    return cache


def written(parts: Sequence[Part]) -> list[Tensor]:
    return [kv[:, :, part.targets].clone() for part in parts for kv in (part.cache.keys, part.cache.values)]


def smeared(parts: Sequence[Part]) -> None:
    """What a pass should write is not there before it."""
    for part in parts:
        part.cache.keys[:, :, part.targets], part.cache.values[:, :, part.targets] = 7.0, 7.0


@pytest.mark.parametrize("family", ["llama", "gemma", "glm-interleaved-partial"])
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@torch.no_grad()
def test_tiles_as_the_plain_pass(
    tiny: Callable[[str], LoadedModel], monkeypatch: pytest.MonkeyPatch, family: str, data: st.DataObject
) -> None:
    monkeypatch.setattr(
        "kvcomm_agents.backends.transformers.kernels.tiles._PROGRAMS", data.draw(st.sampled_from([2, 12]))
    )  # keys in parts or not
    runner = on_device(tiny(family))
    if runner.replay is None:
        pytest.skip("its contexts do not share passes")
    parts = list[Part]()
    for seed in range(data.draw(st.integers(1, 2))):
        before = data.draw(st.integers(0, 70))
        cache = context(runner, before + 1, seed)
        count = data.draw(st.integers(1, 20))
        if data.draw(st.booleans()) and count <= before:
            places = sorted(data.draw(st.sets(st.integers(0, before), min_size=count, max_size=count)))
            targets: slice | Tensor = torch.tensor(places, device=DEVICE)
        else:
            targets = slice(before, before + count)
        tokens = data.draw(st.lists(st.integers(0, 255), min_size=count, max_size=count))
        parts.append(Part(cache, tokens, targets, data.draw(st.integers(0, min(3, count)))))
    plain = attention.forward(runner.model, parts).float()
    kv = written(parts)
    for _ in range(2):
        runner.replay.learn(parts, plain)
    smeared(parts)
    replayed = runner.replay.play(parts)
    assert replayed is not None
    torch.testing.assert_close(replayed, plain, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(written(parts), kv, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_recorded_pass_serves_other_contexts_and_lengths() -> None:
    runner = on_device(tiny_model("llama", torch.float16))
    assert runner.replay is not None
    lengths = [(3, 60), (70, 11), (200, 1)]
    for index, (one, other) in enumerate(lengths):
        parts = [Part(context(runner, n, n), [5 + n % 7], slice(n, n + 1)) for n in (one, other)]
        plain = attention.forward(runner.model, parts).float()
        smeared(parts)
        replayed = runner.replay.play(parts)
        if index:
            assert replayed is not None
            assert float((replayed - plain).norm() / plain.norm()) < 1e-2
        else:
            attention.forward(runner.model, parts)
            runner.replay.learn(parts, plain)
            assert runner.replay.shapes == ()
            runner.replay.learn(parts, plain)
    assert len(runner.replay.shapes) == 1


def test_the_runner_prefills_and_decodes_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvcomm_agents.backends.transformers.kernels.tiles._PROGRAMS", 4)
    loaded = tiny_model("llama")
    plain, runner = Runner(loaded.model.to(DEVICE), graphs=False), on_device(loaded)
    assert plain.replay is None
    assert runner.replay is not None
    ids = list(range(3, 63))
    cache = plain.open(80)
    plain.prefill(cache, ids)
    block = cache.capture(10, 50)
    plan = PrefillPlan((Computed(0, 10), Placed(10, 50, block, exact=True), Computed(50, 60)))
    said = list[list[int]]()
    for one in (plain, runner, runner):
        cache = one.open(80)
        output = [int(one.prefill(cache, ids, plan).logits[-1].argmax())]
        output += [int(one.decode(cache, output[-1]).argmax()) for _ in range(4)]
        assert cache.length == 64
        said.append([*output])
    assert said[1:] == said[:1] * 2
    assert sorted(shape.tile for shape in runner.replay.shapes) == [1, 16]


def test_long_passes_and_many_logits_are_left_to_plain_ones() -> None:
    runner = on_device(tiny_model("llama"))
    assert runner.replay is not None
    for _ in range(3):
        cache = runner.open(600)
        runner.prefill(cache, [7] * 40, keep=17)
        runner.prefill(cache, [7] * 513)
    assert runner.replay.shapes == ()


@pytest.mark.parametrize("fault", ["differs", "raises"])
@torch.no_grad()
def test_a_pass_that_fails_its_check_is_not_used(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner = on_device(tiny_model("llama"))
    assert runner.replay is not None
    real = Tiles.attend

    def wrong(self: Tiles, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        if fault == "raises" and layer == 2:
            raise RuntimeError("no such instruction")
        return real(self, layer, query, key, value + 1, scale)

    monkeypatch.setattr(Tiles, "attend", wrong)
    cache = context(runner, 30, 1)
    expected = runner.decode(cache, 5)
    kv = cache.capture(0, 31)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            cache.length = 30
            torch.testing.assert_close(runner.decode(cache, 5), expected)
            assert torch.equal(cache.capture(0, 31).values, kv.values)
    assert len([one for one in caplog.records if "plain ones serve" in one.message]) == 1
    assert runner.replay.shapes == ()


def test_a_model_that_it_cannot_lay_out_is_served_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model("llama")
    runner = on_device(loaded)
    monkeypatch.setattr("kvcomm_agents.backends.transformers.kernels.tiles._ROWS", 1)
    replay = CudaGraphs(loaded.model, runner.layout)
    assert replay.heads == 4
    part = Part(context(runner, 5, 0), [1], slice(5, 6))
    for _ in range(3):
        replay.learn([part], torch.zeros(1, 300, device=DEVICE))
        assert replay.play([part]) is None
    monkeypatch.undo()
    assert all(fits(runner.layout, heads) for heads in (2, 4, 6, 128))
    assert not any(fits(runner.layout, heads) for heads in (0, 1, 3, 130))

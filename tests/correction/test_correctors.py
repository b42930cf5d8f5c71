"""Every corrector against one matrix of promises, then what is particular to each.

Run: pytest tests/correction
"""

import math
from dataclasses import replace

import pytest
import torch
from snippets import ROOT, run

from benchmarks.correctors import CORRECTORS, InterpolationCorrector, MeanCorrector, make_corrector
from benchmarks.correctors.token_knn import TokenKnnCorrector
from kvcomm_agents.correction.base import Example
from kvcomm_agents.correction.flat import flatten
from kvcomm_agents.correction.gram import SLOT_BYTES, basis_bytes, fitting_rank, slot_bytes, token_flops
from kvcomm_agents.correction.linear import LinearConfig, LinearCorrector
from kvcomm_agents.errors import ConfigError, SavedMemoryError
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot

LAYERS, HEADS, KEY, VALUE = 4, 2, 8, 6
FEATURES = HEADS * (KEY + VALUE)
SLOT = Slot("writer", "question")
SMALL = {
    "none": lambda: make_corrector("none"),
    "mean": lambda: MeanCorrector(positions=16, budget=60_000),
    "interpolation": lambda: InterpolationCorrector(gamma=1.0, capacity=4, budget=100_000),
    "token_knn": lambda: TokenKnnCorrector(capacity=64, budget=150_000),
    "linear": lambda: LinearCorrector(config=LinearConfig(rank=8, warm_tokens=40, tolerated=math.inf, budget=120_000)),
    "last": run(ROOT / "docs" / "correctors.md")["LastCorrector"],  # the page's example
}
LEARNERS = [name for name in SMALL if name != "none"]


@pytest.fixture(autouse=True)
def _the_example_is_registered(monkeypatch):
    monkeypatch.setitem(CORRECTORS, "last", SMALL["last"])


def test_no_corrector_is_left_out():
    assert set(SMALL) == set(CORRECTORS)


def block(tokens, seed, dtype=torch.float32, scale=1.0):
    made = torch.Generator().manual_seed(seed)
    keys = torch.randn(LAYERS, HEADS, tokens, KEY, generator=made) * scale
    values = torch.randn(LAYERS, HEADS, tokens, VALUE, generator=made) * scale
    return KVBlock(keys.to(dtype), values.to(dtype))


def mapped(base, seed=99, bias=0.3):
    """The KV that `base @ W + b` gives above layer 0: what a linear map can learn."""
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(LAYERS - 1, FEATURES, FEATURES, generator=made) * 0.1
    flat = flatten(base)
    flat = flat + flat @ weight + bias
    keys, values = base.keys.clone(), base.values.clone()
    for part, cut in ((keys, slice(0, HEADS * KEY)), (values, slice(HEADS * KEY, None))):
        part[1:] = flat[..., cut].unflatten(2, (HEADS, -1)).transpose(1, 2).to(part.dtype)
    return KVBlock(keys, values)


def example(tokens=20, seed=0, dtype=torch.float32, weight=1.0, **kind):
    base = block(tokens, seed, dtype)
    return Example(base, mapped(base, **kind), weight=weight)


def distance(a, b):
    return float((flatten(a) - flatten(b)).norm() / flatten(b).norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SMALL)
class TestEveryCorrector:
    def test_knows_nothing_at_first(self, name, dtype):
        corrector, base = make_corrector(name), block(5, 1, dtype)
        answer = corrector.correct(SLOT, base)
        assert answer.block is base
        assert (answer.confidence, answer.examples, corrector.knows(SLOT)) == (0.0, 0, 0)
        assert corrector.nbytes == 0

    def test_keeps_shape_dtype_layer_0_and_its_input(self, name, dtype):
        corrector = SMALL[name]()
        for seed in range(3):
            corrector.learn(SLOT, example(seed=seed, dtype=dtype))
        base = block(7, 50, dtype)
        before = base.clone()
        answer = corrector.correct(SLOT, base, offset=2)
        assert answer.block.position is None
        for got, given, untouched in (
            (answer.block.keys, base.keys, before.keys),
            (answer.block.values, base.values, before.values),
        ):
            assert (got.shape, got.dtype) == (given.shape, given.dtype)
            assert torch.equal(got[0], untouched[0])
            assert torch.equal(given, untouched)
            assert torch.isfinite(got).all()
        assert 0.0 <= answer.confidence <= 1.0

    def test_a_repeated_example_is_corrected(self, name, dtype):
        corrector, one = SMALL[name](), example(dtype=dtype)
        for _ in range(4):  # equally near anchors have the largest entropy: shareable under gamma = 1
            corrector.learn(SLOT, one)
        answer = corrector.correct(SLOT, one.base)
        if name == "none":
            assert answer.block is one.base
        else:
            assert distance(answer.block, one.true) < 0.6 * distance(one.base, one.true)
            assert answer.confidence > 0.2
            assert answer.examples >= 4

    def test_a_part_of_a_span_is_corrected_as_in_the_whole(self, name, dtype):
        corrector, one = SMALL[name](), example(dtype=dtype)
        for seed in range(3):
            corrector.learn(SLOT, example(seed=seed, dtype=dtype))
        whole = corrector.correct(SLOT, one.base).block.slice(4, 12)
        part = corrector.correct(SLOT, one.base.slice(4, 12), offset=4).block
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        assert distance(part, whole) < tolerance

    def test_forgets(self, name, dtype):
        corrector = SMALL[name]()
        corrector.learn(SLOT, example(dtype=dtype))
        corrector.learn(Slot("other", "question"), example(dtype=dtype))
        corrector.forget("writer")
        assert corrector.knows(SLOT) == 0
        assert corrector.correct(SLOT, block(5, 1, dtype)).confidence == 0.0
        assert corrector.knows(Slot("other", "question")) == (name != "none")
        corrector.forget()
        assert corrector.knows(Slot("other", "question")) == 0


@pytest.mark.parametrize("name", LEARNERS)
def test_memory_is_bounded_over_examples_slots_and_agents(name):
    corrector = SMALL[name]()
    for seed in range(60):
        corrector.learn(Slot(f"agent {seed % 3}", f"place {seed // 2}"), example(seed=seed))
        corrector.correct(Slot(f"agent {seed % 3}", "elsewhere"), block(5, seed))
        assert corrector.nbytes <= 200_000
    for seed in range(30):
        corrector.learn(SLOT, example(seed=seed))
    bytes_now = corrector.nbytes
    for seed in range(30):
        corrector.learn(SLOT, example(seed=seed))
    assert corrector.nbytes <= bytes_now


@pytest.mark.parametrize("name", ["mean", "token_knn", "linear"])
def test_a_new_slot_of_a_known_agent_follows_the_agent(name):
    corrector = make_corrector(name)
    for seed in range(8):
        corrector.learn(SLOT, example(tokens=60, seed=seed))
    new, one = Slot("writer", "never seen"), example(tokens=60, seed=0)
    answer = corrector.correct(new, one.base)
    assert corrector.knows(new) == answer.examples == 8
    assert distance(answer.block, one.true) < distance(one.base, one.true)
    assert corrector.correct(Slot("stranger", "question"), one.base).block is one.base


def test_a_pool_can_be_replayed():
    pool = [(SLOT, example(seed=seed)) for seed in range(3)]
    assert all(make_corrector(name, pool).knows(SLOT) == 3 for name in LEARNERS)
    with pytest.raises(ConfigError, match="none of"):
        make_corrector("cubic", pool)


def test_an_example_must_fit_itself():
    base = block(5, 0)
    with pytest.raises(ValueError, match="differ in shape"):
        Example(base, block(6, 0))
    with pytest.raises(ValueError, match="un-rotated"):
        Example(KVBlock(base.keys, base.values, 3), base)
    with pytest.raises(ValueError, match="positive"):
        Example(base, base, weight=0.0)


def test_mean_is_the_mean_by_token_index_and_overall_beyond():
    corrector = MeanCorrector()
    ones = block(4, 0)
    for add, weight in ((1.0, 1.0), (4.0, 2.0)):
        corrector.learn(SLOT, Example(ones, KVBlock(ones.keys + add, ones.values + add), weight=weight))
    base = block(6, 1)
    moved = corrector.correct(SLOT, base).block
    torch.testing.assert_close(moved.keys[1:], base.keys[1:] + 3.0)


def test_token_knn_copies_the_nearest_token_and_its_weight_counts():
    one = example(tokens=12, seed=3)
    corrector = TokenKnnCorrector(neighbours=1)
    corrector.learn(SLOT, one)
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    base = KVBlock(one.base.keys[:, :, shuffled], one.base.values[:, :, shuffled])
    torch.testing.assert_close(corrector.correct(SLOT, base).block.keys, one.true.keys[:, :, shuffled])
    both = TokenKnnCorrector(neighbours=2)
    twin = Example(one.base, KVBlock(one.base.keys + 1, one.base.values + 1), weight=3.0)
    for each in (Example(one.base, one.base), twin):
        both.learn(SLOT, each)
    torch.testing.assert_close(both.correct(SLOT, one.base).block.keys[1:], one.base.keys[1:] + 0.75)


def test_token_knn_at_an_unknown_slot_looks_through_all_slots_of_the_agent():
    apart, together = TokenKnnCorrector(), TokenKnnCorrector()
    for seed, place in enumerate(("first", "second", "third")):
        one = example(tokens=9 + seed, seed=seed)
        apart.learn(Slot(SLOT.agent, place), one)
        together.learn(SLOT, one)
    base = block(20, 7)
    there, here = apart.correct(Slot(SLOT.agent, "unknown"), base), together.correct(SLOT, base)
    torch.testing.assert_close(there.block.keys, here.block.keys)
    torch.testing.assert_close(there.block.values, here.block.values)
    assert there.examples == here.examples == 3


class TestInterpolation:
    def test_a_span_longer_than_every_anchor_is_not_shareable(self):
        corrector = InterpolationCorrector()
        corrector.learn(SLOT, example(tokens=10))
        assert corrector.shareable(SLOT, block(10, 0))
        assert not corrector.shareable(SLOT, block(11, 0))
        assert not corrector.shareable(Slot("writer", "elsewhere"), block(3, 0))
        assert corrector.correct(SLOT, block(11, 0)).confidence == 0.0

    def test_a_span_equally_far_from_all_anchors_is_not_shareable(self):
        corrector, far = InterpolationCorrector(), block(10, 7)
        for sign in (1.0, -1.0):  # the same distance from `far`, so the largest entropy
            moved = KVBlock(far.keys, far.values + sign)
            corrector.learn(SLOT, Example(moved, mapped(moved)))
        assert not corrector.shareable(SLOT, far)
        near = KVBlock(far.keys, far.values + 0.9)
        assert corrector.shareable(SLOT, near)
        corrector.gamma = 1.0
        assert corrector.shareable(SLOT, far)

    def test_the_least_used_of_the_oldest_goes(self):
        corrector = InterpolationCorrector(capacity=4, window=2)
        anchors = [example(seed=seed) for seed in range(4)]
        for one in anchors:
            corrector.learn(SLOT, one)
        corrector.correct(SLOT, anchors[0].base)  # credited: the second is the least used of the two oldest
        corrector.learn(SLOT, example(seed=4))
        assert corrector.knows(SLOT) == 4
        assert distance(corrector.correct(SLOT, anchors[0].base).block, anchors[0].true) < distance(
            corrector.correct(SLOT, anchors[1].base).block, anchors[1].true
        )

    def test_weights_are_a_softmax_per_token(self):
        corrector = InterpolationCorrector()
        for seed in range(3):
            corrector.learn(SLOT, example(seed=seed))
        weights = corrector.weights(SLOT, block(5, 1))
        assert weights.shape == (2, 3, 5)
        torch.testing.assert_close(weights.sum(1), torch.ones(2, 5))

    def test_static_text_follows_its_span(self):
        corrector, span, static = InterpolationCorrector(), example(), example(tokens=4, seed=8)
        corrector.learn(SLOT, span)
        assert corrector.correct_following(SLOT, span.base, static.base).confidence == 0.0
        corrector.learn_following(SLOT, static)
        moved = corrector.correct_following(SLOT, span.base, static.base)
        assert distance(moved.block, static.true) < 1e-5
        assert torch.equal(moved.block.keys[0], static.base.keys[0])


class TestLinear:
    FULL = LinearConfig(rank=FEATURES, ridge=0.1, warm_tokens=64)

    def taught(self, count=20, config=FULL, slot=SLOT, **kind):
        corrector = LinearCorrector(config=config)
        for seed in range(count):
            corrector.learn(slot, example(tokens=40, seed=seed, **kind))
        return corrector

    def test_recovers_a_linear_truth(self):
        corrector, one = self.taught(), example(tokens=40, seed=77)
        assert corrector.residual(SLOT, one.base, one.true) < 0.01 < distance(one.base, one.true)

    def test_one_by_one_is_all_at_once(self):
        slots = [SLOT, Slot("writer", "answer")]
        examples = [(slots[seed % 2], example(40, seed)) for seed in range(8)]
        online = LinearCorrector(config=self.FULL)
        for slot, one in examples:
            online.learn(slot, one)
            online.solve()
        batch = LinearCorrector(examples, self.FULL)
        base = block(30, 5)
        for slot in slots:
            assert distance(online.correct(slot, base).block, batch.correct(slot, base).block) < 1e-5

    def test_a_slot_with_little_data_lies_between_its_agent_and_its_own(self):
        config = LinearConfig(rank=FEATURES, ridge=20.0, warm_tokens=64)
        corrector, new = self.taught(config=config, bias=0.0), Slot("writer", "answer")
        one, agent_wise = example(40, seed=50, bias=1.0), example(40, seed=50, bias=0.0)
        errors = []
        for count in (0, 1, 6):
            for seed in range(count):
                corrector.learn(new, example(40, seed=60 + seed, bias=1.0))
            corrected = corrector.correct(new, one.base).block
            errors.append(distance(corrected, one.true))
            if not count:
                assert distance(corrected, agent_wise.true) < 0.05
        assert errors[0] > errors[1] > errors[2]

    def test_leverage_is_1_in_domain_and_large_outside(self):
        corrector = LinearCorrector(config=self.FULL)
        assert corrector.leverage(SLOT, block(40, 1)) == math.inf
        corrector = self.taught()
        assert 0.5 < corrector.leverage(SLOT, block(40, 500)) < 1.5
        assert corrector.leverage(SLOT, block(40, 500, scale=4.0)) > 4
        far = corrector.correct(SLOT, block(40, 500, scale=4.0))
        assert far.confidence < 0.6 < corrector.correct(SLOT, block(40, 500)).confidence

    def test_the_first_tokens_of_a_span_have_offsets_of_their_own(self):
        corrector = LinearCorrector(config=self.FULL)
        for seed in range(20):
            base = block(40, seed)
            values = base.values.clone()
            values[1:, :, 0] += 5.0
            corrector.learn(SLOT, Example(base, KVBlock(base.keys, values)))
        base = block(10, 70)
        moved = corrector.correct(SLOT, base).block.values - base.values
        assert float((moved[1:, :, 0] - 5.0).abs().max()) < 0.5
        assert float(corrector.correct(SLOT, base, offset=8).block.values.sub(base.values).abs().max()) < 0.5

    def test_weight_scales_an_example(self):
        unscaled = replace(self.FULL, tolerated=math.inf)
        twice, heavy = LinearCorrector(config=unscaled), LinearCorrector(config=unscaled)
        first, second = example(80, seed=1), example(40, seed=2, bias=2.0)
        for one in (first, second, second):
            twice.learn(SLOT, one)
        for one in (first, Example(second.base, second.true, weight=2.0)):
            heavy.learn(SLOT, one)
        base = block(10, 3)
        assert distance(twice.correct(SLOT, base).block, heavy.correct(SLOT, base).block) < 0.05

    def test_state_outlives_the_examples(self):
        corrector = self.taught()
        fresh, base = LinearCorrector(config=self.FULL), block(9, 4)
        assert not fresh.load_state({})
        state = corrector.state()
        assert fresh.load_state(state)
        assert fresh.knows(SLOT) == 20
        assert distance(fresh.correct(SLOT, base).block, corrector.correct(SLOT, base).block) < 1e-6
        fresh.learn(SLOT, example(40, seed=3))
        assert corrector.knows(SLOT) == 20
        for damage in ({"linear.0.gram": torch.zeros(1, 2, 2)}, {"linear.slots": torch.tensor([1, 2])}):
            with pytest.raises(SavedMemoryError, match="damaged"):
                fresh.load_state({**state, **damage})
        assert LinearCorrector([(SLOT, example(5))], self.FULL).state() == {}  # too little to fix a basis

    def test_cost_at_the_shape_of_an_8b_model(self):
        layers, features = 32, 8 * (128 + 128)
        rank = fitting_rank(layers, features, LinearConfig().rank)
        assert rank >= 64
        assert slot_bytes(layers, features, rank) + basis_bytes(layers, features, rank) // 2 <= SLOT_BYTES
        assert token_flops(layers, features, rank) <= 0.02 * 16e9

    def test_the_cost_formula_is_what_is_held(self):
        corrector = self.taught(config=LinearConfig(rank=8, warm_tokens=40))
        corrector.correct(SLOT, block(5, 0))
        corrector.correct(Slot("writer", "new"), block(5, 0))
        expected = slot_bytes(LAYERS, FEATURES, 8) + basis_bytes(LAYERS, FEATURES, 8)
        assert corrector.nbytes == expected

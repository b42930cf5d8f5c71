"""Shifts and moves on a tiny model: what must be nothing, and what must not."""

import pytest
import torch
from conftest import tiny_model

from benchmarks.numerics import STORES, measure_moves, measure_shifts


@pytest.fixture(scope="module")
def models():
    return {"float32": tiny_model("llama"), "bfloat16": tiny_model("llama", torch.bfloat16)}


def test_a_shift_changes_nothing_but_by_rounding(models):
    found = measure_shifts(models, tokens=48, shifts=(7, 300))
    for weights in ("trained", "random"):
        for shift in ("7", "300"):
            exact, coarse = (found[weights][dtype]["shifts"][shift] for dtype in models)
            assert exact["attention_change"] < min(1e-3, 0.1 * coarse["attention_change"])
            assert exact["kl"] < coarse["kl"] + 1e-6
            assert 0 <= coarse["first_share"] <= 1
            assert 0 < coarse["first_mass"] < 1
    assert all(one.model.config._attn_implementation == "sdpa" for one in models.values())


@pytest.mark.parametrize("family", ["llama", "cohere-interleaved"])
def test_only_rotated_keys_lose_by_moving(family):
    found = measure_moves(tiny_model(family), tokens=40, hops=6)["stores"]
    rounded, once, free, exact = (found[name] for name in STORES)
    assert max(exact["error"]) < 1e-5
    assert max(exact["kl"]) < 1e-4
    assert max(free["error"]) < 1.3 * min(free["error"])  # the same however far it was moved
    assert free["error"][6] < once["error"][6] < rounded["error"][6]
    assert once["error"] == sorted(once["error"])

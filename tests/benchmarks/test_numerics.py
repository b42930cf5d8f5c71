"""Shifts and moves on a tiny model: what must be nothing, and what must not."""

import pytest
import torch
from conftest import tiny_model

from benchmarks import numerics
from benchmarks.numerics import STORES, measure_moves, measure_shifts
from benchmarks.options import NumericsOptions
from benchmarks.plots.warm import plot_numerics
from benchmarks.session import Session
from kvcomm_agents.errors import ConfigError


def test_a_shift_changes_nothing_but_by_rounding():
    loaded = tiny_model("llama")
    found = measure_shifts(loaded, 48, (7, 300))
    for weights in ("trained", "random"):
        for shift in ("7", "300"):
            exact, coarse = (found[weights][dtype]["shifts"][shift] for dtype in ("float32", "bfloat16"))
            assert exact["attention_change"] < min(1e-3, 0.1 * coarse["attention_change"])
            assert exact["kl"] < coarse["kl"] + 1e-6
            assert 0 <= coarse["first_share"] <= 1
            assert 0 < coarse["first_mass"] < 1
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.model.dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "cohere-interleaved"])
def test_only_rotated_keys_lose_by_moving(family):
    found = measure_moves(tiny_model(family), 40, 6)["stores"]
    rounded, once, free, exact = (found[name] for name in STORES)
    assert max(exact["error"]) < 1e-5
    assert max(exact["kl"]) < 1e-4
    assert max(free["error"]) < 1.3 * min(free["error"])  # the same however far it was moved
    assert free["error"][6] < once["error"][6] < rounded["error"][6]
    assert once["error"] == sorted(once["error"])


def test_the_report_is_shown_and_drawn(tmp_path):
    report = numerics.measure(NumericsOptions(tokens=32), Session(lambda: tiny_model("llama")))
    shifts, error, apart = numerics.tables(report)
    assert len(shifts.rows) == 4 * len(numerics.SHIFTS)
    assert [len(table.rows) for table in (error, apart)] == [len(STORES)] * 2
    pytest.importorskip("matplotlib")
    plot_numerics(report, tmp_path / "numerics.png")
    assert (tmp_path / "numerics.png").stat().st_size > 1000
    with pytest.raises(ConfigError, match="--dtype"):
        numerics.measure(NumericsOptions(tokens=32), Session(lambda: tiny_model("llama", torch.bfloat16)))

"""Growth and the grid of lengths, on a tiny random model."""

import json

import pytest

from benchmarks.calls import Protocol
from benchmarks.grid import measure_grid
from benchmarks.growth import grow_agents, grow_context, grow_spans
from benchmarks.speedplots import plot_growth


def test_every_step_is_measured_and_drawn(tiny, logs_folder, tmp_path):
    loaded = tiny("llama")
    found = {
        "context": grow_context(loaded, (300, 420), rounds=1),
        "spans": grow_spans(loaded, (3, 30), length=300, rounds=1),
        "agents": grow_agents(loaded, (2, 3), Protocol(2, 20, 40, 20), logs_folder),
    }
    found = json.loads(json.dumps(found))
    assert [list(rows) for rows in found.values()] == [["300", "420"], ["3", "30"], ["2", "3"]]
    for rows in found.values():
        for row in rows.values():
            assert row["ttft_s"] >= row["match_s"] > 0
            assert row["dense_s"] > 0
    assert found["agents"]["3"]["prompt"] > found["agents"]["2"]["prompt"]
    for rows in found.values():
        small, large = rows.values()
        assert large["held_bytes"] > small["held_bytes"] > 0
    pytest.importorskip("matplotlib")
    plot_growth(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_a_cell_of_the_grid_says_what_the_paper_has(tiny, logs_folder):
    (cell,) = measure_grid(tiny("llama"), (64,), (128,), question=30, agents=2, folder=logs_folder)
    assert cell["paper"] == 2.24
    assert cell["speedup_over_dense"] > 0
    assert cell["speedup_over_prefix"] > 0

"""The hit path, growth and the grid of lengths, on a tiny random model."""

import json

import pytest

from benchmarks import grid, growth, hitpath
from benchmarks.options import GridOptions, GrowthOptions, HitpathOptions
from benchmarks.plots.speed import plot_growth
from benchmarks.session import Session


@pytest.fixture
def session(tiny):
    return Session(lambda: tiny("llama"))


def test_every_step_is_measured_and_drawn(session, logs_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(growth, "SIZES", {"spans": (3, 30), "context": (300, 420), "agents": (2, 3)})
    monkeypatch.setattr(growth, "LENGTHS", (20, 40, 20))
    monkeypatch.setattr(growth, "PROMPT", 300)
    monkeypatch.setattr(growth, "ROUNDS", 1)
    report = json.loads(json.dumps(growth.measure(GrowthOptions(data=logs_folder), session)))
    for kind, sizes in growth.SIZES.items():
        small, large = (report[kind][str(size)] for size in sizes)
        assert large["held_bytes"] > small["held_bytes"] > 0
        for row in (small, large):
            assert row["ttft_s"] >= row["match_s"] > 0
            assert row["dense_s"] > 0
    assert report["agents"]["3"]["prompt"] > report["agents"]["2"]["prompt"]
    assert [len(table.rows) for table in growth.tables(report)] == [2, 2, 2]
    pytest.importorskip("matplotlib")
    plot_growth(report, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_a_hit_places_the_texts_and_is_told_of_part_by_part(session, monkeypatch):
    monkeypatch.setattr(hitpath, "LENGTHS", (300,))
    report = hitpath.measure(HitpathOptions(known=20, rounds=2), session)
    row = report["lengths"]["300"]
    assert 0.2 * 300 < row["corrected_tokens"] < 300
    assert row["overhead_s"] == pytest.approx(row["match_s"] + row["correct_s"] + row["assemble_s"])
    assert report["memory"]["anchor_bytes_200_tokens"] > 200 * report["memory"]["token_bytes"]
    (table,) = hitpath.tables(report)
    assert table.rows[0][0] == "300"


def test_a_cell_of_the_grid_says_what_the_paper_has(session, logs_folder):
    report = grid.measure(GridOptions(data=logs_folder, prefixes="64", outputs="128", question=30), session)
    (cell,) = report["cells"]
    assert cell["paper"] == 2.24
    assert cell["speedup_over_dense"] > 0
    assert cell["speedup_over_prefix"] > 0
    (table,) = grid.tables(report)
    assert table.rows[0][3] == "2.24"

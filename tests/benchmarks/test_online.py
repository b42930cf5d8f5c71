"""Guarded reuse online on a tiny random model, and the figures."""

import json

import pytest

from benchmarks import online
from benchmarks.chain import Chain
from benchmarks.online import REGISTERS, Phase, measure_online, tables
from benchmarks.options import ShiftOptions, StreamOptions
from benchmarks.plots.fidelity import plot_fidelity, plot_online
from benchmarks.team import Role, chain
from kvcomm_agents.errors import ConfigError

ROLES = (Role("Alpha", "Say what you think."), Role("Beta", "Check the others."))
PHASES = (
    Phase("one", tuple(f"How many boxes hold {n} apples of the market?" for n in range(8))),
    Phase("two", ("def f(x): return x + 1  # and then?", "class A: pass  # what now?")),
)


def test_every_phase_and_question_is_told_of(session, lenient, tmp_path):
    team = Chain(session.loaded, chain(ROLES), max_new=14)
    report = {**session.described, "data": "own", **measure_online(team, PHASES, session)}
    report = json.loads(json.dumps(report))
    assert [(phase["name"], phase["questions"], phase["n"]) for phase in report["phases"]] == [
        ("one", 8, 8),
        ("two", 2, 2),
    ]
    assert [question["question"] for question in report["questions"]] == list(range(10))
    assert report["questions"][0]["reused_share"] > 0, "reuse begins at the first reading"
    assert report["questions"][0]["computed_fraction"] < 1
    (table,) = tables(report)
    assert [row[0] for row in table.rows] == ["one", "two"]
    pytest.importorskip("matplotlib")
    plot_online(report, tmp_path / "stream.png")
    assert (tmp_path / "stream.png").stat().st_size > 1000


def test_a_stream_is_told_of_in_quarters_and_a_shift_in_kinds_of_text(session, questions, monkeypatch):
    monkeypatch.setattr(online, "chain", lambda: chain(ROLES))
    monkeypatch.setattr(online, "Chain", lambda *args, **more: Chain(*args, max_new=4, **more))
    stream = online.measure(StreamOptions(data=questions, evaluation=6), session)
    assert [(phase["name"], phase["n"]) for phase in stream["phases"]] == [("1 to 2", 2), ("3 to 4", 2), ("5 to 6", 2)]
    shift = online.measure(ShiftOptions(data=questions, warmup=2, evaluation=1), session)
    assert [phase["questions"] for phase in shift["phases"]] == [2, 1, 1, 1]


def test_own_texts_are_twelve_and_differ():
    assert len(set(REGISTERS)) == 12


def test_fidelity_figure(tmp_path):
    pytest.importorskip("matplotlib")
    one = {"computed_fraction": 0.1, "kl_mean": 0.02, "kl_mean_95": [0.01, 0.03]}
    exact = {"computed_fraction": 1.0, "kl_mean": 0.0, "kl_mean_95": [0.0, 0.0]}
    report = {
        "model": "tiny",
        "data": "own",
        "warmup": 1,
        "eval": 2,
        "strategies": {"dense": exact, "guarded": one, "donor": one},
    }
    plot_fidelity(report, tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 1000
    with pytest.raises(ConfigError, match="cannot be written"):
        plot_fidelity(report, tmp_path / "no" / "f.png")

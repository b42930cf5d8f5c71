"""Guarded reuse online on a tiny random model, and the figures."""

import json

import pytest

from benchmarks.chain import Chain
from benchmarks.plots import plot_fidelity, plot_stream
from benchmarks.shift import REGISTERS, Phase, online
from benchmarks.team import Role, chain
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.config import ReuseConfig
from kvcomm_agents.correction.embedding import TOKEN_MEAN
from kvcomm_agents.errors import ConfigError

ROLES = (Role("Alpha", "Say what you think."), Role("Beta", "Check the others."))
PHASES = (
    Phase("one", tuple(f"How many boxes hold {n} apples of the market?" for n in range(8))),
    Phase("two", ("def f(x): return x + 1  # and then?", "class A: pass  # what now?")),
)


@pytest.fixture
def report(writer, tmp_path):
    team = Chain(writer, Runner(writer.model), chain(ROLES), max_new=14, folder=tmp_path)
    return {
        "model": "tiny",
        "data": "own",
        **online(team, PHASES, ReuseConfig(max_divergence=50.0, min_placed=12), TOKEN_MEAN),
    }


def test_every_phase_and_question_is_told_of(report, tmp_path):
    report = json.loads(json.dumps(report))
    assert [(phase["name"], phase["questions"], phase["n"]) for phase in report["phases"]] == [
        ("one", 8, 8),
        ("two", 2, 2),
    ]
    assert [question["question"] for question in report["questions"]] == list(range(10))
    assert report["questions"][0]["reused_share"] == 0
    assert report["questions"][0]["computed_fraction"] > 0.9
    assert any(question["reused_share"] > 0 for question in report["questions"][4:])
    pytest.importorskip("matplotlib")
    plot_stream(report, tmp_path / "stream.png")
    assert (tmp_path / "stream.png").stat().st_size > 1000


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

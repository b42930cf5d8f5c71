"""The fidelity bench on a tiny random model: plans, rows, and that a killed run goes on."""

import json
import math

import pytest
import torch

from benchmarks import fidelity
from benchmarks.chain import Chain, append_line, lines
from benchmarks.fidelity import Setting, measure
from benchmarks.measure import Row, interval, paired, summary
from benchmarks.record import Recorder
from benchmarks.strategies import NAMES, STRATEGIES, Learned, assemble
from benchmarks.team import Role, chain
from kvcomm_agents.backends.transformers.forced import forced
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.config import ReuseConfig
from kvcomm_agents.correction.embedding import TOKEN_MEAN
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.planning.ladder import Rung

ROLES = (Role("Alpha", "Say what you think."), Role("Beta", "Check the others."), Role("Gamma", "Decide at last."))
QUESTIONS = tuple(f"How many {thing} fit into {n} boxes?" for n, thing in enumerate(("apples", "pears", "old hats"), 3))
KEYS = {
    *("n", "computed_fraction", "kl_first", "kl_mean", "kl_p90", "kl_max", "top1", "exact_match"),
    "judge_consistency",
}


@pytest.fixture
def team(writer, tmp_path):
    return Chain(writer, Runner(writer.model), chain(ROLES), max_new=16, folder=tmp_path)


@pytest.fixture
def learned_cases(team):
    recorder = Recorder(team)
    questions = [recorder.cases(question) for question in team.run(QUESTIONS)]
    learned = Learned(recorder)
    for cases in questions[:-1]:
        for case in cases[1:]:
            learned.learn(case)
    return learned, questions[-1][1:]


def test_pieces_are_the_texts_of_the_prompt(team):
    for question, instances in zip(QUESTIONS, team.run(QUESTIONS), strict=True):
        for place, instance in enumerate(instances):
            spans = {piece.name: instance.ids[piece.start : piece.stop] for piece in instance.spans}
            assert team.loaded.tokenizer.decode(spans["question"]) == question
            if place:
                wrote = instances[0].fed
                shared = next(piece for piece in instance.spans if piece.name == "Alpha")
                assert spans["Alpha"] == wrote[shared.offset : shared.offset + len(spans["Alpha"])]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_makes_a_plan_of_the_prompt(learned_cases, name):
    learned, cases = learned_cases
    for case in cases:
        chosen = STRATEGIES[name](case, learned)
        assert chosen.plan.length == len(case.instance.ids)
        assert chosen.plan.is_exact == (name in ("dense", "prefix"))


def test_strategies_compute_what_they_say(learned_cases):
    learned, cases = learned_cases
    case = cases[-1]
    count = {name: STRATEGIES[name](case, learned).plan.computed_tokens for name in STRATEGIES}
    spans = case.instance.spans
    assert count["dense"] == len(case.instance.ids)
    assert count["prefix"] == len(case.instance.ids) - case.instance.prefix
    assert count["interpolation"] < count["interpolation_tail"] == count["donor"] == count["linear_tail"]
    assert count["linear_heads"] == count["linear_tail"] + 8 * len(spans)
    assert count["epic16"] == count["epic8"] + sum(
        min(16, piece.stop - piece.start) - min(8, piece.stop - piece.start) for piece in spans
    )
    assert count["blend10"] < count["blend20"] < count["prefix"]


def test_true_kv_in_place_of_a_correction_is_dense(learned_cases):
    learned, cases = learned_cases
    rope = learned.recorder.rope
    for case in cases:
        instance = case.instance
        blocks = {piece: case.block.slice(piece.start, piece.stop).unrotated(rope) for piece in instance.pieces}
        for rung in (Rung("all", tail=1), Rung("heads", heads=8)):
            plan = assemble(case, blocks, rung, frozenset({instance.spans[0].start + 2}))
            logits = forced(learned.recorder.runner, instance.ids, instance.fed[: case.positions - 1], plan)
            torch.testing.assert_close(logits, case.logits, atol=2e-3, rtol=1e-3)


def test_report_has_every_strategy_and_key(team):
    setting = Setting(QUESTIONS, warmup=1, reuse=ReuseConfig(max_divergence=50.0, min_placed=12))
    report = json.loads(json.dumps(measure(team, setting, TOKEN_MEAN, team.file.parent)))
    assert (report["warmup"], report["eval"]) == (1, 2)
    assert set(report["strategies"]) == set(NAMES)
    for name, one in report["strategies"].items():
        assert set(one) >= KEYS
        assert one["n"] == 4
        assert math.isfinite(one["kl_mean"])
        assert 0 < one["computed_fraction"] <= 1.1, name
    assert report["strategies"]["dense"]["kl_mean"] < 1e-5
    assert report["strategies"]["prefix"]["kl_mean"] < 1e-5
    assert report["strategies"]["none"]["kl_mean"] > 1e-5
    assert report["strategies"]["dense"]["computed_fraction"] == 1
    assert 0 <= report["strategies"]["interpolation"]["shareable"] <= 1
    assert 0 <= report["strategies"]["guarded"]["reused_share"] <= 1


class KilledError(Exception):
    pass


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_a_killed_run_goes_on(team, monkeypatch, rows):
    setting = Setting(QUESTIONS, warmup=1, strategies=("donor", "linear_tail", "interpolation", "guarded"))
    whole = measure(team, setting, TOKEN_MEAN, team.file.parent / "whole")
    folder = team.file.parent / "killed"

    def dies(file, row, left=iter(range(rows))):  # noqa: B008
        if next(left, None) is None:
            raise KilledError
        append_line(file, row)

    with monkeypatch.context() as patch:
        patch.setattr(fidelity, "append_line", dies)
        with pytest.raises(KilledError):
            measure(team, setting, TOKEN_MEAN, folder)
    assert measure(team, setting, TOKEN_MEAN, folder) == whole


def test_a_cut_off_line_is_left_out(tmp_path):
    file = tmp_path / "rows.jsonl"
    append_line(file, {"a": 1})
    with file.open("a") as text:
        text.write('{"a": 2')
    append_line(file, {"a": 3})
    assert [row["a"] for row in lines(file)] == [1, 3]


def row(question, kl, **more):
    return Row(question, "Beta", "donor", 100, 40, 30.0, kl_mean=kl, **more)


def test_summary_and_pairs():
    rows = [row(0, 0.1), row(1, 0.3)]
    found = summary(rows)
    assert found["kl_mean"] == pytest.approx(0.2)
    assert found["computed_fraction"] == pytest.approx(0.3)
    assert found["computed_beyond_prefix"] == pytest.approx(0.5)
    assert paired(rows, [row(0, 0.2), row(1, 0.2)]) == {"wins": 0.5, "kl_ratio": pytest.approx(1.0)}


def test_interval_resamples_questions():
    assert interval([row(q, 0.2) for q in range(5)], lambda one: one.kl_mean) == [pytest.approx(0.2)] * 2
    low, high = interval([row(q, q / 10) for q in range(10)], lambda one: one.kl_mean)
    assert low < 0.45 < high


@pytest.mark.parametrize(("warmup", "names"), [(0, NAMES), (3, NAMES), (1, ("donor", "nothing"))])
def test_settings_that_make_no_sense_are_refused(warmup, names):
    with pytest.raises(ConfigError):
        Setting(QUESTIONS, warmup, names)

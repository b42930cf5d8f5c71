"""Judges' picks on a tiny random model."""

import json

import pytest
import torch

from benchmarks import judges
from benchmarks.chain import Chain
from benchmarks.judges import JUDGES, LETTERS, ORDERS, Jury, contest
from benchmarks.options import JudgesOptions

QUESTIONS = tuple(f"What costs {n} crowns at the market?" for n in (3, 8, 11))


@pytest.fixture
def trial(writer):
    return Chain(writer, contest(), max_new=14, silent=JUDGES)


def test_each_judge_reads_every_answer_in_its_order(trial):
    for instances in trial.run(QUESTIONS[:1]):
        for name, order in zip(JUDGES, ORDERS, strict=True):
            one = next(instance for instance in instances if instance.agent == name)
            names = [trial.agents[solver].name for solver in order]
            assert [piece.name for piece in one.spans if piece.name != "question"] == names
            assert one.output == ()


def test_nobody_keeps_its_place():
    assert sorted(ORDERS[1]) == sorted(ORDERS[0])
    assert all(a != b for a, b in zip(*ORDERS, strict=True))


def test_a_pick_is_the_likeliest_letter(trial):
    jury = Jury(trial)
    logits = torch.zeros(1, 300)
    logits[0, trial.loaded.tokenizer("C", add_special_tokens=False)["input_ids"][0]] = 5.0
    logits[0, 299] = 9.0  # no letter
    assert (jury.pick(JUDGES[0], logits).place, jury.pick(JUDGES[0], logits).solver) == (2, 2)
    assert (jury.pick(JUDGES[1], logits).place, jury.pick(JUDGES[1], logits).solver) == (2, 3)


def test_exact_strategies_and_the_guard_always_agree(session, questions, monkeypatch):
    monkeypatch.setattr(judges, "Chain", lambda *args, **more: Chain(*args, max_new=14, **more))
    names = ("dense", "prefix", "none", "linear_tail", "blend10", "guarded")
    options = JudgesOptions(data=questions, warmup=1, evaluation=2, strategies=",".join(names))
    report = json.loads(json.dumps(judges.measure(options, session)))
    assert (report["warmup"], report["eval"]) == (1, 2)
    assert set(report["strategies"]) == set(names)
    for name in ("dense", "prefix", "guarded"):
        assert report["strategies"][name]["judge_consistency"] == 1.0
    assert all(one["n"] == 4 and 0 <= one["judge_consistency"] <= 1 for one in report["strategies"].values())
    assert 0 <= report["dense_judge"]["same_answer"] <= 1
    assert all(set(places) <= set(LETTERS) for places in report["dense_judge"]["places"].values())
    said, table = judges.tables(report)
    assert "same answer" in said
    assert [row[0] for row in table.rows] == list(names)

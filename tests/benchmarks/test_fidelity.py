"""The fidelity bench on a tiny random model: plans, rows, that a killed run goes on, and what is not used again."""

import json
import math
import shutil

import pytest
import torch

from benchmarks import fidelity, kept
from benchmarks.chain import Chain
from benchmarks.kept import Kept, sources
from benchmarks.options import FidelityOptions
from benchmarks.record import Recorder
from benchmarks.rows import Row, interval, paired, summary
from benchmarks.strategies import NAMES, STRATEGIES, Chosen, Learned, assemble, logits_of
from benchmarks.team import Role, chain
from kvcomm_agents.errors import ConfigError

ROLES = (Role("Alpha", "Say what you think."), Role("Beta", "Check the others."), Role("Gamma", "Decide at last."))
QUESTIONS = tuple(f"How many {thing} fit into {n} boxes?" for n, thing in enumerate(("apples", "pears", "old hats"), 3))
KEYS = {
    *("n", "computed_fraction", "kl_first", "kl_mean", "kl_p90", "kl_max", "top1", "exact_match"),
    "judge_consistency",
}


@pytest.fixture
def team(writer):
    return Chain(writer, chain(ROLES), max_new=16)


@pytest.fixture
def small(monkeypatch):
    """The measured chain is a small one."""
    monkeypatch.setattr(fidelity, "chain", lambda: chain(ROLES))
    monkeypatch.setattr(fidelity, "Chain", lambda loaded, agents, say: Chain(loaded, agents, max_new=16, say=say))


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
                wrote = instances[0].output
                shared = next(piece for piece in instance.spans if piece.name == "Alpha")
                assert spans["Alpha"] == wrote[shared.offset : shared.offset + len(spans["Alpha"])]


def test_answers_are_what_the_model_says_and_are_kept(team, writer):
    (first,) = team.run(QUESTIONS[:1])
    assert all(0 < len(instance.output) < 16 for instance in first)
    assert list(first[0].output) == team.greedy(first[0].ids)
    said = []
    assert Chain(writer, chain(ROLES), max_new=16, say=said.append).run(QUESTIONS[:1]) == [first]
    assert "1 rows of an earlier run" in said[0]


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
    for case in cases:
        instance = case.instance
        blocks = {
            piece: case.block.slice(piece.start, piece.stop).unrotated(learned.recorder.rope)
            for piece in instance.pieces
        }
        start = instance.spans[0].start
        for computed in (frozenset({start + 2}), frozenset(range(start, start + 8))):
            plan = assemble(case, blocks, computed)
            assert not plan.is_exact
            logits = logits_of(case, Chosen(plan), learned)
            torch.testing.assert_close(logits, case.logits, atol=2e-3, rtol=1e-3)


def test_report_has_every_strategy_and_key(small, lenient, session, questions):
    options = FidelityOptions(data=questions, warmup=1, evaluation=2)
    report = json.loads(json.dumps(fidelity.measure(options, session)))
    assert (report["warmup"], report["eval"], report["data"]) == (1, 2, "gsm8k")
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
    shown = list(fidelity.tables(report))
    assert len(shown[0].rows) == len(NAMES)
    assert "of calls reused" in shown[1]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_a_killed_run_goes_on(small, session, questions, monkeypatch, tmp_path, rows):
    names = "donor,linear_tail,interpolation,guarded"
    options = FidelityOptions(data=questions, warmup=1, evaluation=2, strategies=names)
    whole = fidelity.measure(options, session)
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path / "killed"))
    add = Kept.add

    def dies(self, row, left=iter(range(rows))):  # noqa: B008
        if next(left, None) is None:
            raise KilledError
        add(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(Kept, "add", dies)
        with pytest.raises(KilledError):
            fidelity.measure(options, session)
    assert fidelity.measure(options, session) == whole


def test_rows_of_other_code_are_not_used_again(small, session, questions, monkeypatch, tmp_path):
    options = FidelityOptions(data=questions, warmup=1, evaluation=1, strategies="donor,guarded")
    measured = []
    monkeypatch.setattr(fidelity, "_run", lambda *case, run=fidelity._run: measured.append(run(*case)) or measured[-1])
    fidelity.measure(options, session)
    assert len(measured) == 2
    fidelity.measure(options, session)
    assert len(measured) == 2
    assert any("fixed: 2 rows of an earlier run with this code" in text for text in session.said)
    package, benchmarks = kept.CODE
    copy = tmp_path / "kvcomm_agents"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(kept, "CODE", (copy, benchmarks))
    fidelity.measure(options, session)
    assert len(measured) == 2, "the same code elsewhere is the same code"
    with (copy / "planning" / "guard.py").open("a") as file:
        file.write("# changed\n")
    sources.cache_clear()
    del session.said[:]
    fidelity.measure(options, session)
    assert len(measured) == 4
    for what, count in (("fixed", 2), ("guarded", 6), ("answers", 2)):
        assert f"{what}: {count} rows on disk were measured with other code and are not used" in session.said
    sources.cache_clear()


def test_other_settings_are_other_rows(small, session, questions, monkeypatch):
    measured = []
    monkeypatch.setattr(fidelity, "_run", lambda *case, run=fidelity._run: measured.append(run(*case)) or measured[-1])
    for warmup, count in ((1, 2), (2, 4)):
        options = FidelityOptions(data=questions, warmup=warmup, evaluation=1, strategies="donor")
        fidelity.measure(options, session)
        assert len(measured) == count


@pytest.mark.parametrize(
    ("changed", "same"), [("a.py", False), ("deep/er/b.py", False), ("new.py", False), ("plots/c.py", True)]
)
def test_every_file_counts_but_those_that_draw(tmp_path, changed, same):
    for name in ("a.py", "deep/er/b.py", "plots/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    before = sources((tmp_path,))
    (tmp_path / changed).write_text("x = 2\n")
    sources.cache_clear()
    assert (sources((tmp_path,)) == before) is same


def test_a_cut_off_line_is_left_out():
    rows = Kept("rows", 1, ("a",), print)
    rows.add({"a": 1})
    with rows.file.open("a") as text:
        text.write('{"sources": "x", "row": {"a"')
    again = Kept("rows", 1, ("a",), print)
    for value in (3, 4):
        again.add({"a": value})
    assert list(Kept("rows", 1, ("a",), print).rows) == [(1,), (3,), (4,)]


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
    assert interval([row(q, 0.2) for q in range(5)]) == [pytest.approx(0.2)] * 2
    low, high = interval([row(q, q / 10) for q in range(10)])
    assert low < 0.45 < high


def test_an_unknown_strategy_is_refused(session, questions):
    with pytest.raises(ConfigError, match=r"no strategy nothing; choose from dense, prefix"):
        fidelity.measure(FidelityOptions(data=questions, strategies="donor,nothing"), session)

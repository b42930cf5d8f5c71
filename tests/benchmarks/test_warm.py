"""The benches of the warm-up on a tiny model: every figure is there, and adds up."""

import json
import random

import pytest
from conftest import tiny_model

from benchmarks import packs, rag
from benchmarks.options import RagOptions, WarmOptions
from benchmarks.packs import measure_masks, measure_packs
from benchmarks.plots.warm import plot_packs, plot_rag
from benchmarks.rag import CONDITIONS, TEAM, lookups
from benchmarks.session import Session
from kvcomm_agents.errors import ConfigError

WORDS = "amber brick cedar daisy ember fjord grape hazel iris jade kelp lilac maple nylon olive pearl".split()


def rows(count):
    def text(seed):
        return " ".join(random.Random(seed).choices(WORDS, k=20))

    return [{"question": f"What is {n}?", "ctxs": [{"text": text(10 * n + m)} for m in range(4)]} for n in range(count)]


def test_passages_are_spread_and_cut():
    (one,) = lookups(rows(1), passages=2, words=5)
    texts = [context["text"] for context in rows(1)[0]["ctxs"]]
    assert one.passages == tuple(" ".join(texts[at].split()[:5]) for at in (0, 2))
    assert one.question == "What is 0?"
    with pytest.raises(ConfigError, match="a row has 4"):
        lookups(rows(1), passages=5, words=5)


def test_the_team_under_every_condition(tmp_path, monkeypatch):
    # The tiny context holds short prompts only.
    loaded = tiny_model("llama")
    loaded.model.config.max_position_embeddings = 4096
    monkeypatch.setattr(rag, "MAX_NEW", 5)
    (tmp_path / "musique.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(2)))
    options = RagOptions(data=tmp_path, warmup=1, evaluation=1, passages=2, words=12, mode="corrected")
    kept = []
    report = rag.measure(options, Session(lambda: loaded, keep=kept.append))
    assert report["measured"] == 1
    reader = TEAM[0].name
    for name in CONDITIONS:
        for role in TEAM:
            one = report["conditions"][name][role.name]
            assert one["n"] == 1
            assert one["charged_of_exact"] >= one["ttft_of_exact"] > 0
    assert report["conditions"]["exact"][reader]["kl_mean"] == 0.0
    cold, warm = (report["conditions"][name][reader] for name in ("cold", "warm"))
    assert warm["computed_fraction"] < cold["computed_fraction"]
    assert warm["ahead_s"] > 0 == cold["ahead_s"]
    assert warm["kl_mean"] > 0
    (table,) = rag.tables(report)
    assert len(table.rows) == len(CONDITIONS) * len(TEAM)
    pytest.importorskip("matplotlib")
    plot_rag(report, tmp_path / "rag.png")
    assert (tmp_path / "rag.png").stat().st_size > 1000


def test_packs_are_timed_by_number_length_and_size(tmp_path):
    loaded = tiny_model("llama")
    report = measure_packs(loaded, ((1, 8), (3, 8), (1, 40)), (16, 64), rounds=1)
    assert [(one["count"], one["length"]) for one in report["texts"]] == [(1, 8), (3, 8), (1, 40)]
    assert all(one["ratio"] == pytest.approx(one["packed_s"] / one["separate_s"]) for one in report["texts"])
    assert [one["tokens"] for one in report["budgets"]] == [16, 64]
    report["attention"] = measure_masks(4, 2, 8, ((40, 3),), flex=False, rounds=1, tell=lambda *_: None)
    assert {"causal_s", "masked_s", "mask_s"} < report["attention"][0].keys()
    report |= Session(lambda: loaded).described
    assert [len(table.rows) for table in packs.tables(report)] == [3, 2, 1]
    pytest.importorskip("matplotlib")
    plot_packs(report, tmp_path / "packs.png")
    assert (tmp_path / "packs.png").stat().st_size > 1000


def test_what_is_larger_than_the_largest_pack_is_left_out(monkeypatch):
    monkeypatch.setattr(packs, "ATTENTION", ((40, 3),))
    monkeypatch.setattr(packs, "BUDGETS", (16,))
    options = WarmOptions(rounds=1, most=64, flex=False)
    report = packs.measure(options, Session(lambda: tiny_model("llama")))
    assert [(one["count"], one["length"]) for one in report["texts"]] == [(1, 16), (4, 16), (1, 64)]

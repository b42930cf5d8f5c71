"""The benches of the warm-up on a tiny model: every figure is there, and adds up."""

import random

import pytest
from conftest import tiny_model

from benchmarks.packs import measure_masks, measure_packs
from benchmarks.rag import CONDITIONS, TEAM, lookups, measure_rag
from kvcomm_agents.config import ReuseConfig

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


def test_the_team_under_every_condition():
    # The tiny context holds short prompts only.
    loaded = tiny_model("llama")
    loaded.model.config.max_position_embeddings = 4096
    found = lookups(rows(2), passages=2, words=12)
    report = measure_rag(loaded, found, 1, ReuseConfig(mode="corrected"), max_new=4)
    assert report["measured"] == 1
    reader = TEAM[0][0]
    for name in CONDITIONS:
        for agent, _ in TEAM:
            one = report["conditions"][name][agent]
            assert one["n"] == 1
            assert one["charged_of_exact"] >= one["ttft_of_exact"] > 0
    assert report["conditions"]["exact"][reader]["kl_mean"] == 0.0
    cold, warm = (report["conditions"][name][reader] for name in ("cold", "warm"))
    assert warm["computed_fraction"] < cold["computed_fraction"]
    assert warm["ahead_s"] > 0 == cold["ahead_s"]
    assert warm["kl_mean"] > 0


def test_packs_are_timed_by_number_length_and_size():
    report = measure_packs(tiny_model("llama"), counts=(1, 3), lengths=(8, 40), budgets=(16, 64), most=100, rounds=1)
    assert [(one["count"], one["length"]) for one in report["texts"]] == [(1, 8), (3, 8), (1, 40)]
    assert all(one["ratio"] == pytest.approx(one["packed_s"] / one["separate_s"]) for one in report["texts"])
    assert [one["tokens"] for one in report["budgets"]] == [16, 64]
    (row,) = measure_masks(heads=4, kv_heads=2, dim=8, rows=((40, 3),), flex=False, rounds=1)
    assert {"causal_s", "masked_s", "mask_s"} < row.keys()

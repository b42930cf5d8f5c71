"""`kvcomm bench decode`: what it counts, on a tiny model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import decode
from benchmarks.plots import plot_decode
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.models.loading import LoadedModel


def test_both_ways_give_the_same_answers(
    tiny: Callable[[str], LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny("llama")
    monkeypatch.setattr(decode, "ARRIVING", 300)
    text = " ".join(f"{number} apples and {number * 7} pears" for number in range(200))
    report = decode.measure_decode(loaded, decode.prompts(loaded.tokenizer, [text], 4), (1, 4), tokens=24, rounds=1)
    assert list(report["requests"]) == ["1", "4"]
    for row in report["requests"].values():
        assert row["same_answers"]
        assert row["together"]["gap_p95_s"] >= row["together"]["gap_median_s"] > 0
    assert report["shares_passes"]
    assert report["arrival"]["prompt_tokens"] == 300
    plot_decode(report, tmp_path / "decode.png")
    assert (tmp_path / "decode.png").stat().st_size > 1000


def test_what_counts_is_the_time_in_which_all_decode() -> None:
    early = decode.Stream(began=0.0, times=[0.0, 1.0, 2.0, 3.0, 4.0])
    late = decode.Stream(began=0.0, times=[1.5, 2.5, 3.5, 4.5, 5.5])
    found = decode._summary([[early, late]])
    # from 1.5 to 4.0: early has tokens at 2, 3 and 4, late at 2.5 and 3.5
    assert found["tokens_per_s"] == pytest.approx(5 / 2.5)
    assert found["gap_p95_s"] == pytest.approx(1.0)
    assert found["first_token_s"] == pytest.approx(0.75)


def test_prompts_are_consecutive_text_of_ragged_lengths(tiny: Callable[[str], LoadedModel]) -> None:
    tokenizer = tiny("llama").tokenizer
    found = decode.prompts(tokenizer, ["abc " * 2000], 5)
    assert len(found) == 6
    assert len({len(one) for one in found}) == 6
    whole = tokenizer("abc " * 2000, add_special_tokens=False)["input_ids"]
    joined = list(itertools.chain(*found))
    assert joined == whole[: len(joined)]
    with pytest.raises(ConfigError, match="there are 5"):
        decode.prompts(tokenizer, ["abc"], 5)
    with pytest.raises(ConfigError, match="no list"):
        decode.counted("1,x")

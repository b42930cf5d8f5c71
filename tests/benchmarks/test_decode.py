"""`kvcomm bench decode`: what it counts, on a tiny model."""

import itertools
import json

import pytest

from benchmarks import decode
from benchmarks.decode import Stream, measure, prompts, summary
from benchmarks.options import DecodeOptions, numbers
from benchmarks.plots.speed import plot_decode
from benchmarks.session import Session
from kvcomm_agents.errors import ConfigError


def test_both_ways_give_the_same_answers(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "ARRIVING", 300)
    rows = [{"question": f"{number} apples and {number * 7} pears"} for number in range(200)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = DecodeOptions(data=tmp_path, requests="1,4", tokens=24, rounds=1)
    report = measure(options, Session(lambda: tiny("llama")))
    assert list(report["requests"]) == ["1", "4"]
    for row in report["requests"].values():
        assert row["same_answers"]
        assert row["together"]["gap_p95_s"] >= row["together"]["gap_median_s"] > 0
    assert report["shares_passes"]
    assert report["arrival"]["prompt_tokens"] == 300
    table, said = decode.tables(report)
    assert len(table.rows) == 2
    assert "longest gap" in said
    pytest.importorskip("matplotlib")
    plot_decode(report, tmp_path / "decode.png")
    assert (tmp_path / "decode.png").stat().st_size > 1000


def test_what_counts_is_the_time_in_which_all_decode():
    early = Stream(began=0.0, times=[0.0, 1.0, 2.0, 3.0, 4.0])
    late = Stream(began=0.0, times=[1.5, 2.5, 3.5, 4.5, 5.5])
    found = summary([[early, late]])
    # from 1.5 to 4.0: early has tokens at 2, 3 and 4, late at 2.5 and 3.5
    assert found["tokens_per_s"] == pytest.approx(5 / 2.5)
    assert found["gap_p95_s"] == pytest.approx(1.0)
    assert found["first_token_s"] == pytest.approx(0.75)


def test_prompts_are_consecutive_text_of_ragged_lengths(tiny):
    tokenizer = tiny("llama").tokenizer
    found = prompts(tokenizer, ["abc " * 2000], 5, 1000)
    assert len(found) == 6
    assert len({len(one) for one in found}) == 6
    whole = tokenizer("abc " * 2000, add_special_tokens=False)["input_ids"]
    joined = list(itertools.chain(*found))
    assert joined == whole[: len(joined)]
    with pytest.raises(ConfigError, match="there are 5"):
        prompts(tokenizer, ["abc"], 5, 1000)


@pytest.mark.parametrize("text", ["1,x", "0", "", "1,-2", "1.5"])
def test_what_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(ConfigError, match="no list"):
        numbers(text)

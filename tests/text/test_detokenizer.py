"""Text comes out whole, stops where it should, and sampling is transformers' own."""

from __future__ import annotations

import pytest
import torch
from conftest import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from kvcomm_agents.backends.transformers.sampling import Sampler
from kvcomm_agents.request import SamplingParams
from kvcomm_agents.text.detokenizer import Detokenizer, StopStrings

TOKENIZER = byte_tokenizer()


@given(st.text(max_size=30))
def test_detokenizer_never_emits_half_a_character(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.push(token) for token in TOKENIZER(text)["input_ids"]]
    assert "".join(pieces) + detokenizer.flush() == text
    assert "�" not in "".join(pieces).replace("�" if "�" in text else "", "")


def test_an_unfinished_character_is_flushed() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    first_byte = TOKENIZER("é")["input_ids"][0]
    assert detokenizer.push(first_byte) == ""
    assert detokenizer.flush() == "�"
    assert detokenizer.flush() == ""


@given(st.text("abcx", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_cut_at_the_first_however_the_text_is_split(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    stopper, shown = StopStrings(stops), ""
    for piece in pieces:
        shown += stopper.push(piece)
        if stopper.hit:
            break
    ends = {stop: text.find(stop) + len(stop) for stop in stops if stop in text}
    if not ends:
        assert not stopper.hit
        assert shown + stopper.flush() == text
    else:
        assert stopper.hit
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
        assert any(text.startswith(stop, len(shown)) for stop in stops)


def test_greedy_is_the_best_token_and_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -4.0])
    assert Sampler(SamplingParams(), [], logits.device)(logits) == 1
    sampler = Sampler(SamplingParams(temperature=1.0, seed=0), [], logits.device)
    counts = torch.bincount(torch.tensor([sampler(logits) for _ in range(4000)]), minlength=4) / 4000
    torch.testing.assert_close(counts, logits.softmax(0), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        (SamplingParams(temperature=5.0, top_k=2, seed=1), {1, 2}),
        (SamplingParams(temperature=1.0, top_p=0.6, seed=1), {1}),
        (SamplingParams(temperature=1.0, min_p=0.3, seed=1), {1, 2}),
    ],
)
def test_filters(params: SamplingParams, allowed: set[int]) -> None:
    sampler = Sampler(params, [], torch.device("cpu"))
    assert {sampler(torch.tensor([0.0, 2.0, 1.0, -4.0])) for _ in range(200)} == allowed


def test_repetition_penalty_counts_prompt_and_output() -> None:
    logits = torch.tensor([1.0, 1.9, 2.0, 1.5])
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), [2], logits.device)
    assert [sampler(logits) for _ in range(3)] == [1, 3, 0]

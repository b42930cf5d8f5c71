from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm_agents.errors import ConfigError
from kvcomm_agents.kv.span_index import SpanIndex, SpanMatch


def tokens(seed: int, n: int = 60, vocabulary: int = 50_000) -> list[int]:
    return random.Random(seed).choices(range(vocabulary), k=n)


def index_of(*spans: list[int], **settings: int) -> SpanIndex:
    index = SpanIndex(**settings)
    for number, span in enumerate(spans):
        index.add(number, span)
    return index


A, B, C = tokens(1), tokens(2, 150), tokens(3, 40)
FILL = tokens(9, 30)


def test_whole_span_anywhere_twice_and_joined():
    index = index_of(A, B, C)
    assert index.find(A) == [SpanMatch(0, 60, 0, 0)]
    assert index.find(FILL + B + [5] + C) == [SpanMatch(30, 180, 1, 0), SpanMatch(181, 221, 2, 0)]
    assert index.find(C + FILL + C) == [SpanMatch(0, 40, 2, 0), SpanMatch(70, 110, 2, 0)]
    assert index.find(FILL) == index.find([]) == SpanIndex().find(A) == []


def test_adjacent_spans_stay_apart():
    assert index_of(A, B).find(A + B + A) == [
        SpanMatch(0, 60, 0, 0),
        SpanMatch(60, 210, 1, 0),
        SpanMatch(210, 270, 0, 0),
    ]


def test_changed_boundary_tokens_cost_only_themselves():
    assert index_of(A).find([7, *A[1:-1], 8]) == [SpanMatch(1, 59, 0, 1)]


def test_a_changed_token_in_the_middle_leaves_both_sides():
    changed = [*B[:70], 7, *B[71:]]
    assert index_of(B).find(changed) == [SpanMatch(0, 70, 0, 0), SpanMatch(71, 150, 0, 71)]


@pytest.mark.parametrize("offset", range(17))
def test_every_run_of_min_span_is_found(offset: int):
    piece = A[offset : offset + 16]
    assert index_of(A).find(FILL + piece + FILL) == [SpanMatch(30, 46, 0, offset)]
    assert index_of(A).find(FILL + piece[:-1] + FILL) == []


def test_start_hides_what_stands_before():
    index = index_of(A)
    assert index.find(A + A, start=10) == [SpanMatch(10, 60, 0, 10), SpanMatch(60, 120, 0, 0)]
    assert index.find(A, start=45) == []


def test_the_longest_wins_and_the_other_keeps_the_rest():
    index = index_of(A + B[:30], B)
    assert index.find(A + B) == [SpanMatch(0, 60, 0, 0), SpanMatch(60, 210, 1, 0)]
    transcript = index_of(A, FILL + A + C)
    assert transcript.find(A + C) == [SpanMatch(0, 100, 1, 30)]


def test_ties():
    later = index_of(A + FILL, A, A)
    assert later.find(C + A)[0].span == 2  # whole, added last
    assert index_of(A, A + FILL).find(C + A)[0].span == 0  # whole beats a later part
    assert index_of(A + FILL, A).find(A, prefer=[0])[0].span == 0
    assert index_of(A + FILL, A).find([7, *A[1:]], prefer=[])[0].span == 1


def test_a_preferred_span_wins_though_slightly_shorter_and_leaves_the_rest():
    index = index_of(A, FILL + [1, 2, 3] + A + [4, 5] + B)
    prompt = [1, 2, 3] + A + [4, 5]
    assert index.find(prompt) == [SpanMatch(0, 65, 1, 30)]
    assert index.find(prompt, prefer={0}) == [SpanMatch(3, 63, 0, 0)]
    longer = index.find(prompt + B, prefer={0})
    assert longer == [SpanMatch(0, 215, 1, 30)]  # far longer: not overruled


def test_preferred_inside_a_longer_run_leaves_both_sides():
    index = index_of(B[20:140], B, min_span=8, window=8)
    assert index.find(B[10:150], prefer=[0]) == [SpanMatch(0, 140, 1, 10)]
    assert index.find(B[12:148], prefer=[0]) == [
        SpanMatch(0, 8, 1, 12),
        SpanMatch(8, 128, 0, 0),
        SpanMatch(128, 136, 1, 140),
    ]


def test_add_replaces_and_remove_forgets():
    index = index_of(A, B)
    assert len(index) == 2
    assert 0 in index
    assert 5 not in index
    index.add(0, C)
    assert index.find(A) == []
    assert index.find(C) == [SpanMatch(0, 40, 0, 0)]
    index.remove(0)
    index.remove(99)
    assert len(index) == 1
    assert index.find(C) == []
    index.remove(1)
    assert not index._places  # nothing is left behind


def test_short_spans_are_ignored_and_replace_nothing_by_nothing():
    index = index_of(A)
    index.add(1, A[:15])
    assert 1 not in index
    index.add(0, A[:15])
    assert 0 not in index
    assert len(index) == 0


@pytest.mark.parametrize("bad", [{"window": 0}, {"window": 20}, {"min_span": 7}, {"candidates": 3}])
def test_bad_settings(bad: dict[str, int]):
    with pytest.raises(ConfigError):
        SpanIndex(**bad)


def check(index: SpanIndex, spans: dict[int, list[int]], prompt: list[int], found: list[SpanMatch]) -> None:
    last = 0
    for match in found:
        assert match.start >= last
        assert match.stop - match.start >= index.min_span
        last = match.stop
        assert prompt[match.start : match.stop] == spans[match.span][match.offset :][: match.stop - match.start]
    assert last <= len(prompt)


def longest_common_runs(span: list[int], prompt: list[int]) -> list[tuple[int, int]]:
    """Maximal common runs `(start, stop)` in the prompt, by brute force."""
    runs = []
    for i in range(len(span)):
        for j in range(len(prompt)):
            if i and j and span[i - 1] == prompt[j - 1]:
                continue
            n = 0
            while i + n < len(span) and j + n < len(prompt) and span[i + n] == prompt[j + n]:
                n += 1
            runs.append((j, j + n))
    return runs


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[int, list[int]], list[int]]:
    """Spans over a small alphabet and a prompt made of their pieces and of noise."""
    letters = st.integers(0, draw(st.integers(0, 5)))
    spans = draw(st.lists(st.lists(letters, max_size=40), min_size=1, max_size=4))
    prompt: list[int] = []
    for _ in range(draw(st.integers(0, 4))):
        piece = draw(st.one_of(st.sampled_from(spans), st.lists(letters, max_size=12)))
        begin = draw(st.integers(0, len(piece)))
        prompt += piece[begin : draw(st.integers(begin, len(piece)))]
    return dict(enumerate(spans)), prompt


@settings(max_examples=400, deadline=None)
@given(world=worlds(), window=st.integers(1, 5), slack=st.integers(0, 8), prefer=st.sets(st.integers(0, 4)))
def test_never_wrong_and_misses_nothing_long_enough(
    world: tuple[dict[int, list[int]], list[int]], window: int, slack: int, prefer: set[int]
):
    spans, prompt = world
    index = SpanIndex(window=window, min_span=window + slack, candidates=1000)
    for number, span in spans.items():
        index.add(number, span)
    found = index.find(prompt, prefer=prefer)
    check(index, spans, prompt, found)
    covered = {at for match in found for at in range(match.start, match.stop)}
    sure = max(index.min_span, 2 * window - 1)
    longest = 0
    for number, span in spans.items():
        if number not in index:
            continue
        for start, stop in longest_common_runs(span, prompt):
            if stop - start < sure:
                continue
            longest = max(longest, stop - start)
            # others may take parts of a run; what they leave of it is too short to report
            free = max((len(part) for part in _free_parts(start, stop, covered)), default=0)
            assert free < sure + window
    if longest and not prefer:
        assert max(match.stop - match.start for match in found) > longest - window


def _free_parts(start: int, stop: int, covered: set[int]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for at in range(start, stop):
        if at in covered:
            parts.append([])
        else:
            parts[-1].append(at)
    return parts


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.lists(st.integers(0, 2), max_size=30)), max_size=12))
def test_adding_and_removing_in_any_order_leaves_a_sound_index(steps: list[tuple[int, bool, list[int]]]):
    index, spans = SpanIndex(window=3, min_span=4, candidates=4), dict[int, list[int]]()
    for span, keep, ids in steps:
        if keep:
            index.add(span, ids)
            spans[span] = ids
        else:
            index.remove(span)
            spans.pop(span, None)
        check(index, spans, ids * 3, index.find(ids * 3))
    for span in list(spans):
        index.remove(span)
    assert len(index) == 0
    assert not index._places


def test_repetition_and_common_text_stay_cheap():
    same = [7] * 4000
    common = tokens(99_999, 24)
    index = index_of(same)
    for number in range(1, 3000):
        index.add(number, tokens(number + 10, 20) + common + tokens(number, 20))
    started = time.perf_counter()
    assert index.find(same) == [SpanMatch(0, 4000, 0, 0)]
    boilerplate = index.find(common * 160)
    mixed = index.find([7] * 100 + [8] + [7] * 3000)
    assert time.perf_counter() - started < 1.0  # tens of milliseconds; generous, since CI shares its cores
    assert len(boilerplate) == 160
    assert sum(m.stop - m.start for m in mixed) == 3100
    old = tokens(11, 20) + common + tokens(1, 20)
    assert index.find(old) == [SpanMatch(0, 64, 1, 0)]  # its own grams find it among thousands


def test_a_repetitive_span_does_not_push_others_out():
    index = index_of(A + [7] * 30, [7] * 4000)
    assert index.find(A[40:] + [7] * 30)[0].span == 0
    assert index.find([7] * 30 + [8])[0].stop == 30

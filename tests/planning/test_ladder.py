"""Every rung's plan covers the prompt, computes what it says, and places only what it was given."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot
from kvcomm_agents.plan import Placed
from kvcomm_agents.planning.ladder import LADDER, corrected_plan
from kvcomm_agents.planning.segments import Kind, Segment

pieces = st.lists(st.tuples(st.sampled_from(["new", "static", "span"]), st.integers(1, 60), st.booleans()), min_size=1)


def laid_out(kinds: list[tuple[Kind, int, bool]], start: int) -> tuple[list[Segment], dict[int, KVBlock]]:
    segments, blocks = list[Segment](), dict[int, KVBlock]()
    for index, (kind, tokens, known) in enumerate(kinds):
        slot = Slot("a", "b") if kind == "span" else None
        segments.append(Segment(start, start + tokens, kind, -1 if kind == "new" else index, 0, slot))
        if known and kind != "new":
            marks = torch.arange(start, start + tokens).float()[None, None, :, None]
            blocks[index] = KVBlock(marks, marks)
        start += tokens
    return segments, blocks


@given(pieces, st.integers(0, 30))
def test_rungs(kinds: list[tuple[Kind, int, bool]], prefix: int) -> None:
    held = torch.zeros(1, 1, prefix, 1)
    stored = [Placed(0, prefix, KVBlock(held, held, 0), exact=True)] if prefix else []
    segments, blocks = laid_out(kinds, prefix)
    length = segments[-1].stop
    computed = []
    for rung in LADDER:
        plan = corrected_plan(length, stored, segments, blocks, rung, min_run=6)
        assert plan.length == length
        computed.append(plan.computed_tokens)
        for run in plan.placed:
            if run.exact:
                continue
            (one,) = (s for s in segments if s.start <= run.start and run.stop <= s.stop)
            assert run.block.keys.flatten().tolist() == list(range(run.start, run.stop))
            assert run.stop - run.start >= 6
            if one.kind == "span":
                assert run.start - one.start >= rung.heads
            else:
                assert not rung.connectives
                assert run.start - one.start >= rung.joints
    assert computed == sorted(computed)


def test_more_is_computed_of_what_was_warmed() -> None:
    segments, blocks = laid_out([("span", 60, True), ("new", 10, False)], 0)
    warmed = [replace(segments[0], warmed=True), segments[1]]
    for rung in LADDER:
        plan = corrected_plan(70, [], warmed, blocks, rung, min_run=6)
        assert [(run.start, run.stop) for run in plan.placed] == [(rung.warmed, 60 if rung.least <= 10 else 58)]
        assert rung.warmed > rung.heads
    rest = [replace(warmed[0], offset=30), segments[1]]  # a prefix ended within it
    assert corrected_plan(70, [], rest, blocks, LADDER[1], min_run=6).placed[0].start == 0


def test_the_end_is_computed_whatever_it_is() -> None:
    segments, blocks = laid_out([("span", 40, True), ("static", 20, True), ("span", 40, True)], 0)
    for rung in LADDER:
        (*_, last) = corrected_plan(100, [], segments, blocks, rung, min_run=6).runs
        assert (last.start, last.stop) == (100 - rung.least, 100)

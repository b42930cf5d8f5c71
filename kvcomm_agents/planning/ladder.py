"""Ladder: what to compute and what to place. It knows policy and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..kv.block import KVBlock
from ..kv.prefix_cache import Hit, PrefixCache
from ..plan import Computed, Placed, PrefillPlan, Run, dense
from .segments import Segment


@dataclass(frozen=True, slots=True)
class Rung:
    """A step of the ladder: how much is computed of what could be placed.

    Args:
        name: for reports.
        heads: tokens computed at the head of each span.
        warmed: the same of spans whose base was warmed: it knows no context, and its first tokens are the furthest off.
        joints: tokens computed at the head of static text, where it follows a span.
        connectives: whether static text between spans is computed whole.
        tail: static tokens computed at the prompt's end, at most; new text there always is.
        least: tokens computed at the prompt's end whatever they are: they shape the answer most.
    """

    name: str
    heads: int = 0
    warmed: int = 0
    joints: int = 0
    connectives: bool = False
    tail: int = 64
    least: int = 1


LADDER = (
    Rung("placed", warmed=8, least=12),
    Rung("heads", heads=6, warmed=16, least=12),
    Rung("joints", heads=6, warmed=32, joints=6, least=12),
    Rung("connectives", heads=6, warmed=48, connectives=True, least=12),
)
"""From the least computed to the most; above it there is only dense."""


def prefix_runs(hits: Sequence[Hit], min_prefix: int) -> list[Placed]:
    """The runs of a stored prefix; none if it is too short to pay."""
    if not hits or hits[-1].stop < min_prefix:
        return []
    runs, tainted = list[Placed](), False
    for hit in hits:
        tainted = tainted or hit.tainted
        runs.append(Placed(hit.start, hit.stop, hit.block, exact=not tainted, source=hit.agent))
    return runs


def find_prefix(
    prefixes: PrefixCache, namespace: str, ids: Sequence[int], min_prefix: int, *, exact: bool, variant: int = 0
) -> list[Placed]:
    """The runs of the longest stored prefix of a prompt, its last token left out: that is computed.

    Args:
        prefixes: the store.
        namespace: the only one anything is taken from.
        ids: token ids of the prompt.
        min_prefix: tokens; a shorter prefix does not pay, and is computed.
        exact: only KV that equals a dense prefill's.
        variant: of the context that it is for (see `KVLayout.variant`).
    """
    return prefix_runs(prefixes.match(namespace, ids[:-1], exact=exact, variant=variant), min_prefix)


def prefix_plan(length: int, prefix: Sequence[Placed]) -> PrefillPlan:
    """A stored prefix placed, the rest computed."""
    if not prefix:
        return dense(length)
    return PrefillPlan((*prefix, Computed(prefix[-1].stop, length)))


def corrected_plan(
    length: int,
    prefix: Sequence[Placed],
    segments: Sequence[Segment],
    blocks: Mapping[int, KVBlock],
    rung: Rung,
    min_run: int,
    block: int = 1,
) -> PrefillPlan:
    """A stored prefix, then every segment placed or computed as the rung says.

    Args:
        length: tokens of the prompt.
        prefix: its runs.
        segments: of the rest, without gaps.
        blocks: what to place, by the index of its segment; a segment without one is computed.
        rung: how much to compute.
        min_run: shorter placed runs are computed.
        block: a placed run behind a computed one begins at a multiple of so many tokens (see `align`).
    """
    last = max((index for index, one in enumerate(segments) if one.kind == "span"), default=-1)
    tail = max(length - rung.tail, segments[last].stop if last >= 0 else 0)
    runs: list[Run] = list(prefix)
    for index, one in enumerate(segments):
        stored = blocks.get(index)
        start, stop = one.start, max(one.start, min(one.stop, length - rung.least))
        if one.kind == "span":
            start = min(stop, start + max(0, (rung.warmed if one.warmed else rung.heads) - one.offset))
        elif one.kind == "static":
            start = stop if rung.connectives else min(stop, start + rung.joints)
            stop = min(stop, max(tail, start))
        if stored is not None and stop - start >= min_run:
            _compute(runs, one.start, start)
            runs.append(Placed(start, stop, stored.slice(start - one.start, stop - one.start), exact=False))
            _compute(runs, stop, one.stop)
        else:
            _compute(runs, one.start, one.stop)
    return PrefillPlan(tuple(align(runs, block, min_run)))


def align(runs: Sequence[Run], block: int, min_run: int) -> list[Run]:
    """The same runs where placed ones begin at edges of blocks: a computed run before one goes on to the next edge.

    A placed run at the prompt's beginning, or behind another placed one, stays as it is.

    Args:
        runs: of a plan.
        block: tokens between two edges.
        min_run: a placed run of which fewer tokens are left is computed.
    """
    aligned: list[Run] = []
    for run in runs:
        if isinstance(run, Computed):
            _compute(aligned, run.start, run.stop)
            continue
        start = run.start
        if aligned and isinstance(aligned[-1], Computed):
            start = min(-(-run.start // block) * block, run.stop)
            if start > run.start and run.stop - start < min_run:
                start = run.stop
            _compute(aligned, run.start, start)
        if start < run.stop:
            block_left = run.block.slice(start - run.start, run.stop - run.start) if start > run.start else run.block
            aligned.append(replace(run, start=start, block=block_left))
    return aligned


def _compute(runs: list[Run], start: int, stop: int) -> None:
    """Append a computed run, joined with the one before it."""
    if start == stop:
        return
    if runs and isinstance(runs[-1], Computed):
        runs[-1] = Computed(runs[-1].start, stop)
    else:
        runs.append(Computed(start, stop))

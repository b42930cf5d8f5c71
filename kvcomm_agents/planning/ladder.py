"""Ladder: how much of what could be placed is computed all the same. It knows policy and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..kv.block import KVBlock
from ..kv.prefix_cache import Hit, PrefixCache
from ..plan import Computed, Placed, PrefillPlan, Run, dense
from .segments import Segment

LONG_STATIC = 64
"""Tokens from which on an agent's own text behind words that changed is placed like a span, its head computed."""


@dataclass(frozen=True, slots=True)
class Rung:
    """How much is computed of what could be placed.

    Args:
        name: for reports, and for the levels of a calibration.
        heads: tokens computed at the head of each span.
        share: of each span computed at its head, where that is more than `heads`.
        maps: spans are corrected by the maps of their reader; if not, their donor KV is placed as it is.
        static: the agent's own text between spans is placed from its mean; if not, it is computed.
        needs: measured calls of a reader before it is given this rung: the lower, the more its calls differ.
        tail: of that text at the prompt's end so much is computed, at most; new text there always is.
        least: tokens computed at the prompt's end whatever they are: they shape the answer most.
    """

    name: str
    heads: int
    share: float = 0.0
    maps: bool = False
    static: bool = False
    needs: int = 0
    tail: int = 64
    least: int = 12

    def head(self, segment: Segment) -> int:
        """Tokens computed at the head of a span; twice as many if no agent has read its KV in any context."""
        heads = max(self.heads, round(self.share * (segment.offset + segment.tokens)))
        return 2 * heads if segment.warmed else heads


LADDER = (
    Rung("raw64", 64),
    Rung("raw32", 32),
    Rung("raw third", 32, share=0.3),
    Rung("raw16", 16, needs=1),
    Rung("raw6", 6, needs=3),
    Rung("raw32 static", 32, static=True),
    Rung("raw16 static", 16, static=True, needs=1),
    Rung("raw6 static", 6, static=True, needs=3),
    Rung("map16", 16, maps=True, needs=1),
    Rung("map6", 6, maps=True, needs=3),
    Rung("map16 static", 16, maps=True, static=True, needs=1),
    Rung("map6 static", 6, maps=True, static=True, needs=3),
    Rung("map0 static", 0, maps=True, static=True, needs=3),
)
"""What a rung computes depends on the prompt, and what it costs is predicted; of two that come to the same, the first
names it."""

BY_NAME = {rung.name: rung for rung in LADDER}
LONG = BY_NAME["raw third"]
"""What a reader of whom nothing was measured is given where one or two long spans are nearly all of its prompt."""
MOST = BY_NAME["map0 static"]
"""The rung that computes least: what `corrected` mode takes once there are maps."""


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """What there is to place, by the index of its segment.

    Args:
        raw: donor KV of spans and of the agent's own text.
        static: means of the agent's own text.
        mapped: spans corrected by the maps of their reader.
    """

    raw: Mapping[int, KVBlock]
    static: Mapping[int, KVBlock]
    mapped: Mapping[int, KVBlock]

    def block(self, index: int, segment: Segment, rung: Rung) -> KVBlock | None:
        """What a rung places of a segment; `None` if it computes all of it."""
        if segment.kind == "span":
            return (self.mapped if rung.maps else self.raw).get(index)
        if segment.kind == "static":
            if rung.static and index in self.static:
                return self.static[index]
            return self.raw.get(index) if segment.tokens >= LONG_STATIC else None
        return None


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
    sources: Sources,
    rung: Rung,
    min_run: int,
    block: int = 1,
) -> PrefillPlan:
    """A stored prefix, then every segment placed or computed as the rung says.

    Args:
        length: tokens of the prompt.
        prefix: its runs.
        segments: of the rest, without gaps.
        sources: what there is to place; a segment of which there is nothing is computed.
        rung: how much to compute.
        min_run: shorter placed runs are computed.
        block: a placed run behind a computed one begins at a multiple of so many tokens (see `align`).
    """
    last = max((index for index, segment in enumerate(segments) if segment.kind == "span"), default=-1)
    tail = max(length - rung.tail, segments[last].stop if last >= 0 else 0)
    runs: list[Run] = list(prefix)
    for index, segment in enumerate(segments):
        stored = sources.block(index, segment, rung)
        start, stop = segment.start, max(segment.start, min(segment.stop, length - rung.least))
        if segment.kind == "span":
            start = min(stop, start + max(0, rung.head(segment) - segment.offset))
        elif segment.kind == "static":
            if not (rung.static and index in sources.static):  # its donor stood behind other words
                start = min(stop, start + max(rung.heads, 16))
            stop = min(stop, max(tail, start))
        if stored is not None and stop - start >= min_run:
            _compute(runs, segment.start, start)
            placed = stored.slice(start - segment.start, stop - segment.start)
            runs.append(Placed(start, stop, placed, exact=False))
            _compute(runs, stop, segment.stop)
        else:
            _compute(runs, segment.start, segment.stop)
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

"""Audits: what a reused prompt really costs in divergence, measured off the critical path.

A *trial* takes a request that was computed exactly and asks what a rung would have given: one
forward pass over few tokens, since all else is placed. An *audit* takes a request that was
reused and prefills it densely. Both compare next-token distributions at every produced position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..backends.transformers.forced import _forced, forced
from ..backends.transformers.runner import Runner
from ..kv.block import Capture, KVBlock
from ..plan import Placed
from .ladder import Rung, corrected_plan, prefix_plan
from .segments import Segment

KEPT = 64  # produced positions whose distributions are compared, at most


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far one set of next-token distributions is from the dense one.

    Args:
        mean, first, largest: KL(dense || other) in nats, over produced positions.
        top1: share of positions where both have the same best token.
    """

    mean: float
    first: float
    largest: float
    top1: float


def divergence(dense: Tensor, other: Tensor) -> Divergence:
    """Compare logits `[positions, vocabulary]`."""
    p, q = dense.log_softmax(-1), other.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).clamp_min(0)
    top1 = (dense.argmax(-1) == other.argmax(-1)).float().mean()
    return Divergence(float(kl.mean()), float(kl[0]), float(kl.max()), float(top1))


def trial(
    runner: Runner,
    ids: Sequence[int],
    output: Sequence[int],
    prefix: Sequence[Placed],
    segments: Sequence[Segment],
    blocks: Mapping[int, KVBlock],
    dense: Tensor,
    rung: Rung,
    min_run: int,
) -> Divergence:
    """What a rung of the ladder would have diverged on a request that was computed exactly.

    Args:
        runner: of the model.
        ids: the prompt.
        output: what was produced; `dense` `[len(output) + 1 or fewer, vocabulary]` predicted it.
        prefix: the exact prefix.
        segments: of the rest.
        blocks: what would be placed.
        dense: logits of the exact run.
        rung: how much to compute.
        min_run: as in `corrected_plan`.
    """
    output = output[: dense.shape[0] - 1]
    plan = corrected_plan(len(ids), prefix, segments, blocks, rung, min_run)
    return divergence(dense, forced(runner, ids, output, plan))


def audit(
    runner: Runner,
    ids: Sequence[int],
    output: Sequence[int],
    prefix: Sequence[Placed],
    segments: Sequence[Segment],
    served: Tensor,
    keep: Callable[[Sequence[int], Capture], object],
) -> tuple[Divergence, Tensor, list[KVBlock]]:
    """Prefill a reused request exactly: how far it diverged, the exact logits, the un-rotated KV of its segments.

    Args:
        runner: of the model.
        ids: the prompt.
        output: what was produced.
        prefix: an exact prefix to start from.
        segments: whose KV is wanted.
        served: logits `[positions, vocabulary]` that produced `output`.
        keep: told the tokens whose exact KV is there, and how to copy it.
    """
    output, rope = output[: served.shape[0] - 1], runner.layout.require_movable()
    with _forced(runner, ids, output, prefix_plan(len(ids), prefix)) as (logits, cache):
        true = [cache.capture(one.start, one.stop).unrotated(rope) for one in segments]
        keep([*ids, *output], cache.capture)
    return divergence(logits, served), logits, true

"""Strategies: what each scheme places and what it computes, as plans over one runner.

All see the same donors and are taught the same examples. Static text before the first span is always
an exact prefix hit. Correctors are learned from the warm-up questions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from kvcomm_agents.backends.transformers.forced import forced
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot
from kvcomm_agents.plan import Computed, Placed, PrefillPlan, Run, dense

from .chain import Piece
from .learned import Learned
from .record import Case


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """A strategy's plan, and what it computed besides, in tokens through the whole model."""

    plan: PrefillPlan
    charge: float = 0.0


Strategy = Callable[[Case, Learned], Chosen]


def assemble(case: Case, blocks: Mapping[Piece, KVBlock], computed: frozenset[int] = frozenset()) -> PrefillPlan:
    """The plan that places these blocks behind the exact prefix.

    Args:
        case: the request.
        blocks: KV of pieces; where one is shorter, of its last tokens. What has none is computed.
        computed: positions that are computed in any case; the prompt's last always is.
    """
    length, at = len(case.instance.ids), case.instance.prefix
    runs: list[Run] = [Placed(0, at, case.block.slice(0, at), exact=True)] if at else []
    for piece in case.instance.pieces:
        if piece in blocks and piece.start >= case.instance.prefix:
            block = blocks[piece]
            first = piece.stop - block.tokens
            for start, stop in _runs(first, piece.stop, computed | {length - 1}):
                runs += [Computed(at, start)] if start > at else []
                runs.append(Placed(start, stop, block.slice(start - first, stop - first), exact=False))
                at = stop
    return PrefillPlan((*runs, Computed(at, length)))


def _runs(start: int, stop: int, without: frozenset[int]) -> Iterator[tuple[int, int]]:
    """What is left of `start:stop`."""
    for position in (*(at for at in range(start, stop) if at in without), stop):
        if start < position:
            yield start, position
        start = position + 1


def logits_of(case: Case, chosen: Chosen, learned: Learned) -> Tensor:
    """Logits `[positions, vocabulary]` of what a request said, under a strategy's plan."""
    return forced(learned.recorder.runner, case.instance.ids, case.said, chosen.plan)


def _dense(case: Case, learned: Learned) -> Chosen:
    return Chosen(dense(len(case.instance.ids)))


def _prefix(case: Case, learned: Learned) -> Chosen:
    return Chosen(assemble(case, {}))


def _alone(case: Case, learned: Learned) -> Chosen:
    return Chosen(assemble(case, {piece: case.bases(piece).alone for piece in case.instance.spans}))


def _corrected(corrector: str, heads: int = 0, *, connectives: bool = False) -> Strategy:
    """Donor spans corrected, own text from its mean, the tail and the spans' first tokens computed.

    With `connectives` the text between spans is computed too.
    """

    def strategy(case: Case, learned: Learned) -> Chosen:
        instance, blocks = case.instance, dict[Piece, KVBlock]()
        blocks = {} if connectives else learned.statics(instance)
        for piece in instance.spans:
            slot = Slot(instance.agent, piece.name)
            blocks[piece] = learned.correctors[corrector].correct(slot, case.bases(piece).home).block
        first = {at for piece in instance.spans for at in range(piece.start, piece.start + heads - piece.offset)}
        return Chosen(assemble(case, blocks, _tail(case) | first))

    return strategy


def _interpolation(*, tail: bool) -> Strategy:
    """KVCOMM as published; with `tail` the text behind the last span is computed."""

    def strategy(case: Case, learned: Learned) -> Chosen:
        return Chosen(assemble(case, learned.interpolated(case), _tail(case) if tail else frozenset()))

    return strategy


def _blend(share: float) -> Strategy:
    """CacheBlend: the span tokens whose KV deviates most at the second layer are computed, for a layer's price."""

    def strategy(case: Case, learned: Learned) -> Chosen:
        blocks, deviations = dict[Piece, KVBlock](), list[tuple[float, int]]()
        for piece in case.instance.spans:
            base = blocks[piece] = case.bases(piece).home
            true = case.block.slice(piece.start, piece.stop).unrotated(learned.recorder.rope)
            layer = min(1, base.keys.shape[0] - 1)
            pairs = ((base.keys, true.keys), (base.values, true.values))
            gaps = [(a[layer] - b[layer]).float().square().sum((0, 2)) for a, b in pairs]
            deviations += [(-size, piece.start + at) for at, size in enumerate((gaps[0] + gaps[1]).tolist())]
        top = frozenset(position for _, position in sorted(deviations)[: round(share * len(deviations))])
        charge = len(deviations) / learned.recorder.runner.layout.layers
        return Chosen(assemble(case, blocks, top), charge)

    return strategy


def _tail(case: Case) -> frozenset[int]:
    """The prompt behind its last span."""
    stop = max((piece.stop for piece in case.instance.spans), default=0)
    return frozenset(range(stop, len(case.instance.ids)))


STRATEGIES: dict[str, Strategy] = {
    "dense": _dense,
    "prefix": _prefix,
    "none": _alone,
    "donor": _corrected("none"),
    "mean": _corrected("mean"),
    "interpolation": _interpolation(tail=False),
    "interpolation_tail": _interpolation(tail=True),
    "token_knn": _corrected("token_knn"),
    "linear_tail": _corrected("linear"),
    "linear_heads": _corrected("linear", heads=8),
    "epic8": _corrected("none", heads=8, connectives=True),
    "epic16": _corrected("none", heads=16, connectives=True),
    "blend10": _blend(0.10),
    "blend20": _blend(0.20),
}
GUARDED = "guarded"
NAMES = (*STRATEGIES, GUARDED)

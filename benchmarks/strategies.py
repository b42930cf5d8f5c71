"""Strategies: what each scheme places and what it computes, as plans over one runner.

All see the same donors and are taught the same examples. Static text before the first span is always
an exact prefix hit. SpanCorrector are learned from the warm-up questions only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from benchmarks.correctors.none import NoCorrector
from kvcomm_agents.config import GiB
from kvcomm_agents.correction.base import Corrector, Example
from kvcomm_agents.correction.linear import LinearCorrector
from kvcomm_agents.correction.token_knn import TokenKnnCorrector
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot
from kvcomm_agents.plan import Placed, PrefillPlan
from kvcomm_agents.planning.ladder import Rung, corrected_plan, prefix_plan
from kvcomm_agents.planning.segments import Kind, Segment

from .chain import Instance, Piece
from .correctors import InterpolationCorrector, MeanCorrector
from .record import Case, Recorder

PUBLISHED_GAMMA = 0.3
_WHOLE_TAIL = 1 << 20  # the text after the last span is computed, however long


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """A strategy's plan, and what it computed besides, in tokens through the whole model."""

    plan: PrefillPlan
    charge: float = 0.0


@dataclass(eq=False)
class Learned:
    """What the warm-up questions taught, for every strategy.

    Args:
        recorder: gives the published scheme the KV of the prompt templates.
    """

    recorder: Recorder
    correctors: dict[str, Corrector] = field(init=False)
    interpolation: InterpolationCorrector = field(init=False)
    _means: dict[tuple[str, str], tuple[KVBlock, int]] = field(default_factory=dict)
    _templates: dict[tuple[str, str], KVBlock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.correctors = {
            "none": NoCorrector(),
            "mean": MeanCorrector(budget=2 * GiB),
            "token_knn": TokenKnnCorrector(budget=4 * GiB),
            "linear": LinearCorrector(),
        }
        # The reuse rule is reported beside the divergence of everything, not applied to it: see `shareable`.
        self.interpolation = InterpolationCorrector(gamma=1.0, budget=8 * GiB)
        rope = self.recorder.rope
        for agent in self.recorder.chain.agents:
            ids, pieces = self.recorder.chain.template(agent)
            block = self.recorder.prefill(ids)
            for piece in pieces:
                if not piece.shared:
                    self._templates[agent.name, piece.name] = block.slice(piece.start, piece.stop).unrotated(rope)

    def learn(self, case: Case) -> None:
        """Take in a request whose dense KV is known."""
        agent = case.instance.agent
        following: tuple[Slot, KVBlock] | None = None
        for piece in case.instance.pieces:
            true = case.block.slice(piece.start, piece.stop).unrotated(self.recorder.rope).clone()
            if not piece.shared:
                if following is not None:
                    self._learn_static(agent, piece, following[0], true)
                continue
            slot = Slot(agent, piece.name)
            home, isolated = bases(case, piece)
            for corrector in self.correctors.values():
                corrector.learn(slot, Example(home, true))
            self.interpolation.learn(slot, Example(isolated, true))
            following = slot, isolated

    def _learn_static(self, agent: str, piece: Piece, slot: Slot, true: KVBlock) -> None:
        mean, count = self._means.get((agent, piece.name), (true, 0))
        both = min(mean.tokens, true.tokens)
        old, new = last(mean, both), last(true, both)
        share = 1 / (count + 1)
        merged = KVBlock(torch.lerp(old.keys, new.keys, share), torch.lerp(old.values, new.values, share))
        self._means[agent, piece.name] = merged, count + 1
        template = self._templates[agent, piece.name]
        both = min(template.tokens, true.tokens)
        self.interpolation.learn_following(slot, Example(last(template, both).clone(), last(true, both).clone()))

    def statics(self, instance: Instance) -> dict[Piece, KVBlock]:
        """Mean KV of the agent's text between and behind the spans."""
        blocks = {}
        for piece in instance.pieces:
            if not piece.shared and (instance.agent, piece.name) in self._means and piece.start >= instance.prefix:
                mean = self._means[instance.agent, piece.name][0]
                blocks[piece] = last(mean, min(mean.tokens, piece.stop - piece.start))
        return blocks

    def interpolated(self, case: Case) -> dict[Piece, KVBlock]:
        """Spans and static text as the published scheme has them."""
        agent, blocks = case.instance.agent, dict[Piece, KVBlock]()
        before: tuple[Slot, KVBlock] | None = None
        for piece in case.instance.pieces:
            if piece.shared:
                before = Slot(agent, piece.name), bases(case, piece)[1]
                blocks[piece] = self.interpolation.correct(*before).block
            elif before is not None:
                template = self._templates[agent, piece.name]
                base = last(template, min(template.tokens, piece.stop - piece.start))
                blocks[piece] = self.interpolation.correct_following(*before, base).block
        return blocks

    def shareable(self, case: Case) -> bool:
        """Whether the published rule would have reused this request: all of its spans are covered by anchors."""
        self.interpolation.gamma = PUBLISHED_GAMMA
        try:
            return all(
                self.interpolation.shareable(Slot(case.instance.agent, piece.name), bases(case, piece)[1])
                for piece in case.instance.spans
            )
        finally:
            self.interpolation.gamma = 1.0


def bases(case: Case, piece: Piece) -> tuple[KVBlock, KVBlock]:
    """KV of a span's tokens from its donor, and from where the published scheme takes it."""
    donor, stop = case.donors[piece.name], piece.offset + piece.stop - piece.start
    return donor.home.slice(piece.offset, stop), donor.isolated.slice(piece.offset, stop)


def last(block: KVBlock, tokens: int) -> KVBlock:
    """The last tokens of a block: own text is alike from its end, where no span borders on it."""
    return block.slice(block.tokens - tokens, block.tokens)


def exact_prefix(case: Case) -> list[Placed]:
    """The agent's text before the first span, as the prefix store has it."""
    stop = case.instance.prefix
    return [Placed(0, stop, case.block.slice(0, stop), exact=True)] if stop else []


def assemble(
    case: Case, blocks: Mapping[Piece, KVBlock], rung: Rung, computed: frozenset[int] = frozenset()
) -> PrefillPlan:
    """The plan that places these blocks behind the exact prefix.

    Args:
        case: the request.
        blocks: KV of pieces; of own text, of its last tokens. What has none is computed.
        rung: how much is computed of what could be placed.
        computed: positions that are computed in any case.
    """
    segments: list[Segment] = []
    placed: dict[int, KVBlock] = {}
    at = case.instance.prefix
    for piece in case.instance.pieces:
        block = blocks.get(piece)
        if block is None or piece.start < case.instance.prefix:
            continue
        first = piece.stop - block.tokens
        slot = Slot(case.instance.agent, piece.name) if piece.shared else None
        for start, stop in _runs(first, piece.stop, computed):
            if start > at:
                segments.append(Segment(at, start, "new"))
            placed[len(segments)] = block.slice(start - first, stop - first)
            kind: Kind = "span" if piece.shared else "static"
            segments.append(Segment(start, stop, kind, 0, piece.offset + start - piece.start, slot))
            at = stop
    if at < len(case.instance.ids):
        segments.append(Segment(at, len(case.instance.ids), "new"))
    return corrected_plan(len(case.instance.ids), exact_prefix(case), segments, placed, rung, min_run=1)


def _runs(start: int, stop: int, without: frozenset[int]) -> list[tuple[int, int]]:
    """What is left of `start:stop`."""
    runs: list[tuple[int, int]] = []
    for position in range(start, stop):
        if position in without:
            continue
        if runs and runs[-1][1] == position:
            runs[-1] = runs[-1][0], position + 1
        else:
            runs.append((position, position + 1))
    return runs


Strategy = Callable[[Case, Learned], Chosen]


def _dense(case: Case, learned: Learned) -> Chosen:
    return Chosen(prefix_plan(len(case.instance.ids), []))


def _prefix(case: Case, learned: Learned) -> Chosen:
    return Chosen(prefix_plan(len(case.instance.ids), exact_prefix(case)))


def _alone(case: Case, learned: Learned) -> Chosen:
    blocks = {
        piece: case.donors[piece.name].alone.slice(piece.offset, piece.offset + piece.stop - piece.start)
        for piece in case.instance.spans
    }
    return Chosen(assemble(case, blocks, Rung("alone", connectives=True)))


def _corrected(corrector: str, heads: int = 0, *, connectives: bool = False) -> Strategy:
    """Donor spans corrected, own text from its mean, the tail and the spans' first tokens computed."""

    def strategy(case: Case, learned: Learned) -> Chosen:
        blocks = {} if connectives else learned.statics(case.instance)
        for piece in case.instance.spans:
            base = bases(case, piece)[0]
            blocks[piece] = learned.correctors[corrector].correct(Slot(case.instance.agent, piece.name), base).block
        return Chosen(assemble(case, blocks, Rung(corrector, heads=heads, connectives=connectives, tail=_WHOLE_TAIL)))

    return strategy


def _interpolation(tail: int) -> Strategy:
    def strategy(case: Case, learned: Learned) -> Chosen:
        return Chosen(assemble(case, learned.interpolated(case), Rung("interpolation", tail=tail)))

    return strategy


def _blend(share: float) -> Strategy:
    """CacheBlend: the span tokens whose KV deviates most at the second layer are computed, for a layer's price."""

    def strategy(case: Case, learned: Learned) -> Chosen:
        blocks, deviations = dict[Piece, KVBlock](), list[tuple[float, int]]()
        for piece in case.instance.spans:
            base = blocks[piece] = bases(case, piece)[0]
            true = case.block.slice(piece.start, piece.stop).unrotated(learned.recorder.rope)
            layer = min(1, base.keys.shape[0] - 1)
            gap = sum(
                (a[layer] - b[layer]).float().square().sum((0, 2))
                for a, b in ((base.keys, true.keys), (base.values, true.values))
            )
            deviations += [(-float(size), piece.start + at) for at, size in enumerate(gap)]  # type: ignore[arg-type]
        top = frozenset(position for _, position in sorted(deviations)[: round(share * len(deviations))])
        charge = len(deviations) / learned.recorder.runner.layout.layers
        return Chosen(assemble(case, blocks, Rung("blend", connectives=True), top), charge)

    return strategy


STRATEGIES: dict[str, Strategy] = {
    "dense": _dense,
    "prefix": _prefix,
    "none": _alone,
    "donor": _corrected("none"),
    "mean": _corrected("mean"),
    "interpolation": _interpolation(tail=1),
    "interpolation_tail": _interpolation(tail=_WHOLE_TAIL),
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

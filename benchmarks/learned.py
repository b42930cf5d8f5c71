"""Learned: what the warm-up questions taught, for every strategy."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from kvcomm_agents.config import GiB
from kvcomm_agents.correction.base import Corrector, Example
from kvcomm_agents.correction.linear import LinearCorrector
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot

from .chain import Instance, Piece
from .correctors import InterpolationCorrector, MeanCorrector, NoCorrector
from .correctors.token_knn import TokenKnnCorrector
from .record import Case, Recorder

PUBLISHED_GAMMA = 0.3


@dataclass(eq=False)
class Learned:
    """Correctors that were all taught the same examples, and the mean KV of agents' own text.

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
        for agent in self.recorder.chain.agents:
            ids, pieces = self.recorder.chain.template(agent)
            block = self.recorder.prefill(ids)[1]
            for piece in pieces:
                if not piece.shared:
                    own = block.slice(piece.start, piece.stop)
                    self._templates[agent.name, piece.name] = own.unrotated(self.recorder.rope)

    def learn(self, case: Case) -> None:
        """Take in a request whose dense KV is known."""
        agent = case.instance.agent
        before: Slot | None = None
        for piece in case.instance.pieces:
            true = case.block.slice(piece.start, piece.stop).unrotated(self.recorder.rope).clone()
            if piece.shared:
                before, bases = Slot(agent, piece.name), case.bases(piece)
                for corrector in self.correctors.values():
                    corrector.learn(before, Example(bases.home, true))
                self.interpolation.learn(before, Example(bases.isolated, true))
            elif before is not None:
                self._learn_static(agent, piece, before, true)

    def _learn_static(self, agent: str, piece: Piece, before: Slot, true: KVBlock) -> None:
        mean, count = self._means.get((agent, piece.name), (true, 0))
        old, new = _last(mean, true.tokens), _last(true, mean.tokens)
        share = 1 / (count + 1)
        merged = KVBlock(torch.lerp(old.keys, new.keys, share), torch.lerp(old.values, new.values, share))
        self._means[agent, piece.name] = merged, count + 1
        template = self._templates[agent, piece.name]
        example = Example(_last(template, true.tokens).clone(), _last(true, template.tokens).clone())
        self.interpolation.learn_following(before, example)

    def statics(self, instance: Instance) -> dict[Piece, KVBlock]:
        """Mean KV of the agent's text between and behind the spans; of its last tokens, where the mean is shorter."""
        means = {piece: self._means.get((instance.agent, piece.name)) for piece in instance.pieces if not piece.shared}
        return {
            piece: _last(mean[0], piece.stop - piece.start)
            for piece, mean in means.items()
            if mean and piece.start >= instance.prefix
        }

    def interpolated(self, case: Case) -> dict[Piece, KVBlock]:
        """Spans and static text as the published scheme has them."""
        agent, blocks = case.instance.agent, dict[Piece, KVBlock]()
        before: tuple[Slot, KVBlock] | None = None
        for piece in case.instance.pieces:
            if piece.shared:
                before = Slot(agent, piece.name), case.bases(piece).isolated
                blocks[piece] = self.interpolation.correct(*before).block
            elif before is not None:
                base = _last(self._templates[agent, piece.name], piece.stop - piece.start)
                blocks[piece] = self.interpolation.correct_following(*before, base).block
        return blocks

    def shareable(self, case: Case) -> bool:
        """Whether the published rule would have reused this request: all of its spans are covered by anchors."""
        self.interpolation.gamma = PUBLISHED_GAMMA
        try:
            return all(
                self.interpolation.shareable(Slot(case.instance.agent, piece.name), case.bases(piece).isolated)
                for piece in case.instance.spans
            )
        finally:
            self.interpolation.gamma = 1.0


def _last(block: KVBlock, tokens: int) -> KVBlock:
    """The last tokens of a block, at most: own text is alike from its end, where no span borders on it."""
    return block.slice(max(block.tokens - tokens, 0), block.tokens)

"""Recorded cases: a request, its dense prefill, and the donors of its spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.planning.auditor import SCORED

from .chain import Chain, Instance, Piece
from .team import QUESTION


@dataclass(frozen=True, slots=True, eq=False)
class Donor:
    """A span's un-rotated KV: where it was first computed, and computed alone.

    Args:
        home: in the context of the agent that wrote it, or that read it first.
        alone: of its tokens and nothing before them.
        isolated: the question behind nothing but the header of the user's turn; of answers, `home`.
    """

    home: KVBlock
    alone: KVBlock
    isolated: KVBlock


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A request with all that a strategy may place.

    Args:
        instance: the request.
        logits: of its dense run, `[positions, vocabulary]`.
        block: KV of its dense run, keys as cached from position 0.
        donors: by the name of the span.
    """

    instance: Instance
    logits: Tensor
    block: KVBlock
    donors: Mapping[str, Donor]

    @property
    def said(self) -> tuple[int, ...]:
        """The part of the output that the compared positions predict, but for the last of these."""
        return self.instance.output[: len(self.logits) - 1]

    def bases(self, piece: Piece) -> Donor:
        """KV of a span's tokens in this prompt, from its donor."""
        donor, stop = self.donors[piece.name], piece.offset + piece.stop - piece.start
        return Donor(*(block.slice(piece.offset, stop) for block in (donor.home, donor.alone, donor.isolated)))


class Recorder:
    """Prefills requests densely, keeping what strategies are measured with.

    Args:
        chain: whose requests.

    Raises:
        UnsupportedModelError: the model's keys cannot be moved.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain, self.runner = chain, chain.runner
        self.rope = chain.runner.layout.require_movable()

    def cases(self, instances: Sequence[Instance]) -> list[Case]:
        """The requests of one question, in the order in which they were answered."""
        donors: dict[str, Donor] = {}
        cases = []
        for instance in instances:
            context, start = (*instance.ids, *instance.output), len(instance.ids)
            logits, block = self.prefill(context, len(instance.output) + 1)
            for piece in instance.spans:
                if piece.name == QUESTION and QUESTION not in donors:
                    framed = self.chain.isolated(context[piece.start : piece.stop])
                    donors[QUESTION] = self._donor(context, block, piece.start, piece.stop, framed)
            cases.append(Case(instance, logits[:SCORED].clone(), block, dict(donors)))
            if instance.output:
                donors[instance.agent] = self._donor(context, block, start, len(context))
        return cases

    def _donor(
        self, context: Sequence[int], block: KVBlock, start: int, stop: int, framed: Sequence[int] = ()
    ) -> Donor:
        home = block.slice(start, stop).unrotated(self.rope)
        alone = self.prefill(context[start:stop])[1].unrotated(self.rope)
        if not framed:
            return Donor(home, alone, home)
        isolated = self.prefill(framed)[1].slice(len(framed) - home.tokens, len(framed))
        return Donor(home, alone, isolated.unrotated(self.rope))

    @torch.no_grad()
    def prefill(self, ids: Sequence[int], keep: int = 1) -> tuple[Tensor, KVBlock]:
        """Logits `[keep, vocabulary]` behind the last tokens of a dense prefill, and its KV, keys as cached."""
        cache = self.runner.open(len(ids))
        try:
            return self.runner.prefill(cache, ids, keep=keep).logits, cache.capture(0, len(ids))
        finally:
            self.runner.close(cache)

"""Recorded cases: a request, its dense prefill, and the donors of its spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.planning.divergence import KEPT

from .chain import Chain, Instance
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
    def positions(self) -> int:
        """Produced positions that are compared."""
        return int(self.logits.shape[0])


class Recorder:
    """Prefills requests densely, keeping what strategies are measured with.

    Args:
        chain: whose requests.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain, self.runner = chain, chain.runner
        self.rope = chain.runner.layout.require_movable()

    def cases(self, instances: Sequence[Instance]) -> list[Case]:
        """The requests of one question, in the order in which they were answered."""
        donors: dict[str, Donor] = {}
        cases = []
        for instance in instances:
            logits, block = dense(self.runner, instance)
            if QUESTION not in donors:
                for piece in instance.spans:
                    if piece.name == QUESTION:
                        donors[QUESTION] = self._donor(instance.ids, block, piece.start, piece.stop, isolate=True)
            cases.append(Case(instance, logits, block, dict(donors)))
            context = (*instance.ids, *instance.fed)
            if instance.fed:
                donors[instance.agent] = self._donor(context, block, len(instance.ids), len(context), isolate=False)
        return cases

    def _donor(self, context: Sequence[int], block: KVBlock, start: int, stop: int, *, isolate: bool) -> Donor:
        ids = context[start:stop]
        home = block.slice(start, stop).unrotated(self.rope)
        alone = self.prefill(ids).unrotated(self.rope)
        if not isolate:
            return Donor(home, alone, home)
        framed = self.chain.isolated(ids)
        return Donor(home, alone, self.prefill(framed).slice(len(framed) - len(ids), len(framed)).unrotated(self.rope))

    @torch.no_grad()
    def prefill(self, ids: Sequence[int]) -> KVBlock:
        """The KV of a dense prefill, keys as cached."""
        cache = self.runner.open(len(ids))
        try:
            self.runner.prefill(cache, ids)
            return cache.capture(0, len(ids))
        finally:
            self.runner.close(cache)


@torch.no_grad()
def dense(runner: Runner, instance: Instance) -> tuple[Tensor, KVBlock]:
    """Logits of the compared positions, and the KV of prompt and output, of a dense run."""
    context = (*instance.ids, *instance.fed)
    cache = runner.open(len(context))
    try:
        result = runner.prefill(cache, context, keep=len(instance.fed) + 1)
        return result.logits[:KEPT].clone(), cache.capture(0, len(context))
    finally:
        runner.close(cache)

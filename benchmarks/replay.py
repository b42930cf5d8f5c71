"""Replay: requests in the order in which an app sends them, served by the product's own reuse path.

What is produced is dictated, so every request can be compared with its dense run; everything else is as
in the engine: the guard decides, contexts that were placed become donors, audits and trials are learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.engine.core import EngineCore
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.plan import Computed, PrefillPlan
from kvcomm_agents.planning.divergence import KEPT
from kvcomm_agents.planning.guard import Guard

from .chain import Instance

_NAMESPACE = "bench"


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """What was done with a request.

    Args:
        logits: at the compared positions; `None` if nothing approximate was placed, so they are the dense ones.
        computed: tokens of the prompt that went through the model.
        rung: its name.
        predicted: mean KL per token that the guard expected.
        audited: it was audited, so the guard knows its true divergence.
    """

    logits: Tensor | None
    computed: int
    rung: str
    predicted: float
    audited: bool


class Replay:
    """Serves instances one after the other.

    Args:
        loaded: the model.
        reuse: the policy.
        embedder: of spans, as in `EngineConfig`.
    """

    def __init__(self, loaded: LoadedModel, reuse: ReuseConfig | None = None, embedder: str | None = None) -> None:
        parts = EngineCore(loaded, EngineConfig(embedder=embedder, reuse=reuse or ReuseConfig()))
        self.runner, self.reuse = parts.runner, parts.reuse

    @property
    def guard(self) -> Guard:
        """What decides."""
        return self.reuse.memory(_NAMESPACE).guard

    @torch.no_grad()
    def serve(self, instance: Instance) -> Served:
        """One request, and then all the learning from it that the engine does when idle."""
        ids, fed = instance.ids, instance.fed
        choice = self.reuse.choose(ids, instance.agent, _NAMESPACE, None, instance.cuts)
        wanted = self.reuse.wants_logits(choice, instance.agent, _NAMESPACE)
        cache = self.runner.open(len(ids) + len(fed))
        try:
            logits = self.runner.prefill(cache, (*ids, *fed), _prolonged(choice.plan, len(fed)), len(fed) + 1).logits
            kept: Sequence[Tensor] = list(logits[:KEPT]) if wanted else ()
            self.reuse.remember(choice, ids, instance.output, instance.agent, _NAMESPACE, cache, kept)
        finally:
            self.runner.close(cache)
        for waiting in (self.reuse.urgent, self.reuse.backlog):
            while waiting:
                waiting.popleft()()
        exact = choice.plan.is_exact
        audited = choice.audited and not exact
        found = None if exact else logits[:KEPT]
        return Served(found, choice.plan.computed_tokens, choice.rung_name, choice.predicted, audited)


def _prolonged(plan: PrefillPlan, tokens: int) -> PrefillPlan:
    """The same plan with what is produced computed too."""
    final = plan.runs[-1]
    return PrefillPlan((*plan.runs[:-1], Computed(final.start, final.stop + tokens)))

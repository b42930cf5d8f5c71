"""Columns: the ways of serving a call that are timed side by side, each with a store of its own."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvcomm_agents.backends.transformers.cache import PlanCache
from kvcomm_agents.backends.transformers.runner import PrefillResult, Runner
from kvcomm_agents.backends.transformers.scores import FullScores
from kvcomm_agents.config import MiB, ReuseConfig
from kvcomm_agents.errors import KVCommError
from kvcomm_agents.kv.prefix_cache import PrefixCache
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.plan import PrefillPlan
from kvcomm_agents.planning.ladder import find_prefix, prefix_plan

from .calls import Call

STORE_BYTES = 512 * MiB
"""Budget of each of the two tiers of a column's prefix store."""
NAMESPACE = "bench"


class LostColumnError(KVCommError):
    """A column that was there cannot go on; the others can."""


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A call as it was served: tokens, seconds, and what was decided.

    Args:
        ttft_s: from the prompt's ids to the first token.
        match_s: of it, finding stored KV and spans, and deciding.
        correct_s: corrections that were not ready.
        assemble_s: writing KV into the cache.
        forward_s: the forward pass.
        cpu_s: processor seconds of this process meanwhile: far below `ttft_s` times the threads, others were running.
        computed, exact, corrected: prompt tokens computed, placed exactly and placed with a correction.
        rung: what was decided, by its name.
        predicted: mean KL per token that the guard expected.
        audited: it is audited.
        token: the first token.
        donors_s, prepare_s, audit_s, learn_s: hidden work, afterwards: copying KV into the stores; embeddings
            and corrections for those who will read the answer; audits and trials; anchors, maps and the guard.
        passes: forward passes of the hidden work.
        scores: distributions that predicted the first tokens of the answer, if they were asked for.
    """

    ttft_s: float
    match_s: float = 0.0
    correct_s: float = 0.0
    assemble_s: float = 0.0
    forward_s: float = 0.0
    cpu_s: float = 0.0
    computed: int = 0
    exact: int = 0
    corrected: int = 0
    rung: str = "dense"
    predicted: float = 0.0
    audited: bool = False
    token: int = -1
    donors_s: float = 0.0
    prepare_s: float = 0.0
    audit_s: float = 0.0
    learn_s: float = 0.0
    passes: int = 0
    scores: FullScores | None = None

    @property
    def other_s(self) -> float:
        """Of the first token: opening the cache, choosing the token, and the rest."""
        return max(0.0, self.ttft_s - self.match_s - self.correct_s - self.assemble_s - self.forward_s)

    @property
    def hidden_s(self) -> float:
        """All hidden work."""
        return self.donors_s + self.prepare_s + self.audit_s + self.learn_s


def first_token(started: float, result: PrefillResult, plan: PrefillPlan, **more: Any) -> Served:
    """The first token is chosen, and the clock stops."""
    token = int(result.logits[-1].argmax())
    return Served(
        time.perf_counter() - started,
        assemble_s=result.assemble_s,
        forward_s=result.forward_s,
        computed=plan.computed_tokens,
        exact=plan.placed_tokens(exact=True),
        corrected=plan.placed_tokens(exact=False),
        token=token,
        **more,
    )


class Column(ABC):
    """One way of serving calls, with a store of its own."""

    name: str
    learns = False
    stateless = False

    def serve(self, call: Call, positions: int = 0) -> Served:
        """A call, and then what nobody waits for; scores of the first `positions` tokens of the answer (0: none)."""
        busy = time.process_time()
        first = self.first(call)
        return self.rest(call, replace(first, cpu_s=time.process_time() - busy), positions)

    @abstractmethod
    def first(self, call: Call) -> Served:
        """The first token."""

    @abstractmethod
    def rest(self, call: Call, first: Served, positions: int) -> Served:
        """The answer is fed, and everything is done that an engine does when idle."""

    @property
    def held_bytes(self) -> int:
        """Bytes of KV and of what was learned that the column holds now, the model's weights apart."""
        return 0

    def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Free what it holds."""


class Generate(Column):
    """`model.generate` of transformers, as users call it."""

    name = "generate"
    stateless = True

    def __init__(self, loaded: LoadedModel) -> None:
        self.model = loaded.model

    @torch.no_grad()
    def first(self, call: Call) -> Served:
        """The first token."""
        started = time.perf_counter()
        ids = torch.tensor([call.ids], device=self.model.device)
        answer = self.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False
        )
        token = int(answer[0, -1])
        return Served(time.perf_counter() - started, computed=len(call.ids), token=token)

    def rest(self, call: Call, first: Served, positions: int) -> Served:
        """Nothing is kept."""
        return first


class Plain(Column):
    """The runner without any policy: everything computed, or with an exact prefix cache, as serving engines have it.

    Args:
        loaded: the model.
        prefix: whether there is that cache.
    """

    def __init__(self, loaded: LoadedModel, *, prefix: bool) -> None:
        self.name, self.stateless = ("prefix", False) if prefix else ("dense", True)
        self.runner = Runner(loaded.model)
        self.store = PrefixCache(self.runner.device, STORE_BYTES, STORE_BYTES) if prefix else None
        self._open: tuple[PlanCache, Tensor] | None = None

    def first(self, call: Call) -> Served:
        """The first token."""
        started, least = time.perf_counter(), ReuseConfig().min_prefix
        prefix = find_prefix(self.store, NAMESPACE, call.ids, least, exact=True) if self.store else []
        plan = prefix_plan(len(call.ids), prefix)
        match = time.perf_counter() - started if self.store else 0.0
        cache = self.runner.open(len(call.ids) + len(call.output))
        result = self.runner.prefill(cache, call.ids, plan)
        self._open = cache, result.logits
        return first_token(started, result, plan, match_s=match, rung="exact" if prefix else "dense")

    def rest(self, call: Call, first: Served, positions: int) -> Served:
        """Dense gives the scores; for a prefix cache the context is stored, with the answer if the chat goes on."""
        if self._open is None:
            raise RuntimeError("rest() before first()")
        cache, logits = self._open
        if self.store:
            known = (*call.ids, *call.output) if call.continues else call.ids
            if call.continues:
                self.runner.extend(cache, call.output)
            started = time.perf_counter()
            self.store.insert(NAMESPACE, known, len(known), cache.capture)
            first = replace(first, donors_s=time.perf_counter() - started)
        elif positions:
            said = call.output[: positions - 1]
            rows = [logits, self.runner.extend(cache, said, len(said))] if said else [logits]
            first = replace(first, scores=FullScores(torch.cat(rows)))
        self.runner.close(cache)
        return first

    @property
    def held_bytes(self) -> int:
        """Bytes of stored KV."""
        stats = self.store.stats() if self.store else None
        return stats.device_bytes + stats.host_bytes if stats else 0

"""Served: calls as the product serves them. Only this module knows how an engine goes about a request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from kvcomm_agents.backends.transformers.scores import FullScores
from kvcomm_agents.config import EngineConfig, ReuseConfig, ReuseMode
from kvcomm_agents.engine.core import EngineCore
from kvcomm_agents.engine.dictated import dictate
from kvcomm_agents.engine.warmup import WarmWork
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.observe.stats import IdleStats

from .calls import Call, tokens_of
from .columns import NAMESPACE, STORE_BYTES, Column, Generate, Plain, Served, first_token

MODES: dict[str, ReuseMode] = {"exact": "exact", "guarded": "auto", "corrected": "corrected"}
"""The reuse mode of each of the product's columns."""
NAMES = ("generate", "dense", "prefix", *MODES)
POLICY = ReuseConfig()
"""Of the product's columns, but for the mode."""
EMBEDDER: str | None = None
"""As in `EngineConfig`."""
_HIDDEN = {"prepare_s": ("correct",), "audit_s": ("audit", "trial"), "learn_s": ("learn",)}


class Reused(Column):
    """The product's own path, as an engine with this config takes it, on this thread.

    The first token is timed alone. Then the whole call is served with its answer, which decides once more with all
    corrections ready: the difference is what they took.

    Args:
        name: of the column.
        loaded: the model.
        reuse: the policy.
    """

    def __init__(self, name: str, loaded: LoadedModel, reuse: ReuseConfig) -> None:
        self.name, self.learns = name, reuse.learns
        config = EngineConfig(
            embedder=EMBEDDER, device_cache_bytes=STORE_BYTES, host_cache_bytes=STORE_BYTES, reuse=reuse
        )
        self.core = EngineCore(loaded, config)

    @torch.no_grad()
    def first(self, call: Call) -> Served:
        """The first token."""
        runner, started = self.core.backend.runner, time.perf_counter()
        decision = self.core.policy.decide(call.ids, call.agent, NAMESPACE, None, call.cuts)
        match = time.perf_counter() - started
        cache = runner.open(len(call.ids))
        try:
            return first_token(started, runner.prefill(cache, call.ids, decision.plan), decision.plan, match_s=match)
        finally:
            runner.close(cache)

    def rest(self, call: Call, first: Served, positions: int) -> Served:
        """The answer becomes a donor, and everything is done that an engine does when idle."""
        said = call.output if self.learns or call.continues else ()
        done = dictate(self.core, call.ids, said, agent=call.agent, namespace=NAMESPACE, cuts=call.cuts)
        ready = min(first.match_s, done.match_s) if first.corrected else first.match_s
        scores = done.scores.head(positions) if positions else None
        before, passes = self.core.idle.stats, 0
        at = before.tokens
        while self.core.idle.step():
            at, passed = self.core.idle.stats.tokens, at
            passes += at > passed
        hidden = {
            name: _seconds(self.core.idle.stats, kinds) - _seconds(before, kinds) for name, kinds in _HIDDEN.items()
        }
        return replace(
            first,
            match_s=ready,
            correct_s=first.match_s - ready,
            rung=done.decision.rung_name,
            predicted=done.decision.predicted,
            audited=bool(done.decision.measured) and not done.decision.plan.is_exact,
            donors_s=done.remember_s,
            passes=passes,
            scores=scores if isinstance(scores, FullScores) else None,
            prepare_s=hidden["prepare_s"],
            audit_s=hidden["audit_s"],
            learn_s=hidden["learn_s"],
        )

    def warm(self, texts: Sequence[str]) -> None:
        """Compute the KV of texts ahead, as an engine does when it has nothing else to do."""
        ids = list(map(tokens_of(self.core.loaded), texts))
        self.core.warm(WarmWork(ids, self.core.first_token, NAMESPACE))
        self.core.idle.finish()

    def fill(self, texts: Sequence[Sequence[int]]) -> int:
        """Make texts known, as token ids; they share one donor KV, of random numbers. Returns the bytes they count."""
        keys, values = self.core.backend.layout.empty(max(map(len, texts), default=0))
        block, library = KVBlock(keys.normal_(), values.normal_()), self.core.policy.namespace(NAMESPACE).library
        for ids in texts:
            library.add(ids, block.slice(0, len(ids)), producer="filler", origin="output", exact=True)
        return sum(map(len, texts)) * self.core.backend.layout.token_bytes

    @property
    def learned_bytes(self) -> int:
        """Bytes of donors, anchors and maps."""
        return self.core.namespaces.nbytes

    @property
    def held_bytes(self) -> int:
        """Bytes of stored KV, donors, anchors, maps and spare caches."""
        stats = self.core.prefixes.stats()
        return stats.device_bytes + stats.host_bytes + self.learned_bytes + self.core.backend.nbytes

    def close(self) -> None:
        """Free what it holds."""
        self.core.forget()


def _seconds(stats: IdleStats, kinds: Sequence[str]) -> float:
    return sum(cost.seconds for kind, cost in stats.costs.items() if kind in kinds)


def make_column(name: str, loaded: LoadedModel) -> Column:
    """A column of `NAMES`."""
    if name == "generate":
        return Generate(loaded)
    if name in MODES:
        return Reused(name, loaded, replace(POLICY, mode=MODES[name]))
    return Plain(loaded, prefix=name == "prefix")

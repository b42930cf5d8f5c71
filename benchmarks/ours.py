"""The product's own columns: exact, guarded and fully corrected reuse, with hidden work told apart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvcomm_agents.backends.transformers.cache import PlanCache
from kvcomm_agents.config import EngineConfig, ReuseConfig, ReuseMode
from kvcomm_agents.engine.core import EngineCore
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.planning.decision import PrefillDecision
from kvcomm_agents.planning.divergence import KEPT

from .calls import Call
from .columns import NAMESPACE, STORE_BYTES, Column, Dense, First, Generate, Prefix, Rest, spoken

NAMES = ("generate", "dense", "prefix", "exact", "guarded", "corrected")


class Ours(Column):
    """The product's own path, as an engine with this config takes it, on this thread.

    Args:
        loaded: the model.
        mode: of reuse.
        embedder: as in `EngineConfig`.
    """

    def __init__(self, loaded: LoadedModel, mode: ReuseMode = "auto", embedder: str | None = None) -> None:
        self.name = "guarded" if mode == "auto" else mode
        self.learns = mode != "exact"
        reuse = ReuseConfig(mode=mode)
        config = EngineConfig(
            embedder=embedder, device_cache_bytes=STORE_BYTES, host_cache_bytes=STORE_BYTES, reuse=reuse
        )
        self.inference = EngineCore(loaded, config)
        self.runner, self.reuse = self.inference.runner, self.inference.reuse
        self._open: tuple[PlanCache, PrefillDecision, Tensor] | None = None

    @torch.no_grad()
    def first(self, call: Call) -> First:
        """The first token."""
        started = time.perf_counter()
        choice = self.reuse.choose(call.ids, call.agent, NAMESPACE, None, call.cuts)
        matched = time.perf_counter()
        cache = self.runner.open(len(call.ids) + len(call.output))
        result = self.runner.prefill(cache, call.ids, choice.plan)
        token = int(result.logits[-1].argmax())
        ttft = time.perf_counter() - started
        self._open = cache, choice, result.logits
        match, plan = matched - started, choice.plan
        again = time.perf_counter()
        if choice.rung is not None:  # once more, with all corrections ready: the difference is what they took
            self.reuse.choose(call.ids, call.agent, NAMESPACE, None, call.cuts)
            ready = min(match, time.perf_counter() - again)
        else:
            ready = match
        placed = plan.placed_tokens(exact=True), plan.placed_tokens(exact=False)
        seconds = (ready, match - ready, result.assemble_s, result.forward_s)
        return First(ttft, *seconds, plan.computed_tokens, *placed, rung=choice.rung_name, token=token)

    @torch.no_grad()
    def rest(self, call: Call, positions: int) -> Rest:
        """The answer becomes a donor, and everything is done that an engine does when idle."""
        if self._open is None:
            raise RuntimeError("rest() before first()")
        cache, choice, prompt = self._open
        wanted = self.reuse.wants_logits(choice, call.agent, NAMESPACE)
        output = call.output if self.learns or call.continues else ()
        logits = spoken(self.runner, cache, output, prompt, max(positions, KEPT if wanted else 0))
        started = time.perf_counter()
        kept = list(logits[:KEPT]) if wanted and logits is not None else ()
        self.reuse.remember(choice, call.ids, output, call.agent, NAMESPACE, cache, kept)
        donors = time.perf_counter() - started
        self.runner.close(cache)
        started = time.perf_counter()
        while self.reuse.urgent:
            self.reuse.urgent.popleft()()
        prepare = time.perf_counter() - started
        started = time.perf_counter()
        with forward_clock(self.runner.model) as clock:
            while self.reuse.backlog:
                self.reuse.backlog.popleft()()
        idle = time.perf_counter() - started
        return Rest(logits, donors, prepare, clock.seconds, idle - clock.seconds, clock.passes)

    @property
    def held_bytes(self) -> int:
        """Bytes of stored KV, donors, anchors, maps and spare caches."""
        stats = self.inference.store.stats()
        return stats.device_bytes + stats.host_bytes + self.reuse.nbytes + self.runner.spare_bytes

    def close(self) -> None:
        """Free what it holds."""
        self.inference.forget()


@dataclass(slots=True)
class Clock:
    """Seconds spent in forward passes, and how many there were."""

    seconds: float = 0.0
    passes: int = 0
    _started: float = field(default=0.0)


@contextmanager
def forward_clock(model: PreTrainedModel) -> Iterator[Clock]:
    """Times the forward passes of a model within it."""
    clock = Clock()

    def before(*_: object) -> None:
        clock._started = time.perf_counter()

    def behind(*_: object) -> None:
        if model.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize(model.device)
        clock.seconds += time.perf_counter() - clock._started
        clock.passes += 1

    hooks = [model.register_forward_pre_hook(before), model.register_forward_hook(behind)]
    try:
        yield clock
    finally:
        for hook in hooks:
            hook.remove()


def make_column(name: str, loaded: LoadedModel, embedder: str | None = None) -> Column:
    """A column by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == "generate":
        return Generate(loaded)
    if name == "dense":
        return Dense(loaded)
    if name == "prefix":
        return Prefix(loaded)
    modes: dict[str, ReuseMode] = {"exact": "exact", "guarded": "auto", "corrected": "corrected"}
    if name not in modes:
        raise ConfigError(f"there is no column {name!r}; choose from {', '.join(NAMES)}")
    return Ours(loaded, modes[name], embedder)

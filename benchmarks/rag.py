"""`kvcomm bench rag`: a team that reads retrieved passages, with and without warming them up first.

Each question goes to the team under every condition in turn, so that times are taken side by side: `exact`
(an exact prefix cache, whose distributions are the dense ones), `cold` (reuse; the first reader computes
the passages), and reuse after a warm-up, with either kind of positions. All say what `exact` said, token
by token, so that their distributions can be compared. What is done ahead is timed too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.engine.core import EngineCore
from kvcomm_agents.engine.warmup import WarmOrder, WarmReport
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.planning.decision import PrefillDecision
from kvcomm_agents.planning.divergence import KEPT, divergence
from kvcomm_agents.request import Message

from .console import Tell, quietly

READER = (
    "Reader",
    "You are the Reader of a small research team. You are given passages that a search has found, and a question. Write"
    " down, in one or two short sentences, what the passages say that helps to answer it. Add nothing of your own.",
)
ANSWERER = (
    "Answerer",
    "You are the Answerer. From the passages below and the Reader's notes you answer the question. Name the passage you"
    " rely on, keep it to one sentence, and say so if the passages do not tell.",
)
CHECKER = (
    "Checker",
    "You are the Checker, the last one before the user. Compare the answer with the passages and correct it where it is"
    " not supported. Your reply is what the user sees, so repeat the answer in full and leave everything else out.",
)
TEAM = (READER, ANSWERER, CHECKER)
CONDITIONS = ("exact", "cold", "warm", "warm, running positions")
_NAMESPACE = "bench"


@dataclass(frozen=True, slots=True)
class Lookup:
    """A question and the passages found for it."""

    question: str
    passages: tuple[str, ...]


def lookups(rows: Sequence[Mapping[str, Any]], passages: int, words: int) -> list[Lookup]:
    """Rows with `ctxs` and `question`: evenly spread passages (neighbours overlap), cut to `words`."""
    found = []
    for row in rows:
        texts = [str(one["text"]) for one in row["ctxs"]]
        step = max(len(texts) // passages, 1)
        cut = tuple(" ".join(text.split()[:words]) for text in texts[::step][:passages])
        found.append(Lookup(str(row["question"]).strip(), cut))
    return found


@dataclass(frozen=True, slots=True)
class Reading:
    """One call under one condition.

    Args:
        question: its number; those before `warmup` are not counted.
        agent, condition: which.
        prompt, computed: tokens.
        ttft_s: finding, placing and the forward pass.
        ahead_s: of the model's time before the call: the warm-up, charged to the first reader.
        idle_s: afterwards: trials, audits, learning.
        kl_first, kl_mean: KL(exact || condition), nats.
        top1: share of positions with the same best token.
        rung: what was decided.
    """

    question: int
    agent: str
    condition: str
    prompt: int
    computed: int
    ttft_s: float
    ahead_s: float
    idle_s: float
    kl_first: float
    kl_mean: float
    top1: float
    rung: str


@dataclass(slots=True, eq=False)
class _Lane:
    """One condition, with a memory of its own."""

    name: str
    parts: EngineCore
    ahead_s: float = 0.0
    warmed: list[WarmReport] = field(default_factory=list)

    def warm(self, lookup: Lookup) -> None:
        tokenizer = self.parts.loaded.tokenizer
        ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in lookup.passages]
        first = self.parts.renderer.ids((Message("user", "."),))[0]
        order = WarmOrder(ids, first, _NAMESPACE)
        started = time.perf_counter()
        self.parts.warmup.submit(order)
        while len(self.parts.warmup):
            self.parts.warmup.step()
        self.ahead_s += time.perf_counter() - started
        self.warmed.append(order.future.result())

    def serve(self, messages: Sequence[Message], agent: str, output: list[int] | None, max_new: int) -> _Served:
        """One call; says `output`, or what comes if there is none."""
        runner, reuse = self.parts.runner, self.parts.reuse
        rendered = self.parts.renderer.segments(messages)
        ids, cuts = rendered.ids, [edge for part in rendered.parts for edge in (part.start, part.stop)]
        started = time.perf_counter()
        choice = reuse.choose(ids, agent, _NAMESPACE, None, cuts)
        cache = runner.open(len(ids) + max_new)
        try:
            logits = runner.prefill(cache, ids, choice.plan).logits
            ttft_s = time.perf_counter() - started
            if output is None:
                output, logits = self._write(cache, logits, max_new)
            elif output[:-1]:
                logits = torch.cat([logits, runner.extend(cache, output[:-1], len(output) - 1)])
            wanted = reuse.wants_logits(choice, agent, _NAMESPACE)
            reuse.remember(choice, ids, output, agent, _NAMESPACE, cache, list(logits[:KEPT]) if wanted else ())
        finally:
            runner.close(cache)
        started = time.perf_counter()
        for waiting in (reuse.urgent, reuse.backlog):
            while waiting:
                waiting.popleft()()
        return _Served(len(ids), choice, logits, output, ttft_s, time.perf_counter() - started)

    def _write(self, cache: Any, logits: Tensor, max_new: int) -> tuple[list[int], Tensor]:
        rows, output, eos = [logits[0]], [int(logits[0].argmax())], self.parts.loaded.tokenizer.eos_token_id
        while len(output) < max_new and output[-1] != eos:
            rows.append(self.parts.runner.decode(cache, output[-1]))
            output.append(int(rows[-1].argmax()))
        return output, torch.stack(rows)


@dataclass(frozen=True, slots=True, eq=False)
class _Served:
    prompt: int
    choice: PrefillDecision
    logits: Tensor
    output: list[int]
    ttft_s: float
    idle_s: float


@torch.no_grad()
def measure_rag(
    loaded: LoadedModel,
    found: Sequence[Lookup],
    warmup: int,
    reuse: ReuseConfig,
    max_new: int = 24,
    tell: Tell = quietly,
    keep: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Every question to the whole team under every condition.

    Args:
        loaded: the model.
        found: the questions and their passages.
        warmup: questions to learn from that are not counted.
        reuse: the policy of all conditions but `exact`.
        max_new: tokens of an answer, at most.
        tell: hears of progress.
        keep: given the report so far after each question that counts, so that a killed run is not lost.

    Returns:
        `conditions`: by name and agent, medians of seconds and means of the rest.
    """
    configs = {
        "exact": replace(reuse, mode="exact"),
        "cold": reuse,
        "warm": replace(reuse, pack_positions="reset"),
        "warm, running positions": replace(reuse, pack_positions="running"),
    }
    lanes = [_Lane(name, EngineCore(loaded, EngineConfig(reuse=configs[name]))) for name in CONDITIONS]
    readings: list[Reading] = []
    for index, lookup in enumerate(found):
        for lane in lanes[2:]:
            lane.warm(lookup)
        wrote: list[tuple[str, str]] = []
        for agent, system in TEAM:
            messages = _prompt(system, lookup, wrote)
            dense: _Served | None = None
            for lane in lanes:
                served = lane.serve(messages, agent, dense.output if dense else None, max_new)
                dense = dense or served
                readings.append(_reading(index, agent, lane, served, dense))
            if dense is not None:
                text = loaded.tokenizer.decode(dense.output[:-1], skip_special_tokens=True)
                wrote.append((agent, str(text).strip()))
        tell("questions", index + 1, len(found))
        if index >= warmup:
            keep(_report(readings, found, warmup, reuse))
    return _report(readings, found, warmup, reuse)


def _report(readings: Sequence[Reading], found: Sequence[Lookup], warmup: int, reuse: ReuseConfig) -> dict[str, Any]:
    counted = [one for one in readings if one.question >= warmup]
    return {
        "learned_from": warmup,
        "measured": len({one.question for one in counted}),
        "passages": len(found[0].passages),
        "mode": reuse.mode,
        "max_divergence": reuse.max_divergence,
        "conditions": {
            name: {agent: _summary(counted, name, agent) for agent, _ in TEAM} for name in CONDITIONS
        },
    }  # fmt: skip


def _prompt(system: str, lookup: Lookup, wrote: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
    passages = "\n\n".join(f"Passage {number}:\n{text}" for number, text in enumerate(lookup.passages, 1))
    told = "".join(f"\n\nThe {agent} wrote:\n{text}" for agent, text in wrote)
    user = (
        f"The search has found this.\n\n{passages}\n\nThe question is: {lookup.question}{told}\n\nNow write your part."
    )
    return Message("system", system), Message("user", user)


def _reading(index: int, agent: str, lane: _Lane, served: _Served, dense: _Served) -> Reading:
    apart = divergence(dense.logits[:KEPT], served.logits[:KEPT])
    ahead, lane.ahead_s = lane.ahead_s, 0.0
    return Reading(
        question=index,
        agent=agent,
        condition=lane.name,
        prompt=served.prompt,
        computed=served.choice.plan.computed_tokens,
        ttft_s=served.ttft_s,
        ahead_s=ahead,
        idle_s=served.idle_s,
        kl_first=apart.first,
        kl_mean=apart.mean,
        top1=apart.top1,
        rung=served.choice.rung_name,
    )


def _summary(readings: Sequence[Reading], condition: str, agent: str) -> dict[str, Any]:
    rows = [one for one in readings if (one.condition, one.agent) == (condition, agent)]
    dense = {
        (one.question, one.agent): one.ttft_s for one in readings if one.condition == "exact" and one.agent == agent
    }

    def mean(name: str) -> float:
        return statistics.fmean(getattr(one, name) for one in rows)

    return {
        "n": len(rows),
        "prompt_tokens": mean("prompt"),
        "computed_fraction": sum(one.computed for one in rows) / sum(one.prompt for one in rows),
        "ttft_s": statistics.median(one.ttft_s for one in rows),
        "ttft_of_exact": statistics.median(one.ttft_s / dense[one.question, agent] for one in rows),
        "charged_of_exact": statistics.median(
            (one.ttft_s + one.ahead_s) / dense[one.question, agent] for one in rows
        ),
        "ahead_s": statistics.median(one.ahead_s for one in rows),
        "idle_s": statistics.median(one.idle_s for one in rows),
        "kl_first": mean("kl_first"),
        "kl_mean": mean("kl_mean"),
        "kl_max": max(one.kl_mean for one in rows),
        "top1": mean("top1"),
        "rungs": {rung: sum(one.rung == rung for one in rows) for rung in sorted({one.rung for one in rows})},
    }  # fmt: skip

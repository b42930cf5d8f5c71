"""Reuse: decides how a request is prefilled, and learns from it afterwards. The worker's own, like inference."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..backends.transformers.cache import PlanCache
from ..backends.transformers.runner import Runner
from ..config import ReuseConfig, ReuseMode
from ..kv.block import KVBlock
from ..kv.prefix_cache import PrefixCache
from ..kv.span_library import Tagged
from ..observe.report import AuditReport
from ..plan import Placed
from .auditor import Auditor
from .candidates import Candidates
from .decision import PrefillDecision
from .divergence import KEPT
from .ladder import LADDER, corrected_plan, prefix_plan, prefix_runs
from .namespace import Namespace
from .segments import after, segment

logger = logging.getLogger(__name__)

_EXAMPLES = 2  # behind every correction before `corrected` mode trusts it


class Reuse:
    """Plans requests from the prefix store and from what each namespace has learned.

    Args:
        runner: of the model; runs audits.
        store: the prefix store.
        config: the policy.
        make_memory: a namespace's memory, made when the namespace is first used.
        on_audit: told of every audit of a reused request.
    """

    def __init__(
        self,
        runner: Runner,
        store: PrefixCache,
        config: ReuseConfig,
        make_memory: Callable[[str], Namespace],
        on_audit: Callable[[AuditReport], None] = lambda report: None,
    ) -> None:
        self.runner, self.store, self.config = runner, store, config
        self.urgent: deque[Callable[[], None]] = deque()
        """Work the next request is likely to need: corrections of what was just produced."""
        self.auditor = Auditor(runner, store, config, on_audit)
        self._make_memory = make_memory
        self._memories: dict[str, Namespace] = {}
        self._learns = config.learns and runner.layout.rope is not None

    @property
    def backlog(self) -> deque[Callable[[], None]]:
        """Work for idle time, oldest first, in pieces no longer than a forward pass."""
        return self.auditor.backlog

    def memory(self, namespace: str) -> Namespace:
        """What a namespace has learned."""
        if namespace not in self._memories:
            self._memories[namespace] = self._make_memory(namespace)
        return self._memories[namespace]

    def memories(self) -> list[tuple[str, Namespace]]:
        """Every namespace in use, with its memory."""
        return list(self._memories.items())

    @property
    def nbytes(self) -> int:
        """Bytes of everything learned."""
        return sum(memory.nbytes for memory in self._memories.values())

    def forget(self, namespace: str | None = None) -> None:
        """Forget a namespace, or everything."""
        for name in [namespace] if namespace is not None else list(self._memories):
            self._memories.pop(name, None)

    def choose(
        self,
        ids: Sequence[int],
        agent: str,
        namespace: str,
        mode: ReuseMode | None,
        cuts: Sequence[int] = (),
        tagged: Sequence[Tagged] = (),
    ) -> PrefillDecision:
        """How to prefill a prompt.

        Args:
            ids: its token ids.
            agent: who calls.
            namespace: the only one anything is taken from.
            mode: overrides the configured mode.
            cuts: where its messages begin and end.
            tagged: messages in it that carry the tag of a span.
        """
        mode = mode or self.config.mode
        if mode == "off":
            return PrefillDecision(prefix_plan(len(ids), []), reason="reuse is off")
        if mode == "exact" or not self._learns:
            choice = self._exact(ids, namespace, "exact mode" if mode == "exact" else "nothing is learned here")
        else:
            prefix = self._prefix(ids, namespace, exact=False)
            start = prefix[-1].stop if prefix else 0
            proposal = self.memory(namespace).propose(ids, agent, start, cuts, tagged)
            choice = self._decide(ids, agent, namespace, mode, prefix, proposal)
            found, tokens = proposal.spans_found, proposal.span_tokens
            choice = replace(choice, spans_found=found, span_tokens=tokens, seen=proposal.segments)
        return replace(choice, cuts=tuple(cuts), tagged=tuple(tagged))

    def _decide(
        self,
        ids: Sequence[int],
        agent: str,
        namespace: str,
        mode: ReuseMode,
        prefix: Sequence[Placed],
        proposal: Candidates,
    ) -> PrefillDecision:
        memory = self.memory(namespace)
        if agent in self.config.exact_agents:
            return self._exact(ids, namespace, "one of exact_agents")
        if proposal.judge and self.config.exact_judges:
            return self._exact(ids, namespace, "answers compete in the prompt")
        tainted = any(not run.exact for run in prefix)
        if proposal.features is None and not tainted:
            return self._exact(ids, namespace, _nothing(proposal, self.config.min_placed))
        features = proposal.features or memory.guard.usual(agent)
        if mode == "corrected" and features.examples < _EXAMPLES and not tainted:
            return self._exact(ids, namespace, f"{features.examples} of {_EXAMPLES} examples")
        if mode == "corrected":
            rung, predicted, novel, reason = 0, memory.guard.predict(agent, 0, features), False, "corrected mode"
        else:
            decision = memory.guard.decide(agent, features)
            logger.debug("%s: %s", agent, decision)
            if decision.rung is None:
                return replace(self._exact(ids, namespace, decision.reason), audited=self.auditor.tries_declined())
            rung, predicted, novel, reason = decision.rung, decision.predicted, decision.novel, decision.reason
        plan = corrected_plan(len(ids), prefix, proposal.segments, proposal.blocks, LADDER[rung], self.config.min_span)
        if plan.is_exact:
            return self._exact(ids, namespace, _nothing(proposal, self.config.min_placed))
        audited = novel or self.auditor.audits(namespace, agent)
        return PrefillDecision(plan, rung, features, predicted, audited=audited, learns=True, reason=reason)

    def remember(
        self,
        choice: PrefillDecision,
        ids: Sequence[int],
        output: Sequence[int],
        agent: str,
        namespace: str,
        cache: PlanCache,
        logits: Sequence[Tensor],
    ) -> None:
        """Keep a finished context's KV, its new spans, and put in the backlog what can be learned from it.

        Args:
            choice: how it was prefilled.
            ids: the prompt.
            output: what was produced.
            agent: who called.
            namespace: whose it is.
            cache: the context.
            logits: `[vocabulary]` each, of the first produced positions, if they were kept.
        """
        known = (*ids, *output)[: cache.length]
        exact = choice.plan.is_exact
        self.store.insert(namespace, known, len(known) if exact else choice.plan.tainted_from, cache.capture, agent)
        rope = self.runner.layout.rope
        if not choice.learns or rope is None or len(known) < len(ids):
            return
        memory = self.memory(namespace)
        prefix = [run for run in choice.plan.placed if run.exact]
        # New text is a span as a whole, also where its first tokens happen to be in the prefix store.
        whole = segment(ids, agent, memory.library, choice.cuts, choice.tagged)
        segments = after(whole, prefix[-1].stop if prefix else 0)
        # A span is learned from as a whole, also where the exact prefix reaches into it.
        entire = {one.stop: one for one in whole if one.kind == "span"}
        subjects = [entire.get(one.stop, one) for one in segments if one.kind != "new"]

        def capture(start: int, stop: int) -> KVBlock:
            return cache.capture(start, stop).unrotated(rope)

        kept = torch.stack(list(logits[:KEPT])) if logits else None
        if exact:
            taught = [(one, capture(one.start, one.stop)) for one in subjects]
            self.backlog.append(lambda: self.auditor.learn(memory, agent, ids, output, prefix, segments, taught, kept))
        elif kept is not None:
            find = partial(self._prefix, ids, namespace, exact=True)
            self.auditor.audit(memory, choice, agent, ids, output, find, whole, subjects, kept)
        spans = memory.register(agent, whole, known, len(ids), capture, exact=exact)
        self.urgent.append(lambda: memory.foresee(spans))

    def expect(self, ids: Sequence[int], namespace: str) -> bool:
        """Put known spans of a text that prompts are about to hold among the urgent work; whether there are any."""
        memory = self._memories.get(namespace)
        spans = [memory.library[match.span] for match in memory.library.find(ids, 0)] if memory else []
        if memory and spans:
            self.urgent.append(lambda: memory.foresee(spans))
        return bool(spans)

    def tags(self, choice: PrefillDecision, said: Sequence[int], agent: str, namespace: str) -> tuple[str, ...]:
        """Tags of the spans that `remember` will make of an answer, of which the KV of `said` is known."""
        if not choice.learns or len(said) < self.config.min_span:
            return ()
        return (self.memory(namespace).library.tag(agent, said),)

    def wants_logits(self, choice: PrefillDecision, agent: str, namespace: str) -> bool:
        """Whether the distributions of a request should be kept: it will be tried or audited."""
        return choice.learns and self.auditor.wants_logits(choice, self.memory(namespace), agent)

    def _exact(self, ids: Sequence[int], namespace: str, reason: str) -> PrefillDecision:
        plan = prefix_plan(len(ids), self._prefix(ids, namespace, exact=True))
        return PrefillDecision(plan, learns=self._learns, reason=reason)

    def _prefix(self, ids: Sequence[int], namespace: str, *, exact: bool) -> list[Placed]:
        return prefix_runs(self.store.match(namespace, ids[:-1], exact=exact), self.config.min_prefix)


def _nothing(proposal: Candidates, least: int) -> str:
    """Why nothing of a prompt is placed."""
    if not proposal.longest:
        return "nothing shared behind the prefix"
    return f"shared runs of {proposal.longest} tokens at most" + (f" < {least}" if proposal.longest < least else "")

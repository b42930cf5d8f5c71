"""Policy: decides how a request is prefilled, and what is remembered of it and learned from it afterwards.

It knows no engine: it is told what one can execute, and hands plans and idle work to whoever runs them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from ..backend import Capabilities, Scores
from ..config import ReuseConfig, ReuseMode
from ..errors import ConfigError
from ..kv.block import Capture, KVBlock
from ..kv.layout import KVLayout
from ..kv.prefix_cache import PrefixCache
from ..kv.span_library import Tagged
from ..log import get_logger
from ..plan import Placed, PrefillPlan
from .auditor import SCORED, Auditor
from .candidates import EARNED, Candidates
from .decision import PrefillDecision
from .guard import GuardDecision, Option
from .idle_work import Audit, Correct, IdleKind, IdleWork
from .ladder import BY_NAME, MOST, Rung, find_prefix, prefix_plan
from .measurements import lesson, residuals
from .namespace import Namespace
from .namespaces import Namespaces
from .segments import after, segment
from .served import ServedRequest

logger = get_logger(__name__)

_BASES = {
    "calibration": "what is usual on the model",
    "app": "measurements of the app",
    "agent": "measurements of the agent",
}


class Policy:
    """Plans requests from the prefix store and from what each namespace has learned.

    Args:
        prefixes: the prefix store.
        config: what the user wants.
        layout: of the model's KV: whether it can be moved.
        capabilities: of the engine that executes plans.
        namespaces: what each namespace has learned.
    """

    def __init__(
        self,
        prefixes: PrefixCache,
        config: ReuseConfig,
        layout: KVLayout,
        capabilities: Capabilities,
        namespaces: Namespaces,
    ) -> None:
        self.prefixes, self.config, self.layout, self.capabilities = prefixes, config, layout, capabilities
        self.auditor = Auditor(config)
        self.namespaces = namespaces
        movable = layout.rope is not None and capabilities.scattered and capabilities.capture
        self._learns = config.learns and movable
        self._told_broken = False

    def namespace(self, name: str) -> Namespace:
        """What a namespace has learned."""
        return self.namespaces.get(name)

    def decide(
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

        Raises:
            ConfigError: there is no such mode.
        """
        mode = mode or self.config.mode
        if mode not in get_args(ReuseMode):
            raise ConfigError(f"reuse={mode!r} is none of {get_args(ReuseMode)}")
        if mode == "off" or not self.capabilities.capture:
            reason = "reuse is off" if mode == "off" else f"served plainly: {self.layout.reason}"
            return PrefillDecision(prefix_plan(len(ids), []), reason=reason)
        if mode == "exact" or not self._learns:
            reason = "exact mode" if mode == "exact" else "nothing is learned here"
            if mode != "exact" and self.layout.reason:
                reason = f"exact prefixes only: {self.layout.reason}"
            decision = self._exact(ids, namespace, reason)
        else:
            decision = self._corrected(ids, agent, namespace, mode, cuts, tagged)
        return replace(decision, cuts=tuple(cuts), tagged=tuple(tagged))

    def _corrected(
        self,
        ids: Sequence[int],
        agent: str,
        namespace: str,
        mode: ReuseMode,
        cuts: Sequence[int],
        tagged: Sequence[Tagged],
    ) -> PrefillDecision:
        prefix = self._prefix(ids, namespace, exact=False)
        start = prefix[-1].stop if prefix else 0
        try:
            candidates = self.namespace(namespace).propose(ids, agent, start, cuts, tagged)
            decision = self._climb(ids, agent, namespace, mode, prefix, candidates)
        except Exception:  # what was learned may be damaged; that costs speed, and no request
            level, self._told_broken = (logging.DEBUG if self._told_broken else logging.ERROR), True
            logger.log(level, "what %s has learned cannot be used; it is served exactly", namespace, exc_info=True)
            return self._exact(ids, namespace, "what was learned cannot be used")
        return replace(
            decision,
            spans_found=candidates.spans_found,
            span_tokens=candidates.span_tokens,
            seen=candidates.segments,
        )

    def _climb(
        self,
        ids: Sequence[int],
        agent: str,
        namespace: str,
        mode: ReuseMode,
        prefix: Sequence[Placed],
        candidates: Candidates,
    ) -> PrefillDecision:
        """The rung that the guard allows; exact where none is, or where nothing approximate may be placed."""
        memory = self.namespace(namespace)
        if agent in self.config.exact_agents:
            return self._exact(ids, namespace, "one of exact_agents")
        if candidates.judge and self.config.exact_judges:
            return self._exact(ids, namespace, "answers compete in the prompt")
        declined = self._exact(ids, namespace, "")
        exact = declined.plan.computed_tokens
        if mode == "corrected":
            rung = MOST if candidates.examples >= EARNED else BY_NAME["raw16"]
            plan = self._plan(ids, prefix, candidates, rung)
            option = candidates.option(rung, plan)
            predicted = memory.guard.predict(agent, rung.name, option.situation)
            allowed = GuardDecision(option, predicted, memory.guard.basis(agent), reason="corrected mode")
        else:
            allowed = memory.guard.decide(agent, self._options(ids, prefix, candidates), exact)
        logger.debug("%s: %s", agent, allowed)
        taken = allowed.option
        plan = self._plan(ids, prefix, candidates, BY_NAME[taken.rung]) if taken is not None else declined.plan
        if taken is None or plan.is_exact:
            placeable = bool(candidates.sources.raw) or any(not run.exact for run in prefix)
            reason = allowed.reason if placeable and taken is None else _nothing(candidates, self.config.min_placed)
            decision = replace(declined, reason=reason, basis=allowed.basis, trial=allowed.trial)
        elif mode == "auto" and self.auditor.explores():
            decision = replace(declined, reason="served exactly to measure", basis=allowed.basis, trial=taken)
        else:
            decision = PrefillDecision(
                plan,
                taken,
                allowed.predicted,
                allowed.basis,
                allowed.trial,
                exact=exact,
                learns=True,
                reason=f"{allowed.reason}, by {_BASES[allowed.basis]}",
            )
            memory.ledger.open(len(ids))
        measured = self.auditor.measures(decision, memory.ledger, memory.guard, agent)
        return replace(decision, measured=SCORED * measured)

    def _options(self, ids: Sequence[int], prefix: Sequence[Placed], candidates: Candidates) -> list[Option]:
        """The rungs that a prompt could be prefilled on."""
        options: dict[tuple[int, bool, bool], Option] = {}
        for rung in candidates.rungs():
            plan = self._plan(ids, prefix, candidates, rung, shape=True)
            if not plan.is_exact:  # of rungs that come to the same plan, the first names it
                options.setdefault((plan.computed_tokens, rung.maps, rung.static), candidates.option(rung, plan))
        return list(options.values())

    def _plan(
        self, ids: Sequence[int], prefix: Sequence[Placed], candidates: Candidates, rung: Rung, *, shape: bool = False
    ) -> PrefillPlan:
        block = self.capabilities.block
        return candidates.plan(len(ids), prefix, rung, self.config.min_span, block, shape=shape)

    def afford(self, namespace: str, tokens: int) -> bool:
        """Whether hidden work of so many tokens is within what reuse has saved a namespace."""
        found = self.namespaces.find(namespace)
        return found is not None and tokens <= self.auditor.room(found.ledger)

    def remember(self, request: ServedRequest, capture: Capture, scores: Scores | None) -> list[IdleWork]:
        """Keep a context's KV and its new spans; returns what is left to do when nobody waits.

        Args:
            request: as far as it got.
            capture: copies KV out of its context, keys as cached.
            scores: of the first produced positions, if they were kept.
        """
        if not self.capabilities.capture:
            return []
        decision, known = request.decision, request.known
        exact = decision.plan.is_exact
        tainted_from = len(known) if exact else min(decision.plan.tainted_from, len(known))
        variant = self.layout.variant(max(len(request.ids), len(known)))
        self.prefixes.insert(request.namespace, known, tainted_from, capture, request.agent, variant)
        rope = self.layout.rope
        if not decision.learns or rope is None or not request.prefilled:
            return []
        namespace = self.namespace(request.namespace)
        prefix = [run for run in decision.plan.placed if run.exact]
        # New text is a span as a whole, also where its first tokens happen to be in the prefix store.
        whole = segment(request.ids, request.agent, namespace.library, decision.cuts, decision.tagged)
        segments = after(whole, prefix[-1].stop if prefix else 0)
        # A span is learned from as a whole, also where the exact prefix reaches into it.
        entire = {each.stop: each for each in whole if each.kind == "span"}
        subjects = tuple(entire.get(each.stop, each) for each in segments if each.kind != "new")

        def unrotated(start: int, stop: int) -> KVBlock:
            return capture(start, stop).unrotated(rope)

        work: list[IdleWork] = []
        if exact:
            lessons = [(subject, unrotated(subject.start, subject.stop)) for subject in subjects]
            work += lesson(request, scores, prefix, segments, lessons)
        else:
            for residual in residuals(decision.plan, segments, namespace.library, unrotated):
                namespace.guard.sense(residual)
            if scores is not None:
                work.append(Audit(request, scores, whole, subjects, forced=self.config.audit_share is not None))
        spans = namespace.register(request.agent, whole, known, len(request.ids), unrotated, exact=exact)
        if spans:
            work.append(Correct(request.namespace, request.agent, tuple(span.id for span in spans)))
        self.namespaces.shrink()
        return work

    def credit(self, request: ServedRequest) -> None:
        """Write what a request has saved to its namespace's ledger."""
        if request.decision.saved:
            self.namespace(request.namespace).ledger.credit(request.decision.saved)

    def charge(self, namespace: str, kind: IdleKind, tokens: int) -> None:
        """Write what idle work has computed to a namespace's ledger; a namespace that is gone has none."""
        found = self.namespaces.find(namespace)
        if found is not None:
            found.ledger.charge(kind, tokens)

    def expect(self, ids: Sequence[int], namespace: str) -> list[IdleWork]:
        """Corrections of the known spans of a text that prompts are about to hold; none if nothing of it is known."""
        memory = self.namespaces.find(namespace)
        spans = [match.span for match in memory.library.find(ids, 0)] if memory else []
        return [Correct(namespace, "", tuple(spans))] if spans else []

    def tags(self, request: ServedRequest) -> tuple[str, ...]:
        """Tags of the spans that `remember` will make of an answer."""
        said = request.known[len(request.ids) :]
        if not request.decision.learns or len(said) < self.config.min_span:
            return ()
        return (self.namespace(request.namespace).library.tag(request.agent, said),)

    def _exact(self, ids: Sequence[int], namespace: str, reason: str) -> PrefillDecision:
        plan = prefix_plan(len(ids), self._prefix(ids, namespace, exact=True))
        return PrefillDecision(plan, exact=plan.computed_tokens, learns=self._learns, reason=reason)

    def _prefix(self, ids: Sequence[int], namespace: str, *, exact: bool) -> list[Placed]:
        variant = self.layout.variant(len(ids))
        return find_prefix(self.prefixes, namespace, ids, self.config.min_prefix, exact=exact, variant=variant)


def _nothing(candidates: Candidates, least: int) -> str:
    """Why nothing of a prompt is placed."""
    if not candidates.longest:
        return "nothing shared behind the prefix"
    return f"shared runs of {candidates.longest} tokens at most" + (f" < {least}" if candidates.longest < least else "")

"""Policy: decides how a request is prefilled, and what is remembered of it and learned from it afterwards.

It knows no engine: it is told what one can execute, and hands plans and idle work to whoever runs them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

from ..backend import Capabilities, Scores
from ..config import ReuseConfig, ReuseMode
from ..errors import ConfigError
from ..kv.block import Capture, KVBlock
from ..kv.layout import KVLayout
from ..kv.prefix_cache import PrefixCache
from ..kv.span_library import Tagged
from ..plan import Placed
from .auditor import Auditor
from .candidates import Candidates
from .decision import PrefillDecision
from .idle_work import Audit, Correct, IdleKind, IdleWork
from .ladder import LADDER, corrected_plan, find_prefix, prefix_plan
from .measurements import lesson
from .namespace import Namespace
from .segments import after, segment
from .served import ServedRequest

logger = logging.getLogger(__name__)

_EXAMPLES = 2  # behind every correction before `corrected` mode trusts it


class Policy:
    """Plans requests from the prefix store and from what each namespace has learned.

    Args:
        prefixes: the prefix store.
        config: what the user wants.
        layout: of the model's KV: whether it can be moved.
        capabilities: of the engine that executes plans.
        make_namespace: makes what a namespace has learned, when it is first used.
    """

    def __init__(
        self,
        prefixes: PrefixCache,
        config: ReuseConfig,
        layout: KVLayout,
        capabilities: Capabilities,
        make_namespace: Callable[[str], Namespace],
    ) -> None:
        self.prefixes, self.config, self.layout, self.capabilities = prefixes, config, layout, capabilities
        self.auditor = Auditor(config)
        self._make_namespace = make_namespace
        self._namespaces: dict[str, Namespace] = {}
        movable = layout.rope is not None and capabilities.scattered and capabilities.capture
        self._learns = config.learns and movable
        self._told_broken = False

    def namespace(self, name: str) -> Namespace:
        """What a namespace has learned."""
        if name not in self._namespaces:
            self._namespaces[name] = self._make_namespace(name)
        return self._namespaces[name]

    def namespaces(self) -> list[tuple[str, Namespace]]:
        """Every namespace in use, by name."""
        return list(self._namespaces.items())

    @property
    def nbytes(self) -> int:
        """Bytes of everything learned."""
        return sum(namespace.nbytes for namespace in self._namespaces.values())

    def forget(self, namespace: str | None = None) -> None:
        """Forget a namespace, or everything."""
        for name in [namespace] if namespace is not None else list(self._namespaces):
            self._namespaces.pop(name, None)
            self.auditor.forget(name)

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
        if mode == "off":
            return PrefillDecision(prefix_plan(len(ids), []), reason="reuse is off")
        if mode == "exact" or not self._learns:
            reason = "exact mode" if mode == "exact" else "nothing is learned here"
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
        guard = self.namespace(namespace).guard
        if agent in self.config.exact_agents:
            return self._exact(ids, namespace, "one of exact_agents")
        if candidates.judge and self.config.exact_judges:
            return self._exact(ids, namespace, "answers compete in the prompt")
        tainted = any(not run.exact for run in prefix)
        if candidates.features is None and not tainted:
            return self._exact(ids, namespace, _nothing(candidates, self.config.min_placed))
        features = candidates.features or guard.usual(agent)
        if mode == "corrected" and features.examples < _EXAMPLES and not tainted:
            return self._exact(ids, namespace, f"{features.examples} of {_EXAMPLES} examples")
        if mode == "corrected":
            rung, predicted, novel, reason = 0, guard.predict(agent, 0, features), False, "corrected mode"
        else:
            allowed = guard.decide(agent, features)
            logger.debug("%s: %s", agent, allowed)
            if allowed.rung is None:
                declined = self._exact(ids, namespace, allowed.reason)
                return replace(declined, audited=self.auditor.tries_declined())
            rung, predicted, novel, reason = allowed.rung, allowed.predicted, allowed.novel, allowed.reason
        plan = corrected_plan(
            len(ids),
            prefix,
            candidates.segments,
            candidates.blocks,
            LADDER[rung],
            self.config.min_span,
            self.capabilities.block,
        )
        if plan.is_exact:
            return self._exact(ids, namespace, _nothing(candidates, self.config.min_placed))
        exact = next((run.start for run in prefix if not run.exact), prefix[-1].stop if prefix else 0)
        saved = len(ids) - (exact if exact >= self.config.min_prefix else 0) - plan.computed_tokens
        audited = novel or self.auditor.audits(namespace, agent)
        return PrefillDecision(
            plan, rung, features, predicted, audited=audited, learns=True, reason=reason, saved=saved
        )

    def remember(self, request: ServedRequest, capture: Capture, scores: Scores | None) -> list[IdleWork]:
        """Keep a context's KV and its new spans; returns what is left to do when nobody waits.

        Args:
            request: as far as it got.
            capture: copies KV out of its context, keys as cached.
            scores: of the first produced positions, if they were kept.
        """
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
        elif scores is not None:
            work.append(Audit(request, scores, whole, subjects))
        spans = namespace.register(request.agent, whole, known, len(request.ids), unrotated, exact=exact)
        if spans:
            work.append(Correct(request.namespace, request.agent, tuple(span.id for span in spans)))
        return work

    def credit(self, request: ServedRequest) -> None:
        """Write what a request has saved to its namespace's ledger."""
        if request.decision.saved:
            self.namespace(request.namespace).ledger.credit(request.decision.saved)

    def charge(self, namespace: str, kind: IdleKind, tokens: int) -> None:
        """Write what idle work has computed to a namespace's ledger; a namespace that is gone has none."""
        if tokens and namespace in self._namespaces:
            self._namespaces[namespace].ledger.charge(kind, tokens)

    def expect(self, ids: Sequence[int], namespace: str) -> list[IdleWork]:
        """Corrections of the known spans of a text that prompts are about to hold; none if nothing of it is known."""
        memory = self._namespaces.get(namespace)
        spans = [match.span for match in memory.library.find(ids, 0)] if memory else []
        return [Correct(namespace, "", tuple(spans))] if spans else []

    def tags(self, request: ServedRequest) -> tuple[str, ...]:
        """Tags of the spans that `remember` will make of an answer."""
        said = request.known[len(request.ids) :]
        if not request.decision.learns or len(said) < self.config.min_span:
            return ()
        return (self.namespace(request.namespace).library.tag(request.agent, said),)

    def scored(self, decision: PrefillDecision, agent: str, namespace: str) -> int:
        """Of how many produced positions the distributions of a request should be kept; 0 if it is not measured."""
        return self.auditor.scored(decision, self.namespace(namespace), agent) if decision.learns else 0

    def _exact(self, ids: Sequence[int], namespace: str, reason: str) -> PrefillDecision:
        plan = prefix_plan(len(ids), self._prefix(ids, namespace, exact=True))
        return PrefillDecision(plan, learns=self._learns, reason=reason)

    def _prefix(self, ids: Sequence[int], namespace: str, *, exact: bool) -> list[Placed]:
        variant = self.layout.variant(len(ids))
        return find_prefix(self.prefixes, namespace, ids, self.config.min_prefix, exact=exact, variant=variant)


def _nothing(candidates: Candidates, least: int) -> str:
    """Why nothing of a prompt is placed."""
    if not candidates.longest:
        return "nothing shared behind the prefix"
    return f"shared runs of {candidates.longest} tokens at most" + (f" < {least}" if candidates.longest < least else "")

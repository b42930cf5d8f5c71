"""Measurements: does idle work of policy, a chunk at a time: corrections, audits, trials, learning.

An *audit* takes a request that was reused and prefills it exactly. A *trial* takes a request that was computed
exactly and asks what a rung would have given: few tokens, since all else is placed. Both compare next-token
distributions at every produced position.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias

from ..backend import Backend, Scores
from ..config import ReuseConfig
from ..kv.block import KVBlock
from ..kv.prefix_cache import PrefixCache
from ..observe.report import AuditReport
from ..plan import Placed, PrefillPlan
from .guard import AuditRecord
from .idle_work import Audit, Correct, IdleWork, Learn, Trial
from .ladder import LADDER, corrected_plan, find_prefix, prefix_plan
from .namespace import Lesson, Namespace
from .segments import Segment, after
from .served import ServedRequest

Measuring: TypeAlias = Generator[int, None, Sequence[IdleWork]]
"""Chunks of idle work (see `Chunks`); in the end, the work that comes of it."""


class Measurements:
    """Does what policy has left to be done.

    Args:
        backend: runs what has to be run.
        prefixes: given the exact KV of what is audited.
        config: the policy.
        namespace: finds a namespace by its name.
        on_audit: told of every audit of a reused request.
        audited: told by which agent of which namespace an audit was, before it begins.
    """

    def __init__(
        self,
        backend: Backend,
        prefixes: PrefixCache,
        config: ReuseConfig,
        namespace: Callable[[str], Namespace],
        on_audit: Callable[[AuditReport], None],
        audited: Callable[[str, str], None],
    ) -> None:
        self.backend, self.prefixes, self.config = backend, prefixes, config
        self._namespace, self._on_audit, self._audited = namespace, on_audit, audited

    def run(self, work: IdleWork) -> Measuring:
        """Chunks of one piece of work.

        Raises:
            TypeError: it is not policy's work.
        """
        match work:
            case Correct():
                return self._correct(work)
            case Audit():
                return self._audit(work)
            case Trial():
                return self._trial(work)
            case Learn():
                return self._learn(work)
            case _:
                raise TypeError(f"no work of policy: {work.kind}")

    def _correct(self, work: Correct) -> Measuring:
        namespace = self._namespace(work.namespace)
        for span in work.spans:
            if span in namespace.library:
                namespace.foresee([namespace.library[span]])
                yield 0
        return ()

    def _learn(self, work: Learn) -> Measuring:
        self._namespace(work.namespace).learn(work.agent, work.lessons)
        yield 0
        return ()

    def _trial(self, work: Trial) -> Measuring:
        namespace, request = self._namespace(work.namespace), work.request
        blocks, features = namespace.blocks(work.agent, work.segments)
        if features is None or not features.examples:
            return ()
        for index, rung in enumerate(LADDER):
            if index == work.measured:
                continue
            plan = corrected_plan(
                len(request.ids),
                work.prefix,
                work.segments,
                blocks,
                rung,
                self.config.min_span,
                self.backend.capabilities.block,
            )
            scores, _ = yield from self._score(request, plan, len(work.scores), ())
            found = work.scores.divergence(scores)
            namespace.guard.learn(AuditRecord(work.agent, index, features, found.mean))
        return ()

    def _audit(self, work: Audit) -> Measuring:
        request, decision = work.request, work.request.decision
        prefix = find_prefix(self.prefixes, work.namespace, request.ids, self.config.min_prefix, exact=True)
        self._audited(work.namespace, work.agent)
        plan = prefix_plan(len(request.ids), prefix)
        ranges = [(segment.start, segment.stop) for segment in work.subjects]
        exact, true = yield from self._score(request, plan, len(work.scores), ranges, keep=True)
        namespace = self._namespace(work.namespace)
        found = exact.divergence(work.scores)
        if decision.rung is not None and decision.features is not None:
            record = AuditRecord(work.agent, decision.rung, decision.features, found.mean, decision.predicted)
            namespace.guard.learn(record)
            self._on_audit(AuditReport(work.agent, decision.rung_name, found.mean, decision.predicted, work.namespace))
        lessons = tuple(zip(work.subjects, true, strict=True))
        segments = after(work.whole, prefix[-1].stop if prefix else 0)
        return lesson(request, exact, prefix, segments, lessons, decision.rung)

    def _score(
        self,
        request: ServedRequest,
        plan: PrefillPlan,
        positions: int,
        ranges: Sequence[tuple[int, int]],
        *,
        keep: bool = False,
    ) -> Generator[int, None, tuple[Scores, list[KVBlock]]]:
        """Run a request by a plan: its scores at so many positions, and un-rotated KV of ranges.

        With `keep` the whole context goes to the prefix store: the plan has to be exact.
        """
        output = request.output[: positions - 1]
        scoring = self.backend.score(request.ids, output, plan)
        try:
            while tokens := scoring.advance():
                yield tokens
            rope = self.backend.layout.rope
            blocks = [scoring.capture(*edges).unrotated(rope) for edges in ranges] if rope else []
            if keep:  # exact, in place of what was tainted
                known = (*request.ids, *output)
                self.prefixes.insert(request.namespace, known, len(known), scoring.capture, request.agent)
            return scoring.scores, blocks
        finally:
            scoring.close()


def lesson(
    request: ServedRequest,
    scores: Scores | None,
    prefix: Sequence[Placed],
    segments: Sequence[Segment],
    lessons: Sequence[Lesson],
    measured: int | None = None,
) -> list[IdleWork]:
    """What is done with a request whose exact KV is known: trials with the maps as they are, then learning.

    In this order, so that nothing is measured on what it has taught.

    Args:
        request: as it was served.
        scores: its exact distributions; without them nothing is tried.
        prefix: its exact prefix.
        segments: of the rest.
        lessons: what is learned from.
        measured: the rung that has been measured already.
    """
    work: list[IdleWork] = []
    if scores is not None:
        work.append(Trial(request, scores, tuple(prefix), tuple(segments), measured, len(LADDER)))
    work.append(Learn(request.namespace, request.agent, tuple(lessons)))
    return work

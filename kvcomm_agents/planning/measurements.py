"""Measurements: does idle work of policy, a chunk at a time: corrections, audits, trials, learning.

An *audit* takes a request that was reused and prefills it exactly. A *trial* takes a request that was computed
exactly and asks what a rung would have given: few tokens, since all else is placed. Both compare next-token
distributions at every produced position.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeAlias

from ..backend import Backend, Scores
from ..config import ReuseConfig
from ..kv.block import Capture, KVBlock
from ..kv.prefix_cache import PrefixCache
from ..kv.span_library import SpanLibrary
from ..observe.report import AuditReport
from ..plan import Placed, PrefillPlan
from .guard import AuditRecord
from .idle_work import Audit, Correct, IdleWork, Learn, Trial
from .ladder import BY_NAME, find_prefix, prefix_plan
from .namespace import Lesson
from .namespaces import Namespaces
from .segments import Segment, after
from .served import ServedRequest

_LEAST_HEAD = 6  # tokens computed at a span's head that say something of the rest

Measuring: TypeAlias = Generator[int, None, Sequence[IdleWork]]
"""Chunks of idle work (see `Chunks`); in the end, the work that comes of it."""


class Measurements:
    """Does what policy has left to be done.

    Args:
        backend: runs what has to be run.
        prefixes: given the exact KV of what is audited.
        config: the policy.
        namespaces: what each namespace has learned.
        on_audit: told of every audit of a reused request.
        afford: whether a namespace may spend so many more tokens on hidden work.
    """

    def __init__(
        self,
        backend: Backend,
        prefixes: PrefixCache,
        config: ReuseConfig,
        namespaces: Namespaces,
        on_audit: Callable[[AuditReport], None],
        afford: Callable[[str, int], bool],
    ) -> None:
        self.backend, self.prefixes, self.config = backend, prefixes, config
        self._namespaces, self._on_audit, self._afford = namespaces, on_audit, afford

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
        namespace = self._namespaces.get(work.namespace)
        for span in work.spans:
            if span in namespace.library:
                namespace.foresee([namespace.library[span]])
                yield 0
        return ()

    def _learn(self, work: Learn) -> Measuring:
        self._namespaces.get(work.namespace).learn(work.agent, work.lessons)
        self._namespaces.shrink()
        yield 0
        return ()

    def _trial(self, work: Trial) -> Measuring:
        namespace, request = self._namespaces.get(work.namespace), work.request
        if not self._afford(work.namespace, work.tokens):
            return ()
        candidates, rung = namespace.candidates(work.agent, work.segments), BY_NAME[work.option.rung]
        block = self.backend.capabilities.block
        plan = candidates.plan(len(request.ids), work.prefix, rung, self.config.min_span, block)
        if plan.is_exact:
            return ()
        scores, _ = yield from self._score(request, plan, len(work.scores), ())
        found, situation = work.scores.divergence(scores), candidates.option(rung, plan).situation
        namespace.guard.learn(AuditRecord(work.agent, request.call, rung.name, situation, found.mean))
        return ()

    def _audit(self, work: Audit) -> Measuring:
        request, decision = work.request, work.request.decision
        prefix = find_prefix(self.prefixes, work.namespace, request.ids, self.config.min_prefix, exact=True)
        plan = prefix_plan(len(request.ids), prefix)
        if not work.forced and not self._afford(work.namespace, plan.computed_tokens + len(work.scores)):
            return ()
        ranges = [(segment.start, segment.stop) for segment in work.subjects]
        exact, true = yield from self._score(request, plan, len(work.scores), ranges, keep=True)
        namespace = self._namespaces.get(work.namespace)
        found = exact.divergence(work.scores)
        if decision.option is not None:
            taken = decision.option
            namespace.guard.learn(
                AuditRecord(work.agent, request.call, taken.rung, taken.situation, found.mean, decision.predicted)
            )
            self._on_audit(AuditReport(work.agent, taken.rung, found.mean, decision.predicted, work.namespace))
        lessons = tuple(zip(work.subjects, true, strict=True))
        segments = after(work.whole, prefix[-1].stop if prefix else 0)
        return lesson(request, exact, prefix, segments, lessons)

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
) -> list[IdleWork]:
    """What is done with a request whose exact KV is known: a trial with the maps as they are, then learning.

    In this order, so that nothing is measured on what it has taught.

    Args:
        request: as it was served.
        scores: its exact distributions; without them nothing is tried.
        prefix: its exact prefix.
        segments: of the rest.
        lessons: what is learned from.
    """
    work: list[IdleWork] = []
    if scores is not None and request.decision.trial is not None:
        work.append(Trial(request, scores, tuple(prefix), tuple(segments), request.decision.trial))
    work.append(Learn(request.namespace, request.agent, tuple(lessons)))
    return work


def residuals(
    plan: PrefillPlan, segments: Sequence[Segment], library: SpanLibrary, capture: Capture
) -> Iterator[float]:
    """What the computed heads of spans say of the rest, for nothing: how far they are from their donor KV.

    The relative distance of keys and values, in a few layers, of each span of which enough is computed at its head
    and something is placed behind it (`docs/calibration.md`: the one thing known before an audit that tells teams
    apart).

    Args:
        plan: as it was executed.
        segments: of the prompt behind its prefix.
        library: has the donors.
        capture: un-rotated KV of the context.
    """
    placed = {run.stop: run for run in plan.placed if not run.exact}
    for segment in segments:
        run = placed.get(segment.stop)
        if segment.kind != "span" or run is None or segment.span not in library:
            continue
        tokens = run.start - segment.start
        if tokens < _LEAST_HEAD:
            continue
        true = capture(segment.start, run.start)
        donor = library[segment.span].base.slice(segment.offset, segment.offset + tokens)
        yield _distance(true, donor)


def _distance(true: KVBlock, donor: KVBlock) -> float:
    """Relative to `true`, over four evenly spread layers above the first, which knows no context."""
    last = true.keys.shape[0] - 1
    layers = sorted({1 + round((last - 1) * part / 4) for part in range(1, 5)} & set(range(1, last + 1)))
    gap = size = 0.0
    for layer in layers:
        for computed, stored in ((true.keys, donor.keys), (true.values, donor.values)):
            gap += float((computed[layer] - stored[layer]).float().square().sum())
            size += float(computed[layer].float().square().sum())
    return (gap / size) ** 0.5 if size else 0.0

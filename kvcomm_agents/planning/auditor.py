"""Auditor: which requests are measured, and the pieces of idle work that measure them and learn from them."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence

from torch import Tensor

from ..backends.transformers.runner import Runner
from ..config import ReuseConfig
from ..kv.block import Capture, KVBlock
from ..kv.prefix_cache import PrefixCache
from ..observe.report import AuditReport
from ..plan import Placed
from .decision import PrefillDecision
from .divergence import audit, trial
from .guard import AuditRecord, Features
from .ladder import LADDER
from .namespace import Lesson, Namespace
from .segments import Segment, after

_TRIED = 0.5  # share of requests that the guard declined that are tried: it may have become too careful
_ALL_AUDITED = 16  # reused requests of an agent before only a share is audited; as many as the published pool holds
_YOUNG = 100.0  # that share after 45 audits is three times the configured one
_TRIALS = 8  # exact requests of an agent that are tried on every rung before only a share is


class Auditor:
    """Measures requests of every namespace in idle time.

    Args:
        runner: of the model.
        store: the prefix store; given the exact KV of what is audited.
        config: the policy.
        on_audit: told of every audit of a reused request.
    """

    def __init__(
        self, runner: Runner, store: PrefixCache, config: ReuseConfig, on_audit: Callable[[AuditReport], None]
    ) -> None:
        self.runner, self.store, self.config, self.on_audit = runner, store, config, on_audit
        self.backlog: deque[Callable[[], None]] = deque()
        """Work for idle time, oldest first, in pieces no longer than a forward pass: trials, audits, learning."""
        self._random = random.Random(0)
        self._audits: Counter[tuple[str, str]] = Counter()

    def audits(self, namespace: str, agent: str) -> bool:
        """Whether to audit a reused request: more of them while few of the agent were, and maps and guard are young."""
        audits = self._audits[namespace, agent]
        young = self.config.audit_share > 0 and audits < _ALL_AUDITED
        chance = 1.0 if young else self.config.audit_share * (1 + _YOUNG / (5 + audits))
        return self._random.random() < chance

    def tries_declined(self) -> bool:
        """Whether to try a request that the guard declined."""
        return self._random.random() < _TRIED

    def wants_logits(self, choice: PrefillDecision, memory: Namespace, agent: str) -> bool:
        """Whether the distributions of a request should be kept: it will be tried or audited."""
        if choice.rung is not None or choice.audited:
            return choice.audited
        return memory.guard.records(agent) < _TRIALS or self._random.random() < self.config.audit_share

    def learn(
        self,
        memory: Namespace,
        agent: str,
        ids: Sequence[int],
        output: Sequence[int],
        prefix: Sequence[Placed],
        segments: Sequence[Segment],
        lessons: Sequence[Lesson],
        kept: Tensor | None,
        known: int | None = None,
    ) -> None:
        """Try every rung with the maps as they are, then learn, in pieces. Nothing is measured on what it taught.

        Args:
            memory: of the namespace.
            agent: whose request it was.
            ids: its prompt.
            output: what was produced.
            prefix: the exact prefix.
            segments: of the rest.
            lessons: what is learned from.
            kept: exact logits `[positions, vocabulary]` that predict `output`; without them nothing is tried.
            known: the rung that has been measured already.
        """
        if kept is not None:
            found: list[tuple[dict[int, KVBlock], Features | None]] = []
            for rung in (rung for rung in range(len(LADDER)) if rung != known):

                def measure(rung: int = rung, kept: Tensor = kept) -> None:
                    if not found:
                        found.append(memory.blocks(agent, segments))
                    blocks, features = found[0]
                    if features is not None and features.examples:
                        min_run = self.config.min_span
                        step = LADDER[rung]
                        one = trial(self.runner, ids, output, prefix, segments, blocks, kept, step, min_run)
                        memory.guard.learn(AuditRecord(agent, rung, features, one.mean))

                self.backlog.append(measure)
        self.backlog.append(lambda: memory.learn(agent, lessons))

    def audit(
        self,
        memory: Namespace,
        choice: PrefillDecision,
        agent: str,
        ids: Sequence[int],
        output: Sequence[int],
        find_prefix: Callable[[], Sequence[Placed]],
        whole: Sequence[Segment],
        subjects: Sequence[Segment],
        kept: Tensor,
    ) -> None:
        """Put off: prefill a reused request exactly, tell the guard what it cost, and learn from it.

        Args:
            memory: of the namespace.
            choice: how the request was prefilled.
            agent: whose it was.
            ids: its prompt.
            output: what was produced.
            find_prefix: the longest exact prefix at that time; by then it holds what the request itself computed.
            whole: segments of the whole prompt.
            subjects: those that are learned from.
            kept: logits `[positions, vocabulary]` that it was served from.
        """
        namespace = memory.namespace

        def keep(known: Sequence[int], capture: Capture) -> None:
            self.store.insert(namespace, known, len(known), capture, agent)  # exact, in place of what was tainted

        def measure() -> None:
            prefix = find_prefix()
            segments = after(whole, prefix[-1].stop if prefix else 0)
            self._audits[namespace, agent] += 1
            found, logits, true = audit(self.runner, ids, output, prefix, subjects, kept, keep)
            if choice.rung is not None and choice.features is not None:
                record = AuditRecord(agent, choice.rung, choice.features, found.mean, choice.predicted)
                memory.guard.learn(record)
                self.on_audit(AuditReport(agent, choice.rung_name, found.mean, choice.predicted, namespace))
            taught = list(zip(subjects, true, strict=True))
            self.learn(memory, agent, ids, output, prefix, segments, taught, logits, choice.rung)

        self.backlog.append(measure)

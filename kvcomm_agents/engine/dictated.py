"""Dictated: a request whose answer is given, served as the engine serves any other.

For measurements and tests: what is produced is the same whatever is reused, so every request can be compared with
its dense run. Policy decides, contexts become donors, audits and trials are learned from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..backend import Scores
from ..config import ReuseMode
from ..planning.decision import PrefillDecision
from ..planning.served import ServedRequest
from .core import EngineCore


@dataclass(frozen=True, slots=True, eq=False)
class Dictated:
    """What was done with a request.

    Args:
        decision: how its prompt was prefilled.
        scores: distributions that predict its answer and the token behind it.
        match_s: seconds of deciding.
        prefill_s: seconds of placing, and of computing prompt and answer.
        remember_s: seconds of keeping its KV and spans.
    """

    decision: PrefillDecision
    scores: Scores
    match_s: float
    prefill_s: float
    remember_s: float


def dictate(
    core: EngineCore,
    ids: Sequence[int],
    output: Sequence[int],
    *,
    agent: str,
    namespace: str = "default",
    mode: ReuseMode | None = None,
    cuts: Sequence[int] = (),
) -> Dictated:
    """Serve a request with a given answer; what can be learned from it is left among the idle work.

    Args:
        core: of an engine; on its own thread, or with no other.
        ids: token ids of the prompt.
        output: of the answer.
        agent: who calls.
        namespace: whose it is.
        mode: overrides the configured mode.
        cuts: where the prompt's messages begin and end.
    """
    started = time.perf_counter()
    decision = core.policy.decide(ids, agent, namespace, mode, cuts)
    matched = time.perf_counter()
    scoring = core.backend.score(ids, output, decision.plan)
    try:
        while scoring.advance():
            pass
        scores, prefilled = scoring.scores, time.perf_counter()
        reached = len(ids) + len(output)
        request = ServedRequest(namespace, agent, tuple(ids), tuple(output), decision, reached)
        core.policy.credit(request)
        kept = scores.head(decision.measured) if decision.measured else None
        core.idle.submit(core.policy.remember(request, scoring.capture, kept))
    finally:
        scoring.close()
    return Dictated(decision, scores, matched - started, prefilled - matched, time.perf_counter() - prefilled)

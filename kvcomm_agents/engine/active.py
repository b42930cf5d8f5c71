"""ActiveRequest: a request while it is served."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..backend import Handle
from ..observe.report import FinishReason, RequestReport
from ..planning.decision import PrefillDecision
from ..planning.served import ServedRequest
from ..planning.token_runs import token_runs
from .answer import Answer
from .job import Job


@dataclass(slots=True, eq=False)
class ActiveRequest:
    """What the engine knows of a request in flight.

    Args:
        job: whose it is.
        agent: who calls.
        ids: token ids of the prompt.
        decision: how it is prefilled.
        answer: what was said so far.
        handle: of its generation.
        model: the model's name, for reports.
        queue_s, render_s, match_s: seconds before the generation began.
        forgotten: its namespace was forgotten meanwhile: nothing of it is remembered.
    """

    job: Job
    agent: str
    ids: tuple[int, ...]
    decision: PrefillDecision
    answer: Answer
    handle: Handle
    model: str
    queue_s: float
    render_s: float
    match_s: float
    forgotten: bool = False

    @property
    def namespace(self) -> str:
        """Of the request."""
        return self.job.request.namespace

    def served(self) -> ServedRequest:
        """As far as it got."""
        output, reached = tuple(self.handle.output), self.handle.reached
        return ServedRequest(self.namespace, self.agent, self.ids, output, self.decision, reached)

    def report(self, reason: FinishReason, error: str = "") -> RequestReport:
        """What was done for it; of one that is stopped early, what its plan says and what it got to say."""
        request, plan, times = self.job.request, self.decision.plan, self.handle.times
        total_s = time.perf_counter() - self.job.submitted
        return RequestReport(
            agent=self.agent,
            prompt_tokens=len(self.ids),
            computed_tokens=plan.computed_tokens,
            placed_exact_tokens=plan.placed_tokens(exact=True),
            placed_corrected_tokens=plan.placed_tokens(exact=False),
            output_tokens=len(self.handle.output),
            queue_s=self.queue_s + times.waited_s,
            render_s=self.render_s,
            match_s=self.match_s,
            assemble_s=times.assemble_s,
            prefill_s=times.prefill_s,
            idle_s=self.job.idle_s,
            ttft_s=max(0.0, times.first_token_at - self.job.submitted),
            total_s=total_s,
            started_at=time.time() - total_s,
            finish_reason=reason,
            namespace=request.namespace,
            rung=self.decision.rung_name,
            predicted_divergence=self.decision.predicted,
            reason=self.decision.reason,
            conversation=request.conversation,
            spans_found=self.decision.spans_found,
            span_tokens=self.decision.span_tokens,
            model=self.model,
            error=error,
            runs=token_runs(plan, self.decision.seen, self.agent),
        )

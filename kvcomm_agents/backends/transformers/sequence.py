"""RunningSequence: a request while it is prefilled and decoded. Tokens in, text and the end out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...engine.job import Job
from ...observe.report import FinishReason, RequestReport
from ...planning.decision import PrefillDecision
from ...planning.divergence import KEPT
from ...planning.token_runs import token_runs
from ...request import TextChunk
from ...text.detokenizer import Detokenizer, StopStrings
from .cache import PlanCache
from .constraint import Matcher
from .sampling import Sampler


@dataclass(slots=True, eq=False)
class RunningSequence:
    """A request being served: its context, what it has said, and the times so far.

    `computed` counts the tokens of its plan that went through the model, `begun` is when it was ready
    for that, by `time.perf_counter()`.
    """

    job: Job
    agent: str
    ids: tuple[int, ...]
    choice: PrefillDecision
    cache: PlanCache
    sampler: Sampler
    detokenizer: Detokenizer
    stops: StopStrings
    max_tokens: int
    eos: frozenset[int]
    seconds: dict[str, float]
    begun: float
    computed: int = 0
    output: list[int] = field(default_factory=list)
    matcher: Matcher | None = None
    logits: list[Tensor] | None = None
    text: list[str] = field(default_factory=list)
    untold: int = 0
    finished: FinishReason | None = None

    @property
    def left(self) -> int:
        """Tokens of the prompt still to be computed; none while it is decoded."""
        return self.choice.plan.computed_tokens - self.computed

    @property
    def wants_logits(self) -> bool:
        """Whether the distributions of the next positions are to be kept."""
        return self.logits is not None and len(self.logits) < KEPT

    def report(self, model: str, reason: FinishReason, error: str = "") -> RequestReport:
        """What was done for it; of one that is stopped early, what its plan says and what it got to say."""
        request, plan = self.job.request, self.choice.plan
        total_s = time.perf_counter() - self.job.submitted
        return RequestReport(
            agent=self.agent,
            prompt_tokens=len(self.ids),
            computed_tokens=plan.computed_tokens,
            placed_exact_tokens=plan.placed_tokens(exact=True),
            placed_corrected_tokens=plan.placed_tokens(exact=False),
            output_tokens=len(self.output),
            total_s=total_s,
            started_at=time.time() - total_s,
            finish_reason=reason,
            namespace=request.namespace,
            rung=self.choice.rung_name,
            predicted_divergence=self.choice.predicted,
            reason=self.choice.reason,
            conversation=request.conversation,
            spans_found=self.choice.spans_found,
            span_tokens=self.choice.span_tokens,
            model=model,
            error=error,
            runs=token_runs(plan, self.choice.seen, self.agent),
            **self.seconds,
        )

    def draw(self, logits: Tensor) -> list[int]:
        """The next token, and those that a constraint forces after it.

        Args:
            logits: `[positions, vocabulary]`, the last of the next token.
        """
        if self.logits is not None:
            self.logits += list(logits[: KEPT - len(self.logits)])
        if self.matcher is None:
            return [self.sampler(logits[-1])]
        tokens = self.matcher.forced()  # at the answer's beginning; later ones came with the token before
        if not tokens:
            token = self.sampler(self.matcher.mask(logits[-1]))
            self.matcher.accept(token)
            if token in self.eos:
                return [token]
            tokens = self.matcher.forced()
            self._force(tokens)
            return [token, *tokens]
        self._force(tokens)
        return tokens

    def accept(self, tokens: Sequence[int]) -> None:
        """Take tokens into the answer, as far as it goes on."""
        for token in tokens:
            if token in self.eos:
                self.finished = "stop"
                return
            if len(self.output) >= self.max_tokens:
                self.finished = "length"
                return
            self.output.append(token)
            self.untold += 1
            self.tell(self.stops.push(self.detokenizer.push(token)))
            if self.stops.hit:
                self.finished = "stop"
                return
        if self.matcher is not None and self.matcher.done:
            self.finished = "stop"
        elif len(self.output) >= self.max_tokens:
            self.finished = "length"

    def tell(self, text: str) -> None:
        """Hand text to the caller, with the tokens that completed it."""
        if text:
            self.text.append(text)
            self.job.emit(TextChunk(text, tuple(self.output[len(self.output) - self.untold :])))
            self.untold = 0

    def _force(self, tokens: Sequence[int]) -> None:
        if self.matcher is not None:
            for token in tokens:
                self.matcher.accept(token)
                self.sampler.observe(token)

"""RunningSequence: one generation while it is prefilled and decoded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...backend import Generation, Times
from ...observe.report import FinishReason
from ...plan import PrefillPlan, dense
from .cache import PlanCache
from .constraint import Matcher
from .sampling import Sampler
from .scores import FullScores


@dataclass(slots=True, eq=False)
class RunningSequence:
    """A `backend.Handle`: the context of a generation, and what it has said.

    Args:
        generation: what was asked.
        cache: the context; `None` once it is closed.
        sampler: chooses tokens.
        eos: tokens that end an answer.
        matcher: what tokens may come next; `None` where all may.
        begun: `time.perf_counter()` when it was ready to be computed.
        times: where its time goes.
        plan: how what is there of it becomes its context: the plan of its prompt, and see `restart`.
        computed: tokens of that plan that went through the model.
        output: tokens of the answer.
        finished: why it ended.
        error: what failed it.
        rows: logits `[vocabulary]` of the first positions, as far as they are wanted; each keeps itself alive alone.
    """

    generation: Generation
    cache: PlanCache | None
    sampler: Sampler
    eos: frozenset[int]
    matcher: Matcher | None = None
    begun: float = field(default_factory=time.perf_counter)
    times: Times = field(default_factory=Times)
    plan: PrefillPlan = field(init=False)
    computed: int = 0
    output: list[int] = field(default_factory=list)
    finished: FinishReason | None = None
    error: BaseException | None = None
    rows: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = self.generation.plan

    @property
    def left(self) -> int:
        """Tokens of the plan still to be computed; none while it is decoded."""
        return self.plan.computed_tokens - self.computed

    @property
    def known(self) -> tuple[int, ...]:
        """Prompt and answer so far."""
        return (*self.generation.ids, *self.output)

    @property
    def unseen(self) -> list[int]:
        """Tokens of the answer that have not been through the model; for one that is decoded."""
        return self.output[self.context().length - len(self.generation.ids) :]

    def restart(self) -> PrefillPlan:
        """Compute the prompt and the answer so far anew, as one prompt; returns the plan."""
        self.plan, self.computed = dense(len(self.known)), 0
        return self.plan

    @property
    def going(self) -> bool:
        """Whether there is anything to compute for it."""
        return self.finished is None and self.error is None and self.cache is not None

    @property
    def reached(self) -> int:
        """Positions of which KV is there that others can use; none while they are computed anew."""
        if self.cache is None or (self.left and self.plan is not self.generation.plan):
            return 0
        return self.cache.reached

    @property
    def scores(self) -> FullScores | None:
        """Distributions of the first positions that were asked for."""
        return FullScores.of(self.rows)

    @property
    def wants_rows(self) -> bool:
        """Whether the distributions of the next positions are to be kept."""
        return len(self.rows) < self.generation.scored

    def context(self) -> PlanCache:
        """The context, which is open.

        Raises:
            RuntimeError: it was closed.
        """
        if self.cache is None:
            raise RuntimeError("this generation was closed")  # a bug, never input
        return self.cache

    def take(self, tokens: int, logits: Tensor, seconds: float) -> None:
        """What a pass over `tokens` of it gave, in `seconds`; logits `[kept, vocabulary]`."""
        first = not self.output
        if self.left:
            self.computed += tokens
            if first:
                self.times.prefill_s += seconds
            if self.left:
                return
        if first:
            self.times.waited_s = max(0.0, time.perf_counter() - self.begun - self.times.prefill_s)
        drawn = self._draw(logits)
        if first:
            self.times.first_token_at = time.perf_counter()
        self._accept(drawn)

    def _draw(self, logits: Tensor) -> list[int]:
        """The next token, and those that a constraint forces after it."""
        if self.wants_rows:  # copies: a view would keep the rows of the whole batch alive
            self.rows += [row.clone() for row in logits[: self.generation.scored - len(self.rows)]]
        if self.matcher is None:
            return [self.sampler(logits[-1])]
        tokens = self.matcher.forced()  # at the answer's beginning; later ones came with the token before
        if not tokens:
            token = self.sampler(self.matcher.mask(logits[-1]))
            self.matcher.accept(token)
            if token in self.eos:
                return [token]
            tokens = self.matcher.forced()
            self._force(self.matcher, tokens)
            return [token, *tokens]
        self._force(self.matcher, tokens)
        return tokens

    def _force(self, matcher: Matcher, tokens: Sequence[int]) -> None:
        for token in tokens:
            matcher.accept(token)
            self.sampler.observe(token)

    def _accept(self, tokens: Sequence[int]) -> None:
        """Take tokens into the answer, as far as it goes on."""
        for token in tokens:
            if token in self.eos:
                self.finished = "stop"
                return
            if len(self.output) >= self.generation.max_tokens:
                self.finished = "length"
                return
            self.output.append(token)
            if not self.generation.sink(token):
                self.finished = "stop"
                return
        if self.matcher is not None and self.matcher.done:
            self.finished = "stop"
        elif len(self.output) >= self.generation.max_tokens:
            self.finished = "length"

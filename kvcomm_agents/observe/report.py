"""Reports: what was done for each request and found by each audit, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ..errors import RequestCancelledError, RequestTimeoutError

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


RunKind = Literal["exact", "corrected", "computed"]


Provenance = Literal["prefix", "answer", "prompt", "own", "new", "unknown"]


PHASES = ("queue", "match", "assemble", "forward", "decode")
"""Where the time of a request goes, in order."""


@dataclass(frozen=True, slots=True)
class TokenRun:
    """What was done to tokens `start:stop` of a prompt, and where their text comes from.

    Args:
        kind: `exact` (placed, KV as a dense prefill gives it), `corrected` (placed, approximate) or
            `computed`.
        text: `prefix` of an earlier context, an agent's `answer`, text that first stood in another
            agent's `prompt`, the agent's `own` recurring text, `new` text, or `unknown` where nobody looked.
        source: the agent in whose context the text was first computed; empty if it was in none.
    """

    start: int
    stop: int
    kind: RunKind
    text: Provenance = "unknown"
    source: str = ""

    @property
    def tokens(self) -> int:
        """Its length."""
        return self.stop - self.start

    def describe(self) -> str:
        """In words: `planner's answer, placed and corrected`."""
        text = {
            "prefix": "start of an earlier context" + (f" of {self.source}" if self.source else ""),
            "answer": f"{self.source}'s answer",
            "prompt": f"text first read by {self.source}",
            "own": "text that this agent always reads",
            "new": "new text",
            "unknown": "text",
        }[self.text]
        done = {"exact": "placed exactly", "corrected": "placed and corrected", "computed": "computed"}[self.kind]
        return f"{text}, {done}"


@dataclass(frozen=True, slots=True)
class RequestReport:
    """One request, counted in tokens and seconds.

    `prompt_tokens == computed_tokens + placed_exact_tokens + placed_corrected_tokens` always.
    Seconds: `queue_s` waiting for the worker and for room in a forward pass, `render_s` from messages to
    prompt ids, `match_s` finding stored KV, `assemble_s` writing it into the cache, `prefill_s` the forward
    passes over the computed tokens, which other requests share; `ttft_s` from submission to the first token
    and `total_s` to the last, so both count waiting. `idle_s` of these the worker spent on hidden work: on the
    chunk that was under way when the request came, part of `queue_s`, and on the few that it allows itself while
    requests run. `started_at` is the submission, in Unix seconds.
    `rung` says how much was computed (`exact`, `dense`, or a rung of the ladder) and
    `predicted_divergence` what the guard expected of it, mean KL per token in nats; `reason` says in a few
    words why no less was computed. `runs` covers the prompt. A request that failed, was cancelled or ran out
    of time has `error`; its prompt's tokens are those of its plan, computed or not by then, and all 0 if it
    never got one. `spans_found` and `span_tokens` count what others wrote that was found in the prompt,
    placed or not; 0 where it was not looked for, in exact mode.
    """

    agent: str
    prompt_tokens: int
    computed_tokens: int
    placed_exact_tokens: int = 0
    placed_corrected_tokens: int = 0
    output_tokens: int = 0
    queue_s: float = 0.0
    render_s: float = 0.0
    match_s: float = 0.0
    assemble_s: float = 0.0
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    total_s: float = 0.0
    started_at: float = 0.0
    finish_reason: FinishReason = "stop"
    namespace: str = "default"
    rung: str = "exact"
    predicted_divergence: float = 0.0
    conversation: str | None = None
    spans_found: int = 0
    span_tokens: int = 0
    model: str = ""
    error: str = ""
    reason: str = ""
    runs: tuple[TokenRun, ...] = ()
    idle_s: float = 0.0

    @property
    def placed_tokens(self) -> int:
        """Prompt tokens whose KV came from the store."""
        return self.placed_exact_tokens + self.placed_corrected_tokens

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each of `PHASES`; they add up to `total_s`. Rendering counts as matching."""
        before = (self.queue_s, self.render_s + self.match_s, self.assemble_s, self.prefill_s)
        return dict(zip(PHASES, (*before, max(0.0, self.total_s - sum(before))), strict=True))

    def as_dict(self, *, runs: bool = False) -> dict[str, Any]:
        """Plain JSON types, one key a field; `runs` only if asked for, because they are long."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["runs"] = [asdict(run) for run in self.runs]
        if not runs:
            del values["runs"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RequestReport:
        """What `as_dict` gave. Keys of later versions are ignored.

        Raises:
            TypeError: a field is missing or of another kind.
        """
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        names = [field.name for field in fields(TokenRun)]
        runs = tuple(TokenRun(**{name: run[name] for name in names if name in run}) for run in known.pop("runs", ()))
        return cls(**known, runs=runs)

    def __str__(self) -> str:
        who = (self.agent or "a request") + (f" ({self.namespace})" if self.namespace != "default" else "")
        if self.error:
            came = f", {self.prompt_tokens} prompt tokens and {self.output_tokens} more" if self.prompt_tokens else ""
            return f"{who}: {self.finish_reason} after {self.total_s:.2f} s{came}, {self.error}"
        why = f": {self.reason}" if self.reason else ""
        idle = f", {1e3 * self.idle_s:.0f} ms of them idle work" if self.idle_s else ""
        return (
            f"{who}: {self.prompt_tokens} prompt tokens = {self.computed_tokens} computed"
            f" + {self.placed_exact_tokens} placed exact + {self.placed_corrected_tokens} placed corrected"
            f" ({self.rung}, predicted divergence {self.predicted_divergence:.4f}{why});"
            f" first token {1e3 * self.ttft_s:.0f} ms (queue {1e3 * self.queue_s:.0f},"
            f" match {1e3 * self.match_s:.1f}, assemble {1e3 * self.assemble_s:.1f},"
            f" prefill {1e3 * self.prefill_s:.0f});"
            f" {self.output_tokens} tokens in {self.total_s:.2f} s{idle}, {self.finish_reason}"
        )


@dataclass(frozen=True, slots=True)
class AuditReport:
    """A reused request that was prefilled densely afterwards: how far it really diverged.

    Args:
        agent: who had called.
        rung: how much had been computed.
        divergence: mean KL per token, nats.
        predicted: what the guard had expected.
        namespace: whose it was.
    """

    agent: str
    rung: str
    divergence: float
    predicted: float
    namespace: str = "default"

    def __str__(self) -> str:
        return f"audit of {self.agent} ({self.rung}): KL {self.divergence:.4f}, predicted {self.predicted:.4f}"


def finish_reason_of(error: BaseException) -> FinishReason:
    """How a request ended that raised this."""
    if isinstance(error, RequestCancelledError):
        return "cancelled"
    return "timeout" if isinstance(error, RequestTimeoutError) else "error"

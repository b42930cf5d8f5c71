"""What was done for each request, and one way to say it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class RequestReport:
    """One request, counted in tokens and seconds.

    `prompt_tokens == computed_tokens + placed_exact_tokens + placed_corrected_tokens` always.
    Seconds: `queue_s` until the worker took the request, `match_s` finding stored KV, `assemble_s`
    writing it into the cache, `prefill_s` the forward pass over the computed tokens; `ttft_s` from
    submission to the first token and `total_s` to the last, so both count waiting.
    `rung` says how much was computed (`exact`, `dense`, or a rung of the ladder) and
    `predicted_divergence` what the guard expected of it, mean KL per token in nats.
    `spans_found` and `span_tokens` count what others wrote that was found in the prompt, placed or not; 0
    where it was not looked for, in exact mode.
    """

    agent: str
    prompt_tokens: int
    computed_tokens: int
    placed_exact_tokens: int = 0
    placed_corrected_tokens: int = 0
    output_tokens: int = 0
    queue_s: float = 0.0
    match_s: float = 0.0
    assemble_s: float = 0.0
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    total_s: float = 0.0
    finish_reason: FinishReason = "stop"
    namespace: str = "default"
    rung: str = "exact"
    predicted_divergence: float = 0.0
    conversation: str | None = None
    spans_found: int = 0
    span_tokens: int = 0

    @property
    def placed_tokens(self) -> int:
        """Prompt tokens whose KV came from the store."""
        return self.placed_exact_tokens + self.placed_corrected_tokens

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, one key a field."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.agent}: {self.prompt_tokens} prompt tokens = {self.computed_tokens} computed"
            f" + {self.placed_exact_tokens} placed exact + {self.placed_corrected_tokens} placed corrected"
            f" ({self.rung}, predicted divergence {self.predicted_divergence:.4f});"
            f" first token {1e3 * self.ttft_s:.0f} ms (match {1e3 * self.match_s:.1f},"
            f" assemble {1e3 * self.assemble_s:.1f}, prefill {1e3 * self.prefill_s:.0f});"
            f" {self.output_tokens} tokens in {self.total_s:.2f} s, {self.finish_reason}"
        )

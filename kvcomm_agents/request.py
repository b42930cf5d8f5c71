"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .config import ReuseMode
from .errors import ConfigError
from .telemetry import FinishReason, RequestReport


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as a chat template sees it.

    Args:
        role: `system`, `user`, `assistant` or `tool`.
        content: the text, exactly as the app composed it.
        name: who said it; kept out of the text unless the template asks for it.
        extra: further keys that the model's chat template may read (`tool_calls`, `tool_call_id`).
    """

    role: str
    content: str
    name: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when to stop. `temperature=0` is greedy."""

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = [
            (
                self.max_tokens is None or self.max_tokens >= 1,
                "max_tokens",
                "at least 1, or None for the context's rest",
            ),
            (self.temperature >= 0, "temperature", "0 (greedy) or more"),
            (self.top_p is None or 0 < self.top_p <= 1, "top_p", "in (0, 1]"),
            (self.top_k is None or self.top_k >= 1, "top_k", "at least 1"),
            (self.min_p is None or 0 <= self.min_p <= 1, "min_p", "in [0, 1]"),
            (
                self.repetition_penalty is None or self.repetition_penalty > 0,
                "repetition_penalty",
                "more than 0",
            ),
        ]
        for ok, name, want in checks:
            if not ok:
                raise ConfigError(f"{name}={getattr(self, name)} must be {want}")
        if any(not text for text in self.stop):
            raise ConfigError("an empty stop string would stop at once; leave it out")


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the model.

    Args:
        messages: the conversation. Ignored when `prompt_ids` is given.
        prompt_ids: token ids to continue, instead of messages.
        agent: who calls; `None` takes a hash of the system message.
        namespace: the wall between tenants.
        reuse: overrides the engine's reuse mode for this request.
        timeout_s: seconds from submission; `None` waits for ever.
    """

    messages: tuple[Message, ...] = ()
    params: SamplingParams = SamplingParams()
    agent: str | None = None
    namespace: str = "default"
    reuse: ReuseMode | None = None
    timeout_s: float | None = None
    prompt_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of answer text, never half a character; `token_ids` are the tokens that completed it."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """The whole answer of one request."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    report: RequestReport

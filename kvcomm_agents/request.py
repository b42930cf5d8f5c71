"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .config import ReuseMode
from .errors import ConfigError
from .observe.report import FinishReason, RequestReport

ToolChoice = Literal["auto", "required", "none"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as a chat template sees it.

    Args:
        role: `system`, `user`, `assistant` or `tool`.
        content: the text, exactly as the app composed it.
        name: who said it; kept out of the text unless the template asks for it.
        extra: further keys that the model's chat template may read (`tool_calls`, `tool_call_id`).
        spans: what `Completion.spans` said when this message was an answer. Only a hint: what stands here decides.
    """

    role: str
    content: str
    name: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    spans: tuple[str, ...] = ()


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
class ToolSpec:
    """A tool that the model may call.

    Args:
        name: as the model writes it.
        description: what it does, for the model.
        parameters: JSON schema of its arguments, an object.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a tool needs a name")

    def as_openai(self) -> dict[str, Any]:
        """In the form that chat templates read."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the answer may be, token by token. With both a schema and tools it is either.

    Args:
        schema: the answer is JSON of this schema.
        calls: `auto` lets the model speak or call the request's tools, `required` makes it call at
            once, `none` forbids calls; `None` where the request has no tools.
        tool: the only tool that may be called; `None` allows all of the request's.
        parallel: several calls in one answer, of different tools if a call is required.
        show_schema: the prompt says what the schema is.
        max_string: characters in a string for which the schema sets no bound.
        repeats: the same call, or a required one of the same tool, may stand in an answer again.
        barred: tools that may not be called, though the prompt names them.
    """

    schema: dict[str, Any] | None = None
    calls: ToolChoice | None = None
    tool: str | None = None
    parallel: bool = True
    show_schema: bool = True
    max_string: int = 1024
    repeats: bool = False
    barred: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.calls is not None and self.calls not in get_args(ToolChoice):
            raise ConfigError(f"calls={self.calls!r} is none of {get_args(ToolChoice)}")
        if self.max_string < 1:
            raise ConfigError(f"max_string={self.max_string} must be at least 1 character")


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
        tools: described to the model in the prompt.
        constraint: what the answer may be; `None` leaves it free.
        conversation: which thread or run this call belongs to; said again in the report.
    """

    messages: tuple[Message, ...] = ()
    params: SamplingParams = SamplingParams()
    agent: str | None = None
    namespace: str = "default"
    reuse: ReuseMode | None = None
    timeout_s: float | None = None
    prompt_ids: tuple[int, ...] | None = None
    tools: tuple[ToolSpec, ...] = ()
    constraint: Constraint | None = None
    conversation: str | None = None


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of answer text, never half a character; `token_ids` are the tokens that completed it."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """The whole answer of one request; `spans` are the tags of what was kept of it, for `Message.spans`."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    report: RequestReport
    spans: tuple[str, ...] = ()

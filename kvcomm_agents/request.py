"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from . import checks
from .checks import check_fields, checked
from .config import ReuseMode
from .errors import PromptError
from .observe.report import FinishReason, RequestReport
from .request_checks import CONSTRAINT, MESSAGE, SAMPLING, TOOL, agent_name, prompt_ids, timeout
from .request_checks import ToolChoice as ToolChoice


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as a chat template sees it.

    Args:
        role: `system`, `user`, `assistant` or `tool`.
        content: the text, exactly as the app composed it.
        name: who said it; kept out of the text unless the template asks for it.
        extra: further keys that the model's chat template may read (`tool_calls`, `tool_call_id`), in JSON types:
            dates and their like become strings.
        spans: what `Completion.spans` said when this message was an answer. Only a hint: what stands here decides.

    Raises:
        PromptError: a field of another type, or calls that are not in OpenAI's form.
    """

    role: str
    content: str
    name: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    spans: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, MESSAGE, PromptError)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when to stop. `temperature=0` is greedy, and so is less than 0.00001.

    Raises:
        ConfigError: a field of another type, or out of range.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, SAMPLING)


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that the model may call.

    Args:
        name: as the model writes it.
        description: what it does, for the model.
        parameters: JSON schema of its arguments, an object.

    Raises:
        ConfigError: a field of another type, no name, or a schema that is not of JSON types.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def __post_init__(self) -> None:
        check_fields(self, TOOL)

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

    Raises:
        ConfigError: a field of another type, or out of range.
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
        check_fields(self, CONSTRAINT)


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the model.

    Args:
        messages: the conversation. Ignored when `prompt_ids` is given.
        prompt_ids: token ids to continue, instead of messages.
        agent: who calls; `None` takes a hash of the system message.
        namespace: the wall between tenants; any text but the empty one.
        reuse: overrides the engine's reuse mode for this request.
        timeout_s: seconds from submission; `None` waits for ever.
        tools: described to the model in the prompt.
        constraint: what the answer may be; `None` leaves it free.
        conversation: which thread or run this call belongs to; said again in the report.

    Raises:
        PromptError: messages or prompt ids that are none.
        ConfigError: another field of another type, or out of range.
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

    def __post_init__(self) -> None:
        check_fields(self, _PROMPT, PromptError)
        check_fields(self, REQUEST)


def require_messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A conversation as a tuple.

    Raises:
        PromptError: something in it is no `Message`.
    """
    found: tuple[Message, ...] = checked("messages", messages, _PROMPT["messages"], PromptError)
    return found


def require_tools(tools: Sequence[ToolSpec]) -> tuple[ToolSpec, ...]:
    """Tools as a tuple.

    Raises:
        ConfigError: something in it is no `ToolSpec`.
    """
    found: tuple[ToolSpec, ...] = checked("tools", tools, REQUEST["tools"])
    return found


_PROMPT = {
    "messages": checks.each(Message, "; Message(role, content) makes one"),
    "prompt_ids": checks.optional(prompt_ids),
}
REQUEST = {
    "params": checks.instance(SamplingParams),
    "agent": checks.optional(agent_name, "for a hash of the system message"),
    "namespace": checks.identity,
    "reuse": checks.optional(checks.one_of(get_args(ReuseMode)), "for the engine's mode"),
    "timeout_s": checks.optional(timeout, "to wait for ever"),
    "tools": checks.each(ToolSpec, "; ToolSpec(name, description, parameters) makes one"),
    "constraint": checks.optional(checks.instance(Constraint)),
    "conversation": checks.optional(checks.text),
}
"""What the fields of `Request` must be, its messages and prompt ids aside."""


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

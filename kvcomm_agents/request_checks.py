"""Request checks: what the fields of messages, tools and requests must be."""

from __future__ import annotations

from collections.abc import Mapping
from threading import TIMEOUT_MAX
from typing import Any, Literal, get_args

from . import checks
from .checks import Check, Unfit, shown
from .json_values import json_object

ToolChoice = Literal["auto", "required", "none"]

# What divides logits by less, or by more, leaves no numbers to draw by.
_GREEDY_BELOW, _HOTTEST = 1e-5, 1e6
_LARGEST_ID = (1 << 31) - 1


def agent_name(value: Any) -> str:
    """A check: the name of an agent. A NUL in it would tell of something else than its name."""
    name = checks.identity(value)
    if "\0" in name:
        raise Unfit("a name without NUL characters")
    return name


def timeout(value: Any) -> float:
    """A check: seconds that a request may take. No seconds are a timeout too: it is over at once."""
    return float(_SECONDS(value))


_SECONDS = checks.number(0, TIMEOUT_MAX, "a number of seconds, 0 or more")


def _temperature(value: Any) -> float:
    temperature = checks.number(0, _HOTTEST, f"a number, 0 (greedy) or more, at most {_HOTTEST:.0f}")(value)
    return 0.0 if temperature < _GREEDY_BELOW else float(temperature)


def _extra(value: Any) -> dict[str, Any]:
    extra = json_object(value, strict=False)
    if own := extra.keys() & {"role", "content", "name"}:
        raise Unfit(f"without {', '.join(sorted(own))}: a message has a field of that name")
    calls = extra.get("tool_calls") or []
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Unfit("of calls in OpenAI's form: {'tool_calls': [{'function': {'name': ..., 'arguments': {...}}}]}")
        if not isinstance(function.get("arguments"), Mapping | str):
            raise Unfit(
                f"of calls with arguments, a dict or JSON text, and those of {shown(function['name'])} are none"
            )
    return extra


def prompt_ids(value: Any) -> tuple[int, ...]:
    """A check: token ids, whatever the vocabulary."""
    given = checks.items(value, "token ids")
    if all(type(id) is int and 0 <= id <= _LARGEST_ID for id in given):
        return given
    check = checks.whole(0, _LARGEST_ID)
    try:
        return tuple(map(check, given))
    except Unfit as unfit:
        raise Unfit(f"a tuple of token ids, each {unfit}") from None


MESSAGE: dict[str, Check] = {
    "role": checks.identity,
    "content": checks.text,
    "name": checks.optional(checks.text),
    "extra": _extra,
    "spans": checks.texts,
}
SAMPLING: dict[str, Check] = {
    "max_tokens": checks.optional(checks.whole(1), "for the context's rest"),
    "temperature": _temperature,
    "top_p": checks.optional(checks.number(0, 1, "in (0, 1]", above=True)),
    "top_k": checks.optional(checks.whole(1)),
    "min_p": checks.optional(checks.number(0, 1, "in [0, 1]")),
    "repetition_penalty": checks.optional(checks.number(1e-3, 1e3, "a number from 0.001 to 1000, 1 for none")),
    "seed": checks.optional(checks.whole(-(1 << 63), (1 << 64) - 1)),
    "stop": checks.texts,
}
"""What the fields of `SamplingParams` must be."""
TOOL: dict[str, Check] = {"name": checks.identity, "description": checks.text, "parameters": json_object}
CONSTRAINT: dict[str, Check] = {
    "schema": checks.optional(json_object),
    "calls": checks.optional(checks.one_of(get_args(ToolChoice))),
    "tool": checks.optional(checks.identity),
    "parallel": checks.switch,
    "show_schema": checks.switch,
    "max_string": checks.whole(1, unit="character"),
    "repeats": checks.switch,
    "barred": checks.texts,
}

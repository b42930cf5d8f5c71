"""A constraint as a grammar in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConstraintError
from ..request import Constraint, ToolSpec
from .tool_format import CallFormat

MAX_CALLS = 8  # in one answer: a small model may never stop
_MAX_ITEMS = 64
_MAX_INTEGER = 1 << 53  # all that JSON numbers are sure to carry, and an end to digits

# Written as the models' own templates write JSON: no white space to wander off in.
_JSON = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": True,
    "coerce_one_of": True,
}
_TEXT = "TEXT: /(.|\\n)*/"
_SUBSCHEMAS = ("items", "not", "if", "then", "else", "contains")
_SUBSCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SUBSCHEMA_MAPS = ("properties", "$defs", "definitions", "patternProperties")


def grammar(
    constraint: Constraint, tools: Sequence[ToolSpec], format: CallFormat, special: Mapping[str, int] | None = None
) -> str:
    """The grammar of all answers that a constraint allows.

    Args:
        constraint: what the answer may be.
        tools: that may be called.
        format: how the model writes calls.
        special: special tokens that the format may hold, and their ids.

    Raises:
        ConstraintError: a call is required and there is no tool for it.
    """
    if constraint.calls == "required" and not tools:
        raise ConstraintError("a tool call is required, and the request has no tools")
    special = special or {}
    calls = constraint.calls if tools else None
    mark, rest = (_literal(part, special) for part in format.opening)
    spelled = mark.startswith('"')  # the mark is text, not a special token, which no text can make
    rules = []
    if calls in ("auto", "required"):
        rules += _calls(constraint, tools, format, special)
    if constraint.schema is not None:
        rules.append(f"answer: %json {_schema(constraint.schema, constraint.max_string)}")
    if calls == "required":
        start = f"{mark} {rest} calls"
    elif constraint.schema is not None:
        start = f"answer | {mark} {rest} calls" if calls == "auto" else "answer"
    elif calls == "auto":
        start = f"TEXT | head {rest} calls"
        rules += [_TEXT, f"head{'[lazy]' if spelled else ''}: TEXT {mark}"]
    elif calls == "none" and spelled:
        start = "SILENT"
        rules += [_TEXT, f"SILENT: TEXT & ~/(.|\\n)*{_regex(format.opening[0])}(.|\\n)*/"]
    else:
        start = "TEXT"
        rules.append(_TEXT)
    return "\n".join(["%llguidance {}", f"start: {start}", *rules, ""])


def _calls(
    constraint: Constraint, tools: Sequence[ToolSpec], format: CallFormat, special: Mapping[str, int]
) -> list[str]:
    """`calls`: what follows the opening of the first call, to the closing of the last."""
    chosen = [tool for tool in tools if constraint.tool in (None, tool.name)]
    if not chosen:
        names = ", ".join(tool.name for tool in tools)
        raise ConstraintError(f"the tool {constraint.tool!r} is to be called, and the request has only {names}")
    more = ""
    if constraint.parallel and format.between is not None:
        between = format.between + ("" if format.open.strip() else format.opening[0])
        more = f"({_literal(between, special)} call){{0,{MAX_CALLS - 1}}} "
    rules = [f"call_{index}" for index in range(len(chosen))]
    lines = [f"calls: call {more}{_literal(format.close, special)}", f"call: {' | '.join(rules)}"]
    for rule, tool in zip(rules, chosen, strict=True):
        head = json.dumps(format.head(tool.name))
        parameters = {"type": "object", "properties": {}, **tool.parameters}
        lines.append(f'{rule}: {head} %json {_schema(parameters, constraint.max_string)} "}}"')
    return lines


def _schema(schema: Mapping[str, Any], max_string: int) -> str:
    closed = {**bounded(schema, max_string), "x-guidance": _JSON}
    return json.dumps(closed)


def bounded(schema: Mapping[str, Any], max_string: int) -> dict[str, Any]:
    """A schema with an end to everything it leaves open, so that a small model does not run on.

    Objects with properties take no others, strings, arrays and integers get a bound. A bound that
    is there stays. Objects stay open where `allOf` joins several: each would refuse the others'.
    """
    joined = any(len(branch) > 1 for branch in _all_of(schema))
    return _bounded(schema, max_string, close=not joined)


def _bounded(schema: Mapping[str, Any], max_string: int, *, close: bool) -> dict[str, Any]:
    out = dict(schema)
    for key in _SUBSCHEMAS:
        if isinstance(out.get(key), Mapping):
            out[key] = _bounded(out[key], max_string, close=close)
    for key in _SUBSCHEMA_LISTS:
        if isinstance(out.get(key), list):
            out[key] = [_bounded(one, max_string, close=close) if isinstance(one, Mapping) else one for one in out[key]]
    for key in _SUBSCHEMA_MAPS:
        if isinstance(out.get(key), Mapping):
            out[key] = {
                name: _bounded(one, max_string, close=close) if isinstance(one, Mapping) else one
                for name, one in out[key].items()
            }
    if isinstance(out.get("additionalProperties"), Mapping):
        out["additionalProperties"] = _bounded(out["additionalProperties"], max_string, close=close)
    kinds = out.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    fixed = "enum" in out or "const" in out
    if close and "properties" in out and "patternProperties" not in out:
        out.setdefault("additionalProperties", False)
    if "string" in kinds and not fixed and "pattern" not in out and "format" not in out:
        out.setdefault("maxLength", max(max_string, int(out.get("minLength", 0))))
    if "array" in kinds and not fixed:
        out.setdefault("maxItems", max(_MAX_ITEMS, int(out.get("minItems", 0))))
    if "integer" in kinds and not fixed and "multipleOf" not in out:
        if "exclusiveMinimum" not in out:
            out.setdefault("minimum", -_MAX_INTEGER)
        if "exclusiveMaximum" not in out:
            out.setdefault("maximum", _MAX_INTEGER)
    return out


def _all_of(schema: Any) -> list[list[Any]]:
    if isinstance(schema, Mapping):
        own = [schema["allOf"]] if isinstance(schema.get("allOf"), list) else []
        return own + [found for value in schema.values() for found in _all_of(value)]
    if isinstance(schema, list):
        return [found for value in schema for found in _all_of(value)]
    return []


def _literal(text: str, special: Mapping[str, int]) -> str:
    """Text as Lark writes it; special tokens are named by id, since no text makes them."""
    if not text:
        return ""
    if not special:
        return json.dumps(text)
    cut = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    pieces = [piece for piece in re.split(f"({cut})", text) if piece]
    return " ".join(f"<[{special[piece]}]>" if piece in special else json.dumps(piece) for piece in pieces)


def _regex(text: str) -> str:
    return "".join(f"\\{char}" if char in r".^$*+?()[]{}|\/-&~#" else char for char in text)

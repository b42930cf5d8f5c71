"""A constraint as a grammar in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConstraintError
from ..request import Constraint, ToolSpec
from .schemas.refusals import Refusal
from .schemas.rules import Rules, Shape
from .tool_format import CallFormat

MAX_CALLS = 8  # in one answer: a small model may never stop
_MOST_BITS = 63  # of a rule's parameter, for tools that are called once each
_TEXT = "TEXT: /(.|\\n)*/"
_ARGUMENTS = {"type": "object", "properties": {}}  # what is not listed is no argument


class Grammar:
    """The grammar of all answers that a constraint allows.

    Args:
        constraint: what the answer may be.
        tools: of the request.
        format: how the model writes calls.
        special: special tokens that the format may hold, and their ids.

    Attributes:
        text: in llguidance's dialect of Lark.
        shapes: of its rules of JSON.
        answer: the rule of an answer that is JSON; `None` if there is none.
        arguments: the rules of calls' arguments, by the tools' names.

    Raises:
        ConstraintError: a call is required and there is no tool for it, or a schema makes no grammar.
    """

    def __init__(
        self,
        constraint: Constraint,
        tools: Sequence[ToolSpec],
        format: CallFormat,
        special: Mapping[str, int] | None = None,
    ) -> None:
        self.shapes: dict[str, Shape] = {}
        self.answer: str | None = None
        self.arguments: dict[str, str] = {}
        self._constraint, self._format, self._special = constraint, format, special or {}
        self._lines: list[str] = []
        if constraint.calls == "required" and not tools:
            raise ConstraintError("a tool call is required, and the request has no tools")
        start = self._start(tools)
        self.text = "\n".join(["%llguidance {}", f"start: {start}", *self._lines, ""])

    def _start(self, tools: Sequence[ToolSpec]) -> str:
        constraint, format = self._constraint, self._format
        chosen = _callable(constraint, tools)
        calls = constraint.calls if tools else None
        if calls == "auto" and not chosen:
            calls = "none"
        mark, rest = (_literal(part, self._special) for part in format.opening)
        spelled = mark.startswith('"')  # the mark is text, not a special token, which no text can make
        if calls in ("auto", "required"):
            self._calls(chosen)
        if constraint.schema is not None:
            self.answer = self._json("the schema", constraint.schema, "a")
        if calls == "required":
            return f"{mark} {rest} calls"
        if self.answer is not None:
            return f"{self.answer} | {mark} {rest} calls" if calls == "auto" else self.answer
        if calls == "auto":
            self._lines += [_TEXT, f"head{'[lazy]' if spelled else ''}: TEXT {mark}"]
            return f"TEXT | head {rest} calls"
        self._lines.append(_TEXT)
        if calls == "none" and spelled:
            self._lines.append(f"SILENT: TEXT & ~/(.|\\n)*{_regex(format.opening[0])}(.|\\n)*/")
            return "SILENT"
        return "TEXT"

    def _calls(self, tools: Sequence[ToolSpec]) -> None:
        """`calls`: what follows the opening of the first call, to the closing of the last."""
        constraint, format = self._constraint, self._format
        for index, tool in enumerate(tools):
            whose = f"the parameters of the tool {tool.name!r}"
            rule = self.arguments[tool.name] = self._json(whose, tool.parameters, f"t{index}_", _ARGUMENTS)
            self._lines.append(f'call_{index}: {json.dumps(format.head(tool.name))} {rule} "}}"')
        close = _literal(format.close, self._special) or '""'
        any_call = " | ".join(f"call_{index}" for index in range(len(tools)))
        between = ""
        if constraint.parallel and format.between is not None:
            text = format.between + ("" if format.open.strip() else format.opening[0])
            between = _literal(text, self._special)
        once = constraint.calls == "required" and not constraint.repeats
        if not between or (once and len(tools) > _MOST_BITS):
            self._lines.append(f"calls: ({any_call}) {close}")
        elif once:  # a small model would go on with the tool that it has just called
            more = [
                f"{between} call_{at} more::set_bit({at}) %if {_may_follow(at, len(tools))}" for at in range(len(tools))
            ]
            self._lines += [
                f"calls: {' | '.join(f'call_{at} more::{1 << at}' for at in range(len(tools)))}",
                f"more::_: {close} | {' | '.join(more)}",
            ]
        else:
            self._lines += [f"calls: call ({between} call){{0,{MAX_CALLS - 1}}} {close}", f"call: {any_call}"]

    def _json(self, whose: str, schema: Mapping[str, Any], prefix: str, also: Mapping[str, Any] | None = None) -> str:
        """The rule of values of a schema, and of another one that they must obey too."""
        rules = Rules(schema, self._constraint.max_string, prefix)
        try:
            root = rules.root(also)
        except Refusal as refusal:
            raise ConstraintError(f"{whose} cannot be followed: {refusal}") from refusal
        except RecursionError:
            raise ConstraintError(f"{whose} cannot be followed: nested too deep, or a part of itself") from None
        self._lines += rules.lines
        self.shapes |= rules.shapes
        return root


def _callable(constraint: Constraint, tools: Sequence[ToolSpec]) -> list[ToolSpec]:
    """The tools that may be called."""
    names = ", ".join(tool.name for tool in tools)
    if constraint.tool is not None and all(tool.name != constraint.tool for tool in tools):
        raise ConstraintError(f"the tool {constraint.tool!r} is to be called, and the request has only {names}")
    chosen = [tool for tool in tools if constraint.tool in (None, tool.name) and tool.name not in constraint.barred]
    if constraint.calls == "required" and tools and not chosen:
        raise ConstraintError(f"a tool is to be called, and all that may be are barred: {names}")
    return chosen


def _may_follow(at: int, tools: int) -> str:
    """The condition that a tool was not called yet, nor as many as an answer may have calls."""
    return f"and(bit_clear({at}), bit_count_lt([0:{tools}], {MAX_CALLS}))"


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

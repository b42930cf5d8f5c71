"""Tools without a framework: what the prompt says of them, and calls read from the produced text."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..request import Constraint, Message, ToolChoice, ToolSpec
from .tool_format import PLAIN, CallFormat

__all__ = [
    "PLAIN",
    "Call",
    "CallFormat",
    "CallParser",
    "CallPiece",
    "Parsed",
    "ToolChoice",
    "ToolSpec",
    "instructed",
    "parse",
    "plain_turns",
]

TOOLS_TEXT = """\
You can call tools. To call one, write
<tool_call>{"name": "the tool's name", "arguments": {its arguments as JSON}}</tool_call>
and for several, one such line each. You are then given the results between <tool_response> and \
</tool_response>.

The tools are:"""
SCHEMA_TEXT = "Answer with JSON that follows this schema:"


def instructed(
    messages: Sequence[Message], tools: Sequence[ToolSpec], constraint: Constraint | None, format: CallFormat
) -> list[Message]:
    """Messages whose system message also says what the template does not: the tools, the schema of the answer."""
    blocks = []
    if tools and not format.native:
        blocks.append("\n".join([TOOLS_TEXT, *(_json(tool.as_openai()["function"]) for tool in tools)]))
    if constraint is not None and constraint.schema is not None and constraint.show_schema:
        blocks.append(f"{SCHEMA_TEXT}\n{_json(constraint.schema)}")
    if not blocks:
        return list(messages)
    text = "\n\n".join(blocks)
    if messages and messages[0].role == "system":
        return [replace(messages[0], content=f"{messages[0].content}\n\n{text}"), *messages[1:]]
    return [Message("system", text), *messages]


def plain_turns(messages: Sequence[Message]) -> list[Message]:
    """Calls and results of a history as text, for a template that knows neither."""
    turns = []
    for message in messages:
        if message.role == "tool":
            content = f"<tool_response>{message.content}</tool_response>"
            turns.append(Message("user", content, name=message.name))
        elif calls := message.extra.get("tool_calls"):
            lines = [message.content] if message.content else []
            for call in calls:
                function = call["function"]
                written = {"name": function["name"], PLAIN.arguments: function["arguments"]}
                lines.append(f"{PLAIN.open}{_json(written)}{PLAIN.close}")
            extra = {key: value for key, value in message.extra.items() if key != "tool_calls"}
            turns.append(replace(message, content="\n".join(lines), extra=extra))
        else:
            turns.append(message)
    return turns


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call, as it is written.

    Args:
        index: of the call in the answer.
        arguments: the next piece of the arguments' JSON text.
        name: of the tool; only in a call's first piece.
        id: of the call; only in its first piece.
    """

    index: int
    arguments: str
    name: str | None = None
    id: str | None = None


@dataclass(slots=True)
class Call:
    """A call as it was written; `complete` if its arguments came to their end."""

    id: str
    name: str
    arguments: str = ""
    complete: bool = False

    def decoded(self) -> dict[str, Any] | None:
        """The arguments, or `None` if they are no JSON object."""
        try:
            value = json.loads(self.arguments)
        except json.JSONDecodeError:
            return None
        return value if isinstance(value, dict) and self.complete else None


@dataclass(slots=True)
class Parsed:
    """An answer taken apart.

    Args:
        text: what is no part of a call, and the beginning of a call that was cut off before its arguments.
        calls: in order. Only the last may be incomplete.
        cut: it ends within a call.
    """

    text: str = ""
    calls: list[Call] = field(default_factory=list)
    cut: bool = False


class CallParser:
    """Reads calls out of an answer while it is written.

    An answer that ends right behind the arguments of a call that it made before was stopped there for that
    reason: it has that call once.

    Args:
        format: how the model writes them.
    """

    def __init__(self, format: CallFormat) -> None:
        self._format = format
        self._mark = format.opening[0]
        key = re.escape(format.arguments)
        self._head = re.compile(rf'\{{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"{key}"\s*:\s*')
        self._held = ""  # text that may begin a mark, or what stands between two arguments
        self._calling = False
        self._open: Call | None = None
        self._told = True  # the last call was handed on; not if it may come to be one that was made before
        self._scan = _ObjectScan()
        self.parsed = Parsed()

    def push(self, text: str) -> tuple[str, list[CallPiece]]:
        """Text that is no part of a call, and pieces of calls."""
        self._held += text
        said = "" if self._calling else self._speak()
        pieces: list[CallPiece] = []
        while self._calling and self._held:
            if self._open is None:
                if not self._told:  # the answer goes on: a repeat that is meant
                    pieces.append(self._piece(self.parsed.calls[-1], self.parsed.calls[-1].arguments))
                if not self._begin():
                    break
            piece = None if self._open is None else self._go_on(self._open)
            pieces += [] if piece is None else [piece]
        self.parsed.text += said
        return said, pieces

    def flush(self) -> tuple[str, list[CallPiece]]:
        """What was held back. A call that is not complete stays so; one without arguments yet is text."""
        said, pieces = self._held, []
        if self._calling:
            said = _behind(said, self._format) if self._open is None else ""
            self.parsed.cut = bool(said) or self._open is not None
        if self._open is not None and not self._told:
            pieces = [self._piece(self._open, self._open.arguments)]
        elif not self._told:
            self.parsed.calls.pop()
            self._told = True
        self._held = ""
        self.parsed.text += said
        return said, pieces

    def _speak(self) -> str:
        at = self._held.find(self._mark)
        if at >= 0:
            self._calling = True
            said, self._held = self._held[:at], self._held[at:]
            return said
        keep = next((n for n in range(len(self._mark) - 1, 0, -1) if self._held.endswith(self._mark[:n])), 0)
        cut = len(self._held) - keep
        said, self._held = self._held[:cut], self._held[cut:]
        return said

    def _begin(self) -> bool:
        """Whether the next call has come to its arguments."""
        found = self._head.search(self._held)
        if found is None:
            return False
        self._held = self._held[found.end() :]
        self._open = Call(f"call_{uuid.uuid4().hex[:24]}", json.loads(found[1]))
        self._scan = _ObjectScan()
        self.parsed.calls.append(self._open)
        self._told = False
        return True

    def _go_on(self, call: Call) -> CallPiece | None:
        """The next piece of the open call, if it is one to hand on already."""
        length = self._scan.push(self._held)
        piece, self._held = self._held[:length], self._held[length:]
        piece = piece if call.arguments else piece.lstrip()  # what stands before the object, if it came on its own
        call.arguments += piece
        call.complete = self._scan.done
        if call.complete:
            self._open = None
        return None if self._echoes(call) else self._piece(call, piece if self._told else call.arguments)

    def _piece(self, call: Call, arguments: str) -> CallPiece:
        index, told, self._told = len(self.parsed.calls) - 1, self._told, True
        return CallPiece(index, arguments) if told else CallPiece(index, arguments, call.name, call.id)

    def _echoes(self, call: Call) -> bool:
        """Whether a call is so far, or as a whole, one that was made before."""
        before = [other.arguments for other in self.parsed.calls[:-1] if other.name == call.name]
        if call.complete:
            return call.arguments in before
        return any(arguments.startswith(call.arguments) for arguments in before)


def unclosable(arguments: str) -> str:
    """What behind a piece of a JSON object makes it one that no closing brackets complete."""
    scan = _ObjectScan()
    scan.push(arguments)
    string = '"' * (2 if scan.escaped else 1) if scan.quoted else ""
    return string + ("]" if scan.innermost == "{" else "}")


def _behind(text: str, format: CallFormat) -> str:
    """What was begun of a call, without what ended the one before it."""
    text = text.removeprefix("}")
    for end in sorted({format.between or "", format.close}, key=len, reverse=True):
        if end and text.startswith(end):
            return text[len(end) :].strip()
        if end.startswith(text):
            return ""
    return text.strip()


class _ObjectScan:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self.quoted = self.escaped = self.done = False

    @property
    def innermost(self) -> str:
        """The bracket that was opened last and is not closed; empty if none is."""
        return self._open[-1] if self._open else ""

    def push(self, text: str) -> int:
        """How many of these characters belong to the object."""
        for index, char in enumerate(text):
            if self.quoted:
                if self.escaped:
                    self.escaped = False
                elif char == "\\":
                    self.escaped = True
                elif char == '"':
                    self.quoted = False
            elif char == '"':
                self.quoted = True
            elif char in "{[":
                self._open.append(char)
            elif char in "}]" and self._open:
                self._open.pop()
                if not self._open:
                    self.done = True
                    return index + 1
        return len(text)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # escapes cost tokens, and small models copy them


def parse(text: str, format: CallFormat) -> Parsed:
    """A whole answer taken apart."""
    parser = CallParser(format)
    parser.push(text)
    parser.flush()
    return parser.parsed

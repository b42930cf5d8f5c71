"""Progress: how far a constrained answer has come, and what its grammar cannot tell by itself."""

from __future__ import annotations

import codecs

from ..request import Constraint
from .grammar import Grammar
from .repeats import Repeats
from .tool_calls import CallParser
from .tool_format import CallFormat


class Progress:
    """Follows the text of one answer.

    Args:
        constraint: what the answer may be.
        grammar: of the constraint.
        format: how the model writes calls.
    """

    def __init__(self, constraint: Constraint, grammar: Grammar, format: CallFormat) -> None:
        self._grammar = grammar
        self._calls = CallParser(format) if grammar.arguments else None
        self._once = not constraint.repeats
        self._answer = None if grammar.answer is None else Repeats(grammar.shapes, grammar.answer)
        self._arguments: Repeats | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.ended = False
        """A call was made again: the answer ends here."""

    def push(self, piece: bytes) -> None:
        """Take in the bytes of a token."""
        text = self._decoder.decode(piece)
        if self._answer is not None:
            self._answer.push(text)
        if self._calls is None:
            return
        for part in self._calls.push(text)[1]:
            if part.name is not None:
                self._arguments = Repeats(self._grammar.shapes, self._grammar.arguments[part.name])
            if self._arguments is not None:
                self._arguments.push(part.arguments)
        made = self._calls.parsed.calls
        if made and made[-1].complete:
            last = (made[-1].name, made[-1].arguments)
            self.ended = self._once and any((call.name, call.arguments) == last for call in made[:-1])

    @property
    def repeats(self) -> Repeats | None:
        """What must not come again in the JSON that is being written; `None` if there is nothing to look for."""
        made = self._calls.parsed.calls if self._calls is not None else []
        current = self._answer if not made else None if made[-1].complete else self._arguments
        return current if current is not None and current.watching else None

    @property
    def begun(self) -> bytes:
        """Bytes of a character that is not whole, and not yet in `repeats`."""
        return self._decoder.getstate()[0]

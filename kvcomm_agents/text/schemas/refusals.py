"""Refusals: why a schema, or a part of one, makes no grammar."""

from __future__ import annotations


class Refusal(Exception):
    """A part of a schema makes no grammar.

    Args:
        where: of the part, as a JSON pointer behind `#`.
        reason: what is wrong with it, as the end of a sentence that begins with the place.
    """

    def __init__(self, where: str, reason: str) -> None:
        self.where, self.reason = where, reason
        super().__init__(f"{where} {reason}")


class Unsatisfiable(Refusal):
    """No value obeys it. Fine for what may be left out: an optional property, one of several alternatives."""


class Unsupported(Refusal):
    """Some values obey it, but no grammar says which: what it belongs to is refused."""


class UnsupportedPattern(Unsupported):
    """A regular expression that looks around. It may be left out where it is one of several alternatives."""

"""Terminals: the parts of a grammar that llguidance matches as one piece, each tried before it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ...extras import require_llguidance
from .refusals import Unsatisfiable, Unsupported

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_HEAD = "%llguidance {}\n"


class Terminals:
    """Names the terminals of a schema.

    Args:
        prefix: of their names.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.upper()
        self._names: dict[str, str] = {}

    @property
    def lines(self) -> list[str]:
        """Their definitions."""
        return [f"{name}: {body}" for body, name in self._names.items()]

    def of_regex(self, body: str, where: str) -> str:
        """The name of a terminal.

        Args:
            body: regular expressions, joined with `&`, `|` and `~`.
            where: the place in the schema that it is from.

        Raises:
            Unsatisfiable: nothing matches it.
            Unsupported: llguidance refuses it.
        """
        _try(f"{_HEAD}start: T\nT: {body}\n", where)
        return self._name(body)

    def of_schema(self, schema: Mapping[str, Any], where: str) -> str:
        """The body of a rule of scalars.

        Args:
            schema: in the dialect that llguidance compiles itself.
            where: the place in the schema that it is from.

        Raises:
            Unsatisfiable: no value obeys it.
            Unsupported: llguidance refuses it.
        """
        body = f"%json {json.dumps({**schema, 'x-guidance': {'whitespace_flexible': False}})}"
        _try(f"{_HEAD}start: {body}\n", where)
        return body

    def _name(self, body: str) -> str:
        return self._names.setdefault(body, f"{self._prefix}T{len(self._names)}")


def _try(grammar: str, where: str) -> None:
    error, is_empty = _outcome(grammar)
    if is_empty:
        raise Unsatisfiable(where, f"allows nothing{error and ': '}{error}")
    if error:
        raise Unsupported(where, f"makes no grammar: {error}")


@lru_cache(maxsize=4096)
def _outcome(grammar: str) -> tuple[str, bool]:
    """What llguidance says against a grammar, and whether nothing matches it."""
    require_llguidance()
    from llguidance import LLMatcher

    matcher = LLMatcher(_bytes(), grammar, log_level=0)
    if matcher.is_error():
        error = str(matcher.get_error()).partition("failed to compile JSON schema: ")
        reason = (error[2] or error[0]).partition("\n   1 |")[0].strip()
        return reason.removeprefix("Unsatisfiable schema: ")[:200], reason.startswith("Unsatisfiable schema: ")
    allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
    return "", not allowed[:256].any()


@lru_cache(maxsize=1)
def _bytes() -> LLTokenizer:
    """A tokenizer of bytes: what a grammar can begin with does not depend on the model's."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")

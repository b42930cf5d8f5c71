"""JSON values: what apps put into tools, schemas and arguments, in types that JSON knows."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import numbers
from collections.abc import Mapping, Set
from decimal import Decimal
from pathlib import PurePath
from typing import Any
from uuid import UUID

from .checks import Unfit, plain, shown, whole_characters

DEEPEST = 100
"""Levels of nesting that are taken: deeper ones end in somebody's recursion."""
_MOST_BITS = 14_000  # Python itself writes no longer whole numbers
_MOST_VALUES = 500_000  # what refers to one thing many times, level by level, would have no end


def json_object(value: Any, *, strict: bool = True) -> dict[str, Any]:
    """A check: a mapping as a `dict` of JSON types, all new.

    Dates, times and UUIDs become strings, decimals and numpy's numbers become numbers, pydantic models and
    dataclasses become objects.

    Args:
        value: anything.
        strict: NaN and infinity, which Python's own JSON writes though no other reads them, are refused.

    Raises:
        Unfit: it is no mapping, or holds what has no form in JSON.
    """
    if not isinstance(value, Mapping):
        raise Unfit("a dict")
    converted: dict[str, Any] = _Conversion(strict).convert(value)
    return converted


class _Conversion:
    """One value on its way to JSON."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._count = 0

    def convert(self, value: Any, depth: int = 0) -> Any:
        self._count += 1
        if depth > DEEPEST or self._count > _MOST_VALUES:
            raise Unfit(f"nested at most {DEEPEST} levels deep; it is too large, or refers to itself")
        value = _scalar(plain(value))
        if isinstance(value, float) and self._strict and not math.isfinite(value):
            raise Unfit("of JSON types, which know neither NaN nor infinity")
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return whole_characters(value)
        if isinstance(value, Mapping):
            return {_key(key): self.convert(item, depth + 1) for key, item in value.items()}
        if isinstance(value, Set):
            value = sorted(value, key=repr)
        if isinstance(value, list | tuple):
            return [self.convert(item, depth + 1) for item in value]
        if callable(dump := getattr(value, "model_dump", None)) and not isinstance(value, type):  # pydantic's
            return self.convert(dump(mode="json"), depth + 1)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return self.convert(fields, depth + 1)
        if callable(listed := getattr(value, "tolist", None)):  # an array
            return self.convert(listed(), depth + 1)
        raise Unfit(f"of JSON types, and {shown(value)} in it is a {type(value).__name__}")


def _scalar(value: Any) -> Any:
    """A value that JSON writes as a number or a string, as that."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, numbers.Integral):
        if int(value).bit_length() > _MOST_BITS:
            raise Unfit("of JSON types, and a number in it has too many digits")
        return int(value)
    if isinstance(value, Decimal | numbers.Real):
        return float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, UUID | PurePath):
        return str(value)
    return value


def _key(key: Any) -> str:
    name = plain(key)
    if isinstance(name, str):
        return whole_characters(name)
    if name is None or isinstance(name, bool | int | float):
        return json.dumps(name)
    name = _scalar(name)
    if isinstance(name, str):
        return name
    raise Unfit(f"of JSON types, and its key {shown(key)} is a {type(key).__name__}")

"""Branch: what a schema allows, once its alternatives are taken one by one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from .document import Joint
from .refusals import Unsatisfiable

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
Limit = tuple[Fraction, bool]
"""A bound of numbers, and whether it is itself excluded."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One way to obey a schema. What is empty or `None` is left open.

    Args:
        where: the place in the schema that it is from.
        types: JSON's; `number` includes `integer`.
        values: the only ones.
        low, high, step: of numbers, which are multiples of `step`.
        min_length, max_length, patterns, formats: of strings, which obey all patterns and formats.
        prefix, items: of an array's first items, and of the others.
        min_items, max_items, unique: of arrays.
        properties, patterned, others: of an object's properties by name, by pattern, and of those that are
            neither.
        lists: it says which properties there are, though that may be none.
        names: of an object's keys.
        required, min_properties, max_properties: of objects.
    """

    where: str
    types: frozenset[str] | None = None
    values: tuple[Any, ...] | None = None
    low: Limit | None = None
    high: Limit | None = None
    step: Fraction | None = None
    min_length: int = 0
    max_length: int | None = None
    patterns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    prefix: tuple[Joint, ...] = ()
    items: Joint | None = None
    min_items: int = 0
    max_items: int | None = None
    unique: bool = False
    properties: Mapping[str, Joint] = field(default_factory=dict)
    patterned: Mapping[str, Joint] = field(default_factory=dict)
    others: Joint | None = None
    lists: bool = False
    names: Joint = ()
    required: tuple[str, ...] = ()
    min_properties: int = 0
    max_properties: int | None = None

    @property
    def is_number(self) -> bool:
        """Whether it says something of numbers."""
        return (self.low, self.high, self.step) != (None, None, None)

    @property
    def is_string(self) -> bool:
        """Whether it says something of strings."""
        return bool(self.min_length or self.max_length is not None or self.patterns or self.formats)

    @property
    def is_array(self) -> bool:
        """Whether it says something of arrays."""
        bounded = bool(self.min_items) or self.max_items is not None
        return bool(self.prefix) or self.items is not None or bounded or self.unique

    @property
    def is_object(self) -> bool:
        """Whether it says something of objects."""
        bounded = bool(self.min_properties) or self.max_properties is not None
        return bool(self.lists or self.patterned or self.others is not None or self.names or self.required or bounded)

    @property
    def kinds(self) -> frozenset[str]:
        """The types of the values that are written for it: without a `type`, those that it says something of."""
        if self.types is not None:
            return self.types
        said = {"number": self.is_number, "string": self.is_string, "array": self.is_array, "object": self.is_object}
        return frozenset(kind for kind, is_said in said.items() if is_said) or frozenset(TYPES)

    @property
    def is_anything(self) -> bool:
        """Whether it says nothing at all."""
        return self.types is None and self.values is None and self.kinds == frozenset(TYPES)

    def of_property(self, name: str) -> Joint:
        """What the value of a property must obey."""
        joint = tuple(self.properties.get(name, ()))
        matching = [joint for pattern, joint in self.patterned.items() if _matches(pattern, name)]
        if name not in self.properties and not matching:
            return self.others or ()
        return joint + tuple(node for joint in matching for node in joint)

    def of_item(self, index: int) -> Joint:
        """What the item at an index must obey."""
        return self.prefix[index] if index < len(self.prefix) else self.items or ()

    def admits(self, value: Any) -> bool:
        """Whether a value obeys it, as far as it says so itself: items and properties are not looked into."""
        if self.types is not None and not any(_is(value, kind) for kind in self.types):
            return False
        if self.values is not None and not any(same(value, other) for other in self.values):
            return False
        if _is(value, "number"):
            return self._admits_number(Fraction(str(value)))
        if isinstance(value, str):
            lengths = self.min_length <= len(value) <= (math.inf if self.max_length is None else self.max_length)
            return lengths and all(_matches(pattern, value) for pattern in self.patterns)
        if isinstance(value, list):
            lengths = self.min_items <= len(value) <= (math.inf if self.max_items is None else self.max_items)
            return lengths and not (self.unique and len({literal(item) for item in value}) < len(value))
        if isinstance(value, dict):
            most = math.inf if self.max_properties is None else self.max_properties
            return self.min_properties <= len(value) <= most and all(name in value for name in self.required)
        return True

    def _admits_number(self, number: Fraction) -> bool:
        if self.low is not None and (number < self.low[0] or self.low == (number, True)):
            return False
        if self.high is not None and (number > self.high[0] or self.high == (number, True)):
            return False
        return self.step is None or (number / self.step).denominator == 1

    def merged(self, other: Branch) -> Branch:
        """What obeys both.

        Raises:
            Unsatisfiable: nothing does, for reasons that are plain to see.
        """
        types = _meet(self, other)
        values = self.values if other.values is None else other.values
        if self.values is not None and other.values is not None:
            values = tuple(value for value in self.values if any(same(value, one) for one in other.values))
        names = list(dict.fromkeys([*self.properties, *other.properties]))
        patterns = list(dict.fromkeys([*self.patterned, *other.patterned]))
        length = max(len(self.prefix), len(other.prefix))
        return replace(
            self,
            types=types,
            values=values,
            low=_tighter(self.low, other.low, upper=False),
            high=_tighter(self.high, other.high, upper=True),
            step=_common_multiple(self.step, other.step),
            min_length=max(self.min_length, other.min_length),
            max_length=_least(self.max_length, other.max_length),
            patterns=_union(self.patterns, other.patterns),
            formats=_union(self.formats, other.formats),
            prefix=tuple(self.of_item(index) + other.of_item(index) for index in range(length)),
            items=_both(self.items, other.items),
            min_items=max(self.min_items, other.min_items),
            max_items=_least(self.max_items, other.max_items),
            unique=self.unique or other.unique,
            properties={name: self.of_property(name) + other.of_property(name) for name in names},
            patterned={pattern: self._of_pattern(pattern) + other._of_pattern(pattern) for pattern in patterns},
            others=_both(self.others, other.others),
            lists=self.lists or other.lists,
            names=self.names + other.names,
            required=_union(self.required, other.required),
            min_properties=max(self.min_properties, other.min_properties),
            max_properties=_least(self.max_properties, other.max_properties),
        )

    def _of_pattern(self, pattern: str) -> Joint:
        return self.patterned.get(pattern, self.others or ())


def literal(value: Any) -> str:
    """A value as JSON, as grammars and templates write it. Equal values have one text."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, list):
        return f"[{', '.join(literal(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(str(key))}: {literal(item)}' for key, item in value.items())}}}"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal as JSON has it: `1` is `1.0`, and not `true`."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return literal(one) == literal(other)


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (kind == "number" or Fraction(str(value)).denominator == 1)
    types = {"null": type(None), "boolean": bool, "string": str, "array": list, "object": dict}
    return isinstance(value, types[kind])


def _meet(one: Branch, other: Branch) -> frozenset[str] | None:
    if one.types is None or other.types is None:
        return one.types if other.types is None else other.types
    types = {*one.types & other.types}
    if "number" in one.types | other.types:
        types |= {"integer"} & (one.types | other.types)
    if not types:
        raise Unsatisfiable(other.where, f"asks for {_listed(other.types)} where only {_listed(one.types)} may be")
    return frozenset(types)


def _listed(types: Iterable[str]) -> str:
    return " or ".join(kind for kind in TYPES if kind in types)


def _matches(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:  # of another dialect: the grammar decides
        return True


def _tighter(one: Limit | None, other: Limit | None, *, upper: bool) -> Limit | None:
    if one is None or other is None:
        return other if one is None else one
    if one[0] == other[0]:
        return one[0], one[1] or other[1]
    return min(one, other) if upper else max(one, other)


def _common_multiple(one: Fraction | None, other: Fraction | None) -> Fraction | None:
    if one is None or other is None:
        return other if one is None else one
    numerator = math.lcm(one.numerator * other.denominator, other.numerator * one.denominator)
    return Fraction(numerator, one.denominator * other.denominator)


def _least(one: int | None, other: int | None) -> int | None:
    return min((bound for bound in (one, other) if bound is not None), default=None)


def _both(one: Joint | None, other: Joint | None) -> Joint | None:
    return other if one is None else one if other is None else one + other


def _union(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*one, *other]))

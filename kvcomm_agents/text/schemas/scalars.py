"""Scalars: strings and numbers as llguidance's JSON writes them, each with an end."""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction
from typing import Any

from .branch import Branch
from .members import quoted
from .patterns import FORMATS, checked, least_length, lengths_regex, quoted_regex
from .refusals import Unsatisfiable, Unsupported, UnsupportedPattern
from .terminals import Terminals

_LONGEST = 65_536  # characters: no answer has room for more
_SHORT, _LONG = 64, 1024  # characters that any format needs at most, and that some could fill
_LARGEST_INTEGER = 1 << 53  # all that JSON numbers are sure to carry
_LARGEST_NUMBER = 10**15
_LARGEST_BOUND = 10**18  # that a schema can set
_PLACES = Fraction(1, 10**9)
_FEW = 64  # numbers that are written out one by one
_MOST_UNITS = (1 << 32) - 1  # in a step, of its last decimal place: llguidance has no more


def string_body(branch: Branch, max_string: int, terminals: Terminals) -> str:
    """The body of a rule of the strings of a branch.

    Args:
        branch: that allows strings.
        max_string: characters where it sets no bound.
        terminals: of the schema.

    Raises:
        Unsatisfiable: there are none.
        Unsupported: a pattern that looks around, or that llguidance refuses.
    """
    least, most = branch.min_length, branch.max_length
    if most is not None and least > most:
        raise Unsatisfiable(branch.where, f"asks for at least {least} characters and at most {most}")
    if least > _LONGEST:
        raise Unsupported(branch.where, f"has minLength={least}, and no answer is that long")
    patterns = [checked(pattern, branch.where) for pattern in branch.patterns]
    formats = [f"^(?:{FORMATS[name]})$" for name in branch.formats if name in FORMATS]
    if formats:  # without characters to escape
        most = max(max_string, least, _SHORT) if most is None else most
        with contextlib.suppress(UnsupportedPattern):
            expressions = [quoted_regex(pattern, branch.where) for pattern in [*formats, *patterns]]
            expressions += [lengths_regex(least, most)] if least > 1 or most < _LONG else []
            return terminals.of_regex(" & ".join(expressions), branch.where)
    if most is None:
        needed = max((least_length(pattern) for pattern in patterns), default=0)
        most = max(max_string, least, min(needed, _LONGEST))
    schema: dict[str, Any] = {"type": "string", "maxLength": min(most, _LONGEST)}
    if least:
        schema["minLength"] = least
    bound = [*patterns, *formats]
    if len(bound) == 1:
        schema["pattern"] = bound[0]
    elif bound:
        schema["allOf"] = [{"type": "string", "pattern": pattern} for pattern in bound]
    return terminals.of_schema(schema, branch.where)


def number_bodies(branch: Branch, terminals: Terminals, *, integer: bool) -> list[str]:
    """Bodies of a rule of the numbers of a branch: written out if they are few.

    Raises:
        Unsatisfiable: there are none.
        Unsupported: only numbers that are too large, or in steps that are too fine.
    """
    step = branch.step or (Fraction(1) if integer else _PLACES)
    if integer:
        step = Fraction(math.lcm(step.numerator, step.denominator), step.denominator)
    low, high = _bounds(branch, integer=integer)
    first, last = math.ceil(low / step), math.floor(high / step)
    first += branch.low == (first * step, True)
    last -= branch.high == (last * step, True)
    if first > last:
        raise Unsatisfiable(branch.where, "leaves no number that can be written")
    if last - first < _FEW and (branch.step is not None or integer):
        return [quoted(_plain(count * step)) for count in range(first, last + 1)]
    if integer:  # llguidance reads bounds as floats
        low, high = Fraction(_float_at(first * step, math.inf)), Fraction(_float_at(last * step, -math.inf))
    if integer and step == 1:
        schema: dict[str, Any] = {"type": "integer", "minimum": int(low), "maximum": int(high)}
        return [terminals.of_schema(schema, branch.where)]
    step = _readable(step, branch)
    bounds = {"minimum": low, "maximum": high}
    schema = {"type": "integer" if integer else "number", "multipleOf": _number(step)}
    for (key, bound), limit in zip(bounds.items(), (branch.low, branch.high), strict=True):
        excluded = limit == (bound, True)
        schema[f"exclusive{key.capitalize()}" if excluded else key] = _number(bound)
    return [terminals.of_schema(schema, branch.where)]


def _bounds(branch: Branch, *, integer: bool) -> tuple[Fraction, Fraction]:
    """The least and the largest number that are written: those of the branch, else what any program can read."""
    largest = _LARGEST_INTEGER if integer else _LARGEST_NUMBER
    low = Fraction(-largest) if branch.low is None else branch.low[0]
    high = Fraction(largest) if branch.high is None else branch.high[0]
    if branch.low is None and high <= low:
        low = Fraction(-_LARGEST_BOUND)
    if branch.high is None and low >= high:
        high = Fraction(_LARGEST_BOUND)
    if low > _LARGEST_BOUND or high < -_LARGEST_BOUND:
        raise Unsupported(branch.where, f"asks for numbers beyond {_LARGEST_BOUND:.0e}")
    return max(low, Fraction(-_LARGEST_BOUND)), min(high, Fraction(_LARGEST_BOUND))


def _readable(step: Fraction, branch: Branch) -> Fraction:
    """The step, or the least multiple of it that llguidance reads from a float without an error."""
    for count in range(1, 1000):
        value, places = float(step * count), 0
        while not value.is_integer() and places < 30:
            value, places = value * 10, places + 1
        if value <= _MOST_UNITS and Fraction(int(value), 10**places) == step * count:
            return step * count
    raise Unsupported(branch.where, f"has steps of {float(step)!r}, which are too fine")


def _float_at(value: Fraction, toward: float) -> float:
    """The float nearest to an integer, on that side of it."""
    nearest = float(value)
    beyond = nearest < value if toward > 0 else nearest > value
    return math.nextafter(nearest, toward) if beyond else nearest


def _number(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)


def _plain(value: Fraction) -> str:
    """A number in digits, without an exponent."""
    if value.denominator == 1:
        return str(value)
    places = next(places for places in range(1, 400) if (value * 10**places).denominator == 1)
    return f"{'-' if value < 0 else ''}{_digits(abs(value), places)}"


def _digits(value: Fraction, places: int) -> str:
    digits = str(int(value * 10**places)).rjust(places + 1, "0")
    return f"{digits[:-places]}.{digits[-places:]}"

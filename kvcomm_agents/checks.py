"""Checks: what a value must be where it enters the package, and the error that names it if it is not.

A check takes a value and gives it back in its plain Python type, or raises `Unfit`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from decimal import Decimal
from enum import Enum
from typing import Any

from .errors import ConfigError, KVCommError

Check = Callable[[Any], Any]

MOST = (1 << 63) - 1
"""The largest whole number that is taken, if a check names none."""


class Unfit(ValueError):
    """A value is not what it must be; the text goes on behind "must be"."""


def checked(name: str, value: Any, check: Check, error: type[KVCommError] = ConfigError) -> Any:
    """The value, as the check gives it.

    Args:
        name: of the field or setting, as its user wrote it.
        value: anything.
        check: what it must pass.
        error: raised if it does not.

    Raises:
        ConfigError: or `error`: with the name, the value and what it must be.
    """
    try:
        return check(value)
    except Unfit as unfit:
        raise error(f"{name}={shown(value)} must be {unfit}") from None


def check_fields(instance: Any, checks: Mapping[str, Check], error: type[KVCommError] = ConfigError) -> None:
    """Check fields of a frozen dataclass, and put them into their plain types.

    Raises:
        ConfigError: or `error`: as `checked`.
    """
    for name, check in checks.items():
        value = getattr(instance, name)
        plain = checked(name, value, check, error)
        if plain is not value:
            object.__setattr__(instance, name, plain)


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 80
_brief.maxlevel = 3


def shown(value: Any) -> str:
    """A value as an error shows it: short, whatever it is."""
    try:
        return _brief.repr(value)
    except Exception:  # somebody else's __repr__, or an int of too many digits
        return f"<{type(value).__name__}>"


def plain(value: Any) -> Any:
    """A scalar without what is around it: members of enums, scalars of numpy, subclasses of `str`."""
    if type(value) in (str, int, float, bool, type(None)):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        return plain_text(value.item())
    return plain_text(value)


def plain_text(value: Any) -> Any:
    """A `str` where it is of a subclass of that, anything else as it is."""
    return str.__str__(value) if isinstance(value, str) else value


def optional(check: Check, none: str = "") -> Check:
    """A check that takes `None` too.

    Args:
        check: of all other values.
        none: what `None` means.
    """

    def check_optional(value: Any) -> Any:
        if value is None:
            return None
        try:
            return check(value)
        except Unfit as unfit:
            raise Unfit(f"{unfit}, or None{f' {none}' if none else ''}") from None

    return check_optional


def lenient(check: Check) -> Check:
    """A check that also takes what environments, YAML and JSON make of values.

    That is numbers and switches as text (`"30"`, `"off"`), and whole numbers as floats (`7.0`).

    Args:
        check: that the value, or what is meant by it, must pass.
    """

    def check_lenient(value: Any) -> Any:
        try:
            return check(value)
        except Unfit:
            for form in _meant(plain(value)):
                with contextlib.suppress(Unfit):
                    return check(form)
            raise

    return check_lenient


_SWITCHES = dict.fromkeys(("1", "true", "on", "yes"), True) | dict.fromkeys(("0", "false", "off", "no"), False)


def _meant(value: Any) -> Iterator[Any]:
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _SWITCHES:
            yield _SWITCHES[word]
        with contextlib.suppress(ValueError):
            yield int(word)
        with contextlib.suppress(ValueError):
            value = float(word)
            yield value
    if isinstance(value, float | Decimal):
        with contextlib.suppress(OverflowError, ValueError):  # of what is not finite
            if value == int(value):
                yield int(value)


def whole(least: int = -MOST - 1, most: int = MOST, unit: str = "") -> Check:
    """An `int` in a range. A bool is none."""
    if most != MOST:
        want = f"a whole number from {least} to {most}"
    else:
        want = f"a whole number{f', at least {least}' if least > -MOST else ''}"
    want += f" {unit}" if unit else ""

    def check_whole(value: Any) -> int:
        given = plain(value)
        if isinstance(given, bool) or not isinstance(given, numbers.Integral) or not least <= int(given) <= most:
            raise Unfit(want)
        return int(given)

    return check_whole


def number(least: float = -math.inf, most: float = math.inf, want: str = "a number", above: bool = False) -> Check:
    """A finite `float` in a range.

    Args:
        least: of the range.
        most: of the range.
        want: what the error says that it must be.
        above: `least` itself is no longer in the range.
    """

    def check_number(value: Any) -> float:
        given = plain(value)
        if isinstance(given, bool) or not isinstance(given, numbers.Real | Decimal):
            raise Unfit(want)
        try:
            result = float(given)
        except (OverflowError, ValueError):
            raise Unfit(want) from None
        if not (math.isfinite(result) and least <= result <= most) or (above and result <= least):
            raise Unfit(want)
        return result

    return check_number


def switch(value: Any) -> bool:
    """A bool."""
    given = plain(value)
    if not isinstance(given, bool):
        raise Unfit("True or False")
    return given


def one_of(options: Iterable[str]) -> Check:
    """One of some words, exactly."""
    words = tuple(options)

    def check_one_of(value: Any) -> str:
        word = plain(value)
        if not isinstance(word, str) or word not in words:
            raise Unfit(f"one of {', '.join(map(repr, words))}")
        return word

    return check_one_of


def text(value: Any) -> str:
    """A text. Halves of surrogate pairs that stand alone become U+FFFD: no tokenizer takes them."""
    given = plain(value)
    if not isinstance(given, str):
        raise Unfit("a text")
    return whole_characters(given)


def whole_characters(given: str) -> str:
    """A text whose surrogate pairs are characters, and whose lone surrogates are U+FFFD."""
    if given.isascii() or not _SURROGATE.search(given):
        return given
    return given.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


_SURROGATE = re.compile("[\ud800-\udfff]")


def identity(value: Any) -> str:
    """A name that things are kept under: a text that is not empty, and needs no repair."""
    given = plain(value)
    if not isinstance(given, str) or not given or _SURROGATE.search(given):
        raise Unfit("a text that is not empty, without lone surrogates")
    return given


def path(value: Any) -> str:
    """A path, as text."""
    given = os.fspath(value) if isinstance(value, os.PathLike) else value
    return str(identity(given))


def texts(value: Any) -> tuple[str, ...]:
    """Texts that are not empty, in order; a single text is one of them."""
    return _each_text(value, identity)


def any_texts(value: Any) -> tuple[str, ...]:
    """Texts in order, empty ones too; a single text is one of them."""
    return _each_text(value, text)


def _each_text(value: Any, check: Check) -> tuple[str, ...]:
    given = plain(value)
    found = []
    for index, item in enumerate((given,) if isinstance(given, str) else items(given, "texts")):
        try:
            found.append(check(item))
        except Unfit as unfit:
            raise Unfit(f"texts; item {index}, of type {type(item).__name__}, must be {unfit}") from None
    return tuple(found)


def items(value: Any, kind: str) -> tuple[Any, ...]:
    """What an iterable gives, in order.

    Args:
        value: a tuple, list, or another iterable of known order.
        kind: what is in it, for the error.
    """
    if isinstance(value, str | bytes | bytearray | Mapping | Set) or not isinstance(value, Iterable):
        raise Unfit(f"a tuple or list of {kind}")
    return tuple(value)


def each(kind: type, hint: str = "") -> Check:
    """A tuple of instances of a class.

    Args:
        kind: the class.
        hint: how to come to one.
    """

    def check_each(value: Any) -> tuple[Any, ...]:
        given = items(value, kind.__name__)
        for index, item in enumerate(given):
            if not isinstance(item, kind):
                raise Unfit(f"a tuple of {kind.__name__}; item {index} is a {type(item).__name__}{hint}")
        return given

    return check_each


def instance(kind: type) -> Check:
    """An instance of a class."""

    def check_instance(value: Any) -> Any:
        if not isinstance(value, kind):
            raise Unfit(f"a {kind.__name__}, and is a {type(value).__name__}")
        return value

    return check_instance


def fields_of(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords for a dataclass.

    Raises:
        Unfit: one is the name of no field.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    if unknown := [str(name) for name in given if name not in names]:
        raise Unfit(f"fields of {kind.__name__}, and {', '.join(sorted(unknown))} is none of {', '.join(names)}")
    return dict(given)

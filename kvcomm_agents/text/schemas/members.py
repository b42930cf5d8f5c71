"""Members: the items of arrays and the properties of objects, as bodies of rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from .branch import literal

_COMMA, _COLON = ", ", ": "  # as the models' own templates write JSON


@dataclass(frozen=True, slots=True)
class Property:
    """A property with a name of its own.

    Args:
        name: its key.
        rule: of its value.
        required: it is always there.
    """

    name: str
    rule: str
    required: bool


def quoted(text: str) -> str:
    """Text as a grammar writes it."""
    return json.dumps(text, ensure_ascii=False)


def array_body(first: Sequence[str], other: str | None, least: int, most: int) -> str:
    """An array.

    Args:
        first: rules of its first items, as far as it has them.
        other: rule of the others; `None` if there are none.
        least: items in all.
        most: items in all.
    """
    first = first[:most]
    left = most - len(first) if other else 0
    if not first and not left:
        return quoted("[]")
    tail = _repeated(f"{quoted(_COMMA)} {other}", least - max(len(first), 1), left - (not first))
    for index in range(len(first) - 1, 0, -1):
        tail = f"{quoted(_COMMA)} {first[index]} {tail}"
        tail = tail if index < least else f"({tail})?"
    inner = f"{first[0] if first else other} {tail}"
    return f"{quoted('[')} {inner if least else f'({inner})?'} {quoted(']')}"


def object_body(
    name: str, properties: Sequence[Property], entry: str | None, least: int, most: int
) -> tuple[str, list[str]]:
    """An object, its properties in their order, and behind them further entries.

    Args:
        name: of its rule: its own rules' names begin so.
        properties: that have names.
        entry: rule of a further entry, its key included; `None` if there are none.
        least: further entries.
        most: further entries.

    Returns:
        The body, and the rules that it needs beside.
    """
    entry = entry if most > 0 else None
    comma = quoted(_COMMA)
    lines = [f"{name}_{len(properties)}: {_repeated(f'{comma} {entry}', least, most) if entry else quoted('')}"]
    for index in range(len(properties) - 1, 0, -1):
        member = f"{comma} {_member(properties[index])}"
        member = member if properties[index].required else f"({member})?"
        lines.append(f"{name}_{index}: {member} {name}_{index + 1}")
    starts = []
    for index, known in enumerate(properties):
        starts.append(f"{_member(known)} {name}_{index + 1}")
        if known.required:
            break
    else:
        if entry:
            starts.append(f"{entry} {_repeated(f'{comma} {entry}', least - 1, most - 1)}")
        if not least:
            starts.append(quoted(""))
    return f"{quoted('{')} ({' | '.join(starts)}) {quoted('}')}", lines


def entry_body(key: str, rule: str) -> str:
    """A further entry, its key given by a terminal."""
    return f"{key} {quoted(_COLON)} {rule}"


def _member(known: Property) -> str:
    return f"{quoted(literal(known.name) + _COLON)} {known.rule}"


def _repeated(item: str, least: int, most: int) -> str:
    return f"({item}){{{max(least, 0)},{most}}}" if most > 0 else ""

"""Exclusive: the alternatives of a `oneOf`, so that what is written for one obeys no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from .branch import TYPES, Branch
from .document import Joint, Node
from .refusals import Refusal, Unsatisfiable, Unsupported

_DEPTH = 4  # of properties and items that are looked into


class _Reader(Protocol):
    def of(self, joint: Joint) -> list[Branch]: ...


def exclusive(options: Sequence[tuple[int, list[Branch]]], reader: _Reader, node: Node) -> list[Branch]:
    """The branches of all alternatives, each narrowed to values that obey no other alternative.

    A property that tells two apart is required; one that only another requires is forbidden.

    Args:
        options: alternatives, with their places in the list.
        reader: of the document.
        node: that has them.

    Raises:
        Unsupported: two that cannot be told apart.
    """
    found: list[Branch] = []
    for index, option in options:
        for branch in option:
            for other_index, other_option in options:
                for other in other_option if other_index != index else ():
                    narrowed = _apart(branch, other, reader)
                    if narrowed is None:
                        places = f"alternatives {min(index, other_index)} and {max(index, other_index)} of oneOf"
                        raise Unsupported(node.where, f"has {places}, which one value may obey both; use anyOf")
                    branch = narrowed
            found.append(branch)
    return found


def _apart(branch: Branch, other: Branch, reader: _Reader) -> Branch | None:
    """A branch narrowed to values that do not obey the other one; `None` if that is not to be had."""
    if branch.values is not None:
        values = tuple(value for value in branch.values if not other.admits(value))
        return replace(branch, values=values) if values else None
    if other.values is not None and not any(branch.admits(value) for value in other.values):
        return branch
    kinds = set(branch.kinds)
    for kind in branch.kinds & _overlap(branch.kinds, other):
        if kind == "object":
            narrowed = _objects_apart(branch, other, reader)
            if narrowed is not None:
                branch = narrowed
                continue
        elif _ranges_apart(branch, other, kind) or (kind == "array" and _arrays_apart(branch, other, reader)):
            continue
        kinds.discard(kind)
    return replace(branch, types=frozenset(kinds)) if kinds else None


def _overlap(kinds: frozenset[str], other: Branch) -> frozenset[str]:
    """The types of values that may obey the other branch too."""
    theirs = other.types or frozenset(TYPES)
    numbers = {"integer", "number"}
    return frozenset(kind for kind in kinds if kind in theirs or (kind in numbers and theirs & numbers))


def _ranges_apart(branch: Branch, other: Branch, kind: str) -> bool:
    """Whether bounds alone tell two branches apart, for values of a type."""
    if kind in ("integer", "number"):
        return any(
            one.high is not None
            and two.low is not None
            and (one.high[0] < two.low[0] or (one.high[0] == two.low[0] and (one.high[1] or two.low[1])))
            for one, two in ((branch, other), (other, branch))
        )
    if kind == "string":
        bounds = [(one.min_length, one.max_length) for one in (branch, other)]
    elif kind == "array":
        bounds = [(one.min_items, one.max_items) for one in (branch, other)]
    else:
        return False
    (least, most), (other_least, other_most) = bounds
    return (most is not None and most < other_least) or (other_most is not None and other_most < least)


def _arrays_apart(branch: Branch, other: Branch, reader: _Reader, depth: int = _DEPTH) -> bool:
    sure = min(branch.min_items, max(len(branch.prefix), len(other.prefix), 1))
    return any(_joints_apart(branch.of_item(at), other.of_item(at), reader, depth) for at in range(sure))


def _objects_apart(branch: Branch, other: Branch, reader: _Reader, depth: int = _DEPTH) -> Branch | None:
    names = list(dict.fromkeys([*branch.properties, *other.properties]))
    telling = [
        name
        for name in names
        if _joints_apart(branch.of_property(name), other.of_property(name), reader, depth)
        and (name in branch.properties or name in branch.required)
    ]
    sure = [name for name in telling if name in branch.required]
    if sure:
        return branch
    for name in other.required:
        closed = branch.others is None and not branch.patterned and branch.lists
        if name not in branch.properties and closed:
            return branch  # what is written for it has no such property
        if name not in branch.required:
            forbidden: Joint = (Node(False, f"{branch.where}/oneOf"),)
            return replace(branch, properties={**branch.properties, name: forbidden}, lists=True)
    if telling:
        return replace(branch, required=(*branch.required, telling[0]))
    return None


def _joints_apart(joint: Joint, other: Joint, reader: _Reader, depth: int) -> bool:
    """Whether no value obeys both."""
    try:
        some, others = reader.of(joint), reader.of(other)
    except Unsatisfiable:
        return True
    except Refusal:
        return False
    return all(_branches_apart(one, two, reader, depth) for one in some for two in others)


def _branches_apart(branch: Branch, other: Branch, reader: _Reader, depth: int) -> bool:
    for one, two in ((branch, other), (other, branch)):
        if one.values is not None:
            return not any(two.admits(value) for value in one.values)
    for kind in (branch.types or frozenset(TYPES)) & _overlap(branch.types or frozenset(TYPES), other):
        if _ranges_apart(branch, other, kind):
            continue
        if not depth:
            return False
        if kind == "array" and _arrays_apart(branch, other, reader, depth - 1):
            continue
        if kind == "object" and any(
            _joints_apart(branch.of_property(name), other.of_property(name), reader, depth - 1)
            for name in {*branch.required, *other.required}
        ):
            continue
        return False
    return True

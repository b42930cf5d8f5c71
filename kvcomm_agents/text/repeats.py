"""Repeats: items that must differ, and keys of one object, followed while JSON is written.

A grammar without memory cannot forbid them, so they are told by the text so far.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace

from .schemas.branch import same
from .schemas.rules import Shape

_COMMA = ", "  # as grammars write it
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_PLACES = 9  # behind the point, at most


@dataclass(slots=True)
class _Frame:
    """An array or object that is being written.

    Args:
        shapes: what it may be, by its rules.
        is_array: else it is an object.
        watched: its items, or else its keys, must differ.
        used: the items or keys that were written.
        start: where the item or key begins; `None` between two.
        index: of the item.
        key: of the value.
        in_value: an object's value has begun.
    """

    shapes: list[Shape]
    is_array: bool
    watched: bool
    used: list[str] = field(default_factory=list)
    start: int | None = None
    index: int = 0
    key: str | None = None
    in_value: bool = False


class Repeats:
    """Follows one value.

    Args:
        shapes: of the rules of its schema.
        root: the rule of the value.
    """

    def __init__(self, shapes: Mapping[str, Shape], root: str) -> None:
        self._shapes, self._root = shapes, root
        self._text = ""
        self._frames: list[_Frame] = []
        self._escaped = self._ended = False
        self.quoted = False
        """A string is being written."""
        self.repeated = False
        """An item or a key came again."""

    def copy(self) -> Repeats:
        """One that goes on by itself."""
        other = copy(self)
        other._frames = [replace(frame, used=[*frame.used]) for frame in self._frames]
        return other

    @property
    def watching(self) -> bool:
        """Whether there may be repeats in what is being written."""
        return any(frame.watched for frame in self._frames)

    def push(self, text: str) -> None:
        """Take in what was written."""
        for char in text:
            if self._ended:
                return
            self._text += char
            self._step(char)

    def forbidden(self) -> list[str]:
        """Texts that must not come next: each would complete a repeat."""
        return [rest for depth, frame in enumerate(self._frames) if frame.watched for rest in self._rests(depth, frame)]

    def _rests(self, depth: int, frame: _Frame) -> Iterator[str]:
        begun = "" if frame.start is None else self._text[frame.start :]
        inside = frame.is_array or not frame.in_value  # an item or a key is next, or being written
        if inside:
            lead = " " if frame.start is None and self._text.endswith(",") else ""
            for used in frame.used:
                for form in _forms(used) if frame.is_array else [used]:
                    if form.startswith(begun):
                        yield lead + form[len(begun) :]
        if frame.is_array and begun and depth == len(self._frames) - 2 and not self.quoted:
            yield from self._closers(begun, frame)
        innermost = depth == len(self._frames) - 1 and not self.quoted
        if innermost and (frame.in_value if not frame.is_array else begun):
            for used in [*frame.used, *([begun] if frame.is_array else [])]:
                for form in _forms(used) if frame.is_array else [used]:
                    yield _COMMA + form

    def _closers(self, begun: str, frame: _Frame) -> Iterator[str]:
        """What would close an item that equals another one, though its numbers are written in another way."""
        closer = "]" if self._frames[-1].is_array else "}"
        try:
            value = json.loads(begun + closer)
        except json.JSONDecodeError:
            return
        if any(same(value, json.loads(used)) for used in frame.used):
            yield closer

    def _step(self, char: str) -> None:
        frame = self._frames[-1] if self._frames else None
        if self.quoted:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self.quoted = False
                if frame is not None and not frame.is_array and frame.start is not None:
                    self._use(frame, self._text[frame.start :])
                    frame.key, frame.start = json.loads(self._text[frame.start :]), None
            return
        if char in ",]}" and frame is not None:
            self._end(frame, char)
        elif frame is not None and not char.isspace():
            self._begin(frame, char)
        if char == '"':
            self.quoted = True
        elif char in "[{":
            self._open(char)

    def _begin(self, frame: _Frame, char: str) -> None:
        if frame.is_array:
            frame.start = len(self._text) - 1 if frame.start is None else frame.start
        elif char == '"' and frame.key is None:
            frame.start = len(self._text) - 1
        elif char != ":":
            frame.in_value = True

    def _end(self, frame: _Frame, char: str) -> None:
        if frame.is_array:
            if frame.start is not None:
                self._use(frame, self._text[frame.start : -1])
            frame.start, frame.index = None, frame.index + 1
        else:
            frame.key, frame.in_value = None, False
        if char != ",":
            self._frames.pop()
            self._ended = not self._frames

    def _use(self, frame: _Frame, text: str) -> None:
        if not frame.watched:
            return
        value = json.loads(text)
        self.repeated = self.repeated or any(same(value, json.loads(used)) for used in frame.used)
        frame.used.append(text)

    def _open(self, char: str) -> None:
        rules = list(self._below(self._frames[-1])) if self._frames else [self._root]
        shapes = [self._shapes[rule] for rule in rules if rule in self._shapes]
        if char == "[":
            watched = any(unique for shape in shapes for _, _, unique in shape.arrays)
        else:
            watched = any(entries for shape in shapes for _, entries in shape.objects)
        self._frames.append(_Frame(shapes, char == "[", watched))

    def _below(self, frame: _Frame) -> Iterator[str]:
        """The rules that the value may be of which begins in an array or object."""
        for shape in frame.shapes:
            if frame.is_array:
                for first, other, _ in shape.arrays:
                    if frame.index < len(first):
                        yield first[frame.index]
                    elif other is not None:
                        yield other
            else:
                for properties, entries in shape.objects:
                    yield from [properties[frame.key]] if frame.key in properties else entries


def _forms(used: str) -> list[str]:
    """The ways to write a value again; of a number, up to what shows that it ends."""
    if not _NUMBER.fullmatch(used):
        return [used]
    whole, _, places = used.partition(".")
    if not float(used):
        whole = "0"
    places = places.rstrip("0")
    longer = [places + "0" * count for count in range(_PLACES + 1 - len(places))]
    numbers = [f"{whole}.{digits}" if digits else whole for digits in longer]
    signs = ("", "-") if not float(used) else ("",)
    return [sign + number + end for sign in signs for number in numbers for end in ",]"]

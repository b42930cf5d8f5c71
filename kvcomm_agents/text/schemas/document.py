"""Document: a schema as it was given, the places in it, and where its references lead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urljoin

from .refusals import Unsupported

_DATA = frozenset({"enum", "const", "default", "examples", "example"})  # values, not schemas
_STORES = frozenset({"$defs", "definitions"})  # only what refers to them uses them
_MAPS = _STORES | {"properties", "patternProperties", "dependentSchemas"}  # of names, not of keywords
ANNOTATIONS = _STORES | {
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "discriminator",
    "$schema",
    "$id",
    "$anchor",
    "$comment",
}


@dataclass(frozen=True, slots=True)
class Node:
    """A schema, and its place in the document.

    Args:
        schema: a dict or a bool.
        where: JSON pointer behind `#`. It stands for the schema: two nodes of one place are the same.
    """

    schema: Any = field(compare=False)
    where: str

    def child(self, *keys: str | int) -> Node:
        """The schema below it."""
        schema, where = self.schema, self.where
        for key in keys:
            schema, where = schema[key], f"{where}/{str(key).replace('~', '~0').replace('/', '~1')}"
        return Node(schema, where)


Joint = tuple[Node, ...]
"""Schemas that one value must obey all; with none, any value will do."""


class Document:
    """A schema and what its references lead to.

    Args:
        schema: in any draft from 4 on.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.root = Node(schema, "#")
        self._named = dict(_names(self.root, ""))
        self._stored = {node.where.rpartition("/")[2]: node for node in _stored(self.root)}
        self._leads: dict[str, dict[str, Node]] = {}

    def follow(self, node: Node) -> Node:
        """What the `$ref` of a node refers to.

        Raises:
            Unsupported: it leads nowhere, or out of the document.
        """
        reference = node.schema["$ref"]
        if not isinstance(reference, str):
            raise Unsupported(node.where, f"has a $ref that is no text: {reference!r}")
        place, _, fragment = reference.partition("#")
        base = self._named.get(place) if place else self.root
        if base is None:
            raise Unsupported(node.where, f"refers to {reference!r}, which is not in the schema")
        if fragment and not fragment.startswith("/"):
            anchored = self._named.get(f"#{fragment}")
            if anchored is None:
                raise Unsupported(node.where, f"refers to {reference!r}, which is not in the schema")
            return anchored
        keys = fragment.split("/")[1:]
        if len(keys) == 2 and keys[0] in _STORES and keys[0] not in base.schema and keys[1] in self._stored:
            return self._stored[keys[1]]  # some frameworks put whole schemas, with what they store, into others
        for key in keys:
            key = unquote(key).replace("~1", "/").replace("~0", "~")
            try:
                base = base.child(int(key) if isinstance(base.schema, list) else key)
            except (KeyError, IndexError, ValueError, TypeError):
                raise Unsupported(node.where, f"refers to {reference!r}, which is not in the schema") from None
        return base

    def endless(self, joint: Joint) -> bool:
        """Whether what these schemas refer to comes back to itself, so that values could nest for ever."""
        return any(self.loops(target) for node in joint for target in self._reached(node).values())

    def nests(self, joint: Joint) -> bool:
        """Whether these schemas are themselves, by references or alternatives, what refers to itself."""
        waiting, seen = list(joint), set()
        while waiting:
            node = waiting.pop()
            if node.where in seen or not isinstance(node.schema, Mapping):
                continue
            seen.add(node.where)
            if self.loops(node):
                return True
            if "$ref" in node.schema:
                waiting.append(self.follow(node))
            for key in ("allOf", "anyOf", "oneOf"):
                if isinstance(node.schema.get(key), list):
                    waiting += [node.child(key, index) for index in range(len(node.schema[key]))]
        return False

    def loops(self, node: Node) -> bool:
        """Whether a schema refers to itself, directly or by others."""
        return node.where in self._reached(node)

    def _reached(self, node: Node) -> dict[str, Node]:
        """What references from a node lead to, and those from there, by their places."""
        if node.where not in self._leads:
            seen: dict[str, Node] = {}
            waiting = [node]
            while waiting:
                for reference in _references(waiting.pop()):
                    target = self.follow(reference)
                    if target.where not in seen:
                        seen[target.where] = target
                        waiting.append(target)
            self._leads[node.where] = seen
        return self._leads[node.where]


def is_reference(node: Node) -> bool:
    """Whether a node says nothing but where to look."""
    return (
        isinstance(node.schema, Mapping) and "$ref" in node.schema and not node.schema.keys() - ANNOTATIONS - {"$ref"}
    )


def _children(node: Node) -> Iterator[Node]:
    """The schemas right below one, and what lies between them and it."""
    if isinstance(node.schema, Mapping):
        for key, value in node.schema.items():
            if key in _MAPS and isinstance(value, Mapping):
                yield from (node.child(key, name) for name in value)
            elif key not in _DATA:
                yield node.child(key)
    elif isinstance(node.schema, list):
        yield from (node.child(index) for index in range(len(node.schema)))


def _stored(node: Node) -> Iterator[Node]:
    """All that a schema and those below store to be referred to."""
    for child in _children(node):
        if child.where.rpartition("/")[0].rpartition("/")[2] in _STORES:
            yield child
        yield from _stored(child)


def _references(node: Node) -> Iterator[Node]:
    """The nodes with a `$ref` in a schema, without those of what it only stores."""
    if isinstance(node.schema, Mapping) and isinstance(node.schema.get("$ref"), str):
        yield node
    stores = tuple(f"{node.where}/{name}/" for name in _STORES)
    for child in _children(node):
        if not child.where.startswith(stores):
            yield from _references(child)


def _names(node: Node, base: str) -> Iterator[tuple[str, Node]]:
    """Names by which parts of a schema can be referred to: its ids, as written and resolved, and its anchors."""
    if isinstance(node.schema, Mapping):
        name = node.schema.get("$id")
        if isinstance(name, str):
            base = urljoin(base, name)
            yield from ((known.rstrip("#"), node) for known in (name, base))
        anchor = node.schema.get("$anchor")
        if isinstance(anchor, str):
            yield f"#{anchor}", node
    for child in _children(node):
        yield from _names(child, base)

"""Cycles: schemas whose dicts hold themselves, brought into references.

A framework that replaces each `$ref` by what it refers to makes such dicts of models that refer to themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def with_references(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema that ends: what holds itself stands in `$defs`, and is referred to. Any other is given back as it is."""
    looping = set(_looping(schema, ()))
    if not looping:
        return schema
    names: dict[int, str] = {}
    stored: dict[str, Any] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, list):
            return [copied(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        if id(value) not in looping:
            return {key: copied(item) for key, item in value.items()}
        if id(value) not in names:
            name = names[id(value)] = f"{value.get('title', 'Part')}{len(names) or ''}"
            stored[name] = None  # keeps its place before those below it
            stored[name] = {key: copied(item) for key, item in value.items()}
        return {"$ref": f"#/$defs/{names[id(value)]}"}

    whole = copied(schema)
    return {**whole, "$defs": {**whole.get("$defs", {}), **stored}}


def _looping(value: Any, above: tuple[int, ...]) -> Iterator[int]:
    """Ids of the dicts that are found again within themselves."""
    if isinstance(value, Mapping):
        if id(value) in above:
            yield id(value)
            return
        above = (*above, id(value))
        for item in value.values():
            yield from _looping(item, above)
    elif isinstance(value, list):
        for item in value:
            yield from _looping(item, above)

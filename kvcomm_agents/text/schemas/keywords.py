"""Keywords: what one schema says itself, beside its alternatives and references."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from .branch import TYPES, Branch, Limit
from .document import Joint, Node
from .refusals import Unsatisfiable, Unsupported

_REFUSED = (
    *("if", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties"),
    *("maxContains", "$dynamicRef", "$recursiveRef"),
)


def own_branch(node: Node) -> Branch:
    """What a schema says without `$ref`, `allOf`, `anyOf` and `oneOf`.

    Some keywords that no grammar has are obeyed by saying more than they ask for: what `dependentRequired`
    might require is required, and `contains` is about the first items.

    Raises:
        Unsatisfiable: no value obeys it.
        Unsupported: a keyword that no grammar can follow, or one with a value that it cannot have.
    """
    schema = node.schema
    if schema is False:
        raise Unsatisfiable(node.where, "is false: nothing may stand there")
    if schema is True:
        return Branch(node.where)
    if not isinstance(schema, Mapping):
        raise Unsupported(node.where, f"is no schema: {schema!r}")
    for key in _REFUSED:
        if key in schema and not _says_nothing(schema, key):
            raise Unsupported(node.where, f"has {key}, which answers cannot be made to follow")
    low, high = _limits(node)
    min_items, prefix, items = _items(node)
    return Branch(
        node.where,
        types=_types(node),
        values=_values(node),
        low=low,
        high=high,
        step=_step(node),
        min_length=_count(node, "minLength") or 0,
        max_length=_count(node, "maxLength"),
        patterns=_texts(node, "pattern"),
        formats=_texts(node, "format"),
        prefix=prefix,
        items=items,
        min_items=max(min_items, _count(node, "minItems") or 0),
        max_items=_count(node, "maxItems"),
        unique=schema.get("uniqueItems") is True,
        properties={**_joints(node, "properties"), **_forbidden(node)},
        patterned=_joints(node, "patternProperties"),
        others=_others(node),
        lists="properties" in schema or bool(_forbidden(node)),
        names=(node.child("propertyNames"),) if "propertyNames" in schema else (),
        required=_required(node),
        min_properties=_count(node, "minProperties") or 0,
        max_properties=_count(node, "maxProperties"),
    )


def _says_nothing(schema: Mapping[str, Any], key: str) -> bool:
    """Whether a keyword is there and asks for nothing, or for nothing more than is done anyway."""
    if key == "if":
        return "then" not in schema and "else" not in schema
    if key == "dependencies":
        return isinstance(schema[key], Mapping) and all(isinstance(names, list) for names in schema[key].values())
    if key in ("unevaluatedItems", "unevaluatedProperties"):
        return isinstance(schema[key], bool)  # objects and tuples are closed where the schema does not open them
    return False


def _types(node: Node) -> frozenset[str] | None:
    kinds = node.schema.get("type")
    kinds = kinds if isinstance(kinds, list) or kinds is None else [kinds]
    unknown = [kind for kind in kinds or () if kind not in TYPES]
    if unknown or kinds == []:
        raise Unsupported(node.where, f"has the type {node.schema['type']!r}, which is none of {', '.join(TYPES)}")
    negated = node.schema.get("not")
    if negated is None:
        return None if kinds is None else frozenset(kinds)
    if isinstance(negated, Mapping) and negated.keys() == {"type"}:
        outside = _types(node.child("not")) or frozenset()
        inside = frozenset(kinds or TYPES) - outside - ({"integer"} if "number" in outside else frozenset())
        if "integer" in outside and "number" in inside:
            raise Unsupported(node.where, "excludes integers from numbers, which answers cannot be made to follow")
        return inside
    if _forbidden(node):
        return None if kinds is None else frozenset(kinds)
    raise Unsupported(node.where, "has not, which answers can be made to follow for types and required names alone")


def _forbidden(node: Node) -> dict[str, Joint]:
    """`"not": {"required": [name]}`: a property that may not be there."""
    negated = node.schema.get("not")
    names = negated.get("required") if isinstance(negated, Mapping) and len(negated) == 1 else None
    if isinstance(names, list) and len(names) == 1:
        return {str(names[0]): (Node(False, f"{node.where}/not"),)}
    return {}


def _values(node: Node) -> tuple[Any, ...] | None:
    values = node.schema.get("enum")
    if values is not None and not isinstance(values, list):
        raise Unsupported(node.where, f"has an enum that is no list: {values!r}")
    if "const" in node.schema:
        const = [node.schema["const"]]
        return tuple(const if values is None else [value for value in const if value in values])
    return None if values is None else tuple(values)


def _limits(node: Node) -> tuple[Limit | None, Limit | None]:
    found: list[Limit | None] = []
    for plain, exclusive, sign in (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1)):
        bounds: list[Limit] = []
        if (bound := _number(node, plain)) is not None:
            bounds.append((bound, node.schema.get(exclusive) is True))  # draft 4 has it so
        if not isinstance(node.schema.get(exclusive), bool) and (bound := _number(node, exclusive)) is not None:
            bounds.append((bound, True))
        tightest = [bound for bound in bounds if sign * bound[0] == max(sign * other[0] for other in bounds)]
        found.append((tightest[0][0], any(excluded for _, excluded in tightest)) if tightest else None)
    return found[0], found[1]


def _step(node: Node) -> Fraction | None:
    step = _number(node, "multipleOf")
    if step is not None and step <= 0:
        raise Unsupported(node.where, f"has multipleOf={node.schema['multipleOf']!r}, which must be more than 0")
    return step


def _number(node: Node, key: str) -> Fraction | None:
    value = node.schema.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Unsupported(node.where, f"has {key}={value!r}, which is no number")
    try:
        return Fraction(str(value))
    except ValueError:
        raise Unsupported(node.where, f"has {key}={value!r}, which JSON has no number for") from None


def _count(node: Node, key: str) -> int | None:
    value = _number(node, key)
    if value is not None and (value < 0 or value.denominator != 1):
        raise Unsupported(node.where, f"has {key}={node.schema[key]!r}, which is no count")
    return None if value is None else int(value)


def _texts(node: Node, key: str) -> tuple[str, ...]:
    text = node.schema.get(key)
    if text is not None and not isinstance(text, str):
        raise Unsupported(node.where, f"has {key}={text!r}, which is no text")
    return () if text is None else (text,)


def _items(node: Node) -> tuple[int, tuple[Joint, ...], Joint | None]:
    """The least count that `contains` asks for, the first items, the others."""
    schema = node.schema
    key, rest = "prefixItems", "items"
    if isinstance(schema.get("items"), list):  # before draft 2020-12
        key, rest = "items", "additionalItems"
    listed = schema.get(key, [])
    if not isinstance(listed, list):
        raise Unsupported(node.where, f"has {key}={listed!r}, which is no list")
    prefix: tuple[Joint, ...] = tuple((node.child(key, index),) for index in range(len(listed)))
    items: Joint | None = (node.child(rest),) if rest in schema else None
    if schema.get("unevaluatedItems") is False and items is None and not prefix:
        items = (node.child("unevaluatedItems"),)
    least = 0
    if "contains" in schema:
        wanted = _count(node, "minContains")
        least = 1 if wanted is None else wanted
        if prefix:
            raise Unsupported(node.where, f"has contains beside {key}, which answers cannot be made to follow")
        prefix = tuple((*(items or ()), node.child("contains")) for _ in range(least))
    return least, prefix, items


def _joints(node: Node, key: str) -> dict[str, Joint]:
    value = node.schema.get(key, {})
    if not isinstance(value, Mapping):
        raise Unsupported(node.where, f"has {key}={value!r}, which is no dict")
    return {name: (node.child(key, name),) for name in value}


def _others(node: Node) -> Joint | None:
    schema = node.schema
    if "additionalProperties" in schema:
        return (node.child("additionalProperties"),)
    if schema.get("unevaluatedProperties") is False and not _joints(node, "properties"):
        return (node.child("unevaluatedProperties"),)
    return None


def _required(node: Node) -> tuple[str, ...]:
    required = node.schema.get("required", [])
    if isinstance(required, bool):  # draft 3, where a property says so of itself
        return ()
    dependents = [node.schema[key] for key in ("dependencies", "dependentRequired") if key in node.schema]
    if not all(isinstance(dependent, Mapping) for dependent in dependents):
        raise Unsupported(node.where, f"has dependentRequired={dependents!r}, which is no dict")
    names = [required, *(names for dependent in dependents for names in dependent.values())]
    if not all(isinstance(listed, list) and all(isinstance(name, str) for name in listed) for listed in names):
        raise Unsupported(node.where, f"has required={required!r}, which is no list of names")
    return tuple(dict.fromkeys(name for listed in names for name in listed))

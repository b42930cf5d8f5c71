"""Rules: a schema as the rules of a grammar, in which all that can grow is bounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .alternatives import Alternatives
from .branch import TYPES, Branch, literal
from .document import Document, Joint, Node, is_reference
from .keys import Keys
from .members import Property, array_body, entry_body, object_body, quoted
from .refusals import Refusal, Unsatisfiable, Unsupported, UnsupportedPattern
from .scalars import number_bodies, string_body
from .terminals import Terminals

_MOST_ITEMS = 64  # of an array, where the schema does not say
_MOST_ENTRIES = 32  # of a map
_LONGEST_LIST = 4096  # that a schema can ask for
_NODES = 1024  # of a value whose schema refers to itself: the more at one level, the fewer below
_SHARE = 7 / 8  # of them, left after each level
_WIDTH = 0.4  # exponent: of so many, how many lie side by side in a list that the schema does not bound
_ANYTHING = ((16, 1), (8, 4), (2, 8), (0, 16))  # where any value will do, by level: most items, share of `max_string`


@dataclass(slots=True)
class Shape:
    """Where a rule has arrays and objects, and what rules are below: repeats are told by it.

    Args:
        arrays: for each, the rules of its first items, that of the others, and whether items must differ.
        objects: for each, the rules of its properties by name, and those of its other entries.
    """

    arrays: list[tuple[tuple[str, ...], str | None, bool]] = field(default_factory=list)
    objects: list[tuple[dict[str, str], tuple[str, ...]]] = field(default_factory=list)


class Rules:
    """Writes the rules of one schema.

    Args:
        schema: any JSON schema.
        max_string: characters in a string for which the schema sets no bound.
        prefix: of the names of its rules, in lower case.
    """

    def __init__(self, schema: Mapping[str, Any], max_string: int, prefix: str) -> None:
        self._document = Document(schema)
        self._alternatives = Alternatives(self._document)
        self._max_string, self._prefix = max_string, prefix
        self._made: dict[object, str | Refusal] = {}
        self._terminals = Terminals(prefix)
        self._keys = Keys(self._terminals, self._alternatives)
        self._lines: list[str] = []
        self.shapes: dict[str, Shape] = {}

    @property
    def lines(self) -> list[str]:
        """The rules that were written."""
        return [*self._lines, *self._terminals.lines]

    def root(self, also: Mapping[str, Any] | None = None) -> str:
        """The name of the rule of a whole value.

        Args:
            also: a schema that it must obey too.

        Raises:
            Refusal: no grammar can follow the schema, or no value obeys it.
        """
        document = self._document.root
        return self._rule((Node(also, "#/"), document) if also else (document,), _NODES)

    def _rule(self, joint: Joint, nodes: int, level: int = 0) -> str:
        """The name of the rule of a value.

        Args:
            joint: the schemas that it obeys.
            nodes: how many values there may be from here on whose schemas refer to themselves.
            level: how deep it lies where any value will do.
        """
        joint = self._followed(tuple(dict.fromkeys(joint)))
        if self._document.nests(joint):
            nodes = int((nodes - 1) * _SHARE)
            if nodes < 1:
                raise Unsatisfiable(joint[0].where, "refers to itself without an end")
        key = (joint, nodes if self._document.endless(joint) else None, level)
        if key not in self._made:
            try:
                branches = self._alternatives.of(joint)
                is_any = all(branch.is_anything for branch in branches)
                self._made[key] = self._anything(level) if is_any else self._value(branches, nodes)
            except Refusal as refusal:
                self._made[key] = refusal
        made = self._made[key]
        if isinstance(made, Refusal):
            raise made
        return made

    def _followed(self, joint: Joint) -> Joint:
        """Schemas with plain references followed: what stands at one place has one rule."""
        seen = set()
        while len(joint) == 1 and is_reference(joint[0]):
            joint = (self._document.follow(joint[0]),)
            if joint[0].where in seen:
                raise Unsupported(joint[0].where, "refers to itself without anything between")
            seen.add(joint[0].where)
        return joint

    def _new(self) -> str:
        name = f"{self._prefix}{len(self.shapes)}"
        self.shapes[name] = Shape()
        return name

    def _write(self, name: str, bodies: Iterable[str]) -> str:
        self._lines.append(f"{name}: {' | '.join(dict.fromkeys(bodies))}")
        return name

    def _shared(self, body: str) -> str:
        """The rule of a body that is written in many places."""
        if body not in self._made:
            self._made[body] = self._write(self._new(), [body])
        return str(self._made[body])

    def _value(self, branches: Iterable[Branch], nodes: int) -> str:
        name = self._new()
        bodies: list[str] = []
        refusals: list[Refusal] = []
        for branch in branches:
            for kind in self._kinds(branch):
                try:
                    bodies += self._bodies(branch, kind, name, nodes)
                except (Unsatisfiable, UnsupportedPattern) as refusal:
                    refusals.append(refusal)
        if not bodies:
            raise next((refusal for refusal in refusals if isinstance(refusal, Unsupported)), refusals[0])
        return self._write(name, bodies)

    def _kinds(self, branch: Branch) -> Iterator[str]:
        """What a branch is written as: its values, or each of its types."""
        if branch.values is not None:
            yield "values"
            return
        for kind in TYPES:
            if kind in branch.kinds and not (kind == "integer" and "number" in branch.kinds):
                yield kind

    def _bodies(self, branch: Branch, kind: str, name: str, nodes: int) -> list[str]:
        if kind == "values":
            allowed = [value for value in branch.values or () if self._alternatives.allows(branch, value)]
            if not allowed:
                raise Unsatisfiable(branch.where, "leaves none of its values")
            return [quoted(literal(value)) for value in allowed]
        if kind == "null":
            return [quoted("null")]
        if kind == "boolean":
            return [quoted("true"), quoted("false")]
        if kind == "string":
            return [self._shared(string_body(branch, self._max_string, self._terminals))]
        if kind in ("integer", "number"):
            found = number_bodies(branch, self._terminals, integer=kind == "integer")
            return found if len(found) > 1 else [self._shared(found[0])]
        return [self._array(branch, name, nodes) if kind == "array" else self._object(branch, name, nodes)]

    def _array(self, branch: Branch, name: str, nodes: int) -> str:
        least, most = branch.min_items, branch.max_items
        others = branch.items
        if others is None and (not branch.prefix or least > len(branch.prefix)):
            others = ()
        if least > min(_LONGEST_LIST if most is None else most, _LONGEST_LIST):
            raise Unsatisfiable(branch.where, f"asks for at least {least} items and at most {most or _LONGEST_LIST}")
        if most is None:
            loops = others is not None and self._document.endless(others)
            usual = int(nodes**_WIDTH) if loops else _ANYTHING[0][0] if self._is_anything(others) else _MOST_ITEMS
            most = max(usual, least, len(branch.prefix))
        most = min(most, _LONGEST_LIST) if others is not None else min(most, len(branch.prefix))
        share = nodes // max(1, self._loops(branch.prefix[:most]) + self._loops([others]) * (most - len(branch.prefix)))
        first: list[str] = []
        for index, joint in enumerate(branch.prefix[:most]):
            try:
                first.append(self._rule(joint, share))
            except Unsatisfiable:
                if index < least:
                    raise
                most = index
                break
        other = None
        if others is not None and most > len(first):
            try:
                other = self._rule(others, share, 1)
            except Unsatisfiable:
                if least > len(first):
                    raise
        if branch.unique and other is not None and not first:
            count = self._count(others or ())
            if count is not None and count < least:
                raise Unsatisfiable(branch.where, f"asks for {least} different items, and there are {count}")
            most = most if count is None else min(most, count)
        self.shapes[name].arrays.append((tuple(first), other, branch.unique))
        return array_body(first, other, least, most)

    def _count(self, joint: Joint) -> int | None:
        """How many values there are; `None` if they are not listed."""
        branches = self._alternatives.of(joint)
        if any(branch.values is None for branch in branches):
            return None
        return len({literal(value) for branch in branches for value in branch.values or ()})

    def _object(self, branch: Branch, name: str, nodes: int) -> str:
        listed, others = self._members(branch)
        least, most = branch.min_properties, branch.max_properties
        looping = self._loops([*branch.patterned.values(), others])
        usual = int(nodes**_WIDTH) if looping else _ANYTHING[0][0] if self._is_anything(others) else _MOST_ENTRIES
        share = nodes // max(1, self._loops(listed.values()) + usual * bool(looping))
        properties: list[Property] = []
        for key, joint in listed.items():
            required = key in branch.required
            try:
                properties.append(Property(key, self._rule(joint, share), required))
            except Unsatisfiable:
                if required:
                    raise
        properties = _fitting(properties, least, most, open=others is not None or bool(branch.patterned), branch=branch)
        sure = sum(known.required for known in properties)
        entries = self._entries(branch, others, list(listed), share)
        needed = max(0, least - sure)
        room = max(usual, needed) if most is None else most - len(properties)
        if needed and not entries:
            raise Unsatisfiable(branch.where, f"asks for at least {least} properties, and there are {sure}")
        bodies = [entry_body(key, rule) for key, rule in entries]
        entry = self._write(f"{name}_e{len(self._lines)}", bodies) if bodies else None
        own = f"{name}_o{len(self._lines)}"
        body, lines = object_body(own, properties, entry, needed, min(room, _LONGEST_LIST))
        self._lines += lines
        below = tuple(rule for _, rule in entries)
        self.shapes[name].objects.append(({known.name: known.rule for known in properties}, below))
        return body

    def _members(self, branch: Branch) -> tuple[dict[str, Joint], Joint | None]:
        """What an object's properties must obey, by name, and those without a name; `None` if there are none."""
        listed = {key: branch.of_property(key) for key in [*branch.properties, *branch.required]}
        others = branch.others
        if others is None and not (branch.lists or listed or branch.patterned):
            others = ()
        if others is not None and branch.names:
            for option in self._alternatives.of(branch.names):
                for value in option.values or ():
                    if isinstance(value, str):
                        listed.setdefault(value, others)
        if branch.names:
            refused = [key for key in listed if not self._alternatives.admits(branch.names, key)]
            if missing := [key for key in refused if key in branch.required]:
                raise Unsatisfiable(branch.where, f"requires {missing[0]!r}, which its propertyNames forbid")
            listed = {key: joint for key, joint in listed.items() if key not in refused}
        return listed, others

    def _entries(self, branch: Branch, others: Joint | None, names: list[str], share: int) -> list[tuple[str, str]]:
        """The terminals and rules of the entries that have no name of their own."""
        entries: list[tuple[str, str]] = []
        for key, joint in self._keys.of(branch, names, others):
            try:
                entries.append((key, self._rule(joint, share, 1)))
            except Unsatisfiable:
                continue
        return entries

    def _loops(self, joints: Iterable[Joint | None]) -> int:
        """How many of some schemas refer to themselves."""
        return sum(joint is not None and self._document.endless(joint) for joint in joints)

    def _is_anything(self, joint: Joint | None) -> bool:
        try:
            return joint is not None and all(branch.is_anything for branch in self._alternatives.of(joint))
        except Refusal:
            return False

    def _anything(self, level: int) -> str:
        """The rule of any value, at a level of nesting."""
        most, share = _ANYTHING[level]
        if ("any", level) not in self._made:
            name = self._new()
            text = Branch("#", max_length=max(self._max_string // share, min(self._max_string, 16)))
            bodies = [quoted("null"), quoted("true"), quoted("false")]
            bodies += [self._bodies(Branch("#"), "number", name, 0)[0], self._bodies(text, "string", name, 0)[0]]
            if most:
                below = self._anything(level + 1)
                self._write(f"{name}_e", [entry_body(self._keys.anything(), below)])
                body, lines = object_body(f"{name}_o", [], f"{name}_e", 0, most)
                self._lines += lines
                bodies += [array_body([], below, 0, most), body]
                self.shapes[name] = Shape([((), below, False)], [({}, (below,))])
            self._made["any", level] = self._write(name, bodies)
        return str(self._made["any", level])


def _fitting(properties: list[Property], least: int, most: int | None, *, open: bool, branch: Branch) -> list[Property]:
    """Properties of which there are neither too few nor too many, whatever is left out.

    Raises:
        Unsatisfiable: more are required than there may be.
    """
    required = sum(known.required for known in properties)
    if most is not None and (required > most or least > most):
        raise Unsatisfiable(branch.where, f"allows {most} properties, and {max(required, least)} must be there")
    missing = least - required
    if missing > 0 and (not open or required < len(properties)):
        promoted = [known.name for known in properties if not known.required][:missing]
        properties = [
            Property(known.name, known.rule, known.required or known.name in promoted) for known in properties
        ]
    if most is not None:
        room = most - sum(known.required for known in properties)
        kept: list[Property] = []
        for known in properties:
            room -= not known.required
            if known.required or room >= 0:
                kept.append(known)
        properties = kept
    return properties

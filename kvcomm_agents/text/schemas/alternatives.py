"""Alternatives: all the ways to obey a schema, each as one branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .branch import Branch
from .document import Document, Joint, Node
from .exclusive import exclusive
from .keywords import own_branch
from .refusals import Unsatisfiable, Unsupported

_MOST = 256  # alternatives of one value: each is a part of the grammar


class Alternatives:
    """Reads a document.

    Args:
        document: whose schemas are read.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self._open: list[str] = []  # references that are being followed

    def of(self, joint: Joint) -> list[Branch]:
        """The ways to obey some schemas at once, at least one.

        Raises:
            Unsatisfiable: no value does.
            Unsupported: no grammar can follow them.
        """
        found: list[Branch] | None = None
        for node in dict.fromkeys(joint):
            found = self._node(node) if found is None else _crossed(found, self._node(node))
        return [Branch("#")] if found is None else found

    def admits(self, joint: Joint, value: Any) -> bool:
        """Whether a value obeys some schemas.

        Raises:
            Unsupported: no grammar can follow them.
        """
        try:
            branches = self.of(joint)
        except Unsatisfiable:
            return False
        return any(self.allows(branch, value) for branch in branches)

    def allows(self, branch: Branch, value: Any) -> bool:
        """Whether a value obeys a branch, with all that is in it.

        Raises:
            Unsupported: no grammar can follow a schema in it.
        """
        if not branch.admits(value):
            return False
        if isinstance(value, list):
            return all(self.admits(branch.of_item(index), item) for index, item in enumerate(value))
        if isinstance(value, dict):
            return all(
                self.admits(branch.of_property(name), item) and self.admits(branch.names, name)
                for name, item in value.items()
            )
        return True

    def _node(self, node: Node) -> list[Branch]:
        found = [own_branch(node)]
        if not isinstance(node.schema, Mapping):
            return found
        if "$ref" in node.schema:
            found = _crossed(found, self._reference(node))
        for joined in self._listed(node, "allOf"):
            found = _crossed(found, self._node(joined))
        if "anyOf" in node.schema:
            options = self._options(node, "anyOf")
            found = _crossed(found, [branch for _, option in options for branch in option])
        if "oneOf" in node.schema:
            options = self._options(node, "oneOf")
            # what stands beside them narrows each, and may be what keeps them apart
            narrowed = [(index, _crossed_or_none(found, option)) for index, option in options]
            left = [(index, option) for index, option in narrowed if option]
            if not left:
                found = _crossed(found, [branch for _, option in options for branch in option])
            found = exclusive(left, self, node)
        return [_tagged(branch, node.schema.get("discriminator")) for branch in found]

    def _reference(self, node: Node) -> list[Branch]:
        target = self.document.follow(node)
        if target.where in self._open:
            raise Unsupported(node.where, "refers to itself without anything between")
        self._open.append(target.where)
        try:
            return self._node(target)
        finally:
            self._open.pop()

    def _listed(self, node: Node, key: str) -> list[Node]:
        listed: Any = node.schema.get(key, [])
        if not isinstance(listed, list):
            raise Unsupported(node.where, f"has {key}={listed!r}, which is no list")
        return [node.child(key, index) for index in range(len(listed))]

    def _options(self, node: Node, key: str) -> list[tuple[int, list[Branch]]]:
        """What each alternative allows, without those that allow nothing."""
        found: list[tuple[int, list[Branch]]] = []
        reason: Unsatisfiable | None = None
        for index, option in enumerate(self._listed(node, key)):
            try:
                found.append((index, self._node(option)))
            except Unsatisfiable as error:
                reason = error
        if not found:
            raise reason or Unsatisfiable(node.where, f"has no alternative in {key}")
        return found


def _tagged(branch: Branch, discriminator: Any) -> Branch:
    """A branch that says which alternative it is, where a `discriminator` names the property that does."""
    name = discriminator.get("propertyName") if isinstance(discriminator, Mapping) else None
    if not isinstance(name, str) or name not in branch.properties or name in branch.required:
        return branch
    return replace(branch, required=(*branch.required, name))


def _crossed(some: list[Branch], others: list[Branch]) -> list[Branch]:
    """Each of the ones together with each of the others.

    Raises:
        Unsatisfiable: none go together.
        Unsupported: there are too many.
    """
    found: list[Branch] = []
    reason: Unsatisfiable | None = None
    for one in some:
        for other in others:
            try:
                found.append(one.merged(other))
            except Unsatisfiable as error:
                reason = error
    if len(found) > _MOST:
        raise Unsupported(found[0].where, f"has more than {_MOST} alternatives")
    if not found:
        raise reason or Unsatisfiable(some[0].where, "allows nothing")
    return found


def _crossed_or_none(some: list[Branch], others: list[Branch]) -> list[Branch]:
    try:
        return _crossed(some, others)
    except Unsatisfiable:
        return []

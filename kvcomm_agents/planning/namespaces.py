"""Namespaces: what every namespace has learned, within budgets that all of them share.

The namespace that was used least recently gives first: its oldest spans, its least useful anchors, its least used maps.
One of which nothing is left goes whole, after it was saved.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from ..errors import ConfigError
from ..kv.budget import MemoryBudget
from ..log import get_logger
from .namespace import Namespace

logger = get_logger(__name__)

_MOST = 1000  # namespaces in memory: each brings a few kilobytes beside its budgets


class Namespaces:
    """Namespaces by name, least recently used first. Not thread-safe: its owner serialises.

    Args:
        make: makes one when its name is first used.
        budget: bytes of spans, anchors and maps over all of them; `None` leaves each to its own.
        leave: told of one that has to go, before it does: to save it.
        most: how many there may be.
    """

    def __init__(
        self,
        make: Callable[[str], Namespace],
        budget: MemoryBudget | None = None,
        leave: Callable[[Namespace], None] = lambda namespace: None,
        most: int = _MOST,
    ) -> None:
        self.budget, self.most = budget, most
        self._make, self._leave = make, leave
        self._namespaces: OrderedDict[str, Namespace] = OrderedDict()

    def get(self, name: str) -> Namespace:
        """The namespace of that name, now the one used last; made if it is new.

        Raises:
            ConfigError: it is no name.
        """
        if not isinstance(name, str) or not name:
            raise ConfigError(f"namespace={name!r} must be a text of at least one character")
        found = self._namespaces.get(name)
        if found is None:
            found = self._namespaces[name] = self._make(name)
        self._namespaces.move_to_end(name)
        return found

    def find(self, name: str) -> Namespace | None:
        """The namespace of that name, if it is in use; does not count as a use."""
        return self._namespaces.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._namespaces

    def __len__(self) -> int:
        return len(self._namespaces)

    def __iter__(self) -> Iterator[tuple[str, Namespace]]:
        """Names and namespaces, least recently used first."""
        return iter(list(self._namespaces.items()))

    def forget(self, name: str | None = None) -> None:
        """Drop a namespace, or all; nothing of them is saved."""
        for gone in [name] if name is not None else list(self._namespaces):
            self._namespaces.pop(gone, None)

    @property
    def nbytes(self) -> int:
        """Bytes of everything learned."""
        return sum(namespace.nbytes for namespace in self._namespaces.values())

    def sizes(self) -> dict[str, int]:
        """Bytes of each part, over all namespaces. May be called from any thread."""
        held = list(self._namespaces.values())
        return {
            "spans": sum(namespace.span_bytes for namespace in held),
            "anchors": sum(namespace.anchor_bytes for namespace in held),
            "maps": sum(namespace.map_bytes for namespace in held),
        }

    def shrink(self) -> None:
        """Bring all of them within the budget, and their number within what is allowed."""
        if self.budget is not None:
            self._shrink_part(self.budget.spans, "span_bytes", lambda namespace, least: namespace.shrink_spans(least))
            self._shrink_part(
                self.budget.anchors, "anchor_bytes", lambda namespace, least: namespace.shrink_anchors(least)
            )
            self._shrink_part(self.budget.maps, "map_bytes", lambda namespace, least: namespace.shrink_maps(least))
        while len(self._namespaces) > self.most:
            name, namespace = next(iter(self._namespaces.items()))
            self._leave(namespace)
            del self._namespaces[name]
            logger.debug("namespace %s left memory: there are more than %d", name, self.most)

    def _shrink_part(self, allowed: int, size: str, shrink: Callable[[Namespace, int], None]) -> None:
        """Have namespaces give bytes of one part, least recently used first, until the rest is within `allowed`."""
        sizes = {name: getattr(namespace, size) for name, namespace in self._namespaces.items()}
        excess = sum(sizes.values()) - allowed
        for name, held in sizes.items():
            if excess <= 0:
                return
            if held:
                shrink(self._namespaces[name], max(held - excess, 0))
                excess -= held - getattr(self._namespaces[name], size)

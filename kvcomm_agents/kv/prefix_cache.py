"""KVStore: the KV of everything seen, found again by its token prefix.

One radix tree a namespace; each node is a run of tokens with its KV, marked exact or tainted. A
token's KV depends on all tokens before it, so a path from the root is the only thing KV may be
looked up by. Exact lookups never read tainted KV; exact KV replaces tainted KV, never the reverse.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.filesize import decimal

from ..log import get_logger
from ..observe.stats import PrefixStats
from .block import Capture, KVBlock

logger = get_logger(__name__)

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """Stored KV of tokens `start:stop` of the prompt asked for, computed in a context of `agent`."""

    start: int
    stop: int
    block: KVBlock
    tainted: bool
    agent: str = ""


class _Node:
    """A run of tokens below `parent`, with its KV."""

    __slots__ = ("agent", "block", "children", "parent", "tainted", "tokens")

    def __init__(
        self, tokens: Ids, block: KVBlock | None, tainted: bool, parent: _Node | None, agent: str = ""
    ) -> None:
        self.tokens, self.block, self.tainted, self.parent = tokens, block, tainted, parent
        self.agent = agent
        self.children: dict[int, _Node] = {}


class PrefixCache:
    """Longest-prefix lookup over stored KV, within byte budgets, least recently used out first.

    Thread-safe. A block handed out stays valid after its eviction.

    Args:
        device: where blocks are put when inserted. On a CPU model there is one tier with both budgets.
        device_bytes: budget of the device tier; the least recently used move to the host tier.
        host_bytes: budget of the host tier; the least recently used are forgotten.
    """

    def __init__(self, device: torch.device, device_bytes: int, host_bytes: int) -> None:
        self.device = device
        if device.type == "cpu":
            device_bytes, host_bytes = 0, device_bytes + host_bytes
        self.device_budget, self.host_budget = device_bytes, host_bytes
        self._roots: dict[tuple[str, int], _Node] = {}
        self._recent: OrderedDict[_Node, None] = OrderedDict()  # least recently used first
        self._bytes = {True: 0, False: 0}  # by "is on the device tier"
        self._lock = threading.RLock()
        self._told_full = False

    @property
    def budget_bytes(self) -> int:
        """Of both tiers."""
        return self.device_budget + self.host_budget

    def match(self, namespace: str, ids: Sequence[int], *, exact: bool, variant: int = 0) -> list[Hit]:
        """The longest stored prefix of `ids`, as consecutive hits from 0.

        Args:
            namespace: only what was inserted under it is seen.
            ids: token ids of the prompt.
            exact: stop at the first tainted token.
            variant: of the context that it is for (see `KVLayout.variant`).
        """
        array, hits = np.asarray(ids, dtype=np.int64), list[Hit]()
        with self._lock:
            path = []
            for node, start, shared in self._walk((namespace, variant), array):
                if shared == 0 or (exact and node.tainted) or node.block is None:
                    break
                path.append(node)
                hits.append(Hit(start, start + shared, node.block.slice(0, shared), node.tainted, node.agent))
            for node in reversed(path):  # a parent is more recent than its children, so the oldest node is a leaf
                self._recent.move_to_end(node)
        return hits

    def insert(
        self,
        namespace: str,
        ids: Sequence[int],
        tainted_from: int,
        capture: Capture,
        agent: str = "",
        variant: int = 0,
    ) -> int:
        """Remember the KV of a context.

        Args:
            namespace: who may find it again.
            ids: token ids of the context.
            tainted_from: position from which on its KV is approximate; `len(ids)` if none is.
            capture: copies the KV of positions `start:stop` out of the context; called only for
                what is new, or exact where the stored one is tainted.
            agent: whose context it is, for reports.
            variant: of the context (see `KVLayout.variant`).

        Returns:
            Tokens that were new.
        """
        array, added = np.asarray(ids, dtype=np.int64), 0
        tainted_from = min(tainted_from, len(array))
        with self._lock:
            if self.device_budget + self.host_budget == 0:
                return 0
            node, at = self._roots.setdefault((namespace, variant), _Node(array[:0], None, False, None)), 0
            path = []
            while at < len(array):
                child = node.children.get(int(array[at]))
                exact_here = at < tainted_from
                if child is None:
                    stop = tainted_from if exact_here else len(array)
                    child = self._add(node, array[at:stop], capture(at, stop), tainted=not exact_here, agent=agent)
                    added += stop - at
                else:
                    shared = _common(child.tokens, array[at:])
                    if exact_here and child.tainted:
                        shared = min(shared, tainted_from - at)
                    if shared < len(child.tokens):
                        child = self._split(child, shared)
                    if exact_here and child.tainted:
                        self._replace(child, capture(at, at + shared))
                        child.agent = agent
                path.append(child)
                at += len(child.tokens)
                node = child
            for node in reversed(path):
                self._recent.move_to_end(node)
                self._promote(node)
            self._shrink()
        return added

    def clear(self, namespace: str | None = None) -> None:
        """Forget a namespace, or everything."""
        with self._lock:
            for key in [key for key in self._roots if namespace in (None, key[0])]:
                root = self._roots.pop(key, None)
                for node in list(_below(root)) if root else []:
                    self._forget(node)

    def release_device(self) -> int:
        """Free the device's memory for a request that needs it. Returns the bytes freed.

        On a CPU model the device is the host: everything is forgotten.
        """
        with self._lock:
            if self.device.type == "cpu":
                freed = self._bytes[False]
                self.clear()
                return freed
            before, budget = self._bytes[True], self.device_budget
            self.device_budget = 0
            try:
                self._evict()
            finally:
                self.device_budget = budget
            return before - self._bytes[True]

    def stats(self) -> PrefixStats:
        """What is held now."""
        with self._lock:
            tokens = sum(len(node.tokens) for node in self._recent)
            return PrefixStats(self._bytes[True], self._bytes[False], len(self._recent), tokens)

    def _walk(self, key: tuple[str, int], ids: Ids) -> Iterator[tuple[_Node, int, int]]:
        """Nodes along `ids` with their start and how many of their tokens agree."""
        node, at = self._roots.get(key), 0
        while node is not None and at < len(ids):
            child = node.children.get(int(ids[at]))
            if child is None:
                return
            shared = _common(child.tokens, ids[at:])
            yield child, at, shared
            if shared < len(child.tokens):
                return
            node, at = child, at + shared

    def _on_device(self, block: KVBlock) -> bool:
        return self.device.type != "cpu" and block.keys.device.type == self.device.type

    def _add(self, parent: _Node, tokens: Ids, block: KVBlock, *, tainted: bool, agent: str) -> _Node:
        node = _Node(tokens.copy(), block, tainted, parent, agent)
        parent.children[int(tokens[0])] = node
        self._recent[node] = None
        self._bytes[self._on_device(block)] += block.nbytes
        return node

    def _replace(self, node: _Node, block: KVBlock) -> None:
        if node.block is not None:
            self._bytes[self._on_device(node.block)] -= node.block.nbytes
        self._bytes[self._on_device(block)] += block.nbytes
        node.block, node.tainted = block, False

    def _split(self, node: _Node, at: int) -> _Node:
        """Cut a node in two after `at` tokens; returns the upper one."""
        block, parent = node.block, node.parent
        if block is None or parent is None:
            raise RuntimeError("the root of a namespace was split")  # a bug, never input
        upper = _Node(node.tokens[:at].copy(), block.slice(0, at).clone(), node.tainted, parent, node.agent)
        parent.children[int(upper.tokens[0])] = upper
        node.tokens, node.block, node.parent = (
            node.tokens[at:].copy(),
            block.slice(at, block.tokens).clone(),
            upper,
        )
        upper.children[int(node.tokens[0])] = node
        self._recent[upper] = None
        return upper

    def _promote(self, node: _Node) -> None:
        """Back to the device tier, now that it is used again."""
        if node.block is None or self.device_budget == 0 or self._on_device(node.block):
            return
        self._bytes[False] -= node.block.nbytes
        node.block = node.block.to(self.device)
        self._bytes[True] += node.block.nbytes

    def _forget(self, node: _Node) -> None:
        if node.block is not None:
            self._bytes[self._on_device(node.block)] -= node.block.nbytes
        self._recent.pop(node, None)
        if node.parent is not None:
            node.parent.children.pop(int(node.tokens[0]), None)
        node.block = node.parent = None

    def _shrink(self) -> None:
        before, nodes = dict(self._bytes), len(self._recent)
        self._evict()
        forgotten, moved = nodes - len(self._recent), before[True] - self._bytes[True]
        if forgotten or moved:
            self._tell_evicted(forgotten, moved, sum(before.values()) - sum(self._bytes.values()))

    def _tell_evicted(self, nodes: int, moved: int, forgotten: int) -> None:
        """The first eviction at INFO, since it says that a budget is full; the rest at DEBUG."""
        level, self._told_full = (logging.DEBUG if self._told_full else logging.INFO), True
        logger.log(
            level,
            "prefixes over their budget of %s on the device and %s on the host: %s left the device, %d (%s) forgotten",
            decimal(self.device_budget),
            decimal(self.host_budget),
            decimal(moved),
            nodes,
            decimal(forgotten),
        )

    def _evict(self) -> None:
        for node in list(self._recent) if self._bytes[True] > self.device_budget else []:
            if self._bytes[True] <= self.device_budget:
                break
            if node.block is not None and self._on_device(node.block):
                self._bytes[True] -= node.block.nbytes
                node.block = node.block.to(torch.device("cpu"))
                self._bytes[False] += node.block.nbytes
        while self._bytes[False] > self.host_budget:
            leaf = next((n for n in self._recent if not n.children and not self._kept_on_device(n)), None)
            if leaf is None:  # only device leaves hang below host nodes: they go with them
                leaf = next(n for n in self._recent if not n.children)
            self._forget(leaf)

    def _kept_on_device(self, node: _Node) -> bool:
        return node.block is not None and self._on_device(node.block)


def _common(a: Ids, b: Ids) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _below(node: _Node) -> Iterator[_Node]:
    """All descendants, children before their parents, however deep the tree."""
    order, waiting = list[_Node](), [node]
    while waiting:
        reached = waiting.pop()
        order.append(reached)
        waiting += reached.children.values()
    yield from reversed(order[1:])

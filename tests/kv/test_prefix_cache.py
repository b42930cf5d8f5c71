"""The store gives back what was put in, by prefix, exact apart from tainted, within its budgets."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.prefix_cache import PrefixCache

CPU = torch.device("cpu")
TOKEN_BYTES = 2 * 8  # one layer, one head, dim 1, float64 keys and values
contexts = st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(0, 9))


def kv_of(ids: list[int], tainted_from: int, namespace: str) -> torch.Tensor:
    """A token's KV is a function of its namespace, all tokens before it, and whether it is tainted."""
    rows = [hash((namespace, tuple(ids[: i + 1]), i >= tainted_from)) % (1 << 40) for i in range(len(ids))]
    return torch.tensor(rows, dtype=torch.float64)[None, None, :, None]


def put(store: PrefixCache, namespace: str, ids: list[int], tainted_from: int) -> int:
    kv = kv_of(ids, tainted_from, namespace)
    return store.insert(namespace, ids, tainted_from, lambda a, b: KVBlock(kv[:, :, a:b], kv[:, :, a:b], a).clone())


def lookup(store: PrefixCache, namespace: str, ids: list[int], *, exact: bool) -> tuple[list[float], list[bool]]:
    values, taints = list[float](), list[bool]()
    for hit in store.match(namespace, ids, exact=exact):
        assert (hit.start, hit.block.position) == (len(values), len(values))
        values += hit.block.values.flatten().tolist()
        taints += [hit.tainted] * (hit.stop - hit.start)
    return values, taints


@settings(max_examples=300, deadline=None)
@given(st.lists(contexts, max_size=12), contexts)
def test_longest_prefix_of_everything_inserted(inserted: list[tuple[str, list[int], int]], query: tuple) -> None:
    store = PrefixCache(CPU, 1 << 30, 0)
    exact_known: set[tuple] = set()
    known: set[tuple] = set()
    for namespace, ids, taint in inserted:
        put(store, namespace, ids, min(taint, len(ids)))
        known |= {(namespace, *ids[: i + 1]) for i in range(len(ids))}
        exact_known |= {(namespace, *ids[: i + 1]) for i in range(min(taint, len(ids)))}
    namespace, ids, _ = query
    for exact, seen in ((True, exact_known), (False, known)):
        values, taints = lookup(store, namespace, ids, exact=exact)
        prefixes = [(namespace, *ids[: i + 1]) in seen for i in range(len(ids))]
        assert len(values) == (prefixes.index(False) if False in prefixes else len(ids))
        assert taints == [(namespace, *ids[: i + 1]) not in exact_known for i in range(len(values))]
        if exact:
            assert values == kv_of(ids, len(ids), namespace).flatten()[: len(values)].tolist()
    assert store.stats().host_bytes == store.stats().tokens * TOKEN_BYTES == len(known) * TOKEN_BYTES


@settings(max_examples=200, deadline=None)
@given(st.lists(contexts, max_size=15), st.integers(0, 12))
def test_budget_holds_and_what_is_left_is_right(inserted: list[tuple[str, list[int], int]], tokens: int) -> None:
    store = PrefixCache(CPU, 0, tokens * TOKEN_BYTES)
    for namespace, ids, taint in inserted:
        put(store, namespace, ids, min(taint, len(ids)))
        assert store.stats().host_bytes <= tokens * TOKEN_BYTES
    for namespace, ids, _ in inserted:
        values, _ = lookup(store, namespace, ids, exact=True)
        assert values == kv_of(ids, len(ids), namespace).flatten()[: len(values)].tolist()
    store.clear()
    assert (store.stats().host_bytes, store.stats().nodes) == (0, 0)


def test_least_recently_used_goes_first() -> None:
    store = PrefixCache(CPU, 0, 8 * TOKEN_BYTES)
    put(store, "a", [1, 1, 1, 1], 4)
    put(store, "a", [2, 2, 2, 2], 4)
    lookup(store, "a", [1, 1, 1, 1], exact=True)
    put(store, "a", [3, 3], 2)
    assert len(lookup(store, "a", [1, 1, 1, 1], exact=True)[0]) == 4
    assert lookup(store, "a", [2, 2, 2, 2], exact=True)[0] == []


def test_only_what_is_new_is_captured() -> None:
    store, asked = PrefixCache(CPU, 1 << 20, 0), list[tuple[int, int]]()

    def capture(start: int, stop: int) -> KVBlock:
        asked.append((start, stop))
        return KVBlock(torch.zeros(1, 1, stop - start, 1), torch.zeros(1, 1, stop - start, 1), start)

    assert store.insert("a", [1, 2, 3], 3, capture) == 3
    assert store.insert("a", [1, 2, 3, 4], 4, capture) == 1
    assert store.insert("a", [1, 2, 3], 0, capture) == 0
    assert asked == [(0, 3), (3, 4)]


def test_evicted_blocks_stay_valid_for_who_holds_them() -> None:
    store = PrefixCache(CPU, 0, 4 * TOKEN_BYTES)
    put(store, "a", [1, 2, 3, 4], 4)
    (hit,) = store.match("a", [1, 2, 3, 4], exact=True)
    put(store, "a", [5, 6, 7, 8], 4)
    assert store.match("a", [1, 2, 3, 4], exact=True) == []
    assert hit.block.values.flatten().tolist() == kv_of([1, 2, 3, 4], 4, "a").flatten().tolist()


def test_a_tree_of_any_depth_is_forgotten() -> None:
    store = PrefixCache(CPU, 1 << 30, 0)
    for length in range(1, 1500):
        put(store, "a", [1] * length, length)
    assert store.stats().nodes == 1499
    store.clear("a")
    assert (store.stats().nodes, store.stats().host_bytes) == (0, 0)


def test_a_context_that_was_given_up_is_stored_with_just_its_tokens() -> None:
    """Its plan would have been tainted from a token on that it never reached."""
    store = PrefixCache(CPU, 1 << 30, 0)
    put(store, "a", [1, 2, 3], 9)
    (hit,) = store.match("a", [1, 2, 3, 4], exact=True)
    assert (hit.stop, hit.block.tokens) == (3, 3)
    assert store.stats().tokens == 3

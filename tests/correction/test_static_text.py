"""Own text: means of what recurs, for as long as it is known."""

from __future__ import annotations

import torch

from kvcomm_agents.correction.static_text import StaticText
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.span_library import SpanLibrary

TOKENS = 20


def block(value: float) -> KVBlock:
    return KVBlock(torch.full((2, 1, TOKENS, 4), value), torch.full((2, 1, TOKENS, 4), -value))


def test_the_mean_of_all_examples_is_placed_and_goes_with_its_span() -> None:
    library, own = SpanLibrary(2 * block(0.0).nbytes, min_span=12), StaticText()
    span = library.add(list(range(TOKENS)), block(1.0), producer="a", origin="prompt", exact=True)
    assert span is not None
    assert own.block("a", span.id, 0, TOKENS) is None
    own.learn("a", span, 0, block(4.0))
    own.learn("a", span, 0, block(7.0))
    found = own.block("a", span.id, 3, 9)
    assert found is not None
    assert torch.allclose(found.keys, torch.full_like(found.keys, 4.0))  # the donor is an example too
    assert own.block("b", span.id, 0, TOKENS) is None
    own.prune(library)
    assert own.nbytes == block(0.0).nbytes
    for start in (100, 200):
        library.add(list(range(start, start + TOKENS)), block(0.0), producer="a", origin="prompt", exact=True)
    own.prune(library)
    assert own.nbytes == 0

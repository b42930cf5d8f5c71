"""Keys can be moved anywhere and back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import MOVABLE
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm_agents.backends.transformers.probe import inspect
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.rope import Rope
from kvcomm_agents.models.loading import LoadedModel

KEYS = torch.randn(3, 2, 7, 16, generator=torch.Generator().manual_seed(0))


def keys_at(block: KVBlock, position: int, rope: Rope | None) -> torch.Tensor:
    """What a cache holds once the block is written to it there."""
    keys, values = torch.full_like(block.keys, torch.nan), torch.full_like(block.values, torch.nan)
    block.write(keys, values, position, rope)
    assert torch.equal(values, block.values)
    return keys


@pytest.mark.parametrize("family", MOVABLE)
@settings(max_examples=15, deadline=None)
@given(there=st.integers(0, 500), elsewhere=st.integers(0, 5000))
def test_moving_there_and_back_changes_nothing(
    tiny: Callable[[str], LoadedModel], family: str, there: int, elsewhere: int
) -> None:
    layout = inspect(tiny(family).model)
    rope = layout.require_movable()
    keys = KEYS[..., : layout.key_dim]
    block = KVBlock(rope.rotate(keys, there), keys, there)
    moved = KVBlock(keys_at(block, elsewhere, rope), keys, elsewhere)
    torch.testing.assert_close(keys_at(moved, there, rope), block.keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(block.unrotated(rope).keys, keys, atol=1e-5, rtol=1e-5)


def test_keys_that_stay_are_written_untouched(tiny: Callable[[str], LoadedModel]) -> None:
    rope = inspect(tiny("llama").model).require_movable()
    block = KVBlock(KEYS[..., :8].to(torch.bfloat16), KEYS[..., :8], 3)
    assert torch.equal(keys_at(block, 3, rope), block.keys)
    assert torch.equal(keys_at(block, 3, None), block.keys)
    with pytest.raises(ValueError, match="cannot be moved to 4"):
        keys_at(block, 4, None)


def test_bf16_keys_are_rotated_in_fp32(tiny: Callable[[str], LoadedModel]) -> None:
    """One rounding: the error is that of bf16 storage, at any position."""
    rope = inspect(tiny("llama").model).require_movable()
    keys = KEYS[..., :8].to(torch.bfloat16)
    exact = rope.rotate(keys.float(), 4000)
    rounded = rope.rotate(keys, 4000)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.to(torch.bfloat16))


def test_a_long_block_is_turned_as_its_tokens_are(tiny: Callable[[str], LoadedModel]) -> None:
    rope = inspect(tiny("llama").model).require_movable()
    keys = torch.randn(2, 2, 1200, 8)
    turned = rope.rotate(keys, 7)
    for start, stop in ((0, 1), (511, 514), (1023, 1025), (1199, 1200)):
        assert torch.equal(turned[..., start:stop, :], rope.rotate(keys[..., start:stop, :].clone(), 7 + start))

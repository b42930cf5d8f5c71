"""Rotary position embedding: the only file that knows it.

Keys are rotated and un-rotated in float32, whatever the model's dtype, and rounded once.
RoFormer (arXiv 2104.09864) Eq. 15; partial rotary leaves the last channels alone; llama3, linear
and yarn scaling only change the angles, yarn also the length of the rotated vector.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Pairing = Literal["half", "interleaved"]

_TURNED = 512  # tokens turned at once on a CPU


class Rope:
    """Rotates keys of one model to positions, and back.

    The angles come from the model's own rotary module, so every scaling that is a function of the
    position alone is right by construction.

    Args:
        rotary: the model's rotary module: `(x, position_ids) -> (cos, sin)`, each `[1, tokens, rotary_dim]`.
        pairing: which channels turn together: `half` pairs `i` with `i + rotary_dim/2`,
            `interleaved` pairs `2i` with `2i + 1`.
        device: where keys live.
        limit: positions below which its angles are asked for; 0 if they are the same for any.
    """

    def __init__(self, rotary: nn.Module, pairing: Pairing, device: torch.device, limit: int = 0) -> None:
        self.pairing: Pairing = pairing
        self._rotary, self._limit = rotary, limit
        self._device = device
        self._cos = torch.empty(0, 0, device=device)
        self._sin = torch.empty(0, 0, device=device)

    @torch.no_grad()
    def _tables(self, length: int) -> None:
        length = max(1024, 1 << (length - 1).bit_length())
        length = min(length, self._limit or length)
        positions = torch.arange(length, device=self._device)[None]
        cos, sin = self._rotary(torch.empty(1, 1, 1, dtype=torch.float32, device=self._device), positions)
        half = cos.shape[-1] // 2
        # A rotary module lists each angle twice: one copy after the other, or each beside its twin.
        twins = bool(torch.equal(cos[..., 0::2], cos[..., 1::2])) and half > 1
        pick = slice(0, None, 2) if twins else slice(0, half)
        self._cos, self._sin = cos[0, :, pick].contiguous(), sin[0, :, pick].contiguous()

    def angles(self, positions: slice) -> tuple[Tensor, Tensor]:
        """Cos and sin at consecutive positions, float32 `[tokens, rotary_dim/2]`, scaled as the model scales them."""
        if positions.stop > self._cos.shape[0]:
            self._tables(positions.stop)
        return self._cos[positions], self._sin[positions]

    def rotate(
        self, keys: Tensor, start: int, *, dtype: torch.dtype | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Keys `[..., tokens, head_dim]` before RoPE -> as the model caches them at `start, start+1, ...`.

        Args:
            keys: before RoPE.
            start: position of the first.
            dtype: of the result; that of `keys` if left out.
            out: where the result goes, in its dtype; new memory if left out.
        """
        cos, sin = self.angles(slice(start, start + keys.shape[-2]))
        return self._turn(keys, cos, sin, _room(keys, dtype) if out is None else out)

    def unrotate(self, keys: Tensor, start: int, *, dtype: torch.dtype | None = None) -> Tensor:
        """The inverse of `rotate`."""
        cos, sin = self.angles(slice(start, start + keys.shape[-2]))
        length = cos * cos + sin * sin
        return self._turn(keys, cos / length, -sin / length, _room(keys, dtype))

    def _turn(self, keys: Tensor, cos: Tensor, sin: Tensor, turned: Tensor) -> Tensor:
        if keys.dim() > 3 and keys.device.type == "cpu":  # in small parts, so that what is between stays in the cache
            for part, into in zip(keys, turned, strict=True):
                for start in range(0, keys.shape[-2], _TURNED):
                    some = slice(start, start + _TURNED)
                    self._turn(part[..., some, :], cos[some], sin[some], into[..., some, :])
            return turned
        pairs = cos.shape[-1]
        if self.pairing == "half":
            first, second = slice(0, pairs), slice(pairs, 2 * pairs)
        else:
            first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        whole = keys.float()
        a, b = whole[..., first], whole[..., second]
        exact = torch.empty_like(whole)
        torch.mul(a, cos, out=exact[..., first]).addcmul_(b, sin, value=-1)
        torch.mul(b, cos, out=exact[..., second]).addcmul_(a, sin)
        exact[..., 2 * pairs :] = whole[..., 2 * pairs :]
        return turned.copy_(exact)


def _room(keys: Tensor, dtype: torch.dtype | None) -> Tensor:
    return torch.empty(keys.shape, dtype=dtype or keys.dtype, device=keys.device)

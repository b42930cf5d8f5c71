"""Basis: the few directions, per layer, in which base KV is told apart.

Principal directions of the base KV of the first spans, found once by subspace iteration from a fixed
random start. Where those spans have fewer tokens than directions, the rest stay random, so the basis
is a random projection when nothing has been seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """A projection of feature vectors, per layer above 0.

    Args:
        project: bfloat16 `[layers - 1, features, rank]`, scaled so that projections have mean square 1.
        shift: float32 `[layers - 1, rank]`: the projection of the mean.
    """

    project: Tensor
    shift: Tensor

    @classmethod
    def fit(cls, seen: Tensor, rank: int) -> Basis:
        """Principal directions of `seen`, float32 `[layers - 1, tokens, features]`."""
        layers, tokens, features = seen.shape
        mean = seen.mean(1, keepdim=True)
        centred = seen - mean
        scale = centred.square().mean((1, 2), keepdim=True).sqrt_().clamp_min_(1e-12)
        centred /= scale
        start = torch.randn(features, rank, generator=torch.Generator().manual_seed(0))
        directions = start.to(seen.device).expand(layers, -1, -1)
        for _ in range(_ROUNDS + 1):
            image = centred.mT @ (centred @ directions) / tokens
            # A trace of the old keeps directions that no token has from collapsing.
            directions = torch.linalg.qr(image + 1e-4 * directions)[0]
        spread = (centred @ directions).square().mean((1, 2), keepdim=True).sqrt_().clamp_min_(1e-6)
        project = (directions / (scale * spread)).to(torch.bfloat16)
        return cls(project, (mean @ project.float()).squeeze(1))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.project.nbytes + self.shift.nbytes

    def __call__(self, flat: Tensor, layers: list[int] | slice = slice(None)) -> Tensor:
        """Projections of float32 `[layers, tokens, features]`: `[layers, tokens, rank]`."""
        return torch.baddbmm(self.shift[layers, None], flat, self.project[layers].to(flat.dtype), beta=-1)

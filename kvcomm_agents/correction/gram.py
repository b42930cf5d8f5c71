"""The running sums of a slot, how they are solved, and what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HEAD_TOKENS = 8
"""First tokens of a span that have an offset of their own."""
SLOT_BYTES = 64_000_000
_LEVERAGE_RIDGE = 0.1
_FEW_TOKENS = 16


def slot_bytes(layers: int, features: int, rank: int) -> int:
    """Bytes of a slot that is its agent's only one: its sums, its map and its agent's map.

    Args:
        layers: of the model; the first has no map.
        features: `kv_heads * (key_dim + value_dim)`.
        rank: of the basis.
    """
    inputs = rank + 1 + HEAD_TOKENS
    return (layers - 1) * (4 * inputs * inputs + inputs * features * (4 + 2 + 2))


def basis_bytes(layers: int, features: int, rank: int) -> int:
    """Bytes of the basis, one for all slots."""
    return (layers - 1) * rank * (2 * features + 4)


def token_flops(layers: int, features: int, rank: int) -> int:
    """FLOPs of correcting one token."""
    return 2 * (layers - 1) * features * (rank + rank + 1 + HEAD_TOKENS)


def fitting_rank(layers: int, features: int, wanted: int) -> int:
    """The largest rank up to `wanted` at which a slot, with half of the basis, costs at most 64 MB."""
    rank = min(wanted, features)
    while rank > 8 and slot_bytes(layers, features, rank) + basis_bytes(layers, features, rank) // 2 > SLOT_BYTES:
        rank -= 8
    return rank


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A map, bfloat16 `[layers - 1, inputs, features]`, and what it stands on: own and agent's examples."""

    map: Tensor
    own: int
    agent: int


class Gram:
    """Running sums of a slot: `gram [layers - 1, inputs, inputs]`, `cross [layers - 1, inputs, features]`."""

    def __init__(self) -> None:
        self.examples = 0
        self.tokens = 0.0
        self.gram = torch.empty(0, 0, 0)
        self.cross = torch.empty(0, 0, 0)
        self.level = math.inf  # what `leverage` is measured against
        self.solution: Solution | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of sums and map."""
        return self.gram.nbytes + self.cross.nbytes + (self.solution.map.nbytes if self.solution else 0)

    def add(self, x: Tensor, y: Tensor, weight: float) -> None:
        """Add a span's inputs `[layers - 1, tokens, inputs]` and true offsets `[layers - 1, tokens, features]`."""
        if not self.examples:
            self.gram = x.new_zeros(x.shape[0], x.shape[2], x.shape[2])
            self.cross = x.new_zeros(x.shape[0], x.shape[2], y.shape[2])
        self.gram.baddbmm_(x.mT, x, alpha=weight)
        self.cross.baddbmm_(x.mT, y, alpha=weight)
        self.examples += 1
        self.tokens += weight * x.shape[1]

    def merge(self, other: Gram) -> None:
        """Add another slot's sums."""
        if not other.examples:
            return
        if not self.examples:
            self.gram, self.cross = torch.zeros_like(other.gram), torch.zeros_like(other.cross)
            self.level = other.level
        share = other.examples / (self.examples + other.examples)
        self.level = (1 - share) * self.level + share * other.level
        self.gram += other.gram
        self.cross += other.cross
        self.examples += other.examples
        self.tokens += other.tokens

    def ridge(self, target: Tensor, strength: float) -> Tensor:
        """`(G + strength I)^-1 target`, by Cholesky."""
        eye = torch.eye(self.gram.shape[1], device=self.gram.device)
        return torch.cholesky_solve(target, torch.linalg.cholesky(self.gram + strength * eye))

    def spread(self, x: Tensor, layers: list[int]) -> float:
        """How far a span lies from what was learned, in no unit: compare it with `level`.

        The mean over tokens of `d' M^-1 d`, times that of the span's mean, `d` from the learned mean and
        `M` the learned covariance. Single tokens of another domain are a little unusual each; their mean,
        in which the ordinary variety of tokens cancels, is very unusual. The product tells best.

        Args:
            x: inputs `[layers, tokens, inputs]`; of these the projections count.
            layers: which of the learned layers they are.
        """
        rank = x.shape[2] - 1 - HEAD_TOKENS
        # The constant feature is `bias`: its row sums the inputs `bias` times, its own square `bias^2` times.
        mean = self.gram[layers, rank, :rank] / self.gram[layers, rank, rank, None] * x[:, :1, rank]
        moment = self.gram[layers, :rank, :rank] / self.tokens - mean[:, :, None] * mean[:, None]
        moment.diagonal(dim1=1, dim2=2).add_(_LEVERAGE_RIDGE)
        apart = (x[..., :rank] - mean[:, None]).mT
        apart = torch.cat([apart, apart.mean(2, keepdim=True)], dim=2)
        distance = (apart * torch.cholesky_solve(apart, torch.linalg.cholesky(moment))).sum(1).mean(0)
        # The mean of few tokens lies far off by chance.
        certainty = x.shape[1] / (x.shape[1] + _FEW_TOKENS)
        return float(distance[:-1].mean() * distance[-1]) * certainty

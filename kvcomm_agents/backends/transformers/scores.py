"""FullScores: next-token distributions over the whole vocabulary, kept as logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...backend import Divergence, Scores


@dataclass(frozen=True, slots=True, eq=False)
class FullScores:
    """Distributions at consecutive positions.

    Args:
        logits: `[positions, vocabulary]` float32.
    """

    logits: Tensor

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> FullScores | None:
        """From logits `[vocabulary]` each; `None` of none."""
        return cls(torch.stack(list(rows))) if rows else None

    def __len__(self) -> int:
        return self.logits.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the logits."""
        return self.logits.untyped_storage().nbytes()

    def head(self, positions: int) -> FullScores:
        """Those of so many first positions."""
        return self if positions >= len(self) else FullScores(self.logits[:positions].clone())

    def divergence(self, other: Scores) -> Divergence:
        """KL(self || other), over the positions that both have.

        Raises:
            TypeError: `other` is not of this engine.
        """
        if not isinstance(other, FullScores):
            raise TypeError(f"scores of another engine cannot be compared: {type(other).__name__}")
        shared = min(len(self), len(other))
        return divergence(self.logits[:shared], other.logits[:shared])


def divergence(dense: Tensor, other: Tensor) -> Divergence:
    """Compare logits `[positions, vocabulary]`: KL(dense || other), mean, first and largest."""
    p, q = dense.log_softmax(-1), other.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).clamp_min(0)
    top1 = (dense.argmax(-1) == other.argmax(-1)).float().mean()
    return Divergence(float(kl.mean()), float(kl[0]), float(kl.max()), float(top1))

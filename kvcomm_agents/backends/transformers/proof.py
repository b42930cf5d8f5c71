"""Proof: contexts give, in the way they are about to be served, what a dense forward pass gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...log import get_logger
from .probe import tolerance

logger = get_logger(__name__)

SAMPLE = tuple(7 * at + 3 + at // 5 for at in range(12))
"""The text that is run: token ids."""

_PIECES = (slice(0, 5), slice(5, 10), slice(10, 11), slice(11, 12))
"""A prompt in two pieces, then two tokens of an answer."""


def objection(step: Callable[[Sequence[int]], Tensor], expected: Tensor, dtype: torch.dtype) -> str:
    """What speaks against serving a model so, in a few words; empty if nothing does.

    Args:
        step: takes tokens into a context that is empty at first; logits `[1, vocabulary]` of the last of them.
        expected: logits `[len(SAMPLE), vocabulary]` of a dense pass.
        dtype: of the model.
    """
    errors = []
    try:
        for piece in _PIECES:
            wanted = expected[piece.stop - 1]
            errors.append(float((step(SAMPLE[piece])[-1] - wanted).norm() / wanted.norm()))
    except Exception as error:  # whatever a model makes of a cache that is not its own
        logger.debug("a way to serve a model failed", exc_info=True)
        return f"{type(error).__name__}: {error}"
    # Of what stands behind the first piece the middle: rounding may send one token to other experts.
    middle = sorted(errors[1:])[1]
    return "" if middle < tolerance(dtype) else f"logits differ by {middle:.1g}"

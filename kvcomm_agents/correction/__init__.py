"""Correctors: donor KV at a slot -> the KV a dense prefill would have given there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..errors import ConfigError
from .base import Correction, Corrector, Example, Slot
from .interpolation import InterpolationCorrector
from .linear import LinearConfig, LinearCorrector
from .mean import MeanCorrector
from .none import NoCorrector
from .token_knn import TokenKnnCorrector

CORRECTORS: dict[str, Callable[..., Corrector]] = {
    "none": NoCorrector,
    "mean": MeanCorrector,
    "interpolation": InterpolationCorrector,
    "token_knn": TokenKnnCorrector,
    "linear": LinearCorrector,
}


def make_corrector(
    name: str, pool: Iterable[tuple[Slot, Example]] = (), config: LinearConfig | None = None, **options: Any
) -> Corrector:
    """A corrector that has learned what a pool holds.

    Args:
        name: one of `CORRECTORS`.
        pool: examples at slots, oldest first, such as an `AnchorPool`. Leave it out if a saved state
            is loaded instead, or its examples count twice.
        config: for `linear`.
        options: keyword arguments of the corrector's class.

    Raises:
        ConfigError: there is no corrector of that name.
    """
    if name not in CORRECTORS:
        raise ConfigError(f"corrector {name!r} is none of {tuple(CORRECTORS)}")
    if config is not None and name == "linear":
        options["config"] = config
    return CORRECTORS[name](pool, **options)


__all__ = [
    "CORRECTORS",
    "Correction",
    "Corrector",
    "Example",
    "InterpolationCorrector",
    "LinearConfig",
    "LinearCorrector",
    "MeanCorrector",
    "NoCorrector",
    "Slot",
    "TokenKnnCorrector",
    "make_corrector",
]

"""Correctors: donor KV at a slot -> the KV a dense prefill would have given there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kvcomm_agents.correction.base import Correction, Corrector, Example
from kvcomm_agents.correction.linear import LinearConfig, LinearCorrector
from kvcomm_agents.correction.token_knn import TokenKnnCorrector
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.kv.slot import Slot

from .interpolation import InterpolationCorrector
from .mean import MeanCorrector
from .none import NoCorrector

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

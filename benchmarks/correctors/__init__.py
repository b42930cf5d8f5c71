"""Correctors: donor KV at a slot -> the KV a dense prefill would have given there; those of the package and others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kvcomm_agents.correction.base import Corrector, Example
from kvcomm_agents.correction.linear import LinearCorrector
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.kv.slot import Slot

from .interpolation import InterpolationCorrector
from .mean import MeanCorrector
from .none import NoCorrector
from .token_knn import TokenKnnCorrector

__all__ = ["CORRECTORS", "InterpolationCorrector", "MeanCorrector", "NoCorrector", "make_corrector"]

CORRECTORS: dict[str, Callable[..., Corrector]] = {
    "none": NoCorrector,
    "mean": MeanCorrector,
    "interpolation": InterpolationCorrector,
    "token_knn": TokenKnnCorrector,
    "linear": LinearCorrector,
}


def make_corrector(name: str, pool: Iterable[tuple[Slot, Example]] = (), **options: Any) -> Corrector:
    """A corrector of `CORRECTORS` that has learned a pool's examples, oldest first; its class takes the options.

    Raises:
        ConfigError: there is no corrector of that name.
    """
    if name not in CORRECTORS:
        raise ConfigError(f"corrector {name!r} is none of {tuple(CORRECTORS)}")
    return CORRECTORS[name](pool, **options)

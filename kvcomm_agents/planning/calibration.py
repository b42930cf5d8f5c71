"""Calibration: what reuse costs on a model, as a few numbers, before anything of an app was measured.

log(KL + 0.001) of a call on a rung is taken to be the rung's level, plus slopes on how much is placed, plus an
effect of the app, of the agent, of the call, and a rest. The levels and variances differ between models; how they
came about is in `docs/calibration.md`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError

FLOOR = 1e-3
"""Added to KL before its logarithm is taken: below it, KL is rounding and makes no difference."""

_LEVELS = {
    "raw64": -5.973,
    "raw third": -5.5,
    "raw32": -5.073,
    "raw16": -4.694,
    "raw6": -4.441,
    "raw32 static": -4.561,
    "raw16 static": -4.329,
    "raw6 static": -4.174,
    "map16": -4.720,
    "map6": -4.449,
    "map16 static": -4.259,
    "map6 static": -4.029,
    "map0 static": -3.882,
    "map16@8": -4.699,
    "map6@8": -4.475,
    "map16 static@8": -4.528,
    "map6 static@8": -4.359,
    "map0 static@8": -4.165,
}


@dataclass(frozen=True, slots=True)
class Calibration:
    """The numbers of one model.

    Args:
        source: what they were measured on, in words: said in reports.
        levels: of log(KL + 0.001), by rung; `NAME@8` where maps have eight examples or more.
        slopes: on the logarithm of the tokens that could be placed, and on the share of the prompt that is.
        center: of these two, where the levels hold.
        app, agent, call, rest: variances of the effects.
        estimate: variance of a measurement over 32 positions.
        residual_slope: on the logarithm of the residual of computed heads, relative to `residual`; 0 if unknown.
        residual: what is usual of that logarithm.
        margin: a prediction is multiplied by it: the lowest of several predictions is too low.
    """

    source: str = "other models"
    levels: Mapping[str, float] = field(default_factory=lambda: dict(_LEVELS))
    slopes: tuple[float, float] = (0.42, 0.29)
    center: tuple[float, float] = (5.69, 0.54)
    app: float = 1.0
    agent: float = 0.106
    call: float = 0.305
    rest: float = 0.226
    estimate: float = 0.18
    residual_slope: float = 0.0
    residual: float = -1.9
    margin: float = 1.3

    def __post_init__(self) -> None:
        for name in ("app", "agent", "call", "rest", "estimate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"calibration: the variance {name}={value} must be a positive number")
        if not self.levels or not all(math.isfinite(level) for level in self.levels.values()):
            raise ConfigError(f"calibration: levels={dict(self.levels)} must be finite numbers, one a rung")

    def level(self, rung: str, examples: int) -> float:
        """Of a rung, with maps of so many examples; infinite if it was not measured."""
        if examples >= 8 and f"{rung}@8" in self.levels:
            return self.levels[f"{rung}@8"]
        return self.levels.get(rung, math.inf)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """What `save` wrote.

        Raises:
            ConfigError: there is no such file, or it holds no calibration.
        """
        try:
            saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in saved.items()}
            return cls(**values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path} holds no calibration: {error}; leave the setting out, or write one") from error


# Heads matter more on the second model that was measured, by up to a half.
_CAUTION = {"raw16": 0.3, "raw6": 0.4, "map6": 0.3, "map6 static": 0.3, "map0 static": 0.4, "map0 static@8": 0.4}
SAFE_DEFAULT = Calibration(levels={name: level + _CAUTION.get(name, 0.0) for name, level in _LEVELS.items()})
"""For models that were not measured."""

SHIPPED: dict[str, Calibration] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Calibration(
        source="this model, five teams of agents", app=0.825, residual_slope=1.06
    ),
}
"""By the name a model was published under."""


def find_calibration(model: str, path: str | None = None) -> Calibration:
    """A user's own, if a file is named; else what is shipped for the model; else the safe default.

    Raises:
        ConfigError: the file holds no calibration.
    """
    if path is not None:
        return Calibration.load(Path(path).expanduser())
    return SHIPPED.get(model, SAFE_DEFAULT)

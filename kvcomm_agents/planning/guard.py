"""Guard: predicts how far a reused request would diverge, and picks the least computation that keeps the bound.

One guard serves all agents of a namespace: apps differ far more than agents of one app do, and a measurement of one
tells of all. The model is linear with random effects (see `Calibration`): the effect of the app, and of each agent
within it, are estimated from what was measured, shrunk towards what is usual. So a first reading is predicted
from the calibration alone, and each measurement narrows the rest.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SavedMemoryError
from .calibration import FLOOR, SAFE_DEFAULT, Calibration
from .ladder import BY_NAME, LONG

_WINDOW = 80  # measurements that the guard goes by; older ones are of maps and texts that are gone
_LEAST = 1e-5  # nobody can promise less: it is rounding
_DRIFT = 0.02  # variance that a measurement gains with each decision after it: apps and their texts change
_AGES = 8  # decisions after which that is looked at again
_RESIDUALS = 64  # readings whose heads are remembered
_LEAST_SAVED = 0.05  # of what an exact prefix cache would compute; less is not worth any divergence
_LONG_SHARE, _FEW_SPANS = 0.85, 3  # a prompt that is nearly all one or two spans: a few heads are little there


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of a prompt before any of its tokens is computed.

    Args:
        span_tokens: that could be placed.
        placed: share of the whole prompt that a plan places approximately.
        spans: how many there are.
        examples: behind the maps of their reader, the fewest.
        warmed: share of the span tokens whose KV no agent has computed in any context.
    """

    span_tokens: int
    placed: float
    spans: int = 1
    examples: int = 0
    warmed: float = 0.0

    def vector(self) -> NDArray[np.float64]:
        """What the slopes multiply."""
        return np.array([math.log(max(self.span_tokens, 1)), self.placed])

    @property
    def long(self) -> bool:
        """Whether the prompt is nearly all one or two spans."""
        return self.placed > _LONG_SHARE and self.spans < _FEW_SPANS


@dataclass(frozen=True, slots=True)
class Option:
    """A rung that a prompt could be prefilled on.

    Args:
        rung: its name.
        computed: tokens that would go through the model.
        situation: of the prompt on it.
    """

    rung: str
    computed: int
    situation: Situation


@dataclass(frozen=True, slots=True)
class GuardDecision:
    """What the guard allows.

    Args:
        option: `None` is exact.
        predicted: mean KL per token expected of it, nats; 0 for exact.
        basis: what the prediction goes by: the `calibration` alone, measurements of the `app`, or of the `agent`.
        trial: another option that would tell most if it were measured beside: the next cheaper one, or, of a
            prompt that is served exactly, the one whose prediction is nearest to the bound.
        reason: in a few words, for reports.
    """

    option: Option | None
    predicted: float
    basis: str
    trial: Option | None = None
    reason: str = ""

    def __str__(self) -> str:
        rung = "exact" if self.option is None else f"{self.option.rung}, predicted {self.predicted:.4f}"
        return f"{rung} by {self.basis}: {self.reason}"


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One measurement: on this rung this call diverged by this much (mean KL per token, nats).

    `call` tells measurements of one call from those of others. `predicted` is what the guard had said of a
    request it let through, `None` of a trial.
    """

    agent: str
    call: int
    rung: str
    situation: Situation
    kl: float
    predicted: float | None = None


class Guard:
    """Decides per request; learns from audits and trials.

    Args:
        max_divergence: the user's bound: on the mean KL per token of an app's reused calls.
        calibration: of the model.
        quantile: the bound holds for this share of calls instead of for their mean; `None` bounds the mean.
    """

    def __init__(
        self, max_divergence: float, calibration: Calibration = SAFE_DEFAULT, quantile: float | None = None
    ) -> None:
        self.max_divergence, self.calibration, self.quantile = max_divergence, calibration, quantile
        self._records: deque[AuditRecord] = deque(maxlen=_WINDOW)
        self._served: deque[AuditRecord] = deque(maxlen=1000)
        self._residuals: deque[float] = deque(maxlen=_RESIDUALS)
        self._decided = self._solved_at = 0
        self._since: deque[int] = deque(maxlen=_WINDOW)  # decisions before each measurement
        self._solved: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def learn(self, record: AuditRecord) -> None:
        """Take in one measurement."""
        self._records.append(record)
        self._since.append(self._decided)
        if record.predicted is not None:
            self._served.append(record)
        self._solved = None

    def sense(self, residual: float) -> None:
        """Take in what computed heads say of a call, for nothing: the relative error of the KV placed there before."""
        if residual > 0 and math.isfinite(residual):
            self._residuals.append(math.log(residual))

    def __len__(self) -> int:
        """Measurements it goes by."""
        return len(self._records)

    def measured(self, agent: str) -> int:
        """Measured calls of an agent."""
        return len({record.call for record in self._records if record.agent == agent})

    def basis(self, agent: str) -> str:
        """What a prediction for an agent goes by: `calibration`, `app` or `agent`."""
        if not self._records:
            return "calibration"
        return "agent" if self.measured(agent) else "app"

    def predict(self, agent: str, rung: str, situation: Situation) -> float:
        """Expected mean KL per token, or its quantile; infinity for a rung that the calibration does not know."""
        effect, variance = self._effect(agent)
        level = self._expected(rung, situation) + effect
        spread = variance + self.calibration.call + self.calibration.rest
        if self.quantile is not None:
            return max(math.exp(level + NormalDist().inv_cdf(self.quantile) * math.sqrt(spread)) - FLOOR, _LEAST)
        # The mean of a log-normal: requests are many, and it is their mean that is bounded.
        return max(self.calibration.margin * (math.exp(level + spread / 2) - FLOOR), _LEAST)

    def decide(self, agent: str, options: Sequence[Option], exact: int) -> GuardDecision:
        """The option that computes least and whose expected divergence is within the bound; exact if none is.

        Args:
            agent: who reads.
            options: rungs that the prompt could be prefilled on.
            exact: tokens that would be computed without any.
        """
        self._decided += 1
        basis = self.basis(agent)
        worth = [option for option in options if option.computed <= (1 - _LEAST_SAVED) * exact]
        if not worth:
            return GuardDecision(None, 0.0, basis, reason="too little would be saved")
        measured = self.measured(agent)
        allowed = [option for option in worth if _allowed(option, measured)]
        predicted = {id(option): self.predict(agent, option.rung, option.situation) for option in worth}
        within = [option for option in allowed if predicted[id(option)] <= self.max_divergence]
        if not within:
            least = min(predicted[id(option)] for option in allowed or worth)
            nearest = min(worth, key=lambda each: abs(math.log(max(predicted[id(each)], 1e-4) / self.max_divergence)))
            if not allowed:
                return GuardDecision(None, 0.0, basis, nearest, "too little would be saved before it is measured")
            return GuardDecision(None, 0.0, basis, nearest, f"predicted {least:.4f} > {self.max_divergence}")
        best = min(within, key=lambda option: (option.computed, predicted[id(option)]))
        cheaper = [option for option in worth if option.computed < best.computed]
        trial = max(cheaper, key=lambda option: option.computed, default=None)
        return GuardDecision(best, predicted[id(best)], basis, trial, "within the bound")

    def state(self) -> Tensor:
        """All records, for a file: JSON as bytes `[n]` uint8."""
        rows = [asdict(record) for record in self._records]
        return torch.frombuffer(bytearray(json.dumps({"records": rows}).encode()), dtype=torch.uint8)

    def load_state(self, state: Tensor) -> None:
        """Take in what `state` gave. Measurements of rungs that are no more are left out.

        Raises:
            SavedMemoryError: it is damaged.
        """
        try:
            saved = json.loads(bytes(state.tolist()))
            for row in saved["records"] if isinstance(saved, dict) else ():
                situation = Situation(**row["situation"])
                record = AuditRecord(str(row["agent"]), int(row["call"]), str(row["rung"]), situation, float(row["kl"]))
                if record.rung in BY_NAME and math.isfinite(record.kl):
                    self.learn(record)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise SavedMemoryError(f"the saved audits are damaged: {error}") from error

    def coverage(self) -> tuple[int, int]:
        """Audited requests that were let through, and how many of them exceeded the bound. Thread-safe."""
        served = tuple(self._served)  # copied at once: the worker appends to it
        return len(served), sum(record.kl > self.max_divergence for record in served)

    def _expected(self, rung: str, situation: Situation) -> float:
        """log(KL + floor) of a rung in a situation, in an app of which nothing is known."""
        calibration = self.calibration
        beyond = situation.vector() - np.array(calibration.center)
        return (
            calibration.level(rung, situation.examples)
            + float(beyond @ np.array(calibration.slopes))
            + situation.warmed
        )

    def _prior(self) -> float:
        """What the heads that were computed say of the app, before any audit: 0 is usual."""
        if not self._residuals or not self.calibration.residual_slope:
            return 0.0
        unusual = float(np.mean(self._residuals)) - self.calibration.residual
        weight = len(self._residuals) / (len(self._residuals) + 4.0)
        return max(0.0, self.calibration.residual_slope * weight * unusual)  # it warns, and never reassures

    def _effect(self, agent: str) -> tuple[float, float]:
        """Mean and variance of the effect of the app and the agent together (best linear unbiased prediction)."""
        calibration, prior = self.calibration, self._prior()
        variance = calibration.app + calibration.agent
        if not self._records:
            return prior, variance
        inverse, surprise = self._solve()
        same = np.array([record.agent == agent for record in self._records], dtype=np.float64)
        shared = calibration.app + calibration.agent * same
        weights = shared @ inverse
        return prior + float(weights @ (surprise - prior)), max(variance - float(weights @ shared), 0.0)

    def _solve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Inverse covariance of the measurements, and how far each was from what was expected; kept until the next."""
        if self._solved is None or self._decided - self._solved_at >= _AGES:
            self._solved_at = self._decided
            calibration, records = self.calibration, list(self._records)
            agents = np.array([record.agent for record in records])
            calls = np.array([record.call for record in records])
            covariance = (
                calibration.app
                + calibration.agent * (agents[:, None] == agents[None])
                + calibration.call * (calls[:, None] == calls[None])
                + np.diag(calibration.rest + calibration.estimate + _DRIFT * (self._decided - np.array(self._since)))
            )
            surprise = np.array(
                [math.log(record.kl + FLOOR) - self._expected(record.rung, record.situation) for record in records]
            )
            self._solved = np.linalg.inv(covariance), surprise
        return self._solved


def _allowed(option: Option, measured: int) -> bool:
    """Whether a reader of whom so many calls were measured may be given it."""
    if not measured and option.situation.long:
        return option.rung == LONG.name
    return measured >= BY_NAME[option.rung].needs

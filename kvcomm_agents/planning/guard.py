"""Guard: predicts how far a reused request would diverge, and picks the least computation that is safe.

It knows only what audits measured. Per rung and agent it keeps recent pairs of (features, true mean
KL per token) and fits log KL: an agent's level shrunk towards its rung's, and slopes on the features
shrunk towards a prior, so that text unlike anything measured is expected to be worse even before
anything of its kind was seen. With too few audits it says infinity: no data, no reuse.
"""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..correction.saved.manifest import WARMED
from ..errors import SavedMemoryError
from .ladder import LADDER

_FLOOR = 1e-5  # KL below this is rounding; keeps logs finite
_WINDOW = 48  # audits of an agent that are remembered
_HALF_LIFE = 16  # audits after which a record counts half: maps improve, old records are pessimistic
_SHRINK = 2.0  # records an agent needs to weigh as much as its rung's level
_PRIOR_SPREAD = 1.0  # of log KL between requests of one agent, before there is data
_PRIOR_SLOPES = np.array([0.4, 0.4])
_PRIOR_RECORDS = 10.0
_RUNGS = {rung.name: index for index, rung in enumerate(LADDER)}


@dataclass(frozen=True, slots=True)
class Features:
    """What is known of a request before any token is computed.

    Args:
        leverage: of its spans in the map's feature space, relative to spans seen before (1 is usual).
        disagreement: relative distance of the two correctors' KV, of the span where it is largest.
        novelty: 1 - cosine of the span's embedding to the nearest anchor's.
        examples: fewest examples behind any of its corrections.
        warmed: share of its span tokens whose base was warmed and has no donor.
    """

    leverage: float = 1.0
    disagreement: float = 0.0
    novelty: float = 0.0
    examples: int = 0
    warmed: float = 0.0

    def vector(self) -> NDArray[np.float64]:
        """What the slopes multiply: log leverage (below 1 counts as 1) and log disagreement."""
        return np.array([math.log(min(max(self.leverage, 1.0), 1e4)), math.log(max(self.disagreement, 1e-3))])


@dataclass(frozen=True, slots=True)
class GuardDecision:
    """How much to compute.

    Args:
        rung: index into `LADDER`; `None` is dense.
        predicted: mean KL per token expected at that rung; 0 for dense.
        novel: the text is unlike what was measured: an audit is due.
        reason: in a few words, for reports.
    """

    rung: int | None
    predicted: float
    novel: bool = False
    reason: str = ""

    def __str__(self) -> str:
        rung = "dense" if self.rung is None else f"{LADDER[self.rung].name}, predicted {self.predicted:.4f}"
        return f"{rung}: {self.reason}"


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One measurement: at this rung this request diverged by this much (mean KL per token, nats).

    `predicted` is what the guard had said of a request it let through, `None` of a trial run.
    """

    agent: str
    rung: int
    features: Features
    kl: float
    predicted: float | None = None


class Guard:
    """Decides per request; learns from audits.

    Args:
        max_divergence: the user's bound on mean KL per token.
        min_records: audits of an agent before anything of it is reused.
    """

    def __init__(self, max_divergence: float, min_records: int = 4) -> None:
        self.max_divergence, self.min_records = max_divergence, min_records
        self._by_agent: list[dict[str, deque[AuditRecord]]] = [{} for _ in LADDER]
        self._served: deque[AuditRecord] = deque(maxlen=1000)

    def learn(self, record: AuditRecord) -> None:
        """Take in one measurement."""
        reader = _reader(record.agent, record.features)
        mine = self._by_agent[record.rung].setdefault(reader, deque(maxlen=_WINDOW))
        mine.append(record)
        if record.predicted is not None:
            self._served.append(record)

    def __len__(self) -> int:
        """Measurements it goes by."""
        return sum(len(mine) for agents in self._by_agent for mine in agents.values())

    def records(self, agent: str) -> int:
        """Measurements of an agent at the rung measured least."""
        return min(len(agents.get(agent, ())) for agents in self._by_agent)

    def predict(self, agent: str, rung: int, features: Features) -> float:
        """Expected mean KL per token; infinity without data."""
        agents, reader = self._by_agent[rung], _reader(agent, features)
        if len(agents.get(reader, ())) < self.min_records:
            return math.inf
        # A warmed base is a weaker one: requests with any are judged by their like alone.
        agents = {name: mine for name, mine in agents.items() if _is_warmed(name) == _is_warmed(reader)}
        records = [one for mine in agents.values() for one in mine]
        age = np.concatenate([np.arange(len(mine))[::-1] for mine in agents.values()])
        weights = 0.5 ** (age / _HALF_LIFE)
        levels = np.array([math.log(one.kl + _FLOOR) for one in records])
        vectors = np.stack([one.features.vector() for one in records])
        mine = np.array([one.agent == agent for one in records])  # of one kind, so the agent tells
        center = _mean(vectors, weights)
        slopes = _slopes(vectors - center, levels - _mean(levels, weights), weights)
        flat = levels - (vectors - center) @ slopes
        common = _mean(flat, weights)
        weight = weights[mine].sum()
        level = (weights[mine] @ flat[mine] + _SHRINK * common) / (weight + _SHRINK)
        squares = weights[mine] @ (flat[mine] - level) ** 2 + _SHRINK * _PRIOR_SPREAD**2
        variance = float(squares / (weight + _SHRINK))
        slope = float((features.vector() - center) @ slopes)
        # The mean of a log-normal: requests are many, and it is their mean that is bounded.
        return float(np.exp(level + slope + variance / 2))

    def decide(self, agent: str, features: Features) -> GuardDecision:
        """The lowest rung whose expected divergence is within the bound; dense if none is."""
        novel = self.is_novel(agent, features)
        worst = math.inf
        for rung in range(len(LADDER) - 1 if novel else 0, len(LADDER)):
            worst = self.predict(agent, rung, features)
            if worst <= self.max_divergence:
                return GuardDecision(rung, worst, novel, "novel text" if novel else "within the bound")
        reason = f"predicted {worst:.4f} > {self.max_divergence}"
        if math.isinf(worst):
            reason = f"{self.records(_reader(agent, features))} of {self.min_records} audits"
        return GuardDecision(None, 0.0, novel, reason)

    def usual(self, agent: str) -> Features:
        """What is typical of the agent's requests: for one that only goes on from approximate KV of its own."""
        known = [one.features for one in self._by_agent[0].get(agent, ())]
        if not known:
            return Features()
        leverage = float(np.median([one.leverage for one in known]))
        return Features(leverage, float(np.median([one.disagreement for one in known])))

    def is_novel(self, agent: str, features: Features) -> bool:
        """Whether a request lies outside what was measured of its agent."""
        own = [one.features.leverage for one in self._by_agent[0].get(_reader(agent, features), ())]
        return bool(own) and features.leverage > 1.5 * max(1.0, *own)

    def state(self) -> Tensor:
        """All records, for a file: JSON as bytes `[n]` uint8."""
        records = [one for agents in self._by_agent for mine in agents.values() for one in mine]
        rows = [{**asdict(one), "rung": LADDER[one.rung].name} for one in records]
        return torch.frombuffer(bytearray(json.dumps(rows).encode()), dtype=torch.uint8)

    def load_state(self, state: Tensor) -> None:
        """Take in what `state` gave.

        Raises:
            SavedMemoryError: it is damaged.
        """
        try:
            for row in json.loads(bytes(state.tolist())):
                rung = _RUNGS[row["rung"]]
                self.learn(AuditRecord(row["agent"], rung, Features(**row["features"]), float(row["kl"])))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise SavedMemoryError(f"the saved audits are damaged: {error}") from error

    def coverage(self) -> tuple[int, int]:
        """Audited requests that were let through, and how many of them exceeded the bound. Thread-safe."""
        served = tuple(self._served)  # copied at once: the worker appends to it
        return len(served), sum(one.kl > self.max_divergence for one in served)


def _reader(agent: str, features: Features) -> str:
    """Under which name measurements are kept: of requests with warmed bases apart from those without."""
    return agent + WARMED if features.warmed else agent


def _is_warmed(reader: str) -> bool:
    return reader.endswith(WARMED)


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(weights @ values / weights.sum(), dtype=np.float64)


def _slopes(
    vectors: NDArray[np.float64], levels: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weighted ridge regression towards the prior slopes, never below zero: more novel is never safer."""
    gram = vectors.T @ (weights[:, None] * vectors) + _PRIOR_RECORDS * np.eye(len(_PRIOR_SLOPES)) * 0.1
    target = vectors.T @ (weights * (levels - vectors @ _PRIOR_SLOPES))
    return np.asarray(np.maximum(_PRIOR_SLOPES + np.linalg.solve(gram, target), 0.0))

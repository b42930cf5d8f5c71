"""`linear`: per slot and layer, a ridge map from a token's base KV to what a dense prefill changes in it.

With `x` the token's features (its base KV in a `Basis`, 1, and which of the span's first tokens it is)
and `y` its true offset, a slot keeps `G = sum x x'` and `C = sum x y'`, and

    W_agent = (G_a + l I)^-1 C_a                               over all slots of the agent
    W_slot  = W_agent + (G_s + l I)^-1 (C_s - G_s W_agent)

so a slot with little data follows its agent, and an agent with little data changes little. All sums are
linear in the examples: learning one by one is learning all at once.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import GiB
from ..errors import SavedMemoryError
from ..kv.block import KVBlock
from ..kv.slot import Slot
from . import flat
from .base import Correction, Example, unchanged
from .basis import Basis
from .gram import HEAD_TOKENS, Gram, Solution, fitting_rank
from .slots import SlotTable

_LEVEL_MEMORY = 0.3
_UNSEEN = 100.0  # how much farther a second span is than half of the only one is from the whole of it


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """How the map is fitted.

    Args:
        rank: directions in which a token's base KV enters, at most; fewer if a slot would exceed 64 MB.
        ridge: prior strength, in tokens of unit mean square per feature.
        bias: value of the constant and position features: larger is less shrunk.
        warm_tokens: the basis is refitted, each time the tokens seen have doubled, up to this many; then fixed.
        watched: layers, evenly spread, that leverage is measured on.
        tolerated: leverage up to which a map is applied in full; beyond, it is scaled down.
        budget: bytes of everything learned.
    """

    rank: int = 128
    ridge: float = 300.0
    bias: float = 10.0
    warm_tokens: int = 1024
    watched: int = 4
    tolerated: float = 2.0
    budget: int = GiB


class LinearCorrector:
    """Ridge maps over running Gram matrices, slot shrinking towards agent, agent towards nothing.

    Args:
        pool: examples to start from, oldest first, such as an `AnchorPool`.
        config: see `LinearConfig`.
    """

    name = "linear"

    def __init__(self, pool: Iterable[tuple[Slot, Example]] = (), config: LinearConfig | None = None) -> None:
        self.config = config or LinearConfig()
        self._table = SlotTable(self.config.budget, Gram)
        self._readers: dict[Slot, Solution] = {}
        self._basis: Basis | None = None
        self._warm: list[tuple[Slot, Example]] = []
        self._fitted = 0  # tokens behind the basis
        self._fixed = False
        self._lock = threading.RLock()
        for slot, example in pool:
            self.learn(slot, example)

    @torch.no_grad()
    def learn(self, slot: Slot, example: Example) -> None:
        """Add one example to its slot's sums; solving waits for `solve` or the next `correct`."""
        if example.base.keys.shape[0] < 2 or example.base.tokens == 0:
            return
        with self._lock:
            if not self._fixed:
                self._warm.append((slot, example))
            tokens = sum(one.base.tokens for _, one in self._warm)
            if not self._fixed and (tokens >= self.config.warm_tokens or tokens >= 2 * self._fitted):
                self._refit(tokens)
            else:
                self._add(slot, example)
            self._table.shrink()

    def _refit(self, tokens: int) -> None:
        """Learn the first examples anew in a basis that knows them all; the last time, keep it."""
        seen = torch.cat([flat.flatten(example.base) for _, example in self._warm], dim=1)
        rank = fitting_rank(seen.shape[0] + 1, seen.shape[2], self.config.rank)
        self._basis, self._fitted = Basis.fit(seen, rank), tokens
        self._table.forget(None)
        for slot, example in self._warm:
            self._add(slot, example)
        if tokens >= self.config.warm_tokens:
            self._fixed, self._warm = True, []

    def _add(self, slot: Slot, example: Example) -> None:
        base = flat.flatten(example.base)
        x = self._inputs(base, example.offset)
        sums = self._table.make(slot)
        watched = self._watched(x.shape[0])
        if sums.examples:  # before it is learned: how far an ordinary new example is
            spread, seen = sums.spread(x[watched], watched), sums.examples - 1
            if seen < 2:  # the first measurement, of a covariance from one span, is far too large
                sums.level = spread
            else:  # one stranger does not move it far
                sums.level += max(1 / seen, _LEVEL_MEMORY) * (min(spread, 3 * sums.level) - sums.level)
        sums.add(x, flat.flatten(example.true) - base, example.weight)
        if sums.examples == 1:  # a guess, until the next one tells
            sums.level = _UNSEEN * sums.spread(x[watched, : -(-x.shape[1] // 2)], watched) + 1e-6
        self._readers.pop(slot.reader, None)

    def _watched(self, layers: int) -> list[int]:
        """A few evenly spread layers, counted from the second."""
        return sorted({round((layers - 1) * (i + 1) / self.config.watched) for i in range(self.config.watched)})

    def _inputs(self, flattened: Tensor, offset: int, layers: list[int] | slice = slice(None)) -> Tensor:
        """`[layers, tokens, rank + 1 + 8]`: projected base KV, a constant, one-hot index of head tokens."""
        if self._basis is None:
            raise RuntimeError("inputs are asked for before any example")  # a bug, never input
        projected = self._basis(flattened, layers)
        count, tokens, rank = projected.shape
        x = projected.new_zeros(count, tokens, rank + 1 + HEAD_TOKENS)
        x[..., :rank] = projected
        x[..., rank] = self.config.bias
        heads = torch.arange(offset, max(offset, min(offset + tokens, HEAD_TOKENS)), device=x.device)
        x[:, heads - offset, rank + 1 + heads] = self.config.bias
        return x

    @torch.no_grad()
    def solve(self, slot: Slot | None = None) -> None:
        """Bring a slot's map up to date, or every slot's; meant for after `learn`, off the critical path."""
        with self._lock:
            for known, sums in self._table.items():
                if slot is None or known == slot:
                    self._solve(known, sums)
            self._table.shrink()

    def _solve(self, slot: Slot, sums: Gram) -> Solution:
        total = self._table.total(slot.reader) or sums
        agent_map = total.ridge(total.cross, self.config.ridge)
        left = torch.baddbmm(sums.cross, sums.gram, agent_map, alpha=-1)
        agent_map += sums.ridge(left, self.config.ridge)
        sums.solution = Solution(agent_map.to(torch.bfloat16), sums.examples, total.examples)
        return sums.solution

    def _solved(self, slot: Slot) -> tuple[Gram, Solution] | None:
        """The slot's sums and map, else its agent's; solved now if examples came since."""
        sums = self._table.get(slot)
        if sums is not None:
            held = sums.solution
            # A sibling slot's example moves this one's map little; half as many again is news.
            agent = sum(part.examples for part in self._table.of_reader(slot.reader))
            if held is None or held.own != sums.examples or agent > 1.5 * held.agent:
                held = self._solve(slot, sums)
            return sums, held
        total = self._table.total(slot.reader)
        if total is None:
            return None
        held = self._readers.get(slot.reader)
        if held is None:
            agent_map = total.ridge(total.cross, self.config.ridge).to(torch.bfloat16)
            held = self._readers[slot.reader] = Solution(agent_map, 0, total.examples)
        return total, held

    @torch.no_grad()
    def correct(
        self, slot: Slot, base: KVBlock, embedding: Tensor | None = None, offset: int = 0, *, step: bool = False
    ) -> Correction:
        """Base plus the map's offsets, scaled down where the base is unlike anything learned.

        With `step` they are scaled by n / (n + 1) as well, after n examples.
        """
        if not base.tokens:
            return unchanged(base)
        with self._lock:
            found = self._solved(slot)
            if found is None:
                return unchanged(base)
            sums, solution = found
            x = self._inputs(flat.flatten(base), offset)
            watched = self._watched(x.shape[0])
            leverage = sums.spread(x[watched], watched) / sums.level
        change = torch.bmm(x, solution.map.to(x.dtype))
        if sums.examples < 2:
            leverage = 1.0  # not measured yet
        scale = min(1.0, math.sqrt(self.config.tolerated / max(leverage, 1e-9)))
        confidence = scale * sums.examples / (sums.examples + 1)
        scale = confidence if step else scale
        return Correction(flat.add(base, change, scale), confidence, sums.examples)

    @torch.no_grad()
    def leverage(self, slot: Slot, base: KVBlock) -> float:
        """How far a span lies from those learned: about 1 in their domain, far above 1 outside it.

        `Gram.spread` over its running mean for examples before they were learned. `inf` when nothing is
        known of slot and agent; a rough guess after a single example.
        """
        with self._lock:
            sums = self._table.get(slot) or self._table.total(slot.reader)
            if sums is None or not base.tokens:
                return math.inf
            watched = self._watched(base.keys.shape[0] - 1)
            x = self._inputs(flat.flatten(base, [layer + 1 for layer in watched]), 0, watched)
            return sums.spread(x, watched) / sums.level

    def residual(self, slot: Slot, base: KVBlock, true: KVBlock, offset: int = 0) -> float:
        """Relative error left after correcting `base`: norm of the error over norm of `true`, above layer 0."""
        wanted = flat.flatten(true)
        error = flat.flatten(self.correct(slot, base, offset=offset).block) - wanted
        return float(error.norm() / wanted.norm().clamp_min(1e-12))

    def state(self) -> dict[str, Tensor]:
        """All sums and the basis, for `AnchorPool.save(extra=...)`; empty while the basis is being fitted."""
        with self._lock:
            if self._basis is None or not self._fixed:
                return {}
            state = {"linear.project": self._basis.project, "linear.shift": self._basis.shift}
            rows = []
            for index, (slot, sums) in enumerate(self._table.items()):
                rows.append([slot.agent, slot.place, sums.examples, sums.tokens, sums.level, slot.warmed])
                state[f"linear.{index}.gram"] = sums.gram.clone()
                state[f"linear.{index}.cross"] = sums.cross.clone()
            state["linear.slots"] = torch.frombuffer(bytearray(json.dumps(rows).encode()), dtype=torch.uint8)
            return state

    def load_state(self, state: dict[str, Tensor]) -> bool:
        """Take over what `state` gave, in place of everything learned. `False` if there is nothing in it.

        Raises:
            SavedMemoryError: it is damaged, or of another shape than its own basis.
        """
        if "linear.slots" not in state:
            return False
        try:
            basis = Basis(state["linear.project"], state["linear.shift"])
            layers, features, rank = basis.project.shape
            inputs = rank + 1 + HEAD_TOKENS
            table = SlotTable(self.config.budget, Gram)
            for index, row in enumerate(json.loads(bytes(state["linear.slots"].tolist()))):
                sums = table.make(_slot(row))
                sums.examples, sums.tokens, sums.level = int(row[2]), float(row[3]), float(row[4])
                sums.gram, sums.cross = state[f"linear.{index}.gram"], state[f"linear.{index}.cross"]
                shapes = (layers, inputs, inputs), (layers, inputs, features)
                if (tuple(sums.gram.shape), tuple(sums.cross.shape)) != shapes:
                    raise ValueError(f"the sums of slot {index} do not fit the basis")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SavedMemoryError(f"the saved state of the linear corrector is damaged: {error}") from error
        with self._lock:
            self._basis, self._table, self._fixed, self._warm = basis, table, True, []
            self._readers.clear()
        return True

    def knows(self, slot: Slot) -> int:
        """Examples behind a slot: its own, or its agent's if it has none."""
        with self._lock:
            return self._table.knows(slot)

    def seen(self, slot: Slot) -> bool:
        """Whether the slot itself was learned from."""
        with self._lock:
            return self._table.get(slot) is not None

    def shrink(self, nbytes: int) -> None:
        """Drop maps, those used least recently first, until no more than so many bytes are held; all, if need be."""
        with self._lock:
            self._readers.clear()
            self._table.drop(max(nbytes - (self.nbytes - self._table.nbytes), 0))
            if self.nbytes > nbytes and not len(self._table):
                self._basis, self._warm, self._fitted, self._fixed = None, [], 0, False

    def forget(self, agent: str | None = None) -> None:
        """Forget an agent, or everything. The basis stays: it says what tokens look like, not who sent them."""
        with self._lock:
            self._table.forget(agent)
            self._warm = [(slot, e) for slot, e in self._warm if agent is not None and slot.agent != agent]
            self._readers = {r: s for r, s in self._readers.items() if agent is not None and r.agent != agent}

    @property
    def nbytes(self) -> int:
        """Bytes of sums, maps, the basis, and the examples it is being fitted to."""
        with self._lock:
            warm = sum(example.nbytes for _, example in self._warm)
            agents = sum(solution.map.nbytes for solution in self._readers.values())
            return self._table.nbytes + agents + warm + (self._basis.nbytes if self._basis else 0)


def _slot(row: list[Any]) -> Slot:
    """The slot of a saved row; earlier versions hid in the agent's name that its texts were warmed."""
    agent = str(row[0])
    warmed = bool(row[5]) if len(row) > 5 else agent.endswith("\0warm")
    return Slot(agent.removesuffix("\0warm"), str(row[1]), warmed)

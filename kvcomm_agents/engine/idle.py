"""IdleScheduler: orders the work that nobody waits for, and does it a chunk at a time.

What the next request is likely to need comes first, then measuring and learning in the order in which they came,
then texts that nobody has read yet. A chunk is a forward pass over a bounded number of tokens, so a request that
comes in between waits for one at most. Work that has piled up is dropped, the least useful of it first: what was
not learned is only slower, never wrong.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from ..log import get_logger
from ..observe.stats import IdleCost, IdleStats
from ..planning.idle_work import IdleKind, IdleWork

logger = get_logger(__name__)

RANK: dict[IdleKind, int] = {"correct": 0, "audit": 1, "trial": 1, "learn": 1, "warm": 2}
"""Lower ranks are done first; within one, first come first."""
URGENT = 0
"""The rank of what the next request is likely to need."""

_USEFUL: tuple[IdleKind, ...] = ("trial", "audit", "correct", "learn")  # the least first; a warm-up was asked for
_MAX_PENDING = 32  # pieces of work that may wait, those that were asked for not counted
_LATELY = 16  # chunks by which the next one is judged
_BUSY_SHARE = 0.02  # of the time in which requests run that idle work may take without an idle moment

Run = Callable[[IdleWork], Generator[int, None, Sequence[IdleWork]]]


@dataclass(slots=True, eq=False)
class _Task:
    """Work that was begun."""

    work: IdleWork
    chunks: Generator[int, None, Sequence[IdleWork]]


@dataclass(slots=True, eq=False)
class _Line:
    """What waits in one rank, and what of it was begun."""

    waiting: deque[IdleWork] = field(default_factory=deque)
    begun: _Task | None = None

    def __len__(self) -> int:
        return len(self.waiting) + (self.begun is not None)


class IdleScheduler:
    """Keeps and does idle work. Not thread-safe: the worker's own.

    Args:
        run: makes chunks of a piece of work.
        charge: told the namespace, the kind and the tokens of each chunk.
        max_bytes: that waiting work may keep alive; more of it is dropped.
    """

    def __init__(
        self, run: Run, charge: Callable[[str, IdleKind, int], None] = lambda *_: None, max_bytes: int | None = None
    ) -> None:
        self._run, self._charge, self.max_bytes = run, charge, max_bytes
        self._lines = [_Line() for _ in sorted(set(RANK.values()))]
        self._tokens: Counter[IdleKind] = Counter()
        self._seconds: defaultdict[IdleKind, float] = defaultdict(float)
        self._done: Counter[IdleKind] = Counter()
        self._shed: Counter[IdleKind] = Counter()
        self._busy_s = self._taken_s = 0.0
        self._lately: deque[float] = deque(maxlen=_LATELY)  # seconds of the last chunks
        self._clock: tuple[float, float | None] = (0.0, None)  # seconds of chunks done, and when one was begun

    def __len__(self) -> int:
        """Pieces of work that are not done."""
        return sum(len(line) for line in self._lines)

    @property
    def urgent(self) -> bool:
        """Whether there is work that the next request is likely to need."""
        return bool(len(self._lines[URGENT]))

    @property
    def nbytes(self) -> int:
        """Bytes that waiting work keeps alive. Thread-safe."""
        return sum(work.nbytes for line in self._lines for work in line.waiting.copy())

    @property
    def seconds(self) -> float:
        """Of all chunks so far, that which is under way too. Thread-safe."""
        done, begun = self._clock
        return done if begun is None else done + time.perf_counter() - begun

    @property
    def stats(self) -> IdleStats:
        """What was done, what it took, and what waits. Thread-safe."""
        kinds = sorted({*self._done, *self._tokens, *self._shed})
        costs: dict[str, IdleCost] = {
            kind: IdleCost(self._done[kind], self._tokens[kind], self._seconds[kind], self._shed[kind])
            for kind in kinds
        }
        waiting = [work for line in self._lines for work in line.waiting.copy()]
        return IdleStats(len(self), sum(work.tokens for work in waiting), sum(work.nbytes for work in waiting), costs)

    def submit(self, work: Sequence[IdleWork]) -> None:
        """Take work; nothing is done yet."""
        for piece in work:
            self._lines[RANK[piece.kind]].waiting.append(piece)
        self._shed_excess()

    def step(self, *, urgent: bool = False) -> bool:
        """Do one chunk, with `urgent` of urgent work alone; whether there was any."""
        for line in self._lines[: URGENT + 1] if urgent else self._lines:
            if len(line):
                self._step(line)
                return True
        return False

    def finish(self) -> None:
        """Do all there is."""
        while self.step():
            pass

    def busy(self, seconds: float) -> None:
        """Requests were served for so long."""
        self._busy_s += seconds

    @property
    def may_interrupt(self) -> bool:
        """Whether a chunk may be done while requests run: with one as long as the last ones, it keeps its share."""
        if not len(self):
            return False
        return self._taken_s + max(self._lately, default=0.0) <= _BUSY_SHARE * self._busy_s

    def interrupt(self) -> None:
        """Do one chunk while requests run."""
        started = time.perf_counter()
        self.step()
        self._taken_s += time.perf_counter() - started

    def drop(self, namespace: str | None = None) -> None:
        """Drop the work of a namespace, or all."""
        for line in self._lines:
            line.waiting = deque(work for work in line.waiting if namespace not in (None, work.namespace))
            if line.begun is not None and namespace in (None, line.begun.work.namespace):
                line.begun.chunks.close()
                line.begun = None

    def _step(self, line: _Line) -> None:
        task, started = line.begun, time.perf_counter()
        self._clock = (self._clock[0], started)
        if task is None:
            work = line.waiting.popleft()
            task = line.begun = _Task(work, self._run(work))
        tokens, follow = 0, None
        try:
            tokens = next(task.chunks)
        except StopIteration as stop:
            follow = stop.value or ()
        except BaseException:  # what was not learned is only slower, never wrong
            logger.exception("idle work failed: %s for %s", task.work.kind, task.work.agent or task.work.namespace)
            follow = ()
        kind, seconds = task.work.kind, time.perf_counter() - started
        self._clock = (self._clock[0] + seconds, None)
        self._lately.append(seconds)
        self._tokens[kind] += tokens
        self._seconds[kind] += seconds
        self._charge(task.work.namespace, kind, tokens)
        if follow is not None:
            line.begun = None
            self._done[kind] += 1
            self.submit(follow)

    def _shed_excess(self) -> None:
        """Drop the least useful and oldest while too much waits."""
        while self._excess():
            victim = next(
                (
                    (line, work)
                    for kind in _USEFUL
                    for line in self._lines
                    for work in line.waiting
                    if work.kind == kind
                ),
                None,
            )
            if victim is None:
                return
            line, work = victim
            line.waiting.remove(work)
            self._shed[work.kind] += 1
            logger.debug("too much idle work waits: dropped a %s for %s", work.kind, work.agent or work.namespace)

    def _excess(self) -> bool:
        pieces = sum(work.kind in _USEFUL for line in self._lines for work in line.waiting)
        return pieces > _MAX_PENDING or (self.max_bytes is not None and self.nbytes > self.max_bytes)

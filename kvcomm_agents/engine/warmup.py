"""Warm-up: the KV of texts that no agent has read yet, computed ahead, many in one forward pass.

Each text sees itself and one shared first token, as in `packing`. What comes of it is a span's base like
a donor's, only a weaker one: it knows nothing of a conversation. Work is cut into pieces of at most a
pack; the worker does one when nobody waits for anything else.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch

from ..backends.transformers.cache import PlanCache
from ..backends.transformers.packing import Pack, Positions, pack
from ..backends.transformers.runner import Runner
from ..errors import ContextLengthError, DeviceMemoryError, EngineClosedError
from ..kv.block import KVBlock
from ..planning.namespace import Namespace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WarmReport:
    """What a warm-up did.

    Args:
        texts: given, equal ones counted once.
        warmed: of these, computed now.
        known: had been read, written or warmed before.
        short: too short to be recognised in a prompt.
        tokens: computed, shared first tokens included.
        packs: forward passes that some of them were in.
        seconds: of the model's time, corrections for known readers included.
    """

    texts: int = 0
    warmed: int = 0
    known: int = 0
    short: int = 0
    tokens: int = 0
    packs: int = 0
    seconds: float = 0.0


@dataclass(eq=False, slots=True)
class WarmOrder:
    """Texts to warm.

    Args:
        texts: their token ids, in the order in which prompts are likely to hold them.
        first: id of the shared first token.
        namespace: whose they are.
        future: of the report; cancelling it drops what was not done yet.
    """

    texts: Sequence[tuple[int, ...]]
    first: int
    namespace: str
    future: Future[WarmReport] = field(default_factory=Future)
    report: WarmReport = WarmReport()
    left: int = 0

    def count(self, *, texts_done: int = 0, **more: float) -> None:
        """Add to the report; the future is fulfilled with the last text."""
        added = {name: getattr(self.report, name) + value for name, value in more.items()}
        self.report = replace(self.report, **added)
        self.left -= texts_done
        if not self.left:
            logger.info("warm-up in %s: %s", self.namespace, self.report)
            with suppress(InvalidStateError):  # cancelled at this moment
                self.future.set_result(self.report)

    def fail(self, error: BaseException) -> None:
        """Say what went wrong; what is left is dropped."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    ids: tuple[int, ...]
    rank: int
    order: WarmOrder

    @property
    def wanted(self) -> bool:
        return not self.order.future.done()


@dataclass(slots=True, eq=False)
class _Long:
    """A text longer than a pack, computed part by part in a row of its own."""

    text: _Text
    cache: PlanCache
    done: int = 0


class Warmup:
    """Texts waiting to be warmed. The worker's own, like inference.

    Args:
        runner: of the model.
        memory: of a namespace.
        pack_tokens: computed in one piece, at most.
        positions: see `packing.Positions`.
        max_context: tokens the model's context holds.
    """

    def __init__(
        self,
        runner: Runner,
        memory: Callable[[str], Namespace],
        pack_tokens: int,
        positions: Positions,
        max_context: int,
    ) -> None:
        self.runner, self.pack_tokens, self.positions = runner, pack_tokens, positions
        self._memory, self._max_context = memory, max_context
        self._texts: deque[_Text] = deque()
        self._computed: deque[tuple[_Text, int]] = deque()  # and the id of its span: to be corrected for its readers
        self._long: _Long | None = None

    def __len__(self) -> int:
        """Texts that are not done."""
        return len(self._texts) + len(self._computed) + (self._long is not None)

    def submit(self, order: WarmOrder) -> None:
        """Take an order; nothing is computed yet.

        Raises:
            UnsupportedModelError: the KV of this model cannot be moved.
            ContextLengthError: a text is longer than the context, so that no prompt can hold it.
        """
        self.runner.layout.require_movable()
        texts = list(dict.fromkeys(order.texts))
        longest = max(map(len, texts), default=0)
        if longest >= self._max_context:
            raise ContextLengthError(
                f"a text of {longest} tokens was to be warmed and the context holds {self._max_context};"
                " split it as the prompts will"
            )
        min_span = self._memory(order.namespace).config.min_span
        order.left = len(texts) + 1
        self._texts += [_Text(ids, rank, order) for rank, ids in enumerate(texts) if len(ids) >= min_span]
        short = sum(len(ids) < min_span for ids in texts)
        order.count(texts_done=short + 1, texts=len(texts), short=short)

    def drop(self, namespace: str | None = None) -> None:
        """Cancel what waits, of a namespace or of all."""
        for text in [*self._texts, *(text for text, _ in self._computed), *([self._long.text] if self._long else [])]:
            if namespace in (None, text.order.namespace):
                text.order.future.cancel()

    def close(self) -> None:
        """Fail what waits."""
        for text in [*self._texts, *(text for text, _ in self._computed), *([self._long.text] if self._long else [])]:
            text.order.fail(EngineClosedError("the engine was closed before these texts were warmed"))

    def step(self) -> None:
        """One piece of work: a pack, a part of a long text, or the corrections of one text."""
        if self._computed:
            texts = [self._computed[0][0]]
            work: Callable[[], None] = self._correct
        elif self._long is not None:
            texts, work = [self._long.text], self._go_on
        else:
            texts = self._next()
            work = self._go_on if self._long is not None else lambda: self._pack(texts)
        if not texts:
            return
        try:
            work()
        except Exception as error:  # these orders' alone
            logger.exception("a warm-up failed")
            for text in texts:
                text.order.fail(_plain(error))
            self._sweep()

    def _sweep(self) -> None:
        """Forget what nobody wants any more."""
        self._texts = deque(text for text in self._texts if text.wanted)
        self._computed = deque(one for one in self._computed if one[0].wanted)
        if self._long is not None and not self._long.text.wanted:
            self.runner.close(self._long.cache)
            self._long = None

    def _next(self) -> list[_Text]:
        """The texts of the next pack: of one namespace, none known, in order, as many as fit; or one long text."""
        chosen, room = list[_Text](), self.pack_tokens - 1
        self._sweep()
        while self._texts:
            text = self._texts[0]
            if chosen and text.order.namespace != chosen[0].order.namespace:
                break
            if self._memory(text.order.namespace).covers(text.ids):
                text.order.count(texts_done=1, known=1)
            elif chosen and len(text.ids) > room:
                break
            else:
                chosen.append(text)
                room -= len(text.ids)
            self._texts.popleft()
            if room <= 0:
                break
        if chosen and len(chosen[0].ids) >= self.pack_tokens:
            self._long = _Long(chosen[0], self.runner.open(len(chosen[0].ids) + 1))
        return chosen

    def _pack(self, texts: Sequence[_Text]) -> None:
        started = time.perf_counter()
        row = pack([text.ids for text in texts], texts[0].order.first, self.positions)
        blocks = prefill_packed(self.runner, row)
        seconds = time.perf_counter() - started
        for order in dict.fromkeys(text.order for text in texts):
            tokens = sum(len(text.ids) for text in texts if text.order is order)
            order.count(tokens=tokens + 1, packs=1, seconds=seconds * tokens / (len(row.ids) - 1))
        for text, block in zip(texts, blocks, strict=True):
            self._keep(text, block)

    def _go_on(self) -> None:
        """One part of a long text: it is alone in its row, so plain causal attention is the mask."""
        long = self._long
        if long is None:
            raise RuntimeError("a long text goes on that was not begun")  # a bug, never input
        started = time.perf_counter()
        row = (long.text.order.first, *long.text.ids)
        part = row[long.done : long.done + self.pack_tokens]
        if long.done:
            self.runner.extend(long.cache, part)
        else:
            self.runner.prefill(long.cache, part)
        long.done += len(part)
        order = long.text.order
        order.count(tokens=len(part), packs=1, seconds=time.perf_counter() - started)
        if long.done == len(row):
            block = long.cache.capture(1, len(row)).unrotated(self.runner.layout.require_movable())
            self.runner.close(long.cache)
            self._long = None
            self._keep(long.text, block)

    def _keep(self, text: _Text, block: KVBlock) -> None:
        span = self._memory(text.order.namespace).warm(text.ids, block, text.rank)
        if span is not None:
            self._computed.append((text, span.id))
        text.order.count(texts_done=span is None, warmed=span is not None)

    def _correct(self) -> None:
        started = time.perf_counter()
        text, span = self._computed.popleft()
        memory = self._memory(text.order.namespace)
        if span in memory.library:
            memory.foresee([memory.library[span]])
        text.order.count(texts_done=1, seconds=time.perf_counter() - started)


def prefill_packed(runner: Runner, row: Pack) -> list[KVBlock]:
    """The un-rotated KV of every document of a row, from one forward pass.

    Raises:
        UnsupportedModelError: the KV of this model cannot be moved.
    """
    rope = runner.layout.require_movable()
    cache = runner.open(len(row.ids))
    try:
        runner.prefill_apart(cache, row)
        captured = ((cache.capture(start, stop), int(row.positions[start])) for start, stop in row.edges)
        return [replace(block, position=position).unrotated(rope) for block, position in captured]
    finally:
        runner.close(cache)


def _plain(error: Exception) -> Exception:
    if isinstance(error, torch.OutOfMemoryError):
        return DeviceMemoryError("no device memory for a warm-up; set a smaller pack_tokens, or warm fewer texts")
    return error

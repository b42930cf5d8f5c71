"""Warm-up: the KV of texts that no agent has read yet, computed ahead, many in one forward pass.

Each text sees itself and one shared first token. What comes of it is a span's base like a donor's, only a weaker
one: it knows nothing of a conversation. It is idle work, in packs of a bounded number of tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..backend import Backend, Positions
from ..errors import ContextLengthError, DeviceMemoryError, EngineError, RequestCancelledError, RequestError
from ..kv.block import KVBlock
from ..log import get_logger
from ..plan import dense
from ..planning.measurements import Measuring
from ..planning.namespace import Namespace
from .call import EngineFuture

logger = get_logger(__name__)


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
class WarmWork:
    """Texts to warm: a piece of idle work, and what its caller waits for.

    Args:
        texts: their token ids, in the order in which prompts are likely to hold them.
        first: id of the shared first token.
        namespace: whose they are.
        future: of the report; cancelling it drops what was not done yet.
        report: so far.
    """

    texts: Sequence[tuple[int, ...]]
    first: int
    namespace: str
    future: EngineFuture[WarmReport] = field(default_factory=EngineFuture)
    report: WarmReport = WarmReport()
    kind: Literal["warm"] = "warm"
    agent: str = ""

    @property
    def tokens(self) -> int:
        """Of all texts, with a shared first token each at most."""
        return sum(len(text) + 1 for text in self.texts)

    @property
    def nbytes(self) -> int:
        """Of their ids, at eight bytes each."""
        return 8 * self.tokens

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for the rest."""
        return not self.future.done()

    def count(self, **more: float) -> None:
        """Add to the report."""
        added = {name: getattr(self.report, name) + value for name, value in more.items()}
        self.report = replace(self.report, **added)

    def complete(self) -> None:
        """Say that all is done."""
        logger.info("warm-up in %s: %s", self.namespace, self.report)
        self.future.fulfil(self.report)

    def fail(self, error: BaseException) -> None:
        """Say what went wrong; what is left is dropped."""
        self.future.fail(error)


class Warmup:
    """Warms texts. The worker's own, like the core.

    Args:
        backend: computes them.
        namespace: finds a namespace by its name.
        pack_tokens: computed in one piece, at most.
        positions: see `backend.Positions`.
    """

    def __init__(
        self, backend: Backend, namespace: Callable[[str], Namespace], pack_tokens: int, positions: Positions
    ) -> None:
        self.backend, self.pack_tokens, self.positions = backend, pack_tokens, positions
        self._namespace = namespace
        self._open: list[WarmWork] = []

    def accept(self, work: WarmWork) -> bool:
        """Check texts and leave out those that are too short; whether there is anything to do.

        Raises:
            UnsupportedModelError: the KV of this model cannot be moved.
            ContextLengthError: a text is longer than the context, so that no prompt can hold it.
        """
        self.backend.layout.require_movable()
        texts = list(dict.fromkeys(work.texts))
        longest = max(map(len, texts), default=0)
        if longest >= self.backend.max_context:
            raise ContextLengthError(
                f"a text of {longest} tokens was to be warmed and the context holds {self.backend.max_context};"
                " split it as the prompts will"
            )
        min_span = self._namespace(work.namespace).config.min_span
        work.texts = [text for text in texts if len(text) >= min_span]
        work.count(texts=len(texts), short=len(texts) - len(work.texts))
        if not work.texts:
            work.complete()
            return False
        self._open.append(work)
        return True

    def drop(self, namespace: str | None = None) -> None:
        """Fail what waits, of a namespace that is forgotten or of all."""
        for work in self._open:
            if namespace in (None, work.namespace):
                work.fail(
                    RequestCancelledError(f"namespace {work.namespace} was forgotten while its texts were warmed")
                )
        self._open = [work for work in self._open if work.wanted]

    def close(self, error: EngineError) -> None:
        """Fail all that waits."""
        for work in self._open:
            work.fail(error)
        self._open.clear()

    def run(self, work: WarmWork) -> Measuring:
        """Chunks of a warm-up: a pack, a part of a long text, or the corrections of one text."""
        left = list(enumerate(work.texts))
        try:
            while left and work.wanted:
                pack, left = self._next(work, left)
                if not pack:
                    break
                blocks = yield from self._compute(work, [text for _, text in pack])
                for (rank, text), block in zip(pack, blocks, strict=True):
                    span = self._namespace(work.namespace).warm(text, block, rank)
                    work.count(warmed=span is not None)
                    if span is not None:
                        yield from self._correct(work, span.id)
            work.complete()
        except GeneratorExit:
            work.fail(RequestCancelledError("these texts were not warmed: idle work was dropped"))
            raise
        except BaseException as error:  # this warm-up's alone
            logger.exception("a warm-up failed")
            work.fail(_plain(error))
        finally:
            if work in self._open:
                self._open.remove(work)
        return ()

    def _next(
        self, work: WarmWork, left: Sequence[tuple[int, tuple[int, ...]]]
    ) -> tuple[list[tuple[int, tuple[int, ...]]], list[tuple[int, tuple[int, ...]]]]:
        """The next pack, of ranks and texts that are not known yet, as many as fit; and what is left behind it."""
        chosen, room = list[tuple[int, tuple[int, ...]]](), self.pack_tokens - 1
        for index, (rank, text) in enumerate(left):
            if self._namespace(work.namespace).covers(text):
                work.count(known=1)
            elif chosen and len(text) > room:
                return chosen, list(left[index:])
            else:
                chosen.append((rank, text))
                room -= len(text)
        return chosen, []

    def _compute(self, work: WarmWork, texts: Sequence[tuple[int, ...]]) -> Generator[int, None, Sequence[KVBlock]]:
        """The un-rotated KV of a pack: in one pass, or in parts if it is one long text."""
        if len(texts[0]) >= self.pack_tokens:
            block = yield from self._in_parts(work, texts[0])
            return [block]
        started = time.perf_counter()
        blocks = self.backend.prefill_texts(texts, work.first, self.positions)
        tokens = 1 + sum(map(len, texts))
        work.count(tokens=tokens, packs=1, seconds=time.perf_counter() - started)
        yield tokens
        return blocks

    def _in_parts(self, work: WarmWork, text: tuple[int, ...]) -> Generator[int, None, KVBlock]:
        """A long text is alone in its row, so plain causal attention sees what a pack's would."""
        row = (work.first, *text)
        scoring = self.backend.score(row, (), dense(len(row)), self.pack_tokens)
        try:
            started = time.perf_counter()
            while tokens := scoring.advance():
                work.count(tokens=tokens, packs=1, seconds=time.perf_counter() - started)
                yield tokens
                started = time.perf_counter()
            return scoring.capture(1, len(row)).unrotated(self.backend.layout.require_movable())
        finally:
            scoring.close()

    def _correct(self, work: WarmWork, span: int) -> Generator[int, None, None]:
        started = time.perf_counter()
        namespace = self._namespace(work.namespace)
        if span in namespace.library:
            namespace.foresee([namespace.library[span]])
        work.count(seconds=time.perf_counter() - started)
        yield 0


def _plain(error: BaseException) -> Exception:
    if not isinstance(error, Exception):
        return RequestError(f"something that a warm-up ran raised {error!r}")
    if isinstance(error, DeviceMemoryError):
        return DeviceMemoryError("no device memory for a warm-up; set a smaller pack_tokens, or warm fewer texts")
    return error

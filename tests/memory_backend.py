"""A second engine behind the seam: in memory, deterministic, without a model of torch.

KV is a closed form of what stands before a token. Layer 0 knows the token alone; layer 1 knows the context, through
the values of layer 0 before it; the logits know the values of layer 1 before them. So a donor of another context
changes what is said, as it does in a transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kvcomm_agents.backend import Capabilities, Generation, Positions, Times
from kvcomm_agents.backends.transformers.scores import FullScores
from kvcomm_agents.backends.transformers.scoring import prolonged
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.layout import KVLayout
from kvcomm_agents.kv.rope import Rope
from kvcomm_agents.observe.report import FinishReason
from kvcomm_agents.plan import PrefillPlan

VOCABULARY, DIM = 64, 4


class _Angles(nn.Module):
    """A rotary module: what `Rope` asks of a model."""

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[..., None].float() * torch.tensor([0.3, 0.01, 0.3, 0.01])
        return angles.cos(), angles.sin()


class Context:
    """Cached KV `[2, 1, tokens, DIM]`, keys rotated, and how far it is known."""

    def __init__(self, engine: MemoryBackend) -> None:
        self.engine = engine
        self.keys, self.values = torch.zeros(2, 1, 0, DIM), torch.zeros(2, 1, 0, DIM)
        self.reached = 0

    def reserve(self, tokens: int) -> None:
        missing = tokens - self.keys.shape[2]
        if missing > 0:
            self.keys = torch.cat([self.keys, torch.zeros(2, 1, missing, DIM)], dim=2)
            self.values = torch.cat([self.values, torch.zeros(2, 1, missing, DIM)], dim=2)

    def place(self, plan: PrefillPlan) -> None:
        self.reserve(plan.length)
        for run in plan.placed:
            where = slice(run.start, run.stop)
            run.block.write(self.keys[:, :, where], self.values[:, :, where], run.start, self.engine.rope)

    def compute(self, token: int, position: int) -> Tensor:
        """Logits `[VOCABULARY]` behind a token, whose KV is added."""
        self.reserve(position + 1)
        engine, own = self.engine, self.engine.embedding[token]
        before = self.values[0, 0, :position]
        seen = before.mean(0) if position else torch.zeros(DIM)
        hidden = torch.tanh(own + engine.mix @ seen)
        for layer, vector in ((0, own), (1, hidden)):
            self.values[layer, 0, position] = vector
            self.keys[layer, :, position : position + 1] = engine.rope.rotate(vector[None, None], position)[0]
        self.reached = position + 1
        return engine.head @ (hidden + self.values[1, 0, : position + 1].mean(0))

    def capture(self, start: int, stop: int) -> KVBlock:
        return KVBlock(self.keys[:, :, start:stop], self.values[:, :, start:stop], start).clone()


@dataclass(eq=False)
class MemoryHandle:
    generation: Generation
    context: Context | None
    output: list[int] = field(default_factory=list)
    finished: FinishReason | None = None
    error: BaseException | None = None
    times: Times = field(default_factory=Times)
    computed: int = 0
    rows: list[Tensor] = field(default_factory=list)

    @property
    def reached(self) -> int:
        return self.context.reached if self.context else 0

    @property
    def scores(self) -> FullScores | None:
        return FullScores.of(self.rows)


class MemoryScoring:
    def __init__(self, engine: MemoryBackend, ids: Sequence[int], output: Sequence[int], plan: PrefillPlan, chunk: int):
        self._ids, self._plan, self._chunk = [*ids, *output], prolonged(plan, len(output)), chunk
        self._wanted, self._done, self._rows = len(output) + 1, 0, list[Tensor]()
        self._context: Context | None = Context(engine)
        self._context.place(self._plan)
        self._engine = engine
        engine.open += 1

    @property
    def left(self) -> int:
        return self._plan.computed_tokens - self._done

    def advance(self) -> int:
        tokens = min(self.left, self._chunk)
        for run in self._plan.computed_piece(self._done, tokens):
            for position in range(run.start, run.stop):
                logits = self._context.compute(self._ids[position], position)
                self._done += 1
                if self.left < self._wanted:
                    self._rows.append(logits)
        return tokens

    @property
    def scores(self) -> FullScores:
        return FullScores(torch.stack(self._rows))

    def capture(self, start: int, stop: int) -> KVBlock:
        return self._context.capture(start, stop)

    def close(self) -> None:
        self._engine.open -= self._context is not None
        self._context = None


class MemoryBackend:
    """See `backend.Backend`.

    Args:
        block: a placed run behind a computed one begins at a multiple of so many tokens.
        chunk: tokens computed in a step.
    """

    def __init__(self, *, block: int = 1, chunk: int = 16, max_context: int = 4096) -> None:
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(VOCABULARY, DIM, generator=generator)
        self.mix = torch.randn(DIM, DIM, generator=generator)
        self.head = 4 * torch.randn(VOCABULARY, DIM, generator=generator)
        cpu = torch.device("cpu")
        self.rope = Rope(_Angles(), "half", cpu)
        self.layout = KVLayout(2, 1, DIM, DIM, torch.float32, cpu, self.rope)
        self.capabilities, self.max_context, self.chunk = Capabilities(block=block), max_context, chunk
        self.open = 0  # contexts that were not closed
        self._going: list[MemoryHandle] = []

    has_room = True
    nbytes = 0

    def start(self, generation: Generation) -> MemoryHandle:
        handle = MemoryHandle(generation, Context(self))
        handle.context.place(generation.plan)
        self.open += 1
        self._going.append(handle)
        return handle

    def step(self) -> None:
        for handle in self._going:
            try:
                self._advance(handle)
            except BaseException as error:
                handle.error = error
        self._going = [handle for handle in self._going if handle.finished is None and handle.error is None]

    def _advance(self, handle: MemoryHandle) -> None:
        generation, context = handle.generation, handle.context
        left = generation.plan.computed_tokens - handle.computed
        logits = None
        if left:
            for run in generation.plan.computed_piece(handle.computed, min(left, self.chunk)):
                for position in range(run.start, run.stop):
                    logits = context.compute(generation.ids[position], position)
                    handle.computed += 1
            if handle.computed < generation.plan.computed_tokens:
                return
        else:
            logits = context.compute(handle.output[-1], context.reached)
        if len(handle.rows) < generation.scored:
            handle.rows.append(logits)
        token = int(logits.argmax())
        handle.output.append(token)
        if not generation.sink(token):
            handle.finished = "stop"
        elif len(handle.output) >= generation.max_tokens:
            handle.finished = "length"

    def cancel(self, handle: MemoryHandle) -> None:
        self._going = [other for other in self._going if other is not handle]

    def capture(self, handle: MemoryHandle, start: int, stop: int) -> KVBlock:
        return handle.context.capture(start, stop)

    def close(self, handle: MemoryHandle) -> None:
        self.cancel(handle)
        self.open -= handle.context is not None
        handle.context = None

    def score(
        self, ids: Sequence[int], output: Sequence[int], plan: PrefillPlan, chunk: int | None = None
    ) -> MemoryScoring:
        return MemoryScoring(self, ids, output, plan, min(chunk or self.chunk, self.chunk))

    def prefill_texts(
        self, texts: Sequence[Sequence[int]], first: int, positions: Positions = "reset"
    ) -> list[KVBlock]:
        blocks = []
        for text in texts:
            context = Context(self)
            for position, token in enumerate([first, *text]):
                context.compute(token, position)
            blocks.append(context.capture(1, 1 + len(text)).unrotated(self.rope))
        return blocks

    def free_memory(self) -> int:
        return 0

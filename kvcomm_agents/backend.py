"""Backend: what policy may ask of an engine that executes prefill plans. The seam between the two.

On this side of it stands policy (`planning`, `engine`): which tokens are placed, what is learned, who is served.
On the other an engine (`backends`): it has a model, memory for its KV, and executes any plan that its
`Capabilities` allow. Neither imports the other. All that crosses is in this file: token ids, plans, blocks of KV
and `Scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .kv.block import KVBlock
from .kv.layout import KVLayout
from .observe.report import FinishReason
from .plan import PrefillPlan
from .request import Constraint, SamplingParams, ToolSpec
from .text.tool_format import PLAIN, CallFormat

TokenSink = Callable[[int], bool]
"""Takes each token of an answer, in order, and returns whether more are wanted."""

Positions = Literal["reset", "running"]
"""Of texts computed side by side. `running`: a text stands where it lies in its row. `reset`: each begins at 1."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can execute. Policy asks before it makes a plan.

    Args:
        scattered: a placed run may stand behind a computed one; if not, only prefixes are placed.
        block: a placed run behind a computed one begins at a multiple of so many tokens.
        capture: KV can be copied out of contexts.
        distributions: which next-token distributions `Scores` compares: `full`, the `top` few, or `none`.
        schedules: the engine decides itself what a step computes, and tells; if not, `Backend.step` is a step.
    """

    scattered: bool = True
    block: int = 1
    capture: bool = True
    distributions: Literal["full", "top", "none"] = "full"
    schedules: bool = False


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far one set of next-token distributions is from the dense one.

    Args:
        mean, first, largest: KL(dense || other) in nats, over produced positions.
        top1: share of positions where both have the same best token.
    """

    mean: float
    first: float
    largest: float
    top1: float


class Scores(Protocol):
    """Next-token distributions at consecutive positions of one context, in a form that only their engine knows."""

    def __len__(self) -> int:
        """How many positions."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that they keep alive."""
        ...

    def head(self, positions: int) -> Scores:
        """Those of so many first positions, which keep nothing else alive."""
        ...

    def divergence(self, other: Scores) -> Divergence:
        """How far `other` is from these, which are exact, over the positions that both have."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """What an engine is asked to generate.

    Args:
        ids: token ids of the prompt.
        plan: covers them.
        max_tokens: most tokens of the answer.
        sink: given each token.
        params: how tokens are chosen.
        constraint: what the answer may be; `None` leaves it free.
        tools: that the answer may call.
        format: how the model writes calls.
        scored: of so many first positions of the answer the distributions are kept.
    """

    ids: tuple[int, ...]
    plan: PrefillPlan
    max_tokens: int
    sink: TokenSink
    params: SamplingParams = SamplingParams()
    constraint: Constraint | None = None
    tools: tuple[ToolSpec, ...] = ()
    format: CallFormat = PLAIN
    scored: int = 0


@dataclass(slots=True)
class Times:
    """Where the time of a generation went, in seconds, and when its first token came (`time.perf_counter()`).

    Args:
        assemble_s: writing what is placed.
        prefill_s: forward passes over computed prompt tokens, which other requests may share.
        waited_s: between them, for room in a pass.
        first_token_at: 0 before it came.
    """

    assemble_s: float = 0.0
    prefill_s: float = 0.0
    waited_s: float = 0.0
    first_token_at: float = 0.0


class Handle(Protocol):
    """A generation in an engine, from `Backend.start` until `Backend.close`."""

    @property
    def generation(self) -> Generation:
        """What was asked."""
        ...

    @property
    def output(self) -> Sequence[int]:
        """Tokens of the answer so far."""
        ...

    @property
    def finished(self) -> FinishReason | None:
        """Why the answer ended; `None` while it goes on."""
        ...

    @property
    def error(self) -> BaseException | None:
        """What failed this generation; `None` if nothing did. Others went on."""
        ...

    @property
    def reached(self) -> int:
        """Positions, counted from 0 without a gap, of which KV can be captured."""
        ...

    @property
    def times(self) -> Times:
        """Where its time went."""
        ...

    @property
    def scores(self) -> Scores | None:
        """Distributions of the first `generation.scored` positions, as far as they came; `None` without any."""
        ...


class Scoring(Protocol):
    """A prompt, and an output that is known already, run through a model in chunks."""

    @property
    def left(self) -> int:
        """Tokens still to be computed."""
        ...

    def advance(self) -> int:
        """Compute the next chunk; returns its tokens, 0 if nothing is left.

        Raises:
            DeviceMemoryError: no memory for it.
        """
        ...

    @property
    def scores(self) -> Scores:
        """Distributions that predict the output and the token behind it. There once nothing is left."""
        ...

    def capture(self, start: int, stop: int) -> KVBlock:
        """A copy of the KV of positions `start:stop`, keys as cached."""
        ...

    def close(self) -> None:
        """Give its memory back. May be called at any time, and again."""
        ...


class Backend(Protocol):
    """An engine that executes prefill plans on one model. Not thread-safe: its owner serialises.

    Whatever fails, fails one generation or scoring alone, and leaves the others and the memory as they were.
    """

    @property
    def layout(self) -> KVLayout:
        """What the model's KV looks like, and whether it can be moved."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can execute."""
        ...

    @property
    def max_context(self) -> int:
        """Tokens a prompt and its answer may hold together."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether a prompt that came now would be begun in the next step."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that it holds beside weights and running contexts: memory that waits for its next use."""
        ...

    def start(self, generation: Generation) -> Handle:
        """Place what a plan places, and take the rest into the next steps.

        Raises:
            ConstraintError: the constraint makes no grammar.
            DeviceMemoryError: no memory, even after freeing what can be freed.
            UnsupportedModelError: the plan moves KV, and the model's keys cannot be moved.
        """
        ...

    def step(self) -> None:
        """Take what was started a step on: a token each, or a chunk of a prompt. See `Handle` for what came of it."""
        ...

    def cancel(self, handle: Handle) -> None:
        """Compute no more of it. What it reached can be captured until it is closed."""
        ...

    def capture(self, handle: Handle, start: int, stop: int) -> KVBlock:
        """A copy of the KV of positions `start:stop`, keys as cached; `stop` at most `handle.reached`."""
        ...

    def close(self, handle: Handle) -> None:
        """Free what it holds, and cancel it if it goes on. May be called again."""
        ...

    def score(self, ids: Sequence[int], output: Sequence[int], plan: PrefillPlan, chunk: int | None = None) -> Scoring:
        """Prepare to run `ids` by a plan and `output` behind it. Nothing is computed before `Scoring.advance`.

        Without an output it is a prefill, whose KV can be captured. `chunk` is how many tokens are computed at once,
        at most; the engine's own measure if left out or larger.

        Raises:
            DeviceMemoryError: no memory for the context.
            UnsupportedModelError: the plan moves KV, and the model's keys cannot be moved.
        """
        ...

    def prefill_texts(
        self, texts: Sequence[Sequence[int]], first: int, positions: Positions = "reset"
    ) -> list[KVBlock]:
        """Un-rotated KV of texts computed side by side in one pass, each behind the one shared token `first`.

        Raises:
            UnsupportedModelError: the model's keys cannot be moved.
        """
        ...

    def free_memory(self) -> int:
        """Free all that waits for its next use; returns the bytes freed."""
        ...

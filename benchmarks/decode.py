"""`kvcomm bench decode`: requests that share forward passes against requests served in turn.

Both on one runner in one process, round by round. Together, every pass takes each request a token on, and a
prompt is computed in pieces beside them, as an engine does it; in turn, each request has a forward pass of its
own for every token, and a prompt is computed at one go.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from kvcomm_agents.backends.transformers.cache import PlanCache
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.config import EngineConfig
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.plan import Computed

from .data import load_questions
from .options import DecodeOptions, numbers
from .session import Report, Session, Table, Tell, title

STREAMS, ARRIVING = 4, 1000  # how many decode when a long prompt comes, and its tokens
WAYS = ("together", "in_turn")
_CHUNK = EngineConfig().prefill_chunk


@dataclass(eq=False, slots=True)
class Stream:
    """One request: its context, what it said, and when each token came."""

    ids: Sequence[int]
    cache: PlanCache
    began: float = field(default_factory=time.perf_counter)
    computed: int = 0
    output: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def gaps(self, start: float, stop: float) -> list[float]:
        """Seconds between tokens, of those that came after `start`, up to `stop`."""
        return [later - at for at, later in itertools.pairwise(self.times) if start < later <= stop]


def measure(options: DecodeOptions, session: Session) -> Report:
    """Tokens per second and time between tokens, by the number of concurrent requests; then a long prompt's arrival."""
    counts = numbers(options.requests)
    questions = load_questions("gsm8k", 200, options.data)
    texts = prompts(session.loaded.tokenizer, questions, max(counts), ARRIVING)
    return {
        **session.described,
        **measure_decode(session.loaded, texts, counts, options.tokens, options.rounds, session.tell),
    }


def prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], count: int, last: int) -> list[list[int]]:
    """Token ids of texts put one after the other, cut to 64 tokens and more each; the last has `last`.

    Raises:
        ConfigError: the texts are too short for that.
    """
    ids = [token for text in texts for token in tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"]]
    lengths = [*(64 + 37 * index % 100 for index in range(max(count, STREAMS))), last]
    if len(ids) < sum(lengths):
        raise ConfigError(f"{sum(lengths)} tokens of text are needed and there are {len(ids)}")
    edges = itertools.accumulate(lengths, initial=0)
    return [ids[start:stop] for start, stop in itertools.pairwise(edges)]


@torch.no_grad()
def measure_decode(
    loaded: LoadedModel, texts: Sequence[Sequence[int]], counts: Sequence[int], tokens: int, rounds: int, tell: Tell
) -> dict[str, Any]:
    """Figures by the number of requests, and of the arrival of the last text.

    Args:
        loaded: the model.
        texts: prompts, as token ids; see `prompts`.
        counts: how many requests run at once.
        tokens: that each produces at least.
        rounds: timed rounds; one more goes before, to warm up.
        tell: hears of progress.
    """
    runner, rows = Runner(loaded.model), dict[str, Any]()
    for done, count in enumerate(counts, 1):
        measured: dict[str, list[list[Stream]]] = {way: [] for way in WAYS}
        for _, way in itertools.product(range(rounds + 1), WAYS):
            measured[way].append(_serve(runner, way, texts[:count], tokens))
        figures = {way: summary(runs[1:]) for way, runs in measured.items()}
        together, in_turn = ([one.output[:tokens] for one in measured[way][0]] for way in WAYS)
        speedup = figures["together"]["tokens_per_s"] / figures["in_turn"]["tokens_per_s"]
        rows[str(count)] = {**figures, "same_answers": together == in_turn, "speedup": speedup}
        tell("requests at once", done, len(counts))
    arrivals = {way: [_arrival(runner, way, texts) for _ in range(rounds + 1)][1:] for way in WAYS}
    return {
        "shares_passes": runner.ragged,
        "prompt_tokens": [len(text) for text in texts[: max(counts)]],
        "output_tokens": tokens,
        "rounds": rounds,
        "requests": rows,
        "arrival": {
            "streams": STREAMS,
            "prompt_tokens": len(texts[-1]),
            **{
                way: {"longest_gap_s": median(gap for gap, _ in all_), "first_token_s": median(at for _, at in all_)}
                for way, all_ in arrivals.items()
            },
        },
    }


def _open(runner: Runner, texts: Sequence[Sequence[int]], tokens: int) -> list[Stream]:
    return [Stream(text, runner.open(len(text) + tokens)) for text in texts]


def _step(runner: Runner, way: str, streams: Sequence[Stream]) -> None:
    """Take requests a token on, or a piece of their prompt."""
    together, parts = way == "together", []
    waiting = together and any(stream.output for stream in streams)  # for a next token, while prompts are computed
    room = _CHUNK if waiting else sum(len(stream.ids) for stream in streams)
    for stream in streams:
        piece = min(len(stream.ids) - stream.computed, room)
        if stream.output:
            parts.append((stream, runner.append(stream.cache, stream.output[-1:])))
        elif piece:
            run, room = Computed(stream.computed, stream.computed + piece), room - piece
            stream.computed = run.stop
            parts.append((stream, runner.part(stream.cache, stream.ids, [run], int(run.stop == len(stream.ids)))))
    if together:
        logits = runner.forward([part for _, part in parts])
    else:
        logits = [runner.forward([part])[0] for _, part in parts]
    now = time.perf_counter()
    for (stream, _), row in zip(parts, logits, strict=True):
        if len(row):
            stream.output.append(int(row[-1].argmax()))
            stream.times.append(now)


def _serve(runner: Runner, way: str, texts: Sequence[Sequence[int]], tokens: int) -> list[Stream]:
    """Requests that all come at once, until the last to begin has so many tokens."""
    streams = _open(runner, texts, 2 * tokens)
    while min(len(stream.output) for stream in streams) < tokens:
        _step(runner, way, streams)
    return _close(runner, streams)


def _arrival(runner: Runner, way: str, texts: Sequence[Sequence[int]]) -> tuple[float, float]:
    """The longest that any of some streams waits for a token while a long prompt is computed, and its first token."""
    streams = _open(runner, texts[:STREAMS], 64)
    while min(len(stream.output) for stream in streams) < 4:
        _step(runner, way, streams)
    (late,) = _open(runner, texts[-1:], 1)
    while not late.output:
        _step(runner, way, [*streams, late])
    _close(runner, [*streams, late])
    gaps = [gap for stream in streams for gap in stream.gaps(late.began, late.times[0])]
    return max(gaps), late.times[0] - late.began


def _close(runner: Runner, streams: list[Stream]) -> list[Stream]:
    for stream in streams:
        runner.close(stream.cache)
    return streams


def summary(runs: Sequence[Sequence[Stream]]) -> dict[str, float]:
    """Of the time in which all decode: from the last one's first token to the first end of those still at it then."""
    rates, gaps = [], list[float]()
    for run in runs:
        start = max(stream.times[0] for stream in run)
        stop = min(stream.times[-1] for stream in run if stream.times[-1] > start)
        within = [gap for stream in run for gap in stream.gaps(start, stop)]
        rates.append(len(within) / (stop - start))
        gaps += within
    gaps.sort()
    return {
        "tokens_per_s": median(rates),
        "gap_median_s": median(gaps),
        "gap_p95_s": gaps[int(0.95 * (len(gaps) - 1))],
        "first_token_s": median(stream.times[0] - stream.began for run in runs for stream in run),
    }


def tables(report: Mapping[str, Any]) -> Iterator[Table | str]:
    """A row for each number of requests, and the arrival."""
    columns = {
        "requests": ":key",
        "together": "together/tokens_per_s:.1f",
        "in turn": "in_turn/tokens_per_s:.1f",
        "ratio": "speedup:.2f",
        "p95 gap together": "together/gap_p95_s:ms",
        "in turn ": "in_turn/gap_p95_s:ms",
        "same answers": "same_answers",
    }
    yield Table(title(report, "tokens per second, ms"), columns, report["requests"])
    late, (together, in_turn) = report["arrival"], (report["arrival"][way] for way in WAYS)
    yield (
        f"a prompt of {late['prompt_tokens']} tokens beside {late['streams']} streams: longest gap"
        f" {together['longest_gap_s']:.2f} s (in turn {in_turn['longest_gap_s']:.2f}), its first token after"
        f" {together['first_token_s']:.2f} s (in turn {in_turn['first_token_s']:.2f})"
    )

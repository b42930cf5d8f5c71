"""`kvcomm bench decode`: requests that share forward passes against requests served in turn.

Both through the engine's own path, on one model in one process, round by round: first together, then in
turn, where each request has a forward pass of its own for every token, through transformers' own
attention, and a prompt is computed at one go.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from kvcomm_agents.backends.transformers.sequence import RunningSequence
from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.engine.core import EngineCore
from kvcomm_agents.engine.job import Event, Job
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.request import Request, SamplingParams

from .console import Tell, model_name, quietly

STREAMS, ARRIVING = 4, 1000  # how many decode when a long prompt comes, and its tokens
_AT_ONE_GO = 1 << 30
_LONG = 16  # answers are as many times as long as what is measured: the first must not end before the last begins


@dataclass(slots=True)
class Stream:
    """One request: when each of its tokens came, and the first of them."""

    began: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)
    said: tuple[int, ...] = ()

    def __call__(self, event: Event) -> None:
        """A sink."""
        if isinstance(event, BaseException):
            raise event

    def gaps(self, start: float, stop: float) -> list[float]:
        """Seconds between tokens, of those that came after `start`, up to `stop`."""
        return [later - at for at, later in itertools.pairwise(self.times) if start < later <= stop]


def counted(text: str) -> tuple[int, ...]:
    """Numbers of requests, from `1,2,4`.

    Raises:
        ConfigError: it is something else.
    """
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise ConfigError(f"{text!r} is no list of request counts; write 1,2,4 for instance")
    return counts


def prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], count: int) -> list[list[int]]:
    """Token ids of texts put one after the other, cut to 64 tokens and more each; the last has `ARRIVING`.

    Raises:
        ConfigError: the texts are too short for that.
    """
    ids = [token for text in texts for token in tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"]]
    lengths = [*(64 + 37 * index % 100 for index in range(max(count, STREAMS))), ARRIVING]
    if len(ids) < sum(lengths):
        raise ConfigError(f"{sum(lengths)} tokens of text are needed and there are {len(ids)}")
    edges = list(itertools.accumulate(lengths, initial=0))
    return [ids[start:stop] for start, stop in itertools.pairwise(edges)]


@torch.no_grad()
def measure_decode(
    loaded: LoadedModel,
    texts: Sequence[Sequence[int]],
    counts: Sequence[int] = (1, 2, 4, 8, 16),
    tokens: int = 48,
    rounds: int = 3,
    tell: Tell = quietly,
) -> dict[str, Any]:
    """Tokens per second and time between tokens, by the number of concurrent requests; then a long prompt's arrival.

    Args:
        loaded: the model.
        texts: prompts, as token ids; see `prompts`.
        counts: how many requests run at once.
        tokens: that each produces, at most.
        rounds: timed rounds; one more goes before, to warm up.
        tell: is told of progress.
    """
    config = EngineConfig(device_cache_bytes=0, host_cache_bytes=0, reuse=ReuseConfig(mode="off"))
    inference = EngineCore(loaded, config)
    rows: dict[str, Any] = {}
    for at, count in enumerate(counts):
        measured: dict[str, list[list[Stream]]] = {"together": [], "in_turn": []}
        for _ in range(rounds + 1):
            for way, runs in measured.items():
                with _way(inference, way):
                    runs.append(_serve(inference, texts[:count], tokens))
            tell("requests at once", at, len(counts))
        rows[str(count)] = {way: _summary(runs[1:]) for way, runs in measured.items()}
        first = measured["together"][0], measured["in_turn"][0]
        rows[str(count)]["same_answers"] = [one.said for one in first[0]] == [one.said for one in first[1]]
        together, in_turn = rows[str(count)]["together"], rows[str(count)]["in_turn"]
        rows[str(count)]["speedup"] = together["tokens_per_s"] / in_turn["tokens_per_s"]
    tell("requests at once", len(counts), len(counts))
    return {
        "model": model_name(loaded),
        "dtype": str(inference.runner.layout.dtype).removeprefix("torch."),
        "device": str(inference.runner.device),
        "threads": torch.get_num_threads(),
        "shares_passes": inference.runner.ragged,
        "prompt_tokens": [len(text) for text in texts[: max(counts)]],
        "output_tokens": tokens,
        "rounds": rounds,
        "requests": rows,
        "arrival": _arrival(inference, texts, tokens, rounds),
    }


@contextmanager
def _way(inference: EngineCore, way: str) -> Iterator[None]:
    """Serve `together` or `in_turn`."""
    runner, batch = inference.runner, inference.batch
    ragged, whole = runner.ragged, batch.chunk
    if way == "in_turn":
        runner.ragged, batch.chunk = False, _AT_ONE_GO
    try:
        yield
    finally:
        runner.ragged, batch.chunk = ragged, whole


def _serve(inference: EngineCore, texts: Sequence[Sequence[int]], tokens: int) -> list[Stream]:
    """Requests that all come at once, until the last to begin has so many tokens."""
    streams = [Stream() for _ in texts]
    running = [_begin(inference, text, _LONG * tokens, one) for text, one in zip(texts, streams, strict=True)]
    every = list(running)
    while running and min(len(one.output) for one in running) < tokens:
        _step(inference, running)
    for stream, one in zip(streams, every, strict=True):
        stream.said = tuple(one.output[:tokens])
    for one in running:
        inference.release(one)
    return streams


def _begin(inference: EngineCore, text: Sequence[int], tokens: int, stream: Stream) -> RunningSequence:
    request = Request(prompt_ids=tuple(text), params=SamplingParams(max_tokens=tokens))
    return inference.begin(Job(request, stream))


def _step(inference: EngineCore, running: list[RunningSequence]) -> None:
    for _, error in inference.step(running):
        raise error
    now = time.perf_counter()
    for one in list(running):
        stream = one.job.sink
        if isinstance(stream, Stream):
            stream.times += [now] * (len(one.output) - len(stream.times))
        if one.finished:
            running.remove(one)
            inference.finish(one)


def _summary(runs: Sequence[Sequence[Stream]]) -> dict[str, float]:
    """Of the time in which all decode: from the last one's first token to the first end of those still at it then."""
    rates, gaps = [], list[float]()
    for run in runs:
        start = max(one.times[0] for one in run)
        stop = min(one.times[-1] for one in run if one.times[-1] > start)
        within = [gap for one in run for gap in one.gaps(start, stop)]
        rates.append(len(within) / (stop - start))
        gaps += within
    gaps.sort()
    return {
        "tokens_per_s": statistics.median(rates),
        "gap_median_s": statistics.median(gaps),
        "gap_p95_s": gaps[int(0.95 * (len(gaps) - 1))],
        "first_token_s": statistics.median(one.times[0] - one.began for run in runs for one in run),
    }


def _arrival(inference: EngineCore, texts: Sequence[Sequence[int]], tokens: int, rounds: int) -> dict[str, Any]:
    """The longest time any of some streams waits for a token while a long prompt is computed beside it."""
    found: dict[str, list[tuple[float, float]]] = {"together": [], "in_turn": []}
    for _ in range(rounds + 1):
        for way, times in found.items():
            with _way(inference, way):
                streams, late = [Stream() for _ in range(STREAMS)], Stream()
                running = [_begin(inference, texts[i], tokens, one) for i, one in enumerate(streams)]
                while min(len(one.times) for one in streams) < 4:
                    _step(inference, running)
                late.began = time.perf_counter()
                running.append(_begin(inference, texts[-1][:ARRIVING], 2, late))
                while not late.times:
                    _step(inference, running)
                gaps = [gap for one in streams for gap in one.gaps(late.began, late.times[0])]
                times.append((max(gaps), late.times[0] - late.began))
                while running:
                    _step(inference, running)
    return {
        "streams": STREAMS,
        "prompt_tokens": len(texts[-1][:ARRIVING]),
        **{
            way: {
                "longest_gap_s": statistics.median(gap for gap, _ in times[1:]),
                "first_token_s": statistics.median(first for _, first in times[1:]),
            }
            for way, times in found.items()
        },
    }

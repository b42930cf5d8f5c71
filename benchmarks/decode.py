"""`kvcomm bench decode`: requests that share forward passes against requests served in turn.

Both by the engine's own backend, in one process, round by round. Together, every pass takes each request a token
on, and a prompt is computed in pieces beside them; in turn, each request has a forward pass of its own for every
token, through transformers' own attention, and a prompt is computed at one go.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from transformers import PreTrainedTokenizerBase

from kvcomm_agents.backend import Generation, Handle
from kvcomm_agents.backends.transformers.backend import TransformersBackend
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.plan import dense

from .data import load_questions
from .options import DecodeOptions, numbers
from .session import Report, Session, Table, title

STREAMS, ARRIVING = 4, 1000  # how many decode when a long prompt comes, and its tokens
WAYS = ("together", "in_turn")
_AT_ONE_GO = 1 << 30
_LONG = 16  # answers are as many times as long as what is measured: the first must not end before the last begins


@dataclass(eq=False, slots=True)
class Stream:
    """One request: what it said, and when each token came."""

    began: float = field(default_factory=time.perf_counter)
    output: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def take(self, token: int) -> bool:
        """Takes every token."""
        self.output.append(token)
        self.times.append(time.perf_counter())
        return True

    def gaps(self, start: float, stop: float) -> list[float]:
        """Seconds between tokens, of those that came after `start`, up to `stop`."""
        return [later - at for at, later in itertools.pairwise(self.times) if start < later <= stop]


def measure(options: DecodeOptions, session: Session) -> Report:
    """Tokens per second and time between tokens, by the number of concurrent requests; then a long prompt's arrival."""
    counts, rounds, tokens, loaded = numbers(options.requests), options.rounds, options.tokens, session.loaded
    texts = prompts(loaded.tokenizer, load_questions("gsm8k", 200, options.data), max(counts), ARRIVING)
    backends = {"together": TransformersBackend(loaded), "in_turn": TransformersBackend(loaded, chunk=_AT_ONE_GO)}
    shares_passes = backends["together"].together
    backends["in_turn"].runner.ragged = False
    rows: dict[str, Any] = {}
    for done, count in enumerate(counts, 1):
        measured: dict[str, list[list[Stream]]] = {way: [] for way in WAYS}
        for _, way in itertools.product(range(rounds + 1), WAYS):  # the first round warms up
            measured[way].append(_serve(backends[way], texts[:count], tokens))
        figures = {way: summary(runs[1:]) for way, runs in measured.items()}
        together, in_turn = ([stream.output[:tokens] for stream in measured[way][0]] for way in WAYS)
        speedup = figures["together"]["tokens_per_s"] / figures["in_turn"]["tokens_per_s"]
        rows[str(count)] = {**figures, "same_answers": together == in_turn, "speedup": speedup}
        session.tell("requests at once", done, len(counts))
    arrivals = {way: [_arrival(backends[way], texts) for _ in range(rounds + 1)][1:] for way in WAYS}
    return {
        **session.described,
        "shares_passes": shares_passes,
        "prompt_tokens": [len(text) for text in texts[: max(counts)]],
        "output_tokens": tokens,
        "rounds": rounds,
        "requests": rows,
        "arrival": {
            "streams": STREAMS,
            "prompt_tokens": len(texts[-1]),
            **{
                way: {"longest_gap_s": median(gap for gap, _ in pairs), "first_token_s": median(at for _, at in pairs)}
                for way, pairs in arrivals.items()
            },
        },
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


def _begin(
    backend: TransformersBackend, texts: Sequence[Sequence[int]], tokens: int
) -> tuple[list[Stream], list[Handle]]:
    streams = [Stream() for _ in texts]
    pairs = zip(texts, streams, strict=True)
    return streams, [
        backend.start(Generation(tuple(text), dense(len(text)), tokens, stream.take)) for text, stream in pairs
    ]


def _serve(backend: TransformersBackend, texts: Sequence[Sequence[int]], tokens: int) -> list[Stream]:
    """Requests that all come at once, until the last to begin has so many tokens."""
    streams, handles = _begin(backend, texts, _LONG * tokens)
    while min((len(one.output) for one in handles if not one.finished), default=tokens) < tokens:
        backend.step()
    _close(backend, handles)
    return streams


def _arrival(backend: TransformersBackend, texts: Sequence[Sequence[int]]) -> tuple[float, float]:
    """The longest that any of some streams waits for a token while a long prompt is computed, and its first token."""
    streams, handles = _begin(backend, texts[:STREAMS], _AT_ONE_GO)
    while min(len(stream.output) for stream in streams) < 4:
        backend.step()
    (late,), more = _begin(backend, texts[-1:], 1)
    while not late.output:
        backend.step()
    _close(backend, [*handles, *more])
    gaps = [gap for stream in streams for gap in stream.gaps(late.began, late.times[0])]
    return max(gaps), late.times[0] - late.began


def _close(backend: TransformersBackend, handles: Sequence[Handle]) -> None:
    for handle in handles:
        if handle.error:
            raise handle.error
        backend.close(handle)


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

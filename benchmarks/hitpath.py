"""`kvcomm bench hitpath`: what a hit costs beside what it saves, as prompts and known spans grow.

A prompt of instructions, four spans and a tail is served among thousands of known spans. Timed:
finding the spans, correcting them (work that is done when a message is produced, and charged here),
writing them into the cache, and the forward pass over what is left; against prefilling all of it.
"""

from __future__ import annotations

import random
import statistics
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.config import GiB, ReuseConfig
from kvcomm_agents.correction.anchors import AnchorPool
from kvcomm_agents.correction.base import Example
from kvcomm_agents.correction.embedding import TokenMeanEmbedder
from kvcomm_agents.correction.linear import LinearCorrector
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.plan import Placed
from kvcomm_agents.planning.ladder import LADDER, corrected_plan
from kvcomm_agents.planning.namespace import Namespace

SPANS, PREFIX, CONNECTIVE, TAIL, FILLER = 4, 96, 12, 16, 150


@torch.no_grad()
def measure_hitpath(
    loaded: LoadedModel, lengths: Sequence[int] = (500, 1000, 2000, 4000), known: int = 10_000, rounds: int = 5
) -> dict[str, Any]:
    """Medians in seconds, per prompt length, and bytes per anchor and per map.

    Args:
        loaded: the model.
        lengths: prompt lengths, in tokens.
        known: spans known beside those in the prompt, of 150 tokens each.
        rounds: timed rounds.
    """
    runner, rng = Runner(loaded.model), random.Random(0)
    vocabulary = loaded.model.config.get_text_config(decoder=True).vocab_size
    embedder = TokenMeanEmbedder(loaded.model, loaded.tokenizer)
    config = replace(ReuseConfig(), span_bytes=1 << 50)  # the fillers share one block; only the index grows
    memory = Namespace(
        config, loaded.fingerprint, lambda: embedder, lambda ids: str(loaded.tokenizer.decode(list(ids)))
    )
    filler = _blank(runner, FILLER)
    tracemalloc.start()
    for _ in range(known):
        ids = [rng.randrange(vocabulary) for _ in range(FILLER)]
        memory.library.add(ids, filler, producer="filler", origin="output", exact=True)
    index_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    rows = {str(length): _row(runner, memory, length, vocabulary, rng, rounds) for length in lengths}
    return {
        "model": loaded.name,
        "dtype": str(runner.layout.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "known_spans": known,
        "lengths": rows,
        "index_bytes": index_bytes,
        "held_bytes": memory.nbytes - known * filler.nbytes,
        "memory": _bytes(runner),
    }


def _row(
    runner: Runner, memory: Namespace, length: int, vocabulary: int, rng: random.Random, rounds: int
) -> dict[str, float]:
    def words(count: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(count)]

    size = (length - PREFIX - TAIL - SPANS * CONNECTIVE) // SPANS
    agent, system, tail = f"reader-{length}", words(PREFIX), words(TAIL)
    labels = [words(CONNECTIVE) for _ in range(SPANS)]

    def prompt() -> list[int]:
        ids = list(system)
        for label in labels:
            span = words(size)
            base = _blank(runner, size)
            memory.library.add(span, base, producer="writer", origin="output", exact=True)
            ids += [*label, *span]
        return ids + tail

    learned = prompt()
    segments = memory.propose(learned, agent, 0).segments
    memory.register(agent, segments, learned, len(learned), lambda a, b: _blank(runner, b - a), exact=True)
    for _ in range(2):
        ids = prompt()
        segments = memory.propose(ids, agent, 0).segments
        memory.learn(agent, [(one, _blank(runner, one.tokens)) for one in segments])
    times: dict[str, list[float]] = {name: [] for name in ("match", "correct", "assemble", "forward", "dense")}
    corrected = 0
    for _ in range(rounds + 1):
        ids = prompt()
        cache = runner.open(length)
        dense = runner.prefill(cache, ids)
        prefix = _blank(runner, PREFIX)
        started = time.perf_counter()
        memory.propose(ids, agent, PREFIX)
        produced = time.perf_counter()
        hit = memory.propose(ids, agent, PREFIX)
        matched = time.perf_counter()
        times["match"].append(matched - produced)
        times["correct"].append((produced - started) - (matched - produced))
        placed = Placed(0, PREFIX, KVBlock(prefix.keys, prefix.values, 0), exact=True)
        plan = corrected_plan(length, [placed], hit.segments, hit.blocks, LADDER[0], 12)
        result = runner.prefill(cache, ids, plan)
        runner.close(cache)
        times["assemble"].append(result.assemble_s)
        times["forward"].append(result.forward_s)
        times["dense"].append(dense.forward_s)
        corrected = plan.placed_tokens(exact=False)
    row = {f"{name}_s": statistics.median(seconds[1:]) for name, seconds in times.items()}
    overhead = row["match_s"] + row["correct_s"] + row["assemble_s"]
    saved = row["dense_s"] - row["forward_s"]
    return {**row, "corrected_tokens": corrected, "overhead_s": overhead, "overhead_of_saved": overhead / saved}


def _blank(runner: Runner, tokens: int) -> KVBlock:
    keys, values = runner.layout.empty(tokens)
    return KVBlock(keys.normal_(), values.normal_())


def _bytes(runner: Runner) -> dict[str, float]:
    """What one anchor of 200 tokens and one slot's map take, beside the published scheme's arithmetic."""
    tokens, agents = 200, 5
    example = Example(_blank(runner, tokens), _blank(runner, tokens), None)
    pool, linear = AnchorPool(GiB), LinearCorrector()
    for _ in range(8):
        linear.learn(Slot("a", "b"), example)
    linear.solve()
    pool.add(Slot("a", "b"), example)
    per_token = runner.layout.token_bytes
    return {
        "token_bytes": per_token,
        "anchor_bytes_200_tokens": pool.nbytes,
        "map_bytes_per_slot": linear.nbytes,
        "published_anchor_bytes_200_tokens_5_agents": per_token * tokens * (1 + agents),
        "published_pool_bytes_20_anchors": 20 * per_token * tokens * (1 + agents),
    }

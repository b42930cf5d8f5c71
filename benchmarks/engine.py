"""`kvcomm bench engine`: the runner against transformers itself, and a prefix hit against its floor.

Everything is timed in one process, interleaved, after a warm-up round; medians. No time is compared
with one taken elsewhere.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.plan import Computed, Placed, PrefillPlan

PREFIX, COMPUTED = 2000, 20


def interleaved(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each piece of work, taken in turns, the first round thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


@torch.no_grad()
def measure_engine(loaded: LoadedModel, lengths: Sequence[int] = (512, 2048), rounds: int = 7) -> dict[str, Any]:
    """Dense prefill and decode against transformers, and TTFT behind a placed prefix against its floor.

    Args:
        loaded: the model.
        lengths: prompt lengths, in tokens.
        rounds: timed rounds.
    """
    runner, model = Runner(loaded.model), loaded.model
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary // 2, (max(*lengths, PREFIX) + COMPUTED,), generator=generator).tolist()
    result: dict[str, Any] = {
        "model": loaded.name,
        "dtype": str(runner.layout.dtype).removeprefix("torch."),
        "device": str(runner.device),
        "threads": torch.get_num_threads(),
        "lengths": {str(length): _against_transformers(runner, model, ids[:length], rounds) for length in lengths},
        "prefix": _prefix_hit(runner, ids[: PREFIX + COMPUTED], rounds),
    }
    return result


def _against_transformers(runner: Runner, model: PreTrainedModel, ids: list[int], rounds: int) -> dict[str, float]:
    whole, one = torch.tensor([ids], device=runner.device), torch.tensor([[ids[0]]], device=runner.device)
    cache, steps = runner.open(len(ids) + 64), 16
    prefill = interleaved(
        {
            "theirs": lambda: model(whole, use_cache=True, logits_to_keep=1),
            "ours": lambda: runner.prefill(cache, ids),
        },
        rounds,
    )
    dynamic = DynamicCache()
    static = StaticCache(config=model.config, max_cache_len=len(ids) + 64)
    for theirs in (dynamic, static):
        model(whole, past_key_values=theirs, use_cache=True, logits_to_keep=1)

    def ours() -> None:
        runner.decode(cache, ids[0])

    decode = interleaved(
        {
            "dynamic": lambda: model(one, past_key_values=dynamic, use_cache=True),
            "static": lambda: model(one, past_key_values=static, use_cache=True),
            "ours": ours,
        },
        steps,
    )
    runner.close(cache)
    return {
        "prefill_s": prefill["ours"],
        "prefill_transformers_s": prefill["theirs"],
        "prefill_ratio": prefill["ours"] / prefill["theirs"],
        "decode_s": decode["ours"],
        "decode_dynamic_s": decode["dynamic"],
        "decode_static_s": decode["static"],
        "decode_ratio": decode["ours"] / min(decode["dynamic"], decode["static"]),
    }


def _prefix_hit(runner: Runner, ids: list[int], rounds: int) -> dict[str, float]:
    cache = runner.open(len(ids))
    runner.prefill(cache, ids)
    block = cache.capture(0, PREFIX)
    target = runner.open(len(ids))
    plan = PrefillPlan((Placed(0, PREFIX, block, exact=True), Computed(PREFIX, len(ids))))

    def plain() -> None:
        ragged, runner.ragged = runner.ragged, False
        runner.prefill(target, ids, plan)
        runner.ragged = ragged

    medians = interleaved(
        {
            "dense": lambda: runner.prefill(cache, ids),
            "plain": plain,
            "hit": lambda: runner.prefill(target, ids, plan),
            "short": lambda: runner.prefill(target, ids[:COMPUTED]),
            "copy": lambda: target.place(block, 0, None),
        },
        rounds,
    )
    floor = medians["short"] + medians["copy"]
    return {
        "prefix_tokens": PREFIX,
        "computed_tokens": COMPUTED,
        "dense_s": medians["dense"],
        "hit_s": medians["hit"],
        "hit_through_transformers_attention_s": medians["plain"],
        "dense_over_hit": medians["dense"] / medians["hit"],
        "floor_forward_s": medians["short"],
        "floor_copy_s": medians["copy"],
        "hit_over_floor": medians["hit"] / floor,
        "attention_and_rest_s": medians["hit"] - floor,
    }

"""`kvcomm bench engine`: the runner against transformers itself, and a prefix hit against its floor.

Everything is timed in one process, interleaved, after a warm-up round; medians. No time is compared
with one taken elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache, StaticCache

from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.plan import Computed, Placed, PrefillPlan

from .floors import interleaved
from .options import EngineOptions
from .session import Report, Session, Table, title

LENGTHS, PREFIX, COMPUTED = (512, 2048), 2000, 20
_STEPS = 16  # of decoding


def measure(options: EngineOptions, session: Session) -> Report:
    """Dense prefill and decode against transformers, and TTFT behind a placed prefix against its floor."""
    return {**session.described, **measure_engine(session.loaded, LENGTHS, PREFIX, options.rounds)}


@torch.no_grad()
def measure_engine(loaded: LoadedModel, lengths: Sequence[int], prefix: int, rounds: int) -> dict[str, Any]:
    """Seconds, and ratios of them.

    Args:
        loaded: the model.
        lengths: of prompts, in tokens.
        prefix: tokens that are placed before `COMPUTED` more.
        rounds: timed.
    """
    runner, vocabulary = Runner(loaded.model), loaded.model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary // 2, (max(*lengths, prefix) + COMPUTED,), generator=generator).tolist()
    return {
        "lengths": {str(length): _against_transformers(runner, ids[:length], rounds) for length in lengths},
        "prefix": _prefix_hit(runner, ids[: prefix + COMPUTED], rounds),
    }


def _against_transformers(runner: Runner, ids: list[int], rounds: int) -> dict[str, float]:
    model = runner.model
    whole, first = torch.tensor([ids], device=runner.device), torch.tensor([[ids[0]]], device=runner.device)
    cache = runner.open(len(ids) + 64)
    prefill = interleaved(
        {
            "theirs": lambda: model(whole, use_cache=True, logits_to_keep=1),
            "ours": lambda: runner.prefill(cache, ids),
        },
        rounds,
    )
    dynamic, static = DynamicCache(), StaticCache(config=model.config, max_cache_len=len(ids) + 64)
    for theirs in (dynamic, static):
        model(whole, past_key_values=theirs, use_cache=True, logits_to_keep=1)
    decode = interleaved(
        {
            "dynamic": lambda: model(first, past_key_values=dynamic, use_cache=True),
            "static": lambda: model(first, past_key_values=static, use_cache=True),
            "ours": lambda: runner.decode(cache, ids[0]),
        },
        _STEPS,
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
    prefix = len(ids) - COMPUTED
    cache, target = runner.open(len(ids)), runner.open(len(ids))
    runner.prefill(cache, ids)
    run = Placed(0, prefix, cache.capture(0, prefix), exact=True)
    plan = PrefillPlan((run, Computed(prefix, len(ids))))

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
            "copy": lambda: runner.assemble(target, plan),
        },
        rounds,
    )
    floor = medians["short"] + medians["copy"]
    return {
        "prefix_tokens": prefix,
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


def tables(report: Mapping[str, Any]) -> Iterator[Table | str]:
    """Ratios by prompt length, and the prefix hit."""
    columns = {"prompt": ":key", "prefill": "prefill_ratio:.2f", "decode, best cache": "decode_ratio:.2f"}
    yield Table(title(report, "our seconds over transformers'"), columns, report["lengths"])
    hit = report["prefix"]
    yield (
        f"{hit['prefix_tokens']} tokens placed, {hit['computed_tokens']} computed: {hit['dense_over_hit']:.1f}x faster"
        f" than dense, {hit['hit_over_floor']:.2f}x its floor of one short forward and the copy"
    )

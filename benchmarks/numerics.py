"""`kvcomm bench numerics`: RoPE is relative in exact arithmetic only; how far is it here, and what do moves cost?

"When Precision Meets Position" (arXiv 2411.13476, Sec. 3) shifts all positions of a text, which should change
nothing, and finds that in bfloat16 attention changes, most of all to the first token. Measured here on any
model, trained and with random weights, and then what it means for KV that is moved: the error of stored
keys after one to ten moves, and the divergence it causes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from kvcomm_agents.backends.transformers.packing import packed_mask
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.rope import Rope
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.planning.divergence import divergence

from .console import Tell, quietly
from .team import ROLES

SHIFTS = (16, 256, 1024, 4096)
HOP, HOPS, TAIL = 37, 10, 64
STORES = ("rotated, moved in bfloat16", "rotated, moved in float32", "un-rotated, rotated once", "float32 throughout")


def text_ids(loaded: LoadedModel, tokens: int) -> list[int]:
    """Some ordinary English of our own, as ids."""
    text = "\n\n".join(role.system for role in ROLES)
    ids: list[int] = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    first = loaded.tokenizer.bos_token_id
    ids = ids if first is None else [int(first), *ids]
    return (ids * -(-tokens // len(ids)))[:tokens]


@torch.no_grad()
def measure_shifts(
    models: dict[str, LoadedModel], tokens: int = 256, shifts: Sequence[int] = SHIFTS, tell: Tell = quietly
) -> dict[str, Any]:
    """What changes when all positions are shifted, by dtype, for the trained weights and for random ones.

    Args:
        models: one model by dtype name; `float32` is what errors are measured against.
        tokens: length of the text.
        shifts: to compare with no shift.
        tell: hears of progress.

    Returns:
        By weights, dtype and shift: `attention_change` (sum over keys of the absolute change, mean over
        queries, heads and layers), `first_share` (of it on key 0), `first_mass` (attention on key 0),
        and of the logits `logit_mean`, `logit_max`, `kl`, `top1`. `own_error` is the dtype's logits
        against float32 without any shift.
    """
    found: dict[str, Any] = {}
    done = 0
    for weights in ("trained", "random"):
        exact: Tensor | None = None
        for dtype, loaded in models.items():
            model = loaded.model if weights == "trained" else _random(loaded.model)
            ids = torch.tensor([text_ids(loaded, tokens)], device=model.device)
            with _eager(model):
                base_attention, base = _run(model, ids, 0)
                rows = {}
                for shift in shifts:
                    attention, logits = _run(model, ids, shift)
                    rows[str(shift)] = {**_attention(base_attention, attention), **_logits(base, logits)}
            exact = base if exact is None else exact
            found.setdefault(weights, {})[dtype] = {"own_error": _logits(exact, base), "shifts": rows}
            done += 1
            tell("shifts", done, 2 * len(models))
    return found


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Attention weights can be read in eager attention only."""
    before = getattr(model.config, "_attn_implementation", None) or "sdpa"
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _random(model: PreTrainedModel) -> PreTrainedModel:
    """The same architecture with random weights: the same in every dtype, but for rounding."""
    made: Any = AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh: Any = made.from_config(model.config, dtype=torch.float32)
    fresh.train(False).to(device=model.device, dtype=model.dtype)
    found: PreTrainedModel = fresh
    return found


def _run(model: PreTrainedModel, ids: Tensor, shift: int) -> tuple[list[Tensor], Tensor]:
    """Attention weights `[heads, tokens, tokens]` per layer, and logits `[tokens, vocabulary]`."""
    tokens = ids.shape[1]
    causal = packed_mask(torch.zeros(tokens, dtype=torch.long, device=ids.device), dtype=model.dtype)
    at = torch.arange(shift, shift + tokens, device=ids.device)[None]
    out = model(ids, attention_mask=causal, position_ids=at, output_attentions=True, use_cache=False)
    return [one[0] for one in out.attentions], out.logits[0].float()


def _attention(base: list[Tensor], other: list[Tensor]) -> dict[str, float]:
    total = first = mass = 0.0
    for a, b in zip(base, other, strict=True):
        change = (a[:, 1:].float() - b[:, 1:].float()).abs()  # the first query sees one key only
        total += float(change.sum(-1).mean())
        first += float(change[..., 0].mean())
        mass += float(a[:, 1:, 0].float().mean())
    return {
        "attention_change": total / len(base),
        "first_share": first / total if total else 0.0,
        "first_mass": mass / len(base),
    }


def _logits(base: Tensor, other: Tensor) -> dict[str, float]:
    change, apart = (base - other).abs(), divergence(base, other)
    return {
        "logit_mean": float(change.mean()),
        "logit_max": float(change.max()),
        "kl": apart.mean,
        "top1": apart.top1,
    }


@torch.no_grad()
def measure_moves(loaded: LoadedModel, tokens: int = 256, hops: int = HOPS, tell: Tell = quietly) -> dict[str, Any]:
    """Error of stored keys after moves, and the divergence of what is computed behind them.

    Args:
        loaded: in float32; what is stored is bfloat16.
        tokens: of the context whose keys are moved; half as many as `TAIL` or more behind it are computed.
        hops: moves by `HOP` positions.
        tell: hears of progress.

    Returns:
        By way of storing, lists over 0 to `hops` moves: `error` (norm of the error over the norm of the
        keys, all layers) and `kl` (mean over the computed tokens, values exact).

    Raises:
        UnsupportedModelError: the keys cannot be moved.
    """
    runner = Runner(loaded.model)
    rope = runner.layout.require_movable()
    ids = text_ids(loaded, tokens + TAIL)
    cache = runner.open(len(ids))
    runner.prefill(cache, ids[:tokens])
    block = cache.capture(0, tokens)
    free, values = block.unrotated(rope).keys, block.values
    found: dict[str, Any] = {name: {"error": [], "kl": []} for name in STORES}
    bf16 = torch.bfloat16
    kept = {
        "rotated, moved in bfloat16": rope.rotate(free, 0).to(bf16),
        "rotated, moved in float32": rope.rotate(free, 0).to(bf16),
        "un-rotated, rotated once": free.to(bf16),
        "float32 throughout": rope.rotate(free, 0),
    }
    for hop in range(hops + 1):
        exact = rope.rotate(free, hop * HOP)
        dense = _behind(runner, exact, values, ids, hop * HOP)
        for name in STORES:
            if hop and name != "un-rotated, rotated once":
                dtype = bf16 if name == "rotated, moved in bfloat16" else torch.float32
                kept[name] = _turn(kept[name], rope, dtype)
            keys = kept[name]
            if name == "un-rotated, rotated once":
                keys = rope.rotate(keys, hop * HOP)
            found[name]["error"].append(float((keys.float() - exact).norm() / exact.norm()))
            found[name]["kl"].append(divergence(dense, _behind(runner, keys.float(), values, ids, hop * HOP)).mean)
        tell("moves", hop + 1, hops + 1)
    runner.close(cache)
    return {"hop": HOP, "stores": found}


def _turn(keys: Tensor, rope: Rope, dtype: torch.dtype) -> Tensor:
    """Rotated keys moved on by `HOP`, with angles and arithmetic in `dtype`, stored as they were."""
    cos, sin = (one[HOP].to(dtype) for one in rope.angles(slice(0, HOP + 1)))
    pairs = cos.shape[-1]
    if rope.pairing == "half":
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    else:
        first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    a, b = keys[..., first].to(dtype), keys[..., second].to(dtype)
    moved = keys.clone()
    moved[..., first] = (a * cos - b * sin).to(keys.dtype)
    moved[..., second] = (b * cos + a * sin).to(keys.dtype)
    return moved


def _behind(runner: Runner, keys: Tensor, values: Tensor, ids: Sequence[int], start: int) -> Tensor:
    """Logits of the tokens behind a context with these keys that begins at position `start`."""
    tokens = keys.shape[2]
    cache = runner.open(len(ids))
    cache.place(KVBlock(keys, values, 0), 0, None)
    cache.expect(slice(tokens, len(ids)), len(ids))
    at = torch.arange(start + tokens, start + len(ids), device=runner.device)[None]
    rest = torch.tensor([ids[tokens:]], device=runner.device)
    logits: Tensor = runner.model(rest, position_ids=at, past_key_values=cache, use_cache=True).logits[0].float()
    runner.close(cache)
    return logits

"""`kvcomm bench numerics`: RoPE is relative in exact arithmetic only; how far is it here, and what do moves cost?

"When Precision Meets Position" (arXiv 2411.13476, Sec. 3) shifts all positions of a text, which should change
nothing, and finds that in bfloat16 attention changes, most of all to the first token. Measured here on any
model, trained and with random weights, and then what it means for KV that is moved: the error of stored
keys after one to ten moves, and the divergence it causes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from kvcomm_agents.backends.transformers.forced import forced
from kvcomm_agents.backends.transformers.packing import packed_mask
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.backends.transformers.scores import divergence
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.rope import Rope
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.plan import Computed, Placed, PrefillPlan

from .calls import tokens_of
from .options import NumericsOptions
from .session import Report, Session, Table, title
from .team import ROLES

SHIFTS = (16, 256, 1024, 4096)
HOP, HOPS, TAIL = 37, 10, 64
MOVED, MOVED_IN_FLOAT32, ROTATED_ONCE, EXACT = STORES = (
    "rotated, moved in bfloat16",
    "rotated, moved in float32",
    "un-rotated, rotated once",
    "float32 throughout",
)


def measure(options: NumericsOptions, session: Session) -> Report:
    """Shifts, then moves.

    Raises:
        ConfigError: the model is not in float32, from which errors are measured.
    """
    loaded = session.loaded
    if loaded.model.dtype != torch.float32:
        raise ConfigError("numerics compares float32 with bfloat16 by itself; leave --dtype out")
    shifts = measure_shifts(loaded, options.tokens, SHIFTS)
    session.tell("shifts", 1, 1)
    moves = measure_moves(loaded, options.tokens, HOPS)
    session.tell("moves", 1, 1)
    return {**session.described, "tokens": options.tokens, "shifts": shifts, "moves": moves}


def text_ids(loaded: LoadedModel, tokens: int) -> list[int]:
    """Some ordinary English of our own, as ids."""
    first = loaded.tokenizer.bos_token_id
    ids = [*([] if first is None else [int(first)]), *tokens_of(loaded)("\n\n".join(role.system for role in ROLES))]
    return (ids * -(-tokens // len(ids)))[:tokens]


@torch.no_grad()
def measure_shifts(loaded: LoadedModel, tokens: int, shifts: Sequence[int]) -> dict[str, Any]:
    """What changes when all positions are shifted, by weights (trained in float32, or random), dtype and shift.

    `attention_change` is the sum over keys of the absolute change, mean over queries, heads and layers; `first_share`
    of it is on key 0, which `first_mass` of the attention goes to. `own_error` is against float32 without any shift.
    """
    figures: dict[str, Any] = {}
    ids = torch.tensor([text_ids(loaded, tokens)], device=loaded.model.device)
    for weights, exact in (("trained", loaded.model), ("random", _random(loaded.model))):
        figures[weights], truth = {}, None
        for dtype in (torch.float32, torch.bfloat16):
            copied: Any = copy.deepcopy(exact)
            model: PreTrainedModel = copied.to(dtype)
            with _eager(model):
                base, logits = _run(model, ids, 0)
                truth = logits if truth is None else truth
                rows = {}
                for shift in shifts:
                    attention, shifted = _run(model, ids, shift)
                    rows[str(shift)] = {**_attention(base, attention), **_logits(logits, shifted)}
            name = str(dtype).removeprefix("torch.")
            figures[weights][name] = {"own_error": _logits(truth, logits), "shifts": rows}
    return figures


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
    """The same architecture with random weights."""
    made: Any = AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh: Any = made.from_config(model.config, dtype=torch.float32)
    random: PreTrainedModel = fresh.eval().to(model.device)
    return random


def _run(model: PreTrainedModel, ids: Tensor, shift: int) -> tuple[list[Tensor], Tensor]:
    """Attention weights `[heads, tokens, tokens]` per layer, and logits `[tokens, vocabulary]`."""
    tokens = ids.shape[1]
    causal = packed_mask(torch.zeros(tokens, dtype=torch.long, device=ids.device), dtype=model.dtype)
    at = torch.arange(shift, shift + tokens, device=ids.device)[None]
    out = model(ids, attention_mask=causal, position_ids=at, output_attentions=True, use_cache=False)
    return [layer[0] for layer in out.attentions], out.logits[0].float()


def _attention(base: list[Tensor], other: list[Tensor]) -> dict[str, float]:
    total = first = mass = 0.0
    for a, b in zip(base, other, strict=True):
        change = (a[:, 1:].float() - b[:, 1:].float()).abs()  # the first query sees one key only
        total += float(change.sum(-1).mean())
        first += float(change[..., 0].mean())
        mass += float(a[:, 1:, 0].float().mean())
    share = first / total if total else 0.0
    return {"attention_change": total / len(base), "first_share": share, "first_mass": mass / len(base)}


def _logits(base: Tensor, other: Tensor) -> dict[str, float]:
    change, apart = (base - other).abs(), divergence(base, other)
    size = {"logit_mean": float(change.mean()), "logit_max": float(change.max())}
    return {**size, "kl": apart.mean, "top1": apart.top1}


@torch.no_grad()
def measure_moves(loaded: LoadedModel, tokens: int, hops: int) -> dict[str, Any]:
    """By way of storing in bfloat16, lists over 0 to `hops` moves by `HOP` positions, of a model in float32.

    `error` is the norm of the error over the norm of the keys, of all layers; `kl` the mean divergence of `TAIL` tokens
    that are computed behind `tokens` with such keys and exact values.

    Raises:
        UnsupportedModelError: the keys cannot be moved.
    """
    runner, bf16 = Runner(loaded.model), torch.bfloat16
    rope, ids = runner.layout.require_movable(), text_ids(loaded, tokens + TAIL)
    cache = runner.open(tokens)
    runner.prefill(cache, ids[:tokens])
    block = cache.capture(0, tokens)
    runner.close(cache)
    free = block.unrotated(rope).keys

    def behind(keys: Tensor, position: int) -> Tensor:
        run = Placed(0, tokens, KVBlock(keys.float(), block.values, position), exact=False)
        return forced(runner, ids[: tokens + 1], ids[tokens + 1 :], PrefillPlan((run, Computed(tokens, tokens + 1))))

    figures: dict[str, Any] = {name: {"error": [], "kl": []} for name in STORES}
    kept = {
        MOVED: rope.rotate(free, 0).to(bf16),
        MOVED_IN_FLOAT32: rope.rotate(free, 0).to(bf16),
        ROTATED_ONCE: free.to(bf16),
        EXACT: rope.rotate(free, 0),
    }
    for hop in range(hops + 1):
        exact = rope.rotate(free, hop * HOP)
        dense = behind(exact, hop * HOP)
        for name, figure in figures.items():
            if hop and name != ROTATED_ONCE:
                kept[name] = _turn(kept[name], rope, bf16 if name == MOVED else torch.float32)
            keys = rope.rotate(kept[name], hop * HOP) if name == ROTATED_ONCE else kept[name]
            figure["error"].append(float((keys.float() - exact).norm() / exact.norm()))
            figure["kl"].append(divergence(dense, behind(keys, hop * HOP)).mean)
    return {"hop": HOP, "stores": figures}


def _turn(keys: Tensor, rope: Rope, dtype: torch.dtype) -> Tensor:
    """Rotated keys moved on by `HOP`, with angles and arithmetic in `dtype`, stored as they were."""
    cos, sin = (angle[HOP].to(dtype) for angle in rope.angles(slice(0, HOP + 1)))
    pairs = cos.shape[-1]
    half = rope.pairing == "half"
    first, second = (
        (slice(0, pairs), slice(pairs, 2 * pairs)) if half else (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
    )
    a, b = keys[..., first].to(dtype), keys[..., second].to(dtype)
    moved = keys.clone()
    moved[..., first] = (a * cos - b * sin).to(keys.dtype)
    moved[..., second] = (b * cos + a * sin).to(keys.dtype)
    return moved


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """Shifts, then moves."""
    shifts = {
        f"{weights}, {dtype}, +{shift}": one
        for weights, dtypes in report["shifts"].items()
        for dtype, row in dtypes.items()
        for shift, one in row["shifts"].items()
    }
    columns = {
        "all positions shifted": ":key",
        "attention": "attention_change:.2g",
        "on first": "first_share:.2f",
        "its mass": "first_mass:.2f",
        "logits": "logit_mean:.2g",
        "at most": "logit_max:.2g",
        "KL": "kl:.1e",
    }
    yield Table(title(report, f"{report['tokens']} tokens"), columns, shifts)
    for key, heading, form in (("error", "error of keys", ".1e"), ("kl", "KL behind them", ".0e")):
        rows = {
            name: dict(zip("0123456789x", one[key], strict=True)) for name, one in report["moves"]["stores"].items()
        }
        moves = {"0": f"0:{form}", "1": f"1:{form}", "3": f"3:{form}", "10 times": f"x:{form}"}
        yield Table(f"Kept as bfloat16 and moved: {heading}", {"": ":key", **moves}, rows)

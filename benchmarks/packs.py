"""`kvcomm bench warm`: what packs and their masks cost, against prefilling each text by itself.

Three questions: what packing saves as texts grow in number and length; what small packs cost, which are
what a request may have to wait for; and what the mask costs within attention, SDPA against FlexAttention.
All timings are taken in turns in one process; medians.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from kvcomm_agents.backends.transformers.packing import pack, packed_mask, sees
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.models.loading import LoadedModel

from .console import Tell, quietly
from .engine import interleaved

COUNTS, LENGTHS, BUDGETS = (1, 4, 16), (16, 64, 256), (64, 128, 256, 512, 1024)
PACK_TEXT = 60  # tokens of a text where the size of packs is varied


@torch.no_grad()
def measure_packs(
    loaded: LoadedModel,
    counts: Sequence[int] = COUNTS,
    lengths: Sequence[int] = LENGTHS,
    budgets: Sequence[int] = BUDGETS,
    most: int = 2048,
    rounds: int = 3,
    tell: Tell = quietly,
) -> dict[str, Any]:
    """Seconds of the whole forward pass.

    Args:
        loaded: the model.
        counts: numbers of texts.
        lengths: tokens in each.
        budgets: sizes of packs.
        most: larger packs are left out.
        rounds: timed.
        tell: hears of progress.

    Returns:
        `texts`: rows of `count`, `length`, `separate_s`, `packed_s`, `ratio` (packed over separate).
        `budgets`: rows of `tokens`, `pack_s` (what a request may wait for) and `token_s`.
    """
    runner = Runner(loaded.model)
    vocabulary = int(loaded.model.config.get_text_config(decoder=True).vocab_size)
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        ids: list[int] = torch.randint(vocabulary // 2, (count,), generator=generator).tolist()
        return ids

    def separately(texts: list[list[int]]) -> None:
        for text in texts:
            runner.prefill_pack(pack([text], 1, "reset"))

    rows, sizes = [(count, length) for length in lengths for count in counts if count * length <= most], list(budgets)
    texts, packs = [], []
    for done, (count, length) in enumerate(rows):
        documents = [words(length) for _ in range(count)]
        row = pack(documents, 1, "reset")
        seconds = interleaved(
            {
                "separate": lambda documents=documents: separately(documents),  # type: ignore[misc]
                "packed": lambda row=row: runner.prefill_pack(row),  # type: ignore[misc]
            },
            rounds,
        )
        ratio = seconds["packed"] / seconds["separate"]
        texts.append(
            {
                "count": count,
                "length": length,
                "separate_s": seconds["separate"],
                "packed_s": seconds["packed"],
                "ratio": ratio,
            }
        )
        tell("texts", done + 1, len(rows))
    works: dict[str, Callable[[], object]] = {}
    for size in sizes:
        documents = [words(min(PACK_TEXT, size - 1 - at)) for at in range(0, size - 1, PACK_TEXT)]
        row = pack(documents, 1, "reset")
        works[str(size)] = lambda row=row: runner.prefill_pack(row)  # type: ignore[misc]
    for name, taken in interleaved(works, rounds).items():
        packs.append({"tokens": int(name), "pack_s": taken, "token_s": taken / int(name)})
    return {
        "dtype": str(runner.layout.dtype).removeprefix("torch."),
        "device": str(runner.device),
        "threads": torch.get_num_threads(),
        "texts": texts,
        "budgets": packs,
    }


@torch.no_grad()
def measure_masks(
    heads: int = 9,
    kv_heads: int = 3,
    dim: int = 64,
    rows: Sequence[tuple[int, int]] = ((256, 4), (1024, 16), (4096, 32)),
    flex: bool = True,
    rounds: int = 5,
    tell: Tell = quietly,
) -> list[dict[str, Any]]:
    """Seconds of one layer's attention over a pack, float32.

    Args:
        heads: of queries.
        kv_heads: of keys and values.
        dim: of a head.
        rows: tokens and documents.
        flex: compile FlexAttention as well, once a row: its length and its segments are constants then.
        rounds: timed.
        tell: hears of progress.

    Returns:
        Rows of `tokens`, `documents`, `causal_s` (no mask), `masked_s` (SDPA with the dense mask),
        `mask_s` (making it), and with `flex`: `flex_s`, `block_mask_s`, `compile_s`, `difference`.
        Where FlexAttention does not run, `flex_error` says why.
    """
    found = []
    for done, (tokens, documents) in enumerate(rows):
        length = (tokens - 1) // documents
        row = pack([[0] * length] * (documents - 1) + [[0] * (tokens - 1 - length * (documents - 1))], 0)
        q, k, v = (torch.randn(1, count, tokens, dim) for count in (heads, kv_heads, kv_heads))
        mask = packed_mask(row.segments)
        works: dict[str, Callable[[], object]] = {
            "causal_s": lambda q=q, k=k, v=v: _sdpa(q, k, v, None),  # type: ignore[misc]
            "masked_s": lambda q=q, k=k, v=v, mask=mask: _sdpa(q, k, v, mask),  # type: ignore[misc]
            "mask_s": lambda row=row: packed_mask(row.segments),  # type: ignore[misc]
        }
        one: dict[str, Any] = {"tokens": tokens, "documents": documents}
        if flex:
            try:
                one |= _flex(works, q, k, v, row.segments, _sdpa(q, k, v, mask))
            except Exception as error:  # no compiler, or none for this device: whatever it is, it is a finding
                one["flex_error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        one |= interleaved(works, rounds)
        found.append(one)
        tell("attention", done + 1, len(rows))
    return found


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


def _flex(
    works: dict[str, Callable[[], object]], q: Tensor, k: Tensor, v: Tensor, segments: Tensor, expected: Tensor
) -> dict[str, float]:
    """Compile it for this length and add it to what is timed; compile seconds and difference to SDPA."""
    size = len(segments)

    def blocks() -> Any:
        return create_block_mask(sees(segments), 1, None, size, size, device=str(q.device))

    # Automatic dynamic shapes break it on CPU at the second length (torch 2.13): one compilation a length.
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    mask, started = blocks(), time.perf_counter()
    result = compiled(q, k, v, block_mask=mask, enable_gqa=True)
    seconds = time.perf_counter() - started
    works["flex_s"] = lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True)
    works["block_mask_s"] = blocks
    return {"compile_s": seconds, "difference": float((result - expected).abs().max())}

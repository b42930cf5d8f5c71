"""`kvcomm bench warm`: what packs and their masks cost, against prefilling each text by itself.

Three questions: what packing saves as texts grow in number and length; what small packs cost, which are
what a request may have to wait for; and what the mask costs within attention, SDPA against FlexAttention.
All timings are taken in turns in one process; medians.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from kvcomm_agents.backends.transformers.packing import Pack, pack, packed_mask, sees
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.models.loading import LoadedModel

from .floors import interleaved
from .options import WarmOptions
from .session import Report, Session, Table, Tell, title

COUNTS, LENGTHS, BUDGETS = (1, 4, 16), (16, 64, 256), (64, 128, 256, 512, 1024)
ATTENTION = ((256, 4), (1024, 16), (4096, 32))
PACK_TEXT = 60  # tokens of a text where the size of packs is varied
Works = dict[str, Callable[[], object]]


def measure(options: WarmOptions, session: Session) -> Report:
    """Packs of texts, packs by size, and attention alone."""
    sizes = [(count, length) for length in LENGTHS for count in COUNTS if count * length <= options.most]
    packs = measure_packs(session.loaded, sizes, BUDGETS, options.rounds)
    session.tell("packs", 1, 1)
    attention = measure_masks(9, 3, 64, ATTENTION, flex=options.flex, rounds=options.rounds, tell=session.tell)
    return {**session.described, **packs, "attention": attention}


@torch.no_grad()
def measure_packs(
    loaded: LoadedModel, sizes: Sequence[tuple[int, int]], budgets: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Seconds of whole forward passes: so many texts of so many tokens, apart and in a pack; and packs by tokens."""
    runner, texts = Runner(loaded.model), list[dict[str, float]]()
    vocabulary = int(loaded.model.config.get_text_config(decoder=True).vocab_size)
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        ids: list[int] = torch.randint(vocabulary // 2, (count,), generator=generator).tolist()
        return ids

    for count, length in sizes:
        documents = [words(length) for _ in range(count)]
        apart = [pack([document], 1, "reset") for document in documents]
        works: Works = {
            "separate_s": partial(_prefill, runner, apart),
            "packed_s": partial(_prefill, runner, [pack(documents, 1, "reset")]),
        }
        seconds = interleaved(works, rounds)
        ratio = seconds["packed_s"] / seconds["separate_s"]
        texts.append({"count": count, "length": length, **seconds, "ratio": ratio})
    works = {}
    for size in budgets:
        documents = [words(min(PACK_TEXT, size - 1 - at)) for at in range(0, size - 1, PACK_TEXT)]
        works[str(size)] = partial(_prefill, runner, [pack(documents, 1, "reset")])
    taken = interleaved(works, rounds)
    return {
        "texts": texts,
        "budgets": [
            {"tokens": size, "pack_s": taken[str(size)], "token_s": taken[str(size)] / size} for size in budgets
        ],
    }


def _prefill(runner: Runner, packs: Sequence[Pack]) -> None:
    for row in packs:
        runner.prefill_pack(row)


@torch.no_grad()
def measure_masks(
    heads: int, kv_heads: int, dim: int, rows: Sequence[tuple[int, int]], *, flex: bool, rounds: int, tell: Tell
) -> list[dict[str, Any]]:
    """Seconds of one layer's attention over a pack, float32, by `rows` of tokens and documents.

    `causal_s` is without a mask, `masked_s` SDPA with the dense one, `mask_s` making that; with `flex`, FlexAttention
    is compiled as well, once a row: its length and its segments are constants then. Where it does not run,
    `flex_error` says why.
    """
    figures = []
    for done, (tokens, documents) in enumerate(rows, 1):
        length = (tokens - 1) // documents
        segments = pack([[0] * length] * (documents - 1) + [[0] * (tokens - 1 - length * (documents - 1))], 0).segments
        q, k, v = (torch.randn(1, count, tokens, dim) for count in (heads, kv_heads, kv_heads))
        mask = packed_mask(segments)
        works: Works = {
            "causal_s": partial(_sdpa, q, k, v, None),
            "masked_s": partial(_sdpa, q, k, v, mask),
            "mask_s": partial(packed_mask, segments),
        }
        figure: dict[str, Any] = {"tokens": tokens, "documents": documents}
        if flex:
            try:
                figure |= _flex(works, q, k, v, segments, _sdpa(q, k, v, mask))
            except Exception as error:  # no compiler, or none for this device: whatever it is, it is a finding
                figure["flex_error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        figures.append(figure | interleaved(works, rounds))
        tell("attention", done, len(rows))
    return figures


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


def _flex(works: Works, q: Tensor, k: Tensor, v: Tensor, segments: Tensor, expected: Tensor) -> dict[str, float]:
    """Compile it for this length and add it to what is timed; compile seconds and difference to SDPA."""
    size = len(segments)
    blocks: Callable[[], Any] = partial(create_block_mask, sees(segments), 1, None, size, size, device=str(q.device))
    # Automatic dynamic shapes break it on CPU at the second length (torch 2.13): one compilation a length.
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    attend: Callable[[], Any] = partial(compiled, q, k, v, block_mask=blocks(), enable_gqa=True)
    started = time.perf_counter()
    result = attend()
    seconds = time.perf_counter() - started
    works |= {"flex_s": attend, "block_mask_s": blocks}
    return {"compile_s": seconds, "difference": float((result - expected).abs().max())}


def tables(report: Mapping[str, Any]) -> Iterator[Table | str]:
    """Texts, packs by size, attention."""
    seconds = {"separate": "separate_s:.2f", "packed": "packed_s:.2f", "ratio": "ratio:.2f"}
    yield Table(title(report, "seconds"), {"texts": "count", "tokens": "length", **seconds}, report["texts"])
    sizes = {"tokens": "tokens", "a pack, ms": "pack_s:ms", "a token, ms": "token_s:ms2"}
    yield Table("A pack, which a request may wait for", sizes, report["budgets"])
    columns = {
        "tokens": "tokens",
        "documents": "documents",
        "causal": "causal_s:ms1",
        "dense mask": "masked_s:ms1",
        "making it": "mask_s:ms1",
        "flex": "flex_s:ms1",
        "block mask": "block_mask_s:ms1",
        "compiling": "compile_s:ms",
    }
    yield Table("Attention of one layer, milliseconds", columns, report["attention"])
    yield from (f"no FlexAttention: {one['flex_error']}" for one in report["attention"] if "flex_error" in one)

"""`kvcomm bench hitpath`: what a hit costs beside what it saves, as prompts and known spans grow.

A prompt of instructions, four texts that another agent wrote and a tail is served among thousands of known
spans, everything placed that can be. Timed: finding the spans, correcting them (work that is done when a
message is produced, and charged here), writing them into the cache, and the forward pass over what is left;
against prefilling all of it. All words are random: only time is asked.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from kvcomm_agents.config import GiB, ReuseConfig
from kvcomm_agents.correction.anchors import AnchorPool
from kvcomm_agents.correction.base import Example
from kvcomm_agents.correction.linear import LinearCorrector
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.layout import KVLayout
from kvcomm_agents.kv.slot import Slot
from kvcomm_agents.models.loading import LoadedModel

from .calls import Call
from .columns import Plain
from .options import HitpathOptions
from .served import Reused
from .session import Report, Session, Table, title

LENGTHS = (500, 1000, 2000, 4000)
SPANS, PREFIX, CONNECTIVE, TAIL, FILLER = 4, 96, 12, 16, 150
_TAUGHT = 4  # rounds that are not timed: corrections want two examples, and the first hit is slow


def measure(options: HitpathOptions, session: Session) -> Report:
    """Medians in seconds, per prompt length, and bytes per anchor and per map."""
    figures = hits(session.loaded, LENGTHS, options.known, options.rounds)
    return {**session.described, **figures, "memory": _memory(Plain(session.loaded, prefix=False).runner.layout)}


def hits(loaded: LoadedModel, lengths: Sequence[int], known: int, rounds: int) -> dict[str, Any]:
    """Rows of median seconds and tokens by prompt length, and `index_bytes` and `held_bytes` of all else."""
    rng, vocabulary = random.Random(0), loaded.model.config.get_text_config(decoder=True).vocab_size

    def words(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(count))

    # The known spans share one block, so only their index grows; and who writes four texts does not compete.
    reuse = ReuseConfig(mode="corrected", exact_judges=False, span_bytes=1 << 50)
    hit, dense = Reused("hit", loaded, reuse), Plain(loaded, prefix=False)
    tracemalloc.start()
    shared = hit.fill([words(FILLER) for _ in range(known)])
    index_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    rows = {}
    for length in lengths:
        size = (length - PREFIX - TAIL - SPANS * CONNECTIVE) // SPANS
        system, labels, tail = words(PREFIX), [words(CONNECTIVE) for _ in range(SPANS)], words(TAIL)
        timed = list[dict[str, float]]()
        for number in range(_TAUGHT + rounds):
            texts = [words(size) for _ in range(SPANS)]
            prepared = sum(hit.serve(Call(number, "writer", words(PREFIX), text)).prepare_s for text in texts)
            parts = (part for pair in zip(labels, texts, strict=True) for part in pair)
            call = Call(number, f"reader {length}", (*system, *(token for part in parts for token in part), *tail), ())
            served, whole = hit.serve(call), dense.serve(call)
            timed.append(
                {
                    "match_s": served.match_s,
                    "correct_s": served.correct_s + prepared,
                    "assemble_s": served.assemble_s,
                    "forward_s": served.forward_s,
                    "dense_s": whole.forward_s,
                    "corrected_tokens": served.corrected,
                }
            )
        row = {name: median(one[name] for one in timed[_TAUGHT:]) for name in timed[0]}
        overhead = row["match_s"] + row["correct_s"] + row["assemble_s"]
        saved = row["dense_s"] - row["forward_s"]
        rows[str(length)] = {**row, "overhead_s": overhead, "overhead_of_saved": overhead / saved}
    held = hit.learned_bytes - shared
    return {"known_spans": known, "lengths": rows, "index_bytes": index_bytes, "held_bytes": held}


@torch.no_grad()
def _memory(layout: KVLayout) -> dict[str, float]:
    """What one anchor of 200 tokens and one slot's map take, beside the published scheme's arithmetic."""
    tokens, agents, token_bytes, slot = 200, 5, layout.token_bytes, Slot("a", "b")
    (base, true), (pool, linear) = (layout.empty(tokens) for _ in range(2)), (AnchorPool(GiB), LinearCorrector())
    example = Example(KVBlock(base[0].normal_(), base[1].normal_()), KVBlock(true[0].normal_(), true[1].normal_()))
    for _ in range(8):
        linear.learn(slot, example)
    linear.solve()
    pool.add(slot, example)
    return {
        "token_bytes": token_bytes,
        "anchor_bytes_200_tokens": pool.nbytes,
        "map_bytes_per_slot": linear.nbytes,
        "published_anchor_bytes_200_tokens_5_agents": token_bytes * tokens * (1 + agents),
        "published_pool_bytes_20_anchors": 20 * token_bytes * tokens * (1 + agents),
    }


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """Milliseconds by prompt length."""
    parts = {name: f"{name}_s:ms1" for name in ("match", "correct", "assemble", "forward", "dense")}
    columns = {"prompt": ":key", **parts, "cost / saved": "overhead_of_saved:.1%"}
    yield Table(title(report, "milliseconds"), columns, report["lengths"])

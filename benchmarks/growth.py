"""`kvcomm bench growth`: time to first token, match time and memory as contexts, agents and known spans grow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from kvcomm_agents.models.loading import LoadedModel

from .calls import Protocol, protocol_calls
from .console import Tell, quietly
from .hitpath import measure_hitpath
from .ours import make_column
from .ttft import run

CONTEXTS = (512, 1024, 2048, 4096, 8000)  # the prompt of 8K leaves room for its answer in a context of 8192
AGENTS = (2, 4, 8, 16)
SPANS = (10, 100, 1_000, 10_000, 100_000)
LENGTHS = Protocol(2, 64, 128, 48)
KINDS = ("context", "agents", "spans")


def grow_context(
    loaded: LoadedModel, lengths: Sequence[int] = CONTEXTS, rounds: int = 3, tell: Tell = quietly
) -> dict[str, dict[str, float]]:
    """One hit on four spans, against a dense prefill, by prompt length. KV of spans is random: only time is asked.

    Returns:
        By length: `dense_s`, `ttft_s` (all of a hit), `match_s`, and `held_bytes`, KV of the spans and their maps.
    """
    found = {}
    for done, length in enumerate(lengths, 1):
        found[str(length)] = _hit(loaded, length, 10, rounds, "held_bytes")
        tell("prompt lengths", done, len(lengths))
    return found


def grow_spans(
    loaded: LoadedModel, known: Sequence[int] = SPANS, length: int = 1024, rounds: int = 3, tell: Tell = quietly
) -> dict[str, dict[str, float]]:
    """The same by how many other spans of 150 tokens are known. `held_bytes`: of the index; their KV is left out."""
    found = {}
    for done, count in enumerate(known, 1):
        found[str(count)] = _hit(loaded, length, count, rounds, "index_bytes")
        tell("known spans", done, len(known))
    return found


def _hit(loaded: LoadedModel, length: int, known: int, rounds: int, held: str) -> dict[str, float]:
    report = measure_hitpath(loaded, (length,), known, rounds)
    row = report["lengths"][str(length)]
    return {
        "dense_s": row["dense_s"],
        "ttft_s": row["match_s"] + row["assemble_s"] + row["forward_s"],
        "match_s": row["match_s"],
        "correct_s": row["correct_s"],
        "assemble_s": row["assemble_s"],
        "forward_s": row["forward_s"],
        "held_bytes": float(report[held]),
    }


def grow_agents(
    loaded: LoadedModel,
    agents: Sequence[int] = AGENTS,
    lengths: Protocol = LENGTHS,
    folder: Path | None = None,
    tell: Tell = quietly,
) -> dict[str, dict[str, float]]:
    """The last of so many fully connected agents, everything placed that can be, after three requests.

    Args:
        loaded: the model.
        agents: how many.
        lengths: of texts; its agents are not looked at.
        folder: of the data.
        tell: called as agents grow.

    Returns:
        By agents: `dense_s`, `prefix_s`, `ttft_s` and `match_s` of the last agent's call, `prompt` its
        tokens, `kl`, and `held_bytes`, all that was learned and stored for the whole team.
    """
    found = {}
    for done, count in enumerate(agents, 1):
        protocol = Protocol(count, lengths.prefix, lengths.question, lengths.output)
        columns = [make_column(name, loaded) for name in ("dense", "prefix", "corrected")]
        served = run(columns, protocol_calls(loaded, protocol, 5, folder), cold=3)
        last = [row for row in served.steady if row.call.agent == f"agent {count}"]
        ttft = {one.name: median(row.first.ttft_s for row in last if row.column == one.name) for one in columns}
        ours = [row for row in last if row.column == "corrected"]
        found[str(count)] = {
            "dense_s": ttft["dense"],
            "prefix_s": ttft["prefix"],
            "ttft_s": ttft["corrected"],
            "match_s": median(row.first.match_s for row in ours),
            "prompt": float(len(last[0].call.ids)),
            "kl": sum(row.kl or 0.0 for row in ours) / len(ours),
            "held_bytes": float(served.held["corrected"]),
        }
        for one in columns:
            one.close()
        tell("agents", done, len(agents))
    return found


def grow(loaded: LoadedModel, kinds: Sequence[str], folder: Path | None = None, tell: Tell = quietly) -> dict[str, Any]:
    """What was asked for of `KINDS`."""
    found: dict[str, Any] = {}
    if "spans" in kinds:
        found["spans"] = grow_spans(loaded, tell=tell)
    if "context" in kinds:
        found["context"] = grow_context(loaded, tell=tell)
    if "agents" in kinds:
        found["agents"] = grow_agents(loaded, folder=folder, tell=tell)
    return found

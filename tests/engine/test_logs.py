"""What an operator reads: one line a request, and what happens to the engine and what it keeps."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from two_agents import QUESTIONS, call, chain, make_speaker

from kvcomm_agents import EngineConfig, ReuseConfig, load_model
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.prefix_cache import PrefixCache

REUSE = ReuseConfig(min_placed=12, max_divergence=100.0, audit_share=1.0)


def test_the_life_of_an_engine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kvcomm_agents")
    config = EngineConfig(memory_folder=str(tmp_path), reuse=REUSE)
    engine = Engine(make_speaker(), config)
    for question in QUESTIONS[:6]:
        chain(engine, question)
    call(engine, "solver", "for a tenant", namespace="tenant")
    engine.close()
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("serving tiny-llama on cpu in float32") for line in lines) == 1
    assert [line for line in lines if "prompt tokens = " in line] == [str(report) for report in engine.reports]
    assert sum(line.startswith("solver (tenant): ") for line in lines) == 1
    assert any(line.startswith("audit of critic") for line in lines)
    assert sum(line.startswith("saved memory of") for line in lines) == 2
    assert lines[-1] == "closed the engine of tiny-llama"
    assert all("\n" not in line for line in lines)

    caplog.clear()
    engine = Engine(make_speaker(), config)
    call(engine, "solver", "again")
    assert any(line.startswith("loaded memory of default") for line in caplog.messages)
    engine.forget("default")
    assert "forgetting namespace default" in caplog.messages
    engine.close()


def test_at_debug_the_guard_says_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "kvcomm_agents")
    engine = Engine(make_speaker(), EngineConfig(reuse=REUSE))
    for question in QUESTIONS[:6]:
        chain(engine, question)
    engine.close()
    assert any(line.startswith("critic: raw32, predicted 0.0") and "by calibration" in line for line in caplog.messages)
    assert any(line.startswith("critic: ") and "within the bound" in line for line in caplog.messages)


def test_the_first_eviction_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "kvcomm_agents")
    store = PrefixCache(torch.device("cpu"), 0, 3000)

    def capture(start: int, stop: int) -> KVBlock:
        keys = torch.zeros(2, 1, stop - start, 8)
        return KVBlock(keys, keys, start)

    for first in range(4):
        store.insert("default", [first, *range(10, 20)], 11, capture)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["INFO", "DEBUG"]
    assert "1 (1.4 kB) forgotten" in told[0][1]


@pytest.mark.weights
def test_a_load_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kvcomm_agents")
    load_model("default", device="cpu", dtype="bfloat16")
    assert any("135 M parameters, bfloat16 on cpu" in line for line in caplog.messages)

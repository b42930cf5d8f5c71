"""Ten thousand namespaces share what one could have, and the least useful give first."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from two_agents import QUESTIONS, chain, make_speaker

from kvcomm_agents import EngineConfig, Message, Request, ReuseConfig, SamplingParams
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.errors import ConfigError


def test_parts_are_shared_by_all_namespaces_and_the_oldest_give_first() -> None:
    config = EngineConfig(memory_bytes=4 << 20, reuse=ReuseConfig(mode="auto", max_divergence=100.0, min_placed=12))
    engine = Engine(make_speaker(), config)
    for number in range(8):
        for question in QUESTIONS[:3]:
            chain(engine, f"{question} {number}", namespace=f"tenant {number}")
        parts = {part.name: part for part in engine.stats.memory}
        assert set(parts) == {"prefixes", "spans", "maps", "anchors", "logits", "spare", "queued"}
        for part in parts.values():
            assert part.used <= part.allowed, part
    held = engine.inspect(lambda core: {name: namespace.span_bytes for name, namespace in core.namespaces})
    assert held["tenant 7"] > 0
    assert held["tenant 0"] == 0
    engine.close()


def test_a_namespace_too_many_leaves_and_is_saved_before(tmp_path: object) -> None:
    engine = Engine(make_speaker(), EngineConfig(memory_folder=str(tmp_path), reuse=ReuseConfig(mode="auto")))
    engine.generate(Request((Message("user", "hello"),), SamplingParams(max_tokens=2)))
    engine.inspect(lambda core: setattr(core.namespaces, "most", 2))
    for name in ("a", "b", "c"):
        for question in QUESTIONS[:2]:
            chain(engine, question, namespace=name)
    names = engine.inspect(lambda core: [name for name, _ in core.namespaces])
    assert names == ["b", "c"]
    again = chain(engine, QUESTIONS[0], namespace="a")[1]
    assert again.report.output_tokens > 0
    assert len(engine.inspect(lambda core: core.namespaces.get("a").corrections.pool)) > 0, (
        "what it had learned is back"
    )
    engine.close()


@pytest.mark.parametrize("name", [None, "", 7, b"x", ("a",)])
def test_odd_names_are_refused(name: object) -> None:
    engine = Engine(make_speaker(), EngineConfig(reuse=ReuseConfig(mode="auto")))
    with pytest.raises(ConfigError, match="namespace"):
        engine.inspect(lambda core: core.namespaces.get(name))  # type: ignore[arg-type]
    engine.close()


def test_ever_new_namespaces_agents_and_texts_stay_flat() -> None:
    config = EngineConfig(memory_bytes=2 << 20, reuse=ReuseConfig(mode="auto", min_placed=12))
    engine = Engine(make_speaker(), config)
    engine.generate(Request((Message("user", "hello"),), SamplingParams(max_tokens=2)))
    engine.inspect(lambda core: setattr(core.namespaces, "most", 40))

    def serve(first: int, last: int) -> None:
        for number in range(first, last):
            system = Message("system", f"You are agent {number} of {number % 7}, and nobody else.")
            text = Message("user", f"{number}: {' '.join(str(number * step) for step in range(9))}")
            request = Request(
                (system, text), SamplingParams(max_tokens=14), agent=f"agent {number}", namespace=f"n{number // 2}"
            )
            engine.generate(request)
        engine.wait_idle()

    serve(0, 160)
    gc.collect()
    tracemalloc.start()
    serve(160, 200)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    serve(200, 360)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 160 * 5_000, f"{grown} bytes more after 160 requests, whose reports are kept"
    assert len(engine.inspect(lambda core: core.namespaces)) <= 40
    for part in engine.stats.memory:
        assert part.used <= part.allowed, part
    engine.close()

"""What is forgotten is gone: in memory, on disk, and in what was left to do."""

from __future__ import annotations

import threading
from pathlib import Path

from filelock import FileLock
from two_agents import QUESTIONS, chain, make_speaker

from kvcomm_agents import EngineConfig, ReuseConfig
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.request import Message, Request, SamplingParams


def made(folder: Path | None = None, **reuse: object) -> Engine:
    settings = {"mode": "auto", "max_divergence": 100.0, "min_placed": 12, **reuse}
    return Engine(
        make_speaker(),
        EngineConfig(memory_folder=None if folder is None else str(folder), reuse=ReuseConfig(**settings)),  # type: ignore[arg-type]
    )


def test_a_pending_audit_brings_nothing_of_a_forgotten_namespace_back() -> None:
    engine = made(audit_share=1.0)
    for question in QUESTIONS[:3]:
        chain(engine, question, namespace="a")
    text = f"Check this. The question was: {QUESTIONS[2]}\nThe solver wrote: something\nIs it right?"
    request = Request((Message("user", text),), SamplingParams(max_tokens=20), agent="critic", namespace="a")
    for _ in range(6):
        engine.generate(request)
        engine.forget("a")
        engine.wait_idle()
        assert engine.stats.tokens == 0
        assert engine.learned.spans == 0
        assert engine.generate(request).report.placed_tokens == 0
    assert engine.ledger("a").saved == 0
    engine.close()


def test_a_request_that_runs_while_its_namespace_is_forgotten_leaves_nothing() -> None:
    engine = made()
    request = Request((Message("user", QUESTIONS[0]),), SamplingParams(max_tokens=60), namespace="a")
    stream = engine.stream(request)
    next(stream)
    engine.forget("a")
    list(stream)
    engine.wait_idle()
    assert engine.stats.tokens == 0
    assert engine.learned.spans == 0
    engine.close()


def test_what_was_saved_is_forgotten_too(tmp_path: Path) -> None:
    engine = made(tmp_path)
    for name in ("a", "b"):
        for question in QUESTIONS[:3]:
            chain(engine, question, namespace=name)
    engine.save()
    assert len(list(tmp_path.glob("*/anchors.json"))) == 2
    engine.forget("a")
    assert len(list(tmp_path.glob("*/anchors*"))) == 2
    anchors = engine.inspect(lambda core: [len(core.namespaces.get(name).corrections.pool) for name in "ab"])
    assert anchors[0] == 0 < anchors[1]
    engine.forget()
    assert list(tmp_path.glob("*/anchors*")) == []
    engine.close()


def test_a_save_that_waits_for_another_process_stops_no_request(tmp_path: Path) -> None:
    engine = made(tmp_path)
    chain(engine, QUESTIONS[0])
    (folder,) = engine.inspect(lambda core: list(core.snapshots()))
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        saving = threading.Thread(target=engine.save)
        saving.start()
        assert chain(engine, QUESTIONS[1])[1].report.total_s < 5
        assert saving.is_alive()
    saving.join(30)
    assert not saving.is_alive()
    engine.close()

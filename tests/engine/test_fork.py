"""After `os.fork` a child has a working engine, or an error that names fork, at once; the parent notices nothing."""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from two_agents import QUESTIONS, chain, make_speaker

from kvcomm_agents import Completion, EngineConfig, Message, Request, ReuseConfig, SamplingParams, TextChunk
from kvcomm_agents.engine import engine as engine_module
from kvcomm_agents.engine import standstill
from kvcomm_agents.engine.engine import Engine, shared_engine
from kvcomm_agents.errors import EngineForkedError
from kvcomm_agents.models.loading import LoadedModel

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]

HERE = Path(__file__).parent


def request(text: str = "hello", tokens: int = 6) -> Request:
    return Request((Message("user", text),), SamplingParams(max_tokens=tokens))


def in_child(work: Callable[[], object], seconds: float = 10.0) -> object:
    """What `work` gives or raises in a forked child, which has so long to say it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                came: object = work()
            except BaseException as error:
                came = error
            os.write(writer, pickle.dumps(came))
        finally:
            os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], seconds)
        assert ready, f"the child hangs, {seconds} s after the fork"
        return pickle.loads(os.read(reader, 1 << 16))
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture(scope="module")
def speaker() -> LoadedModel:
    return make_speaker()


@pytest.fixture
def engine(speaker: LoadedModel, tmp_path: Path) -> Iterator[Engine]:
    config = EngineConfig(
        reuse=ReuseConfig(min_placed=12), memory_folder=str(tmp_path), report_file=str(tmp_path / "r")
    )
    engine = Engine(speaker, config)
    yield engine
    engine.close()


def constructed(engine: Engine) -> None:
    """Nothing was asked of it."""


def served(engine: Engine) -> None:
    engine.generate(request("before"))
    assert engine.wait_idle(5)


def running(engine: Engine) -> None:
    """Requests run, and more wait."""
    begun = threading.Event()
    for number in range(12):
        engine.submit(request(f"for long, {number}", 400), lambda _: begun.set())
    assert begun.wait(5)


def learning(engine: Engine) -> None:
    """Idle work is half done."""
    for question in QUESTIONS[:2]:
        chain(engine, question)
    engine.submit_warm([f"{question} It is {n}." for n in range(9) for question in QUESTIONS])
    while not engine.idle.costs.get("warm"):
        time.sleep(0.001)


def answer(engine: Engine) -> tuple[int, ...]:
    return engine.generate(request()).token_ids


def work_of_a_child(engine: Engine) -> dict[str, Callable[[], object]]:
    """What may be asked of the engine in a child, each in one of its own."""
    return {
        "generate": lambda: answer(engine),
        "agenerate": lambda: asyncio.run(engine.agenerate(request())).token_ids,
        "submit": lambda: _submitted(engine),
        "warm": lambda: engine.warm(["a text that is warmed in a child"]).texts,
        "forget": lambda: (engine.forget(), answer(engine))[1],
        "save": lambda: (answer(engine), engine.save())[0],
        "wait_idle": lambda: (answer(engine), engine.wait_idle(5))[0],
        "read": lambda: (
            (engine.reports, engine.stats, engine.learned, engine.idle, engine.ledger(), engine.waiting)
            and answer(engine)
        ),
        "close": lambda: engine.close(),
    }


def _submitted(engine: Engine) -> tuple[int, ...]:
    events: list[Any] = []
    ended = threading.Event()

    def sink(event: object) -> None:
        events.append(event)
        if not isinstance(event, TextChunk):
            ended.set()

    engine.submit(request(), sink)
    assert ended.wait(5)
    completion: Completion = events[-1]
    return completion.token_ids


@pytest.mark.parametrize("before", [constructed, served, running, learning])
def test_an_engine_works_in_a_child(before: Callable[[Engine], None], speaker: LoadedModel, engine: Engine) -> None:
    plain = Engine(speaker, EngineConfig(reuse=ReuseConfig(mode="off")))
    want = answer(plain)
    plain.close()
    before(engine)
    for name, work in work_of_a_child(engine).items():
        came = in_child(work)
        assert came == {"warm": 1, "close": None}.get(name, want), name
    assert answer(engine) == want


def test_a_request_of_the_parent_is_not_waited_for_in_a_child(engine: Engine) -> None:
    events = engine.stream(request("for long", 100))
    assert isinstance(next(events), TextChunk)
    future = engine.submit_warm([f"{question} It is {n}." for n in range(99) for question in QUESTIONS])
    for work in (lambda: next(events), future.result, future.exception):
        came = in_child(work)
        assert isinstance(came, EngineForkedError)
        assert "forked" in str(came)
    assert isinstance(list(events)[-1], Completion)
    future.cancel()
    assert in_child(future.done) is True


def test_an_engine_in_the_middle_of_something_that_does_not_end_says_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standstill, "_PATIENCE_S", 0.1)
    slow, go = threading.Event(), threading.Event()
    engine.submit(request(), lambda _: (slow.set(), go.wait(30)))
    assert slow.wait(5)
    for name, work in work_of_a_child(engine).items():
        if name != "close":
            came = in_child(work)
            assert isinstance(came, EngineForkedError), name
            assert "when this process was forked" in str(came)
    go.set()
    assert answer(engine)
    assert in_child(lambda: len(answer(engine))) == 6


def test_weights_on_an_accelerator_stay_with_the_parent(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    served(engine)
    layout = engine.inspect(lambda core: core.backend.layout)
    monkeypatch.setattr(type(layout), "device", property(lambda _: torch_device("cuda:0")), raising=False)
    came = in_child(lambda: answer(engine))
    assert isinstance(came, EngineForkedError)
    assert "cuda:0" in str(came)


def torch_device(name: str) -> Any:
    import torch

    return torch.device(name)


def test_an_observer_may_fork(engine: Engine) -> None:
    """On the engine's own thread."""
    came: list[object] = []

    class Forking:
        def on_request(self, report: object) -> None:
            if not came:
                came.append(None)
                came[0] = in_child(lambda: answer(engine))

        def on_audit(self, report: object) -> None: ...

        def close(self) -> None: ...

    want = answer(engine)
    engine.observe(Forking())
    assert answer(engine) == want
    assert came == [want]


def test_locks_that_others_held_are_free_in_a_child(engine: Engine, tmp_path: Path, speaker: LoadedModel) -> None:
    from kvcomm_agents.backends.transformers import vocabulary
    from kvcomm_agents.models import loading

    folder = tmp_path / "model"
    speaker.model.save_pretrained(folder)
    speaker.tokenizer.save_pretrained(folder)
    want = answer(engine)
    with loading._lock(str(folder)), loading._locks_guard, vocabulary._lock, engine_module._registry_lock:
        assert in_child(lambda: answer(shared_engine(str(folder)))) == want


def test_children_of_children(engine: Engine) -> None:
    served(engine)
    want = answer(engine)
    assert in_child(lambda: (answer(engine), in_child(lambda: answer(engine)))) == (want, want)


SCRIPT = """
import multiprocessing, os, sys, threading
sys.path[:0] = [{tests!r}]
import torch
from two_agents import make_speaker, call
from kvcomm_agents import EngineConfig
from kvcomm_agents.engine.engine import Engine

class Watcher:
    def on_request(self, report): pass
    def on_audit(self, report): pass
    def close(self): print("closed in", "parent" if os.getpid() == parent else "child", flush=True)

if __name__ == "__main__":
    parent = os.getpid()
    folder = sys.argv[1]
    engine = Engine(make_speaker(), EngineConfig(memory_folder=folder, report_file=folder + "/reports"))
    engine.observe(Watcher())
    call(engine, "solver", "Q: before the fork?")
    for _ in range(2):
        process = multiprocessing.get_context("fork").Process(target=lambda: None)
        process.start()
        process.join(10)
        print("exit", process.exitcode, flush=True)
    if os.fork() == 0:
        sys.exit(3)  # with all that is registered for an exit
    print("exit", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    if os.fork() == 0:
        call(engine, "solver", "Q: in the child?")
        sys.exit(4)
    print("exit", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    call(engine, "solver", "Q: and afterwards?")
"""


def test_the_exit_of_a_child_disturbs_nobody(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(HERE.parent)))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    # a child that used the engine closes its observers when it exits, one that did not leaves them
    said = ["exit 0", "exit 0", "exit 3", "closed in child", "exit 4", "closed in parent"]
    assert run.stdout.splitlines() == said
    assert run.stderr == ""
    assert len((tmp_path / "reports").read_text().splitlines()) == 3


THREADS = """
import os, select, sys, torch
torch.set_num_threads(2)
from transformers import AutoModelForCausalLM, LlamaConfig
sys.path[:0] = [{tests!r}]
from conftest import byte_tokenizer
from kvcomm_agents import EngineConfig, Message, Request, SamplingParams
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.models.loading import LoadedModel

torch.set_num_threads(2)
config = LlamaConfig(vocab_size=300, hidden_size=512, intermediate_size=1024, num_hidden_layers=2,
                     num_attention_heads=8, eos_token_id=257, bos_token_id=None, pad_token_id=None)
torch.manual_seed(0)
engine = Engine(LoadedModel.of(AutoModelForCausalLM.from_config(config), byte_tokenizer(), name="wide"))
request = Request((Message("user", "some text " * 12),), SamplingParams(max_tokens=4))
torch.randn(600, 600) @ torch.randn(600, 600)  # this thread has helpers too
want = engine.generate(request).token_ids
for _ in range(3):
    job = engine.submit(Request((Message("user", "other text " * 12),), SamplingParams(max_tokens=40)), lambda _: None)
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, b"same" if engine.generate(request).token_ids == want else b"other")
        os._exit(0)
    ready, _, _ = select.select([reader], [], [], 30)
    print(os.read(reader, 9).decode() if ready else "hangs", flush=True)
    job.cancel()
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


def test_a_model_that_runs_on_several_threads_runs_in_a_child(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(THREADS.format(tests=str(HERE.parent)))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", script],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    )
    assert run.stdout.split() == ["same"] * 3, run.stderr


def test_futures_that_are_done_are_read_in_a_child(engine: Engine) -> None:
    served(engine)
    future = engine.submit_warm(["a text that was warmed in the parent"])
    wait([future], 5)
    assert in_child(lambda: future.result().texts) == 1

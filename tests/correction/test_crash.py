"""Saved anchors outlive a kill, a cut file, a full disk and one another: the old state or the new one, never a mix."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvcomm_agents.correction.anchors import AnchorPool
from kvcomm_agents.correction.base import Example
from kvcomm_agents.correction.saved import anchor_file as anchorfile
from kvcomm_agents.correction.saved import manifest
from kvcomm_agents.errors import SavedMemoryError
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot

STEPS = ((anchorfile, "save_file"), (Path, "write_text"), (os, "fsync"), (os, "replace"), (os, "unlink"))
MOMENTS = 2 * 9  # before and after each call of a save over an older one, and some to spare


def pool_of(mark: float) -> tuple[AnchorPool, dict[str, torch.Tensor]]:
    pool = AnchorPool(fingerprint="model")
    keys = torch.full((2, 1, 4, 8), mark)
    pool.add(Slot("writer", "question"), Example(KVBlock(keys, keys), KVBlock(keys, keys), None, 1.0))
    return pool, {"mark": torch.tensor([mark])}


def loaded(folder: Path) -> float:
    """The mark of what loads; fails on a mix."""
    pool, extra = AnchorPool.load(folder, "model")
    marks = {float(extra["mark"])} | {float(x) for _, one in pool for x in one.base.keys.unique()}
    assert len(marks) == 1
    return marks.pop()


def strike(patch: pytest.MonkeyPatch, moment: int, blow: Callable[[], None]) -> None:
    """Call `blow` at that moment of a save; moments are counted before and after each step."""
    count = 0

    def check() -> None:
        nonlocal count
        count += 1
        if count == moment + 1:
            blow()

    def wrapped(real: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **options: object) -> object:
            check()
            result = real(*args, **options)
            check()
            return result

        return step

    for owner, name in STEPS:
        patch.setattr(owner, name, wrapped(getattr(owner, name)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_at_every_step(tmp_path: Path) -> None:
    seen, finished = set(), 0
    for moment in range(MOMENTS):
        folder = tmp_path / str(moment)
        old, extra = pool_of(1.0)
        old.save(folder, extra)
        new, extra = pool_of(2.0)
        child = os.fork()
        if child == 0:
            strike(pytest.MonkeyPatch(), moment, lambda: os.kill(os.getpid(), signal.SIGKILL))
            new.save(folder, extra)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        finished += status == 0
        seen.add(loaded(folder))
        new.save(folder, extra)  # what the killed one left behind is swept
        assert loaded(folder) == 2.0
        assert len(list(folder.iterdir())) == 2
    assert seen == {1.0, 2.0}
    assert 0 < finished < MOMENTS - 8  # most moments killed, and every moment was reached


def test_a_full_disk_at_every_step(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    seen = set()
    for moment in range(MOMENTS):
        folder = tmp_path / str(moment)
        old, extra = pool_of(1.0)
        old.save(folder, extra)
        new, extra = pool_of(2.0)
        with pytest.MonkeyPatch.context() as patch:
            strike(patch, moment, full)
            with contextlib.suppress(SavedMemoryError):  # any other error fails the test
                new.save(folder, extra)
        seen.add(loaded(folder))
    assert seen == {1.0, 2.0}


def test_no_room_for_the_data_file(tmp_path: Path) -> None:
    """The system itself refuses, so that safetensors raises what it really raises."""
    resource = pytest.importorskip("resource")
    old, extra = pool_of(1.0)
    old.save(tmp_path, extra)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(SavedMemoryError, match="could not be saved"):
            old.save(tmp_path, {"mark": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert loaded(tmp_path) == 1.0
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupt_at_every_step(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    for moment in range(MOMENTS):
        folder = tmp_path / str(moment)
        old, extra = pool_of(1.0)
        old.save(folder, extra)
        new, extra = pool_of(2.0)
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            strike(patch, moment, interrupt)
            new.save(folder, extra)
        assert loaded(folder) in (1.0, 2.0)


@pytest.mark.parametrize("kind", ["*.safetensors", "*.json"])
def test_cut_at_every_offset(tmp_path: Path, kind: str) -> None:
    pool, extra = pool_of(1.0)
    pool.save(tmp_path, extra)
    (path,) = tmp_path.glob(kind)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(SavedMemoryError):
            AnchorPool.load(tmp_path, "model")


def test_a_save_waits_for_another_ones_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the checksum and the manifest, a second save would take the file away that the first then names."""
    first, extra = pool_of(1.0)
    second, more = pool_of(2.0)
    other = threading.Thread(target=second.save, args=(tmp_path, more))
    real, waited = anchorfile.file_sha256, []

    def checksum(path: Path) -> str:
        found = real(path)
        if not waited:
            waited.append(True)
            other.start()
            other.join(0.3)
            waited.append(other.is_alive())
        return found

    monkeypatch.setattr(anchorfile, "file_sha256", checksum)
    first.save(tmp_path, extra)
    assert waited == [True, True]
    other.join()
    assert loaded(tmp_path) == 2.0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_load_that_a_save_overtakes_gives_the_new_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, extra = pool_of(1.0)
    old.save(tmp_path, extra)
    new, more = pool_of(2.0)
    real, times = anchorfile.read_file, []

    def overtaken(path: Path) -> bytes:
        times.append(path)
        if len(times) == 1:
            new.save(tmp_path, more)
        return real(path)

    monkeypatch.setattr(anchorfile, "read_file", overtaken)
    assert loaded(tmp_path) == 2.0
    assert len(times) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_save_to_one_folder_at_once(tmp_path: Path) -> None:
    children = []
    for mark in (1.0, 2.0):
        pool, extra = pool_of(mark)
        pool.save(tmp_path, extra)
        child = os.fork()
        if child == 0:
            for _ in range(30):
                pool.save(tmp_path, extra)
            os._exit(0)
        children.append(child)
    seen = set()
    while children:
        seen.add(loaded(tmp_path))
        done, status = os.waitpid(children[-1], os.WNOHANG)
        if done:
            assert status == 0
            children.pop()
    assert seen <= {1.0, 2.0}
    assert loaded(tmp_path) in seen
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_stays_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_PATIENCE_S", 0.05)
    pool, extra = pool_of(1.0)
    pool.save(tmp_path, extra)
    with anchorfile.locked(tmp_path), pytest.raises(SavedMemoryError, match="could not be saved"):
        pool.save(tmp_path, extra)
    assert loaded(tmp_path) == 1.0

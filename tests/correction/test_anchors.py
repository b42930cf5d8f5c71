"""The anchor pool: what it keeps, what it finds, and what survives on disk."""

import json
import os
import threading

import pytest
import torch

from kvcomm_agents.correction.anchors import AnchorPool
from kvcomm_agents.correction.base import Example
from kvcomm_agents.correction.saved import anchor_file as anchorfile
from kvcomm_agents.correction.saved.manifest import checksum_of
from kvcomm_agents.errors import SavedMemoryError
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot

SLOT, OTHER = Slot("writer", "question"), Slot("writer", "answer")


def example(angle=0.0, tokens=4, weight=1.0, dtype=torch.float32, keyed=True):
    """An example whose embedding lies at `angle` on a circle."""
    keys = torch.full((2, 1, tokens, 8), angle, dtype=dtype)
    at = torch.tensor(angle)
    embedding = torch.stack([at.cos(), at.sin()]) if keyed else None
    return Example(KVBlock(keys, keys + 1), KVBlock(keys + 2, keys + 3), embedding, weight)


SIZE = example().nbytes


def angles(pool, slot=SLOT):
    return [round(float(one.base.keys[0, 0, 0, 0]), 3) for one in pool.examples(slot)]


def test_finds_by_slot_and_by_agent():
    pool = AnchorPool()
    assert pool.nearest(torch.tensor([1.0, 0.0])) is None
    for slot, angle in ((SLOT, 0.0), (OTHER, 1.0), (Slot("judge", "question"), 2.0)):
        assert pool.add(slot, example(angle))
    assert (len(pool), pool.nbytes) == (3, 3 * SIZE)
    assert angles(pool) == [0.0]
    assert len(pool.agent_examples("writer")) == 2
    assert [slot.agent for slot, _ in pool] == ["writer", "writer", "judge"]
    pool.forget("writer")
    assert (len(pool), pool.nbytes) == (1, SIZE)
    pool.forget()
    assert (len(pool), pool.nbytes) == (0, 0)


def test_nearest_and_novelty_are_cosines():
    pool = AnchorPool()
    pool.add(SLOT, example(keyed=False))
    assert pool.novelty(SLOT, torch.tensor([1.0, 0.0])) == 1.0
    pool.add(SLOT, example(0.0))
    pool.add(OTHER, example(1.0))
    towards = example(0.9).embedding
    found, anchor = pool.nearest(towards)
    assert found == pytest.approx(torch.tensor(0.1).cos().item())
    assert float(anchor.base.keys[0, 0, 0, 0]) == 1.0
    assert pool.nearest(towards, SLOT)[0] == pytest.approx(torch.tensor(0.9).cos().item())
    assert pool.novelty(SLOT, towards) == pytest.approx(1 - torch.tensor(0.9).cos().item(), abs=1e-6)
    assert pool.novelty(Slot("writer", "new"), towards) == pytest.approx(1 - torch.tensor(0.1).cos().item(), abs=1e-6)
    assert pool.novelty(Slot("stranger", "question"), towards) == 1.0


def test_the_budget_holds_and_the_least_useful_goes():
    pool = AnchorPool(budget=3 * SIZE)
    for angle in (0.0, 0.01, 1.5):
        pool.add(SLOT, example(angle))
    pool.nearest(example(0.0).embedding)
    pool.add(SLOT, example(3.0))  # 0.01 is next to 0.0, and nobody asked for it
    assert angles(pool) == [0.0, 1.5, 3.0]
    assert pool.nbytes == 3 * SIZE
    for step in range(200):
        assert pool.add(SLOT, example(0.03 * step))
        assert pool.nbytes <= pool.budget
    assert angles(pool)[-1] == round(0.03 * 199, 3)
    assert not pool.add(SLOT, example(tokens=400))
    assert len(pool) == 3


def test_what_nobody_asks_for_ages():
    pool = AnchorPool(budget=2 * SIZE)
    pool.add(SLOT, example(0.0))
    pool.add(SLOT, example(1.5))
    for _ in range(2000):
        pool.nearest(example(0.0).embedding)
    for _ in range(2):
        pool.add(SLOT, example(3.0))
    assert 1.5 not in angles(pool)


def test_a_view_does_not_keep_a_larger_tensor_alive():
    pool, large = AnchorPool(), torch.zeros(2, 1, 1000, 8)
    block = KVBlock(large, large).slice(0, 4)
    pool.add(SLOT, Example(block, block))
    kept = pool.examples(SLOT)[0].base.keys
    assert kept.untyped_storage().nbytes() == kept.nbytes


def test_an_example_that_begins_within_its_span_is_kept_as_such(tmp_path):
    pool = AnchorPool()
    block = example().base
    pool.add(SLOT, Example(block, block, offset=3))
    pool.save(tmp_path)
    for one in (pool, AnchorPool.load(tmp_path, "")[0]):
        assert one.examples(SLOT)[0].offset == 3


def test_threads_share_a_pool():
    pool = AnchorPool(budget=20 * SIZE)

    def work(seed):
        for step in range(50):
            pool.add(Slot("writer", str(seed)), example(float(step)))
            pool.nearest(example(float(step)).embedding)
            list(pool)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.nbytes == len(pool) * SIZE <= pool.budget


class TestOnDisk:
    @pytest.fixture
    def saved(self, tmp_path):
        pool = AnchorPool(fingerprint="model a")
        pool.add(SLOT, example(0.5, weight=2.0, dtype=torch.bfloat16))
        pool.add(OTHER, example(1.0, keyed=False))
        pool.save(tmp_path, {"linear.gram": torch.arange(6.0).view(2, 3)})
        return tmp_path

    def test_round_trip(self, saved):
        pool, extra = AnchorPool.load(saved, "model a")
        assert [slot for slot, _ in pool] == [SLOT, OTHER]
        ((first,), (second,)) = pool.examples(SLOT), pool.examples(OTHER)
        wanted = example(0.5, dtype=torch.bfloat16)
        assert torch.equal(first.true.values, wanted.true.values)
        assert torch.equal(first.embedding, wanted.embedding)
        assert (first.weight, second.weight, second.embedding) == (2.0, 1.0, None)
        assert extra.keys() == {"linear.gram"}
        assert torch.equal(extra["linear.gram"], torch.arange(6.0).view(2, 3))

    def test_hits_and_budget_are_kept(self, saved):
        pool, _ = AnchorPool.load(saved, "model a", budget=SIZE)
        assert pool.nbytes <= SIZE

    def test_an_empty_pool_round_trips(self, tmp_path):
        AnchorPool().save(tmp_path / "new" / "folder")
        pool, extra = AnchorPool.load(tmp_path / "new" / "folder", "")
        assert (len(pool), extra) == (0, {})

    def test_a_second_save_replaces_the_first_and_leaves_nothing_behind(self, saved):
        AnchorPool(fingerprint="model a").save(saved)
        assert len(AnchorPool.load(saved, "model a")[0]) == 0
        assert len(list(saved.iterdir())) == 2

    def test_missing(self, tmp_path):
        with pytest.raises(SavedMemoryError, match="missing"):
            AnchorPool.load(tmp_path, "model a")

    def test_foreign(self, saved):
        with pytest.raises(SavedMemoryError, match="made by 'model a', not by 'model b'"):
            AnchorPool.load(saved, "model b")

    @pytest.mark.parametrize("keep", [0, 7, 0.5, -1])
    @pytest.mark.parametrize("kind", ["*.safetensors", anchorfile.MANIFEST])
    def test_truncated(self, saved, keep, kind):
        (path,) = saved.glob(kind)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
        with pytest.raises(SavedMemoryError, match="damaged"):
            AnchorPool.load(saved, "model a")

    def test_a_flipped_bit(self, saved):
        (path,) = saved.glob("*.safetensors")
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        with pytest.raises(SavedMemoryError, match="checksum"):
            AnchorPool.load(saved, "model a")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"version": 99}, "version 99"),
            ({"data": "../elsewhere"}, "outside its folder"),
            ({"data": "gone.safetensors"}, "missing"),
            ({"anchors": [{"agent": "a"}]}, "damaged"),
            ({"anchors": None}, "damaged"),
        ],
    )
    def test_a_strange_manifest(self, saved, change, message):
        path = saved / anchorfile.MANIFEST
        record = {**json.loads(path.read_text()), **change}
        del record["checksum"]
        path.write_text(json.dumps({**record, "checksum": checksum_of(record)}))
        with pytest.raises(SavedMemoryError, match=message):
            AnchorPool.load(saved, "model a")

    def test_every_flipped_bit_of_a_manifest_is_seen(self, saved):
        path = saved / anchorfile.MANIFEST
        content = path.read_bytes()
        for at in range(0, 8 * len(content), 13):
            damaged = bytearray(content)
            damaged[at // 8] ^= 1 << at % 8
            path.write_bytes(bytes(damaged))
            with pytest.raises(SavedMemoryError):
                AnchorPool.load(saved, "model a")

    @pytest.mark.parametrize("what", ["deep", "huge numbers", "a pipe", "a folder"])
    def test_hostile_state_is_refused_at_once(self, saved, what):
        path = saved / anchorfile.MANIFEST
        record = json.loads(path.read_text())
        if what == "deep":
            path.write_text("[" * 200_000)
        elif what == "huge numbers":
            del record["checksum"]
            record["anchors"][0]["weight"] = 1e30
            path.write_text(json.dumps({**record, "checksum": checksum_of(record)}))
        else:
            path.unlink()
            os.mkfifo(path) if what == "a pipe" else path.mkdir()
        with pytest.raises(SavedMemoryError):
            AnchorPool.load(saved, "model a")

    def test_files_are_their_owners_alone(self, saved):
        assert {oct(path.stat().st_mode & 0o777) for path in saved.iterdir()} == {"0o600"}

    def test_what_a_killed_save_left_goes(self, saved):
        (saved / ".tmpAbCdEf").write_bytes(b"KV of somebody")
        AnchorPool(fingerprint="model a").save(saved)
        assert not (saved / ".tmpAbCdEf").exists()

    @pytest.mark.parametrize("step", ["save_file", "_sync", "file_sha256"])
    def test_killed_while_saving_leaves_the_old_state(self, saved, monkeypatch, step):
        def killed(*args, **kwargs):
            raise KeyboardInterrupt

        pool = AnchorPool(fingerprint="model a")
        with monkeypatch.context() as patch:
            patch.setattr(anchorfile, step, killed)
            with pytest.raises(KeyboardInterrupt):
                pool.save(saved)
        assert len(AnchorPool.load(saved, "model a")[0]) == 2
        assert len(list(saved.iterdir())) == 2

    def test_leftovers_of_a_kill_are_swept_by_the_next_save(self, saved):
        (saved / "anchors-0123456789abcdef.safetensors").write_bytes(b"half")
        (saved / "anchors-0123456789abcdef.json").write_text("{")
        pool, extra = AnchorPool.load(saved, "model a")
        pool.save(saved, extra)
        assert len(list(saved.iterdir())) == 2
        assert len(AnchorPool.load(saved, "model a")[0]) == 2

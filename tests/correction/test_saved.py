"""`kvcomm memory`: what was saved is listed, counted, checked and removed, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from two_agents import QUESTIONS, chain, make_speaker
from typer.testing import CliRunner

from kvcomm_agents import EngineConfig, ReuseConfig
from kvcomm_agents.correction.anchors import AnchorPool
from kvcomm_agents.correction.saved.folders import agents_of, bytes_of, clear_saved, find_saved, verify_saved
from kvcomm_agents.correction.saved.manifest import MANIFEST, UNKNOWN, Manifest, checksum_of, locked
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.entrypoints.cli.app import app
from kvcomm_agents.errors import SavedMemoryError
from kvcomm_agents.models.loading import tokenizer_fingerprint

QUESTIONS_ASKED = 6


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory folder of an engine that served two namespaces."""
    root = tmp_path_factory.mktemp("memory")
    reuse = ReuseConfig(min_placed=12, max_divergence=100.0, audit_share=1.0)
    engine = Engine(make_speaker(), EngineConfig(memory_folder=str(root), reuse=reuse))
    for question in QUESTIONS[:QUESTIONS_ASKED]:
        chain(engine, question)
    chain(engine, QUESTIONS[0], namespace="tenant")
    chain(engine, QUESTIONS[1], namespace="tenant")
    engine.close()
    return root


@pytest.fixture
def root(saved_once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    for folder in saved_once.iterdir():
        if folder.is_dir():
            (tmp_path / folder.name).mkdir()
            for file in folder.iterdir():
                (tmp_path / folder.name / file.name).write_bytes(file.read_bytes())
    return tmp_path


def run(*args: object, **options: object):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["memory", *map(str, args)], **options)  # type: ignore[arg-type]


def namespaces(root: Path) -> set[str]:
    return {each.manifest.owner.namespace for each in find_saved(root) if each.manifest}


def test_the_manifest_says_whose_it_is(root: Path) -> None:
    speaker = make_speaker()
    assert namespaces(root) == {"default", "tenant"}
    for each in find_saved(root):
        assert each.manifest is not None
        owner = each.manifest.owner
        assert (owner.model, owner.fingerprint) == (speaker.name, speaker.fingerprint)
        assert owner.tokenizer == tokenizer_fingerprint(speaker.tokenizer) != speaker.fingerprint
        assert each.manifest.bytes == (each.folder / each.manifest.data).stat().st_size


def test_the_counts_are_those_of_what_loads(root: Path) -> None:
    for each in find_saved(root):
        assert each.manifest is not None
        pool, extra = AnchorPool.load(each.folder, each.manifest.owner.fingerprint)
        agents = agents_of(each)
        assert sum(agent.anchors for agent in agents) == len(pool) == len(each.manifest.anchors) > 0
        assert sum(agent.tokens for agent in agents) == sum(one.base.tokens for _, one in pool)
        embedded = sum(one.embedding.nbytes for _, one in pool if one.embedding is not None)
        assert sum(agent.bytes for agent in agents) == pool.nbytes - embedded
        records = json.loads(bytes(extra["guard.records"].tolist()))["records"]
        assert sum(agent.audits for agent in agents) == len(records)
        sizes = bytes_of(each)
        assert sizes["anchors"] == pool.nbytes
        assert sizes["anchors"] + sizes["maps"] + sizes["audits"] == pool.nbytes + sum(t.nbytes for t in extra.values())
    served = [agent.divergence for each in find_saved(root) for agent in agents_of(each)]
    assert any(kl is not None and kl > 0 for kl in served)


def test_ls_and_stats_as_tables_and_as_json(root: Path) -> None:
    ids = {each.folder.name for each in find_saved(root)}
    table = run("list", root)
    assert table.exit_code == 0
    for word in (*ids, "tenant", "default", "tiny-llama"):
        assert word in table.output
    records = json.loads(run("list", root, "--json").output)
    assert {record["id"] for record in records} == ids
    assert {record["model"] for record in records} == {"tiny-llama"}
    (one,) = json.loads(run("stats", root, "--namespace", "tenant", "--json").output)
    assert [agent["agent"] for agent in one["agents"]] == ["critic"]
    assert one["bytes_by_kind"]["anchors"] > 0
    assert "critic" in run("stats", root).output


def test_the_folder_may_come_from_the_environment(root: Path) -> None:
    assert run("list").exit_code == 2
    assert "KVCOMM_MEMORY_FOLDER" in run("list").stderr
    found = CliRunner(env={"KVCOMM_MEMORY_FOLDER": str(root)}).invoke(app, ["memory", "list", "--json"])
    assert len(json.loads(found.output)) == 2
    missing = run("list", root / "nowhere")
    assert missing.exit_code == 2
    assert "no folder" in missing.stderr


def test_verify_finds_what_is_damaged(root: Path) -> None:
    assert run("verify", root).exit_code == 0
    first, second = find_saved(root)
    data = first.folder / first.manifest.data  # type: ignore[union-attr]
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    assert "checksum" in verify_saved(first)[0]
    data.write_bytes(content[:-1])
    assert "bytes" in verify_saved(first)[0]
    data.unlink()
    assert "missing" in verify_saved(first)[0]
    (second.folder / MANIFEST).write_text("{")
    done = run("verify", root)
    assert done.exit_code == 1
    assert "missing" in done.output
    assert "damaged" in done.output
    problems = json.loads(run("verify", root, "--json").output)
    assert all(one["problems"] for one in problems)
    assert "cannot be read" in run("list", root).output
    assert run("stats", root, "--id", second.folder.name).exit_code == 2


def test_verify_sees_what_a_manifest_promises_too_much(root: Path) -> None:
    first, _ = find_saved(root)
    path = first.folder / MANIFEST
    record = json.loads(path.read_text())
    record["anchors"].append(record["anchors"][0])
    del record["checksum"]
    path.write_text(json.dumps({**record, "checksum": checksum_of(record)}))
    assert "tensors are missing" in verify_saved(find_saved(root)[0])[0]


def test_clear_asks_and_removes_what_was_chosen(root: Path) -> None:
    other = root / "notes.txt"
    other.write_text("mine")
    refused = run("clear", root, input="n\n")
    assert refused.exit_code == 1
    assert namespaces(root) == {"default", "tenant"}
    assert run("clear", root, "--namespace", "tenant", input="y\n").exit_code == 0
    assert namespaces(root) == {"default"}
    assert run("clear", root, "--namespace", "nobody", "--yes").exit_code == 0
    assert namespaces(root) == {"default"}
    (left,) = find_saved(root)
    (left.folder / MANIFEST).write_text("{")  # damaged ones go too
    (left.folder / "notes.txt").write_text("mine")
    assert run("clear", root, "--id", left.folder.name[:6], "--yes").exit_code == 0
    assert find_saved(root) == []
    assert [path.name for path in left.folder.iterdir()] == ["notes.txt"]
    assert other.read_text() == "mine"
    assert run("list", root).exit_code == 0
    assert run("clear", root, "--id", "0", "--yes").exit_code == 2


def test_clear_waits_for_a_save(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvcomm_agents.correction.saved.manifest._PATIENCE_S", 0.05)
    first, _ = find_saved(root)
    with locked(first.folder), pytest.raises(SavedMemoryError, match="cannot be cleared"):
        clear_saved(first)
    assert verify_saved(first) == []


def test_what_was_cleared_is_no_error_to_an_engine(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for each in find_saved(root):
        (each.folder / "notes.txt").write_text("mine")
        clear_saved(each)
    engine = Engine(make_speaker(), EngineConfig(memory_folder=str(root)))
    chain(engine, QUESTIONS[0])
    engine.close()
    assert "empty memory" not in caplog.text
    assert namespaces(root) == {"default"}


def test_version_1_is_read_and_what_it_did_not_say_is_unknown(root: Path) -> None:
    first, _ = find_saved(root)
    path = first.folder / MANIFEST
    record = json.loads(path.read_text())
    for name in ("model", "tokenizer", "namespace", "bytes", "made_at", "saved_at"):
        del record[name]
    path.write_text(json.dumps({**record, "version": 1}))
    os.utime(path, (0, 1e9))
    manifest = Manifest.read(first.folder)
    assert {manifest.owner.model, manifest.owner.tokenizer, manifest.owner.namespace} == {UNKNOWN}
    assert manifest.saved_at.startswith("2001-09-09")
    assert verify_saved(find_saved(root)[0]) == []
    pool, extra = AnchorPool.load(first.folder, record["fingerprint"])
    pool.save(first.folder, extra)
    again = Manifest.read(first.folder)
    assert (again.version, again.made_at) == (3, manifest.made_at)
    assert again.saved_at > manifest.saved_at


def test_the_commands_need_no_torch(root: Path) -> None:
    code = (
        "import sys; from kvcomm_agents.entrypoints.cli.app import app\n"
        f"for name in ('list', 'stats', 'verify'): app(['memory', name, {str(root)!r}], standalone_mode=False)\n"
        f"app(['memory', 'clear', {str(root)!r}, '--yes'], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert find_saved(root) == []

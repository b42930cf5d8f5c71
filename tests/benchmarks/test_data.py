"""Question sets from a tiny folder."""

import gzip
import json

import pytest

from benchmarks.data import load_questions
from kvcomm_agents.errors import ConfigError

ROWS = {
    "gsm8k": {"question": " How many? ", "answer": "#### 3"},
    "humaneval": {"task_id": "x/1", "prompt": "def f():\n", "test": ""},
}
TEXTS = {
    "gsm8k": "How many?",
    "humaneval": "Complete this Python function.\ndef f():",
}


@pytest.fixture
def folder(tmp_path):
    for name, row in ROWS.items():
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.write((json.dumps(row) + "\n") * 3)
    return tmp_path


@pytest.mark.parametrize("name", ROWS)
def test_each_set_is_read(folder, name):
    assert load_questions(name, 3, folder) == [TEXTS[name]] * 3


def test_the_environment_names_the_folder(folder, monkeypatch):
    monkeypatch.setenv("KVCOMM_DATA", str(folder))
    assert load_questions("gsm8k", 1) == ["How many?"]


def test_unpacked_files_are_read_too(tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps(ROWS["gsm8k"]))
    assert load_questions("gsm8k", 1, tmp_path) == ["How many?"]


@pytest.mark.parametrize(("name", "count", "said"), [("gsm8k", 4, "there are 3"), ("other", 1, "choose one of")])
def test_what_is_not_there_is_said(folder, name, count, said):
    with pytest.raises(ConfigError, match=said):
        load_questions(name, count, folder)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "gsm8k.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_questions("gsm8k", 1, tmp_path)
    (tmp_path / "humaneval.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(ConfigError, match="fields"):
        load_questions("humaneval", 1, tmp_path)
    with pytest.raises(ConfigError, match="musique"):
        load_questions("musique", 1, tmp_path)

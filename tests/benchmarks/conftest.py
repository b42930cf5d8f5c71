"""A tiny model whose text survives being text."""

import gzip
import json
import random
import string

import pytest
import torch
from conftest import tiny_model

from benchmarks import served
from benchmarks.session import Session
from kvcomm_agents.config import ReuseConfig
from kvcomm_agents.correction.embedding import TOKEN_MEAN


@pytest.fixture(autouse=True)
def _apart(monkeypatch, tmp_path):
    """What is kept stays here, and spans are embedded by the model itself."""
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(served, "EMBEDDER", TOKEN_MEAN)


@pytest.fixture
def lenient(monkeypatch):
    """A guard that lets much through, also where texts are short."""
    monkeypatch.setattr(served, "POLICY", ReuseConfig(max_divergence=50.0, min_placed=12))


@pytest.fixture(scope="session")
def writer():
    """Writes letters only: other bytes would not come back as the tokens that were written."""
    loaded = tiny_model("llama")
    letters = set(loaded.tokenizer(string.ascii_letters, add_special_tokens=False)["input_ids"])
    head = loaded.model.get_output_embeddings().weight
    with torch.no_grad():
        head[[token for token in range(head.shape[0]) if token not in letters]] = 0.0
    return loaded


@pytest.fixture
def session(writer):
    """A run on that model, and what it was told."""
    said = []
    made = Session(lambda: writer, say=said.append)
    made.said = said
    return made


@pytest.fixture
def questions(tmp_path):
    """A folder with short questions."""
    where = tmp_path / "questions"
    where.mkdir()
    for name, rows in {
        "gsm8k": [{"question": f"How many {thing} fit into {n} boxes?"} for n in range(3, 5) for thing in THINGS],
        "humaneval": [{"prompt": f"def f{n}(x): return x + {n}  # and then?"} for n in range(3)],
    }.items():
        (where / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where


THINGS = ("apples", "pears", "old hats", "plums", "quinces", "nuts")


def prose(rng, words=60):
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(words))


@pytest.fixture(scope="session")
def logs_folder(tmp_path_factory):
    """Logs and passages of random words."""
    rng, where = random.Random(0), tmp_path_factory.mktemp("data")
    turn = ("Planner", "terminal", "Coder", "Planner", "Coder")
    rows = {
        "whowhen_autogen": [
            {
                "question": "?",
                "system_prompt": {"Planner": prose(rng, 9), "Coder": prose(rng, 9)},
                "history": [{"name": name, "role": "user", "content": prose(rng, 7)} for name in turn],
            }
            for _ in range(40)
        ],
        "whowhen_magentic": [
            {
                "question": "?",
                "history": [
                    {"role": "human", "content": "find it"},
                    {"role": "Orchestrator (thought)", "content": "Initial plan: look"},
                    {"role": "Orchestrator (thought)", "content": "Updated Ledger: go on"},
                    {"role": "Orchestrator (-> WebSurfer)", "content": "open the page"},
                    {"role": "Orchestrator (thought)", "content": "Next speaker WebSurfer"},
                    {"role": "WebSurfer", "content": "I opened it"},
                ],
            }
        ],
        "musique": [{"question": "?", "ctxs": [{"text": prose(rng)}], "answers": []} for _ in range(9)],
    }
    for name, lines in rows.items():
        with gzip.open(where / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in lines)
    return where

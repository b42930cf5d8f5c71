"""A tiny model whose text survives being text."""

import gzip
import json
import random
import string

import pytest
import torch
from conftest import tiny_model


@pytest.fixture(scope="session")
def writer():
    """Writes letters only: other bytes would not come back as the tokens that were written."""
    loaded = tiny_model("llama")
    letters = set(loaded.tokenizer(string.ascii_letters, add_special_tokens=False)["input_ids"])
    head = loaded.model.get_output_embeddings().weight
    with torch.no_grad():
        head[[token for token in range(head.shape[0]) if token not in letters]] = 0.0
    return loaded


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

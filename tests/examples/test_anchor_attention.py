"""The training example on a tiny model: three kinds of attention train, and what is measured makes sense."""

from __future__ import annotations

import copy
import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import tiny_model

from kvcomm_agents.backends.transformers.packing import pack_rows

FILE = Path(__file__).parents[2] / "examples" / "anchor_attention.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("anchor_attention", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(count: int) -> list[list[int]]:
    """Counting up or down: easy to learn."""
    draw = random.Random(0)
    return [[(draw.randrange(90) + 2 * at) % 90 + 30 for at in range(60)] for _ in range(count)]


def test_every_attention_learns_and_is_measured(example: ModuleType) -> None:
    model = tiny_model("llama").model
    rows = pack_rows(texts(14), 3, 64)
    for mode in example.MODES:
        tuned = copy.deepcopy(model)
        before = example.losses(tuned, rows)[mode]
        example.train(tuned, rows, mode, 3e-3)
        assert example.losses(tuned, rows)[mode] < before
        assert not any(parameter.requires_grad for parameter in tuned.parameters())
    found = example.drift(model, texts(8), 3)
    assert all(value > 0 for value in found.values())


def test_intra_and_anchored_see_no_other_document(example: ModuleType) -> None:
    model = tiny_model("llama").model
    other = pack_rows([texts(1)[0], texts(2)[1]], 3, 121)[0]
    with torch.no_grad():
        for mode, seen in (("full", True), ("intra", False), ("anchored", False)):
            # The first document's words are changed: does the second one notice?
            changed = pack_rows([texts(5)[4], other.ids[61:].tolist()], 3, 121)[0]
            a, b = (model(**{**example.inputs(row, mode), "labels": None}).logits[0, 61:] for row in (other, changed))
            assert torch.allclose(a, b, atol=1e-4) is not seen

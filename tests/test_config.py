"""Settings are checked when they are made, and every message names the setting and its value."""

from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.errors import ConfigError


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dtype", "int8"),
        ("device_cache_bytes", -1),
        ("host_cache_bytes", -5),
        ("max_context", 1),
        ("max_context", 0),
        ("max_concurrent", 0),
    ],
)
def test_a_value_out_of_range_is_named(setting, value):
    with pytest.raises(ConfigError, match=str(value)) as caught:
        EngineConfig(**{setting: value})
    assert setting in str(caught.value)


@pytest.mark.parametrize("reuse", [{"mode": "fast"}, {"min_prefix": 0}])
def test_reuse_is_checked(reuse):
    with pytest.raises(ConfigError, match="fast|min_prefix=0"):
        ReuseConfig(**reuse)


def test_a_config_cannot_change_after_it_was_checked():
    with pytest.raises(FrozenInstanceError):
        EngineConfig().max_concurrent = 0


def test_an_empty_environment_gives_the_defaults():
    assert EngineConfig.from_env({}) == EngineConfig()


def test_every_setting_is_read_from_its_variable():
    env = {
        "KVCOMM_DEVICE": "cpu",
        "KVCOMM_DTYPE": "bfloat16",
        "KVCOMM_DEVICE_CACHE_BYTES": "1",
        "KVCOMM_HOST_CACHE_BYTES": "0",
        "KVCOMM_MAX_CONTEXT": "4096",
        "KVCOMM_MAX_CONCURRENT": "3",
        "KVCOMM_PREFILL_CHUNK": "64",
        "KVCOMM_CUDA_GRAPHS": "off",
        "KVCOMM_EMBEDDER": "token-mean",
        "KVCOMM_MEMORY_FOLDER": "memory",
        "KVCOMM_REPORT_FILE": "reports.jsonl",
        "KVCOMM_REUSE": "off",
        "KVCOMM_MEMORY_BYTES": "1000000",
        "KVCOMM_CONTROL_STRINGS": "tokens",
    }
    assert len(env) == len(fields(EngineConfig))  # a new setting must be added here
    expected = EngineConfig(
        "cpu",
        "bfloat16",
        1,
        0,
        4096,
        3,
        64,
        False,
        "token-mean",
        "memory",
        "reports.jsonl",
        ReuseConfig("off"),
        "tokens",
        1_000_000,
    )
    assert EngineConfig.from_env({**env, "UNRELATED": "x"}) == expected


@given(st.integers(min_value=2, max_value=10**9))
def test_a_valid_number_survives_the_environment(tokens):
    assert EngineConfig.from_env({"KVCOMM_MAX_CONTEXT": str(tokens)}).max_context == tokens


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("KVCOMM_MAX_CONTEXT", "many"),
        ("KVCOMM_MAX_CONTEXT", "1"),
        ("KVCOMM_REUSE", "fast"),
        ("KVCOMM_CUDA_GRAPHS", "maybe"),
        ("KVCOMM_DTYPE", "float8"),
        ("KVCOMM_HOST_CACHE_BYTES", "-1"),
    ],
)
def test_a_bad_variable_is_named(name, text):
    with pytest.raises(ConfigError, match=f"^{name}='{text}'"):
        EngineConfig.from_env({name: text})

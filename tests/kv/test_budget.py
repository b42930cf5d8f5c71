"""One number of memory is divided whole, and a part that is said outright is taken as said."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.kv.budget import LEAST, SHARE, MemoryBudget

GB = 10**9


@given(st.integers(0, 64 * GB), st.integers(0, 200 * GB), st.none() | st.integers(0, 500 * GB))
def test_a_number_is_divided_whole(memory: int, device: int, host: int | None) -> None:
    budget = MemoryBudget.divide(memory, device, host)
    assert memory - 10 <= budget.total <= memory
    assert all(getattr(budget, part.name) >= 0 for part in fields(budget))
    assert (budget.host_prefixes == 0) == (host is None or memory // 4 == 0)


def test_without_a_number_a_share_of_what_is_free() -> None:
    assert MemoryBudget.divide(None, 10 * GB).total == pytest.approx(SHARE * 10 * GB, abs=10)
    split = MemoryBudget.divide(None, 40 * GB, 100 * GB)
    assert split.host_prefixes == pytest.approx(SHARE * 100 * GB, abs=10)
    assert split.total - split.host_prefixes == pytest.approx(SHARE * 40 * GB, abs=10)
    assert MemoryBudget.divide(None, 1000).total == pytest.approx(LEAST, abs=10)


def test_parts_said_outright() -> None:
    said = MemoryBudget.divide(None, 10 * GB, device_cache_bytes=5, host_cache_bytes=6, span_bytes=7, anchor_bytes=8)
    assert (said.prefixes, said.host_prefixes, said.spans, said.anchors) == (5, 6, 7, 8)
    one_tier = MemoryBudget.divide(None, 10 * GB, device_cache_bytes=5)
    assert (one_tier.prefixes, one_tier.host_prefixes) == (5, 0)
    other = MemoryBudget.divide(None, 10 * GB, host_cache_bytes=5)
    assert (other.prefixes, other.host_prefixes) == (0, 5)


def test_settings_are_checked() -> None:
    for bad in ({"memory_bytes": -1}, {"device_cache_bytes": -1}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            EngineConfig(**bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="span_bytes"):
        ReuseConfig(span_bytes=-1)

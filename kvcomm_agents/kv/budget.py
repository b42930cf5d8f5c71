"""MemoryBudget: one number of bytes, divided among all that an engine keeps beside weights and running contexts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import psutil
import torch

from ..config import EngineConfig

CGROUP = Path("/sys/fs/cgroup/memory.max")
"""Where a container's limit stands."""
SHARE = 0.3
"""Of what is free when the engine is made that it may keep, if nobody says otherwise."""
LEAST = 256 << 20
"""Bytes that it may keep however little is free."""

# Of the bytes on the model's device. Prefixes save most, and donors are what corrections start from.
_SHARES = {
    "prefixes": 0.40,
    "spans": 0.20,
    "maps": 0.15,
    "anchors": 0.10,
    "logits": 0.05,
    "spare": 0.05,
    "queued": 0.05,
}


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Bytes that each part may take, over all namespaces and agents together.

    Args:
        prefixes: stored contexts on the model's device.
        host_prefixes: those that left the device; on a CPU model there is one tier, and both add up.
        spans: donor KV of texts.
        maps: what corrections are made by, and text that every prompt of an agent holds.
        anchors: examples, kept to be saved and learned from again.
        logits: distributions of answers that will be measured.
        spare: caches that wait for their next request.
        queued: what waiting idle work keeps alive.
    """

    prefixes: int
    host_prefixes: int
    spans: int
    maps: int
    anchors: int
    logits: int
    spare: int
    queued: int

    @classmethod
    def divide(
        cls,
        memory_bytes: int | None,
        free_device: int,
        free_host: int | None = None,
        *,
        device_cache_bytes: int | None = None,
        host_cache_bytes: int | None = None,
        span_bytes: int | None = None,
        anchor_bytes: int | None = None,
    ) -> MemoryBudget:
        """Divide a number of bytes, or a share of what is free.

        Args:
            memory_bytes: in all; `None` takes `SHARE` of what is free.
            free_device: bytes free where the model is.
            free_host: bytes free in host memory, for a model that is elsewhere; `None` on a CPU model.
            device_cache_bytes: prefixes on the device, said outright.
            host_cache_bytes: those on the host.
            span_bytes: donors.
            anchor_bytes: anchors.
        """
        if memory_bytes is None:
            device = max(int(SHARE * free_device), LEAST)
            host = max(int(SHARE * free_host), LEAST) if free_host is not None else 0
        else:
            host = memory_bytes // 4 if free_host is not None else 0
            device = memory_bytes - host
        parts = {name: int(share * device) for name, share in _SHARES.items()}
        said = {
            "prefixes": device_cache_bytes,
            "host_prefixes": host_cache_bytes,
            "spans": span_bytes,
            "anchors": anchor_bytes,
        }
        parts |= {"host_prefixes": host}
        if free_host is None and device_cache_bytes is not None and host_cache_bytes is None:
            said["host_prefixes"] = 0  # one tier, of which the whole was named
        elif free_host is None and host_cache_bytes is not None and device_cache_bytes is None:
            said["prefixes"] = 0
        return cls(**(parts | {name: value for name, value in said.items() if value is not None}))

    @property
    def total(self) -> int:
        """Of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))


def free_bytes(device: torch.device) -> int:
    """Bytes free on a device, within a container's limit; 0 if nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return 0
    free = int(psutil.virtual_memory().available)
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else ""
    return min(free, int(limit)) if limit.isdigit() else free


def make_budget(config: EngineConfig, device: torch.device, free: int | None = None) -> MemoryBudget:
    """The budget of an engine with this config whose model is on a device, by what is free there now.

    Args:
        config: of the engine.
        device: of the model.
        free: bytes free on it; asked if left out.
    """
    return MemoryBudget.divide(
        config.memory_bytes,
        free_bytes(device) if free is None else free,
        free_bytes(torch.device("cpu")) if device.type != "cpu" else None,
        device_cache_bytes=config.device_cache_bytes,
        host_cache_bytes=config.host_cache_bytes,
        span_bytes=config.reuse.span_bytes,
        anchor_bytes=config.reuse.anchor_bytes,
    )

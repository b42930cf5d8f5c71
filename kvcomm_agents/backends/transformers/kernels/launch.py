"""Kernels: where Triton kernels run, and how they are found. Triton comes with torch for CUDA."""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of KV that kernels know."""


def available(device: torch.device) -> bool:
    """Whether kernels run here: Triton is installed, and the device is CUDA or Triton interprets."""
    return (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1") and _installed()


def power(size: int) -> int:
    """The smallest power of two that is not below `size`: blocks of a kernel have such sizes."""
    return 1 << max(size - 1, 0).bit_length()


@cache
def kernel(module: str, name: str) -> Any:
    """A kernel of a module of this package, which imports Triton."""
    return getattr(importlib.import_module(f".{module}", __package__), name)


@cache
def _installed() -> bool:
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True

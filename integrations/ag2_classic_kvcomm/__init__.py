"""kvcomm-agents for AG2 Classic (`autogen` 0.14): one model client, `KVCommModelClient`."""

from __future__ import annotations

try:
    from autogen.oai import OpenAIWrapper  # noqa: F401 - only asks whether the extra is installed
except ImportError as error:
    raise ImportError(
        'ag2_classic_kvcomm needs autogen 0.14, not installed here: pip install "kvcomm-agents[ag2-classic]"'
    ) from error

from .client import KVCommModelClient

__all__ = ["KVCommModelClient"]

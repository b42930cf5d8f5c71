"""What a model can do, in LangChain's words."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

from langchain_core.language_models import ModelProfile

from kvcomm_agents.extras import has_llguidance
from kvcomm_agents.models.resolve import local_context


def find_profile(model: str, max_context: int | None) -> ModelProfile:
    """The profile of a model; its context only if that can be read without loading or fetching anything."""
    constrained = _constrained()
    profile = ModelProfile(
        text_inputs=True,
        text_outputs=True,
        image_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        tool_calling=constrained,
        tool_choice=constrained,
        tool_call_streaming=constrained,
        structured_output=constrained,
    )
    limits = [limit for limit in (_context(model), max_context) if limit is not None]
    if limits:
        profile["max_input_tokens"] = min(limits)
        profile["max_output_tokens"] = min(limits)
    known = ModelProfile.__annotations__  # older versions of LangChain warn of keys they do not know
    return cast(ModelProfile, {key: value for key, value in profile.items() if key in known})


# Read once, not for every ChatKVComm that is built.
_context = lru_cache(maxsize=64)(local_context)
_constrained = lru_cache(maxsize=1)(has_llguidance)

"""LangChain's own tests for chat models, on the default model's weights."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, SystemMessage

from kvcomm_agents.models.loading import DEFAULT_MODEL
from langchain_kvcomm import ChatKVComm

pytest.importorskip("langchain_tests", reason="needs langchain-tests, in the dev extra")
from langchain_tests.integration_tests import ChatModelIntegrationTests

pytestmark = pytest.mark.weights


class TestIntegration(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatKVComm

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # a model of 135M parameters cannot choose between speaking and calling, hence prefer_tools
        return {
            "model": DEFAULT_MODEL,
            "temperature": 0,
            "max_tokens": 60,
            "prefer_tools": True,
            "max_string": 30,
            "reuse": "exact",
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "default"

    @property
    def supported_usage_metadata_details(self) -> dict[str, Any]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        llm = ChatKVComm(model=DEFAULT_MODEL, temperature=0, max_tokens=4)
        prompt = [SystemMessage("You answer in few words, whatever is asked."), ("user", "Say it twice.")]
        llm.invoke(prompt)
        if not stream:
            return llm.invoke(prompt)
        chunks = list(llm.stream(prompt))
        return sum(chunks[1:], chunks[0])

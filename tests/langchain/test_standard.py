"""LangChain's own tests for chat models, over a fake engine."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel

from langchain_kvcomm import ChatKVComm

pytest.importorskip("langchain_tests", reason="needs langchain-tests, in the dev extra")
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests


class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatKVComm

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "fake"}

    @property
    def supports_json_mode(self) -> bool:
        return True


@pytest.mark.usefixtures("engine")
class TestIntegration(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatKVComm

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "fake", "max_tokens": 40, "prefer_tools": True}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "other"

    @property
    def supported_usage_metadata_details(self) -> dict[str, Any]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> Any:
        llm = ChatKVComm(model="fake")
        llm.invoke("say it twice")
        if not stream:
            return llm.invoke("say it twice")
        chunks = list(llm.stream("say it twice"))
        return sum(chunks[1:], chunks[0])

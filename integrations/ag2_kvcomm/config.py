"""`KVCommConfig`: the model of an AG2 agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn, cast

from ag2.config.config import ModelConfig, ModelProvider
from typing_extensions import Unpack

from kvcomm_agents.checks import checked, switch
from kvcomm_agents.entrypoints.clients.names import in_our_names
from kvcomm_agents.entrypoints.clients.settings import ClientKeywords, ClientSettings, make_settings
from kvcomm_agents.errors import ConfigError

from .client import KVCommClient


class KVCommConfig(ModelConfig):
    """A model that runs in this process and does not read the same words twice.

        agent = Agent("writer", config=KVCommConfig("HuggingFaceTB/SmolLM2-135M-Instruct", temperature=0))

    Args:
        model: hub id, local folder or GGUF file.
        streaming: send the text of answers as it is written.
        call_options: some of `CALL_OPTIONS` (see `kvcomm_agents.entrypoints.clients.settings`), for every call: AG2 has
            no `tool_choice` of its own. It is left out of calls without tools.
        settings: see `ClientSettings`.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        model: str,
        *,
        streaming: bool = False,
        call_options: Mapping[str, Any] | None = None,
        **settings: Unpack[ClientKeywords],
    ) -> None:
        self.settings = make_settings(ClientSettings, {"model": model, **settings})
        self.streaming = checked("streaming", streaming, switch)
        self.settings.options(call_options)  # refuses now what each call would
        self.call_options = dict(call_options or {})

    @property
    def provider(self) -> ModelProvider:
        """`kvcomm`: AG2's list of providers is closed, and takes a plain string where it reads one."""
        return cast(ModelProvider, "kvcomm")

    @property
    def model(self) -> str:
        """As it was given."""
        return self.settings.model

    def copy(self, /, **overrides: Any) -> KVCommConfig:
        """The same, with some settings otherwise.

        Raises:
            ConfigError: a setting out of range.
        """
        streaming = overrides.pop("streaming", self.streaming)
        call_options = overrides.pop("call_options", self.call_options)
        given = {field.name: getattr(self.settings, field.name) for field in fields(self.settings)}
        return KVCommConfig(streaming=streaming, call_options=call_options, **{**given, **in_our_names(overrides)})

    def create(self) -> KVCommClient:
        """The client of one agent. All of a process share the model."""
        return KVCommClient(self.settings, self.call_options, streaming=self.streaming)

    def create_files_client(self) -> NoReturn:
        """There is none: files are kept by services.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a model in this process keeps no files")

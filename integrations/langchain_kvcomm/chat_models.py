"""`ChatKVComm`: a LangChain chat model over the engine in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import BaseModel, model_validator

from kvcomm_agents._version import __version__
from kvcomm_agents.checks import checked
from kvcomm_agents.checks import text as any_text
from kvcomm_agents.config import differing
from kvcomm_agents.entrypoints.clients.options import to_choice
from kvcomm_agents.entrypoints.clients.settings import SAMPLING
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.extras import require_llguidance

from .answers import Streamed, to_result
from .identity import find_namespace
from .messages import to_messages
from .profile import find_profile
from .settings import ChatSettings
from .structured import PARSED, Method, structured
from .tools import AnyTool, to_openai_tools, to_specs


class ChatKVComm(ChatSettings):
    """A chat model that runs in this process and does not read the same words twice.

    Swap it in for the model of a LangGraph app; nothing else changes:

        llm = ChatKVComm(model="HuggingFaceTB/SmolLM2-135M-Instruct", temperature=0)
        reply = llm.invoke("Why is the sky blue?")
        reply.usage_metadata["input_token_details"]["cache_read"]  # prompt tokens not computed again
        reply.response_metadata["kvcomm"]  # what was done, in tokens and seconds

    Building one is instant. Weights load with the first call, once per process, however many
    `ChatKVComm` share them. Every field from `temperature` to `kv_agent` can also be given per call,
    by `llm.bind(...)` or as a keyword of `invoke` and its kin, and `model` too.
    """

    @model_validator(mode="after")
    def _set_kvcomm_version(self) -> Self:
        if hasattr(self, "_add_version"):  # langchain-core 1.4 has no such method
            self._add_version("kvcomm-agents", __version__)
        return self

    @property
    def _llm_type(self) -> str:
        return "kvcomm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        # Part of the key of LangChain's own response cache, hence the namespace: it is a wall there too.
        names = ["model", *sorted(SAMPLING), "stop", "reuse", "kv_namespace", "kv_agent", "device", "dtype"]
        names += ["prefer_tools", "max_string"] if self.prefer_tools or self.max_string != 1024 else []
        params = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        engine = differing(self._settings().config())
        return {**params, "engine_config": engine} if engine else params

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        given = self._settings().options({"stop": self.stop if stop is None else stop})
        params = super()._get_ls_params(stop=list(given.get("stop", ())), **kwargs)
        params["ls_provider"] = "kvcomm"
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of the tokens in a text, by the model's own tokenizer and without special tokens."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(self.engine.tokenizer.encode(checked("text", text, any_text), add_special_tokens=False))

    def get_num_tokens_from_messages(
        self,
        messages: list[BaseMessage],
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
    ) -> int:
        """Length in tokens of the prompt that the model's chat template makes of these messages and tools."""
        return self.engine.count_tokens(to_messages(messages), to_specs(tools or ()))

    def bind_tools(
        self,
        tools: Sequence[AnyTool],
        *,
        tool_choice: Any = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """A model that may call these tools. Needs the extra `tools`.

        Args:
            tools: functions, pydantic classes, TypedDicts, OpenAI's dicts, LangChain tools or runnables.
            tool_choice: `auto` (or `None`): speak or call; `any`, `required` or `True`: call; `none`:
                speak; a tool's name, or OpenAI's dict with one: call that.
            strict: as OpenAI's. Calls always follow their schema here.
            parallel_tool_calls: `False` allows one call in an answer.
            kwargs: bound as they are, `response_format` among them.

        Raises:
            ConfigError: a `tool_choice` that is none.
            MissingExtraError: llguidance is not installed.
        """
        formatted = to_openai_tools(tools, strict=strict)
        if formatted:
            require_llguidance()
            names = [spec.name for spec in to_specs(formatted)]
            calls, tool = to_choice(tool_choice, names)
            if tool_choice is not None:
                tool_choice = {"type": "function", "function": {"name": tool}} if tool else calls
            kwargs = {**kwargs, "tools": formatted, "tool_choice": tool_choice}
            if parallel_tool_calls is not None:
                kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(**{name: value for name, value in kwargs.items() if value is not None})

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """A model whose answers are objects of a schema; see `structured.structured`. Needs the extra `tools`.

        Raises:
            ConfigError: an unknown method or keyword, or no schema, or one that says nothing.
            MissingExtraError: llguidance is not installed.
        """
        if kwargs:
            raise ConfigError(f"with_structured_output does not know {', '.join(sorted(kwargs))}")
        require_llguidance()
        return structured(self, schema, method, strict, include_raw=include_raw)

    def _resolve_model_profile(self) -> ModelProfile | None:
        return find_profile(self.model, self._settings().config().max_context)

    # A namespace that the run's config names is made an option of the call: LangChain's response cache keeps answers
    # by the options, and would hand those of one tenant to another.

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """One answer. Keywords are options of the call, see the class."""
        return super().invoke(input, config, stop=stop, **_with_namespace(config, kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """One answer. Keywords are options of the call, see the class."""
        return await super().ainvoke(input, config, stop=stop, **_with_namespace(config, kwargs))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine, request = self._prepare(messages, stop, run_manager, kwargs)
        return to_result(engine.generate(request), request, engine, parsed=PARSED in kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine, request = await self._aprepare(messages, stop, run_manager, kwargs)
        completion = await engine.agenerate(request)
        # How the model writes calls is found out in a thread: the tokenizer may have to be loaded for it.
        return await asyncio.to_thread(to_result, completion, request, engine, parsed=PARSED in kwargs)

    # Neither of the two below calls `run_manager.on_llm_new_token`: the base class does, for every chunk.
    # Both close the engine's stream themselves, because that is what cancels the request.

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        engine, request = self._prepare(messages, stop, run_manager, kwargs)
        events, answer = engine.stream(request), Streamed(request, engine, parsed=PARSED in kwargs)
        try:
            for event in events:
                yield from answer.chunks(event)
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        engine, request = await self._aprepare(messages, stop, run_manager, kwargs)
        answer = await asyncio.to_thread(Streamed, request, engine, parsed=PARSED in kwargs)
        events = engine.astream(request)
        try:
            async for event in events:
                for chunk in answer.chunks(event):
                    yield chunk
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()


def _with_namespace(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    namespace = find_namespace(None, config)
    return (
        kwargs if namespace is None or kwargs.get("kv_namespace") is not None else {**kwargs, "kv_namespace": namespace}
    )

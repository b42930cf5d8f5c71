"""One face for all chat clients, so that one suite can ask them the same things."""

from __future__ import annotations

import asyncio
import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from kvcomm_agents.request import ToolSpec

Turn = tuple[Any, ...]
"""`(role, text)`, `("calls", [(id, name, arguments)])` or `("result", id, name, text)`."""

NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
ADD = ToolSpec("add", "Adds two numbers.", NUMBERS)
STOP = ToolSpec("stop", "Stops.")


class Joke(BaseModel):
    """A joke."""

    setup: str
    marks: int


@dataclass
class Reply:
    """An answer, whatever the framework made of it. `cached` is `None` where its usage has no such count."""

    text: str
    calls: list[tuple[str, str]] = field(default_factory=list)
    reason: str | None = None
    prompt: int = 0
    output: int = 0
    cached: int | None = None

    @property
    def arguments(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


class Face(ABC):
    """A client of some framework.

    Args:
        model: its model.
        settings: as the client takes them.
    """

    package: str
    framework: str

    def __init__(self, model: str = "fake", **settings: Any) -> None:
        self.model, self.settings = model, settings

    @abstractmethod
    async def ask(
        self, turns: Sequence[Turn], tools: Sequence[ToolSpec] = (), choice: Any = None, schema: Any = None, **more: Any
    ) -> Reply:
        """One call. `choice` is a word or `("tool", name)`; `more` are options of the call."""

    @abstractmethod
    async def stream(
        self, turns: Sequence[Turn], tools: Sequence[ToolSpec] = (), **more: Any
    ) -> tuple[list[str], Reply]:
        """The same, in pieces."""

    @abstractmethod
    async def leave(self, turns: Sequence[Turn]) -> None:
        """Stop a stream after its first piece, in the way of the framework."""

    @abstractmethod
    async def loop(self, question: str, function: Callable[..., Any]) -> str:
        """The last text of the framework's own agent, which was asked a question and given a tool."""

    @abstractmethod
    def image(self) -> Any:
        """A call that shows the model a picture, as an awaitable."""


class AutoGen(Face):
    package, framework = "autogen_kvcomm", "autogen_agentchat"

    def client(self) -> Any:
        from autogen_kvcomm import KVCommChatCompletionClient

        return KVCommChatCompletionClient(self.model, **self.settings)

    def _messages(self, turns: Sequence[Turn]) -> list[Any]:
        from autogen_core import FunctionCall
        from autogen_core.models import (
            AssistantMessage,
            FunctionExecutionResult,
            FunctionExecutionResultMessage,
            SystemMessage,
            UserMessage,
        )

        made: list[Any] = []
        for kind, *rest in turns:
            if kind == "system":
                made.append(SystemMessage(content=rest[0]))
            elif kind == "user":
                made.append(UserMessage(content=rest[0], source="critic"))
            elif kind == "assistant":
                made.append(AssistantMessage(content=rest[0], source="me"))
            elif kind == "calls":
                calls = [FunctionCall(id=id, name=name, arguments=json.dumps(args)) for id, name, args in rest[0]]
                made.append(AssistantMessage(content=calls, source="me"))
            else:
                result = FunctionExecutionResult(content=rest[2], name=rest[1], call_id=rest[0], is_error=False)
                made.append(FunctionExecutionResultMessage(content=[result]))
        return made

    def _args(self, tools: Sequence[ToolSpec], choice: Any, schema: Any, more: dict[str, Any]) -> dict[str, Any]:
        from autogen_core.tools import FunctionTool

        if isinstance(choice, tuple):
            choice = FunctionTool(lambda: None, description="", name=choice[1])
        given: dict[str, Any] = {"tools": [vars_of(tool) for tool in tools], "extra_create_args": more}
        return {**given, "tool_choice": choice or "auto", "json_output": schema}

    def _reply(self, result: Any) -> Reply:
        called = not isinstance(result.content, str)
        return Reply(
            (result.thought or "") if called else result.content,
            [(call.name, call.arguments) for call in result.content] if called else [],
            {"function_calls": "tool_calls"}.get(result.finish_reason, result.finish_reason),
            result.usage.prompt_tokens,
            result.usage.completion_tokens,
        )

    async def ask(self, turns: Any, tools: Any = (), choice: Any = None, schema: Any = None, **more: Any) -> Reply:
        messages = self._messages(turns)
        return self._reply(await self.client().create(messages, **self._args(tools, choice, schema, more)))

    async def stream(self, turns: Any, tools: Any = (), **more: Any) -> tuple[list[str], Reply]:
        args = self._args(tools, more.pop("choice", None), None, more)
        *pieces, last = [one async for one in self.client().create_stream(self._messages(turns), **args)]
        return pieces, self._reply(last)

    async def leave(self, turns: Any) -> None:
        from autogen_core import CancellationToken

        token = CancellationToken()
        stream = self.client().create_stream(self._messages(turns), cancellation_token=token)
        await anext(stream)
        token.cancel()
        try:
            await anext(stream)
        except asyncio.CancelledError:
            return
        raise AssertionError("the stream went on")

    async def loop(self, question: str, function: Callable[..., Any]) -> str:
        from autogen_agentchat.agents import AssistantAgent

        agent = AssistantAgent("helper", self.client(), tools=[function], reflect_on_tool_use=True)
        return str((await agent.run(task=question)).messages[-1].content)

    async def image(self) -> Any:
        from autogen_core import Image
        from autogen_core.models import UserMessage

        picture = Image.from_base64(PIXEL)
        return await self.client().create([UserMessage(content=["look", picture], source="user")])


class AgentFramework(Face):
    package, framework = "agent_framework_kvcomm", "agent_framework"

    def client(self) -> Any:
        from agent_framework_kvcomm import KVCommChatClient

        return KVCommChatClient(self.model, **self.settings)

    def _messages(self, turns: Sequence[Turn]) -> list[Any]:
        from agent_framework import Content, Message

        made: list[Any] = []
        for kind, *rest in turns:
            if kind == "calls":
                calls = [Content.from_function_call(id, name, arguments=args) for id, name, args in rest[0]]
                made.append(Message("assistant", calls))
            elif kind == "result":
                made.append(Message("tool", [Content.from_function_result(rest[0], result=rest[2])]))
            else:
                made.append(Message(kind, [rest[0]], author_name="critic" if kind == "user" else None))
        return made

    def _options(self, tools: Sequence[ToolSpec], choice: Any, schema: Any, more: dict[str, Any]) -> dict[str, Any]:
        from agent_framework import FunctionTool

        made = [FunctionTool(name=t.name, description=t.description, input_model=t.parameters) for t in tools]
        if isinstance(choice, tuple):
            choice = {"mode": "required", "required_function_name": choice[1]}
        options = {"tools": made or None, "tool_choice": choice, "response_format": schema}
        if more.pop("parallel_tool_calls", None) is False:
            options["allow_multiple_tool_calls"] = False
        return {**{name: value for name, value in options.items() if value is not None}, **more}

    def _reply(self, response: Any) -> Reply:
        contents = [content for message in response.messages for content in message.contents]
        usage = response.usage_details
        return Reply(
            response.text,
            [(c.name, c.arguments) for c in contents if c.type == "function_call"],
            response.finish_reason,
            usage["input_token_count"],
            usage["output_token_count"],
            usage["cache_read_input_token_count"],
        )

    async def ask(self, turns: Any, tools: Any = (), choice: Any = None, schema: Any = None, **more: Any) -> Reply:
        options = self._options(tools, choice, schema, more)
        return self._reply(await self.client().get_response(self._messages(turns), options=options))

    async def stream(self, turns: Any, tools: Any = (), **more: Any) -> tuple[list[str], Reply]:
        options = self._options(tools, more.pop("choice", None), None, more)
        stream = self.client().get_response(self._messages(turns), stream=True, options=options)
        pieces = [update.text async for update in stream]
        return [piece for piece in pieces if piece], self._reply(await stream.get_final_response())

    async def leave(self, turns: Any) -> None:
        stream = self.client().get_response(self._messages(turns), stream=True)
        first = asyncio.Event()

        async def read() -> None:
            async for _ in stream:
                first.set()

        task = asyncio.create_task(read())
        await first.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def loop(self, question: str, function: Callable[..., Any]) -> str:
        agent = self.client().as_agent(name="helper", instructions="You help.", tools=[function])
        return str((await agent.run(question)).text)

    async def image(self) -> Any:
        from agent_framework import Content, Message

        picture = Content.from_uri(f"data:image/png;base64,{PIXEL}", media_type="image/png")
        return await self.client().get_response([Message("user", ["look", picture])])


class AG2(Face):
    package, framework = "ag2_kvcomm", "ag2"

    def config(self, **more: Any) -> Any:
        from ag2_kvcomm import KVCommConfig

        return KVCommConfig(self.model, **{**self.settings, **more})

    def _events(self, turns: Sequence[Turn]) -> tuple[list[str], list[Any]]:
        from ag2.events import (
            ModelMessage,
            ModelRequest,
            ModelResponse,
            TextInput,
            ToolCallEvent,
            ToolCallsEvent,
            ToolResult,
            ToolResultEvent,
            ToolResultsEvent,
        )

        prompt: list[str] = []
        events: list[Any] = []
        for kind, *rest in turns:
            if kind == "system":
                prompt.append(rest[0])
            elif kind == "user":
                events.append(ModelRequest([TextInput(rest[0])]))
            elif kind == "assistant":
                events.append(ModelResponse(ModelMessage(rest[0])))
            elif kind == "calls":
                calls = [ToolCallEvent(name, id=id, arguments=json.dumps(args)) for id, name, args in rest[0]]
                events.append(ModelResponse(tool_calls=ToolCallsEvent(calls)))
            else:
                result = ToolResultEvent(parent_id=rest[0], name=rest[1], result=ToolResult(rest[2]))
                events.append(ToolResultsEvent([result]))
        return prompt, events

    async def _call(self, config: Any, turns: Sequence[Turn], tools: Sequence[ToolSpec], schema: Any) -> Any:
        from ag2 import MemoryStream
        from ag2.context import ConversationContext
        from ag2.events import ModelMessageChunk
        from ag2.response import ResponseSchema
        from ag2.tools.final import FunctionDefinition, FunctionToolSchema
        from fast_depends.pydantic import PydanticSerializer

        prompt, events = self._events(turns)
        context = ConversationContext(MemoryStream(), prompt=prompt)
        pieces: list[str] = []
        context.stream.where(ModelMessageChunk).subscribe(lambda event: pieces.append(event.content))
        made = [FunctionToolSchema(FunctionDefinition(t.name, t.description, dict(t.parameters))) for t in tools]
        asked = ResponseSchema(schema) if schema else None
        client = config.create()
        response = await client(
            events,
            context,
            tools=made,
            response_schema=asked,
            serializer=PydanticSerializer(use_fastdepends_errors=False),
        )
        return pieces, self._reply(response)

    def _reply(self, response: Any) -> Reply:
        return Reply(
            response.content or "",
            [(call.name, call.arguments) for call in response.tool_calls.calls],
            response.finish_reason,
            response.usage.prompt_tokens,
            response.usage.completion_tokens,
            response.usage.cache_read_input_tokens,
        )

    def _with(self, choice: Any, more: dict[str, Any], **settings: Any) -> Any:
        options = {**more, "tool_choice": choice[1] if isinstance(choice, tuple) else choice}
        return self.config(call_options=options, **settings)

    async def ask(self, turns: Any, tools: Any = (), choice: Any = None, schema: Any = None, **more: Any) -> Reply:
        return (await self._call(self._with(choice, more), turns, tools, schema))[1]

    async def stream(self, turns: Any, tools: Any = (), **more: Any) -> tuple[list[str], Reply]:
        return await self._call(self._with(more.pop("choice", None), more, streaming=True), turns, tools, None)

    async def leave(self, turns: Any) -> None:
        task = asyncio.create_task(self._call(self.config(streaming=True), turns, (), None))
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def loop(self, question: str, function: Callable[..., Any]) -> str:
        from ag2 import Agent

        return str((await Agent("helper", config=self.config(), tools=[function]).ask(question)).body)

    async def image(self) -> Any:
        from ag2 import Agent
        from ag2.events import BinaryInput, BinaryType

        picture = BinaryInput(b"", media_type="image/png", kind=BinaryType.IMAGE)
        return await Agent("helper", config=self.config()).ask("look", picture)


class AG2Classic(Face):
    package, framework = "ag2_classic_kvcomm", "autogen.oai"

    def entry(self) -> dict[str, Any]:
        return {"model": self.model, "model_client_cls": "KVCommModelClient", **self.settings}

    def wrapper(self, **register: Any) -> Any:
        from autogen.oai import OpenAIWrapper

        from ag2_classic_kvcomm import KVCommModelClient

        wrapper = OpenAIWrapper(config_list=[self.entry()], cache_seed=None)
        wrapper.register_model_client(KVCommModelClient, **register)
        return wrapper

    def _params(self, turns: Sequence[Turn], tools: Sequence[ToolSpec], choice: Any, schema: Any) -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        for kind, *rest in turns:
            if kind == "calls":
                calls = [
                    {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(args)}}
                    for id, name, args in rest[0]
                ]
                messages.append({"role": "assistant", "content": None, "tool_calls": calls})
            elif kind == "result":
                messages.append({"role": "tool", "tool_call_id": rest[0], "content": rest[2]})
            else:
                messages.append({"role": kind, "content": rest[0], **({"name": "critic"} if kind == "user" else {})})
        if isinstance(choice, tuple):
            choice = {"type": "function", "function": {"name": choice[1]}}
        params = {
            "tools": [tool.as_openai() for tool in tools] or None,
            "tool_choice": choice,
            "response_format": schema,
        }
        return {"messages": messages, **{name: value for name, value in params.items() if value is not None}}

    def _reply(self, response: Any) -> Reply:
        message = response.choices[0].message
        calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
        usage = response.usage
        reason = response.choices[0].finish_reason
        return Reply(message.content or "", calls, reason, usage.prompt_tokens, usage.completion_tokens)

    async def ask(self, turns: Any, tools: Any = (), choice: Any = None, schema: Any = None, **more: Any) -> Reply:
        params = {**self._params(turns, tools, choice, schema), **more}
        return self._reply(await asyncio.to_thread(lambda: self.wrapper().create(**params)))

    def _streamed(self, params: dict[str, Any], take: Callable[[str], None]) -> Any:
        from autogen.io.base import IOStream

        class Taken(IOStream):
            def print(self, *objects: Any, **_: Any) -> None: ...

            def input(self, *_: Any, **__: Any) -> str:
                return ""

            def send(self, message: Any) -> None:
                take(message.content.content)

        with IOStream.set_default(Taken()):
            return self.wrapper().create(stream=True, **params)

    async def stream(self, turns: Any, tools: Any = (), **more: Any) -> tuple[list[str], Reply]:
        params = {**self._params(turns, tools, more.pop("choice", None), None), **more}
        pieces: list[str] = []
        response = await asyncio.to_thread(self._streamed, params, pieces.append)
        return pieces, self._reply(response)

    async def leave(self, turns: Any) -> None:
        def gone(piece: str) -> None:
            raise ConnectionError("the reader is gone")

        with contextlib.suppress(ConnectionError):
            await asyncio.to_thread(self._streamed, self._params(turns, (), None, None), gone)

    async def loop(self, question: str, function: Callable[..., Any]) -> str:
        return await asyncio.to_thread(self._loop, question, function)

    def _loop(self, question: str, function: Callable[..., Any]) -> str:
        from autogen import ConversableAgent, register_function

        from ag2_classic_kvcomm import KVCommModelClient

        config = {"config_list": [self.entry()], "cache_seed": None}
        helper = ConversableAgent("helper", llm_config=config, human_input_mode="NEVER")
        user = ConversableAgent("user", llm_config=False, human_input_mode="NEVER")
        register_function(function, caller=helper, executor=user, name=function.__name__, description=function.__doc__)
        helper.register_model_client(KVCommModelClient)
        result = user.initiate_chat(helper, message=question, max_turns=2, silent=True)
        return str(result.chat_history[-1]["content"])

    async def image(self) -> Any:
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
        return await asyncio.to_thread(lambda: self.wrapper().create(messages=[{"role": "user", "content": [picture]}]))


def vars_of(tool: ToolSpec) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
FACES: list[type[Face]] = [AutoGen, AgentFramework, AG2, AG2Classic]

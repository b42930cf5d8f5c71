"""Who calls, and who chooses the next speaker, as far as each framework tells."""

from __future__ import annotations

from typing import Any

import pytest
from faces import FACES, AG2Classic, AgentFramework
from fake_engine import FakeEngine
from pydantic import BaseModel

from kvcomm_agents.request import Message, Request


@pytest.fixture(autouse=True)
def installed(request: pytest.FixtureRequest) -> None:
    """Skips a test, which names the package it is about, where that package's framework is not installed."""
    for face in FACES:
        if face.package in request.node.name:
            pytest.importorskip(face.framework, reason=f"not installed; {face.package} names the extra that brings it")


async def test_ag2_kvcomm_knows_its_agent_and_stream(fake: FakeEngine) -> None:
    from ag2 import Agent

    from ag2_kvcomm import KVCommConfig

    config = KVCommConfig("fake", temperature=0.5)
    for name in ("writer", "editor"):
        await Agent(name, f"You are {name}.", config=config).ask("start")
    assert [request.agent for request in fake.requests] == ["writer", "editor"]
    assert len({request.conversation for request in fake.requests}) == 2
    assert fake.requests[0].messages[0] == Message("system", "You are writer.")


async def test_ag2_kvcomm_says_what_was_placed(fake: FakeEngine) -> None:
    from ag2 import Agent

    from ag2_kvcomm import KVCommConfig

    agent = Agent("writer", "You are writer.", config=KVCommConfig("fake"))
    await agent.ask("start")
    reply = await agent.ask("again")
    assert reply.response.usage.cache_read_input_tokens == 6
    assert reply.response.message is not None
    assert reply.response.message.metadata["kvcomm"]["placed_exact_tokens"] == 6


def test_ag2_kvcomm_config_is_copied_with_changes(fake: FakeEngine) -> None:
    from ag2_kvcomm import KVCommConfig
    from kvcomm_agents.errors import ConfigError

    config = KVCommConfig("fake", temperature=0.5, streaming=True, call_options={"tool_choice": "any"})
    copy = config.copy(temperature=0.25, model="other")
    assert (copy.model, copy.settings.temperature, copy.streaming) == ("other", 0.25, True)
    assert (copy.call_options, config.settings.temperature) == ({"tool_choice": "any"}, 0.5)
    assert str(config.provider) == "kvcomm"
    with pytest.raises(ConfigError, match="temperature"):
        config.copy(temperature=-1.0)


async def test_agent_framework_kvcomm_orchestrators_are_exact(fake: FakeEngine) -> None:
    from agent_framework import Message as FrameworkMessage

    class AgentOrchestrationOutput(BaseModel):
        next_speaker: str

    class Plan(BaseModel):
        steps: str

    client = AgentFramework().client()  # type: ignore[attr-defined]
    for asked in (AgentOrchestrationOutput, Plan):
        await client.get_response([FrameworkMessage("user", ["who?"])], options={"response_format": asked})
    assert [request.reuse for request in fake.requests] == ["exact", None]


async def test_agent_framework_kvcomm_puts_instructions_first_and_no_name_into_the_text(fake: FakeEngine) -> None:
    from agent_framework import Message as FrameworkMessage

    agent = AgentFramework().client().as_agent(name="editor", instructions="You are editor.")  # type: ignore[attr-defined]
    said = FrameworkMessage("assistant", ["A first draft."], author_name="writer")
    response = await agent.run([FrameworkMessage("user", ["start"]), said])
    assert [(one.role, one.content, one.name) for one in fake.requests[0].messages] == [
        ("system", "You are editor.", None),
        ("user", "start", None),
        ("assistant", "A first draft.", "writer"),
    ]
    assert response.usage_details["cache_read_input_token_count"] == 0


async def test_agent_framework_kvcomm_allows_some_of_the_tools(fake: FakeEngine) -> None:
    from agent_framework import FunctionTool
    from agent_framework import Message as FrameworkMessage

    tools = [FunctionTool(name=name, input_model={"type": "object", "properties": {}}) for name in ("a", "b")]
    options: Any = {"tools": tools, "tool_choice": {"mode": "required", "allowed_tools": ["b"]}}
    await AgentFramework().client().get_response([FrameworkMessage("user", ["x"])], options=options)  # type: ignore[attr-defined]
    assert [tool.name for tool in fake.requests[0].tools] == ["b"]


async def test_ag2_classic_kvcomm_selectors_are_exact(fake: FakeEngine) -> None:
    from autogen import ConversableAgent, GroupChat, GroupChatManager

    from ag2_classic_kvcomm import KVCommModelClient

    config = {"config_list": [AG2Classic().entry()], "cache_seed": None}  # type: ignore[attr-defined]

    def select(request: Request) -> str | None:
        return "editor" if any("select the next role" in one.content for one in request.messages) else None

    fake.script = select
    reports: list[Any] = []
    members = []
    for name in ("writer", "critic", "editor"):
        member = ConversableAgent(name, f"You are {name}.", llm_config=config, human_input_mode="NEVER")
        member.register_model_client(KVCommModelClient, on_report=reports.append)
        members.append(member)
    chat = GroupChat(
        members,
        max_round=3,
        select_speaker_auto_llm_config=config,
        select_speaker_auto_model_client_cls=KVCommModelClient,
        select_speaker_auto_verbose=False,
    )
    manager = GroupChatManager(chat, llm_config=config, silent=True)
    manager.register_model_client(KVCommModelClient)
    members[0].initiate_chat(manager, message="start", silent=True)
    modes = [request.reuse for request in fake.requests]
    chosen = [request.messages[-1].role == "system" for request in fake.requests]
    assert modes == ["exact" if one else None for one in chosen]
    assert True in chosen
    assert False in chosen
    assert len(reports) == chosen.count(False)

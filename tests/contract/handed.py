"""An answer that is read again, by its own agent or by another, with nothing but what each framework's users write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from faces import AG2, AG2Classic, AgentFramework, AutoGen, Face

Way = Literal["again", "passed on", "streamed and passed on"]
QUESTION = "Which of these comes first, and why: amber, brick, cedar, daisy, ember?"
SYSTEM = {"first": "You are the first of two.", "second": "You are the other one, who reads what the first one wrote."}

CARRIES: dict[type[Face], set[Way]] = {
    AutoGen: set(),
    AgentFramework: {"again", "passed on", "streamed and passed on"},
    AG2: {"again"},
    AG2Classic: set(),
}
"""Where the tags of an answer come back to us: its message keeps its metadata."""


async def read_again(face: Face, way: Way) -> None:
    """An agent answers `QUESTION`, and then its answer is part of a prompt."""
    read: dict[type[Face], Callable[[Any, Way], Awaitable[None]]] = {
        AutoGen: _autogen,
        AgentFramework: _agent_framework,
        AG2: _ag2,
        AG2Classic: _ag2_classic,
    }
    await read[type(face)](face, way)


async def _autogen(face: AutoGen, way: Way) -> None:
    from autogen_agentchat.agents import AssistantAgent
    from autogen_agentchat.teams import RoundRobinGroupChat

    streamed = way.startswith("streamed")
    first, second = [
        AssistantAgent(name, face.client(), system_message=text, model_client_stream=streamed)
        for name, text in SYSTEM.items()
    ]
    if way == "again":
        await first.run(task=QUESTION)
        await first.run(task="Go on.")
    else:
        await RoundRobinGroupChat([first, second], max_turns=2).run(task=QUESTION)


async def _agent_framework(face: AgentFramework, way: Way) -> None:
    from agent_framework import Message

    first, second = [face.client().as_agent(name=name, instructions=text) for name, text in SYSTEM.items()]
    if way == "again":
        session = first.create_session()
        await first.run(QUESTION, session=session)
        await first.run("Go on.", session=session)
        return
    if way == "passed on":
        said = await first.run(QUESTION)
    else:
        said = await first.run(QUESTION, stream=True).get_final_response()
    await second.run([Message("user", [QUESTION]), *said.messages])


async def _ag2(face: AG2, way: Way) -> None:
    from ag2 import Agent

    config = face.config(streaming=way.startswith("streamed"))
    first, second = [Agent(name, text, config=config) for name, text in SYSTEM.items()]
    reply = await first.ask(QUESTION)
    if way == "again":
        await reply.ask("Go on.")
    else:
        await second.ask(QUESTION, str(reply.body))


async def _ag2_classic(face: AG2Classic, way: Way) -> None:
    await asyncio.to_thread(_chat, face, way)


def _chat(face: AG2Classic, way: Way) -> None:
    from autogen import ConversableAgent

    from ag2_classic_kvcomm import KVCommModelClient

    entry = {**face.entry(), "stream": way.startswith("streamed")}
    agents = []
    for name, text in SYSTEM.items():
        config = {"config_list": [entry], "cache_seed": None}
        agent = ConversableAgent(name, system_message=text, llm_config=config, human_input_mode="NEVER")
        agent.register_model_client(KVCommModelClient)
        agents.append(agent)
    first, second = agents
    if way == "again":
        user = ConversableAgent("user", llm_config=False, human_input_mode="NEVER", default_auto_reply="Go on.")
        user.initiate_chat(first, message=QUESTION, max_turns=2, silent=True)
    else:
        second.initiate_chat(first, message=QUESTION, max_turns=2, silent=True)

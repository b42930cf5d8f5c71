"""The demo's app, an ordinary LangGraph team, and a callback handler that watches it from outside.

Nothing in the nodes knows what kind of chat model it calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import LLMResult
from langgraph.graph import START, MessagesState, StateGraph

from .messages import to_messages

if TYPE_CHECKING:
    from kvcomm_agents.request import Message

REVIEWS = 2

PROMPTS = {
    "planner": """\
You are the planner of a small software team. You are given one programming task. You do not write code: \
a coder on your team will do that, and a reviewer will read the result.

House rules:
- Name the function and its arguments exactly as the task does.
- Think of empty input, of one element, and of values that are equal.
- Prefer one pass over the data and the standard library.
- Leave out what the task does not ask for.

Format: a numbered list of at most five steps. Every step is one short sentence on what to do. \
End with the line "Edge cases:" and the two edge cases that matter most.""",
    "coder": """\
You are the coder of a small software team. You are given a programming task and the planner's steps. Later \
you may also be given a review, and then you answer it with a better version.

House rules:
- Write Python 3.11 that runs as it is, without comments that repeat the code.
- Follow the planner's steps unless one is wrong; then do the right thing.
- One function with the name from the task. No classes, no printing, no reading of files or input.
- Choose names that say what the value is. Handle the edge cases before the loop.

Format: one Python code block and nothing before it. After it, at most one sentence on what is left to do.""",
    "reviewer": """\
You are the reviewer of a small software team. You are given a programming task, the planner's steps and the \
coder's function. You read the code closely and never rewrite it yourself.

House rules:
- Check the result for empty input, for one element, and for values that are equal.
- Check that the function has the name and the arguments that the task asks for.
- Look for loops that end too early and for lists that change while they are read.
- Praise nothing. If nothing is wrong, say so in one sentence.

Format: at most three findings, each on a line of its own that starts with a dash, the most serious first. \
End with the line "Verdict: accept" or "Verdict: revise".""",
}

TURNS = {
    "planner": "Write the numbered list of steps now.",
    "coder": "Write the Python function now.",
    "reviewer": "List what is wrong with the code now, one finding a line.",
}


def build_team(llm: BaseChatModel, reviews: int = REVIEWS) -> Any:  # a compiled graph, whose type has four parameters
    """Planner, then coder and reviewer in turn until the reviewer has spoken `reviews` times."""

    def as_seen_by(agent: str, messages: list[AnyMessage]) -> list[BaseMessage]:
        """The conversation with the agent's own turns as the assistant's and all others as the user's."""
        return [
            message
            if message.name == agent
            else HumanMessage(f"The {message.name or 'user'} wrote:\n{message.content}\n\n{TURNS[agent]}")
            for message in messages
        ]

    def member(agent: str) -> Any:  # LangGraph's type of a node wants its parameter's name, too
        def node(state: MessagesState) -> dict[str, Any]:
            reply = llm.invoke([SystemMessage(PROMPTS[agent]), *as_seen_by(agent, state["messages"])])
            return {"messages": [reply.model_copy(update={"name": agent})]}

        return node

    def after_review(state: MessagesState) -> Literal["coder", "__end__"]:
        spoken = sum(message.name == "reviewer" for message in state["messages"])
        return "coder" if spoken < reviews else "__end__"

    team = StateGraph(MessagesState)
    for agent in PROMPTS:
        team.add_node(agent, member(agent))
    team.add_edge(START, "planner")
    team.add_edge("planner", "coder")
    team.add_edge("coder", "reviewer")
    team.add_conditional_edges("reviewer", after_review)
    return team.compile()


class CallWatcher(BaseCallbackHandler):
    """Hands every finished model call to `on_call`: its prompt, and the report that its reply carries."""

    raise_error = True  # a failed measurement must not be a row that is quietly missing

    def __init__(self, on_call: Callable[[tuple[Message, ...], dict[str, Any]], None]) -> None:
        self._on_call = on_call
        self._prompts: dict[UUID, tuple[Message, ...]] = {}

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Remember the prompt."""
        self._prompts[run_id] = to_messages(messages[0])

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Pass it on with the report, before the node goes on."""
        message = response.generations[0][0].message  # type: ignore[union-attr]
        self._on_call(self._prompts.pop(run_id), message.response_metadata["kvcomm"])

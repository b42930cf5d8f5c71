"""Plan and execute: the past steps stand in the template as Python writes them, and as JSON."""

import json
from operator import add
from typing import Annotated, TypedDict

from langchain_core.prompts import ChatPromptTemplate
from langgraph.graph import END, START, StateGraph

INPUT = {"objective": "bake bread for ten guests", "past_steps": []}
MORE = [
    {"objective": objective, "past_steps": []}
    for objective in (
        "cook soup for thirty children",
        "build a small shed for tools",
        "plan a walk across the hills",
        "paint the fence of the school",
        "dig a pond in the back garden",
        "repair the bicycle of a friend",
        "write a play for the village fair",
    )
]

REPLAN = ChatPromptTemplate.from_template(
    "Your objective was this: {objective}\n\nYou have done these steps: {past_steps}\n\nWhat is left to do?"
)


class State(TypedDict, total=False):
    objective: str
    past_steps: Annotated[list[tuple[str, str]], add]
    left: str
    filed: str


def build(llm):
    def execute(state: State):
        step = "buy flour"
        return {"past_steps": [(step, llm.invoke(f"To {state['objective']}: {step}. How did it go?").content)]}

    def replan(state: State):
        return {"left": (REPLAN | llm).invoke(state).content}

    def file(state: State):
        record = json.dumps({"steps": state["past_steps"], "left": state["left"]})
        return {"filed": llm.invoke(f"File this record under one heading:\n{record}").content}

    graph = StateGraph(State).add_node("execute", execute).add_node("replan", replan).add_node("file", file)
    graph.add_edge(START, "execute").add_edge("execute", "replan")
    return graph.add_edge("replan", "file").add_edge("file", END).compile()

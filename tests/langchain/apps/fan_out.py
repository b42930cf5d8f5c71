"""Sections written at the same time by `Send`, then joined in one prompt."""

from operator import add
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

INPUT = {"topics": ["the sun", "the moon", "the sea"]}
MORE = [
    {"topics": list(topics)}
    for topics in (
        ("the rain", "the snow", "the wind"),
        ("the horse", "the cow", "the goat"),
        ("the bread", "the salt", "the oil"),
        ("the wheel", "the sail", "the steam engine"),
        ("the heart", "the lungs", "the brain"),
        ("the violin", "the drum", "the flute"),
        ("the desert", "the forest", "the steppe"),
    )
]


class State(TypedDict, total=False):
    topics: list[str]
    sections: Annotated[list[str], add]
    report: str


def build(llm):
    def write(state: dict):
        return {"sections": [llm.invoke(f"Write the section on {state['topic']} of a school book.").content]}

    def join(state: State):
        sections = "\n\n".join(state["sections"])
        return {"report": llm.invoke(f"Write a report from these sections:\n\n{sections}").content}

    graph = StateGraph(State).add_node("write", write).add_node("join", join)
    graph.add_conditional_edges(START, lambda state: [Send("write", {"topic": t}) for t in state["topics"]], ["write"])
    return graph.add_edge("write", "join").add_edge("join", END).compile()

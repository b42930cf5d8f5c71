"""A transcript that grows; the last argument stands in the prompt twice."""

from typing import TypedDict

from langgraph.graph import END, START, StateGraph

INPUT = {"topic": "a four-day week", "history": "", "last": "", "turns": 0}
MORE = [
    {**INPUT, "topic": topic}
    for topic in (
        "cars in the old town",
        "school uniforms",
        "the right to work from home",
        "homework for small children",
        "free buses and trains",
        "zoos in large cities",
        "lights in the streets at night",
    )
]


class State(TypedDict):
    topic: str
    history: str
    last: str
    turns: int


def build(llm):
    def speaker(side):
        def node(state: State):
            prompt = f"""You are the {side} in a debate on {state["topic"]}.
Conversation history of the debate: {state["history"]}
Last argument of the other side: {state["last"]}
Answer it."""
            argument = f"{side}: {llm.invoke(prompt).content}"
            return {"history": state["history"] + "\n" + argument, "last": argument, "turns": state["turns"] + 1}

        return node

    def next_speaker(state: State):
        return END if state["turns"] >= 3 else "for"

    graph = StateGraph(State)
    graph.add_node("for", speaker("Speaker for")).add_node("against", speaker("Speaker against"))
    graph.add_edge(START, "for").add_edge("for", "against")
    return graph.add_conditional_edges("against", next_speaker, ["for", END]).compile()

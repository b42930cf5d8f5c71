"""A transcript that grows; the last argument stands in the prompt twice."""

from typing import TypedDict

from langgraph.graph import END, START, StateGraph

INPUT = {"history": "", "last": "", "turns": 0}


class State(TypedDict):
    history: str
    last: str
    turns: int


def build(llm):
    def speaker(side):
        def node(state: State):
            prompt = f"""You are the {side} in a debate on a four-day week.
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

"""Agents share one list of messages; each puts its own instructions before it."""

from langchain_core.messages import SystemMessage
from langgraph.graph import END, START, MessagesState, StateGraph

INPUT = {"messages": [("user", "Our team wants to move its work to a new city. What should we know first?")]}


def build(llm):
    def agent(name, instructions):
        def node(state: MessagesState):
            reply = llm.invoke([SystemMessage(instructions), *state["messages"]])
            reply.name = name
            return {"messages": [reply]}

        return node

    graph = StateGraph(MessagesState)
    graph.add_node("researcher", agent("researcher", "You are a researcher. Give one fact."))
    graph.add_node("writer", agent("writer", "You are a writer. Turn the facts that you are given into prose."))
    graph.add_edge(START, "researcher").add_edge("researcher", "writer").add_edge("writer", END)
    return graph.compile()

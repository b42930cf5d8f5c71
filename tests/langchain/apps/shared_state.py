"""Agents share one list of messages; each puts its own instructions before it."""

from langchain_core.messages import SystemMessage
from langgraph.graph import END, START, MessagesState, StateGraph

INPUT = {"messages": [("user", "Our team wants to move its work to a new city. What should we know first?")]}
MORE = [
    {"messages": [("user", text)]}
    for text in (
        "We think of hiring two people from abroad. What should we know before we begin?",
        "Our bakery would like to sell its bread online. What has to be thought of first?",
        "The school plans a week without any lessons for its older pupils. What could they do?",
        "A friend of mine wants to keep bees on the roof of her house. What does she need?",
        "We are to move our archive of letters into a cellar. What may go wrong?",
        "The club would like to buy an old boat and mend it together. Is that wise?",
        "My parents want to rent out two rooms of their farm to guests. How do they start?",
    )
]


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

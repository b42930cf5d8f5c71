"""Reflection: the critic sees the writer's words as the user's, and the writer the critic's."""

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langgraph.graph import END, START, MessagesState, StateGraph

INPUT = {"messages": [HumanMessage("Write an essay on why we read old books, in one sentence.")]}
MORE = [
    {"messages": [HumanMessage(f"Write an essay on why we {what}, in one sentence.")]}
    for what in (
        "plant trees that we shall not see grown",
        "tell children stories that are not true",
        "keep letters that we never read again",
        "walk the long way home in spring",
        "name ships, storms and stars",
        "learn poems by heart at school",
        "travel to places we know from paintings",
    )
]


def build(llm):
    def generate(state: MessagesState):
        return {"messages": [llm.invoke([SystemMessage("You write short essays."), *state["messages"]])]}

    def reflect(state: MessagesState):
        swapped = {"ai": HumanMessage, "human": AIMessage}
        first, *others = state["messages"]
        turns = [first, *[swapped[message.type](content=message.content) for message in others]]
        reply = llm.invoke([SystemMessage("You are a teacher who grades an essay."), *turns])
        return {"messages": [HumanMessage(content=reply.content)]}

    def go_on(state: MessagesState):
        return END if len(state["messages"]) > 3 else "reflect"

    graph = StateGraph(MessagesState).add_node("generate", generate).add_node("reflect", reflect)
    graph.add_edge(START, "generate").add_conditional_edges("generate", go_on, ["reflect", END])
    return graph.add_edge("reflect", "generate").compile()

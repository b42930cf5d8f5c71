"""Personas in a prompt template, with a placeholder for what was said so far."""

from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langgraph.graph import END, START, MessagesState, StateGraph

INPUT = {"messages": [("user", "Please write a line about honey bees in winter.")]}

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "You are {persona}, a {job} with {years} years of work behind you. Keep to your job."),
        MessagesPlaceholder("messages"),
    ]
)


def build(llm):
    def agent(**persona):
        chain = PROMPT.partial(**persona) | llm
        return lambda state: {"messages": [chain.invoke({"messages": state["messages"]})]}

    graph = StateGraph(MessagesState)
    graph.add_node("poet", agent(persona="Ada", job="poet", years="9"))
    graph.add_node("critic", agent(persona="Carl", job="critic of poems", years="30"))
    return graph.add_edge(START, "poet").add_edge("poet", "critic").add_edge("critic", END).compile()

"""Personas in a prompt template, with a placeholder for what was said so far."""

from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langgraph.graph import END, START, MessagesState, StateGraph

INPUT = {"messages": [("user", "Please write a line about honey bees in winter.")]}
MORE = [
    {"messages": [("user", text)]}
    for text in (
        "Please write a line about an old lighthouse that nobody keeps.",
        "Please write a line about the first snow on a railway station.",
        "Please write a line about two cats on a warm windowsill.",
        "Please write a line about a market square at five in the morning.",
        "Please write a line about the smell of a library in summer.",
        "Please write a line about a river that has lost its bridge.",
        "Please write a line about the last train home on a Sunday.",
    )
]

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

"""An agent's answer is handed on as if a user of that name had said it."""

from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.graph import END, START, MessagesState, StateGraph

INPUT = {"messages": [("user", "How high is the tallest tower in the world, and who built it?")]}
MORE = [
    {"messages": [("user", text)]}
    for text in (
        "How long is the longest bridge in the world, and what does it cross?",
        "How deep is the deepest lake on Earth, and where does it lie?",
        "How old is the oldest tree that we know of, and how is that known?",
        "How fast is the fastest train in service, and which country runs it?",
        "How cold was the coldest day that was ever measured, and where?",
        "How heavy is the heaviest bell that still rings, and who cast it?",
        "How many steps has the longest stairway in Europe, and where is it?",
    )
]


def build(llm):
    def research(state: MessagesState):
        reply = llm.invoke([SystemMessage("You look things up for your team."), *state["messages"]])
        return {"messages": [HumanMessage(content=reply.content, name="researcher")]}

    def chart(state: MessagesState):
        reply = llm.invoke([SystemMessage("You describe a chart of what you are told."), *state["messages"]])
        return {"messages": [HumanMessage(content=reply.content, name="chart_generator")]}

    graph = StateGraph(MessagesState).add_node("research", research).add_node("chart", chart)
    return graph.add_edge(START, "research").add_edge("research", "chart").add_edge("chart", END).compile()

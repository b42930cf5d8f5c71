"""Two agents on one local model. Needs: pip install "kvcomm-agents[langgraph]"."""

from langchain_core.messages import AIMessage, SystemMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from langchain_kvcomm import ChatKVComm

llm = ChatKVComm(model="HuggingFaceTB/SmolLM2-135M-Instruct", temperature=0, max_tokens=64)


def writer(state: MessagesState) -> dict[str, list[AIMessage]]:
    return {"messages": [llm.invoke([SystemMessage("You write one short paragraph."), *state["messages"]])]}


def editor(state: MessagesState) -> dict[str, list[AIMessage]]:
    return {"messages": [llm.invoke([SystemMessage("You make the last text shorter."), *state["messages"]])]}


graph = StateGraph(MessagesState).add_node("writer", writer).add_node("editor", editor)
graph.add_edge(START, "writer").add_edge("writer", "editor").add_edge("editor", END)
team = graph.compile()

for topic in ("how tides work", "why leaves turn red"):
    for message in team.invoke({"messages": [("user", f"Write about {topic}.")]})["messages"][1:]:
        usage = message.usage_metadata
        print(
            message.content,
            f"\n[{usage['input_token_details']['cache_read']} of {usage['input_tokens']} placed]\n",
        )

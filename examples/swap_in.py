"""An ordinary LangGraph app on a local model that reuses what its agents tell each other.

The app was written for a hosted model. This is all that changed in it:

    -llm = ChatOpenAI(model="gpt-4o-mini", temperature=0, max_tokens=32)
    +llm = ChatKVComm(model="HuggingFaceTB/SmolLM2-135M-Instruct", temperature=0, max_tokens=32)

(and the import of the name). What was reused is printed below each answer. At first that is only what an agent
has read itself; what others wrote is placed when the guard has measured the agents that read it.

Needs: pip install "kvcomm-agents[langgraph,embeddings]".
"""

from langchain_core.messages import AIMessage, SystemMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from langchain_kvcomm import ChatKVComm

llm = ChatKVComm(model="HuggingFaceTB/SmolLM2-135M-Instruct", temperature=0, max_tokens=32)


def reporter(state: MessagesState) -> dict[str, list[AIMessage]]:
    role = SystemMessage("You are a reporter of a small local paper. Write two plain sentences on what the user asks.")
    return {"messages": [llm.invoke([role, *state["messages"]])]}


def editor(state: MessagesState) -> dict[str, list[AIMessage]]:
    role = SystemMessage("You are the editor of a small local paper. Say in one sentence what the last text lacks.")
    return {"messages": [llm.invoke([role, *state["messages"], ("user", "What does this text lack?")])]}


graph = StateGraph(MessagesState).add_node("reporter", reporter).add_node("editor", editor)
graph.add_edge(START, "reporter").add_edge("reporter", "editor").add_edge("editor", END)
app = graph.compile()

for topic in ("the new footbridge over the river", "the flower market", "the last tram line"):
    answers = app.invoke({"messages": [("user", f"Write about {topic}.")]})["messages"][1:]
    for name, answer in zip(("reporter", "editor"), answers, strict=True):
        done = answer.response_metadata["kvcomm"]
        print(f"{name}: {' '.join(str(answer.content).split())}")
        print(
            f"    {done['prompt_tokens']} prompt tokens: {done['placed_exact_tokens']} placed exactly,"
            f" {done['placed_corrected_tokens']} placed and corrected, {done['computed_tokens']} computed"
        )

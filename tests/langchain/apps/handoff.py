"""One agent transfers to another; the history then holds the call and its result."""

from langchain_core.messages import SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

INPUT = {"messages": [("user", "I want to send back the blue shoes that I bought last week.")]}
MORE = [
    {"messages": [("user", text)]}
    for text in (
        "I want to return the green boots that I ordered in March.",
        "The red sandals that I bought here are broken, and I want my money back.",
        "You sent me two left shoes. I would like to send them back.",
        "My new slippers are too small. Can I give them back, please?",
        "I paid for the black shoes twice, and want one payment back.",
        "I no longer need the running shoes that I bought yesterday.",
        "The heels I bought for my sister do not fit her at all.",
    )
]


@tool
def transfer_to_refunds(reason: str) -> str:
    """Hand the customer over to refunds."""
    return "Successfully transferred to refunds"


def build(llm):
    def sales(state: MessagesState):
        bound = llm.bind_tools([transfer_to_refunds], tool_choice="transfer_to_refunds", parallel_tool_calls=False)
        reply = bound.invoke([SystemMessage("You sell shoes."), *state["messages"]])
        (call,) = reply.tool_calls
        result = ToolMessage(
            transfer_to_refunds.invoke(call["args"]), tool_call_id=call["id"], name="transfer_to_refunds"
        )
        return Command(goto="refunds", update={"messages": [reply, result]})

    def refunds(state: MessagesState):
        return {"messages": [llm.invoke([SystemMessage("You give refunds, and are kind."), *state["messages"]])]}

    graph = StateGraph(MessagesState).add_node("sales", sales, destinations=("refunds",))
    return graph.add_node("refunds", refunds).add_edge(START, "sales").compile()

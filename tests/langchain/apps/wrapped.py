"""Findings in tags and under headings."""

from typing import TypedDict

from langgraph.graph import END, START, StateGraph

INPUT = {"question": "Is it safe to swim in the lake of our town in October?"}
MORE = [
    {"question": question}
    for question in (
        "May we drink the water from the old well behind the church?",
        "Can the river be crossed on foot where the mill used to stand?",
        "Is the ice on the village pond thick enough to skate on in January?",
        "Are the mushrooms that grow behind the sports field good to eat?",
        "Should the market square be closed to cars while the pipes are laid?",
        "Can children swim in the canal now that the factory is closed?",
        "Is the cellar of the town hall dry enough for the old records?",
    )
]


class State(TypedDict, total=False):
    question: str
    findings: list[str]
    answer: str


def build(llm):
    def gather(state: State):
        sources = ("the health office", "the water works")
        return {"findings": [llm.invoke(f"What would {who} say? {state['question']}").content for who in sources]}

    def answer(state: State):
        found = "\n\n".join(
            f"## Finding {number}\n<finding>\n{text}\n</finding>" for number, text in enumerate(state["findings"], 1)
        )
        return {"answer": llm.invoke(f"# Question\n{state['question']}\n\n# Known\n{found}\n\nAnswer.").content}

    graph = StateGraph(State).add_node("gather", gather).add_node("answer", answer)
    return graph.add_edge(START, "gather").add_edge("gather", "answer").add_edge("answer", END).compile()

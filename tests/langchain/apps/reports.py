"""Reports of several analysts in one f-string, under other headings and in another order for each reader."""

from typing import TypedDict

from langgraph.graph import END, START, StateGraph

INPUT = {"company": "Acme Rockets"}
MORE = [
    {"company": name}
    for name in (
        "Blue Harbour Shipping",
        "Northwind Bicycles",
        "Old Mill Bakeries",
        "Silver Birch Paper",
        "Lantern Street Books",
        "Green Valley Dairies",
        "Stonebridge Clocks",
    )
]


class State(TypedDict, total=False):
    company: str
    market: str
    news: str
    bull: str
    bear: str


def build(llm):
    def market(state: State):
        return {"market": llm.invoke(f"Write a market report on {state['company']}.").content}

    def news(state: State):
        return {"news": llm.invoke(f"Sum up this week's news of {state['company']}.").content}

    def bull(state: State):
        prompt = f"""You are a bull analyst who argues for {state["company"]}.
Market research report: {state["market"]}
Latest world affairs news: {state["news"]}
Give your argument."""
        return {"bull": llm.invoke(prompt).content}

    def bear(state: State):
        prompt = f"""You are a bear analyst who argues against {state["company"]}.
News of the week: {state["news"]}
What the market does: {state["market"]}
Give your argument."""
        return {"bear": llm.invoke(prompt).content}

    graph = StateGraph(State)
    for node in (market, news, bull, bear):
        graph.add_node(node.__name__ + "_analyst", node)
    names = [START, "market_analyst", "news_analyst", "bull_analyst", "bear_analyst", END]
    for before, after in zip(names, names[1:], strict=False):
        graph.add_edge(before, after)
    return graph.compile()

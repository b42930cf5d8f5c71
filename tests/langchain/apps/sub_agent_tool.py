"""A researcher is a tool of its lead."""

from langchain.agents import create_agent
from langchain_core.tools import tool

INPUT = {"messages": [("user", "Why do cats purr? Ask your researcher.")]}
MORE = [
    {"messages": [("user", text)]}
    for text in (
        "Why do leaves turn red? Ask your researcher.",
        "How do bats find their way? Ask your researcher.",
        "What makes the sea salty? Ask your researcher.",
        "Why do onions make us cry? Ask your researcher.",
        "How do magnets work? Ask your researcher.",
        "What are clouds made of? Ask your researcher.",
        "Why is glass transparent? Ask your researcher.",
    )
]


def build(llm):
    researcher = create_agent(llm, [], system_prompt="You are a careful researcher.", name="researcher")

    @tool
    def conduct_research(topic: str) -> str:
        """Have a researcher look into a topic."""
        return researcher.invoke({"messages": [("user", f"Look into this: {topic}")]})["messages"][-1].content

    return create_agent(llm, [conduct_research], system_prompt="You lead a team of researchers.", name="lead")

"""langgraph-supervisor as it comes from the index."""

from langchain.agents import create_agent
from langgraph_supervisor import create_supervisor

INPUT = {"messages": [("user", "Write one line about rain.")]}


def build(llm):
    writer = create_agent(llm, [], system_prompt="You write.", name="writer")
    return create_supervisor([writer], model=llm, prompt="You supervise a writer.").compile()

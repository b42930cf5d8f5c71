"""`create_agent` of LangChain, with tools and an answer of a fixed form."""

from langchain.agents import create_agent
from langchain_core.tools import tool
from pydantic import BaseModel

INPUT = {"messages": [("user", "What is 3 plus 4?")]}


class Answer(BaseModel):
    """The result."""

    value: int


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def build(llm):
    return create_agent(llm, [add], system_prompt="You add numbers.", response_format=Answer, name="adder")

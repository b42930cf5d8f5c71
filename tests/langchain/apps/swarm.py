"""langgraph-swarm as it comes from the index."""

from langchain.agents import create_agent
from langgraph_swarm import create_handoff_tool, create_swarm

INPUT = {"messages": [("user", "I would like to speak to Bob.")]}


def build(llm):
    alice = create_agent(llm, [create_handoff_tool(agent_name="bob")], system_prompt="You are Alice.", name="alice")
    bob = create_agent(llm, [], system_prompt="You are Bob, and speak like a pirate.", name="bob")
    return create_swarm([alice, bob], default_active_agent="alice").compile()

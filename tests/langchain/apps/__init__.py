"""Small LangGraph apps, written as their users write them: `build(llm)` and an `INPUT`."""

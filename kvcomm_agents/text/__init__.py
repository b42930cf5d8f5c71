"""Text: messages to prompt ids, tools and JSON, tokens back to text."""

"""What the chat clients of all frameworks share."""

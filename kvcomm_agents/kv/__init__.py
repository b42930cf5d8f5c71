"""KV as data: blocks of it, where a model keeps it, and how it is found again by prefix and by content."""

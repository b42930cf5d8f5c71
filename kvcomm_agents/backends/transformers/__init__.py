"""The transformers backend: any plan in one forward pass, many requests in one batch."""

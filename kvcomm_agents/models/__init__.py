"""Models: a name becomes a folder, weights and a tokenizer."""

"""JSON schemas as grammars: what a schema allows, in answers that end."""

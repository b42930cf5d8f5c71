"""Backend: what policy may ask of an engine that executes prefill plans. The seam between the two."""

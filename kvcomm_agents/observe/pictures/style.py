"""Colours and words of the pictures, the same in figures and pages."""

from __future__ import annotations

KINDS = {"exact": "#2f78b7", "corrected": "#e8973a", "computed": "#98a2ad"}
"""What was done to a token. Corrected runs are hatched too: colour alone is not for every eye."""

PHASE_COLORS = {
    "queue": "#d3d8de",
    "match": "#8e6bbf",
    "assemble": "#2f78b7",
    "forward": "#98a2ad",
    "decode": "#4fa36c",
}

KIND_WORDS = {
    "exact": "placed exactly: this agent's context began with the same tokens before, and their KV was taken over "
    "bit for bit",
    "corrected": "placed and corrected: another context's KV was moved here and adjusted, without reading the text "
    "again; approximate",
    "computed": "computed: read by the model, as without any reuse",
}
PHASE_WORDS = {
    "queue": "waiting for the model",
    "match": "making the prompt and finding stored KV",
    "assemble": "moving stored KV into the prompt",
    "forward": "the model reads the tokens that are computed",
    "decode": "the model writes the answer",
}

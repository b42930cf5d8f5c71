"""RAG: four passages, which each reader has in another order; the last agent reads none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data import load_rows
from ..rag import lookups
from ..team import QUESTION, Agent, Span, Team

PASSAGES, WORDS = 4, 60


def _texts(count: int, folder: Path | None) -> Sequence[Mapping[str, str]]:
    found = lookups(load_rows("musique", folder, count)[:count], PASSAGES, WORDS)
    return [lookup.texts for lookup in found]


A, B, C, D = (Span(f"passage {number}") for number in range(1, PASSAGES + 1))

TEAM = Team(
    "rag",
    (
        Agent(
            "Retriever",
            "You look through passages for a reader who has no time. Say which of them bear on the question, and quote"
            " the words that matter. Do not answer the question.",
            (
                *("Question: ", Span(QUESTION), "\nPassage A: ", A, "\nPassage B: ", B, "\nPassage C: ", C),
                *("\nPassage D: ", D, "\nRelevant are:"),
            ),
        ),
        Agent(
            "Answerer",
            "Answer questions from the given passages only. If they do not hold the answer, reply that it cannot be"
            " found. Give the answer in a few words first, then one sentence of evidence.",
            (
                *("Here is what was found.\n[1] ", B, "\n[2] ", A, "\n[3] ", D, "\n[4] ", C),
                *("\n\nThe retriever remarks: ", Span("Retriever"), "\n\nNow the question: ", Span(QUESTION)),
                "\nAnswer:",
            ),
        ),
        Agent(
            "Checker",
            "You check answers against sources. For every claim in the answer name the source that supports it, or say"
            " that none does. You are strict: what is only likely is unsupported. Close with SUPPORTED or UNSUPPORTED.",
            (
                *("Asked was: ", Span(QUESTION), "\nThe reply under examination is this: ", Span("Answerer")),
                *("\nSources follow.\nSource one: ", A, "\nSource two: ", B, "\nSource three: ", C),
                *("\nSource four: ", D, "\nGive your finding."),
            ),
        ),
        Agent(
            "Clerk",
            "You write the final letter to the customer, friendly and short, from the material of your colleagues."
            " Never mention passages, sources or colleagues; never promise anything.",
            (
                *("Customer wrote: ", Span(QUESTION), "\nColleague's reply: ", Span("Answerer")),
                *("\nAnother colleague's finding: ", Span("Checker"), "\nLetter:"),
            ),
        ),
    ),
    _texts,
)

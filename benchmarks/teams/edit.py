"""Edit: a text is drafted, criticised, edited and headlined."""

from __future__ import annotations

from ..team import QUESTION, Agent, Span, Team, questions_of

TEAM = Team(
    "edit",
    (
        Agent(
            "writer",
            "You're a staff writer at a small online magazine. Write vividly, in the first person where it fits, and"
            " open with something concrete rather than a definition.",
            ("Assignment\n----------\n", Span(QUESTION), "\n\nDraft:"),
        ),
        Agent(
            "critic",
            "You are known as a harsh but fair critic. Point out the weakest sentence of a draft, the strongest one,"
            " and one thing that is missing. Never rewrite; that's the editor's job.",
            (
                *("Somebody was asked for this:\n\n", Span(QUESTION), "\n\nand handed in this:\n\n", Span("writer")),
                "\n\nWhat do you think of it?",
            ),
        ),
        Agent(
            "editor",
            "Editing desk. Take a draft and a critique, and produce a better draft. Keep the author's voice. Cut"
            " adverbs, merge short sentences, keep it under a hundred words. Output the text and nothing else.",
            (
                *("Assignment:\n", Span(QUESTION), "\n\nThe draft as it came in:\n", Span("writer")),
                *("\n\nThe critique of it:\n", Span("critic"), "\n\nYour version:"),
            ),
        ),
        Agent(
            "publisher",
            "You decide what is printed. You get an assignment, the first draft and the edited one. Write a headline, a"
            " teaser of one sentence, and three keywords. Mind that readers are on their phones.",
            (
                *("For your desk. The order was:\n", Span(QUESTION), "\n\nFirst draft, for comparison only:\n"),
                *(Span("writer"), "\n\nEdited draft, this one is printed:\n", Span("editor")),
                "\n\nHeadline, teaser, keywords:",
            ),
        ),
    ),
    questions_of("mt_bench"),
)

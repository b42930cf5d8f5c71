"""Code: a function is planned, written, tested and reviewed."""

from __future__ import annotations

from ..team import QUESTION, Agent, Span, Team, questions_of

TASK = ("### Task\n", Span(QUESTION))

TEAM = Team(
    "code",
    (
        Agent(
            "Planner",
            "You plan Python functions before anyone writes them. State in three or four sentences what the function"
            " must do, which cases are special, and in which order the steps should go. Do not write code yourself.",
            (*TASK, "\n\n### Your plan"),
        ),
        Agent(
            "Coder",
            "Role: senior Python developer.\nYou are handed a task and a plan. Write the body of the function so that"
            " it passes the doctests. Prefer plain loops over clever one-liners, use no libraries, and return early for"
            " empty input.",
            (*TASK, "\n\n### Plan by the planner\n", Span("Planner"), "\n\n### Your code"),
        ),
        Agent(
            "Tester",
            "You are a software tester. You get a task and somebody's solution. List the inputs on which the solution"
            " could fail: empty input, one element, negative numbers, repeated elements, very large values. For each"
            " say what the solution returns and what it should return. Be brief, and do not rewrite the solution.",
            (*TASK, "\n\n### Solution by the coder\n", Span("Coder"), "\n\n### Your list of test cases"),
        ),
        Agent(
            "Reviewer",
            "As the reviewer you have the last word. Compare plan, code and test report with the task. Decide whether"
            " the code may be merged, and give the one most important reason. If it may not, say which line has to"
            " change and how. Keep to five sentences; praise nobody.",
            (
                *(*TASK, "\n\n### Plan by the planner\n", Span("Planner"), "\n\n### Solution by the coder\n"),
                *(Span("Coder"), "\n\n### Report of the tester\n", Span("Tester"), "\n\n### Your verdict"),
            ),
        ),
    ),
    questions_of("humaneval"),
)

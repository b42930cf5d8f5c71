"""The tasks can be solved, and the checker tells a solution from what is none."""

from __future__ import annotations

import pytest

from coding_tasks import TASKS, Task, check, extract_code

SOLUTIONS = {
    "merge-shifts": """
def merge_shifts(shifts):
    merged = []
    for start, end in sorted(shifts):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
""",
    "ticket-change": """
def change(paid, price, coins):
    left, back = paid - price, {}
    for coin in sorted(coins, reverse=True):
        n = min(coins[coin], left // coin) if left > 0 else 0
        if n:
            back[coin] = n
            left -= n * coin
    return back if left == 0 else None
""",
    "snake-rows": """
def snake_rows(grid):
    return [x for i, row in enumerate(grid) for x in (row[::-1] if i % 2 else row)]
""",
    "quiet-streak": """
def quiet_streak(levels, limit):
    best = run = 0
    for level in levels:
        run = run + 1 if level < limit else 0
        best = max(best, run)
    return best
""",
    "shelf-labels": """
def shelf_labels(titles):
    seen, labels = {}, []
    for title in titles:
        label = "".join(word[0].upper() for word in title.split())
        seen[label] = seen.get(label, 0) + 1
        labels.append(label if seen[label] == 1 else f"{label}-{seen[label]}")
    return labels
""",
    "last-orders": """
def last_orders(events, n):
    queue = []
    for event in events:
        verb, _, name = event.partition(" ")
        if verb == "add":
            queue.append(name)
        elif verb == "serve" and queue:
            queue.pop(0)
        elif verb == "cancel" and name in queue:
            del queue[len(queue) - 1 - queue[::-1].index(name)]
    return queue[len(queue) - n:] if 0 < n < len(queue) else queue if n else []
""",
}


def test_names_are_unique() -> None:
    assert len({task.name for task in TASKS}) == len(TASKS)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_solution_passes_and_a_stub_does_not(task: Task) -> None:
    assert task.entry_point + "(" in task.prompt
    fenced = f"Here it is:\n```python\n{SOLUTIONS[task.name]}\n```\nIt is short."
    assert check(task, fenced).passed
    stub = check(task, f"def {task.entry_point}(*args):\n    return 'no'")
    assert not stub.passed
    assert "AssertionError" in stub.detail


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("I cannot do this.", "SyntaxError"),
        ("x = 1", "ImportError"),
        ("import sys\nsys.exit(0)", "before the tests did"),
        ("x = bytearray(1 << 33)", "MemoryError"),
    ],
)
def test_wrong_answers_say_why(answer: str, why: str) -> None:
    result = check(TASKS[0], answer)
    assert not result.passed
    assert why in result.detail


@pytest.mark.parametrize(
    "answer",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        # two busy threads, of which a clock of processor time may see two seconds a second
        "import hashlib, threading\n"
        "def spin():\n    while True: hashlib.sha256(bytes(1 << 20))\n"
        "threading.Thread(target=spin, daemon=True).start()\nspin()",
        "import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)",
    ],
    ids=["busy", "asleep", "two threads", "out of processor time"],
)
def test_an_answer_that_never_ends_is_stopped_and_told_so(answer: str) -> None:
    result = check(TASKS[0], answer, timeout_s=1)
    assert not result.passed
    assert result.detail == "ran longer than 1 s"


def test_what_it_says_is_the_same_every_time() -> None:
    first, second = (check(TASKS[0], "x = 1") for _ in range(2))
    assert first == second
    assert first.detail.endswith("(answer.py)")


def test_extract_code() -> None:
    assert extract_code("a = 1") == "a = 1"
    assert extract_code("so:\n```\na = 1\n```") == "a = 1\n"
    assert extract_code("```bash\nls\n```\n```python\na = 1\n```\n```py\nb = 2\n```") == "a = 1\n\nb = 2\n"
    assert extract_code("```python\na = 1") == "a = 1", "an answer that ran out of tokens"

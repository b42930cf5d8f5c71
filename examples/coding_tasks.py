"""Small programming tasks, and a checker that runs what a model wrote in a process with little time and memory.

The limits stop accidents (endless loops, huge lists). They are no sandbox: the code can read and
write what the user can.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)

# Runs first in the child, so that the parent needs no `preexec_fn`, which is unsafe beside threads.
_LIMITS = """\
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds} + 1))
    resource.setrlimit(resource.RLIMIT_AS, ({bytes}, {bytes}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
except (ImportError, ValueError, OSError):
    pass  # not on this platform; the parent's clock still holds
"""


@dataclass(frozen=True, slots=True)
class Task:
    """One function to write.

    Args:
        name: short, unique.
        prompt: what is asked, in words.
        entry_point: name of the function that `tests` call.
        tests: lines of Python, each an assertion.
    """

    name: str
    prompt: str
    entry_point: str
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Whether every test passed; if not, `detail` is the last line that Python wrote about it."""

    passed: bool
    detail: str = ""


def extract_code(text: str) -> str:
    """The code in an answer: its fenced blocks marked Python, else all fenced blocks, else the whole text.

    A block that the answer breaks off in counts too.
    """
    blocks = _FENCE.findall(text)
    marked = [code for language, code in blocks if language.lower() in ("python", "py", "python3")]
    return "\n".join(marked or [code for _, code in blocks] or [text])


def check(task: Task, answer: str, timeout_s: float = 5.0, memory_mb: int = 512) -> CheckResult:
    """Run the code in `answer` and then the task's tests.

    Args:
        task: what was asked.
        answer: code, or a reply that holds it.
        timeout_s: seconds until the process is killed.
        memory_mb: most memory that it may ask for, where the platform can limit it.
    """
    too_long = CheckResult(False, f"ran longer than {timeout_s:g} s")
    limits = _LIMITS.format(seconds=max(1, round(timeout_s)), bytes=memory_mb << 20)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "answer.py").write_text(extract_code(answer), encoding="utf-8")
        # Imported under its own name, so that `if __name__ == "__main__"` in an answer does not run.
        tests = f"from answer import {task.entry_point}\n" + "\n".join(task.tests) + "\nprint('all passed')\n"
        (Path(folder) / "run.py").write_text(limits + tests, encoding="utf-8")
        try:
            run = subprocess.run(
                [sys.executable, "-B", "run.py"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return too_long
    # Its clock of processor time may strike before ours: it counts every thread, and in coarse ticks.
    if hasattr(signal, "SIGXCPU") and run.returncode == -signal.SIGXCPU:
        return too_long
    # The exit code alone would let an answer pass that calls `sys.exit(0)`.
    if run.returncode == 0 and run.stdout.decode(errors="replace").rstrip().endswith("all passed"):
        return CheckResult(True)
    # An import error names the folder, which is another one every time and tells an agent nothing.
    lines = run.stderr.decode(errors="replace").replace(f"{Path(folder).resolve()}{os.sep}", "").strip().splitlines()
    return CheckResult(False, lines[-1] if lines else f"ended with exit code {run.returncode} before the tests did")


TASKS = (
    Task(
        name="merge-shifts",
        prompt=(
            "Write a Python function merge_shifts(shifts). Each shift is a pair (start, end) of whole "
            "hours with start < end. Shifts may come in any order, and may overlap or touch. Return a "
            "sorted list of pairs that covers the same hours with as few pairs as possible. An empty list "
            "gives an empty list."
        ),
        entry_point="merge_shifts",
        tests=(
            "assert merge_shifts([]) == []",
            "assert merge_shifts([(9, 12)]) == [(9, 12)]",
            "assert merge_shifts([(13, 15), (9, 12)]) == [(9, 12), (13, 15)]",
            "assert merge_shifts([(9, 12), (12, 14)]) == [(9, 14)]",
            "assert merge_shifts([(1, 10), (2, 3), (9, 11)]) == [(1, 11)]",
        ),
    ),
    Task(
        name="ticket-change",
        prompt=(
            "Write a Python function change(paid, price, coins). A ticket machine was paid `paid` cents "
            "for a ticket of `price` cents and holds the coins in `coins`, a dict from the value of a "
            "coin to how many there are. Return the coins to give back as a dict of the same form, always "
            "taking the largest coin that fits and is left. Leave out coins that are not used. Return "
            "None if the change cannot be made in this way, or if too little was paid."
        ),
        entry_point="change",
        tests=(
            "assert change(100, 100, {50: 1}) == {}",
            "assert change(100, 30, {50: 1, 20: 2}) == {50: 1, 20: 1}",
            "assert change(100, 60, {50: 3, 20: 1, 10: 5}) == {20: 1, 10: 2}",
            "assert change(100, 60, {50: 1}) is None",
            "assert change(10, 60, {50: 1}) is None",
        ),
    ),
    Task(
        name="snake-rows",
        prompt=(
            "Write a Python function snake_rows(grid) that reads a grid, given as a list of rows, like a "
            "snake: the first row from left to right, the second from right to left, the third from left "
            "to right, and so on. Return one flat list. Rows may have different lengths, and the grid may "
            "be empty."
        ),
        entry_point="snake_rows",
        tests=(
            "assert snake_rows([]) == []",
            "assert snake_rows([[1, 2, 3]]) == [1, 2, 3]",
            "assert snake_rows([[1, 2], [3, 4], [5, 6]]) == [1, 2, 4, 3, 5, 6]",
            "assert snake_rows([['a'], [], ['b', 'c']]) == ['a', 'b', 'c']",
        ),
    ),
    Task(
        name="quiet-streak",
        prompt=(
            "Write a Python function quiet_streak(levels, limit). `levels` holds one noise level for "
            "every minute. Return the length of the longest run of neighbouring minutes in which every "
            "level is below `limit`, or 0 if there is none."
        ),
        entry_point="quiet_streak",
        tests=(
            "assert quiet_streak([], 5) == 0",
            "assert quiet_streak([1, 2, 3], 5) == 3",
            "assert quiet_streak([5, 6, 7], 5) == 0",
            "assert quiet_streak([1, 9, 1, 2, 9, 1, 2, 3], 5) == 3",
        ),
    ),
    Task(
        name="shelf-labels",
        prompt=(
            "Write a Python function shelf_labels(titles). For every title, in order, return a label made "
            "of the first letters of its words in upper case. If a label was already given to an earlier "
            "title, append -2 to the second one, -3 to the third one, and so on. Words are separated by "
            "white space."
        ),
        entry_point="shelf_labels",
        tests=(
            "assert shelf_labels([]) == []",
            "assert shelf_labels(['war and peace']) == ['WAP']",
            "assert shelf_labels(['red dog', 'raw data', 'big sky', 'rye']) == ['RD', 'RD-2', 'BS', 'R']",
            "assert shelf_labels(['  emma  ']) == ['E']",
        ),
    ),
    Task(
        name="last-orders",
        prompt=(
            "Write a Python function last_orders(events, n). `events` is a list of strings in the order "
            "in which they happened: 'add NAME' puts an order at the end of the queue, 'cancel NAME' "
            "takes the newest order of that name out of it, and 'serve' takes out the oldest order. "
            "Events that find nothing to take out are ignored. Return the names of the last n orders "
            "still in the queue, oldest first."
        ),
        entry_point="last_orders",
        tests=(
            "assert last_orders([], 2) == []",
            "assert last_orders(['add ann', 'add bob', 'add cy'], 2) == ['bob', 'cy']",
            "assert last_orders(['add ann', 'add bob', 'add ann', 'cancel ann'], 5) == ['ann', 'bob']",
            "assert last_orders(['serve', 'add ann', 'serve', 'cancel bob', 'add cy'], 1) == ['cy']",
            "assert last_orders(['add ann'], 0) == []",
        ),
    ),
)

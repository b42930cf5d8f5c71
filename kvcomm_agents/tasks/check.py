"""Runs an answer against its task's tests, in a process with little time and memory.

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

from .problems import Task

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

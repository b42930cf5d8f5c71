"""A few small programming tasks, and a checker that runs an answer in a process of its own."""

from __future__ import annotations

from .check import CheckResult, check, extract_code
from .problems import TASKS, Task

__all__ = ["TASKS", "CheckResult", "Task", "check", "extract_code"]

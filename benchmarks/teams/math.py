"""Math: the measured chain, in which each agent reads the question and all answers before its own."""

from __future__ import annotations

from ..team import Team, chain, questions_of

TEAM = Team("math", chain(), questions_of("gsm8k"))

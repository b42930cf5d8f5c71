"""Teams whose agents share no prompt: different domains, numbers of agents and orders of what is read."""

from __future__ import annotations

from ..team import Team
from . import code, desk, edit, math, rag

TEAMS: dict[str, Team] = {team.name: team for team in (math.TEAM, rag.TEAM, code.TEAM, edit.TEAM, desk.TEAM)}

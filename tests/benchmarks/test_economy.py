"""What reuse saves an app from its first call on: on a tiny random model, and on rows made by hand."""

import json
from dataclasses import replace

import pytest

from benchmarks import economy, served, workloads
from benchmarks.columns import NAMESPACE
from benchmarks.dense import DenseAnswers, apart, score
from benchmarks.economy import FIRST, Served, app_figures, serve, tables
from benchmarks.options import EconomyOptions
from benchmarks.seen import LEAST, Seen
from benchmarks.team import QUESTION, Agent, Span, Team
from benchmarks.teams import TEAMS
from benchmarks.workloads import NAMES, load_calls, team_calls
from kvcomm_agents.backend import Divergence
from kvcomm_agents.config import EngineConfig
from kvcomm_agents.engine.core import EngineCore
from kvcomm_agents.engine.dictated import dictate
from kvcomm_agents.errors import ConfigError

WRITER, CRITIC, NOTES = Span("writer"), Span("critic"), Span("notes")
TRIO = Team(
    "trio",
    (
        Agent("writer", "You write.", ("About this: ", Span(QUESTION), " Go.")),
        Agent("critic", "Criticise what is written.", ("It was asked: ", Span(QUESTION), " They wrote: ", WRITER, ".")),
        Agent(
            "editor",
            "Edit it, please.",
            ("Of ", Span(QUESTION), " Notes: ", NOTES, " Draft: ", WRITER, " Critique: ", CRITIC, " Edit."),
        ),
    ),
    lambda count, folder: [
        {QUESTION: f"What do {count} boats in harbour {n} carry home?", "notes": "Boats carry fish, salt and timber."}
        for n in range(count)
    ],
)


@pytest.fixture
def calls(writer):
    backend = EngineCore(writer, EngineConfig()).backend
    return team_calls(writer, TRIO, DenseAnswers(writer, backend, 30), 5)


def make_core(loaded, **policy):
    return EngineCore(loaded, EngineConfig(embedder=served.EMBEDDER, reuse=replace(served.POLICY, **policy)))


def test_an_ideal_prefix_cache_computes_what_the_exact_mode_computes(writer, calls):
    rows = list(serve(make_core(writer, mode="exact"), calls))
    assert [row.computed for row in rows] == [row.cached for row in rows]
    assert {(row.placed, row.kl, row.saved) for row in rows} == {(0, 0.0, 0)}
    figures = app_figures(rows)
    assert figures["cost"]["whole"]["over_prefix_cache"] == 1.0
    assert figures["cost"]["whole"]["over_dense"] > 1.0
    assert figures["numbers"]["all"]["kl_mean"] is None


def test_readers_are_told_from_those_who_read_what_nobody_has_written(writer, calls):
    rows = list(serve(make_core(writer, mode="off"), calls))
    readers = [(row.request, row.agent) for row in rows if row.shared]
    assert readers == [(request, agent) for request in range(5) for agent in ("critic", "editor")]
    assert all(row.shared >= 30 for row in rows if row.agent == "critic")  # the answer, at least
    assert [row.number for row in rows if row.agent == "editor"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("busy", [False, True])
def test_measuring_is_not_charged_and_nothing_is_learned_from_it(writer, calls, lenient, busy):
    core, alone = make_core(writer), make_core(writer)
    rows = list(serve(core, calls, busy=busy))
    plans = []
    for call in (call for request in calls for call in request):
        done = dictate(alone, call.ids, call.output, agent=call.agent, namespace=NAMESPACE, cuts=call.cuts)
        plans.append((done.decision.rung_name, done.decision.plan.computed_tokens, done.decision.predicted))
        if not busy:
            alone.idle.finish()
    assert [(row.rung, row.computed, row.predicted) for row in rows] == plans
    account = alone.account(NAMESPACE)
    assert (rows[-1].saved, rows[-1].hidden) == (account.saved, account.spent_tokens)
    assert rows[-1].hidden == core.idle.stats.tokens
    assert (rows[-1].hidden == 0) is busy
    assert [row.hidden for row in rows] == sorted(row.hidden for row in rows)


def test_what_is_served_is_compared_with_dense_wherever_anything_approximate_was_placed(writer, calls):
    rows = list(serve(make_core(writer, mode="corrected"), calls))
    assert any(row.placed for row in rows)
    assert all((row.kl > 0) == (row.placed > 0) for row in rows)
    assert all(row.kl_max >= row.kl for row in rows)


def test_dense_is_no_distance_from_dense(writer, calls):
    backend, call = make_core(writer).backend, calls[0][1]
    scores = score(backend, call.ids, call.output)
    far = apart(backend, call.ids, call.output, scores, 8)
    assert (far.mean, far.top1) == (pytest.approx(0.0, abs=1e-6), 1.0)
    assert len(scores) == len(call.output) + 1
    assert isinstance(far, Divergence)


def row(request, number, *, computed, shared=0, placed=0, kl=0.0, saved=0, hidden=0, prompt=100, prefix=40):
    said = {"agent": "a", "output": 9, "rung": "raw32" if placed else "exact", "reason": "", "predicted": 0.01}
    tokens = {"prompt": prompt, "prefix": prefix, "shared": shared, "computed": computed, "placed": placed}
    return Served(
        request=request,
        number=number,
        **said,
        **tokens,
        kl=kl,
        kl_first=kl,
        kl_max=kl,
        saved=saved,
        hidden=hidden,
    )


def test_figures_charge_everything_and_stop_at_the_first_requests():
    rows = [
        row(0, 1, computed=60, hidden=30),
        row(0, 2, computed=20, shared=40, placed=40, kl=0.02, saved=40, hidden=30, prompt=120, prefix=60),
        row(0, 3, computed=60, shared=40, saved=40, hidden=190),
        row(FIRST, 4, computed=10, shared=40, placed=50, kl=0.04, saved=90, hidden=190),
    ]
    figures = app_figures(rows)
    cost, numbers = figures["cost"], figures["numbers"]
    assert cost["first"] == {
        "requests": 1,
        "charged": 140 + 190,
        "over_prefix_cache": 180 / 330,
        "over_dense": 320 / 330,
    }
    assert cost["whole"]["over_prefix_cache"] == 240 / 340
    assert cost["credit"] == 120  # the first prompt that was reused
    assert cost["excess"] == pytest.approx(190 - 120 - 0.1 * 40)
    assert cost["hidden_of_saved"] == pytest.approx(190 / 90)
    assert numbers["1"]["reused_share"] is None
    assert (numbers["2"]["reused_share"], numbers["3"]["reused_share"]) == (1.0, 0.0)
    assert numbers["all"]["reused_share"] == pytest.approx(2 / 3)
    assert numbers["all"]["kl_mean"] == pytest.approx(0.03)
    assert numbers["all"]["kl_max"] == 0.04
    assert figures["rungs"] == {"exact": 2, "raw32": 2}


def test_late_calls_of_an_agent_share_a_line_and_nothing_divides_by_zero():
    figures = app_figures([row(number, number + 1, computed=60) for number in range(FIRST + 3)])
    assert list(figures["numbers"]) == [*(str(number + 1) for number in range(FIRST)), "later", "all"]
    assert figures["numbers"]["later"]["calls"] == 3
    assert figures["cost"]["hidden_of_saved"] is None


def test_the_command_measures_teams_the_protocol_and_logs(session, monkeypatch, logs_folder, lenient):
    monkeypatch.setitem(workloads.TEAMS, "desk", TRIO)
    monkeypatch.setattr(workloads, "MAX_TOKENS", 30)
    kept = []
    session.keep = kept.append
    options = EconomyOptions(team="desk,magentic", questions=1, data=logs_folder, limit=1000)
    report = json.loads(json.dumps(economy.measure(options, session)))
    assert list(report["apps"]) == ["desk", "magentic"]
    assert len(kept) == 2
    assert [call["agent"] for call in report["apps"]["desk"]["calls"]] == ["writer", "critic", "editor"]
    assert {call["agent"] for call in report["apps"]["magentic"]["calls"]} == {"Orchestrator", "WebSurfer"}
    shown = list(tables(report))
    assert [shown_row[0] for shown_row in shown[0].rows] == ["1", "all"]
    assert [shown_row[0] for shown_row in shown[-2].rows] == ["desk", "magentic"]


def test_what_cannot_be_measured_is_told(session, logs_folder):
    with pytest.raises(ConfigError, match="there is no team chess"):
        economy.measure(EconomyOptions(team="chess"), session)
    with pytest.raises(ConfigError, match="mode='most'"):
        economy.measure(EconomyOptions(mode="most"), session)
    with pytest.raises(ConfigError, match="no call of autogen fits into 16 tokens"):
        economy.measure(EconomyOptions(team="autogen", questions=1, data=logs_folder, limit=16), session)
    with pytest.raises(ConfigError, match="17 tickets"):
        economy.measure(EconomyOptions(team="desk", questions=17), session)


def test_the_papers_protocol_is_one_of_the_workloads(session, logs_folder, monkeypatch):
    monkeypatch.setattr(workloads, "Protocol", lambda: workloads.protocol_calls.__globals__["Protocol"](3, 20, 40, 20))
    (request,) = load_calls("five", session, 1, logs_folder, 0)
    assert [call.agent for call in request] == ["agent 1", "agent 2", "agent 3"]


def test_answers_are_decoded_together_as_alone_and_kept_for_all_code(writer, calls, monkeypatch):
    backend = make_core(writer).backend
    prompts = [call.ids for request in calls for call in request]
    monkeypatch.setenv("KVCOMM_CACHE", "/nowhere/to/be/kept")  # what follows finds nothing there
    monkeypatch.setattr("benchmarks.kept.Kept.add", lambda self, row: self.rows.update({(row["prompt"],): row}))
    together = DenseAnswers(writer, backend, 30).of([*prompts, prompts[0]])
    alone = [DenseAnswers(writer, backend, 30).of([ids])[0] for ids in prompts]
    assert together == [*alone, alone[0]]
    assert len(set(together)) > 3


def test_kept_answers_are_used_whatever_the_code(writer, calls, monkeypatch):
    prompts, said = [call.ids for call in calls[0]], []
    monkeypatch.setattr("benchmarks.kept.CODE", ())
    again = DenseAnswers(writer, None, 30, said.append).of(prompts)  # without anything to decode with
    assert again == [call.output for call in calls[0]]
    assert said == ["dense-answers: 15 rows of an earlier run with these settings are used again"]
    with pytest.raises(AttributeError):
        DenseAnswers(writer, None, 29).of(prompts)


def test_contexts_are_seen_token_by_token():
    seen, own = Seen(), tuple(range(100, 160))
    assert (seen.prefix((1, 2, 3)), seen.shared("a", own, 0)) == (0, 0)
    seen.add("a", (1, 2, 3), own)
    assert seen.prefix((1, 2, 3)) == 2  # the last token is computed in any case
    assert seen.prefix((1, 2, 9, 9)) == 2
    assert seen.prefix((1, 2, 3, *own[:5], 7)) == 8
    prompt = (5, 5, *own[:LEAST], 6, *own[40 : 40 + LEAST - 5], 7)
    assert seen.shared("b", prompt, 0) == LEAST
    assert seen.shared("b", prompt, 8) == 0
    assert seen.shared("a", prompt, 0) == 0  # its own


@pytest.mark.parametrize("team", TEAMS.values(), ids=lambda team: team.name)
def test_teams_read_only_what_is_there_and_share_no_words_of_their_own(team):
    given, owned = {QUESTION, "handbook", *(f"passage {n}" for n in range(1, 5))}, set()
    for agent in team.agents:
        spans = {part.name for part in agent.user if isinstance(part, Span)}
        assert spans <= given
        assert isinstance(agent.user[0], str)
        assert isinstance(agent.user[-1], str)
        given.add(agent.name)
        assert agent.system not in owned
        owned.add(agent.system)
    others = {agent.system for other in TEAMS.values() if other is not team for agent in other.agents}
    assert not owned & others
    assert team.name in NAMES


def test_teams_differ_in_size_and_the_desk_needs_no_data():
    assert sorted({len(team.agents) for team in TEAMS.values()}) == [4, 6]
    texts = TEAMS["desk"].texts(16, None)
    assert len({text[QUESTION] for text in texts}) == 16
    assert len({text["handbook"] for text in texts}) == 1

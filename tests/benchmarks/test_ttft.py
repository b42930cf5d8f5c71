"""Time to first token on a tiny random model: what is served, what is charged, and the figures."""

import json

import pytest

from benchmarks import served, ttft
from benchmarks.calls import Protocol, protocol_calls
from benchmarks.columns import Column, LostColumnError, Served
from benchmarks.figures import figures_of, measure_floors
from benchmarks.logs import replay_calls
from benchmarks.options import TtftOptions
from benchmarks.peers import NAMES as PEERS
from benchmarks.peers import PeerSetting, start_peers
from benchmarks.plots.speed import plot_ttft
from benchmarks.runs import serve_all
from benchmarks.served import NAMES, make_column
from benchmarks.session import Session
from benchmarks.shapes import random_model
from kvcomm_agents.correction.embedding import TOKEN_MEAN
from kvcomm_agents.errors import ConfigError

PROTOCOL = Protocol(agents=3, prefix=40, question=60, output=30)


@pytest.fixture(scope="module")
def found(tiny, logs_folder):
    loaded = tiny("llama")
    calls = protocol_calls(loaded, PROTOCOL, 6, logs_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served, "EMBEDDER", TOKEN_MEAN)
        columns = [make_column(name, loaded) for name in NAMES]
    return loaded, serve_all(columns, calls, cold=4, positions=8)


def test_lengths_are_what_was_asked_for_and_answers_stand_in_later_prompts(tiny, logs_folder):
    for calls in protocol_calls(tiny("llama"), PROTOCOL, 2, logs_folder):
        assert [len(call.output) for call in calls] == [30] * 3
        grown = [len(call.ids) for call in calls]
        assert grown[2] - grown[1] == grown[1] - grown[0] > 30
        for place, call in enumerate(calls):
            text = " ".join(map(str, call.ids))
            for before in calls[:place]:
                assert " ".join(map(str, before.output)) in text


def test_a_run_that_needs_more_text_than_there_is_says_so(tiny, logs_folder):
    with pytest.raises(ConfigError, match="tokens are left"):
        protocol_calls(tiny("llama"), Protocol(question=5000), 9, logs_folder)
    with pytest.raises(ConfigError, match="prefix=0"):
        Protocol(prefix=0)


def test_every_column_serves_the_same_calls_and_exact_ones_say_the_same(found):
    _, run = found
    for call in {id(row.call): row.call for row in run.steady}.values():
        rows = {row.column: row for row in run.steady if row.call is call}
        assert set(rows) == set(NAMES)
        assert len({rows[name].served.token for name in ("generate", "dense", "prefix", "exact")}) == 1
        for row in rows.values():
            assert row.served.computed + row.served.exact + row.served.corrected == len(call.ids)
            assert row.served.ttft_s >= row.served.forward_s
        assert rows["prefix"].served.exact >= PROTOCOL.prefix
        assert rows["exact"].served.corrected == 0


def test_corrected_reuse_places_what_others_said_and_its_divergence_is_of_this_run(found):
    _, run = found
    later = [row for row in run.steady if row.column == "corrected" and row.call.agent != "agent 1"]
    assert all(row.served.corrected >= PROTOCOL.output for row in later)
    assert all(row.kl is not None and row.kl > 0 for row in later)
    assert all(row.kl == 0 for row in run.steady if row.column in ("dense", "exact"))


def test_in_the_cold_phase_only_those_who_learn_are_shown_and_their_hidden_work_is_charged(found):
    loaded, run = found
    assert {row.column for row in run.cold} == {"guarded", "corrected"}
    figures = json.loads(json.dumps(figures_of(loaded, run, measure_floors(loaded, run))))
    all_of_it = figures["charged"]["guarded"]["all"]
    assert all_of_it["calls"] == 18
    assert all_of_it["passes"] > 0
    assert all(seconds > 0 for seconds in all_of_it["hidden_s"].values())
    assert all_of_it["speedup_charged_over_dense"] < all_of_it["speedup_over_dense"]
    assert figures["columns"]["corrected"]["calls_reused"] == pytest.approx(2 / 3)
    assert figures["memory"]["held_bytes_most"]["guarded"] > figures["memory"]["held_bytes_most"]["dense"] == 0
    floor = figures["agents"][2]["floor"]["corrected"]
    assert floor["copy_s"] > 0
    assert floor["total_s"] == floor["forward_s"] + floor["copy_s"]
    assert floor["attended_s"] > floor["copy_s"]
    assert not {"dense", "prefix"} & set(figures["agents"][2]["floor"])


def test_the_command_measures_shows_and_draws(tiny, logs_folder, tmp_path):
    small = {"agents": 2, "prefix": 40, "question": 60, "output": 30, "cold": 3, "steady": 1, "data": logs_folder}
    options = TtftOptions(columns="dense,prefix,corrected", peers="vllm", **small)
    report = json.loads(json.dumps(ttft.measure(options, Session(lambda: tiny("llama")))))
    assert list(report["columns"]) == ["dense", "prefix", "corrected"]
    assert "vllm" in report["skipped"]
    assert "paper_speedup_over_dense" not in report
    *shown, last = ttft.tables(report)
    assert len(shown) == 7
    assert shown[0].rows[1][:2] == ["agent 2", str(report["agents"][1]["prompt"])]
    assert last.startswith("vllm was skipped")
    pytest.importorskip("matplotlib")
    plot_ttft(report, tmp_path / "ttft.png")
    assert (tmp_path / "ttft.png").stat().st_size > 1000


def test_logs_are_replayed_from_a_cold_start(tiny, logs_folder, tmp_path):
    options = TtftOptions(columns="dense,exact", peers="none", replay="autogen", logs=2, data=logs_folder)
    report = ttft.measure(options, Session(lambda: tiny("llama")))
    assert report["setting"]["what"] == "2 logs of autogen, contexts up to 4096 tokens"
    assert len(report["steady"]) == 2 * 6
    assert len(list(ttft.tables(report))) == 4
    with pytest.raises(ConfigError, match="raise --limit"):
        ttft.measure(TtftOptions(replay="autogen", logs=1, limit=20, data=logs_folder), Session(lambda: tiny("llama")))


def test_a_replay_calls_agents_as_the_app_did(tiny, logs_folder):
    loaded = tiny("llama")
    calls = replay_calls(loaded, "autogen", 2, logs_folder)[1]
    assert [call.agent for call in calls] == ["Coder", "Planner", "Coder"]  # nobody is asked before anything was said
    assert loaded.tokenizer.decode(calls[0].output) in loaded.tokenizer.decode(calls[1].ids)
    web = replay_calls(loaded, "magentic", 1, logs_folder, limit=2000)[0]
    assert [call.agent for call in web] == ["Orchestrator", "Orchestrator", "WebSurfer"]
    heard = loaded.tokenizer.decode(web[2].ids)
    assert "open the page" in heard
    assert "Ledger: go on" not in heard
    assert replay_calls(loaded, "autogen", 1, logs_folder, limit=100) == [[]]
    with pytest.raises(ConfigError, match="there are 40"):
        replay_calls(loaded, "autogen", 41, logs_folder)


def test_growing_conversations_are_found_by_the_prefix_cache(tiny, logs_folder):
    loaded = tiny("llama")
    columns = [make_column(name, loaded) for name in ("dense", "prefix", "exact")]
    run = serve_all(columns, replay_calls(loaded, "autogen", 1, logs_folder))
    again = [row for row in run.steady if row.call.agent == "Coder"][-3:]
    by_column = {row.column: row.served for row in again}
    own = len(again[0].call.output)
    assert by_column["prefix"].exact == by_column["exact"].exact > own
    assert by_column["prefix"].token == by_column["dense"].token


def test_peers_that_are_not_here_are_skipped_with_a_reason(tiny, tmp_path):
    broken = tmp_path / "server"
    broken.write_text("#!/bin/sh\necho no such weights\nexit 3\n")
    broken.chmod(0o755)
    setting = PeerSetting(llama_server=str(broken), gguf=tmp_path / "x.gguf", vllm_python="/no/python")
    columns, skipped = start_peers(PEERS, tiny("llama"), setting)
    assert columns == []
    assert "no such weights" in skipped["llama.cpp"]
    assert "folder" in skipped["vllm"]
    _, skipped = start_peers(("llama.cpp",), tiny("llama"), PeerSetting(llama_server=str(broken)))
    assert "--gguf" in skipped["llama.cpp"]


class Mortal(Column):
    """Serves one call, and then is gone."""

    name = "mortal"
    left = 1

    def first(self, call):
        self.left -= 1
        if self.left < 0:
            raise LostColumnError("it is gone")
        return Served(1.0, computed=len(call.ids))

    def rest(self, call, first, positions):
        return first


def test_a_peer_that_is_lost_leaves_the_others_alone(tiny, logs_folder):
    loaded = tiny("llama")
    calls = replay_calls(loaded, "autogen", 1, logs_folder)
    run = serve_all([make_column("dense", loaded), Mortal()], calls)
    assert run.lost == {"mortal": "it is gone"}
    assert "mortal" not in run.held
    assert [row.column for row in run.steady] == ["dense"] * len(calls[0])


@pytest.mark.parametrize(("field", "word"), [("columns", "column other"), ("peers", "peer other")])
def test_unknown_names_are_refused(tiny, field, word):
    with pytest.raises(ConfigError, match=f"no {word}; choose from"):
        ttft.measure(TtftOptions(**{field: "other"}), Session(lambda: tiny("llama")))
    with pytest.raises(ConfigError, match="llama-8b"):
        random_model("other")

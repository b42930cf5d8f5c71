"""Lanes never overlap, and the axis keeps the order of time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvcomm_agents import RequestReport
from kvcomm_agents.observe.pictures.timeline import axis_of, lanes_of
from kvcomm_agents.observe.report_file import Recorded

CALLS = st.lists(
    st.tuples(st.sampled_from("abc"), st.floats(0, 1e5), st.floats(1e-3, 50)).map(
        lambda call: RequestReport(call[0], 1, 1, started_at=1.7e9 + call[1], total_s=call[2])
    ),
    min_size=1,
    max_size=30,
)


@given(CALLS)
def test_every_call_is_in_one_lane_of_its_agent_and_overlaps_none(reports: list[RequestReport]) -> None:
    lanes = lanes_of(reports)
    assert sorted(index for lane in lanes for index in lane.calls) == list(range(len(reports)))
    for lane in lanes:
        assert {reports[index].agent for index in lane.calls} == {lane.agent}
        for one, two in zip(lane.calls, lane.calls[1:], strict=False):
            assert reports[one].started_at + reports[one].total_s <= reports[two].started_at + 2e-3


@given(CALLS)
def test_the_axis_is_monotonic_and_shows_every_call(reports: list[RequestReport]) -> None:
    axis, origin = axis_of(reports), min(report.started_at for report in reports)
    moments = sorted(
        moment for one in reports for moment in (one.started_at - origin, one.started_at - origin + one.total_s)
    )
    places = [axis(moment) for moment in moments]
    assert all(0 <= place <= 1 + 1e-6 for place in places)
    assert all(a <= b + 1e-9 for a, b in zip(places, places[1:], strict=False))
    for report in reports:
        at = report.started_at - origin
        assert axis(at + report.total_s) - axis(at) >= 0.5 * report.total_s / axis.width


def test_idle_time_is_cut_out(recorded: Recorded) -> None:
    axis = axis_of(recorded.requests)
    ((left, right, seconds),) = axis.cuts
    assert 36 < seconds < 38
    assert right - left < 0.05
    assert len(axis.ticks) <= 12


def test_calls_of_one_agent_at_the_same_time_are_side_by_side() -> None:
    reports = [RequestReport("a", 1, 1, started_at=start, total_s=2.0) for start in (0.0, 1.0, 2.0)]
    assert [lane.calls for lane in lanes_of(reports)] == [(0, 2), (1,)]


def test_nothing_is_drawn_of_nothing() -> None:
    assert axis_of([]).cuts == []
    assert lanes_of([]) == []

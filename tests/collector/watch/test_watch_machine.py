"""What opens, updates and resolves a finding, and what must not."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.watch.machine import BLIND_ID, advance, advance_blind, needs_of, standing
from collector.watch.model import MINUTE_NS, Coverage, Event, Marks, Need, Patience, State
from collector.watch.statefile import Memory, dump, load
from tests.collector.watch.watch_rows import START, S, finding, reports

SPANS_OF_PAY = ("spans", "pay")


def kinds(events: list[Event]) -> list[str]:
    return [event.what for event in events]


def opened(row: dict[str, Any] | None = None, coverage: Coverage | None = None) -> State:
    state, events = advance(State(), [row or finding()], coverage or reports(1), START + 5 * S)
    assert kinds(events) == ["opened"]
    return state


def test_a_proof_opens_at_once_and_is_not_repeated() -> None:
    state = opened()

    for second in (10, 15, 20):
        state, events = advance(state, [finding()], reports(1), START + second * S)
        assert events == []


def test_statistics_open_after_they_held_for_10_seconds() -> None:
    row = finding(kind="latency", reasons=("latency_shift",))
    state, events = advance(State(), [row], reports(1), START)
    assert events == []
    state, events = advance(state, [row], reports(1), START + 5 * S)
    assert events == []
    state, events = advance(state, [row], reports(1), START + 10 * S)
    assert kinds(events) == ["opened"]


def test_statistics_that_one_round_does_not_have_begin_anew() -> None:
    row = finding(kind="egress", reasons=("beacon",), callee=None, destination="203.0.113.9:443")
    state, _ = advance(State(), [row], reports(1), START)
    state, _ = advance(state, [], reports(1), START + 10 * S)
    state, events = advance(state, [row], reports(1), START + 15 * S)
    assert events == []
    _, events = advance(state, [row], reports(1), START + 30 * S)
    assert kinds(events) == ["opened"]


def test_unlisted_egress_is_a_proof_even_if_it_is_a_beacon_too() -> None:
    row = finding(kind="egress", reasons=("unlisted", "beacon"), callee=None, destination="203.0.113.9:443")
    assert kinds(advance(State(), [row], reports(1), START)[1]) == ["opened"]


@pytest.mark.parametrize(
    ("worse", "why"),
    [
        ({"severity": "high"}, "severity medium → high"),
        ({"reasons": ("unstamped", "mesh_bypass")}, "also mesh_bypass"),
        ({"count": 10}, "1 → 10 calls"),
    ],
)
def test_what_gets_worse_is_an_update_and_told_once(worse: dict[str, Any], why: str) -> None:
    state, events = advance(opened(), [finding(**worse)], reports(1), START + 10 * S)
    assert [(e.what, e.why) for e in events] == [("updated", why)]

    for row in (finding(**worse), finding(), finding(**worse)):  # it slides out of the window, and back
        state, events = advance(state, [row], reports(1), START + 15 * S)
        assert events == []


@pytest.mark.parametrize("same", [{"count": 9}, {"severity": "low"}, {"score": 0.9}, {"explanation": "other words"}])
def test_what_gets_no_worse_is_no_update(same: dict[str, Any]) -> None:
    assert advance(opened(), [finding(**same)], reports(1), START + 10 * S)[1] == []


def test_it_is_resolved_after_five_observed_minutes_without_it() -> None:
    state = opened()
    for minute in range(1, 6):
        state, events = advance(state, [], reports(minute), START + (minute * 60 + 35) * S)
        assert events == []
    _, events = advance(state, [], reports(6), START + 395 * S)
    assert [(e.what, e.why) for e in events] == [("resolved", "not seen in 5 minutes in which it would have been")]


def test_a_known_call_that_is_still_in_the_window_does_not_keep_it_open() -> None:
    _, events = advance(opened(), [finding()], reports(6), START + 395 * S)
    assert kinds(events) == ["resolved"]


def test_a_later_call_begins_the_count_anew() -> None:
    state, _ = advance(opened(), [], reports(5), START + 335 * S)
    later = finding(last_seen_unix_nano=START + 330 * S, count=2)
    state, events = advance(state, [later], reports(6), START + 395 * S)
    assert events == []
    state, events = advance(state, [later], reports(10), START + 640 * S)
    assert events == []
    _, events = advance(state, [later], reports(11), START + 700 * S)
    assert kinds(events) == ["resolved"]


def test_no_data_is_no_resolution() -> None:
    state = opened()
    state, events = advance(state, [], reports(1), START + 3600 * S)  # nobody has reported since
    assert events == []
    others = Coverage(
        {("spans", "web"): frozenset(range(START // MINUTE_NS, START // MINUTE_NS + 50))}, START // MINUTE_NS + 50
    )
    _, events = advance(state, [], others, START + 3600 * S)  # somebody has, but not who would have seen it
    assert events == []


def test_minutes_in_which_the_callee_did_not_report_do_not_count() -> None:
    state = opened()
    state, events = advance(state, [], reports(8, without=(2, 3, 4)), START + 500 * S)
    assert events == []
    _, events = advance(state, [], reports(9, without=(2, 3, 4)), START + 560 * S)
    assert kinds(events) == ["resolved"]


def test_a_proxys_log_that_ended_proves_nothing() -> None:
    both = (SPANS_OF_PAY, ("logs", "pay"))
    state = opened(coverage=reports(1, *both))
    state, events = advance(state, [], reports(60), START + 3700 * S)  # spans alone
    assert events == []


def test_the_callers_log_is_needed_only_while_the_caller_calls() -> None:
    row = finding()
    coverage = reports(1, SPANS_OF_PAY, ("spans", "web"), ("logs", "web"))
    assert needs_of(row, coverage) == (Need("spans", "pay"), Need("logs", "web", while_calling=True))
    _, events = advance(opened(coverage=coverage), [], reports(6), START + 395 * S)  # web is gone, pay reports
    assert kinds(events) == ["resolved"]


def test_dark_traffic_needs_flows() -> None:
    assert needs_of(finding(), reports(1, ("flows", "*"))) == (Need("flows", "*"),)


def test_a_second_episode_needs_a_later_call() -> None:
    state, events = advance(opened(), [], reports(6), START + 395 * S)
    state, again = advance(state, [finding()], reports(6), START + 400 * S)
    assert again == []
    state, again = advance(state, [finding(last_seen_unix_nano=START + 400 * S)], reports(6), START + 405 * S)
    assert kinds(again) == ["opened"]
    assert again[0].event_id.partition(".")[0] == events[0].event_id.partition(".")[0]
    assert again[0].event_id != events[0].event_id


def test_statistics_that_waver_after_their_resolution_open_nothing() -> None:
    row = finding(kind="latency", reasons=("latency_shift",))
    state, _ = advance(State(), [row], reports(1), START)
    state, _ = advance(state, [row], reports(1), START + 15 * S)
    state, events = advance(state, [], reports(6), START + 395 * S)
    assert kinds(events) == ["resolved"]
    for second in range(400, 500, 5):
        wavering = finding(kind="latency", reasons=("latency_shift",), last_seen_unix_nano=START + 20 * S)
        state, events = advance(state, [wavering], reports(6), START + second * S)
        assert events == []


def test_a_clock_that_runs_ahead_does_not_keep_it_open() -> None:
    state = opened(finding(last_seen_unix_nano=START + 10**18))
    _, events = advance(state, [], reports(6), START + 395 * S)
    assert kinds(events) == ["resolved"]


def test_what_nobody_can_observe_any_more_is_closed_as_unknown() -> None:
    week = Patience().forget_after_ns
    _, events = advance(opened(), [], reports(1), START + 5 * S + week)
    assert [(e.what, e.why[:7]) for e in events] == [("resolved", "unknown")]


def test_resolved_findings_are_forgotten_in_the_end() -> None:
    state, _ = advance(opened(), [], reports(6), START + 395 * S)
    state, _ = advance(state, [], reports(6), START + 395 * S + Patience().forget_after_ns)
    assert state.records == {}


def test_too_many_findings_are_counted() -> None:
    rows = [finding(callee=f"service-{n}") for n in range(5)]
    state, events = advance(State(), rows, reports(1), START, patience=Patience(most=3))
    assert (len(events), len(state.records), state.beyond) == (3, 3, 2)


def test_acknowledged_is_quiet_unless_it_gets_more_severe() -> None:
    state = opened()
    marks = Marks(acknowledged={finding()["finding_id"]: START + 6 * S})
    state, [more] = advance(state, [finding(count=100)], reports(1), START + 10 * S, marks=marks)
    state, [worse] = advance(state, [finding(count=100, severity="high")], reports(1), START + 15 * S, marks=marks)
    _, [over] = advance(state, [], reports(6), START + 395 * S, marks=marks)
    assert [(e.what, e.quiet, e.acknowledged) for e in (more, worse, over)] == [
        ("updated", True, True),
        ("updated", False, True),
        ("resolved", False, True),
    ]


def test_an_acknowledgement_ends_with_its_episode() -> None:
    marks = Marks(acknowledged={finding()["finding_id"]: START + 6 * S})
    state, _ = advance(opened(), [], reports(6), START + 395 * S, marks=marks)
    later = finding(last_seen_unix_nano=START + 400 * S)
    _, [again] = advance(state, [later], reports(6), START + 405 * S, marks=marks)
    assert (again.what, again.acknowledged, again.quiet) == ("opened", False, False)


def test_what_opened_in_a_silence_is_told_when_it_ends() -> None:
    marks = Marks(silenced={finding()["finding_id"]: START + 60 * S})
    state, [first] = advance(State(), [finding()], reports(1), START + 5 * S, marks=marks)
    assert (first.what, first.quiet) == ("opened", True)
    assert standing(state, marks, START + 6 * S) == []
    state, events = advance(state, [finding()], reports(1), START + 59 * S, marks=marks)
    assert events == []
    state, [told] = advance(state, [finding()], reports(1), START + 60 * S, marks=marks)
    assert (told.what, told.quiet, told.why) == ("updated", False, "a silence ended")
    assert len(standing(state, marks, START + 61 * S)) == 1
    assert advance(state, [finding()], reports(1), START + 65 * S, marks=marks)[1] == []


def test_whoever_was_told_of_the_opening_is_told_of_the_end_in_spite_of_a_silence() -> None:
    marks = Marks(silenced={finding()["finding_id"]: START + 3600 * S})
    _, [over] = advance(opened(), [], reports(6), START + 395 * S, marks=marks)
    assert (over.what, over.quiet) == ("resolved", False)


def test_what_opened_and_ended_in_a_silence_is_told_to_nobody() -> None:
    marks = Marks(silenced={finding()["finding_id"]: START + 3600 * S})
    state, _ = advance(State(), [finding()], reports(1), START + 5 * S, marks=marks)
    _, [over] = advance(state, [], reports(6), START + 395 * S, marks=marks)
    assert (over.what, over.quiet) == ("resolved", True)


def test_blindness_is_told_after_a_minute_and_resolves_nothing_but_itself() -> None:
    state = opened()
    state, events = advance_blind(state, "nobody answers", START + 10 * S)
    assert events == []
    state, events = advance_blind(state, "nobody answers", START + 70 * S)
    assert [(e.what, e.row["finding_id"]) for e in events] == [("opened", BLIND_ID)]
    state, events = advance_blind(state, "nobody answers", START + 600 * S)
    assert events == []
    state, events = advance(state, [], reports(1), START + 605 * S)
    assert [(e.what, e.row["finding_id"]) for e in events] == [("resolved", BLIND_ID)]
    assert [record.phase for record in state.records.values()] == ["open"]
    assert state.blind_since_unix_nano == 0


def test_what_was_not_looked_for_is_neither_resolved_nor_doubted() -> None:
    state, events = advance(opened(), [], reports(6), START + 395 * S, kinds={"egress", "latency"})
    assert (events, [r.phase for r in state.records.values()]) == ([], ["open"])
    _, events = advance(state, [], reports(6), START + 395 * S, kinds={"shadow"})
    assert kinds(events) == ["resolved"]


ROUND = st.tuples(
    st.lists(
        st.builds(
            finding,
            kind=st.sampled_from(["shadow", "latency", "egress"]),
            callee=st.sampled_from(["pay", "cart"]),
            severity=st.sampled_from(["low", "high", "critical"]),
            count=st.integers(1, 2000),
            last_seen_unix_nano=st.integers(0, 40).map(lambda minute: START + minute * 60 * S),
        ),
        max_size=4,
    ),
    st.integers(0, 40),
    st.sets(st.sampled_from(["spans", "logs"])),
    st.sampled_from([None, 0, 300]),
)


@settings(max_examples=60)
@given(st.lists(st.one_of(ROUND, st.none()), max_size=25))
def test_no_sequence_opens_twice_without_a_resolution_and_a_restart_changes_nothing(rounds: list[Any]) -> None:
    state = restarted = State()
    is_open: dict[str, bool] = {}
    seen: set[str] = set()
    now = START
    for given_round in rounds:
        now += 60 * S
        if given_round is None:
            state, events = advance_blind(state, "gone", now)
            restarted, same = advance_blind(restarted, "gone", now)
        else:
            rows, until, witnesses, silent = given_round
            coverage = reports(until, *((w, s) for w in witnesses for s in ("pay", "cart")))
            marks = Marks() if silent is None else Marks(silenced={row["finding_id"]: now + silent * S for row in rows})
            state, events = advance(state, rows, coverage, now, marks=marks)
            restarted, same = advance(restarted, rows, coverage, now, marks=marks)
        assert same == events
        restarted = load(dump(Memory("x", restarted, {}))).state
        for event in events:
            key = event.row["finding_id"]
            assert event.event_id not in seen
            seen.add(event.event_id)
            assert is_open.get(key, False) is (event.what != "opened")
            is_open[key] = event.what != "resolved"
    assert {record.finding_id for record in state.open} == {key for key, still in is_open.items() if still}

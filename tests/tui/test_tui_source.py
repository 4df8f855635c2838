"""The real `Evidence`: over a real store and the real forensics, and over sources that misbehave."""

import threading

import polars as pl
import pytest

from collector.commands.scope import Scope
from collector.commands.times import parse_moment
from collector.errors import ConfigError, QueryError, SourceUnreachableError
from collector.policy import parse_policy
from collector.policy.policies import listed_alone
from tests.collector.forensics.factories import T0, S, make_proxy_record, make_span, store
from tui.screens.dialogs import sql_dialog
from tui.snapshots import EdgesView, FindingsView, SearchView, TraceQuery, TraceView
from tui.source import SourceEvidence


class FakeSource:
    """A `Source` over a query function; it counts what happens to it."""

    name = "http://collector:4318"
    lacks = ""

    def __init__(self, query):
        self.query = query
        self.interrupts = 0
        self.is_closed = False

    def interrupt(self):
        self.interrupts += 1

    def close(self):
        self.is_closed = True


def refuse(_sql):
    raise QueryError("time limit")


def evidence_over(query, **options):
    return SourceEvidence(FakeSource(query), lambda: FakeSource(query), is_live=True, **options)


@pytest.fixture(scope="module")
def answered():
    """One call from checkout to payment, with spans and a line of payment's proxy."""
    spans = [
        make_span(kind="CLIENT", service_name="checkout", name="Charge", trace_id=1, span_id=1, parent_span_id=None),
        make_span(kind="SERVER", service_name="payment", name="Charge", trace_id=1, span_id=2, parent_span_id=1),
    ]
    return evidence_over(store(spans, [make_proxy_record(service_name="payment")], []))


def test_status_findings_and_edges_become_snapshots(answered):
    health = answered.status()
    assert (health.span_count, health.service_count) == (2, 2)
    found = answered.findings()
    assert found.frame.height == len(found.items)
    (edge,) = answered.edges().items
    assert (edge.caller, edge.callee, edge.calls) == ("checkout", "payment", 1)


def test_a_search_leads_to_its_trace_and_the_verdicts_on_its_hops(answered):
    (hit,) = answered.search(TraceQuery(service="payment")).items
    assert answered.search(TraceQuery(service="pay'ment")).items == ()
    trace = answered.trace(hit.trace_id)
    assert [(s.service_name, s.depth) for s in trace.spans] == [("checkout", 0), ("payment", 1)]
    (hop,) = answered.hops(trace)
    assert (hop.client_span_id, hop.server_span_id) == tuple(s.span_id for s in trace.spans)
    assert {hop.caller_proxy, hop.callee_proxy} <= {"seen", "missed", "unknown"}


def test_a_trace_that_is_not_there_is_empty_and_no_id_is_an_error(answered):
    trace = answered.trace("0" * 31 + "9")
    assert trace.spans == ()
    assert answered.hops(trace) == ()
    with pytest.raises(ConfigError):
        answered.trace("'; DROP TABLE spans; --")


@pytest.mark.parametrize(
    "view", [FindingsView(), EdgesView(), SearchView(TraceQuery(text="x'y")), TraceView("0" * 31 + "1", 0, 10**18)]
)
def test_the_sql_of_a_view_runs(answered, view):
    query = answered._sources["live"].query
    statements = [s for s in answered.sql_of(view).split(";\n\n") if s.strip()]
    assert statements
    assert all(isinstance(query(s.rstrip().rstrip(";")), pl.DataFrame) for s in statements)


def test_the_window_is_asked_for_each_time():
    moments = iter([17_000_000_010, 17_000_000_020])
    evidence = evidence_over(refuse, scope=Scope(since=parse_moment("1s")), clock=lambda: next(moments))
    assert evidence.has_moving_window
    assert "16000000010" in evidence.sql_of(EdgesView())
    assert "16000000020" in evidence.sql_of(EdgesView())


def test_findings_follow_the_same_options_as_a_scan():
    spans = [
        make_span(kind="CLIENT", service_name="web", server_address="203.0.113.9", server_port=443),
        make_span(start_time_unix_nano=T0 + 600 * S),
    ]
    policy = listed_alone(parse_policy("[egress]\nallow = []", name="x"))
    query = store(spans)
    assert [f.destination for f in evidence_over(query, scope=Scope(policy=policy)).findings().items] == [
        "203.0.113.9:443"
    ]
    assert evidence_over(query).findings().items == ()
    before = Scope(policy=policy, until=parse_moment("2026-01-01"))
    assert evidence_over(query, scope=before).findings().items == ()


def test_errors_of_the_source_come_through():
    with pytest.raises(QueryError, match="time limit"):
        evidence_over(refuse).status()


def test_interrupting_a_lane_leaves_the_others_alone(answered):
    live = FakeSource(answered._sources["live"].query)
    others = []

    def reopen():
        others.append(FakeSource(live.query))
        return others[-1]

    evidence = SourceEvidence(live, reopen, is_live=True)
    evidence.interrupt("search")
    evidence.search(TraceQuery())
    evidence.interrupt("search")
    assert (live.interrupts, [o.interrupts for o in others]) == (0, [1])


def test_interrupt_never_waits_for_a_lane_that_is_being_opened():
    opening, may_open = threading.Event(), threading.Event()

    def reopen():
        opening.set()
        assert may_open.wait(20)
        return FakeSource(refuse)

    evidence = SourceEvidence(FakeSource(refuse), reopen, is_live=True)
    refused = []

    def ask():
        try:
            evidence.search(TraceQuery())
        except SourceUnreachableError as error:
            refused.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert opening.wait(20)
    evidence.interrupt("search")
    evidence.close()
    may_open.set()
    asking.join(20)
    assert not asking.is_alive()
    assert len(refused) == 1, "closed meanwhile"


def test_closed_is_closed(answered):
    live = FakeSource(answered._sources["live"].query)
    evidence = SourceEvidence(live, lambda: FakeSource(live.query), is_live=False)
    evidence.close()
    evidence.close()
    assert live.is_closed
    assert evidence.name == live.name
    with pytest.raises(SourceUnreachableError, match="closed"):
        evidence.status()


def test_the_sql_of_findings_is_several_statements_under_their_names(answered):
    lines = answered.sql_of(FindingsView()).splitlines()
    names = [line for line in lines if line.startswith("-- ")]
    assert {"-- shadow calls", "-- shadow proxies", "-- egress destinations"} < set(names)
    assert len(names) == sum(line.endswith(";") for line in lines)
    allowed = lines.index("-- egress egress_allow")
    assert lines[allowed + 1].startswith("SELECT")
    assert lines[allowed + 2].startswith("  *")


def test_the_title_of_a_sql_dialog_says_how_many_statements_there_are():
    assert "repeats it" in sql_dialog("SELECT 1")._title
    assert "The 2 SQL statements" in sql_dialog("-- a\nSELECT 1;\n\n-- b\nSELECT 2;")._title

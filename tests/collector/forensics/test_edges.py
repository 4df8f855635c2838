"""RED figures per edge: who counts as caller, through proxies, twice-delivered, lost and external."""

import pytest

from collector.forensics.edges import SCHEMA, edges
from collector.forensics.tables import Window
from tests.collector.forensics.factories import MS, T0, S, make_span, store


def call(trace_id, *, at=T0, proxies=1, took=50 * MS, error=False, callee="checkout", lost=False):
    """gateway's POST /buy calls checkout/Buy through `proxies` proxies; `lost`: checkout's span never arrived."""
    where = {"server_address": f"{callee}.mesh", "server_port": 8080}
    spans = [
        make_span(
            trace_id=trace_id,
            span_id=1,
            service_name="gateway",
            name="POST /buy",
            start_time_unix_nano=at,
            duration_ns=took + 20 * MS,
        ),
        make_span(
            trace_id=trace_id,
            span_id=2,
            parent_span_id=1,
            service_name="gateway",
            name=f"{callee}/Buy",
            kind="CLIENT",
            start_time_unix_nano=at + MS,
            duration_ns=took + 10 * MS,
            **where,
        ),
    ]
    parent = 2
    for number in range(proxies):
        spans.append(
            make_span(
                trace_id=trace_id,
                span_id=10 + number,
                parent_span_id=parent,
                service_name="gateway",
                name="egress",
                witness="proxy",
                kind="CLIENT" if number % 2 else "SERVER",
                start_time_unix_nano=at + 2 * MS,
                duration_ns=took + MS,
            )
        )
        parent = 10 + number
    if not lost:
        spans.append(
            make_span(
                trace_id=trace_id,
                span_id=3,
                parent_span_id=parent,
                service_name=callee,
                name=f"{callee}/Buy",
                start_time_unix_nano=at + 3 * MS,
                duration_ns=took,
                status_code="ERROR" if error else "UNSET",
            )
        )
    return spans


EVERYTHING = Window()


def rows(query, window=EVERYTHING, buckets=4):
    return {(r["caller"], r["callee"], r["operation"]): r for r in edges(query, window, buckets).iter_rows(named=True)}


def test_an_empty_store_has_no_edges():
    frame = edges(store(), Window())
    assert frame.is_empty()
    assert dict(frame.schema) == SCHEMA


@pytest.mark.parametrize("proxies", [0, 1, 2, 4])
def test_proxies_are_stepped_over(proxies):
    assert set(rows(store(call(1, proxies=proxies)))) == {
        (None, "gateway", "POST /buy"),
        ("gateway", "checkout", "checkout/Buy"),
    }


def test_a_gateways_proxy_above_the_root_is_the_outside():
    spans = call(1)
    spans[0]["parent_span_id"] = 99
    spans.append(make_span(trace_id=1, span_id=99, service_name="edge", witness="proxy"))
    assert (None, "gateway", "POST /buy") in rows(store(spans))


def test_figures_of_an_edge():
    spans = [s for i in range(8) for s in call(i + 1, at=T0 + i * S, took=(i + 1) * 10 * MS, error=i == 0)]
    found = rows(store(spans * 2), Window(T0, T0 + 16 * S))["gateway", "checkout", "checkout/Buy"]
    assert found["calls"] == 8
    assert found["request_rate"] == pytest.approx(0.5)
    assert found["error_ratio"] == pytest.approx(1 / 8)
    assert found["duration_ns_p50"] == 45 * MS
    assert found["duration_ns_p99"] == pytest.approx(79.3 * MS, rel=1e-3)
    assert found["last_seen_unix_nano"] == T0 + 7 * S + 3 * MS
    assert found["rate_series"] == [4, 4, 0, 0]
    assert found["duration_series"] == [25 * MS, 65 * MS, None, None]
    assert found["external"] is False


def test_an_open_window_ends_at_the_last_call():
    spans = [s for i in range(8) for s in call(i + 1, at=T0 + i * S)]
    found = rows(store(spans))["gateway", "checkout", "checkout/Buy"]
    assert found["rate_series"] == [2, 2, 2, 2]
    assert found["request_rate"] == pytest.approx(8 / 7, rel=0.01)


def test_a_call_whose_callee_vanished_counts_for_the_service_that_answers_there():
    found = rows(store([*call(1), *call(2, lost=True)]))
    assert (
        found["gateway", "checkout", "checkout/Buy"]["calls"] == 1
        or found["gateway", "checkout", "checkout/Buy"]["calls"] == 2
    )
    assert all(callee != "checkout.mesh:8080" for _, callee, _ in found)
    assert sum(r["calls"] for k, r in found.items() if k[1] == "checkout") == 2


def test_external_destinations_are_edges_of_their_own():
    found = rows(store(call(1, callee="db", lost=True)))
    assert found["gateway", "db.mesh:8080", "db/Buy"]["external"] is True


def test_a_wrapping_client_span_is_not_a_second_call():
    outer = make_span(trace_id=1, span_id=1, name="S3.Put", kind="CLIENT", service_name="shop")
    inner = make_span(
        trace_id=1,
        span_id=2,
        parent_span_id=1,
        name="PUT",
        kind="CLIENT",
        service_name="shop",
        server_address="s3.example",
        server_port=443,
    )
    assert set(rows(store([outer, inner]))) == {("shop", "s3.example:443", "PUT")}


def test_plain_spans_without_kinds_or_attributes():
    spans = [
        make_span(trace_id=1, span_id=1, kind="INTERNAL", service_name="a", name="root"),
        make_span(trace_id=1, span_id=2, parent_span_id=1, kind="INTERNAL", service_name="a", name="step"),
        make_span(trace_id=1, span_id=3, parent_span_id=2, kind="UNSPECIFIED", service_name="b", name="work"),
    ]
    assert set(rows(store(spans))) == {(None, "a", "root"), ("a", "b", "work")}


def test_a_caller_that_started_before_the_window_is_still_the_caller():
    found = rows(store(call(1)), Window(T0 + 2 * MS, T0 + S))
    assert set(found) == {("gateway", "checkout", "checkout/Buy")}


def test_names_come_back_as_they_are():
    odd = "x'; DROP TABLE spans; -- [bold]"
    assert set(rows(store([make_span(name=odd, service_name=odd)]))) == {(None, odd, odd)}

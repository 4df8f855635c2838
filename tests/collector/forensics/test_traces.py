"""Trace search, the waterfall, the records beside it, and the status line."""

import pytest

from collector.errors import ConfigError
from collector.forensics.search import SEARCH_SCHEMA, TraceFilter, search
from collector.forensics.status import status
from collector.forensics.tables import Window
from collector.forensics.traces import TRACE_SCHEMA, trace, trace_records
from tests.collector.forensics.factories import MS, T0, S, make_proxy_record, make_span, store

A, B, C = 0xA1, 0xB2, 0xC3


def checkout_trace(trace_id=A, *, start=T0, error=False, **extra):
    """gateway -> (its proxy) -> checkout, in 100 ms."""
    common = {"trace_id": trace_id}
    return [
        make_span(
            **common,
            span_id=1,
            service_name="gateway",
            name="POST /buy",
            start_time_unix_nano=start,
            duration_ns=100 * MS,
        ),
        make_span(
            **common,
            span_id=2,
            parent_span_id=1,
            service_name="gateway",
            name="checkout/Buy",
            kind="CLIENT",
            start_time_unix_nano=start + 10 * MS,
            duration_ns=80 * MS,
            server_address="checkout",
            server_port=8080,
            provenance_request_id="aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee",
        ),
        make_span(
            **common,
            span_id=3,
            parent_span_id=2,
            service_name="gateway",
            name="egress",
            witness="proxy",
            start_time_unix_nano=start + 12 * MS,
            duration_ns=70 * MS,
        ),
        make_span(
            **common,
            span_id=4,
            parent_span_id=3,
            service_name="checkout",
            name="checkout/Buy",
            start_time_unix_nano=start + 20 * MS,
            duration_ns=50 * MS,
            status_code="ERROR" if error else "UNSET",
            **extra,
        ),
    ]


def found(query, **conditions):
    return [int(t, 16) for t in search(query, TraceFilter(**conditions))["trace_id"]]


def test_a_search_lists_one_row_a_trace():
    frame = search(store(checkout_trace(error=True) * 2), TraceFilter())
    assert dict(frame.schema) == SEARCH_SCHEMA
    assert frame.to_dicts() == [
        {
            "trace_id": f"{A:032x}",
            "start_time_unix_nano": T0,
            "duration_ns": 100 * MS,
            "root_service": "gateway",
            "root_operation": "POST /buy",
            "service_count": 2,
            "span_count": 4,
            "error_count": 1,
        }
    ]


def test_filters_narrow_and_orders_sort():
    long = make_span(trace_id=C, service_name="batch", name="nightly", start_time_unix_nano=T0 - S, duration_ns=9 * S)
    query = store([*checkout_trace(A), *checkout_trace(B, start=T0 + S, error=True), long])
    assert found(query) == [B, A, C]
    assert found(query, order="slowest") == [C, A, B]
    assert found(query, limit=1) == [B]
    assert found(query, limit=0) == []
    assert found(query, service="batch") == [C]
    assert found(query, service="checkout", operation="POST /buy") == []
    assert found(query, service="gateway", operation="POST /buy", errors_only=True) == [B]
    assert found(query, min_duration_ns=1 * S) == [C]
    assert found(query, max_duration_ns=1 * S) == [B, A]
    assert found(query, window=Window(T0, T0 + S)) == [A]


@pytest.mark.parametrize(
    "text",
    [
        "CHECKOUT/buy",
        f"{A:032X}",
        "00000000000004d2",
        "100% 'off'",
        "_x_",
        "tenant=acme",
        "retries=3",
        "http.route=/b/{id}",
        "aaaa-bbbb",
    ],
)
def test_text_finds_what_it_names(text):
    spans = checkout_trace(
        A,
        status_message="100% 'off' _x_",
        http_route="/b/{id}",
        attributes={"tenant": "acme"},
        attributes_json={"retries": "3"},
        provenance_request_id="aaaa-bbbb",
    )
    spans.append(make_span(trace_id=A, span_id=1234, parent_span_id=1, service_name="gateway", name="inner"))
    other = make_span(trace_id=B, name="GET /", status_message="1000 off", attributes={"tenant": "other"})
    assert found(store([*spans, other]), text=text) == [A]


@pytest.mark.parametrize("text", ["'; DROP TABLE spans; --", "%", "_", "\\", "a'b=c'd", "=", "\x00", "日本"])
def test_hostile_text_finds_nothing_and_breaks_nothing(text):
    query = store(checkout_trace())
    assert found(query, text=text) == []
    assert found(query) == [A]


def test_a_trace_that_came_through_an_ingress_proxy_is_named_by_the_application():
    ingress = make_span(
        trace_id=A, span_id=900, service_name="edge", name="ingress", witness="proxy", duration_ns=110 * MS
    )
    root, *rest = checkout_trace()
    row = search(store([ingress, root | {"parent_span_id": 900}, *rest]), TraceFilter()).row(0, named=True)
    assert (row["root_service"], row["root_operation"], row["duration_ns"]) == ("gateway", "POST /buy", 110 * MS)


def test_a_trace_without_its_root_lasts_from_first_start_to_last_end():
    query = store(checkout_trace()[1:])
    row = search(query, TraceFilter()).row(0, named=True)
    assert (row["duration_ns"], row["root_operation"]) == (80 * MS, "checkout/Buy")


def test_the_waterfall():
    frame = trace(
        store(checkout_trace(error=True, attributes={"k": "v"}, http_response_status_code=500) * 2), f"{A:032x}"
    )
    assert dict(frame.schema) == TRACE_SCHEMA
    assert frame.select("span_id", "depth", "witness", "self_time_ns", "on_critical_path", "error").rows() == [
        (f"{1:016x}", 0, "app", 20 * MS, True, False),
        (f"{2:016x}", 1, "app", 10 * MS, True, False),
        (f"{3:016x}", 2, "proxy", 20 * MS, True, False),
        (f"{4:016x}", 3, "app", 50 * MS, True, True),
    ]
    assert frame["destination"].to_list() == [None, "checkout:8080", None, None]
    assert frame["attributes"][3].to_list() == [
        {"key": "http.response.status_code", "value": "500"},
        {"key": "k", "value": "v"},
    ]


def test_orphans_and_circles_are_shown():
    spans = [
        make_span(trace_id=A, span_id=7, parent_span_id=8, start_time_unix_nano=T0),
        make_span(trace_id=A, span_id=8, parent_span_id=7, start_time_unix_nano=T0 + 1),
        make_span(trace_id=A, span_id=9, parent_span_id=99, start_time_unix_nano=T0 + 2),
    ]
    frame = trace(store(spans), f"{A:032x}")
    assert frame.select("span_id", "depth").rows() == [(f"{7:016x}", 0), (f"{8:016x}", 1), (f"{9:016x}", 0)]


def test_no_such_trace_is_an_empty_frame_and_no_id_an_error():
    query = store(checkout_trace())
    assert trace(query, f"{B:032x}").is_empty()
    assert dict(trace(query, f"{B:032x}").schema) == TRACE_SCHEMA
    for bad in ("", "xyz", "' OR 1=1 --", "a" * 31):
        with pytest.raises(ConfigError, match="not a trace id"):
            trace(query, bad)
        with pytest.raises(ConfigError, match="not a trace id"):
            trace_records(query, bad)


def test_records_join_by_request_id_without_envoys_character():
    records = [
        make_proxy_record(record_id=1, request_id="aaaaaaaa-bbbb-9ccc-8ddd-eeeeeeeeeeee", start_time_unix_nano=T0 + 2),
        make_proxy_record(record_id=2, request_id="aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee", start_time_unix_nano=T0 + 1),
        make_proxy_record(record_id=3, request_id="aaaaaaaa-bbbb-4ccc-8ddd-ffffffffffff"),
        make_proxy_record(record_id=4, request_id=None),
        make_proxy_record(record_id=5, request_id=None, trace_id=A, start_time_unix_nano=T0 + 3),
    ]
    query = store(checkout_trace(), records)
    assert trace_records(query, f"{A:032x}")["record_id"].to_list() == [2, 1, 5]
    assert trace_records(query, f"{B:032x}").is_empty()


def test_status_of_an_empty_store():
    state = status(store())
    assert (state.span_count, state.last_received_unix_nano, state.services) == (0, None, ())
    assert state.incomplete == "no spans yet"


def test_status_says_what_is_incomplete():
    state = status(store(checkout_trace(), [make_proxy_record(service_name="checkout", start_time_unix_nano=T0)]))
    assert (state.span_count, state.first_start_unix_nano, state.services) == (4, T0, ("checkout", "gateway"))
    assert [(p.service_name, p.direction) for p in state.proxy_logs] == [("checkout", "inbound")]
    assert state.incomplete == "no proxy access log of gateway; no egress allow-list"


def test_status_is_silent_when_nothing_is_missing():
    records = [make_proxy_record(service_name=name) for name in ("checkout", "gateway")]
    allow = [{"service_name": None, "destination": "api.example", "port": None}]
    state = status(store(checkout_trace(), records, allow))
    assert state.has_egress_list
    assert not state.incomplete

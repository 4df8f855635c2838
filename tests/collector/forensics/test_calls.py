"""Calls: which spans and access-log lines are one call, whatever stands between them."""

from functools import cache
from typing import Any

import polars as pl
import pytest

from collector.forensics.calls import calls
from collector.forensics.ids import hex_ids, span_id_hex, trace_id_hex
from collector.forensics.tables import Window, compile_sql
from tests.collector.forensics.factories import MS, T0, Row, S, make_proxy_record, make_request_id, make_span, store


@cache
def sql_of(window: Window, **options: Any) -> str:
    return compile_sql(calls(window, **options))


def rows_of(spans: list[Row], records: list[Row] = [], window: Window = Window(), **options: Any) -> list[Row]:  # noqa: B006, B008
    frame = store(spans, records)(sql_of(window, **options))
    return hex_ids(frame.sort("start_time_unix_nano", "server_span_id")).to_dicts()


def pair(trace: int = 1, proxies: tuple[str, ...] = (), *, client: Row = {}, server: Row = {}) -> list[Row]:  # noqa: B006
    """web calls shop through the proxies named, the caller's first."""
    spans = [make_span(trace_id=trace, span_id=trace * 100, kind="CLIENT", service_name="web", **client)]
    for number, name in enumerate(proxies, 1):
        ids = {"span_id": trace * 100 + number, "parent_span_id": trace * 100 + number - 1}
        spans.append(make_span(trace_id=trace, witness="proxy", service_name=name, **ids))
    last = trace * 100 + len(proxies)
    return [*spans, make_span(trace_id=trace, span_id=trace * 100 + 50, parent_span_id=last, **server)]


@pytest.mark.parametrize(
    ("proxies", "inbound", "outbound"),
    [
        ((), 0, 0),
        (("shop",), 1, 0),
        (("web", "shop"), 1, 1),
        (("web", "web", "shop"), 1, 2),
        (("web.default", "web.default", "shop.default", "shop.default"), 2, 2),
        (("linkerd-proxy", "waypoint"), 0, 0),
    ],
)
def test_up_to_four_proxy_spans_are_followed(proxies: tuple[str, ...], inbound: int, outbound: int) -> None:
    [call] = rows_of(pair(proxies=proxies))
    assert (call["caller"], call["callee"]) == ("web", "shop")
    assert (call["client_span_id"], call["server_span_id"]) == (span_id_hex(100), span_id_hex(150))
    assert (call["proxy_spans"], call["proxy_spans_inbound"], call["proxy_spans_outbound"]) == (
        len(proxies),
        inbound,
        outbound,
    )


def test_a_fifth_proxy_span_leaves_the_caller_unknown_but_the_parent_found() -> None:
    answered = [c for c in rows_of(pair(proxies=("a", "b", "c", "d", "shop"))) if c["server_span_id"]]
    assert answered[0]["client_span_id"] is None
    assert answered[0]["parent_found"] is True


def test_spans_delivered_twice_count_once() -> None:
    spans = pair(proxies=("web", "shop"))
    late = [{**span, "received_unix_nano": span["received_unix_nano"] + 30 * S} for span in spans]
    record = make_proxy_record(request_id="r")
    [call] = rows_of([*spans, *late, *spans], [record, record])
    assert call["proxy_spans"] == 2


@pytest.mark.parametrize("loop", [[(7, 7)], [(7, 8), (8, 7)]])
def test_cyclic_parents_end(loop: list[tuple[int, int]]) -> None:
    proxies = [make_span(trace_id=1, span_id=s, parent_span_id=p, witness="proxy") for s, p in loop]
    [call] = rows_of([*proxies, make_span(trace_id=1, span_id=9, parent_span_id=7)])
    assert call["caller"] is None


def test_a_client_span_without_an_answer_is_a_call_to_its_peer() -> None:
    spans = [
        make_span(
            trace_id=1, kind="CLIENT", service_name="web", peer_service="db", server_address="db", server_port=5432
        )
    ]
    [call] = rows_of(spans)
    assert (call["caller"], call["callee"], call["server_span_id"]) == ("web", "db", None)
    assert (call["destination_address"], call["destination_port"]) == ("db", 5432)
    assert rows_of(spans, unanswered=False) == []


def test_a_server_span_whose_parent_never_arrived() -> None:
    [call] = rows_of([make_span(trace_id=1, parent_span_id=77)])
    assert (call["caller"], call["parent_found"]) == (None, False)


def test_the_proxy_names_a_caller_that_writes_no_spans() -> None:
    spans = [
        make_span(trace_id=1, span_id=1, witness="proxy", service_name="legacy"),
        make_span(trace_id=1, span_id=2, parent_span_id=1, witness="proxy", service_name="shop"),
        make_span(trace_id=1, span_id=3, parent_span_id=2),
    ]
    [call] = rows_of(spans)
    assert (call["caller"], call["client_span_id"], call["parent_found"]) == ("legacy", None, True)


def test_a_span_that_is_no_client_still_names_the_caller() -> None:
    spans = [
        make_span(trace_id=1, span_id=1, kind="INTERNAL", service_name="web", service_instance_id="web-0"),
        make_span(trace_id=1, span_id=2, parent_span_id=1),
    ]
    [call] = rows_of(spans)
    assert (call["caller"], call["caller_instance"], call["client_span_id"]) == ("web", "web-0", None)


@pytest.mark.parametrize(("instance", "count"), [("shop-0", 1), (None, 1), ("shop-1", 2)])
def test_an_app_mounted_in_an_app_is_no_call(instance: str | None, count: int) -> None:
    outer = make_span(trace_id=1, span_id=1, service_instance_id="shop-0")
    inner = make_span(trace_id=1, span_id=2, parent_span_id=1, service_instance_id=instance)
    assert len(rows_of([outer, inner])) == count


@pytest.mark.parametrize(
    ("attributes", "operation", "path"),
    [
        ({"rpc_service": "pay.Pay", "rpc_method": "Charge"}, "pay.Pay/Charge", "/pay.Pay/Charge"),
        ({"rpc_method": "pay.Pay/Charge"}, "pay.Pay/Charge", "/pay.Pay/Charge"),
        (
            {"http_request_method": "POST", "http_route": "/buy/{id}", "url_path": "/buy/1?x=2"},
            "POST /buy/{id}",
            "/buy/1",
        ),
        ({"http_request_method": "GET", "url_full": "https://shop:8080/a/b?c#d"}, "GET /", "/a/b"),
        ({"http_request_method": "GET", "url_full": "http://shop"}, "GET /", None),
        ({}, "GET /", None),
    ],
)
def test_operation_and_path(attributes: Row, operation: str, path: str | None) -> None:
    [call] = rows_of([make_span(**attributes)])
    assert (call["operation"], call["path"]) == (operation, path)


@pytest.mark.parametrize(
    ("client", "server", "error"),
    [
        ({}, {}, False),
        ({"status_code": "ERROR"}, {}, True),
        ({}, {"http_response_status_code": 503}, True),
        ({}, {"http_response_status_code": 404}, False),
        ({}, {"rpc_grpc_status_code": 14}, True),
        ({}, {"rpc_grpc_status_code": 5}, False),
    ],
)
def test_errors(client: Row, server: Row, *, error: bool) -> None:
    [call] = rows_of(pair(client=client, server=server))
    assert call["error"] is error


def test_envoys_trace_nibble_is_no_part_of_a_request_id() -> None:
    request_id = make_request_id()
    rewritten = request_id[:14] + "9" + request_id[15:]
    spans = pair(
        client={"provenance_request_id": request_id}, server={"provenance_request_id": rewritten, "url_path": "/a"}
    )
    records = [
        make_proxy_record(service_name="web", direction="outbound", request_id=rewritten, path="/a?b", record_id=1),
        make_proxy_record(service_name="shop", request_id=rewritten, path="/a", record_id=2),
        make_proxy_record(service_name="shop", direction="outbound", request_id=rewritten, path="/a", record_id=3),
        make_proxy_record(service_name="shop", request_id="9" + rewritten[1:], path="/a", record_id=4),
    ]
    [call] = rows_of(spans, records)
    assert (call["outbound_record_id"], call["inbound_record_id"]) == (1, 2)


def test_an_edge_that_gives_the_request_a_new_id_joins_by_either() -> None:
    spans = pair(client={"provenance_request_id": "old"}, server={"provenance_request_id": "new", "url_path": "/"})
    records = [
        make_proxy_record(service_name="web", direction="outbound", request_id="old", record_id=1),
        make_proxy_record(service_name="shop", request_id="new", record_id=2),
    ]
    [call] = rows_of(spans, records)
    assert (call["outbound_record_id"], call["inbound_record_id"]) == (1, 2)


def two_calls(gap: int, **server: Any) -> list[Row]:
    """Two calls to shop under one request id, `gap` ns apart."""
    ids = {"provenance_request_id": "r", "url_path": "/a"} | server
    return [
        make_span(trace_id=1, span_id=11, start_time_unix_nano=T0, **ids),
        make_span(trace_id=1, span_id=12, start_time_unix_nano=T0 + gap, **ids),
    ]


@pytest.mark.parametrize("gap", [3 * MS, 200 * MS, 4 * S, 600 * S])
@pytest.mark.parametrize("logged", [0, 1])
def test_one_line_never_vouches_for_two_calls(gap: int, logged: int) -> None:
    record = make_proxy_record(request_id="r", path="/a", start_time_unix_nano=T0 + logged * gap - MS // 2, record_id=5)
    found = [c["inbound_record_id"] for c in rows_of(two_calls(gap), [record])]
    assert found == ([5, None] if logged == 0 else [None, 5])


def test_two_lines_vouch_for_two_calls_even_if_clocks_disagree() -> None:
    records = [
        make_proxy_record(request_id="r", path="/a", start_time_unix_nano=T0 + at * MS + 2 * S, record_id=at)
        for at in (1, 4)
    ]
    assert sorted(c["inbound_record_id"] for c in rows_of(two_calls(3 * MS), records)) == [1, 4]


def test_a_line_of_another_path_leaves_the_call_ambiguous() -> None:
    [call] = rows_of([two_calls(S)[0]], [make_proxy_record(request_id="r", path="/b")])
    assert (call["inbound_record_id"], call["inbound_ambiguous"]) == (None, True)


def test_a_call_without_a_path_takes_the_line_of_its_request_id() -> None:
    [call] = rows_of([two_calls(S, url_path=None)[0]], [make_proxy_record(request_id="r", path="/b", record_id=3)])
    assert (call["inbound_record_id"], call["inbound_ambiguous"]) == (3, False)


def test_a_proxys_retries_share_the_callers_line() -> None:
    client = make_span(
        trace_id=1, span_id=1, kind="CLIENT", service_name="web", provenance_request_id="r", duration_ns=30 * S
    )
    servers = [{**span, "parent_span_id": 1} for span in two_calls(20 * S)]
    records = [
        make_proxy_record(service_name="web", direction="outbound", request_id="r", path="/a", record_id=1),
        make_proxy_record(request_id="r", path="/a", record_id=2),
        make_proxy_record(request_id="r", path="/a", record_id=3, start_time_unix_nano=T0 + 20 * S),
    ]
    found = [(c["outbound_record_id"], c["inbound_record_id"]) for c in rows_of([client, *servers], records)]
    assert sorted(found) == [(1, 2), (1, 3)]


def test_one_constant_request_id_for_everything_is_counted_but_not_pinned() -> None:
    spans = [
        make_span(trace_id=i + 1, start_time_unix_nano=T0 + i * S, provenance_request_id="r", url_path="/")
        for i in range(100)
    ]
    records = [make_proxy_record(request_id="r", start_time_unix_nano=T0 + i * S) for i in range(100)]
    assert all(c["inbound_record_id"] for c in rows_of(spans, records))
    rows = rows_of(spans, records[1:])
    missing = [c for c in rows if c["inbound_record_id"] is None]
    assert len(missing) == 1
    assert missing[0]["inbound_ambiguous"] is True


def test_the_window_is_half_open_and_counts_the_clients_start() -> None:
    spans = pair(1) + pair(2, client={"start_time_unix_nano": T0 + S}, server={"start_time_unix_nano": T0 - S})
    assert [c["trace_id"] for c in rows_of(spans, window=Window(T0, T0 + S))] == [trace_id_hex(f"{1:032x}")]
    assert len(rows_of(spans, window=Window(T0, T0 + S + 1))) == 2


def test_an_empty_store_has_no_calls() -> None:
    assert rows_of([]) == []


def test_ids_of_every_engine_become_hex() -> None:
    frame = pl.DataFrame(
        {"trace_id": ["0000000000000000000000000000ABCD", None], "span_id": [255, None], "name": ["a", "b"]}
    )
    assert hex_ids(frame).rows() == [("0000000000000000000000000000abcd", "00000000000000ff", "a"), (None, None, "b")]
    assert hex_ids(pl.DataFrame({"span_id": ["00000000000000FF"]}))["span_id"].to_list() == ["00000000000000ff"]

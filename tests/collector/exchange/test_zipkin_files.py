"""Zipkin's v2 JSON: lists of spans, lists of traces, shared spans, and damage."""

import json
from pathlib import Path

import pytest

from tests.collector.exchange.exchange_helpers import rows, run_import

T = "463ac35c9f6413ad"
CLIENT = {
    "traceId": T,
    "id": "a2fb4a1d1a96d312",
    "kind": "CLIENT",
    "name": "get /api",
    "timestamp": 1763859600000000,
    "duration": 207000,
    "localEndpoint": {"serviceName": "frontend", "ipv4": "10.0.0.1"},
    "remoteEndpoint": {"serviceName": "backend", "ipv4": "10.0.0.2", "port": 9000},
    "annotations": [{"timestamp": 1763859600001000, "value": "wire sent"}],
    "tags": {"http.method": "GET", "http.path": "/api"},
}
SERVER = {
    "traceId": T,
    "id": "a2fb4a1d1a96d312",
    "kind": "SERVER",
    "name": "get /api",
    "timestamp": 1763859600002000,
    "duration": 190000,
    "localEndpoint": {"serviceName": "backend", "ipv6": "2001:db8::c001"},
    "shared": True,
}
CHILD = {
    "traceId": T,
    "id": "c3",
    "parentId": "a2fb4a1d1a96d312",
    "name": "query",
    "timestamp": 1763859600003000,
    "duration": 10,
    "localEndpoint": {"serviceName": "backend"},
    "tags": {"error": "table is locked"},
    "debug": True,
}


def imported(tmp_path: Path, text: str, *, code: int = 0) -> Path:
    (tmp_path / "zipkin.json").write_text(text)
    assert run_import(tmp_path / "zipkin.json", "--into", tmp_path / "db.duckdb") == code
    return tmp_path / "db.duckdb"


def test_endpoints_tags_annotations_and_errors(tmp_path: Path) -> None:
    db = imported(tmp_path, json.dumps([CLIENT, CHILD]))

    client, child = rows(db, "SELECT * FROM spans ORDER BY start_time_unix_nano")
    assert client["trace_id"] == "00000000-0000-0000-463a-c35c9f6413ad"
    assert (client["kind"], client["service_name"], client["peer_service"]) == ("CLIENT", "frontend", "backend")
    assert (client["network_peer_address"], client["network_peer_port"]) == ("10.0.0.2", 9000)
    assert dict(client["attributes"])["network.local.address"] == "10.0.0.1"
    assert (client["http_request_method"], client["duration_ns"]) == ("GET", 207_000_000)
    assert (child["status_code"], child["status_message"]) == ("ERROR", "table is locked")
    assert (child["kind"], child["parent_span_id"]) == ("UNSPECIFIED", 0xA2FB4A1D1A96D312)
    assert dict(child["attributes_json"]) == {"zipkin.debug": "true"}
    assert rows(db, "SELECT name, time_unix_nano FROM span_events") == [
        {"name": "wire sent", "time_unix_nano": 1763859600001000000}
    ]


def test_a_shared_span_becomes_two_and_the_server_keeps_its_children(tmp_path: Path) -> None:
    db = imported(tmp_path, json.dumps([CHILD, SERVER, CLIENT]))

    spans = {row["name"] + row["kind"]: row for row in rows(db, "SELECT * FROM spans")}
    client, server, child = spans["get /apiCLIENT"], spans["get /apiSERVER"], spans["queryUNSPECIFIED"]
    assert client["span_id"] == 0xA2FB4A1D1A96D312
    assert server["parent_span_id"] == client["span_id"] != server["span_id"]
    assert child["parent_span_id"] == server["span_id"]


def test_ids_given_to_shared_spans_are_the_same_again(tmp_path: Path) -> None:
    first = imported(tmp_path, json.dumps([CLIENT, SERVER]))
    (tmp_path / "again").mkdir()
    again = imported(tmp_path / "again", json.dumps([SERVER, CLIENT]))

    sql = "SELECT kind, span_id FROM spans ORDER BY kind"
    assert rows(first, sql) == rows(again, sql)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([CLIENT, CHILD]),
        json.dumps([[CLIENT], [CHILD]], indent=1),
        f"{json.dumps(CLIENT)}\n{json.dumps(CHILD)}\n",
        f"{json.dumps([CLIENT])}\n{json.dumps([CHILD])}",
        "\ufeff " + json.dumps([CLIENT, CHILD]),
    ],
    ids=["trace", "search", "span a line", "list a line", "byte order mark"],
)
def test_every_layout(tmp_path: Path, text: str) -> None:
    assert rows(imported(tmp_path, text), "SELECT count(*) AS n FROM spans") == [{"n": 2}]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "span id is not 1 to 16 hex digits"),
        ({"traceId": "0"}, "trace id is all zeros"),
        ({"kind": "OTHER"}, "kind is none of CLIENT, SERVER, PRODUCER, CONSUMER"),
        ({"timestamp": None, "annotations": []}, "a span has neither a timestamp nor an annotation"),
        ({"tags": {"a": 1}}, "tag a is not a string"),
        ({"localEndpoint": "here"}, "localEndpoint is not an object"),
        ({"duration": True}, "duration is not a number of microseconds that fits"),
    ],
)
def test_a_bad_span_is_counted_and_its_neighbour_kept(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    db = imported(tmp_path, json.dumps([{**CLIENT, **change}, CHILD], indent=0))

    assert rows(db, "SELECT name FROM spans") == [{"name": "query"}]
    assert rows(db, "SELECT reason, count FROM ingest_errors") == [
        {"reason": f"span: {reason} (first at line 2)", "count": 1}
    ]


def test_after_damage_reading_goes_on_at_the_next_document(tmp_path: Path) -> None:
    broken = json.dumps(CLIENT)[:-40] + "}}"
    db = imported(tmp_path, f"{broken}\n{json.dumps(CHILD)}\n")

    assert rows(db, "SELECT name FROM spans") == [{"name": "query"}]
    [error] = rows(db, "SELECT reason FROM ingest_errors")
    assert "not JSON" in error["reason"]
    assert "first at line 1" in error["reason"]


def test_a_list_that_is_cut_gives_the_spans_before(tmp_path: Path) -> None:
    text = json.dumps([{**CHILD, "id": f"{n:x}"} for n in range(1, 2001)])
    db = imported(tmp_path, text[: len(text) // 2])

    [row] = rows(db, "SELECT count(*) AS n FROM spans")
    assert 900 < row["n"] <= 1000


def test_lone_surrogates_and_deep_nesting_stop_nobody(tmp_path: Path) -> None:
    odd = json.dumps([{**CHILD, "name": "\ud800"}])
    db = imported(tmp_path, f"{odd}\n{'[' * 100_000}\n{json.dumps([CLIENT])}\n")

    assert sorted(row["name"] for row in rows(db, "SELECT name FROM spans")) == ["get /api", "\ufffd"]

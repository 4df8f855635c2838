"""Jaeger's JSON: what its UI downloads, and what a careless hand makes of it."""

import json
from pathlib import Path

import pytest

from tests.collector.exchange.exchange_helpers import rows, run_import

TRACE = {
    "traceID": "5fe1a3b2c4d5e6f7",
    "spans": [
        {
            "traceID": "5fe1a3b2c4d5e6f7",
            "spanID": "1f",
            "flags": 1,
            "operationName": "HTTP GET /dispatch",
            "references": [],
            "startTime": 1763859600000123,
            "duration": 4567,
            "tags": [
                {"key": "span.kind", "type": "string", "value": "server"},
                {"key": "http.method", "type": "string", "value": "GET"},
                {"key": "http.status_code", "type": "int64", "value": 500},
                {"key": "error", "type": "bool", "value": True},
                {"key": "otel.status_description", "type": "string", "value": "no driver"},
                {"key": "otel.scope.name", "type": "string", "value": "io.driver"},
                {"key": "otel.scope.version", "type": "string", "value": "1.2"},
                {"key": "ratio", "type": "float64", "value": 2},
                {"key": "big", "type": "int64", "value": "9007199254740993"},
                {"key": "raw", "type": "binary", "value": "3q2+7w=="},
                {"key": "w3c.tracestate", "type": "string", "value": "a=b"},
            ],
            "logs": [
                {
                    "timestamp": 1763859600000200,
                    "fields": [
                        {"key": "event", "type": "string", "value": "retry"},
                        {"key": "attempt", "type": "int64", "value": 2},
                    ],
                },
                {"timestamp": 1763859600000300, "fields": [{"key": "message", "type": "string", "value": "gave up"}]},
            ],
            "processID": "p1",
            "warnings": ["clock skew adjustment disabled"],
        },
        {
            "traceID": "5fe1a3b2c4d5e6f7",
            "spanID": "2f",
            "operationName": "SQL SELECT",
            "references": [
                {"refType": "FOLLOWS_FROM", "traceID": "aa", "spanID": "bb"},
                {"refType": "CHILD_OF", "traceID": "5fe1a3b2c4d5e6f7", "spanID": "1f"},
            ],
            "startTime": 1763859600001000,
            "duration": 10,
            "tags": [
                {"key": "span.kind", "type": "string", "value": "client"},
                {"key": "error", "type": "bool", "value": False},
            ],
            "logs": [],
            "processID": "p2",
            "warnings": None,
        },
    ],
    "processes": {
        "p1": {"serviceName": "frontend", "tags": [{"key": "hostname", "type": "string", "value": "node-1"}]},
        "p2": {"serviceName": "driver", "tags": []},
    },
}


def jaeger(*traces: object) -> dict[str, object]:
    return {"data": list(traces), "total": 0, "limit": 0, "offset": 0, "errors": None}


def imported(tmp_path: Path, text: str, *, code: int = 0) -> Path:
    (tmp_path / "jaeger.json").write_text(text)
    assert run_import(tmp_path / "jaeger.json", "--into", tmp_path / "db.duckdb") == code
    return tmp_path / "db.duckdb"


def test_a_trace_says_all_that_jaeger_knew(tmp_path: Path) -> None:
    db = imported(tmp_path, json.dumps(jaeger(TRACE)))

    server, client = rows(db, "SELECT * FROM spans ORDER BY span_id")
    assert server["trace_id"] == "00000000-0000-0000-5fe1-a3b2c4d5e6f7"
    assert (server["span_id"], server["parent_span_id"], server["flags"]) == (0x1F, None, 1)
    assert (server["kind"], server["name"], server["service_name"]) == ("SERVER", "HTTP GET /dispatch", "frontend")
    assert server["service_instance_id"] == "node-1"
    assert (server["start_time_unix_nano"], server["duration_ns"]) == (1763859600000123000, 4567000)
    assert (server["status_code"], server["status_message"]) == ("ERROR", "no driver")
    assert (server["http_request_method"], server["http_response_status_code"]) == ("GET", 500)
    assert server["trace_state"] == "a=b"
    others = dict(server["attributes_json"])
    assert (others["ratio"], others["big"]) == ("2.0", "9007199254740993")
    assert json.loads(others["raw"]) == {"bytesValue": "3q2+7w=="}
    assert json.loads(others["jaeger.warnings"]) == ["clock skew adjustment disabled"]

    assert (client["kind"], client["parent_span_id"], client["service_name"]) == ("CLIENT", 0x1F, "driver")
    assert (client["status_code"], dict(client["attributes_json"])) == ("UNSET", {"error": "false"})

    [scope] = rows(db, "SELECT name, version FROM scopes WHERE name <> ''")
    assert scope == {"name": "io.driver", "version": "1.2"}


def test_logs_are_events_and_references_links(tmp_path: Path) -> None:
    db = imported(tmp_path, json.dumps(jaeger(TRACE), indent=2))

    retry, log = rows(db, "SELECT * FROM span_events ORDER BY time_unix_nano")
    assert (retry["name"], retry["time_unix_nano"]) == ("retry", 1763859600000200000)
    assert dict(retry["attributes_json"]) == {"attempt": "2"}
    assert (log["name"], dict(log["attributes"])) == ("log", {"message": "gave up"})

    [link] = rows(db, "SELECT * FROM span_links")
    assert (link["span_id"], link["linked_span_id"]) == (0x2F, 0xBB)
    assert link["linked_trace_id"] == "00000000-0000-0000-0000-0000000000aa"
    assert dict(link["attributes"]) == {"opentracing.ref_type": "follows_from"}


@pytest.mark.parametrize("layout", [TRACE, [TRACE], {"data": [TRACE]}], ids=["trace", "list", "answer"])
def test_every_layout_of_a_download(tmp_path: Path, layout: object) -> None:
    assert rows(imported(tmp_path, json.dumps(layout)), "SELECT count(*) AS n FROM spans") == [{"n": 2}]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spanID": "0"}, "span: span id is all zeros"),
        ({"spanID": "xyz"}, "span: span id is not 1 to 16 hex digits"),
        ({"traceID": "1" * 33}, "span: trace id is not 1 to 32 hex digits"),
        ({"startTime": "yesterday"}, "span: startTime is not a number of microseconds that fits"),
        ({"startTime": -1}, "span: startTime is not a number of microseconds that fits"),
        ({"startTime": 10**18}, "span: startTime is not a number of microseconds that fits"),
        ({"tags": {"a": 1}}, "span: tags is not a list"),
        ({"tags": [{"type": "string", "value": "x"}]}, "span: one of the tags has no key"),
        ({"references": ["x"]}, "span: a reference is not an object"),
        ({"operationName": 7}, "span: operationName is not a string"),
    ],
)
def test_a_bad_span_is_counted_and_its_neighbour_kept(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    good, bad = TRACE["spans"][1], {**TRACE["spans"][0], **change}  # type: ignore[index]
    db = imported(tmp_path, json.dumps(jaeger({**TRACE, "spans": [good, bad]})))

    assert rows(db, "SELECT span_id FROM spans") == [{"span_id": 0x2F}]
    [error] = rows(db, "SELECT source, reason, count FROM ingest_errors")
    assert error == {"source": str(tmp_path / "jaeger.json"), "reason": f"{reason} (first at line 1)", "count": 1}


def test_a_download_that_broke_off_gives_the_traces_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps(jaeger(TRACE, {**TRACE, "traceID": "2"}))
    db = imported(tmp_path, text[: len(text) * 3 // 4])

    assert rows(db, "SELECT count(*) AS n FROM spans") == [{"n": 2}]
    assert "it ends early" in capsys.readouterr().err


def test_nothing_but_damage_exits_2(tmp_path: Path) -> None:
    imported(tmp_path, '{"data": [{"traceID": "1", "spans": [{"spanID"', code=2)


def test_a_client_and_a_server_that_share_a_span_become_two(tmp_path: Path) -> None:
    client = {**TRACE["spans"][1], "references": []}  # type: ignore[index]
    server = {**client, "processID": "p1", "tags": [{"key": "span.kind", "type": "string", "value": "server"}]}
    db = imported(tmp_path, json.dumps(jaeger({**TRACE, "spans": [client, server]})))

    by_kind = {row["kind"]: row for row in rows(db, "SELECT kind, span_id, parent_span_id FROM spans")}
    assert by_kind["CLIENT"]["span_id"] == 0x2F
    assert by_kind["SERVER"]["parent_span_id"] == 0x2F
    assert by_kind["SERVER"]["span_id"] != 0x2F

"""One line to one call, whatever shares a request id or the number that stands for one."""

from collections import Counter
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.forensics import log_lines, matching
from collector.forensics.calls import calls
from collector.forensics.tables import Window, compile_sql
from tests.collector.forensics.factories import MINUTE, T0, Row, S, make_proxy_record, make_span, next_id, store

Answer = dict[str, Any]


def call(at: int, request_id: str, *, callee: str = "pay", path: str = "/") -> list[Row]:
    """A call from web that both sides know by one request id."""
    ids = {
        "trace_id": next_id(),
        "provenance_request_id": request_id,
        "url_path": path,
        "start_time_unix_nano": T0 + at,
    }
    client = make_span(span_id=next_id(), kind="CLIENT", service_name="web", **ids)
    return [client, make_span(span_id=next_id(), parent_span_id=client["span_id"], service_name=callee, **ids)]


def line(at: int, request_id: str, side: str = "inbound", *, service: str | None = None, **more: Any) -> Row:
    """What a proxy wrote of such a call."""
    service = service or ("pay" if side == "inbound" else "web")
    return make_proxy_record(
        service_name=service, direction=side, request_id=request_id, start_time_unix_nano=T0 + at, **more
    )


@cache
def calls_sql() -> str:
    return compile_sql(calls(Window()))


def matched(spans: list[Row], records: list[Row], sql: str | None = None) -> list[Answer]:
    rows = store(spans, records)(sql or calls_sql()).to_dicts()
    return sorted(rows, key=lambda row: (row["start_time_unix_nano"], row["server_span_id"]))


@pytest.mark.slow
def test_requests_that_share_a_number_are_told_apart_by_their_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two request ids with one hash must not lend each other their lines."""
    for module in (log_lines, matching):
        monkeypatch.setattr(
            module, "key_hash", lambda service, key: (service.length() * 0 + key.length() * 0).cast("int64")
        )
    spans = [*call(0, "first"), *call(S, "second"), *call(2 * S, "third", callee="stock")]
    records = [
        line(0, "first"),
        line(S, "second", "outbound"),
        line(2 * S, "third", service="stock"),
        line(0, "of nobody"),
    ]
    sql = compile_sql(calls(Window()))
    first, second, third = matched(spans, records, sql)
    assert (first["outbound_record_id"], first["inbound_record_id"]) == (None, records[0]["record_id"])
    assert (second["outbound_record_id"], second["inbound_record_id"]) == (records[1]["record_id"], None)
    assert (third["outbound_record_id"], third["inbound_record_id"]) == (None, records[2]["record_id"])
    assert not any(row[f"{side}_ambiguous"] for row in (first, second, third) for side in ("outbound", "inbound"))
    [alone] = matched(call(0, "first"), [line(0, "of nobody")], sql)
    assert (alone["inbound_record_id"], alone["inbound_ambiguous"]) == (None, False)


def test_a_crowded_request_id_takes_nothing_from_single_ones() -> None:
    crowd = [row for n in range(3) for row in call(n * MINUTE, "again")]
    single = [*call(10 * S, "once"), *call(20 * S, "missed")]
    records = [line(0, "again"), line(2 * MINUTE, "again"), line(10 * S, "once"), line(10 * S, "once", "outbound")]
    rows = {(row["request_id"], row["start_time_unix_nano"] - T0): row for row in matched([*crowd, *single], records)}
    assert rows["again", 0]["inbound_record_id"] == records[0]["record_id"]
    assert rows["again", MINUTE]["inbound_record_id"] is None
    assert rows["again", 2 * MINUTE]["inbound_record_id"] == records[1]["record_id"]
    once = rows["once", 10 * S]
    assert (once["inbound_record_id"], once["outbound_record_id"]) == (records[2]["record_id"], records[3]["record_id"])
    assert rows["missed", 20 * S]["inbound_record_id"] is None


def test_a_line_without_a_direction_vouches_on_either_side_and_its_copies_count_once() -> None:
    record = line(0, "only") | {"direction": None}
    caller = line(0, "only", service="web") | {"direction": None}
    [row] = matched(call(0, "only"), [record, dict(record), caller, dict(caller)])
    assert row["inbound_record_id"] == record["record_id"]
    assert row["outbound_record_id"] == caller["record_id"]


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from("abc"), st.sampled_from(["/", "/other"]), st.booleans()),
        max_size=8,
    )
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_line_vouches_for_two_calls_and_none_for_a_call_of_another_request(
    drawn: list[tuple[int, str, str, bool]],
) -> None:
    spans = [row for at, key, path, _ in drawn for row in call(at * S, key, path=path)]
    records = [line(at * S, key, path=path) for at, key, path, logged in drawn if logged]
    by_id = {row["record_id"]: row for row in records}
    rows = matched(spans, records)
    taken = [row["inbound_record_id"] for row in rows if row["inbound_record_id"] is not None]
    assert max(Counter(taken).values(), default=1) == 1
    for row in rows:
        found = by_id.get(row["inbound_record_id"])
        assert found is None or (found["request_id"], found["path"]) == (row["request_id"], row["path"])

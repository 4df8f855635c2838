"""Spans that repeat within what is inserted together, many times or beside stored ones: each is stored once, with its events."""

from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.otlp import decode_group
from collector.otlp.synthetic import trace_request
from collector.store.database import Store
from collector.store.insert import Inserter


def inserted(store: Store, *groups: list[ExportTraceServiceRequest]) -> tuple[int, int, int]:
    """Spans, different spans and events, after these groups were inserted one after the other."""
    cursor = store.cursor()
    inserter = Inserter(cursor)
    for number, requests in enumerate(groups):
        payloads = [request.SerializeToString() for request in requests]
        inserter.insert(decode_group(payloads, [1_000 + number] * len(payloads)).parts)
    row = cursor.execute(
        "SELECT count(*), count(DISTINCT span_id), (SELECT count(*) FROM span_events) FROM spans"
    ).fetchone()
    cursor.close()
    assert row is not None
    return row


def repeated(times: int) -> ExportTraceServiceRequest:
    """The same ten spans so often, each with an event."""
    request = trace_request(10)
    spans = request.resource_spans[0].scope_spans[0].spans
    for span in spans:
        span.events.add(name="event", time_unix_nano=5)
    for _ in range(times - 1):
        spans.extend(list(spans)[:10])
    return request


@pytest.mark.parametrize("times", [2, 500])
def test_repeats_within_a_request(tmp_path: Path, times: int) -> None:
    with Store.open(tmp_path / "evidence.duckdb") as store:
        assert inserted(store, [repeated(times)]) == (10, 10, 10)


def test_repeats_of_what_is_stored_and_among_themselves(tmp_path: Path) -> None:
    with Store.open(tmp_path / "evidence.duckdb") as store:
        assert inserted(store, [repeated(1)], [repeated(2), trace_request(10, seed=1), repeated(1)]) == (20, 20, 10)

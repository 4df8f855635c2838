"""What was sent and what was acknowledged, and what an evidence file says of it: by ids, span by span.

A request's bytes follow from its number, and everything about a span from the request's number and its own: so a file is
checked without a copy of what was sent. Span i of request k has the id k · 2^16 + i + 1, i % 3 events and i % 2 links.
"""

import random
import struct
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from collector.errors import StoreError
from collector.otlp.synthetic import START_UNIX_NANO, attribute
from collector.store.database import Store

MAX_SPANS = 512
EVENTS, LINKS = 3, 2
"""Span i has i % EVENTS events and i % LINKS links."""


def make_request(number: int, spans: int) -> bytes:
    """Request `number`, serialised."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.extend(
        [
            attribute("service.name", f"service-{number % 7}"),
            # New ones all the while: a resource is stored with the first span that has it, also when that one is killed.
            attribute("service.instance.id", f"instance-{number // 20}"),
        ]
    )
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = f"scope-{number % 3}"
    scope_spans.scope.version = str(number // 100)
    scope_spans.spans.extend(_span(number, index) for index in range(spans))
    return request.SerializeToString()


def _span(number: int, index: int) -> Span:
    trace_id, span_id = _ids(number, index)
    start = START_UNIX_NANO + number * 1_000_000 + index
    span = Span(
        trace_id=trace_id,
        span_id=span_id,
        name=f"{number}/{index}",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=start,
        end_time_unix_nano=start + 1_000 + index,
        attributes=[
            attribute("http.request.method", "POST"),
            attribute("http.response.status_code", 200 + index % 300),
            attribute("campaign.span", f"{number}/{index}"),
            attribute("campaign.index", index),
        ],
    )
    for event in range(index % EVENTS):
        made = span.events.add(name=f"event {event}", time_unix_nano=start + event)
        made.attributes.append(attribute("event", event))
    if index % LINKS:
        span.links.add(trace_id=trace_id, span_id=span_id[::-1]).attributes.append(attribute("link", index))
    return span


def _ids(number: int, index: int) -> tuple[bytes, bytes]:
    return struct.pack(">QQ", 1, number * 64 + index // 8), struct.pack(">Q", (number << 16) + index + 1)


@dataclass(slots=True)
class _Sent:
    spans: int
    first_sent_unix_nano: int
    acknowledged: bool = False


class Ledger:
    """Hands out requests and remembers their fate; any thread may ask.

    Attributes:
        problems: Answers that a sender of good spans must never see.
    """

    def __init__(self, seed: int, max_spans: int = MAX_SPANS) -> None:
        self._max_spans = max_spans
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._sent: dict[int, _Sent] = {}
        self.problems: list[str] = []
        self.resent = 0

    def next_request(self) -> tuple[int, bytes]:
        """The next request: as many small ones as large ones, as far as a factor of two goes."""
        with self._lock:
            number = len(self._sent)
            spans = min(self._max_spans, int(2 ** self._random.uniform(0, 9.1)))
            self._sent[number] = _Sent(spans, time.time_ns())
        return number, make_request(number, spans)

    def acknowledge(self, number: int) -> None:
        """The collector said that it has the request."""
        with self._lock:
            self._sent[number].acknowledged = True

    def sent_again(self) -> None:
        """A request got no answer, or was to be sent again."""
        with self._lock:
            self.resent += 1

    def complain(self, problem: str) -> None:
        """Something happened to a good request that must not."""
        with self._lock:
            self.problems.append(problem)

    @property
    def acknowledged(self) -> int:
        """Requests so far."""
        with self._lock:
            return sum(sent.acknowledged for sent in self._sent.values())

    def acknowledged_requests(self) -> frozenset[int]:
        """Their numbers, until now."""
        with self._lock:
            return frozenset(number for number, sent in self._sent.items() if sent.acknowledged)

    def table(self, acknowledged: frozenset[int] | None = None) -> pa.Table:
        """What is known now: `request, spans, acknowledged, first_sent_unix_nano`; with who was acknowledged at another moment."""
        with self._lock:
            sent = list(self._sent.items())
            if acknowledged is None:
                acknowledged = frozenset(number for number, s in sent if s.acknowledged)
        return pa.table(
            {
                "request": pa.array([number for number, _ in sent], pa.uint64()),
                "spans": pa.array([s.spans for _, s in sent], pa.int64()),
                "acknowledged": pa.array([number in acknowledged for number, _ in sent], pa.bool_()),
                "first_sent_unix_nano": pa.array([s.first_sent_unix_nano for _, s in sent], pa.int64()),
            }
        )


# --- what a file says -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a file holds of a ledger; every number from `lost_spans` on is a defect unless it is zero."""

    acknowledged_spans: int
    stored_spans: int
    lost_spans: int
    duplicated_spans: int
    torn_requests: int
    unknown_spans: int
    altered_spans: int
    events_lost: int
    events_duplicated: int
    links_lost: int
    links_duplicated: int
    without_resource: int
    without_scope: int
    repeated_origins: int
    without_arrival: int
    unlisted_keys: int

    @property
    def defects(self) -> dict[str, int]:
        """What is not as it should be."""
        return {k: v for k, v in asdict(self).items() if v and k not in {"acknowledged_spans", "stored_spans"}}


_INDEX = "((span_id & 65535) - 1)::BIGINT"
_REQUEST = "(span_id >> 16)"

_BY_REQUEST = f"""
WITH stored AS (SELECT {_REQUEST} AS request, count(*) AS n, count(DISTINCT span_id) AS d FROM spans GROUP BY 1),
     kept AS (SELECT coalesce(max(value::BIGINT), 0) AS since FROM meta WHERE key = 'evidence_since_unix_nano')
SELECT sum(spans) FILTER (acknowledged),
       sum(d),
       sum(greatest(spans - coalesce(d, 0), 0)) FILTER (acknowledged AND first_sent_unix_nano >= since),
       sum(n - d),
       count(*) FILTER (NOT acknowledged AND d < spans AND first_sent_unix_nano >= since),
       sum(n) FILTER (spans IS NULL OR d > spans)
FROM ledger FULL JOIN stored USING (request), kept"""

_COUNTED_BY_REQUEST = (
    "acknowledged_spans",
    "stored_spans",
    "lost_spans",
    "duplicated_spans",
    "torn_requests",
    "unknown_spans",
)

_EXPECTED = "SELECT coalesce(sum({index} % {every}), 0) FROM (SELECT DISTINCT span_id FROM spans)"

_SINGLE = {
    "altered_spans": f"""
        SELECT count(*) FROM spans WHERE name <> {_REQUEST}::VARCHAR || '/' || {_INDEX}::VARCHAR
        OR attributes['campaign.span'] IS DISTINCT FROM name OR attributes_json['campaign.index'] <> {_INDEX}::VARCHAR
        OR http_request_method IS DISTINCT FROM 'POST' OR duration_ns <> 1000 + {_INDEX}
        OR replace(trace_id::VARCHAR, '-', '') <> format('{{:016x}}{{:016x}}', 1, ({_REQUEST} * 64 + {_INDEX} // 8)::BIGINT)""",
    "without_resource": "SELECT count(*) FROM spans s ANTI JOIN resources r USING (resource_id, service_name)",
    "without_scope": "SELECT count(*) FROM spans ANTI JOIN scopes USING (scope_id)",
    "repeated_origins": """
        SELECT (SELECT count(*) - count(DISTINCT resource_id) FROM resources)
             + (SELECT count(*) - count(DISTINCT scope_id) FROM scopes)""",
    "without_arrival": f"""
        SELECT count(*) FROM spans s WHERE NOT EXISTS (
          SELECT 1 FROM trace_arrivals a WHERE a.trace_id_low = {_REQUEST} * 64 + ({_INDEX} // 8)::UBIGINT
          AND s.received_unix_nano BETWEEN a.first_received_unix_nano AND a.last_received_unix_nano)""",
    "unlisted_keys": """
        SELECT CASE WHEN (SELECT count(*) FROM spans) = 0 THEN 0 ELSE 2 - count(DISTINCT key) END
        FROM attribute_keys WHERE key IN ('campaign.span', 'campaign.index')""",
}


def check_file(path: Path, ledger: pa.Table) -> Verdict:
    """Open the file for reading and compare; raises StoreError where it cannot be opened."""
    with Store.open_read_only(path) as store:
        cursor = store.cursor()
        try:
            cursor.register("ledger", ledger)
            return _verdict(cursor)
        except duckdb.Error as error:
            raise StoreError(f"{path} was opened and cannot be read: {error}") from error
        finally:
            cursor.close()


def _verdict(cursor: duckdb.DuckDBPyConnection) -> Verdict:
    row = cursor.execute(_BY_REQUEST).fetchone()
    assert row is not None
    by_request = [int(value or 0) for value in row]
    single = {name: _number(cursor, sql) for name, sql in _SINGLE.items()}
    for table, kind, every, what in (
        ("span_events", "events", EVENTS, "name"),
        ("span_links", "links", LINKS, "linked_span_id"),
    ):
        single[f"{kind}_lost"], single[f"{kind}_duplicated"] = _of_spans(cursor, table, every, what)
    return Verdict(**dict(zip(_COUNTED_BY_REQUEST, by_request, strict=True)), **single)


def _of_spans(cursor: duckdb.DuckDBPyConnection, table: str, every: int, what: str) -> tuple[int, int]:
    """Of the events or links of stored spans: how many are missing, and how many are there more than once or for no span."""
    expected = _number(cursor, _EXPECTED.format(index=_INDEX, every=every))
    rows = _number(cursor, f"SELECT count(*) FROM {table}")
    owned = _number(
        cursor,
        f"SELECT count(*) FROM (SELECT DISTINCT trace_id, span_id, {what} FROM {table}) "
        "SEMI JOIN spans USING (trace_id, span_id)",
    )
    return expected - owned, rows - owned


def _number(cursor: duckdb.DuckDBPyConnection, sql: str) -> int:
    row = cursor.execute(sql).fetchone()
    return int(row[0]) if row else 0

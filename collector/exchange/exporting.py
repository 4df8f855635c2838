"""A source's evidence → OTLP or Parquet: the queries, page by page, and what is written of their answers."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector import schema
from collector.exchange.otlp_rows import Origins, requests, resources_of, scopes_of
from collector.exchange.outputs import Output
from collector.exchange.pages import Fetched, Page, Query, Scope, fetch, plan_pages
from collector.exchange.parquet import TABLES_ALONE, TABLES_FIRST, TableFile
from collector.otlp.json_form import request_to_json

_IDS_PER_QUERY: Final = 5_000

_TIME_COLUMNS: Final = dict.fromkeys(("spans", "proxy_records", "flows"), "start_time_unix_nano")
"""What --since and --until are about."""

_LASTING: Final = {
    "sockets": ("first_seen_unix_nano", "last_seen_unix_nano"),
    "socket_watches": ("since_unix_nano", "until_unix_nano"),
}
"""Tables of what lasts, from when to when: in scope is what lasted into it."""

_TIMELESS: Final = frozenset({"egress_allow", "access_logs", "workloads"})
"""Tables that are exported whole: what they say holds for all of the evidence."""

_HASHED: Final = {
    "spans": "span_id",
    "proxy_records": "record_id",
    "flows": "record_id",
    "sockets": "record_id",
    "socket_watches": "since_unix_nano",
    "workloads": "address",
    "ingest_errors": "reason",
}
"""Tables that come in pages, and what tells their rows apart."""


@dataclass(slots=True)
class Exported:
    """How many rows of each table were written."""

    rows: dict[str, int] = field(default_factory=dict)

    def add(self, table: str, rows: int) -> None:
        """Count some more."""
        self.rows[table] = self.rows.get(table, 0) + rows


Encode = Callable[[ExportTraceServiceRequest], bytes]


def json_line(request: ExportTraceServiceRequest) -> bytes:
    """As the Collector's file exporter writes it."""
    return request_to_json(request).encode() + b"\n"


def framed(request: ExportTraceServiceRequest) -> bytes:
    """As the Collector's file exporter writes it with `format: proto`: after its length, 4 bytes."""
    message = request.SerializeToString()
    return len(message).to_bytes(4, "big") + message


def export_otlp(query: Query, scope: Scope, encode: Encode, out: Output) -> Exported:
    """Write every span in scope, with its events and links; raises QueryError, SourceUnreachableError, OSError."""
    exported = Exported()
    origins = _Origins(query)
    for answer in _span_pages(query, scope):
        known = origins.of(answer["spans"])
        for request in requests(answer["spans"], answer["span_events"], answer["span_links"], known):
            out.write(encode(request))
        for table, frame in answer.items():
            exported.add(table, frame.height)
    return exported


def left_out(query: Query, scope: Scope) -> dict[str, int]:
    """Rows in scope that OTLP has no place for, by table."""
    counts = {
        table: int(query(f"SELECT count(*) AS n FROM {table} WHERE {condition}").item())
        for table in TABLES_ALONE
        if (condition := _condition(table, scope)) is not None
    }
    return {table: count for table, count in counts.items() if count}


def export_parquet(query: Query, scope: Scope, directory: Path) -> Exported:
    """Write a file a table; raises QueryError, SourceUnreachableError, OSError."""
    exported = Exported()
    seen: dict[str, set[int]] = {schema.CONTENT_KEYS[table]: set() for table in TABLES_FIRST}
    with ExitStack() as stack:
        files = {table: stack.enter_context(TableFile(directory, table)) for table in schema.TABLES}
        for answer in _span_pages(query, scope):
            for key, ids in seen.items():
                ids.update(answer["spans"].get_column(key).unique().to_list())
            for table, frame in answer.items():
                files[table].write(_arrow(frame))
        for table in TABLES_FIRST:
            for frame in _origin_rows(query, table, None if scope.is_whole else seen[schema.CONTENT_KEYS[table]]):
                files[table].write(_arrow(frame))
        for table in TABLES_ALONE:
            for frame in _rows_alone(query, table, scope):
                files[table].write(_arrow(frame))
        for table, file in files.items():
            exported.add(table, file.rows)
    return exported


# --- asking -------------------------------------------------------------------------------------------------------------


def _span_pages(query: Query, scope: Scope) -> Iterator[Fetched]:
    """Spans, and the events and links of just these spans."""
    condition = _condition("spans", scope) or "true"
    attached = {
        table: int(query(f"SELECT count(*) AS n FROM {table}").item()) for table in ("span_events", "span_links")
    }

    def ask(page: Page) -> Fetched:
        answer = {"spans": query(f"SELECT * FROM spans WHERE {page.condition}")}
        for table, count in attached.items():
            answer[table] = query(
                f"SELECT * FROM {table} WHERE (trace_id, span_id) IN "
                f"(SELECT trace_id, span_id FROM spans WHERE {page.condition if count else 'false'})"
            )
        return answer

    for page in plan_pages(query, "spans", condition, _HASHED["spans"]):
        yield from fetch(page, ask)


def _rows_alone(query: Query, table: str, scope: Scope) -> Iterator[pl.DataFrame]:
    condition = _condition(table, scope)
    if condition is None:
        return
    if table not in _HASHED:
        yield query(f"SELECT * FROM {table} WHERE {condition}")
        return
    for page in plan_pages(query, table, condition, _HASHED[table]):
        for answer in fetch(page, lambda part: {table: query(f"SELECT * FROM {table} WHERE {part.condition}")}):
            yield answer[table]


def _condition(table: str, scope: Scope) -> str | None:
    """SQL of what is in scope; None where nothing of the table is, because it knows no traces."""
    if scope.trace_id is not None and "trace_id" not in {c.name for c in schema.TABLES[table]}:
        return None
    if table in _TIMELESS:
        return "true"
    if table in _LASTING:
        first, last = _LASTING[table]
        return f"{replace(scope, until=None).condition(last)} AND {replace(scope, since=None).condition(first)}"
    return scope.condition(_TIME_COLUMNS.get(table, "received_unix_nano"))


def _origin_rows(query: Query, table: str, ids: Iterable[int] | None) -> Iterator[pl.DataFrame]:
    """Rows of `resources` or `scopes` with these ids, or all."""
    if ids is None:
        yield query(f"SELECT * FROM {table}")
        return
    wanted = sorted(ids)
    key = schema.CONTENT_KEYS[table]
    for start in range(0, len(wanted), _IDS_PER_QUERY):
        some = ", ".join(map(str, wanted[start : start + _IDS_PER_QUERY]))
        yield query(f"SELECT * FROM {table} WHERE {key} IN ({some})")


class _Origins:
    """Resources and scopes, asked for when a span first names them."""

    def __init__(self, query: Query) -> None:
        self._query = query
        self._known = Origins({}, {})

    def of(self, spans: pl.DataFrame) -> Origins:
        """With all that these spans name."""
        resources, scopes = dict(self._known.resources), dict(self._known.scopes)
        for frame in self._missing(spans, "resources", resources):
            resources.update(resources_of(frame))
        for frame in self._missing(spans, "scopes", scopes):
            scopes.update(scopes_of(frame))
        self._known = Origins(resources, scopes)
        return self._known

    def _missing(self, spans: pl.DataFrame, table: str, known: Mapping[int, object]) -> Iterator[pl.DataFrame]:
        named = set(spans.get_column(schema.CONTENT_KEYS[table]).unique().to_list())
        return _origin_rows(self._query, table, named - known.keys())


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow()

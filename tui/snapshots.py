"""What the screens show: immutable snapshots that a worker builds and a handler puts on the screen.

Each keeps the frame that it came from beside the decoded rows, in the same order: an export is the very answer, not a
copy of the screen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

import polars as pl

from collector.forensics.findings import SEVERITIES, Finding

SortOrder = Literal["newest", "slowest"]

SEARCH_LIMIT: Final = 500
"""Traces that one search brings: more than a person reads, and the list says when there were more."""


@dataclass(frozen=True, slots=True)
class TraceQuery:
    """What to search traces for; text matches case-insensitively anywhere in names and attributes."""

    service: str | None = None
    operation: str | None = None
    text: str | None = None
    min_duration_ns: int | None = None
    max_duration_ns: int | None = None
    errors_only: bool = False
    order: SortOrder = "newest"


@dataclass(frozen=True, slots=True)
class Edge:
    """RED of one edge. `caller` None: the outside. Series are one value a time bucket, oldest first."""

    caller: str | None
    callee: str
    operation: str
    calls: int
    request_rate: float
    error_ratio: float
    duration_ns_p50: float | None
    duration_ns_p95: float | None
    duration_ns_p99: float | None
    last_seen_unix_nano: int | None
    is_external: bool = False
    """The callee is a destination without spans of its own."""
    rate_series: tuple[float | None, ...] = ()
    duration_series: tuple[float | None, ...] = ()

    @property
    def key(self) -> str:
        """The edge's identity across refreshes."""
        return "\0".join((self.caller or "", self.callee, self.operation))


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """One row of a trace search."""

    trace_id: str
    start_time_unix_nano: int
    duration_ns: int
    root_service: str
    root_operation: str
    service_count: int
    span_count: int
    error_count: int


@dataclass(frozen=True, slots=True)
class TraceSpan:
    """One span of a trace, in waterfall order (depth first, children by start)."""

    span_id: str
    parent_span_id: str | None
    depth: int
    service_name: str
    name: str
    kind: str
    witness: str
    start_time_unix_nano: int
    duration_ns: int
    self_time_ns: int | None
    on_critical_path: bool
    error: bool
    status_message: str | None
    stamp_status: str | None
    request_hash: str | None
    request_id: str | None
    destination: str | None
    attributes: tuple[tuple[str, str], ...]

    @property
    def end_time_unix_nano(self) -> int:
        """Where its bar ends; a negative duration ends where it starts."""
        return self.start_time_unix_nano + max(self.duration_ns, 0)


@dataclass(frozen=True, slots=True)
class ProxyRecord:
    """One line of a proxy's access log; `columns` holds every column that has a value."""

    service_name: str
    direction: str | None
    start_time_unix_nano: int
    duration_ns: int | None
    method: str | None
    path: str | None
    response_code: int | None
    response_flags: str | None
    upstream_host: str | None
    request_id: str | None
    columns: tuple[tuple[str, str], ...] = ()


Sight = Literal["seen", "missed", "unknown"]


@dataclass(frozen=True, slots=True)
class Hop:
    """What the proxies say of one call, as forensics judged it; `reason` says why a side is unknown."""

    client_span_id: str | None
    server_span_id: str | None
    caller_proxy: Sight
    callee_proxy: Sight
    reason: str = ""


@dataclass(frozen=True)
class Findings:
    """Every finding, most severe first."""

    items: tuple[Finding, ...]
    frame: pl.DataFrame = field(repr=False)
    notes: tuple[str, ...] = ()
    """Sentences on what the detectors could not see."""

    @cached_property
    def worst(self) -> str | None:
        """The highest severity there is."""
        present = {item.severity for item in self.items}
        return next((s for s in SEVERITIES if s in present), None)


@dataclass(frozen=True, slots=True)
class Edges:
    """Every edge with its RED metrics."""

    items: tuple[Edge, ...]
    frame: pl.DataFrame = field(repr=False)


@dataclass(frozen=True, slots=True)
class Hits:
    """The traces that one search found."""

    query: TraceQuery
    items: tuple[TraceSummary, ...]
    frame: pl.DataFrame = field(repr=False)

    @property
    def is_cut(self) -> bool:
        """Whether there may be more than were brought."""
        return len(self.items) >= SEARCH_LIMIT


@dataclass(frozen=True, slots=True)
class Trace:
    """One trace with the access-log records of its request ids."""

    trace_id: str
    spans: tuple[TraceSpan, ...]
    records: tuple[ProxyRecord, ...]
    hops: tuple[Hop, ...]
    """Verdicts, where they have been asked for."""
    frame: pl.DataFrame = field(repr=False)


@dataclass(frozen=True, slots=True)
class Health:
    """How much evidence there is, how new, and what is missing from it."""

    span_count: int
    newest_unix_nano: int | None
    service_count: int
    incomplete: tuple[str, ...] = ()
    """One sentence for each thing that could not be seen."""


@dataclass(frozen=True, slots=True)
class FindingsView:
    """Asks for the SQL behind the findings."""


@dataclass(frozen=True, slots=True)
class EdgesView:
    """Asks for the SQL behind the calls."""


@dataclass(frozen=True, slots=True)
class SearchView:
    """Asks for the SQL behind a trace search."""

    query: TraceQuery


@dataclass(frozen=True, slots=True)
class TraceView:
    """Asks for the SQL behind one trace; the times of its first and last start, where they are known, find its verdicts."""

    trace_id: str
    first_start_unix_nano: int | None = None
    last_start_unix_nano: int | None = None


View = FindingsView | EdgesView | SearchView | TraceView


def decode_findings(frame: pl.DataFrame, notes: tuple[str, ...] = ()) -> Findings:
    """Findings out of a frame with the columns of `findings.SCHEMA`."""
    return Findings(tuple(_finding(row) for row in frame.iter_rows(named=True)), frame, notes)


def _finding(row: Mapping[str, Any]) -> Finding:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k != "finding_id"}
    return Finding(**values)


def decode_edges(frame: pl.DataFrame) -> Edges:
    """Edges out of the frame that `forensics.edges.edges` returns."""
    return Edges(tuple(_edge(row) for row in frame.iter_rows(named=True)), frame)


def _edge(row: Mapping[str, Any]) -> Edge:
    return Edge(
        caller=row["caller"],
        callee=row["callee"] or "?",
        operation=row["operation"] or "",
        calls=row["calls"],
        request_rate=row["request_rate"] or 0.0,
        error_ratio=row["error_ratio"] or 0.0,
        duration_ns_p50=row["duration_ns_p50"],
        duration_ns_p95=row["duration_ns_p95"],
        duration_ns_p99=row["duration_ns_p99"],
        last_seen_unix_nano=row["last_seen_unix_nano"],
        is_external=bool(row["external"]),
        rate_series=tuple(row["rate_series"] or ()),
        duration_series=tuple(row["duration_series"] or ()),
    )


def decode_hits(query: TraceQuery, frame: pl.DataFrame) -> Hits:
    """Trace summaries out of the frame that `forensics.search.search` returns."""
    names = TraceSummary.__slots__
    rows = (
        TraceSummary(**{n: row[n] for n in names} | {n: row[n] or "?" for n in ("root_service", "root_operation")})
        for row in frame.iter_rows(named=True)
    )
    return Hits(query, tuple(rows), frame)


def decode_trace(trace_id: str, spans: pl.DataFrame, records: pl.DataFrame) -> Trace:
    """A trace out of the frames that `forensics.traces.trace` and `trace_records` return."""
    return Trace(
        trace_id,
        tuple(_span(row) for row in spans.iter_rows(named=True)),
        tuple(_record(row) for row in records.iter_rows(named=True)),
        (),
        spans,
    )


def _span(row: Mapping[str, Any]) -> TraceSpan:
    values = {name: row[name] for name in TraceSpan.__slots__ if name != "attributes"}
    return TraceSpan(**values, attributes=_pairs(row["attributes"]))


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """Attributes as the frame holds them: a list of (key, value) lists or structs."""
    pairs = ((p["key"], p["value"]) if isinstance(p, Mapping) else tuple(p) for p in value or ())
    return tuple((str(k), "" if v is None else str(v)) for k, v in pairs)


_RECORD_NAMES: Final = tuple(name for name in ProxyRecord.__slots__ if name != "columns")


def _record(row: Mapping[str, Any]) -> ProxyRecord:
    columns = tuple((k, str(v)) for k, v in row.items() if v is not None and v != [])
    return ProxyRecord(**{name: row.get(name) for name in _RECORD_NAMES}, columns=columns)  # type: ignore[arg-type]

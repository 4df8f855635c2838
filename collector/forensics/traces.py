"""Traces: search for them, and lay one out as a waterfall with its critical path and the proxies' records beside it.

What people type reaches SQL through Ibis literals only, never as text of the statement.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import Any, Final, Literal
from uuid import UUID

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.errors import ConfigError
from collector.forensics.columns import is_error, request_key_of
from collector.forensics.critical_path import (
    Tree,
    build_tree,
    critical_path_below,
    depth_first,
    main_root,
    self_times,
    spans_of,
)
from collector.forensics.edges import deduplicated, destination_of
from collector.forensics.ids import hex_ids, span_id_hex
from collector.forensics.tables import NS_PER_S, Query, Window, compile_sql, proxy_records, spans
from collector.schema import HOT_ATTRIBUTES

TRACE_MARGIN_NS: Final = 3600 * NS_PER_S
"""How far outside the window the rest of a found trace may lie."""

_LATER: Final = 3 * 10**18
"""Added to the start of spans that have a parent, so that roots sort first; added twice it still fits into 64 bits."""

_SEARCHED: Final = (
    "name",
    "service_name",
    "status_message",
    "url_full",
    "url_path",
    "http_route",
    "rpc_service",
    "rpc_method",
    "server_address",
    "error_type",
    "user_agent_original",
    "provenance_request_hash",
    "provenance_request_id",
)

SEARCH_SCHEMA: Final[dict[str, pl.DataType]] = {
    "trace_id": pl.String(),
    "start_time_unix_nano": pl.Int64(),
    "duration_ns": pl.Int64(),
    "root_service": pl.String(),
    "root_operation": pl.String(),
    "service_count": pl.Int64(),
    "span_count": pl.Int64(),
    "error_count": pl.Int64(),
}

TRACE_SCHEMA: Final[dict[str, pl.DataType]] = {
    "span_id": pl.String(),
    "parent_span_id": pl.String(),
    "depth": pl.Int64(),
    "service_name": pl.String(),
    "name": pl.String(),
    "kind": pl.String(),
    "witness": pl.String(),
    "start_time_unix_nano": pl.Int64(),
    "duration_ns": pl.Int64(),
    "self_time_ns": pl.Int64(),
    "on_critical_path": pl.Boolean(),
    "error": pl.Boolean(),
    "status_message": pl.String(),
    "stamp_status": pl.String(),
    "request_hash": pl.String(),
    "request_id": pl.String(),
    "destination": pl.String(),
    "attributes": pl.List(pl.Struct({"key": pl.String(), "value": pl.String()})),
}


@dataclass(frozen=True, slots=True)
class TraceFilter:
    """Which traces to list; every condition must hold, None asks nothing.

    Attributes:
        service: service.name of a span in the trace.
        operation: Name of that same span.
        text: A trace id (32 hex digits), a span id (16), `key=value` for an attribute, or else text that occurs, whatever the case, in that
            span's name, service, status message, URL, route, method, address, error type, request hash or id.
        min_duration_ns: The trace took at least so long.
        max_duration_ns: And at most so long.
        errors_only: Some span of the trace failed.
        window: That span starts here.
        limit: Traces to list.
        order: Newest or slowest first.
    """

    service: str | None = None
    operation: str | None = None
    text: str | None = None
    min_duration_ns: int | None = None
    max_duration_ns: int | None = None
    errors_only: bool = False
    window: Window = field(default_factory=Window)
    limit: int = 200
    order: Literal["newest", "slowest"] = "newest"


@lru_cache(maxsize=16)
def search_sql(wanted: TraceFilter) -> str:
    """The statement behind `search`."""
    return compile_sql(_search(wanted))


def search(query: Query, wanted: TraceFilter) -> pl.DataFrame:
    """The traces that the filter describes; columns `SEARCH_SCHEMA`.

    duration_ns is the root's, or from the first start to the last end where the root is missing.
    """
    frame = hex_ids(query(search_sql(wanted)))
    return frame.select(pl.col(name).cast(dtype) for name, dtype in SEARCH_SCHEMA.items())


@lru_cache(maxsize=16)
def trace_sql(trace_id: str) -> str:
    """The statement that fetches the spans of a trace; raises ConfigError if it is not an id."""
    table = spans()
    return compile_sql(_spans_of(table.filter(table.trace_id == _uuid(trace_id))))


def trace(query: Query, trace_id: str) -> pl.DataFrame:
    """One trace as a waterfall; columns `TRACE_SCHEMA`, one row a span, depth first, siblings by start.

    Orphans are roots, circles of parents are cut; proxies' spans are rows like others. Empty if there is no such trace. Raises
    ConfigError if it is not an id.
    """
    frame = query(trace_sql(trace_id))
    if frame.is_empty():
        return pl.DataFrame(schema=TRACE_SCHEMA)
    tree = build_tree(spans_of(frame))
    by_id = {row["span_id"]: row for row in frame.iter_rows(named=True)}
    own, path = self_times(tree), _main_path(tree)
    rows = [
        _row(by_id[span_id], depth, own[span_id], on_path=path.get(span_id, 0) > 0)
        for root in tree.roots
        for span_id, depth in depth_first(tree, root)
    ]
    return pl.DataFrame(rows, schema=TRACE_SCHEMA)


@lru_cache(maxsize=16)
def trace_records_sql(trace_id: str) -> str:
    """The statement behind `trace_records`; raises ConfigError if it is not an id."""
    wanted = _uuid(trace_id)
    members = spans().filter(ibis._.trace_id == wanted)
    keys = members.select(key=request_key_of(ibis.coalesce(members.provenance_request_id, members.guid_x_request_id)))
    keys = keys.filter(keys.key.notnull()).distinct()
    records = proxy_records()
    named = records.mutate(key=request_key_of(records.request_id))
    by_id = named.semi_join(keys, "key").drop("key")
    # A mesh that logs the trace id says it outright; such records may lack a request id.
    by_trace = records.filter((records.trace_id == wanted) & records.request_id.isnull())
    return compile_sql(by_id.union(by_trace).order_by("start_time_unix_nano", "record_id"))


def trace_records(query: Query, trace_id: str) -> pl.DataFrame:
    """The rows of `proxy_records` that belong to a trace by request id, or by trace id where a mesh logs it; by start.

    Envoy overwrites the character at index 14 of a UUID-shaped x-request-id, so ids are compared without it. Raises ConfigError
    if `trace_id` is not an id.
    """
    return query(trace_records_sql(trace_id))


def _search(wanted: TraceFilter) -> ir.Table:
    table = wanted.window.of(spans())
    conditions = _conditions(table, wanted)
    hits = table.filter(conditions) if conditions else table
    scope = wanted.window.of(spans(), margin_ns=TRACE_MARGIN_NS)
    members = scope.semi_join(hits.select("trace_id").distinct(), "trace_id")
    rank = members.parent_span_id.isnull().ifelse(members.start_time_unix_nano, members.start_time_unix_nano + _LATER)
    # Behind an ingress proxy the root is the proxy's span, and `ingress` tells nobody what was asked: the application's
    # root names the trace, else its first span, else the proxy's.
    named = (members.witness == "proxy").ifelse(members.start_time_unix_nano + 2 * _LATER, rank)
    start, end = members.start_time_unix_nano, members.end_time_unix_nano
    found = members.group_by("trace_id").aggregate(
        start_time_unix_nano=start.min(),
        hull_ns=end.max() - start.min(),
        root_ns=members.duration_ns.argmin(rank),
        rank=rank.min(),
        root_service=members.service_name.argmin(named),
        root_operation=members.name.argmin(named),
        service_count=members.service_name.nunique(),
        span_count=members.span_id.nunique(),
        error_count=members.span_id.nunique(where=is_error(members)),
    )
    has_root = found["rank"] < _LATER
    found = found.mutate(duration_ns=has_root.ifelse(found.root_ns, found.hull_ns)).drop("rank", "root_ns", "hull_ns")
    if wanted.errors_only:
        found = found.filter(found.error_count > 0)
    if wanted.min_duration_ns is not None:
        found = found.filter(found.duration_ns >= wanted.min_duration_ns)
    if wanted.max_duration_ns is not None:
        found = found.filter(found.duration_ns <= wanted.max_duration_ns)
    by = "start_time_unix_nano" if wanted.order == "newest" else "duration_ns"
    return found.order_by([ibis.desc(by), "trace_id"]).limit(max(wanted.limit, 0))


def _conditions(table: ir.Table, wanted: TraceFilter) -> list[ir.BooleanValue]:
    conditions: list[ir.BooleanValue] = []
    if wanted.service is not None:
        conditions.append(table.service_name == wanted.service)
    if wanted.operation is not None:
        conditions.append(table.name == wanted.operation)
    if wanted.text:
        conditions.append(_matches(table, wanted.text.strip()))
    return conditions


def _matches(table: ir.Table, text: str) -> ir.BooleanValue:
    if re.fullmatch(r"[0-9a-fA-F]{32}", text):
        return table.trace_id == ibis.literal(UUID(text), "uuid")
    if re.fullmatch(r"[0-9a-fA-F]{16}", text):
        return table.span_id == ibis.literal(int(text, 16), "uint64")
    anywhere = reduce(
        lambda a, b: a | b,
        [table[c].fill_null("").lower().contains(text.lower()) for c in _SEARCHED],
    )
    key, separator, value = text.partition("=")
    return anywhere | _attribute_is(table, key.strip(), value.strip()) if separator and key.strip() else anywhere


def _attribute_is(table: ir.Table, key: str, value: str) -> ir.BooleanValue:
    """Whether an attribute has this value, as text, wherever the schema keeps it."""
    column = next((a.column for a in HOT_ATTRIBUTES if a.key == key), None)
    # The explicit test for NULL keeps DuckDB 2.0.0 from failing where a whole column of maps is NULL.
    parts = [m.notnull() & (m.get(key) == value) for m in (table.attributes, table.attributes_json)]
    if column is not None:
        parts.append(table[column].cast("string") == value)
    return reduce(lambda a, b: a | b, [part.fill_null(False) for part in parts])


def _spans_of(table: ir.Table) -> ir.Table:
    found = deduplicated(table)
    return found.mutate(
        error=is_error(found),
        request_id=ibis.coalesce(found.provenance_request_id, found.guid_x_request_id),
        destination=found.kind.isin(["CLIENT", "PRODUCER"]).ifelse(destination_of(found), ibis.null("string")),
    ).order_by("start_time_unix_nano", "span_id")


def _uuid(trace_id: str) -> ir.UUIDScalar:
    plain = trace_id.strip().replace("-", "")
    if not re.fullmatch(r"[0-9a-fA-F]{32}", plain):
        raise ConfigError(f"{trace_id!r} is not a trace id: expected 32 hex digits")
    return ibis.literal(UUID(plain), "uuid")


def _main_path(tree: Tree) -> Mapping[int, int]:
    root = main_root(tree)
    return {} if root is None else critical_path_below(tree, root)


def _row(row: Mapping[str, Any], depth: int, own_ns: int, *, on_path: bool) -> dict[str, Any]:
    return {
        "span_id": span_id_hex(row["span_id"]),
        "parent_span_id": span_id_hex(row["parent_span_id"]),
        "depth": depth,
        "self_time_ns": own_ns,
        "on_critical_path": on_path,
        "error": row["error"],
        "stamp_status": row["provenance_stamp_status"],
        "request_hash": row["provenance_request_hash"],
        "request_id": row["request_id"],
        "destination": row["destination"],
        "attributes": _attributes(row),
        **{
            name: row[name]
            for name in (
                "service_name",
                "name",
                "kind",
                "witness",
                "start_time_unix_nano",
                "duration_ns",
                "status_message",
            )
        },
    }


def _attributes(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every attribute of a span as text, by key: those with a column of their own and those of the maps."""
    merged = {a.key: str(row[a.column]) for a in HOT_ATTRIBUTES if row[a.column] is not None}
    for column in ("attributes", "attributes_json"):
        merged.update({key: value for key, value in _pairs(row[column]) if value is not None})
    return [{"key": key, "value": merged[key]} for key in sorted(merged)]


def _pairs(value: Sequence[Any] | Mapping[str, str] | None) -> list[tuple[str, str]]:
    """A map as its engine hands it over: a mapping, or a list of key-value structs or pairs."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        return list(value.items())
    return [(p["key"], p["value"]) if isinstance(p, Mapping) else (p[0], p[1]) for p in value]

"""One trace, laid out as a waterfall with its critical path, and the proxies' records beside it. `search` finds traces.

What people type reaches SQL through Ibis literals only, never as text of the statement.
"""

import re
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.errors import ConfigError
from collector.forensics.columns import destination_of_row, is_error_row, pairs_of, request_key_of
from collector.forensics.critical_path import (
    Tree,
    build_tree,
    critical_path_below,
    depth_first,
    main_root,
    self_times,
    spans_of,
)
from collector.forensics.ids import span_id_hex
from collector.forensics.short_cuts import ARRIVED_JOIN, NONE, ShortCuts, arrived, with_arrivals
from collector.forensics.statements import TRACE_ID, compiled_once, fill, number
from collector.forensics.tables import Query, proxy_records, spans
from collector.schema import HOT_ATTRIBUTES

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


_TRACE: Final = "SELECT spans.* FROM spans{arrived} WHERE spans.trace_id = '{trace_id}'"
"""Written by hand, and everything else is decided row by row: out of ten million spans a trace is read in a few
milliseconds, and each expression over each of its columns would take as long to plan."""


def trace_sql(trace_id: str, known: ShortCuts = NONE) -> str:
    """The statement that fetches the spans of a trace; raises ConfigError if it is not an id."""
    wanted = _uuid(trace_id)
    join = ARRIVED_JOIN.format(low=_low(wanted)) if known.has_arrivals else ""
    return _TRACE.format(arrived=join, trace_id=wanted)


def trace(query: Query, trace_id: str) -> pl.DataFrame:
    """One trace as a waterfall; columns `TRACE_SCHEMA`, one row a span, depth first, siblings by start.

    Orphans are roots, circles of parents are cut; proxies' spans are rows like others. Empty if there is no such trace. Raises
    ConfigError if it is not an id.
    """
    frame = with_arrivals(lambda known: query(trace_sql(trace_id, known)))
    if frame.is_empty():
        return pl.DataFrame(schema=TRACE_SCHEMA)
    # Delivered twice: the one that starts first.
    frame = frame.sort("start_time_unix_nano", "span_id").unique("span_id", keep="first", maintain_order=True)
    tree = build_tree(spans_of(frame))
    by_id = {row["span_id"]: row for row in frame.iter_rows(named=True)}
    own, path = self_times(tree), _main_path(tree)
    rows = [
        _row(by_id[span_id], depth, own[span_id], on_path=path.get(span_id, 0) > 0)
        for root in tree.roots
        for span_id, depth in depth_first(tree, root)
    ]
    return pl.DataFrame(rows, schema=TRACE_SCHEMA)


def trace_records_sql(trace_id: str, known: ShortCuts = NONE) -> str:
    """The statement behind `trace_records`; raises ConfigError if it is not an id."""
    wanted = _uuid(trace_id)
    sql = compiled_once(_records_of_blank, known.has_arrivals)
    return fill(sql, trace_id=str(wanted), span_id=_low(wanted))


def _records_of_blank(has_arrivals: bool) -> ir.Table:  # noqa: FBT001 what is compiled once is told apart by values
    wanted = ibis.literal(UUID(TRACE_ID), "uuid")
    table = arrived(spans(), number("span_id")) if has_arrivals else spans()
    members = table.filter(table.trace_id == wanted)
    keys = members.select(key=request_key_of(ibis.coalesce(members.provenance_request_id, members.guid_x_request_id)))
    keys = keys.filter(keys.key.notnull()).distinct()
    records = proxy_records()
    named = records.mutate(key=request_key_of(records.request_id))
    by_id = named.semi_join(keys, "key").drop("key")
    # A mesh that logs the trace id says it outright; such records may lack a request id.
    by_trace = records.filter((records.trace_id == wanted) & records.request_id.isnull())
    return by_id.union(by_trace).order_by("start_time_unix_nano", "record_id")


def trace_records(query: Query, trace_id: str) -> pl.DataFrame:
    """The rows of `proxy_records` that belong to a trace by request id, or by trace id where a mesh logs it; by start.

    Envoy overwrites the character at index 14 of a UUID-shaped x-request-id, so ids are compared without it. Raises ConfigError
    if `trace_id` is not an id.
    """
    return with_arrivals(lambda known: query(trace_records_sql(trace_id, known)))


def _low(trace_id: UUID) -> int:
    """The half of the id that `trace_arrivals` has."""
    return trace_id.int & (2**64 - 1)


def _uuid(trace_id: str) -> UUID:
    plain = trace_id.strip().replace("-", "")
    if not re.fullmatch(r"[0-9a-fA-F]{32}", plain):
        raise ConfigError(f"{trace_id!r} is not a trace id: expected 32 hex digits")
    return UUID(plain)


def _main_path(tree: Tree) -> Mapping[int, int]:
    root = main_root(tree)
    return {} if root is None else critical_path_below(tree, root)


def _row(row: Mapping[str, Any], depth: int, own_ns: int, *, on_path: bool) -> dict[str, Any]:
    own_id = row["provenance_request_id"]
    return {
        "span_id": span_id_hex(row["span_id"]),
        "parent_span_id": span_id_hex(row["parent_span_id"]),
        "depth": depth,
        "self_time_ns": own_ns,
        "on_critical_path": on_path,
        "error": is_error_row(row),
        "stamp_status": row["provenance_stamp_status"],
        "request_hash": row["provenance_request_hash"],
        "request_id": row["guid_x_request_id"] if own_id is None else own_id,
        "destination": destination_of_row(row) if row["kind"] in {"CLIENT", "PRODUCER"} else None,
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
        merged.update(pairs_of(row[column]))
    return [{"key": key, "value": merged[key]} for key in sorted(merged)]

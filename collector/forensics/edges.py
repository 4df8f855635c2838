"""Who calls whom, how often, how fast and how well: every edge of the mesh with its RED figures.

Spans become calls here, for this table and for the latency and egress detectors:

- An *entry* is where a call arrives: a SERVER or CONSUMER span, a span whose parent belongs to another service, or a root that is
  neither client nor producer. Proxies' spans are stepped over, up to four between caller and callee.
- An *exit* is a CLIENT or PRODUCER span with neither an entry nor another such span below it: a database, an external host, or
  a call whose callee left no span.

Spans may be delivered twice: (trace_id, span_id) counts once. Plain OpenTelemetry spans are enough, even without a single
attribute.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.columns import address_of, host_of, is_error, port_of
from collector.forensics.stages import staged
from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import NS_PER_S, Query, Window, spans

BUCKETS: Final = 24
"""Buckets of a sparkline."""

PARENT_MARGIN_NS: Final = 60 * NS_PER_S
"""How long before the window a parent may have started and still be seen as the caller."""

_LEVELS: Final = 3
"""Spans between an exit and the wrapper spans above it (an SDK's client span around an HTTP client's) that are looked through."""

_READ: Final = (
    "trace_id",
    "span_id",
    "parent_span_id",
    "service_name",
    "service_instance_id",
    "name",
    "kind",
    "witness",
    "start_time_unix_nano",
    "end_time_unix_nano",
    "duration_ns",
    "db_system_name",
    "messaging_system",
    "http_request_method",
    "received_unix_nano",
    "network_peer_address",
    "provenance_request_size",
    "provenance_response_size",
    "provenance_request_id",
)

LINKING: Final = (
    "trace_id",
    "span_id",
    "parent_span_id",
    "service_name",
    "name",
    "kind",
    "witness",
    "start_time_unix_nano",
    "duration_ns",
)
"""What tells a call from other spans, and whose it is."""

_TOLD: Final = ("host", "port", "address", "destination", "error")
"""Where a client span dialled, as `with_destination` tells it, and whether it failed."""

_KEY: Final = ["caller", "callee", "operation", "external"]

SCHEMA: Final[dict[str, pl.DataType]] = {
    "caller": pl.String(),
    "callee": pl.String(),
    "operation": pl.String(),
    "external": pl.Boolean(),
    "calls": pl.Int64(),
    "request_rate": pl.Float64(),
    "error_ratio": pl.Float64(),
    "duration_ns_p50": pl.Int64(),
    "duration_ns_p95": pl.Int64(),
    "duration_ns_p99": pl.Int64(),
    "last_seen_unix_nano": pl.Int64(),
    "rate_series": pl.List(pl.Int64()),
    "duration_series": pl.List(pl.Int64()),
}


@dataclass(frozen=True, slots=True)
class Calls:
    """The spans of a window as calls.

    Attributes:
        entries: One row an entry: the columns that were asked for, `_TOLD`, `app_parent`, and of the span that called it, where it is known,
            `parent_service`, `parent_name`, `parent_kind`, `parent_duration_ns`, `parent_address`.
        exits: One row an exit: the same columns and `app_parent`.
    """

    entries: ir.Table
    exits: ir.Table


def calls_in(window: Window, table: ir.Table | None = None, columns: Sequence[str] = _READ) -> Calls:
    """Entries and exits that start in the window, as Ibis expressions over `table` (default: the unbound spans).

    Of `_READ` they have `columns`, which must have `LINKING`: an engine carries each through a few joins, whether it is used or not.
    """
    scope = window.of(spans() if table is None else table, margin_ns=PARENT_MARGIN_NS)
    # Whether it failed is found out before the joins: one truth value goes through them instead of what tells it.
    told = with_destination(scope.mutate(error=is_error(scope)))
    everything = deduplicated(told.select(*columns, *_TOLD))
    app = _with_app_parent(everything)
    parent = everything.filter(everything.witness != "proxy").select(
        caller_trace="trace_id",
        caller_span="span_id",
        parent_service="service_name",
        parent_name="name",
        parent_kind="kind",
        parent_duration_ns="duration_ns",
        parent_address="address",
    )
    linked = app.left_join(staged("parents", parent), [("trace_id", "caller_trace"), ("app_parent", "caller_span")])
    linked = linked.mutate(is_entry=_is_entry(linked), is_exit=linked.kind.isin(["CLIENT", "PRODUCER"]))
    linked = staged("linked", linked)
    entries = window.of(linked.filter(linked.is_entry))
    candidates = linked.filter(linked.is_exit)
    exits = window.of(_without_calls_below(linked, candidates))
    return Calls(entries, exits)


def deduplicated(table: ir.Table) -> ir.Table:
    """The rows with each (trace_id, span_id) once: of those that came more often, the one that starts first.

    Numbering all rows would sort them all; counting keys and numbering the few that repeat takes two thirds of the time.
    """
    key = ["trace_id", "span_id"]
    counted = table.group_by(key).aggregate(copies=table.count())
    repeated = staged("repeated", counted.filter(counted.copies > 1).select(*key))
    copies = table.semi_join(repeated, key)
    numbered = copies.mutate(
        copy_number=ibis.row_number().over(
            group_by=[copies.trace_id, copies.span_id], order_by=copies.start_time_unix_nano
        )
    )
    firsts = numbered.filter(numbered.copy_number == 0).drop("copy_number")
    return table.anti_join(repeated, key).union(firsts)


def with_destination(table: ir.Table) -> ir.Table:
    """The rows with `host`, `port`, `address` and `destination`, each a column that the next is made of.

    The destination is what a client span says it reached: its address, else the best name that it carries, else its own
    span name. As one expression, which repeats what it is made of, it takes longer to plan than a trace takes to read.
    """
    dialled = table.mutate(host=host_of(table), port=port_of(table))
    dialled = dialled.mutate(address=address_of(dialled.host, dialled.port))
    names = [dialled[n] for n in ("peer_service", "db_system_name", "messaging_system", "rpc_service", "name")]
    return dialled.mutate(destination=ibis.coalesce(dialled.address, *names))


def destination_of(table: ir.Table) -> ir.StringValue:
    """The destination of `with_destination`, where nothing else is wanted of it."""
    names = (table.peer_service, table.db_system_name, table.messaging_system, table.rpc_service, table.name)
    return ibis.coalesce(address_of(host_of(table), port_of(table)), *names)


def answering(entries: ir.Table) -> ir.Table:
    """Which service answers at an address: one row an address that any entry's client span dialled (address, service)."""
    dialled = entries.filter((entries.parent_kind == "CLIENT") & entries.parent_address.notnull())
    return dialled.group_by(answering_address="parent_address").aggregate(answering_service=dialled.service_name.max())


def edge_calls(window: Window) -> ir.Table:
    """One row a call: caller, callee, operation, external, start_time_unix_nano, duration_ns, error.

    A call is counted where it arrived; where nothing arrived, where it left. An exit whose destination answered other calls of the
    window with a span of a service counts for that service.
    """
    found = calls_in(window, columns=LINKING)
    arrived = found.entries.select(
        caller="parent_service",
        callee="service_name",
        operation="name",
        external=ibis.literal(value=False),
        start_time_unix_nano="start_time_unix_nano",
        duration_ns=found.entries.duration_ns,
        error=found.entries.error,
    )
    exits = found.exits.left_join(answering(found.entries), [("address", "answering_address")])
    left = exits.select(
        caller="service_name",
        callee=ibis.coalesce(exits.answering_service, exits.destination),
        operation="name",
        external=exits.answering_service.isnull(),
        start_time_unix_nano="start_time_unix_nano",
        duration_ns=exits.duration_ns,
        error=exits.error,
    )
    return arrived.union(left)


def edges_sql(window: Window, buckets: int = BUCKETS) -> str:
    """The statement behind `edges`: a row an edge, with its totals, and a row an edge and bucket, with its calls and median."""
    return windowed(window, lambda blank: compiled_once(_figures, blank, buckets))


def edges(query: Query, window: Window, buckets: int = BUCKETS) -> pl.DataFrame:
    """RED figures of every edge of the window, busiest first; columns `SCHEMA`.

    caller is NULL where nothing in the evidence called: the outside. request_rate is calls per second over the window, or over what was
    observed where the window is open. `rate_series` counts calls per bucket; `duration_series` has the median of each
    bucket in ns, NULL where nobody called.
    """
    figures = query(edges_sql(window, buckets))
    if figures.is_empty():
        return pl.DataFrame(schema=SCHEMA)
    totals = figures.filter(pl.col("bucket").is_null()).drop("bucket")
    series = (
        figures.filter(pl.col("bucket").is_not_null())
        .group_by(_KEY)
        .agg("bucket", "calls", "duration_ns_p50")
        .select(
            *_KEY,
            pl.struct("bucket", "calls")
            .map_elements(lambda row: _spread(row, "calls", buckets, 0), return_dtype=pl.List(pl.Int64))
            .alias("rate_series"),
            pl.struct("bucket", "duration_ns_p50")
            .map_elements(lambda row: _spread(row, "duration_ns_p50", buckets, None), return_dtype=pl.List(pl.Int64))
            .alias("duration_series"),
        )
    )
    seconds = (pl.col("window_ns") / NS_PER_S).clip(lower_bound=1e-9)
    joined = totals.join(series, on=_KEY, how="left", nulls_equal=True)
    return (
        joined.with_columns(
            request_rate=pl.col("calls") / seconds,
            error_ratio=pl.col("errors") / pl.col("calls"),
        )
        .select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())
        .sort("calls", "callee", "operation", "caller", descending=[True, False, False, False])
    )


def bucketed(table: ir.Table, window: Window, buckets: int) -> ir.Table:
    """The rows with `bucket` (0 to buckets - 1) and `window_ns`; an open end of the window becomes the first or last start."""
    start = table.start_time_unix_nano
    bounds = table.aggregate(first=start.min(), last=start.max() + 1)
    since = bounds.first if window.since_unix_nano is None else ibis.literal(window.since_unix_nano, "int64")
    until = bounds.last if window.until_unix_nano is None else ibis.literal(window.until_unix_nano, "int64")
    bounds = bounds.select(window_since=since, window_ns=until - since)
    joined = table.cross_join(bounds)
    share = (joined.start_time_unix_nano - joined.window_since) / joined.window_ns
    bucket = ibis.least((share * buckets).floor().cast("int64"), ibis.literal(buckets - 1, "int64"))
    return joined.mutate(bucket=bucket)


def _figures(window: Window, buckets: int) -> ir.Table:
    """Of every edge its totals (bucket is NULL) and its buckets, in one statement: what is a call is then found out once."""
    calls = bucketed(staged("edge_calls", edge_calls(window)), window, buckets)
    duration = calls.duration_ns
    counted = {"calls": calls.count(), "duration_ns_p50": duration.quantile(0.5)}
    totals = calls.group_by(_KEY).aggregate(
        **counted,
        # Not a sum: DuckDB sums integers into 128 bits, which Arrow calls a decimal.
        errors=calls.count(where=calls.error),
        duration_ns_p95=duration.quantile(0.95),
        duration_ns_p99=duration.quantile(0.99),
        last_seen_unix_nano=calls.start_time_unix_nano.max(),
        window_ns=calls.window_ns.max(),
    )
    series = calls.group_by([*_KEY, "bucket"]).aggregate(**counted)
    totals = totals.mutate(bucket=ibis.null("int64"))
    missing = {name: ibis.null(totals.schema()[name]) for name in totals.columns if name not in series.columns}
    return totals.union(series.mutate(**missing).select(*totals.columns))


def _spread(row: dict[str, list[int]], column: str, buckets: int, empty: int | None) -> list[int | None]:
    values: list[int | None] = [empty] * buckets
    for bucket, value in zip(row["bucket"], row[column], strict=True):
        values[bucket] = round(value)
    return values


def _with_app_parent(everything: ir.Table) -> ir.Table:
    """The application's spans with `app_parent`: the nearest ancestor that no proxy wrote, NULL where there is none."""
    up = everything.filter(everything.witness == "proxy").select(
        up_trace="trace_id", up_id="span_id", above="parent_span_id"
    )
    # Two doublings: at most four proxies' spans in a row are stepped over (Linkerd writes up to four a hop).
    for _ in range(2):
        up = staged("above_proxies", up)
        step = up.view().select(step_trace="up_trace", step_id="up_id", step_above="above")
        joined = up.left_join(step, [("up_trace", "step_trace"), ("above", "step_id")])
        nearest = joined.step_id.notnull().ifelse(joined.step_above, joined.above)
        up = joined.select("up_trace", "up_id", above=nearest).view()
    app = everything.filter(everything.witness != "proxy")
    joined = app.left_join(up, [("trace_id", "up_trace"), ("parent_span_id", "up_id")])
    nearest = joined.up_id.notnull().ifelse(joined.above, joined.parent_span_id)
    return joined.select(*everything.columns, app_parent=nearest).view()


def _is_entry(linked: ir.Table) -> ir.BooleanValue:
    arrives = linked.kind.isin(["SERVER", "CONSUMER"])
    crosses = (linked.parent_service != linked.service_name).fill_null(False)
    root = linked.app_parent.isnull() & linked.kind.notin(["CLIENT", "PRODUCER"])
    return arrives | crosses | root


def _without_calls_below(linked: ir.Table, candidates: ir.Table) -> ir.Table:
    """The candidates with neither an entry nor another candidate up to `_LEVELS` spans below, within their service."""
    called = linked.mutate(is_call=linked.is_entry | linked.is_exit)
    below = called.filter(called.is_call).select(above_trace="trace_id", above_id="app_parent")
    left = staged("leaves", candidates.anti_join(below, [("trace_id", "above_trace"), ("span_id", "above_id")]))
    # From here on downwards: what is directly below these is no call, and mostly there is nothing.
    level = left.select("trace_id", leaf_id="span_id", above_id="span_id")
    children = called.select(child_trace="trace_id", child_id="span_id", child_of="app_parent", is_call="is_call")
    for depth in range(_LEVELS):
        below = level.inner_join(children.view(), [("trace_id", "child_trace"), ("above_id", "child_of")])
        below = staged("below", below.select("trace_id", "leaf_id", "is_call", above_id="child_id"))
        if depth:
            left = left.anti_join(below.filter(below.is_call), [("trace_id", "trace_id"), ("span_id", "leaf_id")])
        level = below.select("trace_id", "leaf_id", "above_id")
    return left

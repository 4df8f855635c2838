"""Who reported in which minute: what tells "it stopped" from "nobody looked". Expressions in, `Coverage` out; no I/O."""

from collections import defaultdict
from typing import Final

import ibis
import ibis.expr.types as ir

from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import NS_PER_S, Query, Window
from collector.schema import TABLES, ibis_schema
from collector.watch.model import MINUTE_NS, Coverage

LAG_NS: Final = 30 * NS_PER_S
"""A minute is complete when something so much later was received: exporters batch for 5 s, detectors settle for 15 s."""

WITNESS_TABLES: Final = tuple(
    name
    for name in ("spans", "proxy_records", "flows", "sockets", "socket_watches", "workloads", "egress_allow")
    if name in TABLES
)
"""Tables whose growth can change a finding."""

FRESHNESS_SQL: Final = (
    "SELECT table_name, estimated_size::BIGINT AS row_count FROM duckdb_tables() "
    "WHERE database_name = current_database() AND schema_name = 'main' AND NOT internal "
    f"AND table_name IN ({', '.join(repr(name) for name in WITNESS_TABLES)}) ORDER BY table_name"
)
"""How much there is, out of the catalogue: it costs the same however much that is."""


def freshness(query: Query) -> tuple[tuple[str, int], ...]:
    """A value that changes whenever a table that detectors read has changed. Raises what `query` raises."""
    return tuple((str(name), int(rows)) for name, rows in query(FRESHNESS_SQL).iter_rows())


def coverage_of(query: Query, window: Window) -> Coverage:
    """Who reported in the window's complete minutes. Raises what `query` raises."""
    rows = query(coverage_sql(window))
    minutes: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    newest = 0
    for witness, service, minute, received in rows.select("witness", "service", "minute", "received").iter_rows():
        minutes[witness, service].add(minute)
        minutes["any", "*"].add(minute)
        newest = max(newest, received)
    return Coverage({key: frozenset(those) for key, those in minutes.items()}, max(0, newest - LAG_NS) // MINUTE_NS)


def coverage_sql(window: Window) -> str:
    """The statement: witness, service, minute (of the Unix epoch) and when its newest row was received."""
    return windowed(window, lambda blank: compiled_once(_reports, blank))


def _reports(window: Window) -> ir.Table:
    spans = _table("spans")
    parts = [
        _by_minute(window, spans.filter(spans.witness != "proxy"), "spans", spans.service_name),
        _by_minute(window, _table("proxy_records"), "logs", _table("proxy_records").service_name),
    ]
    if "flows" in TABLES:
        parts.append(_by_minute(window, _table("flows"), "flows", ibis.literal("*")))
    if "socket_watches" in TABLES:
        watches = _table("socket_watches")
        watches = watches.mutate(start_time_unix_nano=watches.since_unix_nano)
        parts.append(_by_minute(window, watches, "sockets", ibis.literal("*")))
    return ibis.union(*parts)


def _by_minute(window: Window, table: ir.Table, witness: str, service: ir.StringValue) -> ir.Table:
    named = table.mutate(
        witness=ibis.literal(witness), service=service, minute=(table.start_time_unix_nano // MINUTE_NS).cast("int64")
    )
    return window.of(named).group_by("witness", "service", "minute").agg(received=named.received_unix_nano.max())


def _table(name: str) -> ir.Table:
    return ibis.table(ibis_schema(name), name=name)

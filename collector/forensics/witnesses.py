"""Which witnesses of connections a window has, so that a statement asks only those that are there."""

import ibis
import ibis.expr.types as ir

from collector.forensics.connections import Present
from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import NS_PER_S, Query, Window, flows, socket_watches, sockets, workloads

_AROUND_NS = 60 * NS_PER_S


def present_in(query: Query, window: Window) -> Present:
    """What there is of sockets, flows and workloads around the window. Raises what `query` raises."""
    [row] = query(windowed(window, lambda blank: compiled_once(_present, blank))).to_dicts()
    return Present(sockets=bool(row["sockets"]), flows=bool(row["flows"]), workloads=bool(row["workloads"]))


def _present(window: Window) -> ir.Table:
    connections, watches = sockets(), socket_watches()
    wide = window.widened(_AROUND_NS)
    if wide.since_unix_nano is not None:
        connections = connections.filter(connections.last_seen_unix_nano >= wide.since_unix_nano)
        watches = watches.filter(watches.until_unix_nano >= wide.since_unix_nano)
    if wide.until_unix_nano is not None:
        connections = connections.filter(connections.first_seen_unix_nano < wide.until_unix_nano)
        watches = watches.filter(watches.since_unix_nano < wide.until_unix_nano)
    counts = [
        _some(name, table)
        for name, table in (
            ("sockets", connections.select("record_id").union(watches.select(record_id=ibis.literal(0, "uint64")))),
            ("flows", wide.of(flows()).select("record_id")),
            ("workloads", workloads().select("address")),
        )
    ]
    first, *others = counts
    for other in others:
        first = first.cross_join(other)
    return first


def _some(name: str, table: ir.Table) -> ir.Table:
    first = table.limit(1)
    return first.agg(**{name: first.count()})

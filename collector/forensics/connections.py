"""What sockets and flows prove of each call: the connection that carried it, and whether a proxy had the other end.

Two ways lead from a call to a connection, the stronger first:

- *exact*: the server span names its peer's address and port. A socket of the callee with that remote end, a socket of the
  caller with that local end, or a flow from there, alive at the time of the call, carried it. One connection carries many calls
  and may be far older than each. Two witnesses that disagree of the same connection (a port used again) prove nothing.
- *alike*: where no port is known, all connections that may have carried it: those of the caller's replica to the address and
  port that it dialled, or into the callee's replica from the peer's address, in the minute before, of and after the call. What
  all of them agree on holds for the call too; where they differ, it cannot be told which it was. Flows count here by the names
  of both ends, and only to vouch: a mesh that encrypts logs a connection when it ends, so others may be still to come.

A destination that was dialled is a service's virtual address in the client's socket and a pod's in a flow: so sockets are found
by what the client dialled, flows by who the ends are. Loopback is the same everywhere, and joins only within one service.
"""

from dataclasses import dataclass
from typing import Final

import ibis
import ibis.expr.types as ir

from collector.forensics.addresses import is_local, named_flows
from collector.forensics.stages import staged
from collector.forensics.tables import NS_PER_S, Window, sockets, spans

CONNECTION_SLACK_NS: Final = 5 * NS_PER_S
"""A witness looks every second, and its clock is not the span's."""

MINUTE_NS: Final = 60 * NS_PER_S
CAPTURED: Final = "captured"
BYPASSED: Final = "bypassed"
PORT_KEYS: Final = ("client.port", "net.peer.port")
"""Where a server span has its peer's port: the present and the older convention's name."""

UNIT: Final = ("side", "trace_id", "server_span_id")


@dataclass(frozen=True, slots=True)
class Present:
    """Which witnesses of connections, and of whose they are, a window has: a statement asks only those."""

    sockets: bool = True
    flows: bool = True
    workloads: bool = True

    @property
    def any(self) -> bool:
        """Whether there is any of them."""
        return self.sockets or self.flows or self.workloads


def connection_proofs(calls: ir.Table, window: Window, present: Present) -> ir.Table:
    """One row a side of a call of which a connection says something.

    Columns: side, trace_id, server_span_id; exact_seen, exact_missed; alike_seen, alike_missed, alike_mixed (booleans);
    connection_id (the record), connection_uid (whose process had the bypassing socket, NULL where not known).
    """
    found = []
    if present.sockets:
        logged = _sockets(window)
        ends = _peers(calls, window)
        found += [_exact_inbound(ends, logged), _exact_outbound(ends, logged)]
        found += [_alike_outbound(calls, logged), _alike_inbound(calls, logged)]
    if present.flows:
        logged_flows = named_flows(window)
        found += [_exact_flows(_peers(calls, window), logged_flows), _alike_flows(calls, logged_flows)]
    both = ibis.union(*found) if len(found) > 1 else found[0]
    table = staged("connection_words", both)
    proofs = table.group_by(list(UNIT)).agg(
        seen=table.seen.any(where=table.exact).fill_null(False),
        missed=table.missed.any(where=table.exact).fill_null(False),
        seen_alike=table.seen.any(where=~table.exact).fill_null(False),
        missed_alike=table.missed.any(where=~table.exact).fill_null(False),
        mixed=table.mixed.any().fill_null(False),
        connection_id=ibis.coalesce(table.record_id.max(where=table.missed), table.record_id.max()),
        connection_uid=table.uid.max(where=table.missed),
    )
    clear = ~proofs.mixed & ~(proofs.seen_alike & proofs.missed_alike)
    return staged(
        "connection_proofs",
        proofs.select(
            *UNIT,
            "connection_id",
            "connection_uid",
            exact_seen=proofs.seen & ~proofs.missed,
            exact_missed=proofs.missed & ~proofs.seen,
            alike_seen=proofs.seen_alike & clear,
            alike_missed=proofs.missed_alike & clear,
            alike_mixed=~clear | (proofs.seen & proofs.missed),
        ),
    )


def _sockets(window: Window) -> ir.Table:
    """The connections of which the witness could tell, as they were when they were last seen."""
    table = sockets()
    if window.since_unix_nano is not None:
        table = table.filter(table.last_seen_unix_nano >= window.since_unix_nano - CONNECTION_SLACK_NS)
    if window.until_unix_nano is not None:
        table = table.filter(table.first_seen_unix_nano < window.until_unix_nano + CONNECTION_SLACK_NS)
    table = table.filter(table.direction.notnull() & (table.capture.isnull() | (table.capture != "not_mesh")))
    return staged(
        "connections",
        table.select(
            "record_id",
            "direction",
            "local_address",
            "local_port",
            "remote_address",
            "remote_port",
            "uid",
            socket_service=table.service_name,
            socket_instance=table.service_instance_id,
            captured=(table.capture == CAPTURED).fill_null(False),
            bypassed=(table.capture == BYPASSED).fill_null(False),
            first=table.first_seen_unix_nano - CONNECTION_SLACK_NS,
            last=table.last_seen_unix_nano + CONNECTION_SLACK_NS,
        ),
    )


def _peers(calls: ir.Table, window: Window) -> ir.Table:
    """The calls whose server span names the peer's address and port: UNIT without side, names, `remote_*`, start and end.

    The port is in the maps of most instrumentations; they are read here alone, where there are connections to compare with.
    """
    table = window.of(
        spans().select("trace_id", "span_id", "kind", "witness", "start_time_unix_nano", "attributes_json")
    )
    table = table.filter((table.kind == "SERVER") & (table.witness == "app") & table.attributes_json.notnull())
    texts = [table.attributes_json.get(key, ibis.null("string")) for key in PORT_KEYS]
    ports = table.select(
        port_trace_id=table.trace_id, port_span_id=table.span_id, port=ibis.coalesce(*texts).try_cast("int64")
    )
    ports = ports.filter(ports.port.notnull()).distinct(on=["port_trace_id", "port_span_id"], keep="first")
    joined = calls.left_join(ports, [calls.trace_id == ports.port_trace_id, calls.server_span_id == ports.port_span_id])
    joined = joined.mutate(peer_side_port=ibis.coalesce(joined.remote_port, joined.port))
    joined = joined.filter(joined.peer_side_port.notnull() & joined.remote_address.notnull())
    return staged(
        "peers",
        joined.select(
            "trace_id",
            "server_span_id",
            "caller",
            "callee",
            "callee_instance",
            "remote_address",
            peer_side_port="peer_side_port",
            start=joined.server_start_time_unix_nano,
            end=joined.server_end_time_unix_nano,
        ),
    )


def _exact_inbound(ends: ir.Table, logged: ir.Table) -> ir.Table:
    logged = logged.filter(logged.direction == "inbound")
    joined = ends.inner_join(
        logged,
        [
            ends.callee == logged.socket_service,
            ends.remote_address == logged.remote_address,
            ends.peer_side_port == logged.remote_port,
        ],
    )
    joined = joined.filter(_alive(joined) & _same(joined.callee_instance, joined.socket_instance))
    return _words(joined, side="inbound", exact=True)


def _exact_outbound(ends: ir.Table, logged: ir.Table) -> ir.Table:
    logged = logged.filter((logged.direction == "outbound") & ~is_local(logged.local_address))
    logged = logged.drop("remote_address", "remote_port")
    joined = ends.inner_join(
        logged, [ends.remote_address == logged.local_address, ends.peer_side_port == logged.local_port]
    )
    joined = joined.filter(_alive(joined) & (joined.caller.isnull() | (joined.caller == joined.socket_service)))
    return _words(joined, side="outbound", exact=True)


def _alike_outbound(calls: ir.Table, logged: ir.Table) -> ir.Table:
    """By replica, address and port that were dialled, and minute."""
    known = calls.filter(calls.caller.notnull() & calls.peer_address.notnull() & calls.peer_port.notnull())
    known = known.select(
        "trace_id",
        "server_span_id",
        service=known.caller,
        instance=known.caller_instance,
        address=known.peer_address,
        port=known.peer_port,
        start=known.start_time_unix_nano,
        end=known.end_time_unix_nano,
    )
    mine = logged.filter((logged.direction == "outbound") & ~is_local(logged.remote_address))
    mine = mine.select(*_SOCKET, other_address=mine.remote_address, other_port=mine.remote_port)
    return _alike(known, mine, side="outbound")


def _alike_inbound(calls: ir.Table, logged: ir.Table) -> ir.Table:
    """By replica, the peer's address, and minute."""
    known = calls.filter(calls.callee.notnull() & calls.remote_address.notnull() & calls.remote_port.isnull())
    known = known.select(
        "trace_id",
        "server_span_id",
        service=known.callee,
        instance=known.callee_instance,
        address=known.remote_address,
        port=ibis.literal(0, "int64"),
        start=known.server_start_time_unix_nano,
        end=known.server_end_time_unix_nano,
    )
    mine = logged.filter(logged.direction == "inbound")
    mine = mine.select(*_SOCKET, other_address=mine.remote_address, other_port=ibis.literal(0, "int32"))
    return _alike(known, mine, side="inbound")


_SOCKET: Final = ("record_id", "socket_service", "socket_instance", "captured", "bypassed", "uid", "first", "last")


def _alike(known: ir.Table, mine: ir.Table, *, side: str) -> ir.Table:
    key = ["service", "instance", "address", "port", "minute"]
    known = staged(f"dialled_{side}", known.mutate(minute=known.start // MINUTE_NS))
    cells = known.select(*key).distinct()
    joined = cells.inner_join(
        mine,
        [
            cells.service == mine.socket_service,
            cells.address == mine.other_address,
            cells.port == mine.other_port,
        ],
    )
    around = (joined.first < (joined.minute + 2) * MINUTE_NS) & (joined["last"] >= (joined.minute - 1) * MINUTE_NS)
    joined = joined.filter(around & _same(joined.instance, joined.socket_instance))
    cells = joined.group_by(key).agg(
        all_captured=joined.captured.all(),
        all_bypassed=joined.bypassed.all(),
        record_id=joined.record_id.min(),
        uid=joined.uid.max(),
        first=joined.first.min(),
        last=joined["last"].max(),
    )
    plain = [known[name] == cells[name] for name in key if name != "instance"]
    table = known.inner_join(cells, plain)
    table = table.filter(_same_or_null(table.instance, table.instance_right) & _alive(table))
    return table.select(
        "trace_id",
        "server_span_id",
        "record_id",
        "uid",
        side=ibis.literal(side),
        exact=ibis.literal(False),
        seen=table.all_captured,
        missed=table.all_bypassed,
        mixed=~table.all_captured & ~table.all_bypassed,
    ).select(*_WORDS)


def _exact_flows(ends: ir.Table, logged: ir.Table) -> ir.Table:
    """A flow that says how it was secured: TLS of the mesh was at both ends; without, the caller's end had no proxy."""
    logged = logged.filter(logged.mesh_tls.notnull() & ~is_local(logged.source_address))
    joined = ends.inner_join(
        logged.drop("trace_id"),
        [ends.remote_address == logged.source_address, ends.peer_side_port == logged.source_port],
    )
    slack = CONNECTION_SLACK_NS
    near = (joined.start_right <= joined.end + slack) & (joined.end_right + slack >= joined.start)
    joined = joined.filter(near & (joined.destination_service == joined.callee).fill_null(True))
    return _flow_words(joined, exact=True, seen=joined.mesh_tls, missed=~joined.mesh_tls, mixed=ibis.literal(False))


def _alike_flows(calls: ir.Table, logged: ir.Table) -> ir.Table:
    """By both ends' names and minute: they vouch where all of them are the mesh's."""
    key = ["caller", "callee", "minute"]
    known = calls.filter(calls.caller.notnull() & calls.callee.notnull())
    known = known.select(
        "trace_id", "server_span_id", "caller", "callee", minute=known.start_time_unix_nano // MINUTE_NS
    )
    cells = known.select(*key).distinct()
    logged = logged.filter(logged.mesh_tls.notnull())
    joined = cells.inner_join(
        logged, [cells.caller == logged.source_service, cells.callee == logged.destination_service]
    )
    joined = joined.filter(
        (joined.start < (joined.minute + 2) * MINUTE_NS) & (joined.end >= (joined.minute - 1) * MINUTE_NS)
    )
    cells = joined.group_by(key).agg(all_tls=joined.mesh_tls.all(), record_id=joined.record_id.min())
    table = known.inner_join(cells, key)
    return _flow_words(table, exact=False, seen=table.all_tls, missed=ibis.literal(False), mixed=~table.all_tls)


def _flow_words(
    table: ir.Table, *, exact: bool, seen: ir.BooleanValue, missed: ir.BooleanValue, mixed: ir.BooleanValue
) -> ir.Table:
    """What a flow says of both sides; a proxy that wrote of plaintext was itself there, at the callee's side."""
    common = {
        "record_id": table.record_id,
        "uid": ibis.null("int64"),
        "exact": ibis.literal(exact),
    }
    ids = ("trace_id", "server_span_id")
    out = table.select(*ids, **common, side=ibis.literal("outbound"), seen=seen, missed=missed, mixed=mixed)
    into = table.select(
        *ids, **common, side=ibis.literal("inbound"), seen=seen, missed=ibis.literal(False), mixed=ibis.literal(False)
    )
    return out.select(*_WORDS).union(into.select(*_WORDS))


_WORDS: Final = (*UNIT, "record_id", "uid", "exact", "seen", "missed", "mixed")


def _words(joined: ir.Table, *, side: str, exact: bool) -> ir.Table:
    """What these sockets say: an undecided one says nothing."""
    joined = joined.filter(joined.captured | joined.bypassed)
    return joined.select(
        "trace_id",
        "server_span_id",
        "record_id",
        "uid",
        side=ibis.literal(side),
        exact=ibis.literal(exact),
        seen=joined.captured,
        missed=joined.bypassed,
        mixed=ibis.literal(False),
    ).select(*_WORDS)


def _alive(joined: ir.Table) -> ir.BooleanValue:
    return (joined.first <= joined.end) & (joined["last"] >= joined.start)


def _same(one: ir.StringValue, other: ir.StringValue) -> ir.BooleanValue:
    """Whether two names may be of one replica: they are equal, or one is not known."""
    return (one == other).fill_null(True)


def _same_or_null(one: ir.StringValue, other: ir.StringValue) -> ir.BooleanValue:
    return one.isnull().ifelse(other.isnull(), (one == other).fill_null(False))

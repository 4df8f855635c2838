"""Dark traffic: connections between workloads that went past the proxies, or that no call explains.

| evidence | reasons | severity |
|---|---|---|
| sockets whose other end no proxy had | mesh_bypass; dark_traffic too where no call of the two is known | high; medium if the peer is unknown |
| flows that the mesh proves to be plaintext, into a workload that takes mTLS | the same | medium; low from an unknown address |
| flows between two workloads of which spans of neither tell | dark_traffic | medium; low if it was one |
| UDP between two workloads | dark_traffic, way udp | low |

Left out, because it is meant to be so: name and time service, the mesh's own ports and its control plane, telemetry on its way,
scrapes, replies (a service's port as the source of a flow), refused and empty flows, loopback and link-local addresses, and
addresses that nobody or more than one service has. Flows prove the absence of spans only where the callee's spans arrive at all;
a call that is sampled away leaves a flow too, which is why a flow alone is never more than medium.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

import ibis
import ibis.expr.types as ir

from collector.forensics.addresses import is_local, named_addresses, named_flows
from collector.forensics.calls import MARGIN_NS
from collector.forensics.columns import host_of, port_of
from collector.forensics.connections import BYPASSED, Present
from collector.forensics.findings import EVIDENCE_LIMIT, Finding, Severity
from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import Query, Window, sockets, spans
from collector.forensics.ways import Knowledge, Named, way_of

Row = dict[str, Any]

QUIET_PORTS: Final = frozenset(
    {53, 67, 68, 123, 853, 5353}  # names, addresses, time
    | {4317, 4318, 6831, 6832, 9411, 14250, 14268, 8125}  # telemetry
    | {15000, 15001, 15004, 15006, 15008, 15009, 15010, 15012, 15014, 15017, 15020, 15021, 15053, 15090}  # Istio
    | {4140, 4143, 4190, 4191, 8086, 8090}  # Linkerd
    | {4240, 4244, 4245, 10250, 10255, 10256}  # Cilium, kubelet
)
"""Ports of what every workload talks to past its proxy, or of the proxies themselves."""

QUIET_SERVICES: Final = (
    "istiod", "istio-cni", "ztunnel", "linkerd-", "kube-dns", "coredns", "prometheus", "vmagent", "grafana-agent", "alloy",
    "otel-collector", "opentelemetry-collector", "otelcol", "datadog-agent", "fluent", "provenance-collector",
)  # fmt: skip
"""How the names of control planes, scrapers and collectors of telemetry begin."""

REFUSED_STATES: Final = ("DROPPED", "REJECT", "S0", "REJ", "RSTOS0", "SH", "OTH", "UNREPLIED")
"""An attempt is no traffic."""

EPHEMERAL_FROM: Final = 32_768
_SCRAPE: Final = "prometheus.io/port"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Connections of one caller to one callee (or address) that went one way.

    Attributes:
        caller: None where nothing names it.
        callee: None where nothing names it; then `destination` is the address and port.
        named: The way.
        source: 'sockets' or 'flows'. side: of a socket, whose witness saw it: outbound or inbound.
        bypass: Whether they are proven to have gone past a proxy; else no call explains them.
        explained: Whether there are calls between the two.
        count, first, last: How many connections, and when (ns since the Unix epoch).
        detail: Ports and addresses, for the sentence.
        record_ids: Rows of `sockets` or `flows`.
    """

    caller: str | None
    callee: str | None
    destination: str | None = None
    named: Named
    source: str
    side: str = ""
    bypass: bool
    explained: bool
    count: int
    first: int
    last: int
    detail: str
    record_ids: tuple[str, ...]

    def words(self) -> str:
        """The connections as a clause."""
        one = self.count == 1
        if self.source == "sockets":
            how = "is a socket" if one else "are sockets"
            said = f"{how} whose other end the proxy did not have"
        elif self.bypass:
            said = f"{'was' if one else 'were'} plaintext"
        else:
            said = "has no span on either side" if one else "have no span on either side"
        kind = "connection" if self.source == "sockets" else "flow"
        return f"{self.count:,} {kind}{'' if one else 's'} ({self.detail}) {said}"

    def finding(self) -> Finding:
        """A finding of its own, where no call has one."""
        severity, score = self._strength()
        target = self.callee or self.destination or "?"
        how = self.named.how(self.caller, self.callee)
        reasons = (*(("mesh_bypass",) if self.bypass else ()), *(() if self.explained else ("dark_traffic",)))
        doubt = "a call that was sampled away leaves a flow and no span"
        origin = self.caller or "addresses that no workload has"
        return Finding(
            kind="shadow",
            reasons=reasons or ("mesh_bypass",),
            severity=severity,
            score=score,
            caller=self.caller,
            callee=self.callee,
            destination=None if self.callee else self.destination,
            way=self.named.way,
            first_seen_unix_nano=self.first,
            last_seen_unix_nano=self.last,
            count=self.count,
            explanation=f"{origin} to {target}: {self.words()}{f'; {how}' if how else ''}",
            remedy=self.named.remedy(self.caller, target),
            record_ids=self.record_ids,
            completeness="" if self.bypass else doubt,
            attack_ids=("T1562.004",) if self.bypass else (),
        )

    def _strength(self) -> tuple[Severity, float]:
        """The table in the module's docstring."""
        known = self.caller is not None and self.callee is not None
        if self.named.way == "udp":
            return "low", 0.3
        if self.source == "sockets":
            return ("high", 0.9) if known else ("medium", 0.6)
        if self.bypass:
            return ("medium", 0.7) if known else ("low", 0.4)
        return ("medium", 0.5) if self.count > 1 else ("low", 0.3)


def dark_sql(window: Window, present: Present) -> dict[str, str]:
    """The statements by name: `sockets` where there are sockets, `flows` and `dialled` where there are flows."""
    statements = {}
    if present.sockets:
        statements["sockets"] = windowed(window, lambda blank: compiled_once(_bypassing, blank))
    if present.flows:
        statements["flows"] = windowed(window, lambda blank: compiled_once(_flowing, blank))
        statements["dialled"] = windowed(window, lambda blank: compiled_once(_dialled, blank))
    return statements


def dark_traffic(
    query: Query, sql: Mapping[str, str], known: Knowledge, calls: Iterable[Row], entries: AbstractSet[str]
) -> list[Edge]:
    """The edges of dark traffic, by the statements of `dark_sql`. Raises what `query` raises.

    Args:
        query: Answers SQL.
        sql: As `dark_sql` gives it; more is ignored.
        known: The workloads.
        calls: Rows of `shadow_flags.summary`: what spans tell.
        entries: Services that take traffic from anywhere.
    """
    calls = list(calls)
    told = {(row["caller"], row["callee"]) for row in calls}
    virtual = {
        (row["caller"], row["destination_address"], row["destination_port"]): row["callee"]
        for row in calls
        if row["destination_address"] is not None
    }
    found: list[Edge] = []
    if "sockets" in sql:
        rows = query(sql["sockets"]).to_dicts()
        found += _merged(_socket_edge(row, known, told, virtual) for row in rows if not _is_quiet(row, known))
    if "flows" in sql:
        rows = [row for row in query(sql["flows"]).to_dicts() if not _is_quiet(row, known)]
        dialled = query(sql["dialled"]).to_dicts()
        found += _merged(_flow_edges(rows, known, told, dialled, entries))
    return _merged(found)


def _bypassing(window: Window) -> ir.Table:
    """The bypassing sockets of the window by who, whom and where; columns as `_GROUPED`, direction, address, uid."""
    table = sockets()
    if window.since_unix_nano is not None:
        table = table.filter(table.last_seen_unix_nano >= window.since_unix_nano)
    if window.until_unix_nano is not None:
        table = table.filter(table.first_seen_unix_nano < window.until_unix_nano)
    table = table.filter((table.capture == BYPASSED) & table.direction.notnull() & ~is_local(table.remote_address))
    names = named_addresses(window)
    table = table.left_join(names, table.remote_address == names.address)
    out = table.direction == "outbound"
    table = table.mutate(
        client_address=ibis.ifelse(out, table.local_address, table.remote_address),
        client_port=ibis.ifelse(out, table.local_port, table.remote_port),
    )
    table = _with_other_end(table)
    out = table.direction == "outbound"
    table = table.mutate(named_service=ibis.coalesce(table.other_service, table.named_service))
    table = table.mutate(
        source_service=ibis.ifelse(out, table.service_name, table.named_service),
        destination_service=ibis.ifelse(out, table.named_service, table.service_name),
        port=ibis.ifelse(out, table.remote_port, table.local_port),
        start=table.first_seen_unix_nano,
        end=table.last_seen_unix_nano,
    )
    return _grouped(
        table, "direction", "source_service", "destination_service", "port", "protocol", "uid", address="remote_address"
    )


def _with_other_end(table: ir.Table) -> ir.Table:
    """The sockets with `other_service`: whose witness saw the same connection's other end; NULL where none or several did.

    A virtual address that was dialled names nobody; the callee's own socket has the caller's address and port.
    """
    ends = table.group_by("direction", "client_address", "client_port").agg(
        services=table.service_name.nunique(), other_service=table.service_name.min()
    )
    ends = ends.filter(ends.services == 1)
    ends = ends.select("other_service", end=ends.direction, end_address=ends.client_address, end_port=ends.client_port)
    joined = table.left_join(
        ends,
        [
            table.client_address == ends.end_address,
            table.client_port == ends.end_port,
            table.direction != ends.end,
        ],
    )
    return joined.drop("end", "end_address", "end_port")


def _flowing(window: Window) -> ir.Table:
    """The flows of the window by who, whom and how; columns as `_GROUPED`, format, address (of an unnamed source), mesh_tls."""
    table = window.of(_renamed(named_flows(window)))
    reply = (table.destination_port >= EPHEMERAL_FROM) & (table.source_port < EPHEMERAL_FROM)
    empty = (table.bytes_out == 0) & (table.bytes_in.fill_null(0) == 0)
    refused = table.state.upper().isin(REFUSED_STATES)
    kept = ~reply.fill_null(False) & ~empty.fill_null(False) & ~refused.fill_null(False)
    table = table.filter(kept & ~is_local(table.source_address) & ~is_local(table.destination_address))
    table = table.filter(table.destination_service.notnull())
    table = table.filter((table.source_service != table.destination_service).fill_null(True))
    table = table.mutate(
        port=table.destination_port,
        named=ibis.ifelse(table.source_service.isnull(), table.source_address, ibis.null("string")),
    )
    return _grouped(
        table,
        "source_service",
        "destination_service",
        "source_mesh",
        "destination_mesh",
        "destination_address",
        "port",
        "protocol",
        "mesh_tls",
        address="named",
    )


def _renamed(table: ir.Table) -> ir.Table:
    return table.mutate(start_time_unix_nano=table.start)


def _grouped(table: ir.Table, *keys: str, address: str) -> ir.Table:
    """Counted by the keys and the address: count, first, last and record_ids, the earliest `EVIDENCE_LIMIT`."""
    table = table.mutate(address=table[address])
    by = [*keys, "address"]
    order = [table.start, table.record_id]
    table = table.mutate(nth=ibis.row_number().over(group_by=by, order_by=order))
    return table.group_by(by).agg(
        count=table.count(),
        first=table.start.min(),
        last=table.end.max(),
        record_ids=table.record_id.collect(where=table.nth < EVIDENCE_LIMIT, order_by=[table.start, table.record_id]),
    )


def _dialled(window: Window) -> ir.Table:
    """(service, kind, host, port): whom services say they called, and which serve."""
    table = window.of(
        spans().select(
            "witness",
            "kind",
            "service_name",
            "start_time_unix_nano",
            "server_address",
            "server_port",
            "network_peer_address",
            "network_peer_port",
            "url_full",
            "peer_service",
        ),
        margin_ns=MARGIN_NS,
    )
    table = table.filter((table.witness == "app") & table.kind.isin(("SERVER", "CLIENT", "PRODUCER", "CONSUMER")))
    client = table.kind.isin(("CLIENT", "PRODUCER"))
    return table.select(
        "kind",
        service=table.service_name,
        host=ibis.ifelse(client, host_of(table), ibis.null("string")),
        peer=ibis.ifelse(client, table.network_peer_address, ibis.null("string")),
        port=ibis.ifelse(client, port_of(table), ibis.null("int64")),
        callee=ibis.ifelse(client, table.peer_service, ibis.null("string")),
    ).distinct()


def _is_quiet(row: Row, known: Knowledge) -> bool:
    """Whether this is meant to go past the proxies: see the module's docstring."""
    names = (row["source_service"] or "", row["destination_service"] or "")
    scraped = known.of(row["destination_service"]).values(_SCRAPE)
    return (
        row["port"] in QUIET_PORTS
        or row["protocol"] in {"icmp", "icmp6", "ipv6-icmp"}
        or any(name.startswith(QUIET_SERVICES) for name in names)
        or str(row["port"]) in scraped
    )


def _socket_edge(
    row: Row,
    known: Knowledge,
    told: AbstractSet[tuple[str | None, str]],
    virtual: Mapping[tuple[str | None, str, int], str],
) -> Edge | None:
    caller, callee = row["source_service"], row["destination_service"]
    address = row["address"]
    out = row["direction"] == "outbound"
    if out and callee is None:
        callee = virtual.get((caller, address, row["port"]))
        if callee is None and _is_public(address):
            return None  # egress: that a proxy did not see it is not what is wrong with it
    facts = {
        "caller": caller,
        "callee": callee,
        "bypass_outbound": out,
        "bypass_inbound": not out,
        "destination_address": address if out else None,
        "destination_port": row["port"],
        "uid": row["uid"],
    }
    peer = address if out else f"from {address}"
    return Edge(
        caller=caller,
        callee=callee,
        destination=f"{address}:{row['port']}",
        named=way_of(facts, known),
        source="sockets",
        side=row["direction"],
        bypass=True,
        explained=(caller, callee) in told,
        count=row["count"],
        first=row["first"],
        last=row["last"],
        detail=f"port {row['port']}, {peer}",
        record_ids=tuple(str(i) for i in row["record_ids"] or ()),
    )


def _flow_edges(
    rows: list[Row],
    known: Knowledge,
    told: AbstractSet[tuple[str | None, str]],
    dialled: list[Row],
    entries: AbstractSet[str],
) -> Iterable[Edge | None]:
    secured = {row["destination_service"] for row in rows if row["mesh_tls"]}
    served = {row["service"] for row in dialled if row["kind"] in {"SERVER", "CONSUMER"}}
    reached = {
        (row["service"], target) for row in dialled for target in (row["host"], row["peer"], row["callee"]) if target
    }
    for row in rows:
        caller, callee = row["source_service"], row["destination_service"]
        meshed = callee in secured or bool(known.of(callee).meshes - {"none"})
        tcp = row["protocol"] in {None, "tcp"}
        explained = (caller, callee) in told or _was_dialled(row, reached)
        if tcp and row["mesh_tls"] is False and meshed:
            if caller is not None or callee not in entries:
                facts = _plaintext_facts(row)
                yield _flow_edge(row, way_of(facts, known), bypass=True, explained=explained)
        elif row["protocol"] == "udp" and caller is not None:
            yield _flow_edge(row, Named("udp"), bypass=False, explained=False)
        elif tcp and row["mesh_tls"] is None and caller is not None and callee in served and not explained:
            yield _flow_edge(row, Named(""), bypass=False, explained=False)


def _was_dialled(row: Row, reached: AbstractSet[tuple[str, str]]) -> bool:
    """Whether the caller has a client span to this address or name."""
    caller, callee, address = row["source_service"], row["destination_service"], row["destination_address"]
    return any(
        service == caller and (host in {callee, address} or host.startswith(f"{callee}.")) for service, host in reached
    )


def _plaintext_facts(row: Row) -> dict[str, Any]:
    return {
        "caller": row["source_service"],
        "callee": row["destination_service"],
        "bypass_outbound": row["source_service"] is not None,
        "plaintext": True,
        "destination_address": row["destination_address"],
        "destination_port": row["port"],
    }


def _flow_edge(row: Row, named: Named, *, bypass: bool, explained: bool) -> Edge:
    source = "" if row["source_service"] else f", from {row['address']}"
    return Edge(
        caller=row["source_service"],
        callee=row["destination_service"],
        named=named,
        source="flows",
        bypass=bypass,
        explained=explained,
        count=row["count"],
        first=row["first"],
        last=row["last"],
        detail=f"{row['protocol'] or 'tcp'} port {row['port']}{source}",
        record_ids=tuple(str(i) for i in row["record_ids"] or ()),
    )


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _merged(edges: Iterable[Edge | None]) -> list[Edge]:
    """One edge a caller, callee and way: a connection that both ends' witnesses saw is not two."""
    by_key: dict[tuple[str | None, str | None, str], list[Edge]] = {}
    for edge in edges:
        if edge is not None:
            by_key.setdefault((edge.caller, edge.callee or edge.destination, edge.named.way), []).append(edge)
    return [_union(group) for group in by_key.values()]


def _union(group: list[Edge]) -> Edge:
    strongest = max(group, key=lambda edge: (edge.source == "sockets", edge.bypass))
    kept = [edge for edge in group if edge.source == strongest.source]
    by_side: Counter[str] = Counter()
    for edge in kept:
        by_side[edge.side] += edge.count
    details = list(dict.fromkeys(edge.detail for edge in kept))
    more = f" and {len(details) - 3} more" if len(details) > 3 else ""
    return Edge(
        caller=strongest.caller,
        callee=strongest.callee,
        destination=strongest.destination,
        named=strongest.named,
        source=strongest.source,
        side=strongest.side,
        bypass=strongest.bypass,
        explained=any(edge.explained for edge in group),
        count=max(by_side.values()),
        first=min(edge.first for edge in group),
        last=max(edge.last for edge in group),
        detail="; ".join(details[:3]) + more,
        record_ids=tuple(dict.fromkeys(i for edge in group for i in edge.record_ids))[:EVIDENCE_LIMIT],
    )

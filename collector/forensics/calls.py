"""The central relation: one row a call, client span ⟗ server span ⟗ proxy spans ⟗ proxy records.

Envoy rewrites traceparent, so a server span's parent may be its own proxy's span, whose parent is the caller's proxy's,
whose parent is the client span: up to `MAX_PROXY_SPANS` proxy spans are followed (Linkerd writes four a hop). The number
of steps is fixed, so cyclic parents end too.

What is not a call: a SERVER span right below a SERVER or INTERNAL span of the same replica (an app mounted in an app).
"""

from collections.abc import Callable
from typing import Final

import ibis
import ibis.expr.types as ir

from collector.forensics.columns import is_error, request_key_of
from collector.forensics.log_lines import path_of
from collector.forensics.matching import CLOCK_SLACK_NS, match_records
from collector.forensics.stages import once, repeated, staged, without_copies
from collector.forensics.tables import NS_PER_S, Window, spans

MAX_PROXY_SPANS: Final = 4
"""Linkerd's proxies write a SERVER and a CLIENT span each, on both sides of a hop."""

MARGIN_NS: Final = 180 * NS_PER_S
"""How far outside the window the other witnesses of a call inside it are looked for."""

GENERIC_PROXY_NAMES: Final = ("linkerd-proxy", "envoy", "istio-proxy")
"""service.name of proxies that do not say whose they are: they name no caller."""

_KEY: Final = ("trace_id", "span_id")

_NAMED: Final = (
    "kind",
    "name",
    "service_name",
    "service_instance_id",
    "end_time_unix_nano",
    "duration_ns",
    "received_unix_nano",
    "status_code",
    "http_request_method",
    "http_route",
    "http_response_status_code",
    "url_path",
    "url_full",
    "rpc_service",
    "rpc_method",
    "rpc_grpc_status_code",
    "provenance_stamp_kid",
    "provenance_request_hash",
    "provenance_request_size",
    "provenance_request_id",
)
"""What both sides of a call are read from."""


Narrow = Callable[[ir.Table], ir.Table]
"""Makes less of the columns of calls, before anything is joined to them."""


def calls(
    window: Window, *, unanswered: bool = True, records: bool = True, narrow: Narrow = lambda table: table
) -> ir.Table:
    """One row a call that started in the window, by the client span's clock if there is one.

    Args:
        window: When the calls began.
        unanswered: Also rows for CLIENT spans that no server span answered (databases, egress, uninstrumented callees).
        records: Also match access logs; without, the four record columns are NULL and false, and `matching.CARRIED` is left out.
        narrow: Applied before the access logs are matched, which takes `matching.NEEDED` of the columns.

    Columns:
        trace_id, client_span_id, server_span_id: ids as the engine has them; a span id is NULL where that span is missing.
        parent_span_id: of the server span. parent_found: whether the chain of parents ends at a span that arrived.
        caller: service.name of the calling span; without one, the outermost proxy span's service if it isn't the callee's;
            without either, the workload whose proxy logged the call on its way out.
        caller_instance, callee_instance: service_instance_id of the two.
        callee: service.name of the server span, else the client span's peer.service.
        operation: rpc `service/method`, else `METHOD route`, else the span's name.
        path: `/service/method` or the URL's path without its query; NULL if no span names it.
        protocol: 'rpc', 'http' or 'other'. method: HTTP method. user_agent: as the server saw it.
        start_time_unix_nano, end_time_unix_nano: client span's, else the server span's.
        server_start_time_unix_nano, server_end_time_unix_nano, client_duration_ns, server_duration_ns: NULL if missing.
        error: status ERROR on either span, HTTP 5xx, or a gRPC status that is the server's fault.
        stamp_status, stamp_kid: what the callee's middleware found. client_stamp_kid: what the caller's set.
        client_request_hash, server_request_hash, client_request_bytes, server_request_bytes: as each side saw the request.
        request_id: x-request-id of the server span, else the client's, else a proxy span's.
        request_key, client_request_key: the ids without what Envoy overwrites (`request_key_of`).
        destination_address, destination_port: as the client dialled. peer_address, peer_port: the same as resolved, where known.
        remote_address, remote_port: the peer as the server saw it; a sidecar's own end where there is one in between.
        principal: whom the callee's middleware was told that its peer is, by the headers that a proxy sets.
        proxy_spans, proxy_spans_inbound, proxy_spans_outbound: proxy spans between the two; of the callee; of the caller.
        received_unix_nano: when the collector received the server span (without one, the client span).
        outbound_record_id, inbound_record_id: the lines of the caller's and the callee's proxy about this call.
        outbound_ambiguous, inbound_ambiguous: no line, but one of the same request id there is nobody else's for certain.
        matching.CARRIED: what these lines say beyond that they are there.
    """
    table = _answered(window)
    if unanswered:
        answered = staged("answered", table)
        table = answered.union(_unanswered(window, answered))
    table = narrow(table)
    if not records:
        return _without_records(window.of(table))
    # Before the filter: the lines of a call just outside the window would seem to be nobody's, and so anybody's.
    return window.of(match_records(table, window, MARGIN_NS - CLOCK_SLACK_NS))


def is_of(proxy_service: ir.StringValue, service: ir.StringValue) -> ir.BooleanValue:
    """Whether a proxy's service name means this service: equal, or `service.namespace` as Istio writes it."""
    return (proxy_service == service) | proxy_service.startswith(service + ".")


def _spans(window: Window, witness: str, *columns: str) -> ir.Table:
    """These columns of the spans around the window that this kind of witness wrote. Few columns keep the plan small."""
    table = spans().select(*_KEY, "witness", "start_time_unix_nano", *columns)
    table = window.of(table, margin_ns=MARGIN_NS)
    return table.filter(table.witness == witness)


def _repeated_spans(window: Window) -> ir.Table:
    """(span_id) of the app spans around the window that may have come more than once: of two with one id, counting takes a fifth less."""
    return repeated("spans", _spans(window, "app").select("span_id"), "span_id")


def _servers(window: Window) -> ir.Table:
    table = _spans(
        window,
        "app",
        *_NAMED,
        "parent_span_id",
        "user_agent_original",
        "network_peer_address",
        "network_peer_port",
        "client_address",
        "provenance_stamp_status",
        "provenance_peer_principal",
    )
    table = table.filter(table.kind == "SERVER")
    return without_copies(
        table.select(
            *_KEY,
            "parent_span_id",
            "service_name",
            "service_instance_id",
            "start_time_unix_nano",
            "end_time_unix_nano",
            "duration_ns",
            "received_unix_nano",
            "http_request_method",
            "user_agent_original",
            "provenance_stamp_status",
            "provenance_stamp_kid",
            "provenance_request_hash",
            "provenance_request_size",
            "provenance_request_id",
            "provenance_peer_principal",
            remote_address=ibis.coalesce(table.network_peer_address, table.client_address),
            remote_port=ibis.ifelse(table.network_peer_address.notnull(), table.network_peer_port, ibis.null("int64")),
            server_failed=is_error(table),
            server_path=_path(table),
            server_operation=_operation(table),
            server_protocol=_protocol(table),
        ),
        _repeated_spans(window),
        *_KEY,
    )


def _ancestors(window: Window) -> ir.Table:
    """App spans that can be the calling side; those that are no CLIENT only say who and where."""
    table = _spans(
        window,
        "app",
        *_NAMED,
        "peer_service",
        "server_address",
        "server_port",
        "network_peer_address",
        "network_peer_port",
    )
    client = table.kind == "CLIENT"

    def of_client(value: ir.Value) -> ir.Value:
        return ibis.ifelse(client, value, ibis.null(value.type()))

    return without_copies(
        table.select(
            *_KEY,
            ancestor_kind=table.kind,
            ancestor_service=table.service_name,
            ancestor_instance=table.service_instance_id,
            client_span_id=of_client(table.span_id),
            client_start=of_client(table.start_time_unix_nano),
            client_end=of_client(table.end_time_unix_nano),
            client_duration_ns=of_client(table.duration_ns),
            client_received=table.received_unix_nano,
            client_failed=client & is_error(table),
            client_path=of_client(_path(table)),
            client_operation=_operation(table),
            client_protocol=_protocol(table),
            client_method=table.http_request_method,
            peer_service=of_client(table.peer_service),
            destination_address=of_client(ibis.coalesce(table.server_address, table.network_peer_address)),
            destination_port=of_client(ibis.coalesce(table.server_port, table.network_peer_port)),
            peer_address=of_client(ibis.coalesce(table.network_peer_address, table.server_address)),
            peer_port=of_client(ibis.coalesce(table.network_peer_port, table.server_port)),
            client_stamp_kid=of_client(table.provenance_stamp_kid),
            client_request_hash=of_client(table.provenance_request_hash),
            client_request_bytes=of_client(table.provenance_request_size),
            client_request_id=of_client(table.provenance_request_id),
        ),
        _repeated_spans(window),
        *_KEY,
    ).rename(ancestor_trace_id="trace_id", ancestor_span_id="span_id")


def proxy_spans(window: Window) -> ir.Table:
    """The spans around the window that proxies wrote, once each: trace_id, span_id, parent_span_id, service_name, guid_x_request_id."""
    columns = ("parent_span_id", "service_name", "guid_x_request_id")
    return staged("proxy_spans", once("proxy_spans", _spans(window, "proxy", *columns).select(*_KEY, *columns), *_KEY))


def _follow_proxies(window: Window) -> ir.Table:
    """The proxy spans right above server spans, and where they lead: most calls have none, so the chains are followed by themselves.

    Columns: above_trace_id, above_span_id: the proxy span; cursor: the first parent that is no proxy span; proxy_request_id; proxy_1
    to proxy_4: the services passed.
    """
    proxies = proxy_spans(window)
    servers = _spans(window, "app", "kind", "parent_span_id")
    servers = servers.filter(servers.kind == "SERVER")
    reached = proxies.semi_join(
        servers, [proxies.trace_id == servers.trace_id, proxies.span_id == servers.parent_span_id]
    )
    reached = reached.select(
        above_trace_id="trace_id",
        above_span_id="span_id",
        cursor="parent_span_id",
        proxy_request_id="guid_x_request_id",
        proxy_1="service_name",
    )
    for step in range(2, MAX_PROXY_SPANS + 1):
        hop = proxies.select(
            hop_trace_id=proxies.trace_id,
            hop_span_id=proxies.span_id,
            hop_parent=proxies.parent_span_id,
            hop_service=proxies.service_name,
            hop_request_id=proxies.guid_x_request_id,
        )
        joined = reached.left_join(hop, [reached.above_trace_id == hop.hop_trace_id, reached.cursor == hop.hop_span_id])
        reached = joined.mutate(
            cursor=ibis.ifelse(joined.hop_span_id.notnull(), joined.hop_parent, joined.cursor),
            proxy_request_id=ibis.coalesce(joined.proxy_request_id, joined.hop_request_id),
            **{f"proxy_{step}": joined.hop_service},
        ).drop("hop_trace_id", "hop_span_id", "hop_parent", "hop_service", "hop_request_id")
    return reached


def _answered(window: Window) -> ir.Table:
    """The calls that have a server span."""
    servers, reached, ancestors = _servers(window), _follow_proxies(window), _ancestors(window)
    table = servers.left_join(
        reached, [servers.trace_id == reached.above_trace_id, servers.parent_span_id == reached.above_span_id]
    )
    table = table.mutate(cursor=ibis.ifelse(table.above_span_id.notnull(), table.cursor, table.parent_span_id))
    table = table.left_join(
        ancestors,
        [table.trace_id == ancestors.ancestor_trace_id, table.cursor == ancestors.ancestor_span_id],
    )
    proxies = [table[f"proxy_{step}"] for step in range(1, MAX_PROXY_SPANS + 1)]
    outermost = ibis.coalesce(*reversed(proxies))
    named = ~is_of(outermost, table.service_name) & outermost.notin(GENERIC_PROXY_NAMES)
    caller = ibis.coalesce(table.ancestor_service, ibis.ifelse(named, outermost, ibis.null("string")))
    other_replica = (table.ancestor_instance != table.service_instance_id).fill_null(False)
    mounted = (
        (table.ancestor_service == table.service_name)
        & (table.ancestor_kind != "CLIENT")
        & table.proxy_1.isnull()
        & ~other_replica
    )
    table = table.filter(~mounted.fill_null(False))

    def passed(*conditions: ir.BooleanValue) -> ir.IntegerValue:
        # Most calls have no proxy span, and putting names together takes longer than all the rest of a row.
        return ibis.ifelse(table.proxy_1.isnull(), 0, _count(*conditions)).cast("int64")

    return _shape(
        table,
        server_span_id=table.span_id,
        parent_found=(
            table.ancestor_span_id.notnull()
            | (table.cursor.isnull() & table.parent_span_id.notnull())
            | table.proxy_4.notnull()
        ),
        caller=caller,
        callee=table.service_name,
        callee_instance=table.service_instance_id,
        operation=table.server_operation,
        path=ibis.coalesce(table.server_path, table.client_path),
        protocol=table.server_protocol,
        method=ibis.coalesce(table.http_request_method, table.client_method),
        user_agent=table.user_agent_original,
        start_time_unix_nano=ibis.coalesce(table.client_start, table.start_time_unix_nano),
        end_time_unix_nano=ibis.coalesce(table.client_end, table.end_time_unix_nano),
        server_start_time_unix_nano=table.start_time_unix_nano,
        server_end_time_unix_nano=table.end_time_unix_nano,
        server_duration_ns=table.duration_ns,
        error=table.server_failed | table.client_failed.fill_null(False),
        stamp_status=table.provenance_stamp_status,
        stamp_kid=table.provenance_stamp_kid,
        server_request_hash=table.provenance_request_hash,
        server_request_bytes=table.provenance_request_size,
        request_id=ibis.coalesce(table.provenance_request_id, table.client_request_id, table.proxy_request_id),
        remote_address=table.remote_address,
        remote_port=table.remote_port,
        principal=table.provenance_peer_principal,
        proxy_spans=_count(*(p.notnull() for p in proxies)),
        proxy_spans_inbound=passed(*(is_of(p, table.service_name) for p in proxies)),
        proxy_spans_outbound=passed(*(is_of(p, caller) & ~is_of(p, table.service_name) for p in proxies)),
        received_unix_nano=table.received_unix_nano,
    )


def _unanswered(window: Window, answered: ir.Table) -> ir.Table:
    """The CLIENT spans that no server span answered."""
    ancestors = _ancestors(window)
    clients = ancestors.filter(ancestors.ancestor_kind == "CLIENT")
    reached = answered.select("trace_id", "client_span_id").filter(answered.client_span_id.notnull())
    table = clients.anti_join(
        reached,
        [clients.ancestor_trace_id == reached.trace_id, clients.client_span_id == reached.client_span_id],
    )
    text, number = ibis.null("string"), ibis.null("int64")
    zero = ibis.literal(0, "int64")
    return _shape(
        table.mutate(trace_id=table.ancestor_trace_id, parent_span_id=ibis.null("uint64")),
        server_span_id=ibis.null("uint64"),
        parent_found=ibis.literal(True),
        caller=table.ancestor_service,
        callee=table.peer_service,
        callee_instance=text,
        operation=table.client_operation,
        path=table.client_path,
        protocol=table.client_protocol,
        method=table.client_method,
        user_agent=text,
        start_time_unix_nano=table.client_start,
        end_time_unix_nano=table.client_end,
        server_start_time_unix_nano=number,
        server_end_time_unix_nano=number,
        server_duration_ns=number,
        error=table.client_failed.fill_null(False),
        stamp_status=text,
        stamp_kid=text,
        server_request_hash=text,
        server_request_bytes=number,
        request_id=table.client_request_id,
        remote_address=text,
        remote_port=number,
        principal=text,
        proxy_spans=zero,
        proxy_spans_inbound=zero,
        proxy_spans_outbound=zero,
        received_unix_nano=table.client_received,
    )


def _shape(table: ir.Table, **columns: ir.Value) -> ir.Table:
    """The columns of `calls`, in one order, from a table that has the caller's side already."""
    return table.select(
        "trace_id",
        "client_span_id",
        "parent_span_id",
        caller_instance=table.ancestor_instance,
        client_duration_ns=table.client_duration_ns,
        client_stamp_kid=table.client_stamp_kid,
        client_request_hash=table.client_request_hash,
        client_request_bytes=table.client_request_bytes,
        destination_address=table.destination_address,
        destination_port=table.destination_port,
        peer_address=table.peer_address,
        peer_port=table.peer_port,
        request_key=request_key_of(columns["request_id"]),
        client_request_key=request_key_of(table.client_request_id),
        **columns,
    )


def _without_records(table: ir.Table) -> ir.Table:
    nothing = ibis.null("uint64")
    return table.mutate(
        outbound_record_id=nothing,
        inbound_record_id=nothing,
        outbound_ambiguous=ibis.literal(False),
        inbound_ambiguous=ibis.literal(False),
    )


def _count(*conditions: ir.BooleanValue) -> ir.IntegerValue:
    total = ibis.literal(0, "int64")
    for condition in conditions:
        total += ibis.ifelse(condition.fill_null(False), 1, 0)
    return total.cast("int64")


def _rpc(table: ir.Table) -> ir.StringValue:
    """`service/method`; newer conventions put both into rpc.method."""
    both = table.rpc_service + "/" + table.rpc_method
    return ibis.ifelse(table.rpc_method.contains("/"), table.rpc_method.re_replace("^/", ""), both)


def _operation(table: ir.Table) -> ir.StringValue:
    return ibis.coalesce(_rpc(table), table.http_request_method + " " + table.http_route, table.name)


def _path(table: ir.Table) -> ir.StringValue:
    return ibis.coalesce(ibis.literal("/") + _rpc(table), path_of(table.url_path), path_of(table.url_full))


def _protocol(table: ir.Table) -> ir.StringValue:
    return ibis.cases((table.rpc_method.notnull(), "rpc"), (table.http_request_method.notnull(), "http"), else_="other")

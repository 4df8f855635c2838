"""What the mesh itself costs: of every call the client's time less the server's, split at the proxies' spans between them.

Differences of durations of one call, never of clocks and never of medians; negative ones (a client that gave up before the server ended)
are kept, or the median would lie. Where proxies write spans a hop is split in three:

- caller_proxy: between the client's span and the last of the caller's proxy: its stack, the way to the proxy, and what the proxy does
  outside of its last span. With one span a proxy (Envoy's default) the proxy's own work inside that span is in `network`.
- network: between the last span of the caller's proxy and the first of the callee's.
- callee_proxy: from there to the server's span.

Proxies write one span or two each: two or four spans between client and server are split by position; one span where its service
name says whose it is. Other numbers (a gateway between, one side sampled) are counted, and not split.
"""

from typing import Final, Literal

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.calls import is_of
from collector.forensics.edges import deduplicated
from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import NS_PER_S, Query, Window, spans

By = Literal["mesh", "edge", "hop"]
BY: Final[tuple[By, ...]] = ("mesh", "edge", "hop")

KEYS: Final[dict[By, tuple[str, ...]]] = {
    "mesh": (),
    "edge": ("caller", "callee"),
    "hop": ("caller", "callee", "operation"),
}

PARTS: Final = ("caller_proxy", "network", "callee_proxy")

MAX_PROXIES: Final = 4
"""Spans of proxies between client and server that are stepped over, as in `edges`."""

_MARGIN_NS: Final = 60 * NS_PER_S

_READ: Final = (
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


def cost_sql(window: Window, by: By) -> str:
    """The statement behind `cost`."""
    return windowed(window, lambda blank: compiled_once(_figures, blank, by))


def cost(query: Query, window: Window, by: By) -> pl.DataFrame:
    """The mesh's own cost, the most expensive first; raises what `query` raises.

    Columns: `KEYS[by]`; calls (with client and server span), proxied (of them, with a proxy's span between), split (of them, split
    in three); client_ns_p50; hop_ns_p50 and _p99 (client less server); hop_ratio_p50 (hop over client, of each call); and p50 and p99 of each
    of `PARTS`, over the split calls, NULL where there are none.
    """
    return query(cost_sql(window, by))


def hops(window: Window) -> ir.Table:
    """One row a call that starts in the window and has a client and a server span.

    caller, callee, operation, client_ns, server_ns, hop_ns, proxies (spans of proxies between them), and `PARTS` in ns.
    """
    everything = deduplicated(window.of(spans(), margin_ns=_MARGIN_NS).select(*_READ))
    app = everything.filter(everything.witness != "proxy")
    reached = _past_proxies(app.filter(app.kind == "SERVER"), everything.filter(everything.witness == "proxy"))
    clients = app.filter(app.kind == "CLIENT").select(
        client_trace="trace_id", client_id="span_id", caller="service_name", client_ns="duration_ns"
    )
    joined = reached.inner_join(
        clients, [reached.trace_id == clients.client_trace, reached.cursor == clients.client_id]
    )
    return _split(window.of(joined))


def _past_proxies(servers: ir.Table, proxies: ir.Table) -> ir.Table:
    """The servers with `cursor`, their nearest ancestor that is no proxy's span, and the proxies' spans, nearest first.

    proxy_1 to proxy_4 are their durations in ns and owner_1 to owner_4 their services; NULL where there are fewer.
    """
    reached = servers.mutate(cursor=servers.parent_span_id)
    for step in range(1, MAX_PROXIES + 1):
        hop = proxies.select(
            hop_trace="trace_id",
            hop_id="span_id",
            hop_parent="parent_span_id",
            hop_ns="duration_ns",
            hop_of="service_name",
        ).view()
        joined = reached.left_join(hop, [("trace_id", "hop_trace"), ("cursor", "hop_id")])
        reached = joined.mutate(
            cursor=joined.hop_id.notnull().ifelse(joined.hop_parent, joined.cursor),
            **{f"proxy_{step}": joined.hop_ns, f"owner_{step}": joined.hop_of},
        ).drop("hop_trace", "hop_id", "hop_parent", "hop_ns", "hop_of")
    return reached


def _split(table: ir.Table) -> ir.Table:
    """Each call's hop in parts."""
    proxies = sum((table[f"proxy_{n}"].notnull().cast("int64") for n in range(1, MAX_PROXIES + 1)), ibis.literal(0))
    table = table.mutate(proxies=proxies)
    first, second, third = table.proxy_1, table.proxy_2, table.proxy_3
    callers = (table.proxies == 1) & is_of(table.owner_1, table.caller)
    callees = (table.proxies == 1) & is_of(table.owner_1, table.service_name)
    # The last span of the caller's proxy and the first of the callee's, as durations; counted from the server upwards.
    last = ibis.cases((table.proxies == 2, second), (table.proxies == 4, third), (callers, first))
    arriving = ibis.cases((table.proxies == 2, first), (table.proxies == 4, second), (callees, first))
    # Of a single span the other end is the application's own.
    outer = ibis.ifelse(callees, table.client_ns, last)
    inner = ibis.ifelse(callers, table.duration_ns, arriving)
    return table.select(
        "caller",
        "trace_id",
        "client_ns",
        "proxies",
        callee="service_name",
        operation="name",
        server_ns="duration_ns",
        hop_ns=table.client_ns - table.duration_ns,
        caller_proxy=ibis.ifelse(callees, ibis.null("int64"), table.client_ns - outer),
        network=outer - inner,
        callee_proxy=ibis.ifelse(callers, ibis.null("int64"), inner - table.duration_ns),
    )


def _figures(window: Window, by: By) -> ir.Table:
    calls = hops(window)
    parts = {f"{part}_ns_p{round(q * 100)}": calls[part].quantile(q) for part in PARTS for q in (0.5, 0.99)}
    grouped = calls.group_by(list(KEYS[by])) if KEYS[by] else calls
    found = grouped.aggregate(
        calls=calls.count(),
        proxied=calls.count(where=calls.proxies > 0),
        split=calls.count(where=calls.network.notnull()),
        client_ns_p50=calls.client_ns.quantile(0.5),
        hop_ns_p50=calls.hop_ns.quantile(0.5),
        hop_ns_p99=calls.hop_ns.quantile(0.99),
        hop_ratio_p50=(calls.hop_ns / calls.client_ns.nullif(0)).quantile(0.5),
        **parts,
    )
    whole = {name: found[name].round().cast("int64") for name in found.columns if "_ns_p" in name}
    return found.mutate(**whole).filter(ibis._.calls > 0).order_by([ibis.desc("hop_ns_p50"), *KEYS[by]])

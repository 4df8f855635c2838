"""The access-log lines around a window, as they are compared with calls."""

import ibis
import ibis.expr.types as ir

from collector.forensics.columns import request_key_of
from collector.forensics.line_facts import facts_of
from collector.forensics.stages import repeated, staged
from collector.forensics.tables import Window, proxy_records


def path_of(url_or_path: ir.StringValue) -> ir.StringValue:
    """The path without scheme, host, query and fragment; NULL where nothing is left."""
    # Most are paths already, and two regular expressions a line take longer than to read it.
    plain = url_or_path.startswith("/") & ~url_or_path.contains("?") & ~url_or_path.contains("#")
    return ibis.ifelse(plain, url_or_path, _path_of(url_or_path))


def _path_of(url_or_path: ir.StringValue) -> ir.StringValue:
    return url_or_path.re_replace(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", "").re_replace(r"[?#].*$", "").nullif("")


def _port_of(address: ir.StringValue) -> ir.IntegerValue:
    return address.re_extract(r":(\d{1,5})$", 1).nullif("").cast("int64")


def lines(window: Window, margin_ns: int) -> ir.Table:
    """The access-log lines around the window, once each, by the side of a call that they can be about.

    Columns: side ('outbound': the caller's proxy, 'inbound': the callee's; a line without a direction is in both),
    direction, service, instance, source, record_id, request_key, path, start, end (ns), response_code; key_hash: of service and
    request key, NULL where either isn't known; passed, named, nameless_source and peer: see `line_facts`; local_port and upstream_port: what
    the caller dialled and what the proxy dialled, NULL where it isn't logged, or not needed because the line names its request.
    """
    records = proxy_records()
    numbers = window.of(records.select("record_id", "start_time_unix_nano"), margin_ns=margin_ns)
    among = repeated("records", numbers, "record_id")
    copies = _line(window.of(records, margin_ns=margin_ns)).semi_join(among, "record_id")
    copies = copies.distinct(on="record_id", keep="first")
    # Told apart before anything else is asked of them, so that no engine takes it for something to keep and to read twice.
    directed, either = records.filter(_is_directed(records)), records.filter(records.direction.isnull())
    directed, either = (_line(window.of(part, margin_ns=margin_ns)) for part in (directed, either))
    single, either = directed.anti_join(among, "record_id"), either.anti_join(among, "record_id")
    either = either.union(copies.filter(copies.direction.isnull()))
    return staged(
        "lines",
        ibis.union(
            single.mutate(side=single.direction),
            copies.filter(_is_directed(copies)).mutate(side=copies.direction),
            *(either.mutate(side=ibis.literal(side)) for side in ("outbound", "inbound")),
        ),
    )


def _is_directed(table: ir.Table) -> ir.BooleanValue:
    return table.direction.isin(("inbound", "outbound"))


def _line(table: ir.Table) -> ir.Table:
    """What `lines` has of records."""
    opaque = table.request_id.isnull() | table.path.isnull()
    table = table.select(
        "direction",
        "record_id",
        "source",
        "response_code",
        service=table.service_name,
        instance=table.service_instance_id,
        request_key=request_key_of(table.request_id),
        path=path_of(table.path),
        local_port=ibis.ifelse(opaque, _port_of(table.downstream_local_address), ibis.null("int64")),
        upstream_port=ibis.ifelse(opaque, _port_of(table.upstream_host), ibis.null("int64")),
        start=table.start_time_unix_nano,
        end=table.start_time_unix_nano + table.duration_ns.fill_null(0),
        **facts_of(table),
    )
    return table.mutate(key_hash=key_hash(table.service, table.request_key))


def key_hash(service: ir.StringValue, request_key: ir.StringValue) -> ir.IntegerValue:
    """One number for both: what shares it may belong together; whether it does, the texts decide. NULL if either is."""
    both = service.notnull() & request_key.notnull()
    return ibis.ifelse(both, service.hash() ^ request_key.hash(), ibis.null("int64"))

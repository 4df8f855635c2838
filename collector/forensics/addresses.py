"""Whose address an address is: from pods that were listed, and from socket witnesses, which know their own.

An address that more than one service had in the window (a pod's that another one got later, a node's that many share) is nobody's:
whoever is named by it might be innocent.
"""

import ibis
import ibis.expr.types as ir

from collector.forensics.stages import staged
from collector.forensics.tables import Window, flows, socket_watches, workloads


def named_addresses(window: Window) -> ir.Table:
    """(address, named_service, named_mesh): addresses that one service alone had in the window; mesh NULL where not known."""
    known = workloads()
    known = known.filter(~known.host_network.fill_null(False))
    known = _alive(known, window, known.first_seen_unix_nano, known.last_seen_unix_nano)
    listed = known.select("address", "service_name", "mesh")
    watches = socket_watches()
    watches = _alive(watches, window, watches.since_unix_nano, watches.until_unix_nano)
    watches = watches.filter(watches.addresses.notnull())
    watched = watches.select("service_name", address=watches.addresses.split(",").unnest())
    watched = watched.select(address=watched.address.strip(), service_name="service_name", mesh=ibis.null("string"))
    both = listed.union(watched)
    named = both.group_by("address").agg(
        services=both.service_name.nunique(), named_service=both.service_name.min(), named_mesh=both.mesh.max()
    )
    alone = named.filter((named.services == 1) & ~is_local(named.address) & (named.address != ""))
    return staged("addresses", alone.select("address", "named_service", "named_mesh"))


def named_flows(window: Window, margin_ns: int = 0) -> ir.Table:
    """The flows around the window, once each, with source_service and destination_service, NULL where nobody names them.

    What the record itself calls a workload goes before whose address it is.
    """
    table = window.of(flows(), margin_ns=margin_ns).distinct(on="record_id", keep="first")
    table = table.select(
        "record_id",
        "format",
        "protocol",
        "source_address",
        "source_port",
        "destination_address",
        "destination_port",
        "destination_name",
        "bytes_out",
        "bytes_in",
        "state",
        "source_workload",
        "destination_workload",
        "mesh_tls",
        "trace_id",
        start=table.start_time_unix_nano,
        end=table.start_time_unix_nano + table.duration_ns.fill_null(0),
    )
    names = named_addresses(window)
    source = names.select(from_address="address", from_service="named_service", source_mesh="named_mesh")
    target = names.select(to_address="address", to_service="named_service", destination_mesh="named_mesh")
    table = table.left_join(source, table.source_address == source.from_address)
    table = table.left_join(target, table.destination_address == target.to_address)
    return staged(
        "flows_by_name",
        table.mutate(
            source_service=ibis.coalesce(table.source_workload, table.from_service),
            destination_service=ibis.coalesce(table.destination_workload, table.to_service),
        ).drop("source_workload", "destination_workload", "from_address", "from_service", "to_address", "to_service"),
    )


def is_local(address: ir.StringValue) -> ir.BooleanValue:
    """Loopback, link-local, multicast and unspecified addresses: every pod has the same, or none."""
    lower = address.lower()
    prefixes = ("127.", "169.254.", "fe80:", "::ffff:127.", "ff0", "224.", "239.")
    local = lower.isin(("::1", "localhost", "0.0.0.0", "::", "255.255.255.255"))  # noqa: S104 - compared, not bound
    for prefix in prefixes:
        local |= lower.startswith(prefix)
    return local.fill_null(False)


def _alive(table: ir.Table, window: Window, since: ir.IntegerValue, until: ir.IntegerValue) -> ir.Table:
    """The rows whose time, open where it is not known, touches the window."""
    if window.until_unix_nano is not None:
        table = table.filter((since < window.until_unix_nano).fill_null(True))
    if window.since_unix_nano is not None:
        table = table.filter((until >= window.since_unix_nano).fill_null(True))
    return table


def without_sidecar(window: Window) -> ir.Table:
    """(bare_service): services of which witnesses found no proxy in any pod, or whose pods are all listed without one."""
    watches = socket_watches()
    watches = _alive(watches, window, watches.since_unix_nano, watches.until_unix_nano)
    watches = watches.filter(watches.proxy_found.notnull())
    watched = watches.select("service_name", proxied=watches.proxy_found)
    listed = workloads()
    listed = _alive(listed, window, listed.first_seen_unix_nano, listed.last_seen_unix_nano)
    listed = listed.filter(listed.mesh.notnull())
    both = watched.union(listed.select("service_name", proxied=listed.mesh != "none"))
    services = both.group_by("service_name").agg(proxied=both.proxied.any())
    return staged("without_sidecar", services.filter(~services.proxied).select(bare_service="service_name"))

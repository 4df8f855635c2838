"""What left, by either witness: the spans of calls that no service answered, and network flows from inside to outside.

Both become the same three frames, so that one set of rules judges both:

    ways    one row a source, host, address, port and protocol, with its totals
    hours   one row a source, host and hour, with its bytes
    times   one row a connection, for rhythm: of the last 24 h, as RITA judges

A *host* is the name that was dialled, resolved or shown in TLS, and the address where no name is known; `is_name` keeps the two apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.columns import host_of
from collector.forensics.edges import calls_in
from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import NS_PER_S, Query, Window, spans
from collector.policy.listed import address_of
from collector.schema import ibis_schema

Witness = Literal["spans", "flows"]

HOUR_NS: Final = 3600 * NS_PER_S
MAX_HOSTS_IN_SQL: Final = 2_000
"""Beyond it, rows are fetched of all hosts and sorted out here: a longer list takes longer to plan than it saves."""

WAYS: Final = {
    "witness": pl.String(),
    "source": pl.String(),
    "source_address": pl.String(),
    "namespace": pl.String(),
    "host": pl.String(),
    "is_name": pl.Boolean(),
    "address": pl.String(),
    "port": pl.Int64(),
    "protocol": pl.String(),
    "callee": pl.String(),
    "calls": pl.Int64(),
    "first_unix_nano": pl.Int64(),
    "last_unix_nano": pl.Int64(),
    "bytes_out": pl.Int64(),
    "bytes_in": pl.Int64(),
    "failed": pl.Int64(),
    "longest_ns": pl.Int64(),
    "web": pl.Boolean(),
    "stores": pl.Boolean(),
}
"""`callee` is the workload that a flow's record names; `bytes_*` and `longest_ns` are NULL where nothing says them."""

HOURS: Final = {
    "source": pl.String(),
    "host": pl.String(),
    "hour": pl.Int64(),
    "calls": pl.Int64(),
    "bytes_out": pl.Int64(),
    "bytes_in": pl.Int64(),
}
TIMES: Final = {
    "source": pl.String(),
    "host": pl.String(),
    "start_time_unix_nano": pl.Int64(),
    "size": pl.Int64(),
}

_HOSTS: Final = "\ue001hosts\ue001"
"""Where hosts will stand in a statement: no host has characters of the private use area."""

_SUMS: Final = ("bytes_out", "bytes_in")


def flows() -> ir.Table:
    """The unbound `flows` table."""
    return ibis.table(ibis_schema("flows"), name="flows")


def settled_exits(window: Window, settle_ns: int) -> ir.Table:
    """Exits with `error` than which the collector has received something newer by `settle_ns`; `host` is NULL where one says no address."""
    exits = calls_in(window).exits
    newest = spans().aggregate(newest=spans().received_unix_nano.max())
    joined = exits.cross_join(newest)
    return joined.filter(joined.received_unix_nano <= joined.newest - settle_ns)


def _outward_spans(window: Window, settle_ns: int) -> ir.Table:
    """Exits with the columns that both witnesses have."""
    exits = settled_exits(window, settle_ns)
    return exits.select(
        source="service_name",
        source_address=ibis.null("string"),
        namespace=ibis.null("string"),
        host="host",
        address="network_peer_address",
        port="port",
        protocol=ibis.null("string"),
        callee=ibis.null("string"),
        start_time_unix_nano="start_time_unix_nano",
        duration_ns="duration_ns",
        bytes_out="provenance_request_size",
        bytes_in="provenance_response_size",
        failed=exits.error,
        web=exits.http_request_method.notnull(),
        stores=exits.db_system_name.notnull() | exits.messaging_system.notnull(),
    )


def _outward_flows(window: Window, settle_ns: int) -> ir.Table:
    """Flows with the same columns, those between internal addresses too: which is which is told of few addresses, not of all rows."""
    del settle_ns
    table = window.of(flows())
    return table.select(
        source=table.source_workload,
        source_address="source_address",
        namespace="source_namespace",
        host=ibis.coalesce(table.destination_name.nullif(""), table.destination_address).lower(),
        address="destination_address",
        port=table.destination_port.cast("int64"),
        protocol="protocol",
        callee="destination_workload",
        start_time_unix_nano="start_time_unix_nano",
        duration_ns="duration_ns",
        bytes_out="bytes_out",
        bytes_in="bytes_in",
        failed=ibis.literal(value=False),
        web=ibis.literal(value=False),
        stores=ibis.literal(value=False),
    )


_OUTWARD: Final = {"spans": _outward_spans, "flows": _outward_flows}
_PAIR: Final = ("source", "source_address", "host")


def _ways(window: Window, witness: Witness, settle_ns: int) -> ir.Table:
    table = _OUTWARD[witness](window, settle_ns)
    start = table.start_time_unix_nano
    return table.group_by([*_PAIR, "namespace", "address", "port", "protocol", "callee"]).aggregate(
        calls=table.count(),
        first_unix_nano=start.min(),
        last_unix_nano=start.max(),
        failed=table.count(where=table.failed),
        longest_ns=table.duration_ns.max(),
        web=table.web.any(),
        stores=table.stores.any(),
        **{name: table[name].sum().cast("int64") for name in _SUMS},
    )


def _hours(window: Window, witness: Witness, by_host: bool) -> ir.Table:  # noqa: FBT001  (part of the shape)
    table = _OUTWARD[witness](window, 0)
    table = of_hosts(table) if by_host else table
    hourly = table.mutate(hour=(table.start_time_unix_nano / HOUR_NS).floor().cast("int64"))
    return hourly.group_by([*_PAIR, "hour"]).aggregate(
        calls=hourly.count(), **{name: hourly[name].sum().cast("int64") for name in _SUMS}
    )


def _times(window: Window, witness: Witness, by_host: bool) -> ir.Table:  # noqa: FBT001  (part of the shape)
    table = _OUTWARD[witness](window, 0)
    table = of_hosts(table) if by_host else table
    return table.select(*_PAIR, "start_time_unix_nano", size="bytes_out")


@dataclass(frozen=True, slots=True)
class Sources:
    """Who a flow's source address is.

    Attributes:
        by: `workload` or `address`.
        workloads: Service name and namespace by address, as far as known.
    """

    by: Literal["workload", "address"]
    workloads: Mapping[str, tuple[str, str | None]]

    def named(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows with `source` as it is asked for; of spans it is there already."""
        address = pl.col("source_address")
        if self.by == "address":
            return frame.with_columns(source=pl.coalesce(address, "source"))
        names = {address: name for address, (name, _) in self.workloads.items()}
        return frame.with_columns(
            source=pl.coalesce("source", address.replace_strict(names, default=None, return_dtype=pl.String), address)
        )

    def namespaces(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows with the namespace that is known of their source address, where their record has none."""
        names = {address: namespace for address, (_, namespace) in self.workloads.items() if namespace}
        known = pl.col("source_address").replace_strict(names, default=None, return_dtype=pl.String)
        return frame.with_columns(namespace=pl.coalesce("namespace", known))


def ways_sql(window: Window, witness: Witness, settle_ns: int) -> str:
    """The statement behind `ways`."""
    return windowed(window, lambda blank: compiled_once(_ways, blank, witness, settle_ns))


def ways(query: Query, window: Window, witness: Witness, sources: Sources, settle_ns: int = 0) -> pl.DataFrame:
    """Everything that one witness saw go anywhere; columns `WAYS`, `host` NULL where a span names none."""
    found = sources.namespaces(sources.named(query(ways_sql(window, witness, settle_ns))))
    hosts = found["host"].unique().to_list()
    names = {host: address_of(host) is None for host in hosts if host is not None}
    found = found.with_columns(
        witness=pl.lit(witness),
        is_name=pl.col("host").replace_strict(names, default=False, return_dtype=pl.Boolean),
    )
    return found.select(pl.col(name).cast(dtype) for name, dtype in WAYS.items())


def hours(query: Query, window: Window, witness: Witness, sources: Sources, hosts: Sequence[str]) -> pl.DataFrame:
    """Bytes by hour of these hosts; columns `HOURS`, `hour` counted from the Unix epoch."""
    compiled = windowed(window, lambda blank: compiled_once(_hours, blank, witness, len(hosts) <= MAX_HOSTS_IN_SQL))
    found = sources.named(query(with_hosts(compiled, hosts)))
    found = found.filter(pl.col("host").is_in(list(hosts)))
    total = (pl.when(pl.col(n).is_not_null().any()).then(pl.col(n).sum()).alias(n) for n in _SUMS)
    found = found.group_by("source", "host", "hour").agg(pl.col("calls").sum(), *total)
    return found.select(pl.col(name).cast(dtype) for name, dtype in HOURS.items())


def times(query: Query, window: Window, witness: Witness, sources: Sources, hosts: Sequence[str]) -> pl.DataFrame:
    """Connections to these hosts, one by one; columns `TIMES`."""
    compiled = windowed(window, lambda blank: compiled_once(_times, blank, witness, len(hosts) <= MAX_HOSTS_IN_SQL))
    found = sources.named(query(with_hosts(compiled, hosts)))
    found = found.filter(pl.col("host").is_in(list(hosts)))
    return found.select(pl.col(name).cast(dtype) for name, dtype in TIMES.items())


def seen_before(query: Query, window: Window, witness: Witness, sources: Sources) -> pl.DataFrame:
    """How often each source reached each host in a window: `source`, `host`, `calls`.

    Of spans every client's span counts, whoever answered: that takes a fraction of following calls, and who was called before is not new.
    """
    found = sources.named(query(windowed(window, lambda blank: compiled_once(_seen_before, blank, witness))))
    return found.group_by("source", "host").agg(pl.col("calls").sum().cast(pl.Int64))


def _seen_before(window: Window, witness: Witness) -> ir.Table:
    if witness == "flows":
        table = _outward_flows(window, 0)
    else:
        client = window.of(spans())
        client = client.filter(client.kind.isin(["CLIENT", "PRODUCER"]) & (client.witness != "proxy"))
        table = client.select(source="service_name", source_address=ibis.null("string"), host=host_of(client))
    known = table.filter(table.host.notnull())
    return known.group_by(list(_PAIR)).aggregate(calls=known.count())


def of_hosts(table: ir.Table) -> ir.Table:
    """The rows of some hosts, which `with_hosts` writes into the statement: compiled once whichever they are."""
    return table.filter(table.host.isin([_HOSTS]))


def with_hosts(sql: str, hosts: Sequence[str]) -> str:
    """The statement with these hosts, written by sqlglot; one without a place for them stays as it is."""
    from sqlglot import exp

    return sql.replace(f"'{_HOSTS}'", ", ".join(exp.Literal.string(host).sql("duckdb") for host in sorted(hosts)))

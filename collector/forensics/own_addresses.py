"""What is the mesh's own, by its own evidence: what answered, where its proxies listen, what its services are called."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.edges import answering, calls_in
from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import NS_PER_S, Query, Window, proxy_records, spans

RESOLVE_MARGIN_NS: Final = 24 * 3600 * NS_PER_S
"""How far around the window other calls are looked at to learn which addresses are the mesh's own."""

POD_HOSTS: Final = frozenset({"127.0.0.1", "::1", "localhost"})
"""The pod itself: agents and sidecars. Other loopback addresses are not what anybody listens on by habit, so they are judged."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A workload and a destination that is not the mesh's own."""

    service: str
    host: str
    port: int | None

    @property
    def destination(self) -> str:
        """host:port, or the host alone, as `columns.address_of` writes it."""
        if self.port is None:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """What belongs to the mesh: addresses (host:port) that answered or where its proxies listen, names of services and namespaces.

    Services are those that sent a server span and those whose proxy logs: a workload without OpenTelemetry is in the mesh too.
    """

    addresses: frozenset[str]
    services: frozenset[str]
    namespaces: frozenset[str]

    def holds(self, suspect: Suspect) -> bool:
        """Whether a destination is the mesh's own: by address, or as a service's name in a cluster's DNS.

        `checkout`, `checkout.NAMESPACE` of a known namespace and `checkout.any.svc…` name the service checkout;
        `checkout.example.com` does not.
        """
        if suspect.host in POD_HOSTS or suspect.destination in self.addresses:
            return True
        name, _, rest = suspect.host.lower().partition(".")
        if name not in self.services:
            return False
        labels = rest.split(".") if rest else []
        in_cluster = len(labels) >= 2 and labels[1] == "svc" and labels[2:] in ([], ["cluster", "local"])
        return not labels or in_cluster or (len(labels) == 1 and labels[0] in self.namespaces)


def own_sql(window: Window) -> dict[str, str]:
    """The statements that `own_addresses` wants answered."""
    return {
        "answering": windowed(window, lambda blank: compiled_once(_answering, blank)),
        "listeners": windowed(window, lambda blank: compiled_once(_listeners, blank)),
        "services": windowed(window, lambda blank: compiled_once(_services, blank)),
    }


def own_addresses(query: Query, statements: Mapping[str, str]) -> OwnAddresses:
    """What the mesh's own evidence says of itself, by the statements of `own_sql`."""
    answered = query(statements["answering"])["answering_address"].to_list()
    listeners = query(statements["listeners"])
    services = query(statements["services"])
    own = {*answered, *listeners.filter(pl.col("upstream").is_null())["address"]}
    # Under transparent capture an outbound line's local address is what the application dialled, and an external name resolves to
    # several addresses: only a line whose proxy went on to the mesh says that the mesh was dialled.
    own |= {address for address, upstream in listeners.iter_rows() if upstream in own}
    return OwnAddresses(
        addresses=frozenset(own),
        services=frozenset(name.lower() for name in services["service_name"]),
        namespaces=frozenset(name.lower() for name in services["service_namespace"].drop_nulls()),
    )


def _answering(window: Window) -> ir.Table:
    """Addresses at which a service's span answered a call, by a window widened by `RESOLVE_MARGIN_NS`."""
    return answering(calls_in(_wide(window)).entries)


def _listeners(window: Window) -> ir.Table:
    """Addresses where the mesh's proxies and the workloads behind them listen, and what outbound proxies were dialled as (`address`, `upstream`).

    `upstream` is NULL where the address is a listener whatever else is known, else where the proxy went from there.
    """
    records = _wide(window).of(proxy_records())
    inbound = records.filter(records.direction == "inbound")
    outbound = records.filter((records.direction == "outbound") & records.upstream_host.notnull())
    nowhere = ibis.null("string")
    parts = (
        inbound.select(address="downstream_local_address", upstream=nowhere),
        inbound.select(address="upstream_host", upstream=nowhere),
        outbound.select(address="downstream_local_address", upstream="upstream_host"),
    )
    union = ibis.union(*parts, distinct=True)
    return union.filter(union.address.notnull())


def _services(window: Window) -> ir.Table:
    table = _wide(window).of(spans())
    served = table.filter((table.kind == "SERVER") & (table.witness != "proxy"))
    logging = _wide(window).of(proxy_records())
    logging = logging.select("service_name", service_namespace=ibis.null("string"))
    both = served.select("service_name", "service_namespace").union(logging).distinct()
    return both.filter(both.service_name.notnull())


def _wide(window: Window) -> Window:
    since, until = window.since_unix_nano, window.until_unix_nano
    return Window(
        None if since is None else since - RESOLVE_MARGIN_NS, None if until is None else until + RESOLVE_MARGIN_NS
    )

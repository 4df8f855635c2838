"""How calls go past a mesh, and how each way is closed: from what pods say of themselves, and from what proxies and sockets saw.

A way is a name for a mechanism, and only given where something names it: an annotation that excludes just this port, the proxy's
own uid, a proxy that wrote `PassthroughCluster`. Pure: `way_of` takes one group of calls and what is known of the workloads.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from collector.forensics.columns import pairs_of
from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import Query, Window, socket_watches, workloads

PROXY_UIDS: Final = (1337, 2102)
"""Of istio-proxy and of linkerd-proxy: what they send is never redirected, whoever runs under their names."""

LINKERD_SKIPPED: Final = frozenset({4567, 4568})
LINKERD_OPAQUE: Final = frozenset({25, 587, 3306, 4444, 5432, 6379, 9300, 11211})
"""What Linkerd skips, and what it does not look into, where no annotation says otherwise."""

_ISTIO: Final = "traffic.sidecar.istio.io/"
_LINKERD: Final = "config.linkerd.io/"
_OFF: Final = {"sidecar.istio.io/inject": ("false",), "linkerd.io/inject": ("disabled",)}


@dataclass(frozen=True, slots=True)
class Way:
    """One mechanism: `how` continues "N calls from A to B bypassed the mesh: ", `remedy` has the names to fill in."""

    how: str
    remedy: str


WAYS: Final[dict[str, Way]] = {
    "excluded_port": Way(
        "the port is excluded from redirection",
        "remove the port from {annotation} of {pod}, or refuse its plaintext: PeerAuthentication STRICT for {callee}",
    ),
    "excluded_ip_range": Way(
        "the address is excluded from redirection",
        "remove the range from {annotation} of {pod}, or refuse its plaintext: PeerAuthentication STRICT for {callee}",
    ),
    "skip_port": Way(
        "Linkerd skips the port",
        "remove the port from {annotation} of {pod} (config.linkerd.io/opaque-ports keeps mTLS where the protocol is the reason), "
        "and let a Server with an AuthorizationPolicy ask {callee}'s callers for MeshTLSAuthentication",
    ),
    "proxy_uid": Way(
        "a process runs under the proxy's own uid, whose traffic is never redirected",
        "run {caller} as another user than {uid} (runAsUser), refuse that uid to workloads by admission policy, and set "
        "PeerAuthentication STRICT for {callee}",
    ),
    "no_sidecar": Way(
        "{pod} runs without a sidecar",
        "have a sidecar injected into {pod} (label its namespace istio-injection=enabled, or annotate it linkerd.io/inject: enabled), and "
        "set PeerAuthentication STRICT for {callee} (Linkerd: default-inbound-policy all-authenticated)",
    ),
    "host_network": Way(
        "{pod} runs in its node's network, where nothing is redirected",
        "take hostNetwork from {pod}, or let a NetworkPolicy for {callee} refuse the nodes' addresses",
    ),
    "plaintext_accepted": Way(
        "{callee}'s proxy took them in plaintext",
        "set PeerAuthentication mode STRICT for {callee} (Linkerd: annotate it config.linkerd.io/default-inbound-policy: "
        "all-authenticated)",
    ),
    "direct_pod_ip": Way(
        "{caller} dialled a pod's own address, for which its proxy has no route (PassthroughCluster)",
        "let {caller} dial the Service's name, set outboundTrafficPolicy REGISTRY_ONLY, and PeerAuthentication STRICT for {callee}",
    ),
    "passthrough_cluster": Way(
        "{caller}'s proxy had no route to it and passed it on as it came (PassthroughCluster)",
        "declare the host with a Service or ServiceEntry, and set outboundTrafficPolicy REGISTRY_ONLY so that nothing else leaves",
    ),
    "udp": Way(
        "it was UDP, which no sidecar captures",
        "let a NetworkPolicy refuse UDP to {callee} except from where it is meant",
    ),
    "opaque": Way("the port is opaque to the mesh", ""),
}
"""By name, as findings and `provenance calls` have it."""

UNNAMED_REMEDY: Final = (
    "set PeerAuthentication STRICT for {callee} (Linkerd: default-inbound-policy all-authenticated) and let a NetworkPolicy admit "
    "its callers' pods alone"
)
"""Where calls went past a proxy and nothing names the way."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is known of one service's pods: their annotations, united, and whether any of them has no sidecar."""

    annotations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    meshes: frozenset[str] = frozenset()
    host_network: bool = False
    unproxied: bool = False

    def values(self, name: str) -> Iterable[str]:
        """The comma-separated values of an annotation, over all pods."""
        for text in self.annotations.get(name, ()):
            yield from (part.strip() for part in text.split(",") if part.strip())


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What pods and witnesses say of the workloads.

    Attributes:
        services: By service name.
        pods: Addresses of pods.
    """

    services: Mapping[str, Workload] = field(default_factory=dict)
    pods: frozenset[str] = frozenset()

    def of(self, service: str | None) -> Workload:
        """What is known of a service; nothing where it is not known."""
        return self.services.get(service or "", _NOTHING)


_NOTHING: Final = Workload()


@dataclass(frozen=True, slots=True)
class Named:
    """A way, on which side's pod, and what is to be changed there."""

    way: str
    pod: str = ""
    annotation: str = ""
    uid: int | None = None

    def how(self, caller: str | None, callee: str | None) -> str:
        """The mechanism as a clause; empty for none."""
        return self._fill(WAYS[self.way].how, caller, callee) if self.way else ""

    def remedy(self, caller: str | None, callee: str | None) -> str:
        """One sentence: what closes it."""
        return self._fill(WAYS[self.way].remedy if self.way else UNNAMED_REMEDY, caller, callee)

    def _fill(self, text: str, caller: str | None, callee: str | None) -> str:
        return text.format(
            caller=caller or "the caller",
            callee=callee or "the callee",
            pod=self.pod or caller or "the caller",
            annotation=self.annotation,
            uid=self.uid,
        )


def known_workloads(query: Query, window: Window) -> Knowledge:
    """What the tables `workloads` and `socket_watches` say around the window. Raises what `query` raises."""
    rows = query(compiled_once(workloads_table)).to_dicts()
    watches = query(windowed(window, lambda blank: compiled_once(_watches, blank))).to_dicts()
    bare = {row["service_name"] for row in watches if row["found"] is False}
    by_service: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_service.setdefault(row["service_name"], []).append(row)
    services = {name: _united(by_service.get(name, []), bare=name in bare) for name in {*by_service, *bare}}
    return Knowledge(services, frozenset(row["address"] for row in rows if not row["host_network"]))


def workloads_table() -> Any:
    """Every workload row that is known, the columns that ways are named by."""
    return workloads().select("address", "service_name", "mesh", "host_network", "attributes")


def _watches(window: Window) -> Any:
    table = socket_watches()
    if window.since_unix_nano is not None:
        table = table.filter(table.until_unix_nano >= window.since_unix_nano)
    if window.until_unix_nano is not None:
        table = table.filter(table.since_unix_nano < window.until_unix_nano)
    return table.group_by("service_name").agg(found=table.proxy_found.any())


def _united(rows: list[dict[str, Any]], *, bare: bool) -> Workload:
    annotations: dict[str, set[str]] = {}
    for row in rows:
        for key, value in pairs_of(row["attributes"]):
            annotations.setdefault(key, set()).add(value)
    off = any(set(values) & annotations.get(name, set()) for name, values in _OFF.items())
    return Workload(
        annotations={key: tuple(sorted(values)) for key, values in annotations.items()},
        meshes=frozenset(row["mesh"] for row in rows if row["mesh"]),
        host_network=any(row["host_network"] for row in rows),
        unproxied=bare or off or any(row["mesh"] == "none" for row in rows),
    )


def way_of(row: Mapping[str, Any], known: Knowledge) -> Named:
    """The way that a group of calls went, by its facts; of no name where nothing names it.

    `row` has caller, callee, bypass_outbound, bypass_inbound, passed_through, plaintext, destination_address,
    destination_port, uid (of the bypassing socket); what it lacks is not known.
    """
    caller, callee = known.of(row.get("caller")), known.of(row.get("callee"))
    address, port = row.get("destination_address"), row.get("destination_port")
    if row.get("uid") in PROXY_UIDS:
        return Named("proxy_uid", row.get("caller") or "", uid=row["uid"])
    if row.get("bypass_outbound") or row.get("plaintext"):
        named = _excluded(caller, row.get("caller"), "Outbound", address, port)
        if named is not None:
            return named
    if row.get("bypass_inbound"):
        named = _excluded(callee, row.get("callee"), "Inbound", None, port)
        if named is not None:
            return named
    if row.get("passed_through"):
        return Named("direct_pod_ip" if address in known.pods else "passthrough_cluster")
    return Named("plaintext_accepted") if row.get("plaintext") else Named("")


def _excluded(
    workload: Workload, name: str | None, direction: str, address: str | None, port: int | None
) -> Named | None:
    """Why the pod's own redirection leaves this port or address alone; None where nothing says so."""
    excluded, included = f"{_ISTIO}exclude{direction}Ports", f"{_ISTIO}include{direction}Ports"
    skipped = f"{_LINKERD}skip-{direction.lower()}-ports"
    if port is not None:
        if in_ports(port, workload.values(excluded)):
            return Named("excluded_port", name or "", excluded)
        if in_ports(port, workload.values(skipped)):
            return Named("skip_port", name or "", skipped)
        if workload.meshes == {"linkerd"} and skipped not in workload.annotations and port in LINKERD_SKIPPED:
            return Named("skip_port", name or "", skipped)
        chosen = list(workload.values(included))
        if direction == "Inbound" and included in workload.annotations and not in_ports(port, chosen):
            return Named("excluded_port", name or "", included)
    if address is not None and direction == "Outbound":
        named = _excluded_range(workload, name, address, port)
        if named is not None:
            return named
    if workload.host_network:
        return Named("host_network", name or "")
    return Named("no_sidecar", name or "") if workload.unproxied else None


def _excluded_range(workload: Workload, name: str | None, address: str, port: int | None) -> Named | None:
    excluded, included = f"{_ISTIO}excludeOutboundIPRanges", f"{_ISTIO}includeOutboundIPRanges"
    if in_ranges(address, workload.values(excluded)):
        return Named("excluded_ip_range", name or "", excluded)
    ranges = list(workload.values(included))
    # A port that is included is redirected whatever the address is.
    asked = port is not None and in_ports(port, workload.values(f"{_ISTIO}includeOutboundPorts"))
    if included in workload.annotations and not asked and is_address(address) and not in_ranges(address, ranges):
        return Named("excluded_ip_range", name or "", included)
    return None


def is_opaque(port: int | None, callee: Workload) -> bool:
    """Whether Linkerd carries this port without looking into it: then no log has its calls, and none is missing."""
    if port is None or "linkerd" not in callee.meshes:
        return False
    named = f"{_LINKERD}opaque-ports"
    return in_ports(port, callee.values(named)) if named in callee.annotations else port in LINKERD_OPAQUE


def in_ports(port: int, values: Iterable[str]) -> bool:
    """Whether a port is in a list of ports and ranges (`8080`, `4000-4100`, `*`); what is neither is passed over."""
    for value in values:
        first, _, last = value.partition("-")
        if value == "*":
            return True
        if first.isdecimal() and (last or first).isdecimal() and int(first) <= port <= int(last or first):
            return True
    return False


def in_ranges(address: str, values: Iterable[str]) -> bool:
    """Whether an address is in a list of CIDR blocks (or `*`); names and what is no block are in none."""
    try:
        one = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(value == "*" or _holds(value, one) for value in values)


def is_address(text: str) -> bool:
    """Whether this is an IP address, not a name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _holds(block: str, address: "ipaddress.IPv4Address | ipaddress.IPv6Address") -> bool:
    try:
        return address in ipaddress.ip_network(block, strict=False)
    except ValueError:
        return False

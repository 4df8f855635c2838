"""Linkerd: EgressNetwork with the routes that hang on it.

https://linkerd.io/2/reference/egress-network/. A namespace's own network comes before that of the global namespace; of several that
hold an address, the narrowest block counts. A route that is attached allows what it matches; everything else is up to `trafficPolicy`.

Only hosts and ports are judged: a route whose rules all match on paths, methods or headers allows its hosts here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from collector.policy.calls import Call, Verdict, Workload, covers, inside, is_internal
from collector.policy.documents import Document
from collector.policy.listed import Network, normal_host

GROUP: Final = "policy.linkerd.io"
GLOBAL_NAMESPACE: Final = "linkerd-egress"
ROUTE_GROUPS: Final = (GROUP, "gateway.networking.k8s.io")
ROUTES: Final = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute")
EVERYWHERE: Final = (ip_network("0.0.0.0/0"), ip_network("::/0"))


@dataclass(frozen=True, slots=True)
class Block:
    """One of a network's blocks, without its exceptions."""

    cidr: Network
    excepted: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """What a route allows on the networks it hangs on: hosts (none: every host) and, by parent, a port (None: every port)."""

    title: str
    parents: tuple[tuple[str | None, str, int | None], ...]
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EgressNetwork:
    """Blocks outside the mesh and whether what no route matches may leave to them."""

    title: str
    namespace: str | None
    name: str
    blocks: tuple[Block, ...]
    allows_the_rest: bool

    def width(self, call: Call) -> int | None:
        """The prefix length of the narrowest block that holds the call's address; None: it is not in here.

        A name whose address nobody saw is in a network that is all of the Internet.
        """
        if not call.addresses:
            public = [b for b in self.blocks if not b.cidr.prefixlen and not _excepts_the_internet(b)]
            return 0 if public and not call.is_address else None
        lengths = [
            block.cidr.prefixlen
            for block in self.blocks
            for address in call.addresses
            if inside((block.cidr,), address) is not None and inside(block.excepted, address) is None
        ]
        return max(lengths, default=None)


@dataclass(frozen=True, slots=True)
class Linkerd:
    """Everything that Linkerd was told of egress."""

    networks: tuple[EgressNetwork, ...] = ()
    routes: tuple[Route, ...] = ()

    @property
    def is_given(self) -> bool:
        """Whether anything was said."""
        return bool(self.networks)

    def network_of(self, call: Call) -> EgressNetwork | None:
        """The network that counts for a call; None: none holds it."""
        workload: Workload = call.workload
        own = [n for n in self.networks if n.namespace != GLOBAL_NAMESPACE and workload.is_in(n.namespace)]
        everybodys = [n for n in self.networks if n.namespace == GLOBAL_NAMESPACE]
        for networks in (own, everybodys):
            widths = [(width, n) for n in networks if (width := n.width(call)) is not None]
            if widths:
                return max(widths, key=lambda found: found[0])[1]
        return None

    def judge(self, call: Call) -> Verdict | None:
        """Whether a route of the call's network allows it, or its trafficPolicy; None: no network holds it."""
        network = self.network_of(call)
        if network is None:
            return None
        for route in self.routes:
            for namespace, name, port in route.parents:
                if name != network.name or (
                    network.namespace is not None and namespace not in {None, network.namespace}
                ):
                    continue
                if port not in {None, call.port}:
                    continue
                if (host := _host_of(route, call)) is not None:
                    at = "every port" if port is None else f"port {port}"
                    return Verdict(allowed=True, rule=f"{route.title}: {host}, {at} of {network.title}")
        if network.allows_the_rest:
            return Verdict(allowed=True, rule=f"{network.title}: trafficPolicy Allow")
        return Verdict(
            allowed=False, against=f"no route of {network.title} (trafficPolicy Deny) has {call.destination}"
        )


def read_linkerd(documents: Sequence[Document]) -> Linkerd:
    """What these documents say; those of other kinds are passed over. Raises ConfigError."""
    networks = tuple(_network(d) for d in documents if d.kind == "EgressNetwork" and d.group == GROUP)
    routes = tuple(_route(d) for d in documents if d.kind in ROUTES and d.group in ROUTE_GROUPS)
    return Linkerd(networks, tuple(r for r in routes if r.parents))


def concerns(document: Document) -> bool:
    """Whether the document says something that `read_linkerd` reads."""
    if document.kind == "EgressNetwork":
        return document.group == GROUP
    return document.kind in ROUTES and document.group in ROUTE_GROUPS


def _network(document: Document) -> EgressNetwork:
    spec = document.spec
    blocks = tuple(
        Block(n["cidr"].network(), tuple(e.network() for e in n["except"].items())) for n in spec["networks"].items()
    )
    return EgressNetwork(
        title=document.title,
        namespace=document.namespace,
        name=document.name,
        blocks=blocks or tuple(Block(cidr, ()) for cidr in EVERYWHERE),
        allows_the_rest=spec["trafficPolicy"].choice("Allow", "Deny") == "Allow",
    )


def _route(document: Document) -> Route:
    spec = document.spec
    parents = tuple(
        (
            parent["namespace"].text_or("") or document.namespace,
            parent["name"].text(),
            parent["port"].port() if parent["port"] else None,
        )
        for parent in spec["parentRefs"].items()
        if parent["kind"].text_or("Gateway") == "EgressNetwork"
    )
    hosts = tuple(normal_host(host) for host in spec["hostnames"].texts())
    return Route(document.title, parents, hosts)


def _host_of(route: Route, call: Call) -> str | None:
    """The route's hostname that covers the call; None: none does."""
    if not route.hosts:
        return "every host"
    return next((f"hostname {host}" for host in route.hosts if not call.is_address and covers(host, call.host)), None)


def _excepts_the_internet(block: Block) -> bool:
    return any(not is_internal(network.network_address) for network in block.excepted)

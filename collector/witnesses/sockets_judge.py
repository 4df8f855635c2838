"""What a pod's socket table proves of each connection: captured by the proxy, bypassing it, or none of the mesh's. Pure.

A sidecar shares its pod's network namespace, so the table has both halves of a captured connection: the application's socket
`10.1.0.7:58548 -> 10.1.0.9:8080` and the proxy's `127.0.0.1:15001 <- 10.1.0.7:58548`. What counts as proof:

| socket | proof | verdict |
|---|---|---|
| outgoing | the proxy's socket of the same address and port, in a state that fits | captured |
| outgoing, ESTABLISHED in two dumps | its owner is not the proxy, no such socket in either dump, no loose end, no stalled listener | bypassed |
| incoming on the proxy's inbound port | itself | captured |
| incoming on an application's port, from another machine, where the proxy redirects | itself: a redirected connection has the proxy's port at this end | bypassed |
| UDP to another machine, except DNS | no sidecar's redirection takes UDP | bypassed |
| outgoing, of the proxy (user and control group) | its upstream side | not_mesh |

Everything else stays undecided. Above all an outgoing socket in TIME_WAIT: its program closed first, the proxy's end of it, if there was one,
is gone without a trace by then, and nobody owns a socket in TIME_WAIT, so it may as well be the proxy's own. Both ends can be in the table
only as long as neither has closed completely.

*Loose ends*: where two connections share a local port (which Linux allows to different destinations), the redirection gives the second
one another port on its way to the proxy, and the proxy's end has no partner by number. While such an end is open in both dumps, nothing is
called bypassed.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from collector.witnesses.sockets import Socket

Capture = Literal["captured", "bypassed", "not_mesh"]
Direction = Literal["outbound", "inbound"]
Key = tuple[str, str, int, str, int, int | None]

CAPTURED: Final = "captured"
BYPASSED: Final = "bypassed"
NOT_MESH: Final = "not_mesh"

_OPEN: Final = frozenset({"ESTABLISHED", "SYN_RECV"})
_PARTNERS: Final = {
    # The state of our end -> those that the proxy's end can have, allowing for the moment between reading the one and the other.
    "SYN_SENT": frozenset({"SYN_RECV", "ESTABLISHED"}),
    "ESTABLISHED": frozenset({"ESTABLISHED", "SYN_RECV", "CLOSE_WAIT", "LAST_ACK", "FIN_WAIT1"}),
    "CLOSE_WAIT": frozenset({"FIN_WAIT1", "FIN_WAIT2", "ESTABLISHED"}),
    "LAST_ACK": frozenset({"FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT"}),
    "FIN_WAIT1": frozenset({"ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT1", "CLOSING"}),
    "FIN_WAIT2": frozenset({"CLOSE_WAIT", "ESTABLISHED"}),
    "CLOSING": frozenset({"CLOSING", "FIN_WAIT1", "TIME_WAIT"}),
    "TIME_WAIT": frozenset({"CLOSE_WAIT", "LAST_ACK"}),
}
_DNS: Final = 53
"""Istio's DNS capture takes it, to a port of the agent."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """How a mesh's sidecar takes traffic.

    Attributes:
        outbound_ports: Where outgoing connections are redirected to.
        inbound_ports: Where incoming ones are.
        own_ports: Its other ports: administration, probes, metrics.
        uids: Of the user that it runs as, whose connections are left alone.
    """

    outbound_ports: frozenset[int]
    inbound_ports: frozenset[int]
    own_ports: frozenset[int] = frozenset()
    uids: frozenset[int] = frozenset()


PROXIES: Final = {
    # https://istio.io/latest/docs/ops/deployment/application-requirements/#ports-used-by-istio
    "istio": Proxy(
        frozenset({15001}),
        frozenset({15006}),
        frozenset({15000, 15004, 15008, 15020, 15021, 15053, 15090}),
        frozenset({1337}),
    ),
    # https://linkerd.io/2/reference/proxy-configuration/: outbound, inbound; admin, control
    "linkerd": Proxy(frozenset({4140}), frozenset({4143}), frozenset({4190, 4191}), frozenset({2102})),
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One dump and what was known around it.

    Attributes:
        sockets: Of this network namespace.
        addresses: The namespace's own.
        ports: First and last of those that the kernel draws for outgoing connections.
        stalls: How many connections its listeners had kept waiting or dropped by then.
        listened: TCP ports that somebody listened on in an earlier dump.
    """

    sockets: tuple[Socket, ...]
    addresses: frozenset[str]
    ports: tuple[int, int] = (32768, 60999)
    stalls: int = 0
    listened: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Judged:
    """What one dump says of one socket; `suspect`: bypassed, if a second dump agrees."""

    socket: Socket
    direction: Direction | None
    capture: Capture | None = None
    proxy_port: int | None = None
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What one dump says of all of them.

    Attributes:
        judged: Connections with other machines, and listeners that other machines may reach.
        loose_ends: Of the proxy's open ends, those whose partner is not in the table by number.
        stalls: As of the snapshot.
        proxy_found: Whether one of the proxy's ports listens.
    """

    judged: tuple[Judged, ...]
    loose_ends: frozenset[Key]
    stalls: int
    proxy_found: bool

    @property
    def suspects(self) -> frozenset[Key]:
        """The sockets that a second dump must confirm."""
        return frozenset(j.socket.key for j in self.judged if j.suspect)


def read(snapshot: Snapshot, proxy: Proxy) -> Reading:
    """Judge every socket of one dump."""
    table = _Table(snapshot, proxy)
    judged = tuple(j for s in snapshot.sockets if (j := table.judge(s)) is not None)
    return Reading(judged, table.loose_ends(), snapshot.stalls, table.proxy_found)


def confirmed(first: Reading, second: Reading) -> frozenset[Key]:
    """The outgoing sockets that bypassed the proxy for certain: suspect in both dumps, with nothing open that could explain them."""
    if first.stalls != second.stalls or first.loose_ends & second.loose_ends:
        return frozenset()
    return first.suspects & second.suspects


def is_loopback(address: str) -> bool:
    """Whether an address is a machine's way to itself."""
    return address.startswith("127.") or address == "::1"


def is_unspecified(address: str) -> bool:
    """Whether it stands for no address."""
    return address in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound


class _Table:
    """One dump, indexed for the questions that are asked of it."""

    def __init__(self, snapshot: Snapshot, proxy: Proxy) -> None:
        self._proxy = proxy
        self._addresses = snapshot.addresses
        self._range = snapshot.ports
        tcp = [s for s in snapshot.sockets if s.protocol == "tcp"]
        listeners = [s for s in tcp if s.state == "LISTEN"]
        self._connections = [s for s in tcp if s.state != "LISTEN" and s.remote_port]
        self._listening = snapshot.listened | {s.local_port for s in listeners}
        self._bound_udp = {s.local_port for s in snapshot.sockets if s.protocol == "udp" and not s.remote_port}
        ours = [s for s in listeners if s.local_port in proxy.outbound_ports | proxy.inbound_ports]
        self.proxy_found = bool(ours)
        self._takes_outgoing = any(s.local_port in proxy.outbound_ports for s in ours)
        self._uids = proxy.uids | {s.uid for s in ours if s.uid is not None}
        self._cgroups = frozenset(s.cgroup_id for s in ours if s.cgroup_id is not None)
        self._own_ports = proxy.own_ports | {s.local_port for s in listeners if self.is_proxys(s)}
        self._redirects = self._is_redirecting(ours)
        self._ends = {s.remote: s for s in self._connections if self._is_proxy_end(s)}
        self._by_both = {(s.local, s.remote) for s in self._connections}
        self._shared = Counter(s.local for s in self._connections if s.state != "TIME_WAIT" and self._is_foreign(s))

    def is_proxys(self, s: Socket) -> bool:
        """Whether its owner is the proxy, as far as user and control group tell: with groups unknown, the user decides."""
        if s.uid is None or s.uid not in self._uids:
            return False
        return not self._cgroups or s.cgroup_id is None or s.cgroup_id in self._cgroups

    def loose_ends(self) -> frozenset[Key]:
        """The proxy's open ends without a partner by number."""
        locals_ = {s.local for s in self._connections}
        return frozenset(s.key for remote, s in self._ends.items() if s.state in _OPEN and remote not in locals_)

    def judge(self, s: Socket) -> Judged | None:
        """What the table says of one socket; None where it is not reported: inside the pod, or a UDP socket without a peer."""
        if s.protocol == "udp":
            return self._judge_udp(s)
        if s.state == "LISTEN":
            return None if is_loopback(s.local_address) else Judged(s, None)
        if not s.remote_port or not self._is_foreign(s):
            return None
        if (
            s.remote,
            s.local,
        ) in self._by_both:  # its other end is in this pod too: a proxy that keeps the source address
            return None
        match self.direction(s):
            case "inbound":
                return self._judge_inbound(s)
            case "outbound":
                return self._judge_outbound(s)
            case _:
                return Judged(s, None)

    def direction(self, s: Socket) -> Direction | None:
        """Who dialled: a port that is listened on was dialled; one that the kernel draws was drawn to dial; else it is not known."""
        if s.state == "SYN_SENT":
            return "outbound"
        if s.local_port in self._listening or s.state == "SYN_RECV":
            return "inbound"
        first, last = self._range
        return "outbound" if first <= s.local_port <= last else None

    def _judge_inbound(self, s: Socket) -> Judged:
        if s.local_port in self._proxy.inbound_ports:
            return Judged(s, "inbound", "captured", s.local_port)
        if s.local_port in self._own_ports | self._proxy.outbound_ports:
            return Judged(s, "inbound", "not_mesh")
        return Judged(s, "inbound", "bypassed" if self._redirects else None)

    def _judge_outbound(self, s: Socket) -> Judged:
        if self.is_proxys(s):
            return Judged(s, "outbound", "not_mesh")
        end = self._ends.get(s.local)
        if end is not None:
            alone = self._shared[s.local] <= 1
            if alone and end.state in _PARTNERS.get(s.state, ()):
                return Judged(s, "outbound", "captured", end.local_port)
            return Judged(s, "outbound")
        suspect = self._takes_outgoing and s.state == "ESTABLISHED" and s.uid is not None
        return Judged(s, "outbound", suspect=suspect)

    def _judge_udp(self, s: Socket) -> Judged | None:
        if not s.remote_port or not self._is_foreign(s):
            return None
        if s.local_port in self._bound_udp:
            return Judged(s, "inbound")
        if self.is_proxys(s):
            return Judged(s, "outbound", "not_mesh")
        is_proof = self._takes_outgoing and s.remote_port != _DNS
        return Judged(s, "outbound", "bypassed" if is_proof else None)

    def _borrows_addresses(self) -> bool:
        """Whether somebody here dials as another machine: a proxy that keeps source addresses, such as ztunnel, looks like a stranger."""
        return any(
            s.local_address not in self._addresses and not is_loopback(s.local_address) for s in self._connections
        )

    def _is_foreign(self, s: Socket) -> bool:
        """Whether the other end is another machine's."""
        remote = s.remote_address
        return not (
            is_loopback(remote) or is_loopback(s.local_address) or is_unspecified(remote) or remote in self._addresses
        )

    def _is_proxy_end(self, s: Socket) -> bool:
        """Whether it is the proxy's end of a connection out of this pod."""
        return s.local_port in self._proxy.outbound_ports and not self._is_foreign(s)

    def _is_redirecting(self, listeners: Iterable[Socket]) -> bool:
        """Whether incoming connections reach the proxy by REDIRECT, which changes the port at this end. TPROXY leaves it as it was."""
        inbound = [s for s in listeners if s.local_port in self._proxy.inbound_ports]
        if not inbound or any(s.transparent for s in inbound) or self._borrows_addresses():
            return False
        if all(s.transparent is False for s in inbound):
            return True
        ports = self._proxy.inbound_ports
        return any(s.local_port in ports and self._is_foreign(s) for s in self._connections)

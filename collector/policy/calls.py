"""What is asked of a policy, a call out of the mesh, and what it answers: a verdict."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from collector.policy.listed import Address, Network, address_of, normal_host

NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})

NAME_LABELS: Final = (
    "app",
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "k8s-app",
    "service.istio.io/canonical-name",
    "name",
)
"""Labels that by custom say a workload's name: taken to do so where its own labels are not known."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Who calls.

    Attributes:
        name: service.name, or an address.
        namespace: None where it is not known: then policies of every namespace are tried.
        labels: Of its pods; None where they are not known: then those of `NAME_LABELS` are taken to be its name.
    """

    name: str
    namespace: str | None = None
    labels: Mapping[str, str] | None = None

    def label(self, key: str) -> str | None:
        """The value of one label; None where it has none."""
        if self.labels is not None:
            return self.labels.get(key)
        return self.name if key in NAME_LABELS else None

    def is_in(self, namespace: str | None) -> bool:
        """Whether it may be in this namespace: where either is not known, it may."""
        return self.namespace is None or namespace is None or self.namespace == namespace


@dataclass(frozen=True, slots=True)
class Call:
    """One way out: who calls what, where.

    Attributes:
        workload: The caller.
        host: Name or address as it was dialled, lowercase.
        port: None where it is not known: then only what allows every port allows it.
        addresses: What the name was seen to resolve to, or the address itself.
        protocol: tcp, udp, icmp or sctp.
    """

    workload: Workload
    host: str
    port: int | None
    addresses: tuple[Address, ...] = ()
    protocol: str = "tcp"

    @classmethod
    def of(
        cls,
        workload: Workload,
        host: str,
        port: int | None,
        addresses: Sequence[str] = (),
        protocol: str | None = None,
    ) -> "Call":
        """From texts; what is no address among `addresses` is left out."""
        host = normal_host(host)
        own = address_of(host)
        known = (own,) if own is not None else tuple(a for a in map(address_of, addresses) if a is not None)
        return cls(workload, host, port, known, (protocol or "tcp").lower())

    @property
    def is_address(self) -> bool:
        """Whether it was dialled by address."""
        return address_of(self.host) is not None

    @property
    def destination(self) -> str:
        """host:port, or the host alone."""
        return written(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of a call.

    Attributes:
        allowed: Whether it may.
        rule: The policy and the rule in it that allows; empty where none does.
        against: What would have had to allow it, and does not; empty where it is allowed.
    """

    allowed: bool
    rule: str = ""
    against: str = ""


@dataclass(frozen=True, slots=True)
class Selector:
    """A Kubernetes label selector: all of `labels`, and all of `expressions` (key, operator, values)."""

    labels: Mapping[str, str] = field(default_factory=dict)
    expressions: tuple[tuple[str, str, tuple[str, ...]], ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it selects everything."""
        return not self.labels and not self.expressions

    def selects(self, workload: Workload) -> bool:
        """Whether it selects the workload, as far as its labels are known."""
        return all(workload.label(k) == v for k, v in self.labels.items()) and all(
            _holds(workload.label(key), operator, values) for key, operator, values in self.expressions
        )


def _holds(value: str | None, operator: str, values: Sequence[str]) -> bool:
    match operator:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case _:  # DoesNotExist: documents.py lets no other in
            return value is None


def covers(pattern: str, host: str) -> bool:
    """Whether a host of a policy, `*`, `*.suffix` or a name, covers this name."""
    if pattern == "*":
        return True
    return host.endswith(pattern[1:]) and len(host) >= len(pattern) if pattern.startswith("*.") else host == pattern


def inside(networks: Sequence[Network], address: Address) -> Network | None:
    """The narrowest of the blocks that holds the address."""
    holding = [n for n in networks if n.version == address.version and address in n]
    return max(holding, key=lambda n: n.prefixlen, default=None)


INTERNAL_NETWORKS: Final = tuple(
    ipaddress.ip_network(block)
    for block in (
        "10.0.0.0/8",  # RFC 1918
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",  # RFC 6598, carrier-grade NAT; also what clouds give to pods
        "127.0.0.0/8",
        "169.254.0.0/16",
        "0.0.0.0/8",
        "224.0.0.0/4",  # multicast and broadcast do not leave
        "255.255.255.255/32",
        "::1/128",
        "::/128",
        "fc00::/7",  # unique local
        "fe80::/10",
        "ff00::/8",
    )
)
"""Blocks that are nobody's on the Internet."""


def is_internal(address: Address) -> bool:
    """Whether the address is in one of `INTERNAL_NETWORKS`."""
    return inside(INTERNAL_NETWORKS, address) is not None


def written(host: str, port: int | None) -> str:
    """host:port, or the host alone; an IPv6 address gets brackets."""
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

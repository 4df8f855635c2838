"""What is inside: by configuration, by what nobody on the Internet has, and by what the mesh itself knows.

A destination that several of these call inside is inside; `external` overrides all but the mesh's own answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Final

from collector.policy.calls import is_internal
from collector.policy.listed import Address, address_of, matches

METADATA_HOSTS: Final = frozenset({"169.254.169.254", "fd00:ec2::254", "metadata.google.internal", "100.100.100.200"})
"""Where clouds hand out credentials: link-local, and yet no place inside."""

CLUSTER_DOMAINS: Final = ("svc.cluster.local", "pod.cluster.local", "svc")


def _is_of_a_search_domain(host: str) -> bool:
    """Whether it is one label: the Internet has no such names, so a resolver's search domain completes it. Loopback's is not known."""
    return "." not in host and host != "localhost" and address_of(host) is None


@dataclass(frozen=True, slots=True)
class Territory:
    """The rules.

    Attributes:
        internal: Blocks, addresses, names and `*.suffixes` that are inside beside the usual ones.
        external: Those that are outside although they look as if they were inside.
        workload_addresses: Addresses of workloads, as the evidence names them.
    """

    internal: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    workload_addresses: frozenset[str] = field(default_factory=frozenset)

    def is_configured(self, host: str, address: Address | None) -> bool | None:
        """What configuration says of a host: True inside, False outside, None nothing."""
        if any(matches(entry, host, address) for entry in self.external):
            return False
        if any(matches(entry, host, address) for entry in self.internal):
            return True
        return None

    def holds_address(self, text: str) -> bool:
        """Whether an address is inside; what is no address is not."""
        address = address_of(text)
        if address is None:
            return False
        configured = self.is_configured(text, address)
        if configured is not None:
            return configured
        if str(address) in METADATA_HOSTS:
            return False
        return str(address) in self.workload_addresses or is_internal(address)

    def holds_name(self, host: str) -> bool | None:
        """Whether a name is inside; None: the name alone does not tell."""
        configured = self.is_configured(host, address_of(host))
        if configured is not None:
            return configured
        if host in METADATA_HOSTS:
            return False
        labels = host.split(".")
        in_cluster = any(host.endswith(f".{domain}") for domain in CLUSTER_DOMAINS[:2]) or (
            len(labels) == 3 and labels[2] == "svc"
        )
        return True if in_cluster or _is_of_a_search_domain(host) else None

    def crosses(self, sources: Sequence[str], hosts: Sequence[str], addresses: Sequence[str]) -> list[bool]:
        """Of flows, one element each: whether it begins inside and ends outside."""
        inside = cache(self.holds_address)
        named = cache(self.holds_name)
        # What is said to be outside is so as a destination: those who call it may well be its neighbours.
        begins_inside = cache(replace(self, external=()).holds_address)

        def leaves(source: str, host: str, address: str) -> bool:
            if not begins_inside(source):
                return False
            by_name = named(host)
            return not (inside(address) if by_name is None else by_name)

        return [leaves(*flow) for flow in zip(sources, hosts, addresses, strict=True)]

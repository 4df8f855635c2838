"""Kubernetes NetworkPolicy, its egress side.

https://kubernetes.io/docs/concepts/services-networking/network-policies/. A pod that any policy with the type Egress selects may reach
what one of those policies allows, and nothing else; other pods may reach everything. Names are unknown to it: a name whose address
nobody saw is judged by blocks that are all of the Internet, and else is not allowed by a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from collector.policy.calls import Call, Selector, Verdict, Workload, inside, is_internal
from collector.policy.documents import Document, Field
from collector.policy.linkerd import Block
from collector.policy.listed import Address, Network

GROUP: Final = "networking.k8s.io"
PROTOCOLS: Final = ("TCP", "UDP", "SCTP")


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of one protocol, from `first` to `last`; both None: every port. A named port is no port outside."""

    protocol: str
    first: int | None
    last: int | None
    is_named: bool = False

    def hold(self, call: Call) -> bool:
        """Whether the call's port is one of them."""
        if self.is_named or call.protocol != self.protocol.lower():
            return False
        if self.first is None or self.last is None:
            return True
        return call.port is not None and self.first <= call.port <= self.last


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `blocks` None: every destination; else only what is in a block, since pods and namespaces are inside."""

    place: str
    blocks: tuple[Block, ...] | None
    ports: tuple[Ports, ...]

    def allows(self, call: Call) -> str | None:
        """What in it allows the call; None: nothing."""
        if self.ports and not any(ports.hold(call) for ports in self.ports):
            return None
        if self.blocks is None:
            return f"{self.place} (every destination)"
        return next((f"{self.place} ipBlock {b.cidr}" for b in self.blocks if _holds(b, call)), None)


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """One policy with the type Egress."""

    title: str
    namespace: str | None
    selector: Selector
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class NetworkPolicies:
    """All of them."""

    policies: tuple[NetworkPolicy, ...] = ()

    @property
    def is_given(self) -> bool:
        """Whether there is one."""
        return bool(self.policies)

    def judge(self, call: Call) -> Verdict | None:
        """Whether one of the policies that select the caller allows the call; None: none selects it."""
        workload: Workload = call.workload
        selecting = [p for p in self.policies if workload.is_in(p.namespace) and p.selector.selects(workload)]
        if not selecting:
            return None
        for policy in selecting:
            for rule in policy.rules:
                if (found := rule.allows(call)) is not None:
                    return Verdict(allowed=True, rule=f"{policy.title}: {found}")
        titles = ", ".join(policy.title for policy in selecting)
        unseen = "" if call.addresses else "; no address of it was seen, and a NetworkPolicy knows no names"
        return Verdict(allowed=False, against=f"no egress rule of {titles} has {call.destination}{unseen}")


def read_network_policies(documents: Sequence[Document]) -> NetworkPolicies:
    """Those with the type Egress among the documents. Raises ConfigError."""
    return NetworkPolicies(tuple(_policy(d) for d in documents if concerns(d) and _is_for_egress(d)))


def concerns(document: Document) -> bool:
    """Whether the document is a NetworkPolicy of Kubernetes' own."""
    return document.kind == "NetworkPolicy" and document.group == GROUP


def _is_for_egress(document: Document) -> bool:
    """policyTypes; where it is missing, the type Egress goes with rules for it."""
    types = document.spec["policyTypes"]
    if types:
        return "Egress" in [t.choice("Ingress", "Egress") for t in types.items()]
    return bool(document.spec["egress"].items())


def _policy(document: Document) -> NetworkPolicy:
    spec = document.spec
    rules = tuple(_rule(rule, f"egress[{i}]") for i, rule in enumerate(spec["egress"].items()))
    return NetworkPolicy(document.title, document.namespace, spec["podSelector"].selector(), rules)


def _rule(rule: Field, place: str) -> Rule:
    peers = rule["to"].items()
    blocks: list[Block] = []
    for peer in peers:
        known: Mapping[str, object] = peer.mapping()
        if not known.keys() & {"ipBlock", "podSelector", "namespaceSelector"}:
            peer["ipBlock"].text("ipBlock, podSelector or namespaceSelector")
        if peer["ipBlock"]:
            excepted = tuple(e.network() for e in peer["ipBlock"]["except"].items())
            blocks.append(Block(peer["ipBlock"]["cidr"].network(), excepted))
    return Rule(place, tuple(blocks) if peers else None, tuple(_ports(port) for port in rule["ports"].items()))


def _ports(port: Field) -> Ports:
    protocol = port["protocol"].choice(*PROTOCOLS) if port["protocol"] else "TCP"
    if not port["port"]:
        return Ports(protocol, None, None)
    if isinstance(port["port"].value, str):
        return Ports(protocol, None, None, is_named=True)
    first = port["port"].port()
    last = port["endPort"].port() if port["endPort"] else first
    if last < first:
        port["endPort"].text(f"a port from {first} to 65535")
    return Ports(protocol, first, last)


def _holds(block: Block, call: Call) -> bool:
    if call.addresses:
        return all(_contains(block, address) for address in call.addresses)
    internet: Network = block.cidr
    return not internet.prefixlen and all(is_internal(n.network_address) for n in block.excepted)


def _contains(block: Block, address: Address) -> bool:
    return inside((block.cidr,), address) is not None and inside(block.excepted, address) is None

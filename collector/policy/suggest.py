"""The least policy that allows what was seen and is not flagged, as YAML that `policies.py` reads back.

Each kind can only say what it can: Linkerd has no workloads in its egress policy, and a NetworkPolicy has no names. What therefore
cannot be allowed, or cannot be kept apart from something flagged, is left out or let in with a note, never in silence.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import yaml

from collector.policy.calls import NO_LABELS, Workload, written
from collector.policy.listed import address_of
from collector.policy.policies import Policies

GATEWAY: Final = "gateway.networking.k8s.io"
_PROTOCOLS: Final[Mapping[int, str]] = {443: "TLS", 8443: "TLS", 80: "HTTP", 8080: "HTTP"}
_LABEL: Final = re.compile(r"[^a-z0-9-]+")

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The YAML, and what it could not say."""

    text: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, order=True)
class Need:
    """One way that is to be allowed."""

    source: str
    namespace: str | None
    host: str
    port: int
    protocol: str
    addresses: tuple[str, ...]

    @property
    def is_address(self) -> bool:
        """Whether it was dialled by address."""
        return address_of(self.host) is not None


def suggest(kind: str, rows: Sequence[Mapping[str, Any]], policies: Policies | None = None) -> Suggestion:
    """A policy of this kind (istio, linkerd, networkpolicy) out of rows of `destinations.ROWS`."""
    known = policies or Policies()
    notes = [f"{r['source']} -> {r['destination']}: no port is known: left out" for r in rows if not r["ports"]]
    wanted = sorted({n for r in rows if not r["flagged"] for n in _needs(r, known)}, key=_order)
    flagged = [n for r in rows if r["flagged"] for n in _needs(r, known)]
    match kind:
        case "istio":
            objects, more = _istio(wanted, flagged, known)
        case "linkerd":
            objects, more = _linkerd(wanted, flagged)
        case "networkpolicy":
            objects, more = _network_policies(wanted, flagged, known)
        case _:
            raise ValueError(f"no policy {kind!r}")
    text = yaml.safe_dump_all(objects, sort_keys=False) if objects else "# nothing was seen that is not flagged\n"
    return Suggestion(text, (*notes, *more))


def _needs(row: Mapping[str, Any], policies: Policies) -> Iterable[Need]:
    workload = policies.workload(row["source"], row["namespace"])
    protocols = row["protocols"] or ["tcp"]
    for port in row["ports"]:
        for protocol in protocols:
            yield Need(row["source"], workload.namespace, row["destination"], port, protocol, tuple(row["addresses"]))


def _order(need: Need) -> tuple[str, ...]:
    return need.namespace or "", need.source, need.host, f"{need.port:05}", need.protocol


def _istio(wanted: Sequence[Need], flagged: Sequence[Need], policies: Policies) -> tuple[list[Object], list[str]]:
    """A ServiceEntry a host, and a Sidecar a workload that imports its own hosts at its own ports, and what is in the cluster.

    Who has only what is flagged has a Sidecar too: without one it would see what others may reach.
    """
    tcp = [n for n in wanted if n.protocol == "tcp"]
    notes = [
        f"{n.source} -> {written(n.host, n.port)}: Istio captures no {n.protocol}"
        for n in wanted
        if n.protocol != "tcp"
    ]
    objects: list[Object] = []
    for host in sorted({n.host for n in tcp}):
        ports = sorted({n.port for n in tcp if n.host == host})
        is_address = address_of(host) is not None
        spec: Object = {"hosts": [_entry_host(host)]}
        if is_address:
            spec["addresses"] = [_block(host)]
        spec |= {
            "ports": [_istio_port(port, by_address=is_address) for port in ports],
            "location": "MESH_EXTERNAL",
            "resolution": "NONE" if is_address else "DNS",
            "exportTo": ["*"],
        }
        objects.append(_object("networking.istio.io/v1", "ServiceEntry", host, None, spec))
    for source, namespace in sorted({(n.source, n.namespace) for n in (*tcp, *flagged)}, key=str):
        own = [n for n in tcp if (n.source, n.namespace) == (source, namespace)]
        listeners: list[Object] = [
            {
                "port": _istio_port(port, by_address=all(n.is_address for n in own if n.port == port)),
                "hosts": [f"*/{_entry_host(n.host)}" for n in own if n.port == port],
            }
            for port in sorted({n.port for n in own})
        ]
        listeners.append({"hosts": ["*/*.svc.cluster.local"]})
        spec = {
            "workloadSelector": {"labels": _labels(source, namespace, policies)},
            "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
            "egress": listeners,
        }
        objects.append(_object("networking.istio.io/v1", "Sidecar", source, namespace, spec))
    return objects, notes


def _istio_port(port: int, *, by_address: bool) -> Object:
    protocol = "TCP" if by_address else _PROTOCOLS.get(port, "TCP")
    return {"number": port, "name": f"{protocol.lower()}-{port}", "protocol": protocol}


def _entry_host(host: str) -> str:
    """A ServiceEntry wants a name, also for an address."""
    return f"address-{_slug(host)}.egress.internal" if address_of(host) is not None else host


def _linkerd(wanted: Sequence[Need], flagged: Sequence[Need]) -> tuple[list[Object], list[str]]:
    """An EgressNetwork a namespace that denies, with routes by host; one more for each address that was dialled by itself."""
    objects: list[Object] = []
    shared = {(n.namespace, n.host, n.port): n.source for n in wanted}
    notes = [
        f"{n.source} -> {written(n.host, n.port)} is flagged, but {by} may: Linkerd keeps no workloads of a namespace apart"
        for n in flagged
        if (by := shared.get((n.namespace, n.host, n.port))) is not None
    ]
    for namespace in sorted({n.namespace for n in (*wanted, *flagged)}, key=str):
        own = [n for n in wanted if n.namespace == namespace]
        objects.append(_network(namespace, "egress", None))
        named = sorted({(n.host, n.port) for n in own if not n.is_address})
        for host, port in named:
            kinds = {443: ("TLSRoute",), 8443: ("TLSRoute",), 80: ("HTTPRoute",), 8080: ("HTTPRoute",)}
            objects += [
                _route(kind, namespace, "egress", port, host) for kind in kinds.get(port, ("TLSRoute", "HTTPRoute"))
            ]
        for host in sorted({n.host for n in own if n.is_address}):
            network = f"address-{_slug(host)}"
            objects.append(_network(namespace, network, host))
            objects += [
                _route("TCPRoute", namespace, network, port, None)
                for port in sorted({n.port for n in own if n.host == host})
            ]
            # The narrower network counts for names that resolve to this address too.
            objects += [
                _route("TLSRoute", namespace, network, n.port, n.host)
                for n in own
                if not n.is_address and host in n.addresses
            ]
    return objects, notes


def _network(namespace: str | None, name: str, address: str | None) -> Object:
    spec: Object = {"trafficPolicy": "Deny"}
    if address is not None:
        spec["networks"] = [{"cidr": _block(address)}]
    return _object("policy.linkerd.io/v1alpha1", "EgressNetwork", name, namespace, spec, exact=True)


def _route(kind: str, namespace: str | None, network: str, port: int, host: str | None) -> Object:
    parent = {"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": network, "port": port}
    spec: Object = {"parentRefs": [parent]}
    if host is not None:
        spec["hostnames"] = [host]
    spec["rules"] = [
        {"backendRefs": [{"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": network, "port": port}]}
    ]
    version = "v1" if kind == "HTTPRoute" else "v1alpha2"
    return _object(f"{GATEWAY}/{version}", kind, f"{host or network}-{port}-{kind}", namespace, spec)


def _network_policies(
    wanted: Sequence[Need], flagged: Sequence[Need], policies: Policies
) -> tuple[list[Object], list[str]]:
    """A policy a workload: its own addresses at its own ports, names' look-ups, and everything in the cluster."""
    notes = [
        f"{n.source} -> {written(n.host, n.port)}: no address of it was seen, and a NetworkPolicy knows no names: left out"
        for n in wanted
        if not n.is_address and not n.addresses
    ]
    objects: list[Object] = []
    refused = {(n.source, n.namespace, a, n.port, n.protocol): n.host for n in flagged for a in _addresses(n)}
    for source, namespace in sorted({(n.source, n.namespace) for n in (*wanted, *flagged)}, key=str):
        own = [n for n in wanted if (n.source, n.namespace) == (source, namespace)]
        rules: list[Object] = [{"to": [{"namespaceSelector": {}}]}]
        for port, protocol in sorted({(n.port, n.protocol) for n in own}):
            here = [n for n in own if (n.port, n.protocol) == (port, protocol)]
            if protocol.upper() not in {"TCP", "UDP", "SCTP"}:
                notes += [f"{n.source} -> {n.host}: a NetworkPolicy has no {protocol}" for n in here]
                continue
            addresses = sorted({a for n in here for a in _addresses(n)})
            clash = [(a, refused[key]) for a in addresses if (key := (source, namespace, a, port, protocol)) in refused]
            notes += [f"{source} -> {h} is flagged, but shares {a}:{port} with what may be reached" for a, h in clash]
            if addresses:
                blocks = [{"ipBlock": {"cidr": _block(a)}} for a in addresses]
                rules.append({"to": blocks, "ports": [{"protocol": protocol.upper(), "port": port}]})
        spec = {
            "podSelector": {"matchLabels": _labels(source, namespace, policies)},
            "policyTypes": ["Egress"],
            "egress": rules,
        }
        objects.append(_object("networking.k8s.io/v1", "NetworkPolicy", source, namespace, spec))
    return objects, notes


def _addresses(need: Need) -> tuple[str, ...]:
    return (need.host,) if need.is_address else need.addresses


def _labels(source: str, namespace: str | None, policies: Policies) -> dict[str, str]:
    """All labels that are known of a workload's pods, or the one that by custom says its name."""
    workload: Workload = policies.workload(source, namespace)
    return dict(workload.labels or NO_LABELS) or {"app": source}


def _block(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


def _object(version: str, kind: str, name: str, namespace: str | None, spec: Object, *, exact: bool = False) -> Object:
    metadata: Object = {"name": name if exact else f"egress-{_slug(name)}"}
    if namespace is not None:
        metadata["namespace"] = namespace
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _slug(text: str) -> str:
    """A name as Kubernetes allows it; what had to be changed or cut keeps apart by a hash."""
    slug = _LABEL.sub("-", text.lower()).strip("-")
    if slug == text and len(slug) <= 50:
        return slug
    return f"{slug[:40].strip('-')}-{sha256(text.encode()).hexdigest()[:8]}"

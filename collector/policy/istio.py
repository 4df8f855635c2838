"""Istio: ServiceEntry, Sidecar and outboundTrafficPolicy, asked whether a call is in a workload's registry.

https://istio.io/latest/docs/reference/config/networking/{service-entry,sidecar}/ and …/config/istio.mesh.v1alpha1/. Istio itself
says that this is no strong security boundary: what does not pass the sidecar is not held back by it.

Where nothing says an outboundTrafficPolicy, Istio lets everything out; as a list, the registry is then judged as if it were REGISTRY_ONLY.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from collector.policy.calls import Call, Selector, Verdict, Workload, covers, inside
from collector.policy.documents import Document, Field, parse_documents
from collector.policy.listed import Network, normal_host

ROOT_NAMESPACE: Final = "istio-system"
MODES: Final = ("REGISTRY_ONLY", "ALLOW_ANY")
GROUPS: Final = ("networking.istio.io", "install.istio.io", "sailoperator.io")


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """Destinations that the registry knows: hosts, or blocks of addresses, at ports; visible in the namespaces of `export_to`."""

    title: str
    namespace: str | None
    hosts: tuple[str, ...]
    networks: tuple[Network, ...]
    ports: tuple[int, ...]
    export_to: tuple[str, ...]

    def is_visible(self, workload: Workload) -> bool:
        """Whether the workload's namespace sees it."""
        return any(
            place == "*" or (workload.is_in(self.namespace) if place == "." else workload.is_in(place))
            for place in self.export_to
            if place != "~"
        )

    def match(self, call: Call) -> tuple[str, str] | None:
        """(the host or block by its place in the entry, the host that a Sidecar has to import); None: it is not in here."""
        for i, host in enumerate(self.hosts):
            if not call.is_address and covers(host, call.host):
                return f"hosts[{i}] {host}", call.host
        for address in call.addresses:
            if (network := inside(self.networks, address)) is not None:
                return f"addresses {network}", self.hosts[0] if self.hosts else "*"
        return None


@dataclass(frozen=True, slots=True)
class Listener:
    """One entry of a Sidecar's `egress`: what of the registry is imported, for one port or for every port."""

    place: str
    hosts: tuple[tuple[str, str], ...]
    port: int | None

    def imports(self, entry: ServiceEntry, host: str, port: int | None, workload: Workload) -> bool:
        """Whether an entry's host is imported at this port."""
        return self.port in {None, port} and any(
            covers(name, host) and _namespace_covers(namespace, entry.namespace, workload)
            for namespace, name in self.hosts
        )


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What a workload's proxy imports. `listeners` None: everything that is visible; `mode` None: the mesh's."""

    title: str
    namespace: str | None
    selector: Selector
    listeners: tuple[Listener, ...] | None
    mode: str | None


@dataclass(frozen=True, slots=True)
class Istio:
    """Everything that Istio was told of egress.

    Attributes:
        entries: The registry.
        sidecars: In the order in which they were read.
        mode: The mesh's outboundTrafficPolicy; None where nothing says one.
        mode_title: Where it is said.
        root_namespace: Whose Sidecar without a selector is everybody's.
    """

    entries: tuple[ServiceEntry, ...] = ()
    sidecars: tuple[Sidecar, ...] = ()
    mode: str | None = None
    mode_title: str = ""
    root_namespace: str = ROOT_NAMESPACE

    @property
    def is_given(self) -> bool:
        """Whether anything was said."""
        return bool(self.entries or self.sidecars or self.mode)

    def sidecar_of(self, workload: Workload) -> Sidecar | None:
        """The one that counts: of its namespace with a selector, then without one, then the root namespace's."""
        own = [s for s in self.sidecars if workload.is_in(s.namespace)]
        chosen = [s for s in own if not s.selector.is_empty and s.selector.selects(workload)]
        chosen += [s for s in own if s.selector.is_empty and (s.namespace != self.root_namespace or workload.namespace)]
        chosen += [s for s in self.sidecars if s.selector.is_empty and s.namespace == self.root_namespace]
        return chosen[0] if chosen else None

    def judge(self, call: Call) -> Verdict | None:
        """Whether the call is in its workload's registry, or lets the policy pass what is not; None: nothing is said."""
        if not self.is_given:
            return None
        sidecar = self.sidecar_of(call.workload)
        near: list[str] = []
        for entry in self.entries:
            found = entry.match(call) if entry.is_visible(call.workload) else None
            if found is None:
                continue
            rule = f"{entry.title}: {found[0]}"
            if call.port not in entry.ports:
                near.append(f"{rule} has ports {', '.join(map(str, entry.ports)) or 'none'}")
                continue
            importer = _importer(sidecar, entry, found[1], call)
            if importer is None:
                near.append(f"{rule} is not imported by {sidecar.title if sidecar else ''}")
                continue
            return Verdict(allowed=True, rule=f"{rule}, port {call.port}{importer}")
        return self._unmatched(call, sidecar, near)

    def _unmatched(self, call: Call, sidecar: Sidecar | None, near: Sequence[str]) -> Verdict:
        mode, title = self.mode, self.mode_title
        if sidecar is not None and sidecar.mode is not None:
            mode, title = sidecar.mode, sidecar.title
        if mode == "ALLOW_ANY":
            return Verdict(allowed=True, rule=f"{title}: outboundTrafficPolicy ALLOW_ANY")
        missing = "; ".join(near) or f"no ServiceEntry has {call.destination}"
        said = f"{title}: outboundTrafficPolicy REGISTRY_ONLY" if mode else "no outboundTrafficPolicy is given"
        return Verdict(allowed=False, against=f"{missing} ({said})")


def read_istio(documents: Sequence[Document]) -> Istio:
    """What these documents say; those of other kinds are passed over. Raises ConfigError."""
    entries = tuple(_entry(d) for d in documents if d.kind == "ServiceEntry" and d.group == GROUPS[0])
    sidecars = tuple(_sidecar(d) for d in documents if d.kind == "Sidecar" and d.group == GROUPS[0])
    istio = Istio(entries, sidecars)
    for document in documents:
        mesh = _mesh_config(document)
        if mesh is None:
            continue
        root = mesh["rootNamespace"].text_or(istio.root_namespace)
        mode = _mode(mesh["outboundTrafficPolicy"], "ALLOW_ANY")
        named = document.title if document.kind else "MeshConfig"
        istio = replace(istio, root_namespace=root)
        if mode is not None:
            istio = replace(istio, mode=mode, mode_title=named)
    return istio


def concerns(document: Document) -> bool:
    """Whether the document says something that `read_istio` reads."""
    if document.group == GROUPS[0]:
        return document.kind in {"ServiceEntry", "Sidecar"}
    return _mesh_config(document) is not None


def _mesh_config(document: Document) -> Field | None:
    """The MeshConfig in a document: of an operator, of a ConfigMap, of Helm's values, or bare."""
    body = document.body
    match document.kind, document.group:
        case "IstioOperator", "install.istio.io":
            return document.spec["meshConfig"]
        case "Istio", "sailoperator.io" | "operator.istio.io":
            return document.spec["values"]["meshConfig"]
        case "ConfigMap", "":
            return _in_config_map(document)
        case "", _ if "outboundTrafficPolicy" in body.mapping():
            return body
        case "", _ if "meshConfig" in body.mapping():
            return body["meshConfig"]
        case _:
            return None


def _in_config_map(document: Document) -> Field | None:
    """ConfigMap `istio`, or `istio-REVISION`: its key `mesh` holds a MeshConfig as a text."""
    if document.name.partition("-")[0] != "istio" or "mesh" not in document.body["data"].mapping():
        return None
    text = document.body["data"]["mesh"]
    inner = parse_documents(text.text(), name=text.where)
    return Field(inner[0].body.value, f"{text.where}: ") if inner else None


def _mode(policy: Field, unsaid: str) -> str | None:
    """The mode of an outboundTrafficPolicy; None where there is none, `unsaid` where it does not say its mode."""
    if not policy:
        return None
    return policy["mode"].choice(*MODES) if policy["mode"] else unsaid


def _entry(document: Document) -> ServiceEntry:
    spec = document.spec
    hosts = spec["hosts"].items()
    if not hosts:
        spec["hosts"].text("a list with at least one host")
    if spec["location"]:
        spec["location"].choice("MESH_EXTERNAL", "MESH_INTERNAL")
    networks = [a.network() for a in spec["addresses"].items()]
    if spec["resolution"]:
        resolution = spec["resolution"].choice("NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")
        if resolution == "STATIC":
            networks += [e["address"].network() for e in spec["endpoints"].items() if _is_literal(e["address"])]
    return ServiceEntry(
        title=document.title,
        namespace=document.namespace,
        hosts=tuple(normal_host(h.text("a host name")) for h in hosts),
        networks=tuple(networks),
        ports=tuple(p["number"].port() for p in spec["ports"].items()),
        export_to=tuple(spec["exportTo"].texts()) or ("*",),
    )


def _is_literal(address: Field) -> bool:
    text = address.text("an address")
    return not text.startswith("unix:") and not any(
        c.isalpha() for c in text.replace(":", "") if c not in "abcdefABCDEF"
    )


def _sidecar(document: Document) -> Sidecar:
    spec = document.spec
    labels = spec["workloadSelector"]["labels"].mapping()
    listeners = None
    if spec["egress"]:
        listeners = tuple(
            Listener(
                place=f"egress[{i}]",
                hosts=tuple(_sidecar_host(host) for host in egress["hosts"].items()),
                port=egress["port"]["number"].port() if egress["port"] else None,
            )
            for i, egress in enumerate(spec["egress"].items())
        )
    # "REGISTRY_ONLY" is the first of the enumeration, and so what a policy without a mode means here.
    mode = _mode(spec["outboundTrafficPolicy"], "REGISTRY_ONLY")
    return Sidecar(
        document.title, document.namespace, Selector({k: str(v) for k, v in labels.items()}), listeners, mode
    )


def _sidecar_host(host: Field) -> tuple[str, str]:
    namespace, slash, name = host.text("namespace/host").partition("/")
    if not slash or not namespace or not name:
        host.choice("NAMESPACE/HOST")
    return namespace, normal_host(name)


def _importer(sidecar: Sidecar | None, entry: ServiceEntry, host: str, call: Call) -> str | None:
    """How the workload's Sidecar imports the host, as a text to append; None where it does not."""
    if sidecar is None or sidecar.listeners is None:
        return ""
    for listener in sidecar.listeners:
        if listener.imports(entry, host, call.port, call.workload):
            return f"; imported by {sidecar.title}, {listener.place}"
    return None


def _namespace_covers(pattern: str, namespace: str | None, workload: Workload) -> bool:
    match pattern:
        case "*":
            return True
        case "~":
            return False
        case ".":
            return workload.is_in(namespace)
        case _:
            return namespace is None or namespace == pattern

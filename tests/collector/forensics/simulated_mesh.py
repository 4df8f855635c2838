"""Meshes that no detector was written against: random topologies, loads, clocks and gaps, with incidents whose truth is known.

Everything follows from the seed. A mesh has a gateway and 3 to 9 services in a random call graph, log-normal service times, hosts whose clocks
disagree by up to 50 ms, and sidecars whose access logs carry the request id as Envoy rewrites it. Some meshes sample their traces, some services run
no middleware, some sidecars write no log, some trace no proxies: what cannot be seen is not planted as findable.
"""

import random
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

MS = 1_000_000
SECOND = 1_000_000_000
EPOCH_NS = 1_790_000_000 * SECOND

Row = dict[str, Any]
IncidentKind = Literal["rogue", "bypass", "egress", "slow"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: its own median time in ns, log-normal sigma, and the operations that it calls, one after the other."""

    service: str
    name: str
    median_ns: int
    sigma: float
    calls: tuple["Operation", ...]


@dataclass(frozen=True, slots=True)
class Incident:
    """What was planted: `subject` is (caller, callee), (service, destination) or (service, operation)."""

    kind: IncidentKind
    subject: tuple[str | None, str]
    start_ns: int
    end_ns: int

    def active(self, time_ns: int) -> bool:
        return self.start_ns <= time_ns < self.end_ns


@dataclass(slots=True)
class Mesh:
    """A simulated mesh and the evidence that it left; `lag_ns` is how long after its end a span is received."""

    seed: int
    duration_ns: int
    rate: float
    services: list[str]
    entries: list[Operation]
    instrumented: set[str]
    logging: set[str]
    proxy_spans: bool
    sample_ratio: float
    skew_ns: dict[str, int]
    incidents: list[Incident] = field(default_factory=list)
    spans: list[Row] = field(default_factory=list)
    proxy_records: list[Row] = field(default_factory=list)
    egress_allow: list[Row] = field(default_factory=list)
    sockets: list[Row] = field(default_factory=list)


def simulate(
    seed: int, *, kinds: tuple[IncidentKind, ...] = ("rogue", "bypass", "egress", "slow"), minutes: float = 3
) -> Mesh:
    """The mesh of one seed with one incident of each kind, each starting between 35 % and 65 % of the time."""
    rng = random.Random(seed)
    mesh = _plan(rng, seed, minutes)
    mesh.incidents = [_plan_incident(rng, mesh, kind) for kind in kinds]
    _Run(rng, mesh).run()
    return mesh


def _plan(rng: random.Random, seed: int, minutes: float) -> Mesh:
    services = ["gateway"] + [f"service-{i}" for i in range(rng.randint(3, 9))]
    operations: dict[str, list[Operation]] = {}
    for index in range(len(services) - 1, -1, -1):
        name = services[index]
        below = services[index + 1 :]
        operations[name] = []
        for number in range(rng.randint(1, 3)):
            targets = rng.sample(below, min(len(below), rng.randint(1 if index == 0 else 0, 3)))
            calls = tuple(rng.choice(operations[target]) for target in targets)
            median = int(rng.lognormvariate(1.2, 0.9) * MS)
            operations[name].append(Operation(name, f"Op{number}", median, rng.uniform(0.2, 0.6), calls))
    inner = services[1:]
    instrumented = set(services) if rng.random() < 0.7 else set(services) - {rng.choice(inner)}
    logging = set(services) if rng.random() < 0.7 else set(services) - {rng.choice(inner)}
    return Mesh(
        seed=seed,
        duration_ns=int(minutes * 60 * SECOND),
        rate=rng.uniform(2, 6),
        services=services,
        entries=operations["gateway"],
        instrumented=instrumented,
        logging=logging,
        proxy_spans=rng.random() < 0.7,
        sample_ratio=1.0 if rng.random() < 0.7 else rng.uniform(0.3, 0.9),
        skew_ns={name: rng.randint(-50 * MS, 50 * MS) for name in services},
    )


def _reachable(mesh: Mesh) -> tuple[list[tuple[str, Operation]], set[str]]:
    """The edges (caller, operation) that traffic really uses, and the services on them."""
    edges: list[tuple[str, Operation]] = []
    todo = list(mesh.entries)
    seen: set[int] = set()
    while todo:
        operation = todo.pop()
        if id(operation) in seen:
            continue
        seen.add(id(operation))
        edges.extend((operation.service, callee) for callee in operation.calls)
        todo.extend(operation.calls)
    return edges, {callee.service for _, callee in edges}


def _plan_incident(rng: random.Random, mesh: Mesh, kind: IncidentKind) -> Incident:
    start = EPOCH_NS + int(mesh.duration_ns * rng.uniform(0.35, 0.65))
    end = EPOCH_NS + (mesh.duration_ns if rng.random() < 0.7 else int(mesh.duration_ns * rng.uniform(0.85, 0.95)))
    edges, called = _reachable(mesh)
    subject: tuple[str | None, str]
    match kind:
        case "rogue":
            subject = (None, rng.choice(sorted(called & mesh.instrumented)))
        case "bypass":
            visible = [(a, o.service) for a, o in edges if {a, o.service} <= mesh.instrumented & mesh.logging]
            # Where no edge can be judged there is nothing that a detector could rightly say.
            subject = rng.choice(sorted(set(visible))) if visible else (None, "nobody")
        case "egress":
            subject = (rng.choice(sorted(called)), f"203.0.113.{rng.randint(1, 250)}:{rng.choice([443, 8443, 9001])}")
        case "slow":
            operation = rng.choice(sorted({(o.service, o.name) for _, o in edges}))
            subject = operation
    return Incident(kind, subject, start, end)


class _Run:
    """Plays the load and the incidents, and writes down what each witness saw."""

    def __init__(self, rng: random.Random, mesh: Mesh) -> None:
        self.rng = rng
        self.mesh = mesh
        self.slow = {i.subject: i for i in mesh.incidents if i.kind == "slow"}
        self.bypass = {i.subject: i for i in mesh.incidents if i.kind == "bypass"}
        self.added_ns = int(rng.uniform(60, 300) * MS)
        self.sampled = True
        self.peer: Row = {}
        self.connections: dict[tuple[str, str, bool], Row] = {}

    def run(self) -> None:
        mesh, rng = self.mesh, self.rng
        end = EPOCH_NS + mesh.duration_ns
        time = EPOCH_NS
        while time < end:
            time += int(rng.expovariate(mesh.rate) * SECOND)
            self.sampled = rng.random() < mesh.sample_ratio
            self._request(time)
        for incident in mesh.incidents:
            if incident.kind == "rogue":
                self._rogue(incident)
            elif incident.kind == "egress":
                self._beacon(incident)
        self._health_probes()
        self._listed_destination()

    def _request(self, time: int) -> None:
        entry = self.rng.choice(self.mesh.entries)
        request_id = str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
        trace = self._trace_id()
        proxy = self._span_id() if self.mesh.proxy_spans else None
        finish = self._serve(trace, proxy, entry, time + MS, request_id, caller=None)
        if proxy is not None:
            self._proxy_span(trace, proxy, None, "gateway", "SERVER", time, finish + MS)
        self._log("gateway", "inbound", entry, time, finish + MS - time, request_id)

    def _serve(
        self,
        trace: uuid.UUID,
        parent: int | None,
        operation: Operation,
        start: int,
        request_id: str,
        caller: str | None,
    ) -> int:
        """Run one operation from `start` (true time) on; returns its true end."""
        span, peer = self._span_id(), self.peer
        self.peer = {}
        time = start + int(operation.median_ns * 0.3)
        for callee in operation.calls:
            time = self._call(trace, span, operation.service, callee, time, request_id)
        own = int(operation.median_ns * 0.7 * self.rng.lognormvariate(0, operation.sigma))
        incident = self.slow.get((operation.service, operation.name))
        if incident is not None and incident.active(start):
            own += int(self.added_ns * self.rng.uniform(0.7, 1.3))
        end = time + own
        stamp: Row = {}
        if operation.service in self.mesh.instrumented:
            stamped = caller in self.mesh.instrumented
            stamp = {
                "provenance_stamp_status": "unsigned" if stamped else "absent",
                "provenance_stamp_kid": caller if stamped else None,
                "provenance_request_hash": "ab" * 32,
                "provenance_request_id": request_id,
            }
        self._span(trace, span, parent, operation.service, "SERVER", operation, start, end, stamp | peer)
        return end

    def _call(self, trace: uuid.UUID, parent: int, caller: str, callee: Operation, start: int, request_id: str) -> int:
        client = self._span_id()
        edge = (caller, callee.service)
        around = edge in self.bypass and self.bypass[edge].active(start) and self.rng.random() < 0.5
        hop = [0, 0] if around else [int(self.rng.lognormvariate(-1, 0.4) * MS) for _ in range(2)]
        network = int(self.rng.lognormvariate(-1, 0.4) * MS)
        traced = self.mesh.proxy_spans and not around
        outer, inner = (self._span_id(), self._span_id()) if traced else (None, None)
        at_server = start + sum(hop) + network
        self.peer = self._connection(caller, callee.service, start, around=around)
        finish = self._serve(trace, inner if traced else client, callee, at_server, request_id, caller)
        end = finish + sum(hop) + network
        stamp: Row = {}
        if caller in self.mesh.instrumented:
            stamp = {
                "provenance_stamp_kid": caller,
                "provenance_request_hash": "ab" * 32,
                "provenance_request_id": request_id,
            }
        where = {"server_address": f"{callee.service}.mesh", "server_port": 8080}
        self._span(trace, client, parent, caller, "CLIENT", callee, start, end, stamp | where)
        if not around:
            if outer is not None and inner is not None:
                self._proxy_span(trace, outer, client, caller, "CLIENT", start + hop[0] // 2, end - hop[0] // 2)
                self._proxy_span(trace, inner, outer, callee.service, "SERVER", at_server - hop[1], finish + hop[1])
            self._log(caller, "outbound", callee, start + hop[0] // 2, end - start - hop[0], request_id)
            self._log(
                callee.service, "inbound", callee, at_server - hop[1], finish - at_server + 2 * hop[1], request_id
            )
        return end

    def _connection(self, caller: str, callee: str, time: int, *, around: bool) -> Row:
        """The kept connection of an edge, past the proxies or through them; returns what the callee's application sees of it.

        Witnesses in both pods write it down: the caller's end has the service's virtual address, the callee's the pod or the proxy.
        """
        key = (caller, callee, around)
        capture = "bypassed" if around else "captured"
        names = self.mesh.services
        pod, virtual = f"10.1.0.{names.index(caller) + 1}", f"10.96.0.{names.index(callee) + 1}"
        known = self.connections.get(key)
        if known is None:
            port = 30_000 + len(self.connections)
            known = {"network_peer_address": pod if around else "127.0.0.6", "network_peer_port": port}
            self.connections[key] = known
            common = {"protocol": "tcp", "state": "ESTABLISHED", "capture": capture, "first_seen_unix_nano": time}
            outer = {"service_name": caller, "direction": "outbound", "local_address": pod, "local_port": port}
            inner = {"service_name": callee, "direction": "inbound", "local_address": virtual, "local_port": 8080}
            dialled = {"remote_address": virtual, "remote_port": 8080}
            accepted = {"remote_address": known["network_peer_address"], "remote_port": port}
            for row in (outer | dialled, inner | accepted):
                serial = len(self.mesh.sockets) + 1
                self.mesh.sockets.append(
                    row | common | {"record_id": serial, "source": f"witness/{row['service_name']}"}
                )
        for row in self.mesh.sockets:
            if (row["local_port"] if row["direction"] == "outbound" else row["remote_port"]) == known[
                "network_peer_port"
            ]:
                row["last_seen_unix_nano"] = row["received_unix_nano"] = time + SECOND
        return known

    def _rogue(self, incident: Incident) -> None:
        service = incident.subject[1]
        targets = [o for _, o in _reachable(self.mesh)[0] if o.service == service]
        time = incident.start_ns
        while time < incident.end_ns:
            self.sampled = self.rng.random() < self.mesh.sample_ratio
            self._serve(self._trace_id(), None, self.rng.choice(targets), time, "", caller=None)
            time += int(self.rng.expovariate(0.7) * SECOND)

    def _beacon(self, incident: Incident) -> None:
        service, destination = incident.subject
        assert service is not None
        host, _, port = destination.rpartition(":")
        period = max(2 * SECOND, self.mesh.duration_ns // self.rng.randint(30, 80))
        time = incident.start_ns
        while time < incident.end_ns:
            self.sampled = True
            start = time + int(self.rng.gauss(0, 0.02) * period)
            self._outbound(service, host, int(port), start)
            time += period

    def _listed_destination(self) -> None:
        """A destination that is allowed, called regularly: never a finding."""
        service = self.rng.choice(sorted(_reachable(self.mesh)[1]))
        self.mesh.egress_allow = [{"service_name": service, "destination": "*.payments.example", "port": 443}]
        time = EPOCH_NS
        while time < EPOCH_NS + self.mesh.duration_ns:
            self.sampled = True
            self._outbound(service, "api.payments.example", 443, time)
            time += 4 * SECOND

    def _outbound(self, service: str, host: str, port: int, start: int) -> None:
        operation = Operation(service, "POST", 20 * MS, 0.3, ())
        row: Row = {
            "server_address": host,
            "server_port": port,
            "http_request_method": "POST",
            "provenance_request_size": 220,
        }
        duration = int(operation.median_ns * self.rng.lognormvariate(0, 0.3))
        self._span(self._trace_id(), self._span_id(), None, service, "CLIENT", None, start, start + duration, row)

    def _health_probes(self) -> None:
        for service in self.mesh.services:
            time = EPOCH_NS + self.rng.randint(0, 10 * SECOND)
            while time < EPOCH_NS + self.mesh.duration_ns:
                self.sampled = self.rng.random() < self.mesh.sample_ratio
                row: Row = {
                    "http_request_method": "GET",
                    "http_route": "/healthz",
                    "user_agent_original": "kube-probe/1.31",
                }
                if service in self.mesh.instrumented:
                    row |= {"provenance_stamp_status": "absent", "provenance_request_hash": "cd" * 32}
                self._span(self._trace_id(), self._span_id(), None, service, "SERVER", None, time, time + MS, row)
                time += 10 * SECOND

    def _span(
        self,
        trace: uuid.UUID,
        span: int,
        parent: int | None,
        service: str,
        kind: str,
        operation: Operation | None,
        start: int,
        end: int,
        extra: Row,
    ) -> None:
        if not self.sampled:
            return
        skew = self.mesh.skew_ns[service]
        row: Row = {
            "trace_id": trace.hex,
            "span_id": span,
            "parent_span_id": parent,
            "name": extra.get("http_request_method", "span"),
            "kind": kind,
            "start_time_unix_nano": start + skew,
            "end_time_unix_nano": end + skew,
            "duration_ns": end - start,
            "status_code": "UNSET",
            "service_name": service,
            "witness": "app",
            "resource_id": 1,
            "scope_id": 1,
            "received_unix_nano": end + int(self.rng.uniform(0.1, 5) * SECOND),
        }
        if operation is not None:
            rpc = f"mesh.{operation.service}"
            row |= {
                "name": f"{rpc}/{operation.name}",
                "rpc_system": "grpc",
                "rpc_service": rpc,
                "rpc_method": operation.name,
            }
        self.mesh.spans.append(row | extra)

    def _proxy_span(
        self, trace: uuid.UUID, span: int, parent: int | None, service: str, kind: str, start: int, end: int
    ) -> None:
        row = {"witness": "proxy", "component": "proxy", "name": "ingress" if kind == "SERVER" else "egress"}
        self._span(trace, span, parent, service, kind, None, start, end, row)

    def _log(
        self, service: str, direction: str, operation: Operation, start: int, duration: int, request_id: str
    ) -> None:
        if service not in self.mesh.logging:
            return
        begin = start + self.mesh.skew_ns[service]
        self.mesh.proxy_records.append(
            {
                "record_id": len(self.mesh.proxy_records) + 1,
                "source": f"{service}.json",
                "service_name": service,
                "direction": direction,
                "start_time_unix_nano": begin - begin % MS,  # Envoy logs milliseconds
                "duration_ns": duration - duration % MS,
                # Envoy packs its sampling decision into this character.
                "request_id": f"{request_id[:14]}9{request_id[15:]}",
                "method": "POST",
                "path": f"/mesh.{operation.service}/{operation.name}",
                "authority": f"{operation.service}.mesh",
                "response_code": 200,
                "received_unix_nano": begin + duration + SECOND,
            }
        )

    def _trace_id(self) -> uuid.UUID:
        return uuid.UUID(int=self.rng.getrandbits(128) | 1)

    def _span_id(self) -> int:
        return self.rng.getrandbits(64) | 1

"""Random systems with one planted fault each, for rankings of causes: nothing here knows how causes are ranked.

Everything follows from the seed: 10 to 40 services in a random call graph with one to three replicas, log-normal times, sequential and parallel
calls, messages whose queues take from milliseconds to half a minute, work that outlives its caller, databases, hosts whose clocks differ by up to two
seconds. Some systems have no CLIENT spans, no instance ids, no status codes, lose spans, or are sampled. The two windows differ in
length, request rate and mix, and between them some services drift by up to 1.6 without any fault.
"""

import math
import random
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from collector.forensics.anatomy import COLUMNS

MS = 1_000_000
S = 1_000 * MS
T0 = 1_790_000_000 * S

FaultKind = Literal[
    "delay", "cpu", "edge delay", "network delay", "errors", "early return", "crash", "retry storm", "fan-out", "slow database", "overload"
]  # fmt: skip
FAULTS: tuple[FaultKind, ...] = (
    "delay", "cpu", "edge delay", "network delay", "errors", "early return", "crash", "retry storm", "fan-out", "slow database", "overload",
)  # fmt: skip

MIN_HITS = 15
"""How often the fault must have struck in the traces that were kept: a fault that nobody met is in no trace."""

Span = tuple[object, ...]


Way = Literal["call", "parallel", "message"]


@dataclass(slots=True)
class Call:
    """An edge of the call graph: with what probability it is taken, and how."""

    target: "Op"
    probability: float
    way: Way
    network_ms: float
    queue_ms: float = 0


@dataclass(slots=True)
class Op:
    """An operation: median own time and its spread, inner spans, what it calls, a database."""

    service: str
    name: str
    own_ms: float
    sigma: float
    inner: int
    database_ms: float
    calls: list[Call] = field(default_factory=list)
    outlives: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong during the incident; `services` are right answers (both ends, where traces cannot tell them apart)."""

    kind: FaultKind
    services: tuple[str, ...]
    service: str
    pod: str
    operation: str
    caller: str
    strength: float
    added_ms: float


@dataclass(slots=True)
class System:
    """One system, its fault, and its two windows of spans (columns `anatomy.COLUMNS`)."""

    seed: int
    fault: Fault
    baseline: pl.DataFrame
    incident: pl.DataFrame
    services: int


def random_system(seed: int, kind: FaultKind, *, spans: int = 5_000) -> System:
    """The system of a seed, with a fault of this kind somewhere that its traffic reaches."""
    rng = random.Random(f"{kind} {seed}")
    while True:
        world = _World(rng)
        baseline = world.window(T0, spans, None)
        fault = world.plant(kind)
        incident = world.window(T0 + 3_600 * S, int(spans * rng.uniform(0.5, 1.5)), fault)
        if world.hits >= MIN_HITS:
            return System(seed, fault, baseline, incident, len(world.services))


class _World:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.services = [f"svc-{rng.getrandbits(24):06x}" for _ in range(rng.randint(10, 40))]
        self.ops: dict[str, list[Op]] = {}
        self.messaging = rng.random() < 0.4
        self.clients = rng.random() < 0.9
        self.statuses = rng.random() < 0.8
        self.instances = rng.random() < 0.7
        self.lost = rng.choice([0, 0, 0.01])
        self.kept = rng.choice([1.0, 1.0, 0.3])
        self.skew = {s: int(rng.gauss(0, rng.choice([0.001, 0.05, 1])) * S) for s in self.services}
        self.pods = {s: [f"{s}-{rng.getrandbits(20):05x}" for _ in range(rng.randint(1, 3))] for s in self.services}
        self.drift: dict[str, float] = {}
        self.hits = 0
        self._grow()
        every = [(op.service, op.name) for ops in self.ops.values() for op in ops]
        self.flaky = {key: rng.uniform(0.003, 0.03) for key in every if rng.random() < 0.1}
        self.spiky = {key: rng.uniform(5, 30) for key in every if rng.random() < 0.1}
        self.entries = [op for s in self.services[: rng.randint(1, 3)] for op in self.ops[s]]
        self.weights = [rng.lognormvariate(0, 0.7) for _ in self.entries]
        self.reached: dict[tuple[str, str], int] = {}
        self.edges: dict[tuple[str, str, str], int] = {}
        self.databases: dict[str, int] = {}

    def _grow(self) -> None:
        rng = self.rng
        messages: list[Way] = ["message"] if self.messaging else []
        for index in range(len(self.services) - 1, -1, -1):
            service = self.services[index]
            later = self.services[index + 1 : index + 1 + max(6, len(self.services) // 3)]
            self.ops[service] = []
            for number in range(rng.randint(1, 3)):
                op = Op(
                    service,
                    f"op-{number}",
                    math.exp(rng.uniform(math.log(0.2), math.log(20))),
                    rng.uniform(0.2, 0.8),
                    rng.choice([0, 0, 1, 2]),
                    rng.uniform(0.5, 8) if rng.random() < 0.35 else 0,
                    outlives=rng.random() < 0.05,
                )
                targets = rng.sample(later, min(len(later), rng.randint(1 if index < 3 else 0, 3)))
                for target in targets:
                    way: Way = rng.choice(["call", "call", "call", "parallel", *messages])
                    op.calls.append(
                        Call(
                            rng.choice(self.ops[target]),
                            rng.choice([1, 1, rng.uniform(0.2, 0.9)]),
                            way,
                            rng.uniform(0.2, 3),
                            math.exp(rng.uniform(math.log(5), math.log(30_000))) if way == "message" else 0,
                        )
                    )
                self.ops[service].append(op)

    def plant(self, kind: FaultKind) -> Fault:
        """A fault where the baseline's traffic went often enough to be seen."""
        rng = self.rng
        often = {key: n for key, n in self.reached.items() if n >= 40}
        called = sorted({(a, s, o) for (a, s, o), n in self.edges.items() if n >= 40})
        service, operation = rng.choice(sorted(often))
        caller = ""
        if kind in {"edge delay", "crash", "retry storm", "network delay", "overload"} and called:
            caller, service, operation = rng.choice(called)
        if kind == "slow database" and (with_database := sorted(s for s, n in self.databases.items() if n >= 40)):
            service = rng.choice(with_database)
        if kind in {"fan-out", "early return"}:
            callers = sorted(
                {
                    (op.service, op.name)
                    for ops in self.ops.values()
                    for op in ops
                    if (op.service, op.name) in often and any(c.way != "message" for c in op.calls)
                }
            )
            if callers:
                service, operation = rng.choice(callers)
        answers: tuple[str, ...] = (service,)
        if kind == "edge delay" or (kind == "network delay" and not self.clients):
            answers = (service, caller)
        entry_ms = max(5.0, self.mean_entry_ms)
        return Fault(
            kind, answers, service, rng.choice(self.pods[service]), operation, caller, rng.uniform(0.3, 0.9),
            entry_ms * math.exp(rng.uniform(math.log(0.3), math.log(4))),
        )  # fmt: skip

    def window(self, start: int, spans: int, fault: Fault | None) -> pl.DataFrame:
        rng = self.rng
        self.spans: list[Span] = []
        self.fault = fault
        self.drift = {s: rng.uniform(1, 1.6) if fault and rng.random() < 0.3 else 1.0 for s in self.services}
        weights = [w * (rng.lognormvariate(0, 0.5) if fault else 1) for w in self.weights]
        rate = rng.uniform(2, 20) * (4 if fault and fault.kind == "overload" else 1)
        time, entries, total = start, 0, 0
        while len(self.spans) < spans:
            time += int(rng.expovariate(rate) * S)
            op = rng.choices(self.entries, weights)[0]
            before, hits = len(self.spans), self.hits
            self.trace = f"{rng.getrandbits(127):032x}"
            end, _ = self.serve(op, None, time)
            entries, total = entries + 1, total + end - time
            if rng.random() > self.kept:
                del self.spans[before:]
                self.hits = hits
        self.mean_entry_ms = total / entries / MS
        kept = [s for s in self.spans if rng.random() >= self.lost]
        return pl.DataFrame(kept, schema=_SCHEMA, orient="row")

    def hit(self, *kinds: FaultKind) -> Fault | None:
        return self.fault if self.fault is not None and self.fault.kind in kinds else None

    def struck(self) -> None:
        """The fault did something to this trace."""
        self.hits += 1

    def serve(self, op: Op, parent: int | None, at: int, kind: str = "SERVER") -> tuple[int, bool]:
        """(end, whether it failed)."""
        rng = self.rng
        self.reached[op.service, op.name] = self.reached.get((op.service, op.name), 0) + 1
        span, pod = rng.getrandbits(63) | 1, rng.choice(self.pods[op.service])
        own = op.own_ms * MS * rng.lognormvariate(0, op.sigma) * self.drift[op.service]
        if (f := self.hit("delay")) and (f.service, f.operation) == (op.service, op.name):
            own += f.added_ms * MS * rng.lognormvariate(0, 0.3)
            self.struck()
        if (op.service, op.name) in self.spiky and rng.random() < 0.01:
            own *= self.spiky[op.service, op.name]
        slow = self.slow(op.service, pod)
        own *= slow
        time = at + int(own / 2)
        for number in range(op.inner):
            length = int(own / 8)
            self.add(
                (span, rng.getrandbits(63) | 1),
                (op.service, pod),
                f"{op.name}-step-{number}",
                "INTERNAL",
                (time, length),
            )
            time += length
        failed = False
        f = self.hit("errors", "early return", "retry storm")
        if f and (f.service, f.operation) == (op.service, op.name) and rng.random() < f.strength:
            self.struck()
            error = f.kind != "early return"
            self.add((parent, span), (op.service, pod), op.name, kind, (at, time - at), error=error)
            return time, error
        if rng.random() < self.flaky.get((op.service, op.name), 0):
            self.add((parent, span), (op.service, pod), op.name, kind, (at, time - at), error=True)
            return time, True
        ends = [time]
        for call in op.calls:
            if rng.random() >= call.probability:
                continue
            for _ in range(self.times(op)):
                began = time if call.way == "call" else at + int(own / 2)
                end, bad = self.call(op, (span, pod), call, began)
                if call.way == "call":
                    time = end
                elif call.way == "parallel":
                    ends.append(end)
                failed |= bad
            if failed and rng.random() < 0.7:
                self.add((parent, span), (op.service, pod), op.name, kind, (at, max(time, *ends) - at), error=True)
                return max(time, *ends), True
        time = max(time, *ends)
        if op.database_ms:
            self.databases[op.service] = self.databases.get(op.service, 0) + 1
            length = int(op.database_ms * MS * rng.lognormvariate(0, 0.4) * math.sqrt(slow))
            if (f := self.hit("slow database")) and f.service == op.service:
                length += int(f.added_ms * MS * rng.lognormvariate(0, 0.3))
                self.struck()
            self.add(
                (span, rng.getrandbits(63) | 1), (op.service, pod), "SELECT", "CLIENT", (time, length), to="db:5432"
            )
            time += length
        end = time + int(own / 2)
        if op.outlives:
            self.add((span, rng.getrandbits(63) | 1), (op.service, pod), "flush", "INTERNAL", (end - MS, 40 * MS))
        self.add((parent, span), (op.service, pod), op.name, kind, (at, end - at))
        return end, False

    def slow(self, service: str, pod: str) -> float:
        f = self.hit("cpu", "overload")
        if f is None or f.service != service or (f.kind == "cpu" and f.pod != pod):
            return 1.0
        self.struck()
        return 2 + 8 * f.strength

    def times(self, op: Op) -> int:
        f = self.hit("fan-out")
        if not f or (f.service, f.operation) != (op.service, op.name):
            return 1
        self.struck()
        return 3 + int(7 * f.strength)

    def call(self, op: Op, above: tuple[int, str], call: Call, at: int) -> tuple[int, bool]:
        attempts = 4 if self.hit("retry storm") else 1
        end, failed = at, False
        for _ in range(attempts):
            end, failed = self.attempt(op, above, call, end)
            if not failed:
                break
        return end, failed

    def attempt(self, op: Op, above: tuple[int, str], call: Call, at: int) -> tuple[int, bool]:
        rng, target = self.rng, call.target
        span, pod = above
        key = (op.service, target.service, target.name)
        self.edges[key] = self.edges.get(key, 0) + 1
        client = rng.getrandbits(63) | 1
        if call.way == "message":
            self.add((span, client), (op.service, pod), f"send {target.name}", "PRODUCER", (at, MS), to=target.service)
            self.serve(target, client, at + int(call.queue_ms * MS * rng.lognormvariate(0, 0.5)), "CONSUMER")
            return at + MS, False
        there, back = self.network(op.service, pod, call), self.network(op.service, pod, call)
        if (f := self.hit("crash")) and f.service == target.service:
            self.struck()
            end = at + there + back
            if self.clients:
                self.add(
                    (span, client),
                    (op.service, pod),
                    f"call {target.name}",
                    "CLIENT",
                    (at, end - at),
                    to=target.service,
                    error=True,
                )
            return end, True
        end, failed = self.serve(target, client if self.clients else span, at + there)
        if self.clients:
            self.add(
                (span, client),
                (op.service, pod),
                f"call {target.name}",
                "CLIENT",
                (at, end + back - at),
                to=target.service,
                error=failed,
            )
        return end + back, failed

    def network(self, caller: str, pod: str, call: Call) -> int:
        service = call.target.service
        took = call.network_ms * MS / 2 * self.rng.lognormvariate(0, 0.4)
        f = self.fault
        if f is None:
            return int(took)
        if (f.kind == "edge delay" and (f.caller, f.service) == (caller, service)) or (
            f.kind == "network delay" and f.service in {caller, service}
        ):
            self.struck()
            took += f.added_ms / 2 * MS * self.rng.lognormvariate(0, 0.3)
        if f.kind in {"cpu", "overload"} and f.service in {caller, service}:
            # Whoever has no processor is late to answer, and late to see the answers of others.
            slow = self.slow(caller, pod) if caller == f.service else 2 + 8 * f.strength
            took *= 1 + (slow - 1) * self.rng.random()
        return int(took)

    def add(
        self,
        ids: tuple[int | None, int],
        at: tuple[str, str],
        name: str,
        kind: str,
        when: tuple[int, int],
        *,
        error: bool = False,
        to: str | None = None,
    ) -> None:
        service, pod = at
        self.spans.append(
            (
                self.trace, ids[1], ids[0], service, pod if self.instances else None, name, kind, "app",
                when[0] + self.skew[service], when[1], error and self.statuses, to,
            )
        )  # fmt: skip


_TYPES: dict[str, type[pl.DataType]] = {
    "span_id": pl.UInt64,
    "parent_span_id": pl.UInt64,
    "start_time_unix_nano": pl.Int64,
    "duration_ns": pl.Int64,
    "error": pl.Boolean,
}
_SCHEMA = {name: _TYPES.get(name, pl.String) for name in COLUMNS}

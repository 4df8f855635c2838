"""Egress: calls that left the mesh for where nobody listed, or with the beat of a clock. One finding per workload and destination.

An egress call is an application's CLIENT (or PRODUCER) span with no server span anywhere beneath it, through proxies too, whose
destination is not the mesh's own: no other call to it was answered by a service's span, no proxy of the mesh listens there, it does not name
a service or the workload of a proxy, and it is not the pod itself. So a callee that crashed, was not sampled or reported late does not look like egress; and a span that the collector
received within `settle_ns` of its newest one is not judged yet.

What cannot be judged is said: without an allow-list nothing is `unlisted`, and only clock-like destinations are findings; a call that
names no address is counted and no more. A list that is empty is a list: then everything is unlisted.
Destinations that the list allows are never findings, however regular.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.beacon import Beacon, Observation, beacon_score, jitter_ratio, observation
from collector.forensics.causes import milliseconds
from collector.forensics.columns import is_error, request_key_of
from collector.forensics.edges import answering, calls_in
from collector.forensics.findings import EVIDENCE_LIMIT, SEVERITIES, Finding, Severity
from collector.forensics.ids import span_id_hex, trace_id_hex
from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import NS_PER_S, Query, Window, compile_sql, egress_allow, proxy_records, spans
from collector.policy import EgressPolicy

RESOLVE_MARGIN_NS: Final = 24 * 3600 * NS_PER_S
"""How far around the window other calls are looked at to learn which addresses are the mesh's own."""

METADATA_HOSTS: Final = frozenset({"169.254.169.254", "fd00:ec2::254", "metadata.google.internal"})
HTTP_PORTS: Final = frozenset({80, 443, 8080, 8443})

POD_HOSTS: Final = frozenset({"127.0.0.1", "::1", "localhost"})
"""The pod itself: agents and sidecars. Other loopback addresses are not what anybody listens on by habit, so they are judged."""

UNLISTED_SCORE: Final = 0.7
"""A first attempt at a destination on no list: strong, but one forgotten entry away from harmless."""


@dataclass(frozen=True, slots=True)
class EgressParams:
    """How to look for egress.

    Attributes:
        policy: What is allowed; None reads the rows of `egress_allow`.
        min_beacon_score: RITA's lowest step.
        max_jitter_ratio: MAD over median of the intervals, at most, for a beacon: RITA's score alone calls random traffic of one size
            a beacon (about 0.8; its jitter is 0.69). Uniform jitter of ±50 % is 0.25.
        min_beacon_calls: Fewer calls have no rhythm worth a word.
        settle_ns: A destination is judged by calls than which the collector has received something this much newer.
        max_destinations: Suspects whose calls are fetched one by one, those with the most calls first.
    """

    policy: EgressPolicy | None = None
    min_beacon_score: float = 0.5
    max_jitter_ratio: float = 0.35
    min_beacon_calls: int = 10
    settle_ns: int = 10 * NS_PER_S
    max_destinations: int = 500


@dataclass(frozen=True, slots=True)
class Suspect:
    """A workload and a destination that is not the mesh's own."""

    service: str
    host: str
    port: int | None

    @property
    def destination(self) -> str:
        """host:port, or the host alone, as `columns.address_of` writes it."""
        if self.port is None:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class _Judged:
    """One suspect with its calls and what speaks against it."""

    suspect: Suspect
    calls: pl.DataFrame
    unlisted: bool
    beacon: Beacon | None


@dataclass(frozen=True, slots=True)
class _Access:
    """What the workloads' own proxies logged: record ids by (service, request id), and who logs at all."""

    records: Mapping[tuple[str, str], int]
    logging: frozenset[str]


def egress_sql(window: Window, params: EgressParams | None = None) -> dict[str, str]:
    """The statements that start a search; the one that fetches the suspects' calls follows from their answers."""
    settle_ns = (params or EgressParams()).settle_ns
    return {
        "destinations": windowed(window, lambda blank: compiled_once(_destinations, blank, settle_ns)),
        "answering": windowed(window, lambda blank: compiled_once(_answering, blank)),
        "listeners": windowed(window, lambda blank: compiled_once(_listeners, blank)),
        "services": windowed(window, lambda blank: compiled_once(_services, blank)),
        "egress_allow": compiled_once(egress_allow),
    }


@dataclass(frozen=True, slots=True)
class EgressReport:
    """The findings, strongest first, and how many of the calls that no span answered named no address to judge them by."""

    findings: list[Finding]
    calls: int
    unnamed: int


def find_egress(query: Query, window: Window, params: EgressParams | None = None) -> list[Finding]:
    """The findings of `examine_egress`."""
    return examine_egress(query, window, params).findings


def examine_egress(query: Query, window: Window, params: EgressParams | None = None) -> EgressReport:
    """One finding for each workload and destination outside the mesh that is unlisted or clock-like, and what could not be judged.

    Raises ConfigError if a row of `egress_allow` is not a destination.
    """
    params = params or EgressParams()
    statements = egress_sql(window, params)
    everything = query(statements["destinations"])
    named = everything.filter(pl.col("host").is_not_null())
    calls, known = (int(frame["calls"].sum()) for frame in (everything, named))
    return EgressReport(_find(query, window, params, statements, named), calls, calls - known)


def _find(
    query: Query, window: Window, params: EgressParams, statements: Mapping[str, str], destinations: pl.DataFrame
) -> list[Finding]:
    if destinations.is_empty():
        return []
    policy = params.policy
    if policy is None:
        policy = EgressPolicy.from_rows(query(statements["egress_allow"]).to_dicts())
    own = _own_addresses(query, statements)
    suspects = [s for s in _suspects(destinations) if not own.holds(s) and not policy.allows(s.service, s.host, s.port)]
    if not suspects:
        return []
    chosen = suspects[: params.max_destinations]
    calls = query(compile_sql(_calls_to(chosen, window)))
    observed = _observed(window, destinations, calls)
    judged = [_judge(s, part, policy, params, observed) for s, part in _by_suspect(chosen, calls)]
    telling = [j for j in judged if j.unlisted or j.beacon is not None]
    if not telling:
        return []
    access = _access(query, window, telling)
    dropped = len(suspects) - len(chosen)
    notes = [f"{dropped} more destinations were not judged"] if dropped else []
    if not policy.is_given:
        notes.append("no egress allow-list: only clock-like destinations can be judged")
    return sorted((_finding(j, access, notes) for j in telling), key=lambda f: (-f.score, f.finding_id))


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """What belongs to the mesh: addresses (host:port) that answered or where its proxies listen, names of services and namespaces.

    Services are those that sent a server span and those whose proxy logs: a workload without OpenTelemetry is in the mesh too.
    """

    addresses: frozenset[str]
    services: frozenset[str]
    namespaces: frozenset[str]

    def holds(self, suspect: Suspect) -> bool:
        """Whether a destination is the mesh's own: by address, or as a service's name in a cluster's DNS.

        `checkout`, `checkout.NAMESPACE` of a known namespace and `checkout.any.svc…` name the service checkout;
        `checkout.example.com` does not.
        """
        if suspect.host in POD_HOSTS or suspect.destination in self.addresses:
            return True
        name, _, rest = suspect.host.lower().partition(".")
        if name not in self.services:
            return False
        labels = rest.split(".") if rest else []
        in_cluster = len(labels) >= 2 and labels[1] == "svc" and labels[2:] in ([], ["cluster", "local"])
        return not labels or in_cluster or (len(labels) == 1 and labels[0] in self.namespaces)


def _exits(window: Window, settle_ns: int) -> ir.Table:
    """Settled exits with `error`; `host` is NULL where an exit says no address."""
    exits = calls_in(window).exits
    newest = spans().aggregate(newest=spans().received_unix_nano.max())
    joined = exits.cross_join(newest)
    settled = joined.filter(joined.received_unix_nano <= joined.newest - settle_ns)
    return settled.mutate(error=is_error(settled))


def _destinations(window: Window, settle_ns: int) -> ir.Table:
    exits = _exits(window, settle_ns)
    start = exits.start_time_unix_nano
    return exits.group_by(["service_name", "host", "port"]).aggregate(
        calls=exits.count(), first_unix_nano=start.min(), last_unix_nano=start.max()
    )


def _answering(window: Window) -> ir.Table:
    """Addresses at which a service's span answered a call, by a window widened by `RESOLVE_MARGIN_NS`."""
    return answering(calls_in(_wide(window)).entries)


def _listeners(window: Window) -> ir.Table:
    """Addresses where the mesh's proxies and the workloads behind them listen, and what outbound proxies were dialled as (`address`, `upstream`).

    `upstream` is NULL where the address is a listener whatever else is known, else where the proxy went from there.
    """
    records = _wide(window).of(proxy_records())
    inbound = records.filter(records.direction == "inbound")
    outbound = records.filter((records.direction == "outbound") & records.upstream_host.notnull())
    nowhere = ibis.null("string")
    parts = (
        inbound.select(address="downstream_local_address", upstream=nowhere),
        inbound.select(address="upstream_host", upstream=nowhere),
        outbound.select(address="downstream_local_address", upstream="upstream_host"),
    )
    union = ibis.union(*parts, distinct=True)
    return union.filter(union.address.notnull())


def _services(window: Window) -> ir.Table:
    table = _wide(window).of(spans())
    served = table.filter((table.kind == "SERVER") & (table.witness != "proxy"))
    logging = _wide(window).of(proxy_records())
    logging = logging.select("service_name", service_namespace=ibis.null("string"))
    both = served.select("service_name", "service_namespace").union(logging).distinct()
    return both.filter(both.service_name.notnull())


def _calls_to(suspects: Sequence[Suspect], window: Window) -> ir.Table:
    """All their calls, the newest too: what did not answer for as long as could be told is not about to."""
    exits = _exits(window, settle_ns=0)
    wanted = exits.filter(exits.host.isin(sorted({s.host for s in suspects})))
    return wanted.select(
        "service_name",
        "service_instance_id",
        "host",
        "port",
        "trace_id",
        "span_id",
        "start_time_unix_nano",
        "error",
        request_size="provenance_request_size",
        request_key=request_key_of(wanted.provenance_request_id),
        store_system=ibis.coalesce(wanted.db_system_name, wanted.messaging_system),
        web=wanted.http_request_method.notnull(),
    ).order_by("start_time_unix_nano", "span_id")


def _records(window: Window, services: Sequence[str], request_ids: Sequence[str]) -> ir.Table:
    """Outbound records of these workloads' proxies with these request ids, without the character that Envoy overwrites."""
    table = window.of(proxy_records(), margin_ns=60 * NS_PER_S)
    key = request_key_of(table.request_id)
    own = table.filter(table.service_name.isin(list(services)) & (table.direction == "outbound"))
    return own.mutate(key=key).filter(ibis._.key.isin(list(request_ids))).select("service_name", "key", "record_id")


def _logging(window: Window) -> ir.Table:
    table = window.of(proxy_records())
    return table.filter(table.direction == "outbound").select("service_name").distinct()


def _wide(window: Window) -> Window:
    since, until = window.since_unix_nano, window.until_unix_nano
    return Window(
        None if since is None else since - RESOLVE_MARGIN_NS, None if until is None else until + RESOLVE_MARGIN_NS
    )


def _own_addresses(query: Query, statements: Mapping[str, str]) -> OwnAddresses:
    answered = query(statements["answering"])["answering_address"].to_list()
    listeners = query(statements["listeners"])
    services = query(statements["services"])
    own = {*answered, *listeners.filter(pl.col("upstream").is_null())["address"]}
    # Under transparent capture an outbound line's local address is what the application dialled, and an external name resolves to
    # several addresses: only a line whose proxy went on to the mesh says that the mesh was dialled.
    own |= {address for address, upstream in listeners.iter_rows() if upstream in own}
    return OwnAddresses(
        addresses=frozenset(own),
        services=frozenset(name.lower() for name in services["service_name"]),
        namespaces=frozenset(name.lower() for name in services["service_namespace"].drop_nulls()),
    )


def _suspects(destinations: pl.DataFrame) -> list[Suspect]:
    ordered = destinations.sort("calls", "service_name", "host", "port", descending=[True, False, False, False])
    return [Suspect(*row) for row in ordered.select("service_name", "host", "port").iter_rows()]


def _by_suspect(suspects: Sequence[Suspect], calls: pl.DataFrame) -> list[tuple[Suspect, pl.DataFrame]]:
    parts = calls.partition_by("service_name", "host", "port", as_dict=True)
    keyed = {Suspect(str(k[0]), str(k[1]), k[2]): part for k, part in parts.items()}
    return [(s, keyed[s]) for s in suspects if s in keyed]


def _observed(window: Window, destinations: pl.DataFrame, calls: pl.DataFrame) -> Observation:
    """The window, its open ends at the first and last egress call."""
    first = destinations["first_unix_nano"].to_list()
    last = [*destinations["last_unix_nano"].to_list(), *calls["start_time_unix_nano"].to_list()]
    since = min(first) if window.since_unix_nano is None else window.since_unix_nano
    until = max(last) if window.until_unix_nano is None else window.until_unix_nano
    return observation(since, until)


def _judge(
    suspect: Suspect, calls: pl.DataFrame, policy: EgressPolicy, params: EgressParams, observed: Observation
) -> _Judged:
    # Polling a database or a queue is what clients do: clock-like calls to one are telling only where a list exists.
    polls = not policy.is_given and calls["store_system"].is_not_null().any()
    beacon = None if polls else _best_beacon(calls, params, observed)
    return _Judged(suspect, calls, policy.is_given, beacon)


def _best_beacon(calls: pl.DataFrame, params: EgressParams, observed: Observation) -> Beacon | None:
    """The strongest beacon among all calls and those of each replica: clocks of several replicas interleave."""
    replicas = calls.partition_by("service_instance_id")
    streams = [calls] if len(replicas) == 1 else [calls, *replicas]
    found: list[Beacon] = []
    for stream in streams:
        times = stream["start_time_unix_nano"].to_list()
        jitter = jitter_ratio(times) if len(times) >= params.min_beacon_calls else None
        if jitter is None or jitter > params.max_jitter_ratio:
            continue
        beacon = beacon_score(times, stream["request_size"].to_list(), observed)
        if beacon is not None and beacon.score >= params.min_beacon_score:
            found.append(beacon)
    return max(found, key=lambda b: b.score, default=None)


def _access(query: Query, window: Window, judged: Sequence[_Judged]) -> _Access:
    keys = sorted(set(pl.concat([j.calls["request_key"] for j in judged]).drop_nulls()))
    services = sorted({j.suspect.service for j in judged})
    records = query(compile_sql(_records(window, services, keys))) if keys else pl.DataFrame()
    found = {(s, k): r for s, k, r in records.select("service_name", "key", "record_id").iter_rows()} if keys else {}
    return _Access(found, frozenset(query(_logging_sql(window))["service_name"]))


def _logging_sql(window: Window) -> str:
    return windowed(window, lambda blank: compiled_once(_logging, blank))


def _finding(judged: _Judged, access: _Access, notes: Sequence[str]) -> Finding:
    calls, suspect = judged.calls, judged.suspect
    evidence = calls.tail(EVIDENCE_LIMIT)
    seen = _seen_by_proxy(judged, access)
    missing = [*notes]
    if suspect.service not in access.logging:
        missing.append(f"no outbound access log of {suspect.service}'s own proxy at that time")
    if calls["request_size"].null_count() == len(calls):
        missing.append("no request sizes")
    return Finding(
        kind="egress",
        reasons=tuple(
            r for r, given in (("unlisted", judged.unlisted), ("beacon", judged.beacon is not None)) if given
        ),
        severity=_severity(judged),
        score=_score(judged),
        caller=suspect.service,
        destination=suspect.destination,
        first_seen_unix_nano=int(calls["start_time_unix_nano"][0]),
        last_seen_unix_nano=int(calls["start_time_unix_nano"][-1]),
        count=len(calls),
        explanation=_sentence(judged, seen, logs=suspect.service in access.logging),
        trace_ids=tuple(trace_id_hex(t) or "" for t in evidence["trace_id"]),
        span_ids=tuple(span_id_hex(s) or "" for s in evidence["span_id"]),
        record_ids=tuple(str(r) for r in seen[:EVIDENCE_LIMIT]),
        completeness="; ".join(missing),
        attack_ids=_attack_ids(judged),
    )


def _seen_by_proxy(judged: _Judged, access: _Access) -> list[int]:
    keys = ((judged.suspect.service, k) for k in judged.calls["request_key"].drop_nulls())
    return [access.records[key] for key in dict.fromkeys(keys) if key in access.records]


def _severity(judged: _Judged) -> Severity:
    """RITA's steps for a beacon (50, 70, 90, 100 %); unlisted is high, medium if every call failed; both: one step above the worse."""
    steps: list[int] = []
    if judged.unlisted:
        blocked = bool(judged.calls["error"].all())
        steps.append(SEVERITIES.index("medium" if blocked else "high"))
    if judged.beacon is not None:
        reached = sum(judged.beacon.score >= step for step in (0.7, 0.9, 1.0))
        steps.append(SEVERITIES.index("low") - reached)
    return SEVERITIES[max(0, min(steps) - (len(steps) > 1))]


def _score(judged: _Judged) -> float:
    doubts = [1 - UNLISTED_SCORE] if judged.unlisted else []
    if judged.beacon is not None:
        doubts.append(1 - judged.beacon.score)
    left = 1.0
    for doubt in doubts:
        left *= doubt
    return round(1 - left, 3)


def _sentence(judged: _Judged, seen: Sequence[int], *, logs: bool) -> str:
    calls, suspect = judged.calls, judged.suspect
    listed = ", on no allow-list," if judged.unlisted else ""
    sizes = calls["request_size"].drop_nulls().to_list()
    parts = [f"{suspect.service} called {suspect.destination}{listed} {_times(len(calls))}{_rhythm(judged)}"]
    if sizes:
        parts.append(f"{_bytes(sum(sizes))} out")
    failed = int(calls["error"].sum())
    if failed:
        parts.append(f"{failed / len(calls):.0%} of the calls failed")
    asked = calls["request_key"].drop_nulls().n_unique()
    if logs and asked:
        parts.append(
            f"its own proxy logged {len(seen)} of {asked} of them" if seen else "its own proxy logged none of them"
        )
    return "; ".join(parts)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _rhythm(judged: _Judged) -> str:
    if judged.beacon is None:
        return ""
    starts = judged.calls["start_time_unix_nano"].to_list()
    intervals = [b - a for a, b in pairwise(starts)]
    middle = median(intervals)
    mad = median(abs(i - middle) for i in intervals)
    return f" every {milliseconds(middle)} (MAD {milliseconds(mad)}; beacon score {judged.beacon.score:.2f})"


def _bytes(count: int) -> str:
    for limit, unit, scale in ((1e3, "B", 1.0), (1e6, "kB", 1e3), (1e9, "MB", 1e6)):
        if count < limit:
            return f"{count / scale:.0f} {unit}" if unit == "B" else f"{count / scale:.1f} {unit}"
    return f"{count / 1e9:.1f} GB"


def _attack_ids(judged: _Judged) -> tuple[str, ...]:
    """MITRE ATT&CK: what such a call may be part of."""
    suspect, web = judged.suspect, bool(judged.calls["web"].any())
    ids: list[str] = []
    if judged.beacon is not None:
        ids += ["T1071.001" if web else "T1071", "T1029"]
    if judged.unlisted:
        ids.append("T1567" if web else "T1048")
    if web and suspect.port is not None and suspect.port not in HTTP_PORTS:
        ids.append("T1571")
    if suspect.host in METADATA_HOSTS:
        ids.append("T1552.005")
    return tuple(ids)

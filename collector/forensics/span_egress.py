"""Calls that left, one by one, by their spans: which destinations are unlisted, and which are called with the beat of a clock.

A suspect is a workload and an address that is not the mesh's own. Its calls are fetched with replica, size and request id, so that
clocks of several replicas do not hide each other, and so that it is known what the workload's own proxy logged of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.beacon import Beacon, Observation, beacon_score, observation, rhythm_of
from collector.forensics.causes import milliseconds
from collector.forensics.columns import request_key_of
from collector.forensics.departures import of_hosts, settled_exits, with_hosts
from collector.forensics.destinations import size
from collector.forensics.findings import EVIDENCE_LIMIT, SEVERITIES, Finding, Severity
from collector.forensics.ids import span_id_hex, trace_id_hex
from collector.forensics.oddities import WEB_PORTS
from collector.forensics.own_addresses import Suspect
from collector.forensics.statements import compiled_once, text, windowed
from collector.forensics.tables import NS_PER_S, Query, Window, proxy_records
from collector.forensics.territory import METADATA_HOSTS
from collector.policy.calls import Verdict
from collector.policy.policies import Policies

UNLISTED_SCORE: Final = 0.7
"""A first attempt at a destination on no list: strong, but one forgotten entry away from harmless."""


@dataclass(frozen=True, slots=True)
class RhythmParams:
    """What makes a stream of calls a beacon.

    Attributes:
        min_score: RITA's lowest step.
        max_jitter_ratio: MAD over median of the intervals, at most: RITA's score alone calls random traffic of one size a beacon
            (about 0.8; its jitter is 0.69). Uniform jitter of ±50 % is 0.25.
        min_calls: Fewer calls have no rhythm worth a word.
    """

    min_score: float = 0.5
    max_jitter_ratio: float = 0.35
    min_calls: int = 10


@dataclass(frozen=True, slots=True)
class _Judged:
    """One suspect with its calls and what speaks against it."""

    suspect: Suspect
    calls: pl.DataFrame
    verdict: Verdict | None
    beacon: Beacon | None

    @property
    def unlisted(self) -> bool:
        """Whether a policy would have had to allow it."""
        return self.verdict is not None and not self.verdict.allowed


@dataclass(frozen=True, slots=True)
class _Access:
    """What the workloads' own proxies logged: record ids by (service, request id), and who logs at all."""

    records: Mapping[tuple[str, str], int]
    logging: frozenset[str]


def find_by_spans(
    query: Query,
    window: Window,
    left: pl.DataFrame,
    policies: Policies,
    verdicts: Mapping[Suspect, Verdict | None],
    *,
    rhythm: RhythmParams,
    max_destinations: int,
) -> list[Finding]:
    """One finding for each workload and destination that is unlisted or clock-like; `left` has columns `departures.WAYS`.

    What a policy allows is no finding, however regular.
    """
    suspects = [s for s in _suspects(left) if (v := verdicts[s]) is None or not v.allowed]
    if not suspects:
        return []
    chosen = suspects[:max_destinations]
    calls = query(_calls_sql(chosen, window))
    observed = _observed(window, left, calls)
    judged = [
        _judge(s, part, verdicts[s], policies.is_given, rhythm, observed) for s, part in _by_suspect(chosen, calls)
    ]
    telling = [j for j in judged if j.unlisted or j.beacon is not None]
    if not telling:
        return []
    access = _access(query, window, telling)
    dropped = len(suspects) - len(chosen)
    notes = [f"{dropped} more destinations were not judged"] if dropped else []
    if not policies.is_given:
        notes.append("no egress allow-list: only clock-like destinations can be judged")
    return [_finding(j, access, notes) for j in telling]


def _calls_sql(suspects: Sequence[Suspect], window: Window) -> str:
    return with_hosts(
        windowed(window, lambda blank: compiled_once(_calls_to, blank)), sorted({s.host for s in suspects})
    )


def _calls_to(window: Window) -> ir.Table:
    """All their calls, the newest too: what did not answer for as long as could be told is not about to."""
    wanted = of_hosts(settled_exits(window, settle_ns=0))
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


def _records(window: Window) -> ir.Table:
    """Outbound records of proxies of the workloads in the blank `services` with the request ids in `keys`, without the character that Envoy overwrites."""
    table = window.of(proxy_records(), margin_ns=60 * NS_PER_S)
    key = request_key_of(table.request_id)
    own = table.filter(table.service_name.isin([text("services")]) & (table.direction == "outbound"))
    return own.mutate(key=key).filter(ibis._.key.isin([text("keys")])).select("service_name", "key", "record_id")


def _logging(window: Window) -> ir.Table:
    table = window.of(proxy_records())
    return table.filter(table.direction == "outbound").select("service_name").distinct()


def _suspects(left: pl.DataFrame) -> list[Suspect]:
    """Those with the most calls first."""
    totals = left.group_by("source", "host", "port").agg(pl.col("calls").sum())
    ordered = totals.sort("calls", "source", "host", "port", descending=[True, False, False, False])
    return [Suspect(*row) for row in ordered.select("source", "host", "port").iter_rows()]


def _by_suspect(suspects: Sequence[Suspect], calls: pl.DataFrame) -> list[tuple[Suspect, pl.DataFrame]]:
    parts = calls.partition_by("service_name", "host", "port", as_dict=True)
    keyed = {Suspect(str(k[0]), str(k[1]), k[2]): part for k, part in parts.items()}
    return [(s, keyed[s]) for s in suspects if s in keyed]


def _observed(window: Window, left: pl.DataFrame, calls: pl.DataFrame) -> Observation:
    """The window, its open ends at the first and last egress call."""
    first = left["first_unix_nano"].to_list()
    last = [*left["last_unix_nano"].to_list(), *calls["start_time_unix_nano"].to_list()]
    since = min(first) if window.since_unix_nano is None else window.since_unix_nano
    until = max(last) if window.until_unix_nano is None else window.until_unix_nano
    return observation(since, until)


def _judge(  # noqa: PLR0917  (one place calls it)
    suspect: Suspect,
    calls: pl.DataFrame,
    verdict: Verdict | None,
    has_policy: bool,  # noqa: FBT001
    rhythm: RhythmParams,
    observed: Observation,
) -> _Judged:
    # Polling a database or a queue is what clients do: clock-like calls to one are telling only where a list exists.
    polls = not has_policy and calls["store_system"].is_not_null().any()
    return _Judged(suspect, calls, verdict, None if polls else _best_beacon(calls, rhythm, observed))


def _best_beacon(calls: pl.DataFrame, params: RhythmParams, observed: Observation) -> Beacon | None:
    """The strongest beacon among all calls and those of each replica: clocks of several replicas interleave."""
    replicas = calls.partition_by("service_instance_id")
    streams = [calls] if len(replicas) == 1 else [calls, *replicas]
    found: list[Beacon] = []
    for stream in streams:
        times = stream["start_time_unix_nano"].to_list()
        if len(times) < params.min_calls or not is_rhythmic(times, params):
            continue
        beacon = beacon_score(times, stream["request_size"].to_list(), observed, scores_strobes=True)
        if beacon is not None and beacon.score >= params.min_score:
            found.append(beacon)
    return max(found, key=lambda b: b.score, default=None)


def is_rhythmic(times_unix_nano: Sequence[int], params: RhythmParams) -> bool:
    """Whether a clock may have made these moments: with little jitter, or with too few short intervals for chance."""
    rhythm = rhythm_of(times_unix_nano)
    return rhythm is not None and rhythm.is_a_clocks(params.max_jitter_ratio)


def _access(query: Query, window: Window, judged: Sequence[_Judged]) -> _Access:
    keys = sorted(set(pl.concat([j.calls["request_key"] for j in judged]).drop_nulls()))
    services = sorted({j.suspect.service for j in judged})
    records = query(_records_sql(window, services, keys)) if keys else pl.DataFrame()
    found = {(s, k): r for s, k, r in records.select("service_name", "key", "record_id").iter_rows()} if keys else {}
    return _Access(found, frozenset(query(_logging_sql(window))["service_name"]))


def _records_sql(window: Window, services: Sequence[str], keys: Sequence[str]) -> str:
    return windowed(window, lambda blank: compiled_once(_records, blank), services=services, keys=keys)


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
    if judged.verdict is not None and judged.unlisted and not judged.verdict.against.startswith("egress.allow"):
        listed = f", which no policy allows ({judged.verdict.against}),"
    sizes = calls["request_size"].drop_nulls().to_list()
    parts = [f"{suspect.service} called {suspect.destination}{listed} {_times(len(calls))}{_rhythm(judged)}"]
    if sizes:
        parts.append(f"{size(sum(sizes))} out")
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


def _attack_ids(judged: _Judged) -> tuple[str, ...]:
    """MITRE ATT&CK: what such a call may be part of."""
    suspect, web = judged.suspect, bool(judged.calls["web"].any())
    ids: list[str] = []
    if judged.beacon is not None:
        ids += ["T1071.001" if web else "T1071", "T1029"]
    if judged.unlisted:
        ids.append("T1567" if web else "T1048")
    if web and suspect.port is not None and suspect.port not in WEB_PORTS:
        ids.append("T1571")
    if suspect.host in METADATA_HOSTS:
        ids.append("T1552.005")
    return tuple(ids)

"""Egress: what left the mesh and should not have. One finding per source and destination.

An egress call is an application's CLIENT (or PRODUCER) span with no server span anywhere beneath it, through proxies too, whose
destination is not the mesh's own: no other call to it was answered by a service's span, no proxy of the mesh listens there, it does not name
a service or the workload of a proxy, and it is not the pod itself. So a callee that crashed, was not sampled or reported late does not look like egress; and a span that the collector
received within `settle_ns` of its newest one is not judged yet. A flow is egress where it begins inside and ends outside (`territory.py`).

What cannot be judged is said: without a policy nothing is `unlisted`, and only clock-like or unusual destinations are findings; a call that
names no address is counted and no more. A list that is empty is a list: then everything is unlisted.
Destinations that a policy allows are findings only by their volume, however regular they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from collector.forensics.departures import ways_sql
from collector.forensics.destinations import Judge, Leaving, View, examine_destinations, leaving
from collector.forensics.egress_findings import attack_ids, combined, row_finding, severity_of
from collector.forensics.findings import Finding
from collector.forensics.oddities import WEAK, OddityParams
from collector.forensics.own_addresses import OwnAddresses, Suspect, own_sql
from collector.forensics.span_egress import RhythmParams, find_by_spans
from collector.forensics.statements import compiled_once
from collector.forensics.tables import NS_PER_S, Query, Window, egress_allow
from collector.policy.calls import Verdict
from collector.policy.listed import EgressPolicy
from collector.policy.policies import Policies, listed_alone

__all__ = ["EgressParams", "EgressReport", "OwnAddresses", "Suspect", "egress_sql", "examine_egress", "find_egress"]


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
        baseline_ns: How far before the window habits are learnt, for `first_seen` and `volume`; a window without a start has no baseline.
        internal: Blocks, addresses, names and `*.suffixes` that are no egress.
        external: What is, although its address is nobody's on the Internet.
        odd: What is odd about a destination.
    """

    policy: EgressPolicy | Policies | None = None
    min_beacon_score: float = 0.5
    max_jitter_ratio: float = 0.35
    min_beacon_calls: int = 10
    settle_ns: int = 10 * NS_PER_S
    max_destinations: int = 500
    baseline_ns: int = 24 * 3600 * NS_PER_S
    internal: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    odd: OddityParams = field(default_factory=OddityParams)

    @property
    def rhythm(self) -> RhythmParams:
        """The part that makes a beacon."""
        return RhythmParams(self.min_beacon_score, self.max_jitter_ratio, min_calls=self.min_beacon_calls)

    def view(self, window: Window) -> View:
        """The same for `examine_destinations`."""
        policy = listed_alone(self.policy) if isinstance(self.policy, EgressPolicy) else self.policy
        return View(
            policies=policy,
            internal=self.internal,
            external=self.external,
            baseline=baseline_of(window, self.baseline_ns),
            rhythm=("flows",),  # of spans, replica by replica
            settle_ns=self.settle_ns,
            min_beacon_score=self.min_beacon_score,
            max_jitter_ratio=self.max_jitter_ratio,
            min_beacon_calls=self.min_beacon_calls,
            odd=self.odd,
        )


def baseline_of(window: Window, baseline_ns: int) -> Window | None:
    """The time before the window; None where it has no start, or nothing is wanted."""
    since = window.since_unix_nano
    return None if since is None or not baseline_ns else Window(max(0, since - baseline_ns), since)


def egress_sql(window: Window, params: EgressParams | None = None) -> dict[str, str]:
    """The statements that start a search; those that fetch the suspects' calls follow from their answers."""
    settle_ns = (params or EgressParams()).settle_ns
    return {
        "destinations": ways_sql(window, "spans", settle_ns),
        **own_sql(window),
        "flows": ways_sql(window, "flows", settle_ns),
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
    """One finding for each source and destination outside that is unlisted, clock-like or unusual, and what could not be judged.

    Raises ConfigError if a row of `egress_allow` is not a destination.
    """
    params = params or EgressParams()
    view = params.view(window)
    left = leaving(query, window, view)
    if all(frame.is_empty() for frame in left.frames.values()):
        return EgressReport([], left.calls, left.unnamed)
    rows = examine_destinations(query, window, replace(view, by="workload"), left).rows
    by_spans = find_by_spans(
        query,
        window,
        left.frames["spans"],
        left.policies,
        _verdicts(query, left),
        rhythm=params.rhythm,
        max_destinations=params.max_destinations,
    )
    findings = _merged(query, by_spans, rows)
    return EgressReport(sorted(findings, key=lambda f: (-f.score, f.finding_id)), left.calls, left.unnamed)


def _verdicts(query: Query, left: Leaving) -> Mapping[Suspect, Verdict | None]:
    spans = left.frames["spans"]
    judge = Judge.of(query, left.policies, by="workload")
    addresses = dict(spans.group_by("host").agg(pl.col("address").drop_nulls().unique()).iter_rows())
    return {
        Suspect(source, host, port): judge.verdict(source, None, host, port, (addresses[host], None))
        for source, host, port in spans.select("source", "host", "port").unique().iter_rows()
    }


def _merged(query: Query, by_spans: list[Finding], rows: pl.DataFrame) -> list[Finding]:
    """What calls and what totals say of the same pair as one finding."""
    told = {(row["source"], row["destination"]): row for row in rows.iter_rows(named=True)}
    found: list[Finding] = []
    spoken: set[tuple[str, str]] = set()
    for finding in by_spans:
        pair = next((p for p in told if p[0] == finding.caller and _names(finding.destination, p[1])), None)
        spoken |= set() if pair is None else {pair}
        found.append(finding if pair is None else _with_more(finding, told[pair]))
    rest = [row for pair, row in told.items() if pair not in spoken and row["flagged"]]
    return [*found, *(row_finding(query, row) for row in rest)]


def _names(destination: str | None, host: str) -> bool:
    return destination is not None and (destination == host or destination.startswith((f"{host}:", f"[{host}]")))


def _with_more(finding: Finding, row: Mapping[str, Any]) -> Finding:
    """The finding of a pair with what else its row says: reasons, numbers, techniques, and what they weigh."""
    more = [r for r in row["reasons"] if r not in finding.reasons and r not in WEAK]
    if not more:
        return finding
    ids = dict.fromkeys((*finding.attack_ids, *attack_ids(row, more)))
    notes = "; ".join(row["notes"])
    return replace(
        finding,
        reasons=(*finding.reasons, *more),
        severity=severity_of(finding.severity, more),
        score=combined((finding.score, *more)),
        explanation=f"{finding.explanation}; {notes}" if notes else finding.explanation,
        attack_ids=tuple(ids),
    )

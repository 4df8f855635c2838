"""From slow edges and their shares to findings: one a cause, in a sentence with the numbers. Pure.

A cause may be behind several incidents: what was slow twice was slow for one reason, as far as anybody can tell, and is told once, with both
stretches of time.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Final

import numpy as np

from collector.forensics.attribution import Component, Sample, Share
from collector.forensics.durations import SlowEdge
from collector.forensics.findings import EVIDENCE_LIMIT, Finding, Severity
from collector.forensics.ids import span_id_hex, trace_id_hex
from collector.forensics.shifts import Shift

CRITICAL_RATIO: Final = 3.0
CRITICAL_INCREASE_NS: Final = 100_000_000
"""Critical: an edge from outside became three times slower and by a tenth of a second, which people feel as broken."""

FELT_QUANTILE: Final = 0.9
"""Critical is what this quantile or a lower one tells."""

MIN_FIGURE_RATIO: Final = 1.2
"""If a component's spans did not get slower by this, then it is not slower but called more often, or waits less in parallel."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The sampled calls of one slow edge, taken apart."""

    before: Sequence[Sample]
    during: Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Claim:
    """That a component explains a share of an edge's rise; `incident` is the place of the edge's incident among all, the worst first."""

    edge: SlowEdge
    share: Share
    evidence: Evidence
    incident: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """What the store says of a component's spans; ns, at the shift's quantile."""

    before_ns: float
    during_ns: float
    calls_before: int
    calls_during: int
    first_unix_nano: int
    last_unix_nano: int


@dataclass(frozen=True, slots=True)
class Cause:
    """One cause: the claims on its components, of which `component` rose most.

    Attributes:
        subject: Whose it is; components of one subject in one incident are one cause.
        component: The one that names the cause.
        claims: Every claim, nearest edge first.
        stretches: When: of each incident that it is behind the shift of the edge nearest to it, the worst incident first.
    """

    subject: tuple[str, str]
    component: Component
    claims: tuple[Claim, ...]
    stretches: tuple[Shift, ...]

    @property
    def nearest(self) -> Claim:
        """The claim on the naming component from the edge next to it."""
        return next(c for c in self.claims if c.share.component == self.component)

    @property
    def farthest(self) -> Claim:
        """The claim from the edge that people outside feel, else from the one farthest up; in the worst incident that has it."""
        outside = [c for c in self.claims if c.edge.caller is None] or self.claims
        return next(c for c in outside if c.edge.key == outside[-1].edge.key)

    @property
    def named(self) -> tuple[str | None, str | None, str, str | None]:
        """What its finding is known by: caller, callee, operation, destination."""
        component = self.component
        callee = None if component.kind == "exit" else component.service
        return (component.caller or _caller(self), callee, component.operation, component.destination)

    def share_on(self, edge: SlowEdge) -> float:
        """How much of an edge's rise the cause explains, 0 to 1."""
        return min(1.0, sum(c.share.share for c in self.claims if c.edge == edge))


def causes_of(claims: Sequence[Claim]) -> list[Cause]:
    """The causes behind the claims of one incident.

    Operations of one service are one cause; so are exits to one destination, and hops into one service (or out of one, if it is one caller that
    reaches several services late). A service that is slow itself also answers the door slowly: its hops belong to it.
    """
    groups: defaultdict[tuple[str, str], list[Claim]] = defaultdict(list)
    for claim in claims:
        groups[_subject(claim.share.component, claims)].append(claim)
    for kind, name in list(groups):
        if kind == "hop" and ("own", name) in groups:
            groups["own", name] += groups.pop((kind, name))
    return [_cause(subject, members) for subject, members in groups.items()]


def united(causes: Sequence[Cause]) -> list[Cause]:
    """The causes of all incidents, the worst first, each once, with everything that is claimed of it.

    Two are one where their findings would be known by the same names, at whatever times, and where they have one subject and times that
    overlap: then they are one incident that began and ended at different edges at different times.
    """
    found: list[Cause] = []
    for cause in causes:
        whole = cause
        # With its new component a cause may have become the same as one that it was not before.
        while same := [c for c in found if _is_one(c, whole)]:
            found = [c for c in found if not _is_one(c, whole)]
            whole = _joined([*same, whole])
        found.append(whole)
    return found


def _is_one(a: Cause, b: Cause) -> bool:
    overlap = any(s.start_unix_nano < t.end_unix_nano and t.start_unix_nano < s.end_unix_nano
                  for s in a.stretches for t in b.stretches)  # fmt: skip
    return a.named == b.named or (a.subject == b.subject and overlap)


def _joined(causes: Sequence[Cause]) -> Cause:
    whole = _cause(causes[0].subject, list(chain.from_iterable(c.claims for c in causes)))
    return replace(whole, stretches=tuple(dict.fromkeys(chain.from_iterable(c.stretches for c in causes))))


def describe(cause: Cause, figures: Figures, notes: Sequence[str], apart: str = "") -> Finding:
    """The finding of a cause; `apart` says what sets its slow calls apart, and ends the explanation."""
    caller, callee, operation, destination = cause.named
    spans = evidence_spans(cause)
    return Finding(
        kind="latency",
        reasons=("latency_shift",),
        severity=_severity(cause),
        score=_score(cause, figures),
        caller=caller,
        callee=callee,
        operation=operation,
        destination=destination,
        first_seen_unix_nano=figures.first_unix_nano,
        last_seen_unix_nano=figures.last_unix_nano,
        count=figures.calls_during,
        explanation=_sentence(cause, figures) + apart,
        affected=tuple(dict.fromkeys(c.edge.label for c in cause.claims)),
        trace_ids=tuple(trace_id_hex(t) or "" for t, _ in spans),
        span_ids=tuple(span_id_hex(s) or "" for _, s in spans),
        completeness="; ".join([*notes, *_missing(cause)]),
    )


@dataclass(frozen=True, slots=True)
class Common:
    """That everything slowed together in one incident: its edges, what was sampled of them, and the common factor."""

    edges: Sequence[SlowEdge]
    evidence: Sequence[Evidence]
    factor: float


def common_cause(incidents: Sequence[Common]) -> Finding:
    """The finding that everything slowed together, once or several times, which no operation explains."""
    edges = [edge for incident in incidents for edge in incident.edges]
    factor = max(incident.factor for incident in incidents)
    first = min(e.shift.start_unix_nano for e in edges)
    last = max(e.shift.end_unix_nano for e in edges)
    slowest = sorted((s for i in incidents for e in i.evidence for s in e.during), key=lambda s: -s.duration_ns)
    traces = tuple(dict.fromkeys(trace_id_hex(s.trace_id) or "" for s in slowest))[:EVIDENCE_LIMIT]
    return Finding(
        kind="latency",
        reasons=("latency_shift", "common_cause"),
        severity="low",
        score=min(1.0, 1 - 1 / factor),
        first_seen_unix_nano=first,
        last_seen_unix_nano=last,
        count=calls_in_all([max(i.edges, key=lambda e: e.shift.calls_during).shift for i in incidents]),
        explanation=(
            f"most services slowed together {when(first, last, ended=all(e.shift.ended for e in edges))}"
            f"{f', in {len(incidents)} stretches, in the worst of which' if len(incidents) > 1 else ':'} two thirds of them take at least "
            f"{factor:.1f} times their own time, on {len({e.key for e in edges})} slower edges; look at what they share (host, throttling, network)"
        ),
        affected=tuple(dict.fromkeys(e.label for e in edges)),
        trace_ids=traces,
    )


def evidence_spans(cause: Cause) -> list[tuple[str, int]]:
    """(trace id, span id) of the calls in which the cause took longest, one a trace, up to `EVIDENCE_LIMIT`."""
    component = cause.component
    seen: dict[str, tuple[int, int]] = {}
    for claim in cause.claims:
        for sample in claim.evidence.during:
            place = sample.places.get(component)
            if place is not None and sample.trace_id not in seen:
                seen[sample.trace_id] = (sample.own_ns[component], place.span_id)
    ranked = sorted(seen.items(), key=lambda item: -item[1][0])[:EVIDENCE_LIMIT]
    return [(trace_id, span_id) for trace_id, (_, span_id) in ranked]


def milliseconds(ns: float) -> str:
    """A duration for people: three figures at most."""
    for limit, unit, scale in ((1e6, "µs", 1e3), (1e9, "ms", 1e6)):
        if ns < limit:
            value = ns / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.2g} {unit}"
    return f"{ns / 1e9:.3g} s"


def _subject(component: Component, claims: Sequence[Claim]) -> tuple[str, str]:
    if component.kind == "exit":
        return ("exit", component.destination or component.operation)
    if component.kind == "own":
        return ("own", component.service)
    hops = {c.share.component for c in claims if c.share.component.kind == "hop"}
    into = {h.caller for h in hops if h.service == component.service}
    out_of = {h.service for h in hops if h.caller == component.caller}
    if len(into) == 1 and len(out_of) > 1:
        return ("hop from", component.caller or "outside")
    return ("hop", component.service)


def calls_in_all(shifts: Sequence[Shift]) -> int:
    """The calls in these stretches of time; of several at one time those of the one with the most, because they may be the same."""
    return sum(max(shift.calls_during for shift in cluster) for cluster in _clusters(shifts))


def _clusters(shifts: Sequence[Shift]) -> list[list[Shift]]:
    """Stretches of time by what overlaps, the first first."""
    clusters: list[list[Shift]] = []
    until = 0
    for shift in sorted(shifts, key=lambda s: s.start_unix_nano):
        if not clusters or shift.start_unix_nano >= until:
            clusters.append([])
        clusters[-1].append(shift)
        until = max(until, shift.end_unix_nano)
    return clusters


def _cause(subject: tuple[str, str], members: Sequence[Claim]) -> Cause:
    own = [c for c in members if c.share.component.kind != "hop"] or list(members)
    component = max(
        own, key=lambda c: (c.share.during_ns - c.share.before_ns, c.share.component.operation)
    ).share.component
    ordered = sorted(members, key=lambda c: (c.share.depth, c.edge.side != "server", c.edge.label, c.incident))
    cause = Cause(subject, component, tuple(ordered), ())
    return replace(cause, stretches=(cause.nearest.edge.shift,))


def _severity(cause: Cause) -> Severity:
    outside = [c.edge.shift for c in cause.claims if c.edge.caller is None]
    # A few slow calls in a hundred are not felt as broken.
    if any(
        s.quantile <= FELT_QUANTILE
        and s.during_ns >= CRITICAL_RATIO * s.before_ns
        and s.during_ns - s.before_ns >= CRITICAL_INCREASE_NS
        for s in outside
    ):
        return "critical"
    return "high" if outside else "medium"


def _score(cause: Cause, figures: Figures) -> float:
    share = cause.share_on(cause.farthest.edge)
    nearest = cause.nearest.share
    rise = 1 - max(min(figures.before_ns, figures.during_ns), 1) / max(figures.during_ns, 1)
    own_rise = 1 - nearest.before_ns / max(nearest.during_ns, 1)
    return float(np.clip(share * max(rise, own_rise), 0, 1))


def _caller(cause: Cause) -> str | None:
    places = (s.places[cause.component] for s in cause.nearest.evidence.during if cause.component in s.places)
    counted = Counter(p.caller for p in places)
    return counted.most_common(1)[0][0] if counted else None


def _sentence(cause: Cause, figures: Figures) -> str:
    far = cause.farthest.edge
    shift = cause.nearest.edge.shift
    ended = all(s.ended for s in cause.stretches)
    also = len({c.share.component for c in cause.claims}) - 1
    others = f" (and {also} more of its operations or hops)" if also else ""
    apart = len(_clusters(cause.stretches))
    stretches = f", in {apart} stretches," if apart > 1 else ""
    return (
        f"{_what(cause, figures)} (p{shift.quantile * 100:g}, {figures.calls_during} calls "
        f"{when(figures.first_unix_nano, figures.last_unix_nano, ended=ended)}{stretches} against {figures.calls_before} in normal times)"
        f"{others}; it explains {cause.share_on(far):.0%} of the rise on {far.callee} {far.operation} "
        f"({quantiles_of(far)})"
        f"{'' if far.beside is None else far.beside.sentence}"
    )


def quantiles_of(edge: SlowEdge) -> str:
    """Which quantiles moved, and how far, where the others stayed, and what is usual at that time."""
    shift, usual = edge.shift, edge.usual
    moved = {m.q: (m.before_ns, m.during_ns) for m in shift.quantiles if m.moved}
    moved[shift.quantile] = (shift.before_ns, shift.during_ns)
    told = [f"p{q * 100:g} {milliseconds(was)} → {milliseconds(now)}" for q, (was, now) in sorted(moved.items())]
    still = [f"p{m.q * 100:g} {milliseconds(m.during_ns)}" for m in shift.quantiles if m.q not in moved]
    about = f"; {', '.join(still)} as before, or nearly" if still else ""
    days = (
        f"; p{shift.quantile * 100:g} {milliseconds(usual.ns)} at this time on {usual.days} earlier days"
        if usual
        else ""
    )
    return ", ".join(told) + about + days


def _what(cause: Cause, figures: Figures) -> str:
    component, share = cause.component, cause.nearest.share
    edge = cause.nearest.edge
    was, now = milliseconds(figures.before_ns), milliseconds(figures.during_ns)
    name = f"{component.service} {component.operation}"
    if component.kind == "hop":
        return f"the way from {component.caller} to {name} (network, proxies, queues) takes {now} instead of {was}"
    if component.kind == "exit":
        name = f"{component.destination}, as {component.service} sees it in {component.operation},"
    if figures.during_ns >= MIN_FIGURE_RATIO * figures.before_ns:
        return f"{name} takes {now} instead of {was}"
    if share.calls_during >= MIN_FIGURE_RATIO * share.calls_before:
        return (
            f"{name} is called {share.calls_during:.1f} instead of {share.calls_before:.1f} times "
            f"for each {edge.callee} {edge.operation} and takes {now}"
        )
    return (
        f"{name} takes {milliseconds(share.during_ns)} instead of {milliseconds(share.before_ns)} "
        f"of each {edge.callee} {edge.operation}"
    )


def when(first: int, last: int, *, ended: bool) -> str:
    """A stretch of time for people, in UTC."""
    start = datetime.fromtimestamp(first // 1_000_000_000, UTC).strftime("%H:%M:%SZ")
    if not ended:
        return f"since {start}"
    return f"from {start} to {datetime.fromtimestamp(last // 1_000_000_000, UTC).strftime('%H:%M:%SZ')}"


def _missing(cause: Cause) -> list[str]:
    samples = [s for c in cause.claims for s in c.evidence.during]
    broken = sum(1 for s in samples if not s.complete)
    if not broken:
        return []
    return [f"{broken / len(samples):.0%} of the sampled traces lack spans (sampling, loss or late arrival)"]

"""Shadow traffic: calls that bypassed the mesh, carried no stamp, came from nobody, or were altered on the way.

A finding is about one (caller, callee), caller None where nothing vouches for one, and unites these reasons:

- `mesh_bypass`: a proxy that must have seen a call did not (`collector.forensics.verdicts`), the caller's, the callee's or both.
- `unstamped`: the callee's middleware looked and found no stamp, and the callee's proxy missed the call too, or the client
  had stamped it, or nothing vouches for a caller. Then not: calls into entry points and health probes. A known caller that
  merely has no middleware is never flagged, nor is a callee whose middleware does not look.
- `unknown_caller`: the call names a parent span that never arrived, although the caller's telemetry is complete around it
  and does not lack a span here and there all the time.
- `tampered`: the callee saw another request body than the caller sent.

Entry points take unstamped traffic by nature. They are declared (`ShadowParams.entry_services`) or inferred: stamped calls in
at most 5 % of the minutes in which they have calls (over all that is recorded), mostly unknown callers in half of their
minutes, and unstamped calls in six of ten tenths of the recorded time. Minutes have one vote each, however many calls are in
them: who floods a service that is otherwise called with stamps does not turn it into an entry point.

Strength, each 0 to 1, united as 1 - Π(1 - strength), is the score:

| evidence | strength | severity |
|---|---|---|
| unstamped, and missed by the callee's proxy and not seen by the caller's | 0.95 | critical |
| missed by both proxies | 0.9 | high |
| missed by the callee's proxy | 0.85 | high |
| tampered, or a stamp that the client set and the callee never saw | 0.85 | high |
| missed by the caller's proxy, seen by the callee's | 0.6 | medium |
| unstamped, caller unknown | 0.5 | medium; low if the callee's proxy saw all of them |
| unknown caller | 0.4 | medium if a stamp claims one and the callee's proxy did not see all of them, else low |

One call is enough: every proof is about that call, and none is a statistic.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import ibis.expr.types as ir

from collector.forensics.calls import MARGIN_NS
from collector.forensics.findings import EVIDENCE_LIMIT, Finding, Severity
from collector.forensics.ids import span_id_hex, trace_id_hex
from collector.forensics.matching import lines
from collector.forensics.shadow_flags import MINUTE_NS, ShadowParams, summary
from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import NS_PER_S, Query, Window
from collector.forensics.verdicts import REASONS, SEEN, UNKNOWN

__all__ = ["ShadowParams", "ShadowReport", "examine_shadow", "find_shadow", "percent", "shadow_sql"]

BYPASS_TECHNIQUES: Final = ("T1562.004",)
"""Impair Defenses: Disable or Modify System Firewall: iptables' redirection is the mesh's."""

Row = dict[str, Any]
Activity = dict[tuple[str, str, int], int]
"""Lines by (side, service, minute)."""


def shadow_sql(window: Window, params: ShadowParams | None = None) -> dict[str, str]:
    """The SQL behind the findings: `calls` counts every answered call by verdict, `proxies` the lines of each access log."""
    return {"calls": _calls_sql(window, params or ShadowParams()), "proxies": _proxies_sql(window)}


def _calls_sql(window: Window, params: ShadowParams) -> str:
    return windowed(window, lambda blank: compiled_once(summary, blank, params))


def _proxies_sql(window: Window) -> str:
    return windowed(window, lambda blank: compiled_once(_activity, blank))


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """The findings, and what could not be judged.

    Attributes:
        findings: One a (caller, callee).
        calls: Answered calls.
        unjudged: Those that no proxy proves anything of, most often because of `why`.
        sampled: A sentence for each proxy whose log proves nothing by what it lacks, whatever the other side saw.
    """

    findings: list[Finding]
    calls: int
    unjudged: int
    why: str
    sampled: tuple[str, ...] = ()


def find_shadow(query: Query, window: Window, params: ShadowParams | None = None) -> list[Finding]:
    """The window's shadow traffic, one finding a (caller, callee). Raises what `query` raises."""
    return examine_shadow(query, window, params).findings


def examine_shadow(query: Query, window: Window, params: ShadowParams | None = None) -> ShadowReport:
    """The window's shadow traffic, and how much of the traffic could be judged at all. Raises what `query` raises."""
    rows = query(_calls_sql(window, params or ShadowParams())).to_dicts()
    flagged: dict[tuple[str | None, str], list[Row]] = {}
    into: dict[str, list[Row]] = {}
    for row in rows:
        into.setdefault(row["callee"], []).append(row)
        if row["flagged"]:
            flagged.setdefault((row["caller"], row["callee"]), []).append(row)
    sampled = _samples(rows)
    logged: Activity = {}
    if flagged:
        lines_ = query(_proxies_sql(window)).to_dicts()
        logged = {(r["side"], r["service"], r["minute"]): r["lines"] for r in lines_}
    return ShadowReport(
        findings=[
            _finding(Subject(caller, callee, tuple(mine)), into[callee], logged, sampled)
            for (caller, callee), mine in sorted(flagged.items(), key=lambda item: (item[0][1], item[0][0] or ""))
        ],
        calls=sum(r["calls"] for r in rows),
        unjudged=sum(r["calls"] for r in rows if r["verdict"] == UNKNOWN),
        why=_causes(rows, "the callee's proxy"),
        sampled=tuple(sampled[key] for key in sorted(sampled, key=lambda key: (key[1], key[0]))),
    )


def _samples(rows: list[Row]) -> dict[tuple[str, str], str]:
    """(side, service) -> a sentence on the access log of that proxy, where it holds a part of the calls."""
    seen: Counter[tuple[str, str]] = Counter()
    open_: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for side, service in (("inbound", row["callee"]), ("outbound", row["caller"])):
            if row[f"{side}_verdict"] == SEEN:
                seen[side, service] += row["calls"]
            elif row[f"{side}_reason"] == "log_sampled":
                open_[side, service] += row["calls"]
    return {
        (side, service): f"{service}'s proxy logs {percent(seen[side, service], seen[side, service] + missing)} "
        f"of its {side} calls: a sample, or a replica without a sidecar"
        for (side, service), missing in open_.items()
    }


def _activity(window: Window) -> ir.Table:
    """How many lines each proxy's log has a minute in and around the window: side, service, minute (of the Unix epoch), lines."""
    table = lines(window, MARGIN_NS)
    table = table.filter(table.direction.notnull())
    return table.group_by("side", "service", minute=table.start // MINUTE_NS).agg(lines=table.count())


@dataclass(frozen=True, slots=True)
class Subject:
    """The flagged calls of one (caller, callee), as rows of `summary`."""

    caller: str | None
    callee: str
    rows: tuple[Row, ...]

    def count(self, *flags: str) -> int:
        """How many calls have all of these flags."""
        return sum(r["calls"] for r in self.rows if all(r[flag] for flag in flags))

    @property
    def first(self) -> int:
        """Start of the first call, ns since the Unix epoch."""
        return int(min(r["first"] for r in self.rows))

    @property
    def last(self) -> int:
        """Start of the last call, ns since the Unix epoch."""
        return int(max(r["last"] for r in self.rows))

    @property
    def claims(self) -> list[str]:
        """Whom the stamps of calls from unknown callers name."""
        return sorted({r["claimed"] for r in self.rows if r["claimed"] is not None})

    def seen_by_callee(self) -> bool:
        """Whether the callee's proxy vouches for every call."""
        return all(r["inbound_verdict"] == SEEN for r in self.rows)


def _finding(subject: Subject, into: list[Row], logged: Activity, sampled: dict[tuple[str, str], str]) -> Finding:
    severity, score = _strength(subject)
    trace_ids, span_ids = _evidence(subject.rows)
    records = [str(i) for r in subject.rows for key in ("outbound", "inbound") for i in r[f"{key}_record_ids"] or ()]
    return Finding(
        kind="shadow",
        reasons=_reasons(subject),
        severity=severity,
        score=score,
        caller=subject.caller,
        callee=subject.callee,
        first_seen_unix_nano=subject.first,
        last_seen_unix_nano=subject.last,
        count=sum(r["calls"] for r in subject.rows),
        explanation=_explain(subject, logged),
        trace_ids=trace_ids,
        span_ids=span_ids,
        record_ids=tuple(dict.fromkeys(records))[:EVIDENCE_LIMIT],
        completeness=_completeness(subject, into, sampled),
        attack_ids=BYPASS_TECHNIQUES if _missed(subject) else (),
    )


def _missed(subject: Subject) -> int:
    return sum(r["calls"] for r in subject.rows if r["bypass_outbound"] or r["bypass_inbound"])


def _reasons(subject: Subject) -> tuple[str, ...]:
    """Most telling first."""
    present = {
        "mesh_bypass": _missed(subject),
        "tampered": subject.count("tampered"),
        "unstamped": subject.count("unstamped"),
        "unknown_caller": subject.count("unknown_caller"),
    }
    return tuple(reason for reason, calls in present.items() if calls)


def _strength(subject: Subject) -> tuple[Severity, float]:
    """The table in the module's docstring."""
    unwitnessed = any(r["unstamped"] and r["bypass_inbound"] and r["outbound_verdict"] != SEEN for r in subject.rows)
    nobodys = subject.caller is None and subject.count("unstamped") > 0
    evidence: list[tuple[bool, float, Severity]] = [
        (unwitnessed, 0.95, "critical"),
        (subject.count("bypass_inbound", "bypass_outbound") > 0, 0.9, "high"),
        (subject.count("bypass_inbound") > 0, 0.85, "high"),
        (subject.count("tampered") > 0, 0.85, "high"),
        (subject.caller is not None and subject.count("unstamped") > 0, 0.85, "high"),
        (subject.count("bypass_outbound") > 0, 0.6, "medium"),
        (nobodys, 0.5, "low" if subject.seen_by_callee() else "medium"),
        (
            subject.count("unknown_caller") > 0,
            0.4,
            "medium" if subject.claims and not subject.seen_by_callee() else "low",
        ),
    ]
    found = [(strength, severity) for holds, strength, severity in evidence if holds]
    doubt = 1.0
    for strength, _ in found:
        doubt *= 1 - strength
    order: tuple[Severity, ...] = ("critical", "high", "medium", "low")
    return min((severity for _, severity in found), key=order.index), round(1 - doubt, 4)


def _evidence(rows: Iterable[Row]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The earliest traces, once each, and one span of each."""
    shown = sorted(
        (at, trace_id_hex(trace) or "", span_id_hex(span) or "")
        for row in rows
        for at, trace, span in zip(row["shown_at"] or (), row["trace_ids"] or (), row["span_ids"] or (), strict=True)
    )
    spans_of: dict[str, str] = {}
    for _, trace, span in shown:
        spans_of.setdefault(trace, span)
    chosen = list(spans_of.items())[:EVIDENCE_LIMIT]
    return tuple(trace for trace, _ in chosen), tuple(span for _, span in chosen)


def _explain(subject: Subject, logged: Activity) -> str:
    total = sum(r["calls"] for r in subject.rows)
    origin = f" from {subject.caller}" if subject.caller else ""
    said, missed = _traits(subject, total), _misses(subject, total, logged)
    calls = f"{total:,} call{'' if total == 1 else 's'}{origin} to {subject.callee}"
    text = f"{calls} {' and '.join(said)}" if said else f"{calls} bypassed the mesh"
    text += "".join(f"{', and' if said or i else ':'} {clause}" for i, clause in enumerate(missed))
    return f"{text}; {'it began' if total == 1 else 'the first'} at {_clock(subject.first)}"


def _traits(subject: Subject, total: int) -> list[str]:
    """What the calls themselves show, as predicates of "31 calls to payment"."""

    def share(calls: int) -> str:
        return "" if calls == total else f" ({calls:,} of them)"

    said = []
    if unstamped := subject.count("unstamped"):
        said.append(f"carried no stamp{share(unstamped)}")
    if unknown := subject.count("unknown_caller"):
        claims = ", ".join(subject.claims)
        whose = f" although they are stamped as {claims}'s, whose spans arrive otherwise" if claims else ""
        lost = ", or whose spans were lost" if subject.seen_by_callee() else ""
        said.append(f"named a parent span that never arrived{whose}{lost}{share(unknown)}")
    if tampered := subject.count("tampered"):
        said.append(f"arrived with another body than was sent{share(tampered)}")
    return said


def _misses(subject: Subject, total: int, logged: Activity) -> list[str]:
    """What the proxies prove, as clauses of their own."""
    clauses = []
    sides = (("inbound", "bypass_inbound", subject.callee), ("outbound", "bypass_outbound", subject.caller))
    for side, flag, service in sides:
        missed = subject.count(flag)
        if missed and service:
            others = _lines_around(subject, side, service, logged)
            what = (
                ("did not see it" if total == 1 else "saw none of them")
                if missed == total
                else f"missed {missed:,} of them"
            )
            clauses.append(f"{service}'s proxy, which logged {others:,} other {side} calls around then, {what}")
    return clauses


def _lines_around(subject: Subject, side: str, service: str, logged: Activity) -> int:
    """Lines of the proxy's log from the minute before the first flagged call to the minute after the last."""
    first, last = subject.first // MINUTE_NS - 1, subject.last // MINUTE_NS + 1
    return sum(
        n for (s, name, minute), n in logged.items() if s == side and name == service and first <= minute <= last
    )


def _completeness(subject: Subject, into: list[Row], sampled: dict[tuple[str, str], str]) -> str:
    """What the logs of the two do not show, in sentences; empty when they show all."""
    samples = (sampled.get(("inbound", subject.callee)), sampled.get(("outbound", subject.caller or "")))
    return "; ".join(text for text in (_unjudged(subject.callee, into), *samples) if text)


def _unjudged(callee: str, into: list[Row]) -> str:
    """The share of the callee's calls whose verdict is unknown, and why; empty when there are none."""
    total = sum(r["calls"] for r in into)
    unknown = sum(r["calls"] for r in into if r["verdict"] == UNKNOWN)
    if not unknown:
        return ""
    causes = _causes(into, f"{callee}'s proxy")
    return f"{percent(unknown, total)} of {total:,} calls to {callee} could not be judged by access logs ({causes})"


def percent(part: int, whole: int) -> str:
    """A share that reads 0 % or 100 % only if it is."""
    share = part / whole
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{share:.0%}".replace("%", " %")


def _causes(rows: list[Row], callees_proxy: str) -> str:
    """The three most frequent reasons for unknown verdicts, each with its number of calls."""
    why: Counter[str] = Counter()
    for row in rows:
        for side, whose in (("inbound", callees_proxy), ("outbound", "the caller's proxy")):
            reason = row[f"{side}_reason"]
            if row["verdict"] == UNKNOWN and reason:
                why[f"{whose}: {REASONS[reason]}"] += row["calls"]
    return "; ".join(f"{reason} ({calls:,})" for reason, calls in why.most_common(3))


def _clock(unix_nano: int) -> str:
    moment = datetime.fromtimestamp(unix_nano // NS_PER_S, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

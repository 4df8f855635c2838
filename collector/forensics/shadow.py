"""Shadow traffic: calls that bypassed the mesh, carried no stamp, came from nobody, or were altered on the way.

A finding is about one (caller, callee) and one way past the mesh (`collector.forensics.ways`), caller None where nothing vouches
for one, and unites these reasons:

- `mesh_bypass`: a proxy that must have seen a call did not (`collector.forensics.verdicts`), the caller's, the callee's or both.
- `unstamped`: the callee's middleware looked and found no stamp, and the callee's proxy missed the call too, or the client
  had stamped it, or nothing vouches for a caller. Then not: calls into entry points and health probes. A known caller that
  merely has no middleware is never flagged, nor is a callee whose middleware does not look.
- `unknown_caller`: the call names a parent span that never arrived, although the caller's telemetry is complete around it
  and does not lack a span here and there all the time.
- `forged_identity`: the callee was told by a header who its peer is, and its own proxy missed the call or logged another.
- `dark_traffic`: connections that no call explains (`collector.forensics.dark`).
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
| an identity in a header that no proxy of the callee's vouches for | 0.8 | high |
| missed by the caller's proxy, seen by the callee's | 0.6 | medium |
| passed through by the caller's proxy without a route | 0.6 | medium |
| unstamped, caller unknown | 0.5 | medium; low if the callee's proxy saw all of them |
| unknown caller | 0.4 | medium if a stamp claims one and the callee's proxy did not see all of them, else low |

One call is enough: every proof is about that call, and none is a statistic.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import ibis.expr.types as ir

from collector.forensics.absence import MISSED
from collector.forensics.calls import MARGIN_NS
from collector.forensics.connections import Present
from collector.forensics.dark import Edge, dark_sql, dark_traffic
from collector.forensics.findings import EVIDENCE_LIMIT, Finding, Severity
from collector.forensics.ids import span_id_hex, trace_id_hex
from collector.forensics.log_lines import lines
from collector.forensics.shadow_flags import FLAGS, MINUTE_NS, ShadowParams, summary
from collector.forensics.shadow_words import Activity, Row, Subject, causes, completeness, explain, percent
from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import Query, Window
from collector.forensics.verdicts import BYPASSED, SEEN, UNKNOWN, is_unjudged, without_misses
from collector.forensics.ways import Knowledge, Named, is_opaque, known_workloads, way_of
from collector.forensics.witnesses import present_in

__all__ = ["ShadowParams", "ShadowReport", "examine_shadow", "find_shadow", "percent", "shadow_sql"]

FORGED_REMEDY: Final = (
    "set forwardClientCertDetails to SANITIZE_SET where traffic enters (Istio: gatewayTopology), and trust the header's rightmost "
    "element alone"
)

BYPASS_TECHNIQUES: Final = ("T1562.004",)
"""Impair Defenses: Disable or Modify System Firewall: iptables' redirection is the mesh's."""


def shadow_sql(window: Window, params: ShadowParams | None = None, present: Present | None = None) -> dict[str, str]:
    """The SQL behind the findings: `calls` counts every answered call by verdict, `proxies` the lines of each access log.

    With sockets and flows there are also `sockets` and `flows`: what of them is mesh traffic.
    """
    present = present or Present()
    calls = windowed(window, lambda blank: compiled_once(summary, blank, params or ShadowParams(), present))
    return {"calls": calls, "proxies": _proxies_sql(window), **dark_sql(window, present)}


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
    params = params or ShadowParams()
    present = present_in(query, window)
    known = known_workloads(query, window) if present.any else Knowledge()
    sql = shadow_sql(window, params, present)
    rows = [_without_opaque(row, known) for row in query(sql["calls"]).to_dicts()]
    # An engine hands groups on in any order; the same evidence is to be told in the same words.
    rows.sort(key=lambda row: (row["first"], repr(row)))
    into: dict[str, list[Row]] = {}
    for row in rows:
        into.setdefault(row["callee"], []).append(row)
    subjects = _subjects(rows, known)
    sampled = _samples(rows)
    logged: Activity = {}
    if subjects:
        logged = {(r["side"], r["service"], r["minute"]): r["lines"] for r in query(sql["proxies"]).to_dicts()}
    found = [_finding(subject, into[subject.callee], logged, sampled) for subject in subjects]
    entries = {row["callee"] for row in rows if row["entry"]} | set(params.entry_services)
    return ShadowReport(
        findings=_united(found, dark_traffic(query, sql, known, rows, entries)),
        calls=sum(r["calls"] for r in rows),
        unjudged=sum(r["calls"] for r in rows if is_unjudged(r)),
        why=causes(rows, "the callee's proxy"),
        sampled=tuple(sampled[key] for key in sorted(sampled, key=lambda key: (key[1], key[0]))),
    )


def _subjects(rows: list[Row], known: Knowledge) -> list[Subject]:
    """The flagged rows by (caller, callee, way), in order of their names."""
    flagged: dict[tuple[str, str, Named], list[Row]] = {}
    for row in rows:
        if row["flagged"]:
            key = (row["callee"], row["caller"] or "", way_of(row, known))
            flagged.setdefault(key, []).append(row)
    order = sorted(flagged, key=lambda key: (key[0], key[1], key[2].way))
    return [Subject(caller or None, callee, tuple(flagged[callee, caller, way]), way) for callee, caller, way in order]


def _without_opaque(row: Row, known: Knowledge) -> Row:
    """The row, unflagged for what no log could have shown: an opaque port's calls leave no lines."""
    if not row["flagged"] or row["plaintext"] or not is_opaque(row["destination_port"], known.of(row["callee"])):
        return row
    changed = dict(row)
    for side in ("outbound", "inbound"):
        if row[f"{side}_verdict"] == MISSED and not row[f"{side}_by_connection"]:
            changed |= {f"{side}_verdict": UNKNOWN, f"{side}_reason": "opaque", f"bypass_{side}": False}
    changed["flagged"] = any(changed[name] for name in FLAGS)
    if row["verdict"] == BYPASSED and not _missed_at_all(changed):
        changed["verdict"] = without_misses(row["caller"], changed["outbound_verdict"], changed["inbound_verdict"])
    return changed


def _missed_at_all(row: Row) -> bool:
    return MISSED in {row["outbound_verdict"], row["inbound_verdict"]} or bool(row["passed_through"])


def _united(found: list[Finding], edges: list[Edge]) -> list[Finding]:
    """The findings about calls, each with the connections of the same two that went the same way, and those of the others."""
    by_subject = {(f.caller, f.callee, f.way): f for f in found}
    for edge in edges:
        key = (edge.caller, edge.callee, edge.named.way)
        mine = by_subject.get(key)
        if mine is None:
            by_subject[edge.caller, edge.callee or edge.destination, edge.named.way] = edge.finding()
        else:
            by_subject[key] = replace(
                mine,
                explanation=f"{mine.explanation}; {edge.words()}",
                record_ids=tuple(dict.fromkeys((*mine.record_ids, *edge.record_ids)))[:EVIDENCE_LIMIT],
                first_seen_unix_nano=min(mine.first_seen_unix_nano, edge.first),
                last_seen_unix_nano=max(mine.last_seen_unix_nano, edge.last),
            )
    return list(by_subject.values())


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


def _finding(subject: Subject, into: list[Row], logged: Activity, sampled: dict[tuple[str, str], str]) -> Finding:
    severity, score = _strength(subject)
    trace_ids, span_ids = _evidence(subject.rows)
    kept = ("connection_ids", "outbound_record_ids", "inbound_record_ids")
    records = [str(i) for key in kept for r in subject.rows for i in r[key] or ()]
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
        way=subject.named.way,
        explanation=explain(subject, logged),
        remedy=_remedy(subject),
        trace_ids=trace_ids,
        span_ids=span_ids,
        record_ids=tuple(dict.fromkeys(records))[:EVIDENCE_LIMIT],
        completeness=completeness(subject, into, sampled),
        attack_ids=BYPASS_TECHNIQUES if _missed(subject) else (),
    )


def _missed(subject: Subject) -> int:
    went = ("bypass_outbound", "bypass_inbound", "passed_through")
    return sum(r["calls"] for r in subject.rows if any(r[flag] for flag in went))


def _remedy(subject: Subject) -> str:
    """What closes it: the way's own remedy, else that of the most telling reason; empty where none is known."""
    if subject.named.way or _missed(subject):
        return subject.named.remedy(subject.caller, subject.callee)
    if subject.count("forged_identity"):
        return FORGED_REMEDY
    if subject.count("unstamped"):
        return (
            f"find who called (the traces say from where), give it the middleware or a name of its own, and let an "
            f"AuthorizationPolicy of {subject.callee} admit its callers' principals alone"
        )
    return ""


def _reasons(subject: Subject) -> tuple[str, ...]:
    """Most telling first."""
    present = {
        "mesh_bypass": _missed(subject),
        "tampered": subject.count("tampered"),
        "forged_identity": subject.count("forged_identity"),
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
        (subject.count("forged_identity") > 0, 0.8, "high"),
        (subject.count("bypass_outbound") > 0, 0.6, "medium"),
        (subject.count("passed_through") > 0, 0.6, "medium"),
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

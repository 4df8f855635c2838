"""Rows of `destinations` as findings: what they weigh, their techniques, a sentence with the numbers, and their evidence."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import ibis.expr.types as ir

from collector.forensics.departures import HOUR_NS, flows, settled_exits
from collector.forensics.destinations import destination_of, size
from collector.forensics.findings import EVIDENCE_LIMIT, SEVERITIES, Finding, Severity
from collector.forensics.ids import span_id_hex, trace_id_hex
from collector.forensics.statements import compiled_once, text, windowed
from collector.forensics.tables import Query, Window

SCORES: Final[Mapping[str, float]] = {
    "unlisted": 0.7,
    "dns_tunnel": 0.7,
    "volume": 0.6,
    "metadata_api": 0.5,
    "first_seen": 0.4,
    "strobe": 0.4,
    "long_connection": 0.4,
    "odd_port": 0.2,
    "raw_address": 0.2,
}
"""How much each reason says by itself; a beacon says as much as its score."""

SEVERITY: Final[Mapping[str, Severity]] = {
    "unlisted": "high",
    "dns_tunnel": "high",
    "volume": "high",
    "metadata_api": "medium",
    "first_seen": "low",
    "strobe": "low",
    "long_connection": "low",
    "odd_port": "low",
    "raw_address": "low",
}

_BEACON_STEPS: Final[tuple[tuple[float, Severity], ...]] = ((1.0, "critical"), (0.9, "high"), (0.7, "medium"))


def combined(parts: Iterable[float | str]) -> float:
    """The score of several reasons together, each given by its name or its own score."""
    left = 1.0
    for part in parts:
        left *= 1 - (SCORES[part] if isinstance(part, str) else part)
    return round(1 - left, 3)


def severity_of(known: Severity, reasons: Iterable[str]) -> Severity:
    """The worst of what is known and of these reasons."""
    return min([known, *(SEVERITY[r] for r in reasons)], key=SEVERITIES.index)


def attack_ids(row: Mapping[str, Any], reasons: Iterable[str]) -> list[str]:
    """MITRE ATT&CK: what such traffic may be part of."""
    told, ids = set(reasons), []
    over_dns = "dns_tunnel" in told or 53 in row["ports"]
    if "beacon" in told:
        ids += ["T1071.001" if row["web"] else "T1071.004" if over_dns else "T1071", "T1029"]
    if "unlisted" in told:
        ids.append("T1567" if row["web"] else "T1048")
        if not row["web"] and row["failed"] < row["connections"] and "egress.allow" not in (row["refused_by"] or ""):
            ids.append("T1562.004")  # a control that should have held it back did not
    if "volume" in told:
        ids.append("T1041" if "beacon" in told else "T1567" if row["web"] else "T1048")
    if "dns_tunnel" in told:
        ids += ["T1572", "T1071.004"]
    if told & {"long_connection", "strobe", "first_seen"}:
        ids.append("T1071.001" if row["web"] else "T1071")
    if "odd_port" in told:
        ids.append("T1571")
    if "metadata_api" in told:
        ids.append("T1552.005")
    if set(row["protocols"]) - {"tcp", "udp"}:
        ids.append("T1095")
    return list(dict.fromkeys(ids))


def row_finding(query: Query, row: Mapping[str, Any]) -> Finding:
    """A flagged row as a finding, with up to `EVIDENCE_LIMIT` of its newest calls or flows."""
    reasons: list[str] = row["reasons"]
    beacon = row["beacon"] if "beacon" in reasons else None
    weights = [SCORES[r] for r in reasons if r != "beacon"] + ([] if beacon is None else [beacon["score"]])
    traces, spans, records = _evidence(query, row)
    return Finding(
        kind="egress",
        reasons=tuple(reasons),
        severity=_severity(reasons, beacon, blocked=row["failed"] == row["connections"]),
        score=combined(weights),
        caller=row["source"],
        destination=destination_of(row),
        first_seen_unix_nano=row["first_seen_unix_nano"],
        last_seen_unix_nano=row["last_seen_unix_nano"],
        count=row["connections"],
        explanation=_sentence(row, beacon),
        trace_ids=traces,
        span_ids=spans,
        record_ids=records,
        completeness=""
        if row["witness"] == "spans"
        else "told by network flows alone: which request it was is not known",
        attack_ids=tuple(attack_ids(row, reasons)),
    )


def _severity(reasons: list[str], beacon: Mapping[str, float] | None, *, blocked: bool) -> Severity:
    known: Severity = "low"
    if beacon is not None:
        known = next((severity for step, severity in _BEACON_STEPS if beacon["score"] >= step), "low")
    told = [r for r in reasons if r not in {"beacon", "unlisted"}]
    worst = severity_of(known, told)
    if "unlisted" not in reasons:
        return worst
    listed: Severity = "medium" if blocked else "high"
    worst = min(worst, listed, key=SEVERITIES.index)
    # Unlisted and a beacon: one step above the worse.
    return SEVERITIES[max(0, SEVERITIES.index(worst) - (beacon is not None))]


def _sentence(row: Mapping[str, Any], beacon: Mapping[str, float] | None) -> str:
    refused = f", which no policy allows ({row['refused_by']})," if "unlisted" in row["reasons"] else ""
    count = "once" if row["connections"] == 1 else f"{row['connections']} times"
    verb = "called" if row["witness"] == "spans" else "connected to"
    parts = [f"{row['source']} {verb} {destination_of(row)}{refused} {count}"]
    if beacon is not None:
        parts[0] += f" every {beacon['interval_s']:g} s (beacon score {beacon['score']:.2f})"
    if row["bytes_out"] is not None:
        came = "" if row["bytes_in"] is None else f", {size(row['bytes_in'])} in"
        parts.append(f"{size(row['bytes_out'])} out{came}")
    parts += row["notes"]
    weak = {"raw_address": "no name is known of it", "odd_port": f"port {row['port']} is unusual",
            "metadata_api": "it hands out credentials", "strobe": "a connection a second on average"}  # fmt: skip
    parts += [text for reason, text in weak.items() if reason in row["reasons"]]
    return "; ".join(parts)


def _evidence(query: Query, row: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    newest = row["last_seen_unix_nano"]
    last = Window(max(row["first_seen_unix_nano"], newest - 24 * HOUR_NS), newest + 1)
    if row["witness"] == "flows":
        found = query(
            windowed(
                last,
                lambda blank: compiled_once(_newest_flows, blank),
                destination=row["destination"],
                sources=[row["source"], *row["source_addresses"]],
            )
        )
        return (), (), tuple(str(r) for r in found["record_id"])
    source, host = row["source"], row["destination"]
    found = query(windowed(last, lambda blank: compiled_once(_newest_calls, blank), source=source, host=host))
    traces = tuple(trace_id_hex(t) or "" for t in found["trace_id"])
    return traces, tuple(span_id_hex(s) or "" for s in found["span_id"]), ()


def _newest_flows(window: Window) -> ir.Table:
    table = window.of(flows())
    name, address = table.destination_name.lower(), table.destination_address.lower()
    wanted = table.filter((name == text("destination")) | (address == text("destination")))
    from_it = wanted.filter(wanted.source_address.isin([text("sources")]))
    return from_it.order_by(from_it.start_time_unix_nano.desc()).limit(EVIDENCE_LIMIT).select("record_id")


def _newest_calls(window: Window) -> ir.Table:
    exits = settled_exits(window, 0)
    wanted = exits.filter((exits.service_name == text("source")) & (exits.host == text("host")))
    return wanted.order_by(wanted.start_time_unix_nano.desc()).limit(EVIDENCE_LIMIT).select("trace_id", "span_id")

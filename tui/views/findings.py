"""Findings as rows, and one finding as a document."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from collector.forensics.findings import Finding
from tui.columns import Cell, Column, TableRows, table
from tui.document import Block
from tui.line import Line, Tone, plain
from tui.snapshots import Findings, Health
from tui.text import age, ago, number, plural, utc

SEVERITY_GLYPHS: Final[dict[str, str]] = {"critical": "◆", "high": "▲", "medium": "●", "low": "○"}
SEVERITY_TONES: Final[dict[str, Tone]] = {"critical": "critical", "high": "high", "medium": "medium", "low": "low"}

COLUMNS: Final = (
    Column("", 1),
    Column("SEVERITY", 10),
    Column("KIND", 7, rank=1),
    Column("SUBJECT", 20, grow=3, most=44),
    Column("CALLS", 7, right=True, rank=2),
    Column("LAST", 9, right=True, rank=3),
    Column("WHAT", 34, grow=6, rank=4),
)

NEW_MARK: Final = "✦"


def subject(finding: Finding) -> str:
    """Who to whom: `caller → callee operation`, or `service → destination`; `?` where nothing vouches for a caller."""
    target = finding.callee or finding.destination or "?"
    return f"{finding.caller or '?'} → {target}{f' {finding.operation}' if finding.operation else ''}"


def rows(items: Sequence[Finding], new: AbstractSet[str], now_unix_nano: int) -> TableRows[Finding]:
    """The list; `new` are ids that arrived since the workbench opened and were not looked at yet."""

    def cells(finding: Finding) -> Sequence[Cell]:
        tone = SEVERITY_TONES.get(finding.severity, "plain")
        return (
            Cell(NEW_MARK if finding.finding_id in new else "", "new"),
            Cell(f"{SEVERITY_GLYPHS.get(finding.severity, ' ')} {finding.severity}", tone),
            Cell(finding.kind),
            Cell(subject(finding), "strong"),
            Cell(number(finding.count)),
            Cell(ago(finding.last_seen_unix_nano, now_unix_nano), "dim"),
            Cell(finding.explanation, "dim"),
        )

    return table(COLUMNS, items, lambda f: f.finding_id, cells)


def matches(finding: Finding, needle: str) -> bool:
    """Whether every word of `needle` is somewhere in what the list and the detail say."""
    haystack = "\n".join(
        (
            finding.severity,
            finding.kind,
            subject(finding),
            finding.explanation,
            finding.way.replace("_", " "),
            finding.remedy,
            *finding.reasons,
            *finding.attack_ids,
        )
    ).casefold()
    return all(word in haystack for word in needle.casefold().split())


def detail(finding: Finding, now_unix_nano: int) -> list[Block]:
    """Why it is a finding, where it shows, what proves it, and what could not be seen."""
    tone = SEVERITY_TONES.get(finding.severity, "plain")
    head = f"{SEVERITY_GLYPHS.get(finding.severity, ' ')} {finding.severity}  {finding.kind}  score {finding.score:.2f}"
    last = f"{utc(finding.last_seen_unix_nano, millis=False)} ({ago(finding.last_seen_unix_nano, now_unix_nano)})"
    return [
        Block("", head, tone),
        Block("", subject(finding), "strong"),
        Block("", finding.explanation),
        Block("", ""),
        Block("why", ", ".join(finding.reasons) or "no reason given"),
        Block("calls", number(finding.count)),
        Block("first", utc(finding.first_seen_unix_nano, millis=False)),
        Block("last", last),
        *([Block("way", finding.way.replace("_", " "))] if finding.way else []),
        *([Block("to close", finding.remedy)] if finding.remedy else []),
        *_listed("affected", [edge.replace(" -> ", " → ") for edge in finding.affected]),
        *([Block("ATT&CK", ", ".join(finding.attack_ids))] if finding.attack_ids else []),
        Block("not seen", finding.completeness, "medium")
        if finding.completeness
        else Block("not seen", "nothing known to be missing", "dim"),
        *_evidence(finding),
    ]


def _listed(label: str, values: Sequence[str]) -> list[Block]:
    return [Block(label if i == 0 else " ", value) for i, value in enumerate(values)]


def _evidence(finding: Finding) -> list[Block]:
    heading = Block("", f"evidence: {plural(len(finding.trace_ids), 'trace')}, enter opens", "header")
    logs = f"and {plural(len(finding.record_ids), 'access-log line')}" if finding.record_ids else ""
    traces = [Block("", f"↗ {trace_id}", "accent", key=trace_id) for trace_id in finding.trace_ids]
    return [Block("", ""), heading, *traces, *([Block("", logs, "dim")] if logs else [])]


def nothing(health: Health | None, findings: Findings | None, needle: str, now_unix_nano: int) -> tuple[Line, ...]:
    """Why the list is empty, and whether that is good."""
    if findings is None:
        of = f" of {plural(health.span_count, 'span')}" if health is not None else ""
        return (plain(f"Reading the evidence{of}…", "dim"),)
    if findings.items:
        return (plain(f"None of {plural(len(findings.items), 'finding')} matches “{needle}”. Esc clears the filter."),)
    if health is None or not health.span_count:
        return (
            plain("No findings, and no evidence either: not one span has arrived.", "medium"),
            plain("Point your services' OTLP exporters at the collector.", "dim"),
        )
    newest = health.newest_unix_nano
    old = f", the newest {age(now_unix_nano - newest)} old" if newest is not None else ""
    lines = [
        plain(
            f"No findings in {plural(health.span_count, 'span')} of {plural(health.service_count, 'service')}{old}.",
            "good",
        )
    ]
    if gaps := (*health.incomplete, *findings.notes):
        lines += [plain(""), plain("What could not be seen:", "medium"), *(plain(f"· {gap}") for gap in gaps)]
    else:
        lines += [plain("Every witness that is known of was there.", "dim")]
    return tuple(lines)


def essentials(finding: Finding) -> str:
    """What to paste into an incident channel."""
    first, last = (utc(t, millis=False) for t in (finding.first_seen_unix_nano, finding.last_seen_unix_nano))
    lines = [
        f"[{finding.severity}] {finding.kind}: {subject(finding)}",
        finding.explanation,
        *([f"to close it: {finding.remedy}"] if finding.remedy else []),
        f"first {first}, last {last}, {plural(finding.count, 'call')}, finding {finding.finding_id}",
        *([f"traces: {' '.join(finding.trace_ids[:3])}"] if finding.trace_ids else []),
    ]
    return "\n".join(lines)

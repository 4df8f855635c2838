"""What a finding is: the one schema that every detector returns, every screen shows and every format prints."""

import hashlib
from dataclasses import dataclass, field, fields
from typing import Final, Literal

import polars as pl

Kind = Literal["shadow", "latency", "egress"]
Severity = Literal["critical", "high", "medium", "low"]

KINDS: Final[tuple[Kind, ...]] = ("shadow", "latency", "egress")
SEVERITIES: Final[tuple[Severity, ...]] = ("critical", "high", "medium", "low")

SCHEMA: Final[dict[str, pl.DataType]] = {
    "finding_id": pl.String(),
    "kind": pl.String(),
    "reasons": pl.List(pl.String()),
    "severity": pl.String(),
    "score": pl.Float64(),
    "caller": pl.String(),
    "callee": pl.String(),
    "operation": pl.String(),
    "destination": pl.String(),
    "way": pl.String(),
    "first_seen_unix_nano": pl.Int64(),
    "last_seen_unix_nano": pl.Int64(),
    "count": pl.Int64(),
    "explanation": pl.String(),
    "remedy": pl.String(),
    "affected": pl.List(pl.String()),
    "trace_ids": pl.List(pl.String()),
    "span_ids": pl.List(pl.String()),
    "record_ids": pl.List(pl.String()),
    "completeness": pl.String(),
    "attack_ids": pl.List(pl.String()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A verdict or anomaly worth a person's time, with its evidence.

    Attributes:
        kind: Which question found it.
        reasons: What was found, most telling first: `unstamped`, `unknown_caller`, `mesh_bypass`; `unlisted`, `beacon`;
            `latency_shift`, with `queue_wait` or `common_cause`.
        severity: For a person's order of work.
        score: 0 to 1, the detector's own strength of evidence.
        caller: service.name of the caller; None where nothing vouches for one.
        callee: service.name of the callee; None for egress.
        operation: The callee's operation, where the finding is about one.
        destination: host:port that an egress call reached.
        way: How the calls went past the mesh (a key of `ways.WAYS`); empty where it is not known. Part of the id: each way is
            closed by another change.
        first_seen_unix_nano: Start of the first call in it.
        last_seen_unix_nano: Start of the last call in it.
        count: Calls in it.
        explanation: One sentence with the numbers.
        remedy: One sentence: the annotation, policy or setting that closes it; empty where none is known.
        affected: Edges that show the symptom (`gateway -> checkout POST /buy`), nearest the cause first.
        trace_ids: Up to `EVIDENCE_LIMIT` traces to open, lowercase hex.
        span_ids: Spans to look at in them, lowercase hex, one a trace in the same order.
        record_ids: Rows of `proxy_records`, decimal.
        completeness: What could not be seen; empty when nothing was missing.
        attack_ids: MITRE ATT&CK techniques.
    """

    kind: Kind
    reasons: tuple[str, ...]
    severity: Severity
    score: float
    first_seen_unix_nano: int
    last_seen_unix_nano: int
    count: int
    explanation: str
    caller: str | None = None
    callee: str | None = None
    operation: str | None = None
    destination: str | None = None
    way: str = ""
    remedy: str = ""
    affected: tuple[str, ...] = ()
    trace_ids: tuple[str, ...] = ()
    span_ids: tuple[str, ...] = ()
    record_ids: tuple[str, ...] = ()
    completeness: str = ""
    attack_ids: tuple[str, ...] = ()
    finding_id: str = field(init=False)

    def __post_init__(self) -> None:
        named = (self.kind, self.caller, self.callee, self.operation, self.destination)
        # Without a way, the id is the one that findings had before there were ways: cases and webhooks know it.
        subject = "\0".join(part or "" for part in (*named, *([self.way] if self.way else ())))
        object.__setattr__(self, "finding_id", hashlib.sha256(subject.encode()).hexdigest()[:12])


EVIDENCE_LIMIT: Final = 20
"""Traces a finding carries at most: enough to look at, small enough to print."""


def to_frame(findings: list[Finding]) -> pl.DataFrame:
    """The findings as a frame with columns `SCHEMA`, most severe first, then by score, then by age."""
    rows = [{f.name: _plain(getattr(finding, f.name)) for f in fields(Finding)} for finding in findings]
    frame = pl.DataFrame(rows, schema=SCHEMA)
    rank = pl.col("severity").replace_strict({s: i for i, s in enumerate(SEVERITIES)}, return_dtype=pl.Int64)
    return frame.sort(rank, -pl.col("score"), "first_seen_unix_nano", "finding_id")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value

"""What a watch knows between two rounds, as values: nothing here reads a clock, a file or a socket."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from collector.forensics.tables import NS_PER_S

Row = Mapping[str, Any]
"""A finding: the columns of `collector.forensics.findings.SCHEMA`, as plain values."""

Phase = Literal["pending", "open", "resolved"]
What = Literal["opened", "updated", "resolved"]

MINUTE_NS: Final = 60 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Patience:
    """When a watch believes what it sees.

    Attributes:
        resolve_after_ns: A finding is resolved after so much observation that would have shown it again; whole minutes.
        confirm_ns: Statistics (latency, rhythm) must hold in every round for so long before they are opened; proofs at once.
        forget_after_ns: An open finding that could not be observed for so long is closed as unknown, a resolved one is forgotten.
        blind_after_ns: After so long without an answer from the source, that itself is a finding.
        most: Findings that are kept at once; what is beyond is counted and told.
    """

    resolve_after_ns: int = 5 * MINUTE_NS
    confirm_ns: int = 10 * NS_PER_S
    forget_after_ns: int = 7 * 24 * 60 * MINUTE_NS
    blind_after_ns: int = MINUTE_NS
    most: int = 5_000


@dataclass(frozen=True, slots=True)
class Need:
    """A witness without whose reports the absence of a finding proves nothing.

    Attributes:
        witness: spans, logs, flows, sockets; `any`: whatever there is.
        service: Whose; `*` where the witness is not one service's.
        while_calling: Needed only in minutes in which the service's spans arrive: who calls nobody has no lines to miss.
    """

    witness: str
    service: str
    while_calling: bool = False


@dataclass(frozen=True, slots=True)
class Coverage:
    """Who reported when: minutes of the Unix epoch by (witness, service), as far as they are complete.

    Attributes:
        minutes: By (witness, service).
        until_minute: The first minute that may still lack something.
    """

    minutes: Mapping[tuple[str, str], frozenset[int]] = field(default_factory=lambda: MappingProxyType({}))
    until_minute: int = 0

    def reported(self, witness: str, service: str, first: int, last: int) -> bool:
        """Whether this witness reported in any of these minutes, the last included."""
        return any(first <= minute <= last for minute in self.minutes.get((witness, service), ()))

    def holds(self, need: Need, minute: int) -> bool:
        """Whether the need is met in that minute."""
        if minute in self.minutes.get((need.witness, need.service), ()):
            return True
        return need.while_calling and minute not in self.minutes.get(("spans", need.service), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A finding's life. An episode lasts from its opening to its resolution; within one, things only get worse.

    Attributes:
        row: The finding as it was last reported.
        phase: Pending: seen, not yet believed.
        sequence: Events so far in this episode.
        since_unix_nano: When the watch opened it, or first saw it; it names the episode.
        began_unix_nano: When the episode began, by evidence: the earliest of its calls that were seen.
        doubted_since_unix_nano: Pending, or resolved and seen again: since when it is in every round; else None.
        last_seen_unix_nano: Of its latest call, by evidence; never in the future.
        reported_unix_nano: When a round last had something new of it.
        severity: The worst of this episode.
        reasons: All of this episode, in the order in which they came.
        count: Most calls that one window had.
        needs: What must report for its absence to count.
        covered: Minutes of such observation since its latest call.
        covered_until_minute: Up to where they were counted.
        settled_unix_nano: When it was resolved; else 0.
        told: Whether its opening went out.
        withheld: Whether something was withheld by a silence.
    """

    row: Row
    phase: Phase
    sequence: int = 0
    since_unix_nano: int
    began_unix_nano: int
    doubted_since_unix_nano: int | None = None
    last_seen_unix_nano: int
    reported_unix_nano: int
    severity: str
    reasons: tuple[str, ...]
    count: int
    needs: tuple[Need, ...] = ()
    covered: int = 0
    covered_until_minute: int = 0
    settled_unix_nano: int = 0
    told: bool = False
    withheld: bool = False

    @property
    def finding_id(self) -> str:
        """The finding's id, the same in every episode."""
        return str(self.row["finding_id"])

    @property
    def event_id(self) -> str:
        """Of its latest event."""
        return f"{self.finding_id}.{self.since_unix_nano // NS_PER_S}.{self.sequence}"

    @property
    def told_row(self) -> Row:
        """The finding, with what the episode made of it."""
        return {**self.row, "severity": self.severity, "reasons": list(self.reasons), "count": self.count}


@dataclass(frozen=True, slots=True)
class Event:
    """One thing to tell. Its id is the same however often it is sent.

    Attributes:
        event_id: finding id, second of the opening and number: `4f1d2c3b4a59.1763859600.2`.
        what: What happened.
        at_unix_nano: When the watch decided so.
        why: In words, what changed; empty for an opening.
        row: The finding, with the episode's severity, reasons and count.
        began_unix_nano: When the episode began, by evidence: the first call.
        former_severity: Where the severity rose: what it was; else empty.
        acknowledged: Whether somebody has taken it.
        quiet: Whether only the record (stdout) gets it: silenced, or acknowledged and no worse.
    """

    event_id: str
    what: What
    at_unix_nano: int
    why: str
    row: Row
    began_unix_nano: int
    former_severity: str = ""
    acknowledged: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Marks:
    """What people said about findings, by finding id.

    Attributes:
        acknowledged: When; it holds for the episode that was open then.
        silenced: Until when.
    """

    acknowledged: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    silenced: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def has_ack(self, record: Record) -> bool:
        """Whether this episode is acknowledged."""
        return self.acknowledged.get(record.finding_id, -1) >= record.since_unix_nano

    def is_silenced(self, finding_id: str, now_unix_nano: int) -> bool:
        """Whether nothing is to be told of it now."""
        return self.silenced.get(finding_id, 0) > now_unix_nano


@dataclass(frozen=True, slots=True)
class State:
    """Everything that a restart must not lose.

    Attributes:
        records: By finding id.
        looked_until_unix_nano: When the last round began in which every detector looked; 0 before the first.
        blind_since_unix_nano: Since when the source does not answer; 0: it does.
        beyond: Findings of the last round that were too many to keep.
    """

    records: Mapping[str, Record] = field(default_factory=lambda: MappingProxyType({}))
    looked_until_unix_nano: int = 0
    blind_since_unix_nano: int = 0
    beyond: int = 0

    @property
    def open(self) -> list[Record]:
        """What is open, the oldest first."""
        return sorted((r for r in self.records.values() if r.phase == "open"), key=lambda r: r.since_unix_nano)

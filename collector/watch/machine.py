"""What a round of detection changes: opens, updates and resolves findings. Pure: state, findings, coverage and the time in.

| from | to | when | event |
|---|---|---|---|
| nothing | open | a proof (shadow, unlisted egress) is in one round | opened |
| nothing | pending, open | statistics (latency, rhythm, volume) are in every round for `confirm_ns` | opened |
| open | open | the severity rises, a reason is new, the count reaches another power of ten, a silence ends | updated |
| open | resolved | every witness that could have shown it again reported for `resolve_after_ns` since its latest call, and none did | resolved |
| open | resolved | nobody could have seen it for `forget_after_ns` | resolved, as unknown |
| resolved | open | there is a call later than the latest one before (of statistics: a minute later, and confirmed) | opened, the next episode |

What makes it calm: within an episode severity and reasons only grow, whatever slides out of the window; the minutes that count
towards a resolution are those in which the subject's own witnesses reported, so that silence of the witnesses is no
resolution; and a call that is known already opens nothing twice.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from collector.forensics.findings import SEVERITIES
from collector.watch.model import MINUTE_NS, Coverage, Event, Marks, Need, Patience, Record, Row, State, What

STATISTICAL_REASONS: Final = frozenset({"beacon", "volume", "strobe"})
"""Reasons that a later look may take back; whatever is found for another reason too is a proof."""

BLIND_ID: Final = "watch-blind"


def advance(
    state: State,
    findings: Sequence[Row],
    coverage: Coverage,
    now_unix_nano: int,
    *,
    kinds: Container[str] | None = None,
    marks: Marks | None = None,
    patience: Patience | None = None,
) -> tuple[State, list[Event]]:
    """The state after a round that reported these findings, and what is to be told, in this order.

    `kinds` are those that were looked for: nothing is concluded about others. None: all.
    """
    step = _Step(now_unix_nano, coverage, marks or Marks(), patience or Patience())
    records = dict(state.records)
    if BLIND_ID in records:
        step.sighted(records)
    reported: set[str] = set()
    beyond = 0
    for row in findings:
        key = str(row["finding_id"])
        if key in reported:
            continue
        if key not in records and len(records) >= step.patience.most:
            beyond += 1
            continue
        reported.add(key)
        records[key] = step.seen(records.get(key), row)
    looked_at = [key for key, record in records.items() if kinds is None or record.row["kind"] in kinds]
    for key in looked_at:
        if key not in reported:
            step.unseen(records, key)
    for key in looked_at:
        if key in records and records[key].phase == "open":
            records[key] = step.observed(records[key])
    return State(records, state.looked_until_unix_nano, 0, beyond), step.events


def advance_blind(
    state: State,
    why: str,
    now_unix_nano: int,
    *,
    marks: Marks | None = None,
    patience: Patience | None = None,
) -> tuple[State, list[Event]]:
    """The state after a round that got no answer: nothing is resolved, and blindness itself is told when it lasts."""
    step = _Step(now_unix_nano, Coverage(), marks or Marks(), patience or Patience())
    since = state.blind_since_unix_nano or now_unix_nano
    records = dict(state.records)
    if now_unix_nano - since >= step.patience.blind_after_ns and BLIND_ID not in records:
        records[BLIND_ID] = step.blinded(why, since)
    return replace(state, records=records, blind_since_unix_nano=since), step.events


def is_statistical(row: Row) -> bool:
    """Whether the finding rests on statistics alone, which a later look may take back."""
    return row["kind"] == "latency" or set(row["reasons"]) <= STATISTICAL_REASONS


def needs_of(row: Row, coverage: Coverage) -> tuple[Need, ...]:
    """Who must report for this finding's absence to count: those of its subject's witnesses that reported while it was there."""
    first = int(row["first_seen_unix_nano"]) // MINUTE_NS - 1
    last = int(row["last_seen_unix_nano"]) // MINUTE_NS + 1

    def had(witness: str, service: str | None) -> bool:
        return service is not None and coverage.reported(witness, service, first, last)

    caller, callee = row["caller"], row["callee"]
    ends = (caller, callee) if row["kind"] == "egress" else (callee, caller)
    telling = next((Need("spans", end) for end in ends if had("spans", end)), None)
    if telling is None:
        unowned = (Need(witness, "*") for witness in ("flows", "sockets") if had(witness, "*"))
        return (next(unowned, Need("any", "*")),)
    needs = [telling]
    if row["kind"] == "shadow":
        needs += [Need("logs", end, while_calling=end == caller) for end in ends if had("logs", end)]
    return tuple(needs)


@dataclass(slots=True)
class _Step:
    """One round: what it was given, and the events so far."""

    now: int
    coverage: Coverage
    marks: Marks
    patience: Patience
    events: list[Event] = field(default_factory=list)

    def seen(self, record: Record | None, row: Row) -> Record:
        """The record of a finding that this round reported."""
        if record is None or record.phase == "pending":
            return self._doubted(record, row)
        if record.phase == "open":
            return self._again(record, row)
        margin = MINUTE_NS if is_statistical(row) else 0
        if self._latest(row) <= record.last_seen_unix_nano + margin:
            return replace(record, doubted_since_unix_nano=None)
        return self._doubted(record, row)

    def unseen(self, records: dict[str, Record], key: str) -> None:
        """What becomes of a record that this round did not report."""
        record = records[key]
        if record.phase == "pending" or self._is_forgotten(record):
            del records[key]
        elif record.doubted_since_unix_nano is not None:
            records[key] = replace(record, doubted_since_unix_nano=None)

    def observed(self, record: Record) -> Record:
        """An open record with the minutes that were observed since, resolved if they are enough."""
        if record.withheld and not self.marks.is_silenced(record.finding_id, self.now):
            record = self._tell(replace(record, withheld=False), "updated", "a silence ended")
        if record.phase != "open" or record.finding_id == BLIND_ID:
            return record
        until = self.coverage.until_minute
        minutes = range(record.covered_until_minute, until)
        # Whoever sleeps for a day has a thousand minutes to look at, and coverage of the window's alone.
        covered = sum(all(self.coverage.holds(need, minute) for need in record.needs) for minute in minutes[-1500:])
        record = replace(
            record, covered=record.covered + covered, covered_until_minute=max(until, record.covered_until_minute)
        )
        if record.covered * MINUTE_NS >= self.patience.resolve_after_ns:
            return self._resolved(record, f"not seen in {record.covered} minutes in which it would have been")
        if self.now - record.reported_unix_nano >= self.patience.forget_after_ns:
            return self._resolved(record, "unknown: nobody who could have seen it has reported since")
        return record

    def blinded(self, why: str, since: int) -> Record:
        """The record that says that this watch sees nothing."""
        row = blind_row(why, since, self.now)
        record = Record(
            row=row, phase="open", since_unix_nano=self.now, began_unix_nano=since, last_seen_unix_nano=self.now,
            reported_unix_nano=self.now, severity=str(row["severity"]), reasons=("blind",), count=1,
        )  # fmt: skip
        return self._tell(record, "opened", "")

    def sighted(self, records: dict[str, Record]) -> None:
        """The source answers again."""
        self._resolved(records.pop(BLIND_ID), "the source answers again")

    def _doubted(self, record: Record | None, row: Row) -> Record:
        """First seen, or seen again after its resolution: opened if it is a proof or has held for long enough."""
        since = self.now if record is None else record.doubted_since_unix_nano
        since = self.now if since is None else since
        if is_statistical(row) and self.now - since < self.patience.confirm_ns:
            if record is not None and record.phase == "resolved":
                return replace(record, doubted_since_unix_nano=since)
            return replace(self._fresh(row), phase="pending", doubted_since_unix_nano=since)
        return self._tell(self._fresh(row), "opened", "")

    def _fresh(self, row: Row) -> Record:
        latest = self._latest(row)
        return Record(
            row=row,
            phase="open",
            since_unix_nano=self.now,
            began_unix_nano=min(int(row["first_seen_unix_nano"]), self.now),
            last_seen_unix_nano=latest,
            reported_unix_nano=self.now,
            severity=str(row["severity"]),
            reasons=tuple(row["reasons"]),
            count=int(row["count"]),
            needs=needs_of(row, self.coverage),
            # Whatever was over before the watch came is open for as long as anything else: people must get to see it.
            covered_until_minute=self.now // MINUTE_NS + 1,
        )

    def _again(self, record: Record, row: Row) -> Record:
        """An open record that was reported again; an update if it got worse."""
        latest = self._latest(row)
        worse = _worse(record.severity, str(row["severity"]))
        new = [reason for reason in row["reasons"] if reason not in record.reasons]
        changes = [f"severity {record.severity} → {worse}"] if worse != record.severity else []
        changes += [f"also {', '.join(new)}"] if new else []
        if _magnitude(int(row["count"])) > _magnitude(record.count):
            changes.append(f"{record.count:,} → {row['count']:,} calls")
        former = record.severity if worse != record.severity else ""
        moved = latest > record.last_seen_unix_nano
        record = replace(
            record,
            row=row,
            severity=worse,
            reasons=(*record.reasons, *new),
            count=max(record.count, int(row["count"])),
            began_unix_nano=min(record.began_unix_nano, int(row["first_seen_unix_nano"])),
            reported_unix_nano=self.now if moved else record.reported_unix_nano,
        )
        if moved:
            record = replace(
                record,
                last_seen_unix_nano=latest,
                needs=needs_of(row, self.coverage),
                covered=0,
                covered_until_minute=max(latest // MINUTE_NS + 1, record.since_unix_nano // MINUTE_NS + 1),
            )
        return self._tell(record, "updated", "; ".join(changes), former) if changes else record

    def _resolved(self, record: Record, why: str) -> Record:
        record = replace(record, phase="resolved", settled_unix_nano=self.now)
        return self._tell(record, "resolved", why)

    def _tell(self, record: Record, what: What, why: str, former_severity: str = "") -> Record:
        """The record after its event was added; withheld where a silence or an acknowledgement says so."""
        silenced = self.marks.is_silenced(record.finding_id, self.now)
        acknowledged = self.marks.has_ack(record)
        # Whoever was told that it began is told that it is over; and what gets worse is news even if somebody has it.
        quiet = (
            not record.told
            if what == "resolved"
            else silenced or (acknowledged and what == "updated" and not former_severity)
        )
        record = replace(
            record,
            sequence=record.sequence + 1,
            told=record.told or (not quiet and what != "resolved"),
            withheld=record.withheld or (silenced and what != "resolved"),
        )
        self.events.append(
            Event(
                event_id=record.event_id,
                what=what,
                at_unix_nano=self.now,
                why=why,
                row=record.told_row,
                began_unix_nano=record.began_unix_nano,
                former_severity=former_severity,
                acknowledged=acknowledged,
                quiet=quiet,
            )
        )
        return record

    def _latest(self, row: Row) -> int:
        """Of the finding's calls; a clock that runs ahead must not keep it open."""
        return min(int(row["last_seen_unix_nano"]), self.now)

    def _is_forgotten(self, record: Record) -> bool:
        return record.phase == "resolved" and self.now - record.settled_unix_nano >= self.patience.forget_after_ns


def standing(state: State, marks: Marks, now_unix_nano: int) -> list[Event]:
    """What is open and was told, as events to be told again to whoever forgets: Alertmanager."""
    return [
        Event(
            event_id=record.event_id,
            what="updated",
            at_unix_nano=now_unix_nano,
            why="",
            row=record.told_row,
            began_unix_nano=record.began_unix_nano,
            acknowledged=marks.has_ack(record),
        )
        for record in state.open
        if record.told
    ]


def blind_row(why: str, since: int, now: int) -> Mapping[str, object]:
    """A finding about the watch itself: the source does not answer."""
    return {
        "finding_id": BLIND_ID, "kind": "watch", "reasons": ["blind"], "severity": "high", "score": 1.0,
        "caller": None, "callee": None, "operation": None, "destination": None,
        "first_seen_unix_nano": since, "last_seen_unix_nano": now, "count": 1,
        "explanation": f"nothing is watched for {(now - since) // 1_000_000_000} s: {why}",
        "affected": [], "trace_ids": [], "span_ids": [], "record_ids": [], "completeness": "", "attack_ids": [],
    }  # fmt: skip


def _worse(one: str, other: str) -> str:
    return min((one, other), key=_rank)


def _rank(severity: str) -> int:
    """Its place in the order of work; what is not known comes last."""
    order: Iterable[str] = SEVERITIES
    return next((i for i, name in enumerate(order) if name == severity), len(SEVERITIES))


def _magnitude(count: int) -> int:
    return len(str(max(count, 0)))

"""What a finding about shadow traffic says: sentences with numbers, out of rows of `shadow_flags.summary`."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from collector.forensics.shadow_flags import MINUTE_NS
from collector.forensics.tables import NS_PER_S
from collector.forensics.verdicts import REASONS, SEEN, is_unjudged
from collector.forensics.ways import Named

Row = dict[str, Any]
Activity = dict[tuple[str, str, int], int]
"""Lines by (side, service, minute)."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The flagged calls of one (caller, callee) that went one way, as rows of `summary`."""

    caller: str | None
    callee: str
    rows: tuple[Row, ...]
    named: Named

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


def explain(subject: Subject, logged: Activity) -> str:
    """One sentence: how many calls, what they lack, which proxies missed them among how many others, how, and since when."""
    total = sum(r["calls"] for r in subject.rows)
    origin = f" from {subject.caller}" if subject.caller else ""
    said, missed = _traits(subject, total), _misses(subject, total, logged)
    calls = f"{total:,} call{'' if total == 1 else 's'}{origin} to {subject.callee}"
    text = f"{calls} {' and '.join(said)}" if said else f"{calls} bypassed the mesh"
    text += "".join(f"{', and' if said or i else ':'} {clause}" for i, clause in enumerate(missed))
    if how := subject.named.how(subject.caller, subject.callee):
        text += f"; {how}"
    return f"{text}; {'it began' if total == 1 else 'the first'} at {clock(subject.first)}"


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
    if forged := subject.count("forged_identity"):
        said.append(f"brought an identity that no proxy of the callee's vouches for{share(forged)}")
    return said


def _misses(subject: Subject, total: int, logged: Activity) -> list[str]:
    """What the proxies prove, as clauses of their own."""
    clauses = []
    sides = (("inbound", "bypass_inbound", subject.callee), ("outbound", "bypass_outbound", subject.caller))
    for side, flag, service in sides:
        connected = _by_connection(subject, side)
        if connected and service:
            what = "its connection" if total == 1 else f"the connections of {connected:,} of them"
            clauses.append(f"{what} went past {service}'s proxy, which had no part in {'it' if total == 1 else 'them'}")
        missed = subject.count(flag) - connected - (_bare(subject) if side == "outbound" else 0)
        if missed and service:
            others = _lines_around(subject, side, service, logged)
            what = (
                ("did not see it" if total == 1 else "saw none of them")
                if missed == total
                else f"missed {missed:,} of them"
            )
            clauses.append(f"{service}'s proxy, which logged {others:,} other {side} calls around then, {what}")
    return clauses


def _by_connection(subject: Subject, side: str) -> int:
    """How many calls a socket or a flow proves to have missed the proxy of this side."""
    return sum(r["calls"] for r in subject.rows if r[f"{side}_by_connection"])


def _bare(subject: Subject) -> int:
    """How many calls came in plaintext, or from a pod without a sidecar: that is no line's absence."""
    bare = subject.named.way == "no_sidecar"
    told = (r for r in subject.rows if r["bypass_outbound"] and not r["outbound_by_connection"])
    return sum(r["calls"] for r in told if r["plaintext"] or bare)


def _lines_around(subject: Subject, side: str, service: str, logged: Activity) -> int:
    """Lines of the proxy's log from the minute before the first flagged call to the minute after the last."""
    first, last = subject.first // MINUTE_NS - 1, subject.last // MINUTE_NS + 1
    return sum(
        n for (s, name, minute), n in logged.items() if s == side and name == service and first <= minute <= last
    )


def completeness(subject: Subject, into: list[Row], sampled: dict[tuple[str, str], str]) -> str:
    """What the logs of the two do not show, in sentences; empty when they show all."""
    samples = (sampled.get(("inbound", subject.callee)), sampled.get(("outbound", subject.caller or "")))
    return "; ".join(text for text in (_unjudged(subject.callee, into), *samples) if text)


def _unjudged(callee: str, into: list[Row]) -> str:
    """The share of the callee's calls whose verdict is unknown, and why; empty when there are none."""
    total = sum(r["calls"] for r in into)
    unknown = sum(r["calls"] for r in into if is_unjudged(r))
    if not unknown:
        return ""
    said = causes(into, f"{callee}'s proxy")
    return f"{percent(unknown, total)} of {total:,} calls to {callee} could not be judged by access logs ({said})"


def percent(part: int, whole: int) -> str:
    """A share that reads 0 % or 100 % only if it is."""
    share = part / whole
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{share:.0%}".replace("%", " %")


def causes(rows: list[Row], callees_proxy: str) -> str:
    """The three most frequent reasons for unknown verdicts, each with its number of calls."""
    why: Counter[str] = Counter()
    for row in rows:
        for side, whose in (("inbound", callees_proxy), ("outbound", "the caller's proxy")):
            reason = row[f"{side}_reason"]
            if is_unjudged(row) and reason:
                why[f"{whose}: {REASONS[reason]}"] += row["calls"]
    # The rows come in any order: of two that are as frequent, the same is always told.
    most = sorted(why.items(), key=lambda item: (-item[1], item[0]))[:3]
    return "; ".join(f"{reason} ({calls:,})" for reason, calls in most)


def clock(unix_nano: int) -> str:
    """RFC 3339 to the second, UTC."""
    moment = datetime.fromtimestamp(unix_nano // NS_PER_S, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

"""Candidate causes of an incident, best first: what each unit adds to the time of the requests, and how many it breaks.

Pure. A unit is a service, a replica of one, or an operation. Its score has two sides, and the larger part of either is said first:

- *time*: the excess of its own times, of the hops for which it is blamed, of its queues and of its additional calls, as a part of all
  time of the incident (and of the time of the entries that reach it: a service that few requests need is no less broken). It is weighted by
  how much its times rose: at `UNEVEN_RATIO` by a half, because a doubling comes with load and deployments too.
- *troubles*: the part of the entries in which something fails, is not answered or stops early because of it, beyond the baseline.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from collector.forensics.anatomy import Body, Limb
from collector.forensics.attribution import UNEVEN_RATIO
from collector.forensics.causes import milliseconds
from collector.forensics.rises import (
    Blame,
    MoreCalls,
    Rise,
    Unit,
    UnitOf,
    blame_hops,
    common_factor,
    more_calls,
    own_and_hops,
    queues,
)
from collector.forensics.troubles import TroubleRise, trouble_rises

By = Literal["service", "pod", "operation"]
Signal = Literal["own", "hops", "queues", "calls", "errors", "unanswered", "stopped", "common"]
SIGNALS: Final[tuple[Signal, ...]] = ("own", "hops", "queues", "calls", "errors", "unanswered", "stopped", "common")
"""What a ranking looks at; "common" is the correction for what slowed everywhere."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate cause.

    Attributes:
        unit: Service; or service and pod, or service and operation.
        score: 0 to 1, for the order.
        share: Its part of all damage that any unit is blamed for, 0 to 1.
        reason: A sentence with the numbers.
    """

    unit: Unit
    score: float
    share: float
    reason: str


@dataclass(slots=True)
class _File:
    """What speaks against one unit."""

    rises: list[Rise] = field(default_factory=list)
    blame: list[Rise] = field(default_factory=list)
    calls: list[MoreCalls] = field(default_factory=list)
    troubles: list[TroubleRise] = field(default_factory=list)

    @property
    def excess_ns(self) -> float:
        """On the way of requests; what waits in queues is `waits`."""
        risen = sum(r.excess_ns for r in (*self.rises, *self.blame) if r.place.kind != "queue")
        return risen + sum(c.excess_ns for c in self.calls)

    @property
    def waits(self) -> list[Rise]:
        """Its queues."""
        return [r for r in self.rises if r.place.kind == "queue"]

    @property
    def ratio(self) -> float:
        """By how much the times that rose did."""
        risen = [r for r in (*self.rises, *self.blame) if r.excess_ns > 0 and r.place.kind != "queue"]
        before = sum(r.expected_ns for r in risen) + sum(c.excess_ns * c.before / max(c.during - c.before, 1e-9) for c in self.calls)
        return 1 + self.excess_ns / max(before, 1.0)


def rank_causes(
    baseline: Body, incident: Body, by: By = "service", signals: Sequence[Signal] = SIGNALS
) -> list[Candidate]:
    """Every unit of the incident (and every service of the baseline), most suspicious first."""
    unit_of = UNITS[by]
    files = _files(baseline, incident, unit_of, signals)
    total = max(sum(limb.below_ns for limb in incident.entries), 1)
    entries = max(sum(1 for _ in incident.entries), 1)
    reached = _time_reaching(incident, unit_of)
    damages: dict[Unit, tuple[float, float]] = {}
    for unit, f in files.items():
        time = f.excess_ns / total
        touched = max(reached.get(unit, total), 1)
        uneven = _unevenness(f.ratio)
        slow = (min(time, 1.0) * min(f.excess_ns / touched, 1.0)) ** 0.5 * uneven
        slow += sum(_queueing(wait, entries) for wait in f.waits)
        broken = sum((t.beyond * t.beyond / t.touched) ** 0.5 for t in f.troubles)
        damages[unit] = slow, broken
    whole = sum(slow + broken for slow, broken in damages.values()) or 1.0
    found = [
        Candidate(unit, 1 - (1 - min(slow, 1.0)) * (1 - min(broken, 1.0)), (slow + broken) / whole, "")
        for unit, (slow, broken) in damages.items()
    ]
    return sorted(found, key=lambda c: (-c.score, c.unit))


def _queueing(wait: Rise, entries: int) -> float:
    """What a queue's rise weighs: the part of its time that is excess, for the part of the entries that waited in it."""
    if not wait.excess_ns:
        return 0.0
    part = wait.excess_ns / (wait.excess_ns + wait.expected_ns)
    return part * _unevenness(1 / max(1 - part, 1e-6)) * min(wait.calls / entries, 1.0) ** 0.5


def _unevenness(ratio: float) -> float:
    beyond = (ratio - 1) / (UNEVEN_RATIO - 1)
    return beyond**2 / (1 + beyond**2)


UNITS: Final[Mapping[By, UnitOf]] = {
    "service": lambda limb: (limb.operation.service,),
    "pod": lambda limb: (limb.operation.service, limb.pod),
    "operation": lambda limb: (limb.operation.service, limb.operation.name),
}


def _files(baseline: Body, incident: Body, unit_of: UnitOf, signals: Sequence[Signal]) -> dict[Unit, _File]:
    files: defaultdict[Unit, _File] = defaultdict(_File)
    for limb in incident.limbs:
        files[unit_of(limb)]  # every unit is ranked
    factor = common_factor(baseline, incident) if "common" in signals else 1.0
    rises = own_and_hops(baseline, incident, unit_of, factor)
    if "own" in signals:
        for rise in rises:
            if rise.place.kind != "hop":
                files[rise.unit].rises.append(rise)
    if "queues" in signals:
        for rise in queues(baseline, incident):
            files[rise.unit].rises.append(rise)
    if "hops" in signals:
        own = {unit: f.excess_ns for unit, f in files.items()}
        for blame in blame_hops([r for r in rises if r.place.kind == "hop"], own):
            files[blame.unit].blame += blame.hops
    if "calls" in signals:
        for more in more_calls(baseline, incident, unit_of):
            files[more.unit].calls.append(more)
    for trouble in trouble_rises(baseline, incident, unit_of):
        if {"error": "errors", "unanswered": "unanswered", "stopped": "stopped"}[trouble.trouble.kind] in signals:
            files[trouble.trouble.unit].troubles.append(trouble)
    return files


def _time_reaching(body: Body, unit_of: UnitOf) -> dict[Unit, int]:
    """By unit the time of the entries that reach it."""
    seen: set[tuple[Unit, int]] = set()
    for limb in body.limbs:
        seen.add((unit_of(limb), limb.entry))
    found: defaultdict[Unit, int] = defaultdict(int)
    for unit, entry in seen:
        found[unit] += body.limbs[entry].below_ns
    return found

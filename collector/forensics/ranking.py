"""Candidate causes of an incident, best first: what each unit adds to the time of the requests, and how many it breaks.

Pure. A unit is a service, a replica of one, or an operation. Its score has two sides:

- *time*: the excess of its own times, of the hops for which it is blamed and of its additional calls, as a part of all time of the
  incident (and of the time of the entries that reach it: a service that few requests need is no less broken). It is weighted by
  how much its times rose: at `UNEVEN_RATIO` by a half, because a doubling comes with load and deployments too. Queues likewise.
- *troubles*: the part of the entries in which something fails, is not answered or stops early because of it, beyond the baseline.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from collector.forensics.anatomy import Body
from collector.forensics.attribution import UNEVEN_RATIO
from collector.forensics.rises import (
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
Signal = Literal["own", "hops", "queues", "calls", "error", "unanswered", "stopped", "common"]
SIGNALS: Final[tuple[Signal, ...]] = ("own", "hops", "queues", "calls", "error", "unanswered", "stopped", "common")
"""What a ranking looks at; "common" is the correction for what slowed everywhere."""

UNITS: Final[Mapping[By, UnitOf]] = {
    "service": lambda limb: (limb.operation.service,),
    "pod": lambda limb: (limb.operation.service, limb.pod),
    "operation": lambda limb: (limb.operation.service, limb.operation.name),
}

HUNCH: Final = 0.01
"""What a rise within doubt weighs beside one beyond it: enough to order those against whom nothing is proven."""


@dataclass(slots=True)
class File:
    """What speaks against one unit, by kind."""

    own: list[Rise] = field(default_factory=list)
    hops: list[Rise] = field(default_factory=list)
    waits: list[Rise] = field(default_factory=list)
    calls: list[MoreCalls] = field(default_factory=list)
    troubles: list[TroubleRise] = field(default_factory=list)
    far_ends: list[Rise] = field(default_factory=list)
    """Slower hops for which the unit at the other end is blamed: traces do not tell the two apart for certain."""

    doubtful_ns: float = 0.0
    doubtful_of_ns: float = 0.0

    @property
    def excess_ns(self) -> float:
        """What it adds on the way of requests."""
        return sum(r.excess_ns for r in (*self.own, *self.hops)) + sum(c.excess_ns for c in self.calls)

    @property
    def ratio(self) -> float:
        """By how much the times that rose did."""
        risen = [r for r in (*self.own, *self.hops) if r.excess_ns > 0]
        before = sum(r.expected_ns for r in risen) + sum(c.expected_ns for c in self.calls)
        return 1 + self.excess_ns / max(before, 1.0)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate cause.

    Attributes:
        unit: Service; or service and pod, or service and operation.
        score: 0 to 1, for the order.
        share: Its part of all that any unit is blamed for, 0 to 1.
        file: What speaks against it.
    """

    unit: Unit
    score: float
    share: float
    file: File


def rank_causes(
    baseline: Body, incident: Body, by: By = "service", signals: Sequence[Signal] = SIGNALS
) -> list[Candidate]:
    """Every unit of both windows, most suspicious first. Fewer `signals` are for measuring what each is worth."""
    unit_of = UNITS[by]
    files = _files(baseline, incident, unit_of, signals)
    weighed = _Weighing(incident, unit_of)
    sides = {unit: (weighed.time(unit, f), weighed.troubles(f)) for unit, f in files.items()}
    whole = sum(time + trouble for time, trouble in sides.values()) or 1.0
    found = [
        Candidate(unit, _either(*sides[unit], weighed.hunch(unit, f)), sum(sides[unit]) / whole, f)
        for unit, f in files.items()
    ]
    return sorted(found, key=lambda c: (-c.score, c.unit))


def _either(*parts: float) -> float:
    """1 less what none of them explains."""
    rest = 1.0
    for part in parts:
        rest *= 1 - min(part, 1.0)
    return 1 - rest


class _Weighing:
    """What the incident's evidence weighs beside all of its entries."""

    def __init__(self, incident: Body, unit_of: UnitOf) -> None:
        self._entries = max(sum(1 for _ in incident.entries), 1)
        self._total = max(sum(limb.below_ns for limb in incident.entries), 1)
        self._reaching = _time_reaching(incident, unit_of)

    def part(self, unit: Unit, excess_ns: float) -> float:
        """Of all time, and of the time of the entries that reach the unit: the geometric mean."""
        reaching = max(self._reaching.get(unit, self._total), 1)
        return float((min(excess_ns / self._total, 1.0) * min(excess_ns / reaching, 1.0)) ** 0.5)

    def time(self, unit: Unit, file: File) -> float:
        """The side of time."""
        slow = self.part(unit, file.excess_ns) * _unevenness(file.ratio)
        return slow + sum(self._queue(wait) for wait in file.waits)

    def hunch(self, unit: Unit, file: File) -> float:
        """The side of time again, with what may be chance."""
        uneven = _unevenness(file.doubtful_ns / max(file.doubtful_of_ns, 1.0) + 1)
        return HUNCH * self.part(unit, file.doubtful_ns) * uneven

    def troubles(self, file: File) -> float:
        """The side of troubles: of all entries, and of those that reach the place."""
        return float(sum(t.beyond / t.touched**0.5 for t in file.troubles))

    def _queue(self, wait: Rise) -> float:
        """The part of a queue's time that is excess, for the part of the entries that waited in it."""
        if not wait.excess_ns:
            return 0.0
        part = wait.excess_ns / (wait.excess_ns + wait.expected_ns)
        uneven = _unevenness(1 / max(1 - part, 1e-6))
        return float(part * uneven * min(wait.calls / self._entries, 1.0) ** 0.5)


def _unevenness(ratio: float) -> float:
    beyond = (ratio - 1) / (UNEVEN_RATIO - 1)
    return beyond**2 / (1 + beyond**2)


def _files(baseline: Body, incident: Body, unit_of: UnitOf, signals: Sequence[Signal]) -> dict[Unit, File]:
    files: defaultdict[Unit, File] = defaultdict(File)
    for body in (incident, baseline):
        for limb in body.limbs:
            files[unit_of(limb)]  # every unit is ranked
    factor = common_factor(baseline, incident) if "common" in signals else 1.0
    rises = own_and_hops(baseline, incident, unit_of, factor)
    if "own" in signals:
        for rise in rises:
            if rise.place.kind != "hop":
                files[rise.unit].own.append(rise)
                files[rise.unit].doubtful_ns += rise.plain_ns
                files[rise.unit].doubtful_of_ns += rise.expected_ns
    if "hops" in signals:
        own = {unit: f.excess_ns for unit, f in files.items()}
        for blame in blame_hops([r for r in rises if r.place.kind == "hop"], own):
            files[blame.unit].hops += blame.hops
            for hop in blame.hops:
                other = files[hop.caller if hop.unit == blame.unit else hop.unit]
                other.far_ends.append(hop)
                other.doubtful_ns += hop.excess_ns
                other.doubtful_of_ns += hop.expected_ns
    if "queues" in signals:
        for wait in queues(baseline, incident, unit_of):
            files[wait.unit].waits.append(wait)
    if "calls" in signals:
        for more in more_calls(baseline, incident, unit_of):
            files[more.unit].calls.append(more)
    for trouble in trouble_rises(baseline, incident, unit_of):
        if trouble.trouble.kind in signals:
            files[trouble.trouble.unit].troubles.append(trouble)
    return files


def _time_reaching(body: Body, unit_of: UnitOf) -> dict[Unit, int]:
    """By unit the time of the entries that reach it."""
    seen: set[tuple[Unit, int]] = {(unit_of(limb), limb.entry) for limb in body.limbs}
    found: defaultdict[Unit, int] = defaultdict(int)
    for unit, entry in seen:
        found[unit] += body.limbs[entry].below_ns
    return found

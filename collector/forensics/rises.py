"""Where the time of one window exceeds that of another: rises of own times, ways, queues and numbers of calls, and who is to blame.

Pure. A *cell* is one place as one operation calls it; a cell's rise is the difference of mean times on the critical path, of which only
what noise does not explain counts. Means, because a fault that hits one call in ten moves no median; of times cut at a high
quantile, because one call of a thousand must not speak for the others.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from collector.forensics.anatomy import Body, Limb, Operation, Place

Floats = npt.NDArray[np.float64]

Unit = tuple[str, ...]
"""What is ranked: (service,), (service, pod) or (service, operation)."""

CUT: Final = 0.98
"""Times beyond this quantile count as that quantile."""

BLOCKS: Final = 6
"""Stretches of a window whose means tell how much the level wanders by itself."""

DOUBT: Final = 2.0
"""Standard errors that are taken off a rise before it counts: chance alone leaves something in one cell of forty."""

MIN_CALLS: Final = 3
"""Fewer calls on either side say nothing."""

MOSTLY_RETRIES: Final = 0.5
"""The part of the additional calls that follow a failed one, from which on they are retries."""

MIN_COMMON_SERVICES: Final = 3
MIN_COMMON_CALLS: Final = 10
MIN_COMMON_OWN_NS: Final = 20_000
"""As in `attribution.common_factor`: own times below 20 µs measure the clock."""


@dataclass(frozen=True, slots=True)
class Rise:
    """One cell's rise for one unit.

    Attributes:
        place: Where.
        unit: Who spends the time; of a hop, the callee.
        caller: Of a hop or a queue, the unit at its other end; empty else.
        calls: In the incident.
        before_ns: Mean before, times the common factor.
        during_ns: Mean during.
        excess_ns: Of all calls together, beyond doubt; 0 where there is none.
    """

    place: Place
    unit: Unit
    caller: Unit
    calls: int
    before_ns: float
    during_ns: float
    excess_ns: float

    @property
    def expected_ns(self) -> float:
        """What the incident's calls would have taken before."""
        return self.before_ns * self.calls

    @property
    def plain_ns(self) -> float:
        """The excess of all calls together with its doubt; 0 where they were faster."""
        return max(self.during_ns - self.before_ns, 0.0) * self.calls


UnitOf = Callable[[Limb], Unit]

_Cell = tuple[Place, Operation | None]


def own_and_hops(baseline: Body, incident: Body, unit_of: UnitOf, factor: float) -> list[Rise]:
    """The rises of all places where spans spend time. The baseline's replicas stand for each other: pods come and go."""
    was: defaultdict[_Cell, list[Limb]] = defaultdict(list)
    now: defaultdict[tuple[_Cell, Unit, Unit], list[Limb]] = defaultdict(list)
    for limb in baseline.limbs:
        was[_cell(baseline, limb)].append(limb)
    for index, limb in enumerate(incident.limbs):
        unit, caller = _ends(incident, index, unit_of)
        now[_cell(incident, limb), unit, caller].append(limb)
    found = []
    for (cell, unit, caller), limbs in now.items():
        before = was.get(cell, [])
        if min(len(before), len(limbs)) >= MIN_CALLS:
            found.append(_rise(cell[0], (unit, caller), _in_order(before), _in_order(limbs), factor))
    return found


def queues(baseline: Body, incident: Body, unit_of: UnitOf) -> list[Rise]:
    """The rises of what messages wait beyond the shortest wait of the baseline: so two clocks' difference cancels out."""
    found = []
    for place, gaps in incident.gaps.items():
        before = baseline.gaps.get(place, ())
        if min(len(before), len(gaps)) >= MIN_CALLS:
            was, now = np.array(before, dtype=np.float64), np.array(gaps, dtype=np.float64)
            shortest = float(was.min())
            unit = next(unit_of(limb) for limb in incident.limbs if _consumes(limb, place))
            found.append(_rise(place, (unit, ()), was - shortest, now - shortest, 1.0))
    return found


def _consumes(limb: Limb, queue: Place) -> bool:
    return limb.operation == Operation(queue.service, queue.operation, "CONSUMER")


def common_factor(baseline: Body, incident: Body) -> float:
    """By how much the own times of two thirds of the services rose at least; 1 where they did not.

    What every service got is the host's or the load's doing, and no service's fault.
    """
    was, now = _own_times(baseline), _own_times(incident)
    ratios: defaultdict[str, list[float]] = defaultdict(list)
    for place in was.keys() & now.keys():
        if min(len(was[place]), len(now[place])) >= MIN_COMMON_CALLS:
            median = float(np.median(was[place]))
            if median >= MIN_COMMON_OWN_NS:
                ratios[place.service].append(float(np.median(now[place])) / median)
    if len(ratios) < MIN_COMMON_SERVICES:
        return 1.0
    by_service = sorted(float(np.median(r)) for r in ratios.values())
    return max(1.0, by_service[(len(by_service) - 1) // 3])


def _own_times(body: Body) -> dict[Place, list[int]]:
    found: defaultdict[Place, list[int]] = defaultdict(list)
    for limb in body.limbs:
        if limb.place.kind == "own":
            found[limb.place].append(limb.path_ns)
    return found


def _cell(body: Body, limb: Limb) -> _Cell:
    return limb.place, body.limbs[limb.above].operation if limb.above >= 0 else None


def _ends(body: Body, index: int, unit_of: UnitOf) -> tuple[Unit, Unit]:
    """Who spends a limb's time; of a hop, the callee and the caller."""
    limb = body.limbs[index]
    if limb.place.kind != "hop":
        return unit_of(limb), ()
    for below in body.below.get(index, ()):
        if body.limbs[below].operation.service == limb.place.service:
            return unit_of(body.limbs[below]), unit_of(limb)
    return (limb.place.service, *[""] * (len(unit_of(limb)) - 1)), unit_of(limb)


def _in_order(limbs: Sequence[Limb]) -> Floats:
    """Times on the path, by start."""
    return np.array([limb.path_ns for limb in sorted(limbs, key=lambda limb: limb.start_unix_nano)], dtype=np.float64)


def _rise(place: Place, units: tuple[Unit, Unit], was: Floats, now: Floats, factor: float) -> Rise:
    limit = max(float(np.quantile(was, CUT, method="higher")), float(np.quantile(now, CUT, method="higher")))
    was, now = np.minimum(was, limit) * factor, np.minimum(now, limit)
    before, during = float(was.mean()), float(now.mean())
    rise = during - before - DOUBT * float(np.sqrt(_variance_of_mean(was) + _variance_of_mean(now)))
    return Rise(place, *units, len(now), before, during, max(rise, 0.0) * len(now))


def _variance_of_mean(values: Floats) -> float:
    """Of the calls' mean: by the calls, or by the window's stretches where these differ more than their calls explain."""
    by_calls = float(values.var(ddof=1)) / len(values)
    if len(values) < 3 * BLOCKS:
        return by_calls
    means = [float(part.mean()) for part in np.array_split(values, BLOCKS)]
    return max(by_calls, float(np.var(means, ddof=1)) / BLOCKS)


# --- more calls ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MoreCalls:
    """That an operation makes more calls of one kind than before.

    Attributes:
        unit: Who is to blame: who makes them; the callee, where they repeat failed calls or come from several services at once.
        caller: Who makes them.
        callee: Whom.
        operation: What is called.
        before: Calls for each span that makes any, before.
        during: And during.
        excess_ns: What they add, beyond doubt.
        retries: The part of the additional calls that repeat a failed one.
    """

    unit: Unit
    caller: str
    callee: str
    operation: str
    before: float
    during: float
    excess_ns: float
    retries: float

    @property
    def expected_ns(self) -> float:
        """What as many calls as before would have taken."""
        return self.excess_ns * self.before / max(self.during - self.before, 1e-9)


def more_calls(baseline: Body, incident: Body, unit_of: UnitOf) -> list[MoreCalls]:
    """Where each span that makes calls of a kind makes more of them.

    Of spans that make none nothing is said here: which of them are made is the requests' mix.
    """
    was, now = _calls(baseline, lambda _: ()), _calls(incident, unit_of)
    found = []
    for (parent, child, unit), calls in now.items():
        before = was.get((parent, child, ()))
        if before is None or min(len(before), len(calls)) < MIN_CALLS:
            continue
        a = np.array([n for n, _, _ in before], dtype=np.float64)
        b = np.array([n for n, _, _ in calls], dtype=np.float64)
        doubt = DOUBT * float(np.sqrt(_variance_of_mean(a) + _variance_of_mean(b)))
        rise = float(b.mean() - a.mean()) - doubt
        if rise > 0:
            time = sum(t for _, t, _ in calls) * rise / float(b.mean())
            failed = sum(f for _, _, f in calls) / max(float(b.mean() - a.mean()) * len(b), 1e-9)
            found.append(
                MoreCalls(
                    unit, parent.service, child.service, child.operation, float(a.mean()), float(b.mean()), time,
                    min(failed, 1.0),
                )
            )  # fmt: skip
    return _judged(found, unit_of, incident)


def _judged(found: Sequence[MoreCalls], unit_of: UnitOf, incident: Body) -> list[MoreCalls]:
    """The same, with the callee to blame where its failures are repeated, or where several services call it more often at once."""
    callers: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for more in found:
        callers[more.callee, more.operation].add(more.caller)
    answering: dict[tuple[str, str], Unit] = {}
    for limb in incident.limbs if found else ():
        answering.setdefault((limb.operation.service, limb.operation.name), unit_of(limb))
    judged = []
    for more in found:
        target = (more.callee, more.operation)
        repeated = more.retries >= MOSTLY_RETRIES or len(callers[target]) > 1
        judged.append(replace(more, unit=answering[target]) if repeated and target in answering else more)
    return judged


def _calls(
    body: Body, unit_of: Callable[[Limb], Unit]
) -> dict[tuple[Operation, Place, Unit], list[tuple[int, int, int]]]:
    """By operation, what it calls and who it is: of every span (calls, their time on the path, how many failed)."""
    found: defaultdict[tuple[Operation, Place, Unit], list[tuple[int, int, int]]] = defaultdict(list)
    for index, children in body.below.items():
        counted: dict[Place, tuple[int, int, int]] = {}
        for child in children:
            limb = body.limbs[child]
            calls, time, failed = counted.get(limb.place, (0, 0, 0))
            counted[limb.place] = (calls + 1, time + limb.below_ns, failed + (limb.error or not limb.answered))
        parent = body.limbs[index]
        unit = unit_of(parent)
        for place, tally in counted.items():
            found[parent.operation, place, unit].append(tally)
    return found


# --- whose hop ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blame:
    """A unit to which slower hops point, the excess that it explains, and those hops."""

    unit: Unit
    excess_ns: float
    hops: tuple[Rise, ...]


def blame_hops(hops: Iterable[Rise], own: Mapping[Unit, float]) -> list[Blame]:
    """Who stands behind slower hops, most explained first.

    A slower hop is the callee's (its queue, its side of the network) or the caller's. Every unit is a hypothesis: all hops into it took
    d longer, or all out of it, or both. What it explains is the time that this d takes away from the rises, less what it
    adds where there is no rise. The one that explains most, with the time of its `own` that rose, gets its hops; then the rest is asked
    again. One slow hop alone fits both ends: then the callee is named, unless the caller's own time rose and the callee's did not.
    """
    left = [h for h in hops if h.calls]
    found: list[Blame] = []
    while any(h.excess_ns > 0 for h in left):
        best = max((_hypotheses(left, own)), key=lambda h: h[0], default=None)
        if best is None or best[0] <= 0:
            break
        _, unit, mine = best
        found.append(Blame(unit, sum(h.excess_ns for h in mine), tuple(mine)))
        gone = set(map(id, mine))
        left = [h for h in left if id(h) not in gone]
    return found


def _hypotheses(hops: Sequence[Rise], own: Mapping[Unit, float]) -> list[tuple[float, Unit, list[Rise]]]:
    into: defaultdict[Unit, list[Rise]] = defaultdict(list)
    out_of: defaultdict[Unit, list[Rise]] = defaultdict(list)
    for hop in hops:
        into[hop.unit].append(hop)
        out_of[hop.caller].append(hop)
    found = []
    for unit in sorted({*into, *out_of}):
        for weight, mine in ((1.0, into[unit]), (0.9, out_of[unit]), (0.95, into[unit] + out_of[unit])):
            explained = weight * _explained(mine)
            if explained > 0:
                found.append((explained + own.get(unit, 0.0), unit, [h for h in mine if h.excess_ns > 0]))
    # Every unit explains a single hop of its own completely, as a hypothesis of its own: the edge.
    found += [(0.8 * h.excess_ns + own.get(h.unit, 0.0), h.unit, [h]) for h in hops if h.excess_ns > 0]
    return found


def _explained(hops: Sequence[Rise]) -> float:
    """What one common delay explains of these hops' rises, in ns."""
    if not hops:
        return 0.0
    rises = np.array([h.excess_ns / h.calls for h in hops])
    calls = np.array([h.calls for h in hops], dtype=np.float64)
    order = np.argsort(rises)
    middle = int(np.searchsorted(np.cumsum(calls[order]), calls.sum() / 2))
    delay = float(rises[order][middle])
    return float((calls * (rises - np.abs(rises - delay))).sum())

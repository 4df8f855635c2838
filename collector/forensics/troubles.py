"""What is missing or failed in one window and not in another: errors where they begin, calls without an answer, spans that stop early.

Pure. Traces have no span that says "I returned too early": what an operation calls, as a set, says it. A set that the baseline does
not know, or knows as rare, and that lacks something, is a span that stopped early. Who stopped is found from below: a span whose call
failed, was not answered, or itself stopped early, has its reason below it.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from collector.forensics.anatomy import Body, Limb, Operation, Place
from collector.forensics.rises import Unit, UnitOf

TroubleKind = Literal["error", "unanswered", "stopped"]

MIX: Final = 3.0
"""A set of calls that became so much more frequent is no matter of another mix of requests."""

MIN_SHARE: Final = 0.02
"""A set of calls in fewer of an operation's spans is an accident."""

MIN_SPANS: Final = 10
"""Of an operation, before: fewer do not show all that it may call."""

DOUBT: Final = 2.0
"""Standard errors that are taken off a rise."""

GONE: Final = 0.1
"""A service that is called in less than this part of the cases that the baseline leads to expect is gone."""


class Trouble(NamedTuple):
    """What went wrong, with whom and in which operation."""

    kind: TroubleKind
    unit: Unit
    operation: str


@dataclass(frozen=True, slots=True)
class TroubleRise:
    """That a trouble hits more entries than before.

    Attributes:
        trouble: Which.
        before: Part of the entries hit, before.
        during: And during.
        beyond: Their difference, beyond doubt.
        touched: Part of the incident's entries that reach the operation (or the service, where it left no span).
    """

    trouble: Trouble
    before: float
    during: float
    beyond: float
    touched: float


_Called = frozenset[Place]


def trouble_rises(baseline: Body, incident: Body, unit_of: UnitOf) -> list[TroubleRise]:
    """The troubles that hit more entries of the incident than of the baseline."""
    judge = _Judge(baseline, incident, unit_of)
    was, now = _troubled(baseline, judge), _troubled(incident, judge)
    entries_before, entries = sum(1 for _ in baseline.entries), sum(1 for _ in incident.entries)
    if not entries or not entries_before:
        return []
    reached = _reached(incident)
    pooled: Counter[tuple[TroubleKind, str, str]] = Counter()
    for trouble, hit in was.items():
        pooled[trouble.kind, trouble.unit[0], trouble.operation] += hit
    found = []
    for trouble, hit in now.items():
        before = pooled[trouble.kind, trouble.unit[0], trouble.operation] / entries_before
        during = hit / entries
        spread = (before * (1 - before) / entries_before + during * (1 - during) / entries) ** 0.5
        beyond = during - before - DOUBT * spread
        if beyond > 0:
            touched = max(reached[trouble.unit[0]] / entries, during)
            found.append(TroubleRise(trouble, before, during, beyond, touched))
    return found


def _usual(body: Body, called: Sequence[_Called]) -> dict[Operation, Counter[_Called]]:
    """By operation, how often it called which set of places."""
    found: defaultdict[Operation, Counter[_Called]] = defaultdict(Counter)
    for limb, places in zip(body.limbs, called, strict=True):
        found[limb.operation][places] += 1
    return found


def _called(body: Body) -> list[_Called]:
    """Of each limb the set of places that it called; equal sets are one object."""
    sets: list[_Called] = [frozenset()] * len(body.limbs)
    known: dict[_Called, _Called] = {}
    for index, below in body.below.items():
        found = frozenset([body.limbs[child].place for child in below])
        sets[index] = known.setdefault(found, found)
    return sets


def _odd(
    was: dict[Operation, Counter[_Called]], now: dict[Operation, Counter[_Called]]
) -> set[tuple[Operation, _Called]]:
    """The sets of calls that became frequent and lack something that the operation otherwise calls."""
    found = set()
    for operation, sets in now.items():
        known = was.get(operation)
        if known is None or known.total() < MIN_SPANS:
            continue
        before, during = known.total(), sets.total()
        for called, times in sets.items():
            share, earlier = times / during, known[called] / before
            doubt = DOUBT * (share * (1 - share) / during) ** 0.5
            if share >= MIN_SHARE and share - doubt > MIX * earlier and _lacks(called, known):
                found.add((operation, called))
    return found


def _lacks(called: _Called, known: Counter[_Called]) -> bool:
    """Whether it is a part of a set that was usual."""
    return any(called < other for other, times in known.items() if times >= MIN_SHARE * known.total())


class _Judge:
    """Who is to blame for a span that failed or stopped."""

    def __init__(self, baseline: Body, incident: Body, unit_of: UnitOf) -> None:
        self.called = {id(baseline): _called(baseline), id(incident): _called(incident)}
        was, now = _usual(baseline, self.called[id(baseline)]), _usual(incident, self.called[id(incident)])
        self._unit_of = unit_of
        self._usual = was
        self.odd = _odd(was, now)
        self.gone = _gone(was, now)
        self._after = _stopped_after(incident, self.called[id(incident)], self.odd)

    def trouble(self, body: Body, index: int, called: _Called) -> Trouble | None:
        """Of a span with nothing wrong below it, which called these."""
        limb = body.limbs[index]
        if not limb.answered:
            return Trouble("unanswered", _callee(limb, self._unit_of), limb.place.operation)
        stopped = bool(self.odd) and (limb.operation, called) in self.odd
        missing = self._missing(limb, called) if stopped or limb.error else None
        if missing is not None:
            return Trouble("unanswered", self._service(limb, missing.service), missing.operation)
        if limb.error:
            if limb.place.kind == "hop":
                return Trouble("error", _answering(body, index, self._unit_of), limb.place.operation)
            return Trouble("error", self._unit_of(limb), limb.operation.name)
        if not stopped:
            return None
        last = _last(body, index)
        if last is not None and len(self._after[last.service]) > 1:
            return Trouble("stopped", self._service(limb, last.service), last.operation)
        return Trouble("stopped", self._unit_of(limb), limb.operation.name)

    def _missing(self, limb: Limb, called: _Called) -> Place | None:
        """The call that this span lacks to a service that is gone, if it still makes others (or never made any)."""
        usual = self._usual.get(limb.operation, Counter())
        lacked = {p for other in usual if called < other for p in other - called if p.service in self.gone}
        only = all(len(other) <= 1 for other in usual)
        return min(lacked, default=None) if called or only else None

    def _service(self, limb: Limb, service: str) -> Unit:
        return (service, *[""] * (len(self._unit_of(limb)) - 1))


def _gone(was: dict[Operation, Counter[_Called]], now: dict[Operation, Counter[_Called]]) -> set[str]:
    """The services that other services called, and hardly do although those are still at work."""
    expected: defaultdict[str, float] = defaultdict(float)
    made: defaultdict[str, float] = defaultdict(float)
    for operation, sets in now.items():
        known = was.get(operation)
        if known is None:
            continue
        for called, times in known.items():
            for service in {p.service for p in called} - {operation.service}:
                expected[service] += times / known.total() * sets.total()
        for called, times in sets.items():
            for service in {p.service for p in called} - {operation.service}:
                made[service] += times
    return {service for service, calls in expected.items() if calls >= MIN_SPANS and made[service] < GONE * calls}


def _stopped_after(body: Body, called: Sequence[_Called], odd: set[tuple[Operation, _Called]]) -> dict[str, set[str]]:
    """By service, which other services stop after having called it."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for index, limb in enumerate(body.limbs if odd else ()):
        if (limb.operation, called[index]) in odd:
            last = _last(body, index)
            if last is not None and last.service != limb.operation.service:
                found[last.service].add(limb.operation.service)
    return found


def _last(body: Body, index: int) -> Place | None:
    """What a span called last, before it ended."""
    below = body.below.get(index, ())
    return body.limbs[below[-1]].place if below else None


def _troubled(body: Body, judge: _Judge) -> Counter[Trouble]:
    """How many entries each trouble hits. Limbs come before what is below them: backwards is from below."""
    called = judge.called[id(body)]
    hits: set[tuple[int, Trouble]] = set()
    troubled: set[int] = set()
    for index in range(len(body.limbs) - 1, -1, -1):
        limb = body.limbs[index]
        below = not troubled.isdisjoint(body.below.get(index, ()))
        trouble = None if below else judge.trouble(body, index, called[index])
        if trouble is not None:
            hits.add((limb.entry, trouble))
        if trouble is not None or below:
            troubled.add(index)
    return Counter(trouble for _, trouble in hits)


def _answering(body: Body, index: int, unit_of: UnitOf) -> Unit:
    limb = body.limbs[index]
    for child in body.below.get(index, ()):
        if body.limbs[child].operation.service == limb.place.service:
            return unit_of(body.limbs[child])
    return _callee(limb, unit_of)


def _callee(limb: Limb, unit_of: UnitOf) -> Unit:
    return (limb.place.service, *[""] * (len(unit_of(limb)) - 1))


def _reached(body: Body) -> Counter[str]:
    """How many entries reach each service, by a span or by a call that was not answered."""
    seen: set[tuple[int, str]] = set()
    for limb in body.limbs:
        seen.add((limb.entry, limb.operation.service))
        seen.add((limb.entry, limb.place.service))
    return Counter(service for _, service in seen)

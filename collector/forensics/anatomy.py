"""Two windows of traces taken apart, span by span, into the columns that `rises`, `troubles` and `ranking` compare.

Every span gets the *place* where its own time is spent, that time on the critical path of its *entry*, and the operation that called
it. An entry is a piece of work that is waited for as a whole, or by nobody: a root, a span whose parent never arrived, a CONSUMER, a
child that its parent did not wait for. Across hosts durations are compared, never clocks (see `critical_path` on how children are
shifted into their parents), except that a queue's gap is compared with the same queue's gap in the other window: what two clocks
differ by is in both.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import polars as pl

from collector.forensics.collections_paused import collections_paused
from collector.forensics.critical_path import Interval, TraceSpan, Tree, awaited, build_tree, critical_path_below

PlaceKind = Literal["own", "hop", "exit", "queue"]

COLUMNS: Final = (
    "trace_id",
    "span_id",
    "parent_span_id",
    "service_name",
    "service_instance_id",
    "name",
    "kind",
    "witness",
    "start_time_unix_nano",
    "duration_ns",
    "error",
    "destination",
)
"""What a frame of spans has, one row a span; ids within one frame are of one type."""

_OUTGOING: Final = frozenset({"CLIENT", "PRODUCER"})
_ARRIVING: Final = frozenset({"SERVER", "CONSUMER"})


class Place(NamedTuple):
    """Where time is spent.

    own: in `operation` of `service`. hop: between `caller` and `operation` of `service`. exit: `caller`, which is `service` too, waits in
    `operation` for `destination`, which has no spans. queue: between a PRODUCER of `caller` and the CONSUMER `operation` of `service`.
    """

    kind: PlaceKind
    service: str
    operation: str
    caller: str = ""
    destination: str = ""


class Operation(NamedTuple):
    """A span's name in its service, and its kind."""

    service: str
    name: str
    kind: str


@dataclass(slots=True)
class Limb:
    """One span, taken apart; `above` is the index of the limb that it hangs from, -1 at the top of an entry.

    Attributes:
        entry: Index of the limb at the top of its entry.
        operation: Who ran what.
        place: Where its own time is spent.
        pod: The replica; empty where unknown.
        path_ns: Its own time on its entry's critical path.
        below_ns: That and all of what is below it in the entry.
        duration_ns: As recorded, at least 0.
        start_unix_nano: By its host's clock.
        error: Whether it says that it failed.
        answered: False for a call over the network that no span of the callee answers, where the callee answers others.
    """

    entry: int
    above: int
    operation: Operation
    place: Place
    pod: str
    path_ns: int
    below_ns: int
    duration_ns: int
    start_unix_nano: int
    error: bool
    answered: bool = True


@dataclass(frozen=True, slots=True)
class Body:
    """All limbs of one window, parents before their children, the limbs of an entry in one stretch.

    Attributes:
        limbs: Them.
        below: Index of a limb to the indices below it.
        gaps: How long each message waited: by queue, in ns, by two hosts' clocks.
        traces: How many traces they came from.
    """

    limbs: Sequence[Limb]
    below: Mapping[int, Sequence[int]]
    gaps: Mapping[Place, Sequence[int]]
    traces: int

    @property
    def entries(self) -> Iterator[Limb]:
        """The limbs at the top."""
        return (limb for limb in self.limbs if limb.above < 0)


class _Row(NamedTuple):
    trace: object
    span_id: int
    parent: int | None
    service: str
    pod: str | None
    name: str
    kind: str
    witness: str
    start: int
    duration: int
    error: bool | None
    destination: str | None


@collections_paused()
def take_apart_windows(frames: Sequence[pl.DataFrame]) -> list[Body]:
    """The bodies of these windows of spans (columns `COLUMNS`); they share what is known of who answers which call."""
    rooted = [[_rooted(rows) for rows in _by_trace(frame)] for frame in frames]
    who = _callees(trace for traces in rooted for trace in traces)
    return [_body(traces, who) for traces in rooted]


class _Rooted(NamedTuple):
    """A trace as a tree of its application's spans; of outgoing ones that a callee answered, its first span."""

    tree: Tree
    rows: Mapping[int, _Row]
    answers: Mapping[int, _Row]


def _by_trace(frame: pl.DataFrame) -> Iterator[list[_Row]]:
    traces: defaultdict[object, list[_Row]] = defaultdict(list)
    columns = (frame[name].to_list() for name in COLUMNS)  # ten times faster than row by row
    for row in map(_Row._make, zip(*columns, strict=True)):
        traces[row.trace].append(row)
    yield from traces.values()


def _rooted(rows: Sequence[_Row]) -> _Rooted:
    proxies = {row.span_id: row.parent for row in rows if row.witness == "proxy"}
    kept: dict[int, _Row] = {}
    for row in rows:
        if row.witness != "proxy":
            kept.setdefault(row.span_id, row)
    spans = [
        TraceSpan(
            r.span_id,
            _past(proxies, r.parent) if r.parent in proxies else r.parent,
            r.service,
            r.kind,
            r.start,
            r.start + max(r.duration, 0),
        )
        for r in kept.values()
    ]
    tree = build_tree(spans)
    return _Rooted(tree, kept, _answers(tree, kept))


def _past(proxies: Mapping[int, int | None], parent: int | None) -> int | None:
    """The nearest ancestor that no proxy wrote; proxies that form a circle end it."""
    for _ in range(len(proxies)):
        if parent is None or parent not in proxies:
            break
        parent = proxies[parent]
    return parent


def _answers(tree: Tree, rows: Mapping[int, _Row]) -> dict[int, _Row]:
    """The first span of a callee below each outgoing span that has one."""
    found: dict[int, _Row] = {}
    for span_id, children in tree.children.items():
        row = rows[span_id]
        if row.kind in _OUTGOING:
            for child in children:
                below = rows[child]
                if below.service != row.service or below.kind in _ARRIVING:
                    found[span_id] = below
                    break
    return found


def _callees(traces: Iterator[_Rooted]) -> dict[tuple[str, str, str], tuple[str, str]]:
    """(service, span name, destination) of a call to the (service, operation) that answers it most often."""
    counted: defaultdict[tuple[str, str, str], Counter[tuple[str, str]]] = defaultdict(Counter)
    for trace in traces:
        for span_id, answer in trace.answers.items():
            row = trace.rows[span_id]
            counted[row.service, row.name, row.destination or ""][answer.service, answer.name] += 1
    return {call: answers.most_common(1)[0][0] for call, answers in counted.items()}


def _place(trace: _Rooted, span_id: int, who: Mapping[tuple[str, str, str], tuple[str, str]]) -> tuple[Place, bool]:
    """Where a span's own time is spent, and whether it was answered (as far as anybody was expected to)."""
    row = trace.rows[span_id]
    if row.kind not in _OUTGOING:
        return Place("own", row.service, row.name), True
    answer = trace.answers.get(span_id)
    if answer is not None:
        return Place("hop", answer.service, answer.name, caller=row.service), True
    if any(trace.rows[child].kind in _OUTGOING for child in trace.tree.children.get(span_id, ())):
        return Place("own", row.service, row.name), True
    expected = who.get((row.service, row.name, row.destination or ""))
    if expected is not None:
        return Place("hop", *expected, caller=row.service), False
    return Place("exit", row.service, row.name, caller=row.service, destination=row.destination or row.name), True


def _body(traces: Sequence[_Rooted], who: Mapping[tuple[str, str, str], tuple[str, str]]) -> Body:
    limbs: list[Limb] = []
    below: defaultdict[int, list[int]] = defaultdict(list)
    gaps: defaultdict[Place, list[int]] = defaultdict(list)
    for trace in traces:
        waited = {span_id: awaited(trace.tree, span_id) for span_id in trace.tree.children}
        for top in _tops(trace.tree, waited):
            _append(limbs, below, trace, (top, waited), who)
        for queue, gap in _waits(trace):
            gaps[queue].append(gap)
    return Body(limbs, below, gaps, len(traces))


_Waited = Mapping[int, Sequence[tuple[int, Interval]]]
"""Span id to the children that it waited for, last to finish first."""


def _tops(tree: Tree, waited: _Waited) -> Iterator[int]:
    """The entries of a trace: its roots, and every span that its parent did not wait for."""
    yield from tree.roots
    for span_id, children in tree.children.items():
        if len(waited[span_id]) < len(children):
            some = {child for child, _ in waited[span_id]}
            yield from (child for child in children if child not in some)


def _append(
    limbs: list[Limb],
    below: defaultdict[int, list[int]],
    trace: _Rooted,
    entry: tuple[int, _Waited],
    who: Mapping[tuple[str, str, str], tuple[str, str]],
) -> None:
    top, waited = entry
    path = critical_path_below(trace.tree, top, waited)
    first = len(limbs)
    pending = [(top, -1)]
    while pending:
        span_id, above = pending.pop()
        row = trace.rows[span_id]
        place, answered = _place(trace, span_id, who)
        index = len(limbs)
        own = path.get(span_id, 0)
        limbs.append(
            Limb(
                first, above, Operation(row.service, row.name, row.kind), place, row.pod or "", own, own,
                max(row.duration, 0), row.start, bool(row.error), answered,
            )
        )  # fmt: skip
        if above >= 0:
            below[above].append(index)
        pending += [(child, index) for child, _ in waited.get(span_id, ())]
    for index in range(len(limbs) - 1, first, -1):
        limbs[limbs[index].above].below_ns += limbs[index].below_ns


def _waits(trace: _Rooted) -> Iterator[tuple[Place, int]]:
    """Each message's queue, and how long after its producer ended the consumer began."""
    for row in trace.rows.values():
        above = trace.tree.spans[row.span_id].parent_id
        if row.kind == "CONSUMER" and above is not None and above in trace.rows:
            sender = trace.rows[above]
            queue = Place("queue", row.service, row.name, caller=sender.service)
            yield queue, row.start - (sender.start + max(sender.duration, 0))

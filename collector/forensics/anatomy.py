"""Two windows of traces taken apart, span by span, into the columns that `rises`, `troubles` and `ranking` compare.

Every span gets the *place* where its own time is spent, that time on the critical path of its *entry*, and the operation that called
it. An entry is a piece of work that is waited for as a whole, or by nobody: a root, a span whose parent never arrived, a CONSUMER, a
child that its parent did not wait for. Across hosts durations are compared, never clocks (see `critical_path` on how children are
shifted into their parents), except that a queue's gap is compared with the same queue's gap in the other window: what two clocks
differ by is in both.

Windows are taken apart as a whole (`forest`); what is not plain, trace by trace, by the same rules.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import polars as pl

from collector.forensics.critical_path import Interval, TraceSpan, Tree, awaited, build_tree, critical_path_below
from collector.forensics.forest import Forest, plant

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


_Call = tuple[str, str, str]
"""A call as who makes it sees it: service, span name, destination."""

_Who = Mapping[_Call, tuple[str, str]]
"""The service and the operation that answer a call."""


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


def take_apart_windows(frames: Sequence[pl.DataFrame]) -> list[Body]:
    """The bodies of these windows of spans (columns `COLUMNS`); they share what is known of who answers which call."""
    forests = [forest for frame in frames if (forest := plant(frame.select(COLUMNS))) is not None]
    if len(forests) == len(frames):
        who = _callees(answered for forest in forests for answered in _answered(forest))
        return [_grown(forest, who) for forest in forests]
    return take_apart_by_trace(frames)


def take_apart_by_trace(frames: Sequence[pl.DataFrame]) -> list[Body]:
    """The same of whatever spans, at three times the cost."""
    rooted = [[_rooted(rows) for rows in _by_trace(frame)] for frame in frames]
    who = _callees(
        ((row.service, row.name, row.destination or ""), (answer.service, answer.name))
        for traces in rooted
        for trace in traces
        for span_id, row in trace.rows.items()
        if (answer := trace.answers.get(span_id)) is not None
    )
    return [_body(traces, who) for traces in rooted]


def _grown(forest: Forest, who: _Who) -> Body:
    """A forest as limbs."""
    rows, order = forest.rows, np.argsort(forest.position)
    operations = _operations(rows)
    above = np.where(forest.above >= 0, forest.position[forest.above], -1)[order].tolist()
    places = _places(forest, operations, who)
    columns = (
        rows[name].gather(order).to_list()
        for name in ("service_instance_id", "duration_ns", "start_time_unix_nano", "error")
    )
    numbers = (forest.entry, forest.own_ns, forest.below_ns)
    nodes = zip(order.tolist(), above, *(n[order].tolist() for n in numbers), *columns, strict=True)
    limbs = [
        Limb(
            entry, upper, operations[node], places[node][0], pod or "", own, all_of_it, max(duration, 0), start, bool(error),
            places[node][1],
        )
        for node, upper, entry, own, all_of_it, pod, duration, start, error in nodes
    ]  # fmt: skip
    below: defaultdict[int, list[int]] = defaultdict(list)
    for index, upper in enumerate(above):
        if upper >= 0:
            below[upper].append(index)
    return Body(limbs, below, _gaps(forest), forest.traces)


def _operations(rows: pl.DataFrame) -> list[Operation]:
    """Of each node; equal ones are one object."""
    known: dict[tuple[str, str, str], Operation] = {}
    found = []
    for key in zip(rows["service_name"].to_list(), rows["name"].to_list(), rows["kind"].to_list(), strict=True):
        operation = known.get(key)
        if operation is None:
            operation = known[key] = Operation(*key)
        found.append(operation)
    return found


def _places(forest: Forest, operations: Sequence[Operation], who: _Who) -> list[tuple[Place, bool]]:
    """Of each node, as `_place` has it; equal ones are one object."""
    known: dict[tuple[int, int, bool, str | None], tuple[Place, bool]] = {}
    found = []
    nodes = zip(
        operations, forest.answer.tolist(), forest.calls.tolist(), forest.rows["destination"].to_list(), strict=True
    )
    for operation, answer, calls, destination in nodes:
        callee = operations[answer] if answer >= 0 else None
        key = (id(operation), id(callee), calls, destination)
        place = known.get(key)
        if place is None:
            place = known[key] = _place(operation, callee, destination, who, calls=calls)
        found.append(place)
    return found


def _as_sent(forest: Forest, chosen: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> list[int]:
    """These nodes by trace, and in the order of the frame within it."""
    nodes = np.flatnonzero(chosen)
    arrived, trace = (forest.rows[name].to_numpy()[nodes] for name in ("arrived", "trace"))
    ordered: list[int] = nodes[np.lexsort((arrived, trace))].tolist()
    return ordered


def _answered(forest: Forest) -> Iterator[tuple[_Call, tuple[str, str]]]:
    """Each call that was answered, and by whom."""
    columns = (forest.rows[name].to_list() for name in ("service_name", "name", "destination"))
    service, name, destination = columns
    answers = forest.answer.tolist()
    for node in _as_sent(forest, forest.answer >= 0):
        answer = answers[node]
        yield (service[node], name[node], destination[node] or ""), (service[answer], name[answer])


def _gaps(forest: Forest) -> dict[Place, list[int]]:
    """How long the messages of each queue waited: see `_waits`."""
    rows = forest.rows
    consumers = _as_sent(forest, (rows["kind"] == "CONSUMER").fill_null(value=False).to_numpy() & (forest.sender >= 0))
    gaps: defaultdict[Place, list[int]] = defaultdict(list)
    columns = [rows[name] for name in ("service_name", "name", "start_time_unix_nano", "duration_ns")]
    for node in consumers:
        sender = int(forest.sender[node])
        service, name, start, _ = (column[node] for column in columns)
        caller, _, sent, took = (column[sender] for column in columns)
        gaps[Place("queue", service, name, caller=caller)].append(start - (sent + max(took, 0)))
    return gaps


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


def _callees(answered: Iterable[tuple[_Call, tuple[str, str]]]) -> _Who:
    """Who answers each call most often."""
    counted: defaultdict[_Call, Counter[tuple[str, str]]] = defaultdict(Counter)
    for call, answer in answered:
        counted[call][answer] += 1
    return {call: answers.most_common(1)[0][0] for call, answers in counted.items()}


def _place(
    operation: Operation, callee: Operation | None, destination: str | None, who: _Who, *, calls: bool
) -> tuple[Place, bool]:
    """Where a span's own time is spent, and whether it was answered (as far as anybody was expected to).

    `callee` is whose span is below an outgoing one, `calls` whether another outgoing one is.
    """
    service, name, kind = operation
    if kind not in _OUTGOING:
        return Place("own", service, name), True
    if callee is not None:
        return Place("hop", callee.service, callee.name, caller=service), True
    if calls:
        return Place("own", service, name), True
    expected = who.get((service, name, destination or ""))
    if expected is not None:
        return Place("hop", *expected, caller=service), False
    return Place("exit", service, name, caller=service, destination=destination or name), True


def _body(traces: Sequence[_Rooted], who: _Who) -> Body:
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
    who: _Who,
) -> None:
    top, waited = entry
    path = critical_path_below(trace.tree, top, waited)
    first = len(limbs)
    pending = [(top, -1)]
    while pending:
        span_id, above = pending.pop()
        row = trace.rows[span_id]
        operation = Operation(row.service, row.name, row.kind)
        answer = trace.answers.get(span_id)
        callee = None if answer is None else Operation(answer.service, answer.name, answer.kind)
        calls = any(trace.rows[child].kind in _OUTGOING for child in trace.tree.children.get(span_id, ()))
        place, answered = _place(operation, callee, row.destination, who, calls=calls)
        index = len(limbs)
        own = path.get(span_id, 0)
        limbs.append(
            Limb(
                first, above, operation, place, row.pod or "", own, own,
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

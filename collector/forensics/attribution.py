"""Which span explains that an edge got slow: sampled calls before and during, taken apart along their critical paths.

Pure. Each sampled call is split into *components* that add up to its duration exactly (see `critical_path`): the own time of each
operation, the hop between a client and a server span, and exits to what has no span of its own. A component's share is its rise
over the rise of all components together.

A contended host slows everything at once. That is told by the services' own times: if two thirds of at least three services take
longer by at least some common factor, then a component explains only what it rose beyond that factor.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import polars as pl

from collector.forensics.critical_path import TraceSpan, Tree, build_tree, critical_path_below, depth_first, self_times

MIN_SHARE: Final = 0.2
"""A component with less of the rise is not named as a cause."""

MIN_RATIO: Final = 1.3
"""A cause's own component rose by this factor at least."""

UNEVEN_RATIO: Final = 2.0
"""What slows everything does so unevenly: where there is a common factor, a cause rose by so much more."""

MIN_Z: Final = 3.0
"""And by so many standard errors (Welch)."""

COMMON_RATIO: Final = 1.3
"""A common factor below this is ordinary variation."""

MIN_COMMON_SERVICES: Final = 3
MIN_COMMON_SAMPLES: Final = 10
MIN_COMMON_OWN_NS: Final = 20_000
"""Own times below 20 µs measure the clock, not the host."""


@dataclass(frozen=True, slots=True)
class Component:
    """One place where time is spent.

    `own`: the operation of `service` itself. `hop`: between `caller` and the operation of `service`: network, proxies, queues, and
    time-outs. `exit`: `operation` of `service` waiting for `destination`.
    """

    kind: Literal["own", "hop", "exit"]
    service: str
    operation: str
    caller: str | None = None
    destination: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a component was found on one sampled call: a span, and how deep below the call it lies."""

    span_id: int
    depth: int
    caller: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled call of an edge, taken apart.

    Attributes:
        trace_id: As the source writes it.
        duration_ns: Of the edge's span.
        own_ns: Component to its time on the critical path.
        calls: Component to its spans on that path.
        places: Component to its longest span.
        complete: Whether every span of the trace has its parent.
    """

    trace_id: str
    duration_ns: int
    own_ns: Mapping[Component, int]
    calls: Mapping[Component, int]
    places: Mapping[Component, Place]
    complete: bool


@dataclass(frozen=True, slots=True)
class Share:
    """What one component contributes to an edge's rise.

    Attributes:
        component: Where.
        share: Of the edge's rise, 0 to 1 (a component that fell has none).
        before_ns: Its mean time per call of the edge before.
        during_ns: And during.
        calls_before: Its spans per call of the edge before.
        calls_during: And during.
        depth: How many spans below the edge it lies, on average.
    """

    component: Component
    share: float
    before_ns: float
    during_ns: float
    calls_before: float
    calls_during: float
    depth: float


@dataclass(frozen=True, slots=True)
class Trace:
    """One sampled trace, placed: its tree without proxies, and every span's component."""

    trace_id: str
    tree: Tree
    components: Mapping[int, Component]
    complete: bool


def place_traces(frame: pl.DataFrame) -> dict[str, Trace]:
    """The traces of a frame with trace_id, span_id, parent_span_id, service_name, name, kind, witness, start_time_unix_nano,
    duration_ns and destination.
    """  # noqa: D205
    rows: defaultdict[str, list[dict[str, object]]] = defaultdict(list)
    for row in frame.iter_rows(named=True):
        rows[row["trace_id"]].append(row)
    return {trace_id: _place(trace_id, spans) for trace_id, spans in rows.items()}


def take_apart(trace: Trace, span_id: int) -> Sample | None:
    """The call whose edge span this is, as components; None where the span is not in the trace."""
    if span_id not in trace.tree.spans:
        return None
    depths = dict(depth_first(trace.tree, span_id))
    own: Counter[Component] = Counter()
    calls: Counter[Component] = Counter()
    places: dict[Component, tuple[int, Place]] = {}
    for inner, time in critical_path_below(trace.tree, span_id).items():
        component = trace.components[inner]
        own[component] += time
        calls[component] += 1
        if component not in places or places[component][0] < time:
            places[component] = (time, Place(inner, depths[inner], _caller_of(trace.tree, inner)))
    return Sample(
        trace_id=trace.trace_id,
        duration_ns=trace.tree.times[span_id].length,
        own_ns=own,
        calls=calls,
        places={component: place for component, (_, place) in places.items()},
        complete=trace.complete,
    )


def shares(before: Sequence[Sample], during: Sequence[Sample], common: float) -> list[Share]:
    """The components that rose, by their share of the rise, largest first; only those that pass `MIN_SHARE` and the rest."""
    if not before or not during:
        return []
    components = {c for s in (*before, *during) for c in s.own_ns}
    rises = {c: _rise(c, before, during, common) for c in components}
    total = sum(rise for rise, _ in rises.values())
    raw = _mean([s.duration_ns for s in during]) - _mean([s.duration_ns for s in before])
    # With a common factor the excess may be a sliver of the whole rise: it must still be a share of what people feel.
    whole = max(total, raw)
    if whole <= 0:
        return []
    found = [
        _share(c, rise / whole, before, during)
        for c, (rise, z) in rises.items()
        if rise / whole >= MIN_SHARE and z >= MIN_Z
    ]
    least = MIN_RATIO if common == 1 else common * UNEVEN_RATIO
    told = [s for s in found if s.during_ns >= s.before_ns * least]
    return sorted(told, key=lambda s: (-s.share, s.component.service, s.component.operation))


def common_factor(before: Iterable[Trace], during: Iterable[Trace]) -> float:
    """By how much most services' own times rose together; 1 where they did not.

    Two thirds of the services that are seen often enough, on both sides, rose at least so much.
    """
    was, now = _own_by_operation(before), _own_by_operation(during)
    ratios: defaultdict[str, list[float]] = defaultdict(list)
    for key in was.keys() & now.keys():
        if min(len(was[key]), len(now[key])) >= MIN_COMMON_SAMPLES:
            median = float(np.median(was[key]))
            if median >= MIN_COMMON_OWN_NS:
                ratios[key[0]].append(float(np.median(now[key])) / median)
    by_service = sorted(float(np.median(r)) for r in ratios.values())
    if len(by_service) < MIN_COMMON_SERVICES:
        return 1.0
    factor = by_service[(len(by_service) - 1) // 3]
    return factor if factor >= COMMON_RATIO else 1.0


def _place(trace_id: str, rows: Sequence[Mapping[str, object]]) -> Trace:
    proxies: dict[object, object] = {r["span_id"]: r["parent_span_id"] for r in rows if r["witness"] == "proxy"}
    spans: list[TraceSpan] = []
    names: dict[int, tuple[str, str]] = {}
    for row in rows:
        if row["witness"] == "proxy":
            continue
        span = _span(row, _above_proxies(proxies, row["parent_span_id"]))
        spans.append(span)
        names[span.span_id] = (str(row["name"]), str(row["destination"]))
    tree = build_tree(spans)
    complete = all(tree.spans[root].parent_id is None for root in tree.roots)
    return Trace(trace_id, tree, {s: _component(tree, names, s) for s in tree.spans}, complete)


def _span(row: Mapping[str, object], parent: object) -> TraceSpan:
    start, duration = row["start_time_unix_nano"], row["duration_ns"]
    span_id = row["span_id"]
    if not (isinstance(start, int) and isinstance(duration, int) and isinstance(span_id, int)):
        raise TypeError(f"a span's id, start and duration are integers, not {span_id!r}, {start!r}, {duration!r}")
    above = parent if isinstance(parent, int) else None
    return TraceSpan(span_id, above, str(row["service_name"]), str(row["kind"]), start, start + max(duration, 0))


def _above_proxies(proxies: Mapping[object, object], parent: object) -> object:
    seen: set[object] = set()
    while parent in proxies and parent not in seen:
        seen.add(parent)
        parent = proxies[parent]
    return parent


def _component(tree: Tree, names: Mapping[int, tuple[str, str]], span_id: int) -> Component:
    span = tree.spans[span_id]
    name, destination = names[span_id]
    if span.kind not in {"CLIENT", "PRODUCER"}:
        return Component("own", span.service, name)
    below = [tree.spans[c] for c in tree.children.get(span_id, ())]
    for child in below:
        if child.service != span.service or child.kind in {"SERVER", "CONSUMER"}:
            return Component("hop", child.service, names[child.span_id][0], caller=span.service)
    if any(child.kind in {"CLIENT", "PRODUCER"} for child in below):
        return Component("own", span.service, name)
    return Component("exit", span.service, name, caller=span.service, destination=destination)


def _caller_of(tree: Tree, span_id: int) -> str | None:
    """The service above the one that a span belongs to; None at the outside."""
    span = tree.spans[span_id]
    parent = span.parent_id
    steps = len(tree.spans)
    while parent is not None and parent in tree.spans and steps:
        if tree.spans[parent].service != span.service:
            return tree.spans[parent].service
        parent = tree.spans[parent].parent_id
        steps -= 1
    return None


def _own_by_operation(traces: Iterable[Trace]) -> dict[tuple[str, str], list[int]]:
    found: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for trace in traces:
        for span_id, own in self_times(trace.tree).items():
            component = trace.components[span_id]
            if component.kind == "own":
                found[component.service, component.operation].append(own)
    return found


def _rise(
    component: Component, before: Sequence[Sample], during: Sequence[Sample], common: float
) -> tuple[float, float]:
    """(rise of the mean beyond the common factor in ns, its z); the highest twentieth on each side is cut to the rest."""
    was, now = _times(component, before) * common, _times(component, during)
    rise = float(now.mean() - was.mean())
    error = float(np.sqrt(now.var() / len(now) + was.var() / len(was)))
    return max(rise, 0.0), rise / max(error, 1.0)


def _times(component: Component, samples: Sequence[Sample]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = np.array([s.own_ns.get(component, 0) for s in samples], dtype=np.float64)
    return np.minimum(values, np.quantile(values, 0.95, method="higher"))


def _share(component: Component, share: float, before: Sequence[Sample], during: Sequence[Sample]) -> Share:
    depths = [s.places[component].depth for s in during if component in s.places]
    return Share(
        component=component,
        share=min(share, 1.0),
        before_ns=float(_times(component, before).mean()),
        during_ns=float(_times(component, during).mean()),
        calls_before=_mean([s.calls.get(component, 0) for s in before]),
        calls_during=_mean([s.calls.get(component, 0) for s in during]),
        depth=_mean(depths),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0

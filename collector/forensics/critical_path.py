"""Where the time of one trace went: its tree, each span's own time, and the chain of spans that decided its duration.

Pure functions over the spans of one trace, in any order and in any state: spans delivered twice, parents that never
arrived, parents that form a circle, clocks that disagree between hosts, children that outlive their parents. Every function
ends, whatever the parent ids say, and takes linear space and `n log n` time in the number of spans.

Rules that the literature leaves open, decided here:

- **Clocks.** Children in another service that stick out of their parent are shifted into it, all children from one service
  by the same amount and no further than needed, if they fit; what still sticks out is cut off. Within a service, clocks agree and
  nothing is shifted.
- **Asynchronous children.** A CONSUMER span, and a child in its parent's own service that ends after its parent did, was not waited
  for: it is not on the critical path.
- **Overlapping children.** The path goes through the child that finished last; an earlier one that overlaps it counts up
  to the moment when the later one began, so that on the path a parent's own time is the time in which no awaited child ran.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, NamedTuple

import polars as pl

MAX_SKEW_NS: Final = 1_000_000_000
"""Children of a span that does not itself wait (no CLIENT span) are shifted back by at most this: beyond it they ran later."""

LATE_NS: Final = 1_000_000
LATE_RATIO: Final = 0.02
"""A child in the same service may end this much after its parent (the larger of the two) and still count as awaited."""


class TraceSpan(NamedTuple):
    """What a span must tell to be placed: ids within its trace, service, kind and its interval in Unix ns."""

    span_id: int
    parent_id: int | None
    service: str
    kind: str
    start: int
    end: int


class Interval(NamedTuple):
    """A span's time after alignment, in ns; `end` is never before `start`."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """Nanoseconds between the two."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Tree:
    """A trace as a forest: every span once, below exactly one root.

    Attributes:
        spans: By span id.
        roots: Spans without a parent, spans whose parent is not in the trace, and one span of each circle; by start.
        children: Span id to the ids of its children, by start.
        times: Aligned intervals: see the module's rule on clocks.
    """

    spans: Mapping[int, TraceSpan]
    roots: tuple[int, ...]
    children: Mapping[int, tuple[int, ...]]
    times: Mapping[int, Interval]


_BY_START: Final = attrgetter("start", "span_id")


def build_tree(spans: Iterable[TraceSpan]) -> Tree:
    """The forest of these spans; of a span delivered twice the first one counts."""
    by_id: dict[int, TraceSpan] = {}
    for span in spans:
        by_id.setdefault(span.span_id, span)
    below: defaultdict[int, list[int]] = defaultdict(list)
    roots: list[int] = []
    for span in sorted(by_id.values(), key=_BY_START):
        if span.parent_id is None or span.parent_id not in by_id or span.parent_id == span.span_id:
            roots.append(span.span_id)
        else:
            below[span.parent_id].append(span.span_id)
    children = {parent: tuple(ids) for parent, ids in below.items()}
    roots, children = _open_circles(by_id, roots, children)
    return Tree(by_id, tuple(roots), children, _align(by_id, roots, children))


def depth_first(tree: Tree, root: int) -> list[tuple[int, int]]:
    """(span id, depth) of the spans below and including `root`, parents before children, siblings by start."""
    order: list[tuple[int, int]] = []
    stack = [(root, 0)]
    while stack:
        span_id, depth = stack.pop()
        order.append((span_id, depth))
        stack.extend((child, depth + 1) for child in reversed(tree.children.get(span_id, ())))
    return order


def self_times(tree: Tree) -> dict[int, int]:
    """Each span's own time: its duration less the union of its children's intervals inside it; never negative."""
    return {span_id: _own_time(tree, span_id) for span_id in tree.spans}


def critical_path_below(
    tree: Tree, root: int, waited: Mapping[int, Sequence[tuple[int, Interval]]] | None = None
) -> dict[int, int]:
    """Span ids on the critical path of `root`'s time to their own time on it, in ns; the times add up to root's duration.

    The walk goes backwards from the end of the root: to the awaited child that finished last, through it in the same manner, and on
    from its beginning. `waited` is what `awaited` says of each span with children, for who has asked already.
    """
    own: dict[int, int] = {}
    pending = [(root, tree.times[root])]
    while pending:
        span_id, within = pending.pop()
        cursor = within.end
        time_here = own.get(span_id, 0)
        children = awaited(tree, span_id) if waited is None else waited.get(span_id, ())
        for child, time in children:
            start, end = max(time.start, within.start), min(time.end, cursor)
            if end <= start:
                continue
            time_here += cursor - end
            pending.append((child, Interval(start, end)))
            cursor = start
        own[span_id] = time_here + cursor - within.start
    return own


def critical_path(frame: pl.DataFrame) -> dict[int, int]:
    """The critical path of one trace: span ids to the time that each spent on it, in ns.

    `frame` has one row a span with span_id and parent_span_id (integers), service_name, kind, start_time_unix_nano and duration_ns. In a
    trace with several roots the path is that of the true root (no parent id) that took longest, else of the longest orphan.
    """
    tree = build_tree(spans_of(frame))
    root = main_root(tree)
    return {} if root is None else critical_path_below(tree, root)


def main_root(tree: Tree) -> int | None:
    """The root that stands for the trace: the longest one without a parent id, else the longest orphan; None if empty."""
    ranked = sorted(tree.roots, key=lambda r: (tree.spans[r].parent_id is None, tree.times[r].length), reverse=True)
    return ranked[0] if ranked else None


def spans_of(frame: pl.DataFrame) -> list[TraceSpan]:
    """Rows of a frame as spans; a negative duration (the sender's clock stepped back) counts as zero."""
    columns = ("span_id", "parent_span_id", "service_name", "kind", "start_time_unix_nano", "duration_ns")
    return [
        TraceSpan(span_id, parent, service, kind, start, start + max(duration, 0))
        for span_id, parent, service, kind, start, duration in frame.select(columns).iter_rows()
    ]


def _open_circles(
    spans: Mapping[int, TraceSpan], roots: list[int], children: dict[int, tuple[int, ...]]
) -> tuple[list[int], dict[int, tuple[int, ...]]]:
    """Cuts each circle of parents above its earliest span, which becomes a root."""
    reached = set(_below(roots, children))
    if len(reached) == len(spans):
        return roots, children
    for span_id in spans:
        if span_id in reached:
            continue
        top = min(_circle_above(spans, span_id), key=lambda i: (spans[i].start, i))
        parent = spans[top].parent_id
        if parent is not None:
            children[parent] = tuple(c for c in children[parent] if c != top)
        roots.append(top)
        reached.update(_below([top], children))
    return sorted(roots, key=lambda r: (spans[r].start, r)), children


def _circle_above(spans: Mapping[int, TraceSpan], span_id: int) -> list[int]:
    """The ids on the circle that following parents from a span without a root leads into."""
    seen: dict[int, None] = {}
    current: int | None = span_id
    while current is not None and current not in seen:
        seen[current] = None
        current = spans[current].parent_id
    path = list(seen)
    return path[path.index(current) :] if current is not None else path


def _below(roots: Sequence[int], children: Mapping[int, tuple[int, ...]]) -> list[int]:
    """These and all below them: a span is below one other at most, and these are below none, so nothing comes twice."""
    found = list(roots)
    for span_id in found:
        found += children.get(span_id, ())
    return found


def _align(
    spans: Mapping[int, TraceSpan], roots: Sequence[int], children: Mapping[int, tuple[int, ...]]
) -> dict[int, Interval]:
    """Every span's interval after shifting subtrees of other services into their parents, top down."""
    times: dict[int, Interval] = {}
    stack = [(root, 0) for root in roots]
    while stack:
        span_id, shift = stack.pop()
        span = spans[span_id]
        time = Interval(span.start + shift, max(span.start, span.end) + shift)
        times[span_id] = time
        groups: dict[str, list[TraceSpan]] = {}
        for child_id in children.get(span_id, ()):
            child = spans[child_id]
            if is_remote(span, child):
                groups.setdefault(child.service, []).append(child)
            else:
                stack.append((child_id, shift))
        for group in groups.values():
            moved = shift + _shift_into(span, time, group, shift)
            stack += [(child.span_id, moved) for child in group]
    return times


def is_remote(parent: TraceSpan, child: TraceSpan) -> bool:
    """Whether a child ran in another service, or arrived over the network in another replica of its parent's own."""
    return child.service != parent.service or (child.kind == "SERVER" and parent.kind == "CLIENT")


def _shift_into(parent: TraceSpan, time: Interval, group: Sequence[TraceSpan], shift: int) -> int:
    """How far to move the children of one other service, after `shift`, so that they lie inside their parent."""
    waited = [c for c in group if c.kind != "CONSUMER"]
    if not waited:
        return 0
    first = min([c.start for c in waited]) + shift
    last = max([c.end for c in waited]) + shift
    if last - first > time.end - time.start:
        return 0
    move = max(time.start - first, 0) or min(time.end - last, 0)
    # Nobody is called before the caller began: to seem so takes clocks, however far apart. To seem later does not.
    return move if parent.kind == "CLIENT" or move >= -MAX_SKEW_NS else 0


def awaited(tree: Tree, span_id: int) -> list[tuple[int, Interval]]:
    """The children that a span waited for, last to finish first."""
    span, time = tree.spans[span_id], tree.times[span_id]
    latest = time.end + max(LATE_NS, int(time.length * LATE_RATIO))
    found = []
    for child_id in tree.children.get(span_id, ()):
        child, interval = tree.spans[child_id], tree.times[child_id]
        if child.kind != "CONSUMER" and (interval.end <= latest or is_remote(span, child)):
            found.append((child_id, interval))
    if len(found) > 1:
        found.sort(key=lambda pair: (pair[1].end, pair[1].start), reverse=True)
    return found


def _own_time(tree: Tree, span_id: int) -> int:
    time = tree.times[span_id]
    covered, until = 0, time.start
    for child in sorted((tree.times[c] for c in tree.children.get(span_id, ())), key=lambda t: t.start):
        start, end = max(child.start, until), min(child.end, time.end)
        if end > start:
            covered += end - start
            until = end
    return time.length - covered

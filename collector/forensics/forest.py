"""All traces of a window as one forest of arrays: the rules of `critical_path`, for tens of thousands of spans at once.

Pure. A trace at a time, every span costs several objects and a dozen dictionary look-ups; here the spans of all traces of one depth are looked at
together. Evidence that is not plain (parents that form a circle, proxies' spans by the dozen between caller and callee, times that
do not fit into 64 bits when they are added) is left to `critical_path`.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from collector.forensics.critical_path import LATE_NS, LATE_RATIO, MAX_SKEW_NS

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MAX_PROXIES: Final = 16
"""More proxies' spans than these between two of the application's are not plain."""

MAX_NS: Final = 2**61
"""Sums of times beyond it are not plain."""

_KIND: Final = {name: code for code, name in enumerate(("CLIENT", "PRODUCER", "SERVER", "CONSUMER"))}
_CLIENT, _PRODUCER, _SERVER, _CONSUMER = _KIND.values()


@dataclass(frozen=True, slots=True)
class Forest:
    """The application's spans of a window, each once, as nodes: by trace (in the order of the frame), start and span id.

    Attributes:
        rows: What the frame says of each node, with `arrived`, its place in the frame.
        sender: The node that its parent id names, proxies left out; -1 where there is none. A node may name itself.
        answer: Of an outgoing span the first span of a callee below it; -1 where there is none.
        calls: Whether an outgoing span is directly below it.
        above: The node that waited for it; -1 at the top of an entry.
        entry: The place of its entry's top in the order of limbs.
        position: Its own place there: entries in one stretch, parents before children, children in the order in which they ended.
        own_ns: Its own time on the critical path of its entry.
        below_ns: That and all of what is below it in the entry.
        traces: How many traces there are, those of proxies alone included.
    """

    rows: pl.DataFrame
    sender: Ints
    answer: Ints
    calls: Flags
    above: Ints
    entry: Ints
    position: Ints
    own_ns: Ints
    below_ns: Ints
    traces: int


@dataclass(frozen=True, slots=True)
class _Groups:
    """Nodes by a key: those of key k are `order[first[k] : first[k] + count[k]]`."""

    order: Ints
    first: Ints
    count: Ints

    def of(self, keys: Ints) -> Ints:
        """The nodes of these keys, one key after the other."""
        counts = self.count[keys]
        ahead = np.cumsum(counts) - counts
        found: Ints = self.order[np.repeat(self.first[keys] - ahead, counts) + np.arange(counts.sum())]
        return found


def plant(frame: pl.DataFrame) -> Forest | None:
    """The forest of a window of spans (columns `anatomy.COLUMNS`); None where it is not plain."""
    found = _nodes(frame)
    if found is None:
        return None
    rows, sender = found
    parent = np.where(sender == np.arange(len(sender)), -1, sender)
    levels = _levels(parent)
    start = rows["start_time_unix_nano"].to_numpy().astype(np.int64)
    length = np.maximum(rows["duration_ns"].to_numpy().astype(np.int64), 0)
    if levels is None or not _is_plain(start, length):
        return None
    kind = rows["kind"].replace_strict(_KIND, default=-1, return_dtype=pl.Int64).to_numpy()
    service = rows["service_name"].rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
    remote = _is_remote(parent, kind, service)
    move = _moves(parent, remote, start, start + length, kind, service)
    if not _is_plain(move, move):
        return None
    shift = np.zeros_like(start)
    for level in levels[1:]:
        shift[level] = shift[parent[level]] + move[level]
    begin, finish = start + shift, start + length + shift
    above = np.where(_is_awaited(parent, remote, begin, finish, kind), parent, -1)
    waited = _last_first(above, begin, finish)
    own = _own_times(levels, above, waited, begin, finish)
    below, size = own.copy(), np.ones_like(own)
    for level in reversed(levels):
        inner = level[above[level] >= 0]
        np.add.at(below, above[inner], below[inner])
        np.add.at(size, above[inner], size[inner])
    entry, position = _places(levels, parent, above, waited, size, rows["trace"].to_numpy())
    traces = frame["trace_id"].n_unique()
    return Forest(rows, sender, *_callees(parent, kind, service), above, entry, position, own, below, traces)


def _nodes(frame: pl.DataFrame) -> tuple[pl.DataFrame, Ints] | None:
    """The nodes and the sender of each; None where there are too many proxies in a row."""
    frame = frame.with_columns(pl.col("parent_span_id").cast(frame.schema["span_id"])).with_row_index("arrived")
    traces = frame.select(pl.col("trace_id").unique(maintain_order=True)).with_row_index("trace")
    frame = frame.join(traces, on="trace_id", how="left", maintain_order="left")
    is_proxy = pl.col("witness").eq_missing(pl.lit("proxy"))
    nodes = frame.filter(~is_proxy).unique(["trace", "span_id"], keep="first", maintain_order=True)
    nodes = nodes.sort("trace", "start_time_unix_nano", "span_id").with_row_index("node")
    proxies = frame.filter(is_proxy).unique(["trace", "span_id"], keep="last", maintain_order=True)
    hops = proxies.select("trace", up="span_id", next="parent_span_id", hit=pl.lit(value=True))
    ups = nodes.select("trace", up="parent_span_id")
    for _ in range(MAX_PROXIES):
        stepped = ups.join(hops, on=["trace", "up"], how="left", maintain_order="left")
        if not stepped["hit"].any():
            break
        ups = stepped.select("trace", up=pl.when("hit").then("next").otherwise("up"))
    else:
        return None
    named = nodes.select("trace", "node", up="span_id")
    senders = ups.join(named, on=["trace", "up"], how="left", maintain_order="left")["node"]
    return nodes, senders.cast(pl.Int64).fill_null(-1).to_numpy()


def _is_plain(a: Ints, b: Ints) -> bool:
    """Whether however many of these are added, the sum fits into 64 bits."""
    if not len(a):
        return True
    moved = float(np.abs(b.astype(np.float64)).sum())
    return float(np.abs(a.astype(np.float64)).max()) + moved < MAX_NS


def _grouped(keys: Ints, nodes: Ints, count: int) -> _Groups:
    """Nodes that are in the order of their keys already."""
    counts = np.bincount(keys, minlength=count).astype(np.int64)
    return _Groups(nodes, np.cumsum(counts) - counts, counts)


def _levels(parent: Ints) -> list[Ints] | None:
    """The nodes by how deep they lie; None where some hang from no root."""
    inner = np.flatnonzero(parent >= 0)
    inner = inner[np.argsort(parent[inner], kind="stable")]
    children = _grouped(parent[inner], inner, len(parent))
    level = np.flatnonzero(parent < 0)
    levels = [level]
    while len(level := children.of(level)):
        levels.append(level)
    return levels if sum(map(len, levels)) == len(parent) else None


def _is_remote(parent: Ints, kind: Ints, service: Ints) -> Flags:
    """As `critical_path.is_remote`; of a root it means nothing."""
    found: Flags = (service != service[parent]) | ((kind == _SERVER) & (kind[parent] == _CLIENT))
    return found


def _moves(parent: Ints, remote: Flags, start: Ints, end: Ints, kind: Ints, service: Ints) -> Ints:  # noqa: PLR0917
    """How far each node is moved beside its parent: as `critical_path._shift_into`, where the parent's own shift cancels out."""
    move = np.zeros_like(start)
    nodes = np.flatnonzero(remote & (parent >= 0))
    if not len(nodes):
        return move
    nodes = nodes[np.lexsort((service[nodes], parent[nodes]))]
    above, to = parent[nodes], service[nodes]
    first_of = np.flatnonzero(np.r_[True, (above[1:] != above[:-1]) | (to[1:] != to[:-1])])
    waited = kind[nodes] != _CONSUMER
    first = np.minimum.reduceat(np.where(waited, start[nodes], MAX_NS), first_of)
    last = np.maximum.reduceat(np.where(waited, end[nodes], -MAX_NS), first_of)
    caller = above[first_of]
    early = np.maximum(start[caller] - first, 0)
    moved = np.where(early > 0, early, np.minimum(end[caller] - last, 0))
    fits = (last >= first) & (last - first <= end[caller] - start[caller])
    believed = (kind[caller] == _CLIENT) | (moved >= -MAX_SKEW_NS)
    move[nodes] = np.repeat(np.where(fits & believed, moved, 0), np.diff(np.r_[first_of, len(nodes)]))
    return move


def _is_awaited(parent: Ints, remote: Flags, begin: Ints, finish: Ints, kind: Ints) -> Flags:
    """As `critical_path.awaited`."""
    late = np.maximum(LATE_NS, ((finish - begin).astype(np.float64) * LATE_RATIO).astype(np.int64))
    found: Flags = (parent >= 0) & (kind != _CONSUMER) & (remote | (finish <= (finish + late)[parent]))
    return found


def _last_first(above: Ints, begin: Ints, finish: Ints) -> _Groups:
    """The nodes that were waited for by who did, last to finish first."""
    inner = np.flatnonzero(above >= 0)
    inner = inner[np.lexsort((inner, -begin[inner], -finish[inner], above[inner]))]
    return _grouped(above[inner], inner, len(above))


def _own_times(levels: list[Ints], above: Ints, waited: _Groups, begin: Ints, finish: Ints) -> Ints:
    """As `critical_path.critical_path_below`, of every entry."""
    own = np.zeros_like(begin)
    since, cursor, on_path = begin.copy(), finish.copy(), above < 0
    for level in levels:
        nodes = level[on_path[level]]
        left, nth = nodes, 0
        while len(left := left[waited.count[left] > nth]):
            child = waited.order[waited.first[left] + nth]
            start, end = np.maximum(begin[child], since[left]), np.minimum(finish[child], cursor[left])
            on_path[child] = runs = end > start
            own[left] += np.where(runs, cursor[left] - end, 0)
            cursor[left] = np.where(runs, start, cursor[left])
            since[child], cursor[child] = start, end
            nth += 1
        own[nodes] += cursor[nodes] - since[nodes]
    return own


def _places(  # noqa: PLR0917
    levels: list[Ints], parent: Ints, above: Ints, waited: _Groups, size: Ints, trace: Ints
) -> tuple[Ints, Ints]:
    """Each node's entry and position; of a trace first the entries of its roots, then those of spans that nobody waited for."""
    tops = np.flatnonzero(above < 0)
    eldest = np.full(len(parent) + 1, -1)
    inner = np.flatnonzero(parent >= 0)[::-1]
    eldest[parent[inner]] = inner
    caller = parent[tops]  # -1 of a root, whose eldest is the -1 at the end
    tops = tops[np.lexsort((tops, np.where(caller < 0, -1, eldest[caller]), trace[tops]))]
    position = np.zeros_like(size)
    position[tops] = np.cumsum(size[tops]) - size[tops]
    entry = position.copy()
    visited = waited.order[::-1]
    ahead = np.cumsum(size[visited]) - size[visited]
    offset = np.zeros_like(size)
    starts = np.flatnonzero(np.r_[True, above[visited][1:] != above[visited][:-1]]) if len(visited) else visited
    offset[visited] = ahead - np.repeat(ahead[starts], np.diff(np.r_[starts, len(visited)]))
    for level in levels[1:]:
        below = level[above[level] >= 0]
        position[below] = position[above[below]] + 1 + offset[below]
        entry[below] = entry[above[below]]
    return entry, position


def _callees(parent: Ints, kind: Ints, service: Ints) -> tuple[Ints, Flags]:
    """`Forest.answer` and `Forest.calls`."""
    inner = np.flatnonzero(parent >= 0)[::-1]
    caller = parent[inner]
    outgoing = (kind == _CLIENT) | (kind == _PRODUCER)
    arrives = (service[inner] != service[caller]) | (kind[inner] == _SERVER) | (kind[inner] == _CONSUMER)
    answers = outgoing[caller] & arrives
    answer = np.full(len(parent), -1)
    answer[caller[answers]] = inner[answers]  # the last one stays, which is the first child
    calls = np.zeros(len(parent), dtype=np.bool_)
    calls[caller[outgoing[inner]]] = True
    return answer, calls

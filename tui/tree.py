"""A trace as a tree that folds: which rows are visible, which proxies' spans belong to which hop. Pure.

Forensics decides the order, the critical path and what a missing proxy means; this only arranges. It ends on cyclic,
orphaned and duplicated spans: a parent that does not come before its child is no parent.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from tui.snapshots import Hop, Sight, Trace, TraceSpan


@dataclass(frozen=True, slots=True)
class HopWitnesses:
    """One call's four witnesses: spans by index, proxies by what is known of them."""

    client: int | None
    server: int | None
    caller_proxy: Sight
    callee_proxy: Sight
    proxies: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """One visible row: its span, how deep it is drawn, and how many spans are folded away beneath it."""

    index: int
    depth: int
    hidden: int
    has_children: bool


@dataclass(frozen=True)
class Tree:
    """A trace's spans with their relations, by index in waterfall order."""

    trace: Trace
    keys: tuple[str, ...]
    parents: tuple[int | None, ...]
    ends: tuple[int, ...]
    hops: Mapping[int, HopWitnesses]
    """By the span that the hop is drawn at: the server's, or the client's where no server span is known."""
    folding: frozenset[int]
    """Proxies' spans that belong to a hop and can be folded into it."""

    @property
    def spans(self) -> tuple[TraceSpan, ...]:
        """The trace's spans."""
        return self.trace.spans

    @cached_property
    def start_unix_nano(self) -> int:
        """The earliest start."""
        return min((s.start_time_unix_nano for s in self.spans), default=0)

    @cached_property
    def total_ns(self) -> int:
        """From the earliest start to the latest end; at least one."""
        return max(max((s.end_time_unix_nano for s in self.spans), default=0) - self.start_unix_nano, 1)

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Key to index."""
        return {key: i for i, key in enumerate(self.keys)}

    def is_orphan(self, index: int) -> bool:
        """Whether its parent never arrived."""
        return self.parents[index] is None and self.spans[index].parent_span_id is not None

    def ancestors(self, index: int) -> Iterable[int]:
        """Its parents, nearest first."""
        at = self.parents[index]
        while at is not None:
            yield at
            at = self.parents[at]


def grow(trace: Trace) -> Tree:
    """The tree of a trace."""
    spans = trace.spans
    keys = _keys(spans)
    first: dict[str, int] = {}
    for i, span in enumerate(spans):
        first.setdefault(span.span_id, i)
    parents = tuple(_earlier(first.get(s.parent_span_id or ""), i) for i, s in enumerate(spans))
    ends = list(range(1, len(spans) + 1))
    for i in range(len(spans) - 1, -1, -1):
        if (parent := parents[i]) is not None:
            ends[parent] = max(ends[parent], ends[i])
    hops = _hops(trace, parents)
    folding = frozenset(chain.from_iterable(h.proxies for h in hops.values()))
    return Tree(trace, keys, parents, tuple(ends), hops, folding)


def _earlier(parent: int | None, index: int) -> int | None:
    return parent if parent is not None and parent < index else None


def _keys(spans: Iterable[TraceSpan]) -> tuple[str, ...]:
    """Span ids, told apart where one was used twice."""
    seen: dict[str, int] = {}
    keys = []
    for span in spans:
        times = seen[span.span_id] = seen.get(span.span_id, 0) + 1
        keys.append(span.span_id if times == 1 else f"{span.span_id}#{times}")
    return tuple(keys)


def _hops(trace: Trace, parents: tuple[int | None, ...]) -> dict[int, HopWitnesses]:
    spans = trace.spans
    verdicts = {h.server_span_id or h.client_span_id: h for h in trace.hops}
    hops: dict[int, HopWitnesses] = {}
    answered: set[int] = set()
    for i, span in enumerate(spans):
        if span.witness == "app" and span.kind in {"SERVER", "CONSUMER"}:
            proxies, client = _climb(spans, parents, i)
            hops[i] = _witnesses(spans, client, i, proxies, verdicts.get(span.span_id))
            if client is not None:
                answered.add(client)
    beneath = _proxies_beneath(spans, parents)
    for i, span in enumerate(spans):
        if span.witness == "app" and span.kind in {"CLIENT", "PRODUCER"} and i not in answered:
            hops[i] = _witnesses(spans, i, None, beneath.get(i, ()), verdicts.get(span.span_id))
    return hops


def _climb(
    spans: tuple[TraceSpan, ...], parents: tuple[int | None, ...], index: int
) -> tuple[tuple[int, ...], int | None]:
    """The proxies' spans between a server span and its caller's span, nearest the server first, and that caller."""
    proxies: list[int] = []
    at = parents[index]
    while at is not None and spans[at].witness == "proxy":
        proxies.append(at)
        at = parents[at]
    is_call = at is not None and spans[at].kind in {"CLIENT", "PRODUCER"}
    return tuple(proxies), at if is_call else None


def _proxies_beneath(spans: tuple[TraceSpan, ...], parents: tuple[int | None, ...]) -> dict[int, tuple[int, ...]]:
    beneath: dict[int, tuple[int, ...]] = {}
    owner: dict[int, int] = {}
    for i, span in enumerate(spans):
        parent = parents[i]
        if span.witness == "proxy" and parent is not None:
            top = owner.get(parent, parent)
            owner[i] = top
            beneath[top] = (*beneath.get(top, ()), i)
    return beneath


def _witnesses(
    spans: tuple[TraceSpan, ...], client: int | None, server: int | None, proxies: tuple[int, ...], hop: Hop | None
) -> HopWitnesses:
    """What forensics judged, where it did; a proxy's span in the chain is proof of sight by itself."""
    caller = spans[client].service_name if client is not None else None
    callee = spans[server].service_name if server is not None else None
    names = [spans[p].service_name for p in proxies]
    callee_count = sum(name == callee for name in names)
    if caller == callee and callee_count:  # a service that calls itself: the proxy nearest the server is the callee's
        callee_count = (callee_count + 1) // 2
    by_caller: Sight = "seen" if len(names) > callee_count else "unknown"
    by_callee: Sight = "seen" if callee_count else "unknown"
    if hop is None:
        return HopWitnesses(client, server, by_caller, by_callee, proxies)
    return HopWitnesses(
        client,
        server,
        by_caller if by_caller == "seen" else hop.caller_proxy,
        by_callee if by_callee == "seen" else hop.callee_proxy,
        proxies,
        hop.reason,
    )


def visible(tree: Tree, collapsed: AbstractSet[str], *, proxies: bool) -> tuple[Node, ...]:
    """The rows to draw: nothing beneath a collapsed span, and proxies' spans only when asked for."""
    spans, hidden = tree.spans, frozenset() if proxies else tree.folding
    child_depth = [0] * len(spans)
    nodes: list[Node] = []
    i = 0
    while i < len(spans):
        parent = tree.parents[i]
        depth = 0 if parent is None else child_depth[parent]
        if i in hidden:
            child_depth[i] = depth
            i += 1
            continue
        child_depth[i] = depth + 1
        beneath = tree.ends[i] - i - 1
        is_collapsed = beneath > 0 and tree.keys[i] in collapsed
        nodes.append(Node(i, depth, beneath if is_collapsed else 0, _has_shown(tree, i, hidden)))
        i = tree.ends[i] if is_collapsed else i + 1
    return tuple(nodes)


def _has_shown(tree: Tree, index: int, hidden: AbstractSet[int]) -> bool:
    """Whether anything that can be drawn is beneath; chains of proxies are short."""
    return any(i not in hidden for i in range(index + 1, tree.ends[index]))


def hash_agreement(tree: Tree, index: int) -> bool | None:
    """Whether both ends of the hop at this span state the same request hash; None where one states nothing."""
    hop = tree.hops.get(index)
    if hop is None or hop.client is None or hop.server is None:
        return None
    ours, theirs = tree.spans[hop.client].request_hash, tree.spans[hop.server].request_hash
    return None if ours is None or theirs is None else ours == theirs

"""A trace as a waterfall: rows of span, witnesses, stamp, time bar and duration; and one span as a document."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len

from provenance.names import STAMP_ABSENT, STAMP_MALFORMED, STAMP_MISMATCHED
from tui.document import Block
from tui.line import Line, Piece, Tone
from tui.snapshots import ProxyRecord, Sight, TraceSpan
from tui.text import clean, duration, fit, number, plural, utc
from tui.tree import HopWitnesses, Node, Tree, hash_agreement

WITNESS_LEGEND: Final = (
    ("C", "the caller's span"),
    ("c", "the caller's proxy saw the call"),
    ("s", "the callee's proxy saw the call"),
    ("S", "the callee's span"),
    ("-", "not there, though it should have been"),
    ("?", "nothing is known: no such witness, or not covered"),
)
STAMP_LEGEND: Final = (
    ("✓", "a well-formed stamp"),
    ("✗", "no stamp"),
    ("!", "a stamp that is malformed or does not match the body"),
    ("=", "caller and callee state the same request hash"),
    ("≠", "they state different ones: the request changed on its way"),
)
BAR_LEGEND: Final = (("━", "on the critical path"), ("─", "off it"), ("✗", "error"), ("⚑", "the finding's evidence"))

_DURATION: Final = 8
_STAMP: Final = 2


@dataclass(frozen=True)
class WaterfallRows:
    """The visible rows of a tree; a row is drawn when it is on the screen and not before."""

    tree: Tree
    nodes: tuple[Node, ...]
    places: Mapping[str, int]
    marked: AbstractSet[str]

    def __len__(self) -> int:
        return len(self.nodes)

    def key(self, index: int) -> str:
        """The span's identity."""
        return self.tree.keys[self.nodes[index].index]

    def find(self, key: str) -> int | None:
        """Where the span is drawn now."""
        return self.places.get(key)

    def header(self, width: int) -> Line:
        """Titles, and the time axis above the bars."""
        name, witness, bar = _widths(width)
        end = duration(self.tree.total_ns)
        axis = f"0{' ' * max(bar - 1 - len(end), 1)}{end}"
        titles = (fit("SERVICE operation", name), fit("WITNESS" if witness > 4 else "WITN", witness), "ST")
        return (Piece(" ".join((*titles, fit(axis, bar), fit("DURATION", _DURATION, right=True))), "header"),)

    def line(self, index: int, width: int) -> Line:
        """One span."""
        node = self.nodes[index]
        span = self.tree.spans[node.index]
        name, witness, bar = _widths(width)
        gap = Piece(" ")
        return (
            *_name(self.tree, node, name, marked=self.key(index) in self.marked),
            gap,
            *_witness_cell(self.tree, node.index, witness),
            gap,
            *_stamp_cell(self.tree, node.index),
            gap,
            *_bar(self.tree, span, bar),
            gap,
            Piece(fit(duration(span.duration_ns), _DURATION, right=True), "critical" if span.error else "plain"),
        )


def rows(tree: Tree, nodes: tuple[Node, ...], marked: AbstractSet[str]) -> WaterfallRows:
    """The rows of a waterfall."""
    return WaterfallRows(tree, nodes, {tree.keys[n.index]: i for i, n in enumerate(nodes)}, marked)


def _widths(width: int) -> tuple[int, int, int]:
    """Cells for the name, the witnesses and the bar."""
    witness = 7 if width >= 100 else 4
    rest = width - witness - _STAMP - _DURATION - 4
    bar = max(rest * 2 // 5, 8)
    return max(rest - bar, 8), witness, bar


def _name(tree: Tree, node: Node, width: int, *, marked: bool) -> Line:
    """Indentation, fold mark, error mark, service, operation; what is folded away is counted."""
    span = tree.spans[node.index]
    step = 2 if width >= 50 else 1
    room = max(width // 2, 4)
    indent = node.depth * step
    lead = " " * indent if indent <= room else fit(f"{node.depth}>", room, right=True)
    fold = "▸" if node.hidden else "▾" if node.has_children else " "
    flag = "✗" if span.error else " "
    count = f" +{node.hidden}" if node.hidden else ""
    orphan = "◌ " if tree.is_orphan(node.index) else ""
    proxy = "proxy " if span.witness == "proxy" else ""
    evidence = "⚑ " if marked else ""
    service_room = max(width - len(lead) - 3 - len(evidence) - len(count), 0)
    service = fit(
        f"{orphan}{proxy}{span.service_name}", min(service_room, cell_len(clean(orphan + proxy + span.service_name)))
    )
    operation = fit(f" {span.name}", max(service_room - cell_len(service), 0))
    return (
        Piece(lead + fold, "dim"),
        Piece(f"{flag} ", "critical"),
        Piece(evidence, "accent"),
        Piece(service, "dim" if proxy else "critical" if span.error else "strong"),
        Piece(operation, "dim" if proxy else "plain"),
        Piece(count, "accent"),
    )


_SIGHT_TONES: Final[dict[Sight, Tone]] = {"seen": "good", "missed": "critical", "unknown": "dim"}


def _witness_cell(tree: Tree, index: int, width: int) -> Line:
    hop = tree.hops.get(index)
    if hop is None:
        return (Piece(" " * width),)
    pieces: list[Piece] = []
    for letter, sight in zip("CcsS", sights(tree, index, hop), strict=True):
        if pieces and width >= 7:
            pieces.append(Piece(">", "dim"))
        glyph = letter if sight == "seen" else "-" if sight == "missed" else "?"
        pieces.append(Piece(glyph, _SIGHT_TONES[sight]))
    return tuple(pieces)


def sights(tree: Tree, index: int, hop: HopWitnesses) -> tuple[Sight, Sight, Sight, Sight]:
    """What is known of caller span, caller's proxy, callee's proxy and callee span.

    A root has no caller to miss; a call that leaves the mesh has no callee's span to miss. So an absent span is missed
    only where another span names it: the parent that never arrived.
    """
    client: Sight = "seen" if hop.client is not None else "missed" if _parent_is_lost(tree, index, hop) else "unknown"
    server: Sight = "seen" if hop.server is not None else "unknown"
    return client, hop.caller_proxy, hop.callee_proxy, server


def _parent_is_lost(tree: Tree, index: int, hop: HopWitnesses) -> bool:
    return tree.is_orphan(hop.proxies[-1] if hop.proxies else index)


def _stamp_cell(tree: Tree, index: int) -> Line:
    status = tree.spans[index].stamp_status
    bad = status in {STAMP_MALFORMED, STAMP_MISMATCHED}
    stamp = (
        Piece(" ")
        if status is None
        else Piece("✗" if status == STAMP_ABSENT else "!" if bad else "✓", _stamp_tone(status))
    )
    agreement = hash_agreement(tree, index)
    if agreement is None:
        return stamp, Piece(" ")
    return stamp, Piece("=", "good") if agreement else Piece("≠", "critical")


def _stamp_tone(status: str) -> Tone:
    return "high" if status == STAMP_ABSENT else "critical" if status in {STAMP_MALFORMED, STAMP_MISMATCHED} else "good"


def _bar(tree: Tree, span: TraceSpan, width: int) -> Line:
    """The span's place in the trace's time: heavy on the critical path, light off it, at least one cell."""
    start = (span.start_time_unix_nano - tree.start_unix_nano) * width // tree.total_ns
    end = -((tree.start_unix_nano - span.end_time_unix_nano) * width // tree.total_ns)
    start = max(0, min(start, width - 1))
    length = max(1, min(end, width) - start)
    glyph = "━" if span.on_critical_path else "─"
    tone: Tone = "critical" if span.error else "path" if span.on_critical_path else "accent"
    return Piece(" " * start), Piece(glyph * length, tone), Piece(" " * (width - start - length))


def summary(tree: Tree, *, proxies: bool) -> str:
    """One line above the waterfall."""
    spans = tree.spans
    services = len({s.service_name for s in spans})
    errors = sum(s.error for s in spans)
    folded = "" if proxies or not tree.folding else f", {len(tree.folding):,} folded (p)"
    return (
        f"{utc(tree.start_unix_nano)}  {duration(tree.total_ns)}  {plural(len(spans), 'span')}, "
        f"{plural(services, 'service')}, {plural(errors, 'error')}{folded}"
    )


def detail(tree: Tree, index: int) -> list[Block]:
    """Everything that is known of one span and of the hop that it stands for."""
    span = tree.spans[index]
    hop = tree.hops.get(index) or _hop_of(tree, index)
    return [
        Block("", f"{span.service_name}  {span.name}", "strong"),
        *_hop_blocks(tree, index, hop),
        Block("kind", f"{span.kind.lower()}, written by {'a proxy' if span.witness == 'proxy' else 'the application'}"),
        Block(
            "start", f"{utc(span.start_time_unix_nano)}  +{duration(span.start_time_unix_nano - tree.start_unix_nano)}"
        ),
        Block("duration", _durations(span)),
        Block("status", f"✗ error {span.status_message or ''}", "critical")
        if span.error
        else Block("status", "no error"),
        *([Block("to", span.destination)] if span.destination else []),
        Block(
            "span", f"{span.span_id}  parent {span.parent_span_id or 'none: a root'}{_orphan_note(tree, index)}", "dim"
        ),
        *_attribute_blocks(span.attributes),
        *_record_blocks(tree.trace.records, span),
    ]


def _durations(span: TraceSpan) -> str:
    own = f", {duration(span.self_time_ns)} of its own" if span.self_time_ns is not None else ""
    return f"{duration(span.duration_ns)}{own}{', on the critical path' if span.on_critical_path else ''}"


def _orphan_note(tree: Tree, index: int) -> str:
    return " (never arrived)" if tree.is_orphan(index) else ""


def _hop_of(tree: Tree, index: int) -> HopWitnesses | None:
    """The hop that a client's or a proxy's span belongs to, though it is drawn at the server's."""
    return next((h for h in tree.hops.values() if h.client == index or index in h.proxies), None)


_SIGHT_WORDS: Final[dict[Sight, str]] = {"seen": "seen", "missed": "NOT SEEN", "unknown": "unknown"}


def _hop_blocks(tree: Tree, index: int, hop: HopWitnesses | None) -> Sequence[Block]:
    span = tree.spans[index]
    blocks = [] if span.stamp_status is None else [Block("stamp", span.stamp_status, _stamp_tone(span.stamp_status))]
    if hop is not None:
        at = hop.server if hop.server is not None else hop.client
        parts = zip(
            ("caller's span", "caller's proxy", "callee's proxy", "callee's span"),
            sights(tree, at or 0, hop),
            strict=True,
        )
        words = ", ".join(f"{who} {_SIGHT_WORDS[sight]}" for who, sight in parts)
        missed = "missed" in sights(tree, at or 0, hop)
        blocks.append(
            Block("witness", words + (f" ({hop.reason})" if hop.reason else ""), "critical" if missed else "plain")
        )
        agreement = hash_agreement(tree, at) if at is not None else None
        if agreement is False:
            blocks.append(Block("hash", "≠ the caller sent other bytes than the callee received", "critical"))
        elif agreement:
            blocks.append(Block("hash", "= the callee received the bytes that the caller sent", "good"))
    if span.request_hash is not None:
        blocks.append(Block("sha-256", span.request_hash, "dim"))
    return blocks


def _attribute_blocks(attributes: Sequence[tuple[str, str]]) -> list[Block]:
    heading = Block("", plural(len(attributes), "attribute"), "header")
    return [heading, *(Block(f"{key:<10} ", value) for key, value in sorted(attributes))]


def _record_blocks(records: Sequence[ProxyRecord], span: TraceSpan) -> list[Block]:
    """Every access-log line of the trace's request ids, this service's first."""
    if not records:
        return [Block("", "no access-log line has this request's id", "dim")]
    ordered = sorted(records, key=lambda r: (r.service_name != span.service_name, r.start_time_unix_nano))
    return [
        Block("", f"access logs of this request: {plural(len(records), 'line')}", "header"),
        *(Block("", _record_line(r), "plain" if r.service_name == span.service_name else "dim") for r in ordered),
    ]


def _record_line(record: ProxyRecord) -> str:
    flags = f" [{record.response_flags}]" if record.response_flags else ""
    return (
        f"{utc(record.start_time_unix_nano)[11:]} {record.service_name}'s proxy {record.direction or 'either way'}: "
        f"{record.method or '?'} {record.path or '?'} {number(record.response_code)}{flags} "
        f"{duration(record.duration_ns)} to {record.upstream_host or '?'}"
    )


def essentials(tree: Tree, index: int) -> str:
    """What to paste into an incident channel."""
    span = tree.spans[index]
    return (
        f"trace {tree.trace.trace_id} span {span.span_id}: {span.service_name} {span.name}, {duration(span.duration_ns)}, "
        f"started {utc(span.start_time_unix_nano)}{', error ' + (span.status_message or '') if span.error else ''}"
    )

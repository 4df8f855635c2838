"""The three tabs' panes. Each knows what is on it: as rows, as text to copy, as a frame to export, as a question to show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import polars as pl
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.message import Message

from collector.forensics.findings import Finding
from tui.line import Line, Piece, plain
from tui.snapshots import Edge, Edges, EdgesView, Findings, FindingsView, Health, Hits, SearchView, TraceQuery, View
from tui.syntax import EXAMPLE, SearchSyntaxError, parse
from tui.views import calls, findings, traces
from tui.widgets.listing import Document, Listing, NoRows
from tui.widgets.painting import Label


@dataclass(frozen=True)
class Export:
    """What `x` writes: a name to start from, and the rows on the screen with all their columns."""

    stem: str
    frame: pl.DataFrame


class OpenTrace(Message):
    """A trace is to be opened, at a span if one is named; `evidence` are the traces that n and N go through."""

    def __init__(self, evidence: tuple[str, ...], at: int = 0, span_ids: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.evidence = evidence
        self.at = at
        self.span_ids = span_ids


class OpenSearch(Message):
    """The traces of this query are to be shown."""

    def __init__(self, query: TraceQuery) -> None:
        super().__init__()
        self.query = query


class Pane(Container):
    """What the panes have in common. `needle` is the filter in words; what is on the pane follows from snapshots."""

    hint: ClassVar[str] = "all of the words"

    def __init__(self, pane: str) -> None:
        super().__init__(id=pane)
        self.needle = ""
        self.now_unix_nano = 0

    @property
    def listing(self) -> Listing:
        """The pane's main list."""
        return self.query_one(".main", Listing)

    def view(self) -> View:
        """The question that the pane answers."""
        raise NotImplementedError

    def copy_text(self) -> str | None:
        """The selected row's essentials."""
        raise NotImplementedError

    def export(self) -> Export:
        """What is on the pane."""
        raise NotImplementedError

    def repaint(self, now_unix_nano: int) -> None:
        """Show the same snapshot at another time or through another filter."""
        raise NotImplementedError

    def live_filter(self, text: str) -> str | None:
        """Narrow the list while the filter is being typed; says what is wrong with the text, if anything."""
        self.needle = text
        self.repaint(self.now_unix_nano)
        return None

    def submit_filter(self, text: str) -> str | None:
        """Enter was pressed in the filter; says what is wrong with the text, if anything."""
        return self.live_filter(text)


class FindingsPane(Pane):
    """The findings, most severe on top, and the selected one in full."""

    KEYS_TITLE: ClassVar[str] = "Findings"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,l", "detail", "to the evidence", show=False),
        Binding("left,h", "list", "to the list", show=False),
    ]

    def __init__(self) -> None:
        super().__init__("findings")
        self.findings: Findings | None = None
        self.health: Health | None = None
        self.new: frozenset[str] = frozenset()
        self._shown: tuple[Finding, ...] = ()
        self._known: frozenset[str] | None = None
        self._next_evidence: dict[str, int] = {}

    def compose(self) -> ComposeResult:
        """List and detail."""
        yield Listing(id="findings-list", classes="main")
        yield Document(id="findings-detail", classes="detail")

    def receive(self, arrived: Findings, now_unix_nano: int) -> None:
        """Show other findings; what was not there before is marked as new until the cursor has been on it."""
        ids = frozenset(f.finding_id for f in arrived.items)
        if self._known is not None:
            self.new = (self.new | (ids - self._known)) & ids
        self._known = ids | (self._known or frozenset())
        self.findings = arrived
        self.repaint(now_unix_nano)

    def repaint(self, now_unix_nano: int) -> None:
        """Rows, or why there are none; and the selected finding."""
        self.now_unix_nano = now_unix_nano
        items = self.findings.items if self.findings is not None else ()
        self._shown = tuple(f for f in items if findings.matches(f, self.needle))
        if self._shown:
            self.listing.show(findings.rows(self._shown, self.new, now_unix_nano))
        else:
            self.listing.show(NoRows(findings.nothing(self.health, self.findings, self.needle, now_unix_nano)))
        self.set_class(not self._shown, "-empty")
        self._tell()

    def _tell(self, *, top: bool = False) -> None:
        finding = self.selected
        self.query_one(Document).tell(findings.detail(finding, self.now_unix_nano) if finding else (), top=top)

    @property
    def selected(self) -> Finding | None:
        """The finding under the cursor."""
        key = self.listing.cursor_key
        return next((f for f in self._shown if f.finding_id == key), None)

    def on_listing_highlighted(self, event: Listing.Highlighted) -> None:
        """Another finding: its detail, and it is not new any more."""
        event.stop()
        if event.listing.id == "findings-list":
            if event.key in self.new and event.listing.has_focus:
                self.new -= {event.key}
            self._tell(top=True)

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """A finding opens its next evidence trace, an evidence trace itself."""
        event.stop()
        finding = self.selected
        if finding is None:
            return
        if not finding.trace_ids:
            self.notify("This finding has no trace: its evidence is in the access logs alone.", markup=False)
            return
        if event.listing.id == "findings-list":
            at = self._next_evidence.get(finding.finding_id, 0) % len(finding.trace_ids)
            self._next_evidence[finding.finding_id] = at + 1
        else:
            at = finding.trace_ids.index(event.key)
        self.post_message(OpenTrace(finding.trace_ids, at, finding.span_ids))

    def action_detail(self) -> None:
        """Into the selected finding's evidence."""
        self.query_one(Document).focus()

    def action_list(self) -> None:
        """Back to the list."""
        self.listing.focus()

    def view(self) -> View:
        """The detectors' SQL."""
        return FindingsView()

    def copy_text(self) -> str | None:
        """The selected finding in four lines."""
        return findings.essentials(self.selected) if self.selected else None

    def export(self) -> Export:
        """The findings that pass the filter."""
        if self.findings is None:
            return Export("findings", pl.DataFrame())
        return Export("findings", _kept(self.findings.frame, self.findings.items, self._shown))


class CallsPane(Pane):
    """Who calls whom: RED per edge."""

    KEYS_TITLE: ClassVar[str] = "Calls"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("s", "sort", "sort")]

    def __init__(self) -> None:
        super().__init__("calls")
        self.edges: Edges | None = None
        self._shown: tuple[Edge, ...] = ()
        self._sort = 0

    def compose(self) -> ComposeResult:
        """One list."""
        yield Listing(id="calls-list", classes="main")

    def receive(self, arrived: Edges, now_unix_nano: int) -> None:
        """Show other edges."""
        self.edges = arrived
        self.repaint(now_unix_nano)

    def repaint(self, now_unix_nano: int) -> None:
        """Rows in the chosen order, or why there are none."""
        self.now_unix_nano = now_unix_nano
        items = self.edges.items if self.edges is not None else ()
        sort = calls.SORTS[self._sort]
        self._shown = tuple(calls.ordered([e for e in items if calls.matches(e, self.needle)], sort))
        if self._shown:
            self.listing.show(calls.rows(self._shown, sort, now_unix_nano))
        else:
            self.listing.show(NoRows((self._nothing(),)))

    def _nothing(self) -> Line:
        if self.edges is None:
            return plain("Reading the evidence…", "dim")
        if self.edges.items:
            return plain(f"None of {len(self.edges.items):,} edges matches “{self.needle}”. Esc clears the filter.")
        return plain("No calls yet: no service has sent a span of one.", "dim")

    @property
    def selected(self) -> Edge | None:
        """The edge under the cursor."""
        key = self.listing.cursor_key
        return next((e for e in self._shown if e.key == key), None)

    def action_sort(self) -> None:
        """The next order."""
        self._sort = (self._sort + 1) % len(calls.SORTS)
        self.repaint(self.now_unix_nano)

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """The traces of the edge."""
        event.stop()
        if self.selected is not None:
            self.post_message(OpenSearch(calls.traces_of(self.selected)))

    def view(self) -> View:
        """The SQL of the edges."""
        return EdgesView()

    def copy_text(self) -> str | None:
        """The selected edge in one line."""
        return calls.essentials(self.selected) if self.selected else None

    def export(self) -> Export:
        """The edges that pass the filter, in the order on the screen."""
        if self.edges is None:
            return Export("calls", pl.DataFrame())
        return Export("calls", _kept(self.edges.frame, self.edges.items, self._shown))


class TracesPane(Pane):
    """Traces that a search found."""

    hint: ClassVar[str] = EXAMPLE

    class Search(Message):
        """A search is to be asked."""

        def __init__(self, query: TraceQuery) -> None:
            super().__init__()
            self.query = query

    def __init__(self) -> None:
        super().__init__("traces")
        self.hits: Hits | None = None
        self.asked = TraceQuery()

    def compose(self) -> ComposeResult:
        """What was asked, and the list."""
        yield Label(id="traces-summary")
        yield Listing(id="traces-list", classes="main")

    def receive(self, arrived: Hits, now_unix_nano: int) -> None:
        """Show what the search found; another question starts at the top."""
        is_other = self.hits is None or self.hits.query != arrived.query
        self.hits = arrived
        self._paint(now_unix_nano, top=is_other)

    def repaint(self, now_unix_nano: int) -> None:
        """The same traces, later."""
        self._paint(now_unix_nano, top=False)

    def _paint(self, now_unix_nano: int, *, top: bool) -> None:
        self.now_unix_nano = now_unix_nano
        hits = self.hits
        said = traces.summary(hits, self.needle) if hits is not None else "searching…"
        self.query_one("#traces-summary", Label).said = (Piece(f" {said}", "dim"),)
        if hits is not None and hits.items:
            self.listing.show(traces.rows(hits.items, now_unix_nano), top=top)
        else:
            self.listing.show(NoRows(traces.nothing(hits, self.needle)))

    def live_filter(self, text: str) -> str | None:
        """Nothing is searched while typing, but a slip is told at once."""
        try:
            parse(text)
        except SearchSyntaxError as error:
            return str(error)
        return None

    def submit_filter(self, text: str) -> str | None:
        """Search."""
        try:
            query = parse(text)
        except SearchSyntaxError as error:
            return str(error)
        self.needle, self.asked = text.strip(), query
        self.post_message(self.Search(query))
        return None

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Open the trace; n and N go on through the list."""
        event.stop()
        ids = tuple(item.trace_id for item in self.hits.items) if self.hits else ()
        self.post_message(OpenTrace(ids, ids.index(event.key)))

    def view(self) -> View:
        """The SQL of the search."""
        return SearchView(self.asked)

    def copy_text(self) -> str | None:
        """The selected trace in one line."""
        key = self.listing.cursor_key
        items = self.hits.items if self.hits is not None else ()
        return next((traces.essentials(item) for item in items if item.trace_id == key), None)

    def export(self) -> Export:
        """Every trace that was found."""
        return Export("traces", self.hits.frame if self.hits is not None else pl.DataFrame())


def _kept(frame: pl.DataFrame, items: Sequence[object], shown: Sequence[object]) -> pl.DataFrame:
    """The frame's rows of the items that are shown, in their order."""
    places = {id(item): i for i, item in enumerate(items)}
    return frame[[places[id(item)] for item in shown]] if shown else frame.clear()

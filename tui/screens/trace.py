"""One trace as a waterfall, with the witnesses beside each hop and the selected span in full."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import polars as pl
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer

from tui.line import Piece, plain
from tui.messages import Failed, HopsArrived, TraceArrived
from tui.screens.base import EvidenceScreen
from tui.snapshots import TraceView, View
from tui.source import Evidence
from tui.tree import Tree, grow, visible
from tui.views import waterfall
from tui.widgets.bars import StatusLine
from tui.widgets.listing import Document, Listing, NoRows
from tui.widgets.painting import Label
from tui.widgets.panes import Export

TALL = 32
"""From this height on, the selected span's details are open at first."""


class TraceScreen(EvidenceScreen):
    """The waterfall."""

    KEYS_TITLE: ClassVar[str] = "Trace"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "details", "details", key_display="enter", show=False),
        Binding("space", "fold", "fold"),
        Binding("p", "proxies", "proxies"),
        Binding("e", "error(1)", "error"),
        Binding("E", "error(-1)", "previous error", show=False),
        Binding("c", "critical(1)", "path"),
        Binding("C", "critical(-1)", "back along the critical path", show=False),
        Binding("n", "other(1)", "next trace", show=False),
        Binding("N", "other(-1)", "previous trace", show=False),
        Binding("right,l", "read", "into the details", show=False),
        Binding("left,h", "tree", "to the tree", show=False),
        Binding("r", "reload", "refresh", show=False),
        Binding("y", "copy", "copy", show=False),
        Binding("x", "export", "export", show=False),
        Binding("escape,q,backspace", "back", "back", key_display="esc"),
    ]

    def __init__(self, evidence: tuple[str, ...], at: int, span_ids: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._evidence = evidence
        self._at = at
        self._span_ids = frozenset(span_ids)
        self._tree: Tree | None = None
        self._collapsed: frozenset[str] = frozenset()
        self._proxies = False

    @property
    def trace_id(self) -> str:
        """The trace on the screen."""
        return self._evidence[self._at]

    @property
    def listing(self) -> Listing:
        """The waterfall."""
        return self.query_one("#waterfall", Listing)

    def compose(self) -> ComposeResult:
        """Title, summary, waterfall, details, how things stand, keys."""
        yield Label(id="trace-title")
        yield Label(id="trace-summary")
        yield Listing(id="waterfall", classes="main")
        yield Document(id="span-detail", classes="detail")
        yield StatusLine()
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Ask for the trace; details are open where there is room."""
        self.set_class(self.app.size.height >= TALL, "-details")
        self.listing.focus()
        self._ask()

    def _ask(self) -> None:
        where = f" trace {self.trace_id}"
        more = f"   {self._at + 1} of {len(self._evidence):,}, n next" if len(self._evidence) > 1 else ""
        self.query_one("#trace-title", Label).said = (Piece(where, "strong"), Piece(more, "dim"))
        self._say("reading the trace…")
        trace_id, evidence = self.trace_id, self.workbench.evidence
        self.workbench.ask(self, "trace", "the trace", lambda: self._both(evidence, trace_id))

    def _both(self, evidence: Evidence, trace_id: str) -> HopsArrived:
        """On a worker's thread: the trace as soon as it is there, then what the proxies prove of its calls."""
        trace = evidence.trace(trace_id)
        self.post_message(TraceArrived(trace))
        return HopsArrived(trace_id, evidence.hops(trace))

    def _say(self, text: str) -> None:
        self.query_one("#trace-summary", Label).said = plain(f" {text}", "dim")

    # --- what arrives -------------------------------------------------------------------------------------------

    def on_trace_arrived(self, event: TraceArrived) -> None:
        """Show it, with the cursor on the finding's span if this is a finding's trace."""
        event.stop()
        if event.trace.trace_id != self.trace_id:
            return
        is_again = self._tree is not None and self._tree.trace.trace_id == event.trace.trace_id
        self._tree = grow(event.trace)
        if not event.trace.spans:
            self.listing.show(NoRows((plain("No span of this trace is in the evidence.", "medium"),)))
            self._say("0 spans")
            return
        self._paint(top=not is_again)
        if not is_again:
            self._go(self._first(lambda i: self._tree is not None and self._tree.spans[i].span_id in self._span_ids))

    def on_hops_arrived(self, event: HopsArrived) -> None:
        """The witnesses that only forensics can judge."""
        event.stop()
        tree = self._tree
        if tree is not None and tree.trace.trace_id == event.trace_id:
            self._tree = grow(replace(tree.trace, hops=event.hops))
            self._paint()

    def on_failed(self, event: Failed) -> None:
        """The app tells of it; here the screen says that it waits no more."""
        if self._tree is not None and event.lane == "trace":
            return  # the trace is there, its verdicts are not: the status line says why
        self._say(f"not answered: {event.reason}; r asks again")

    def _first(self, wanted: Callable[[int], bool]) -> int | None:
        count = len(self._tree.spans) if self._tree is not None else 0
        return next((i for i in range(count) if wanted(i)), None)

    def _paint(self, *, top: bool = False) -> None:
        tree = self._tree
        if tree is None or not tree.spans:
            return
        nodes = visible(tree, self._collapsed, proxies=self._proxies)
        self.listing.show(waterfall.rows(tree, nodes, self._span_ids), top=top)
        self._say(waterfall.summary(tree, proxies=self._proxies))
        self._tell()

    def _tell(self) -> None:
        at = self._cursor
        if self._tree is not None and at is not None and self.has_class("-details"):
            self.query_one(Document).tell(waterfall.detail(self._tree, at), top=True)

    @property
    def _cursor(self) -> int | None:
        key = self.listing.cursor_key
        return self._tree.places.get(key) if self._tree is not None and key is not None else None

    def on_listing_highlighted(self, event: Listing.Highlighted) -> None:
        """Another span: its details."""
        event.stop()
        if event.listing.id == "waterfall":
            self._tell()

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Enter on a span opens and closes its details."""
        event.stop()
        self.action_details()

    # --- keys ---------------------------------------------------------------------------------------------------

    def action_details(self) -> None:
        """Open or close the selected span's details."""
        self.toggle_class("-details")
        if not self.has_class("-details"):
            self.listing.focus()
        self.call_after_refresh(self._tell)

    def action_fold(self) -> None:
        """Fold or unfold what is beneath the selected span."""
        if (key := self.listing.cursor_key) is not None:
            self._collapsed ^= {key}
            self._paint()

    def action_proxies(self) -> None:
        """Show proxies' spans as rows of their own, or folded into their hop."""
        self._proxies = not self._proxies
        self._paint()

    def action_error(self, step: int) -> None:
        """The next or previous span with an error."""
        self._seek(lambda tree, i: tree.spans[i].error, step, "no other error in this trace")

    def action_critical(self, step: int) -> None:
        """Along the critical path."""
        self._seek(lambda tree, i: tree.spans[i].on_critical_path, step, "the critical path ends here")

    def _seek(self, wanted: Callable[[Tree, int], bool], step: int, otherwise: str) -> None:
        tree, at = self._tree, self._cursor
        if tree is None or at is None:
            return
        hidden = frozenset() if self._proxies else tree.folding
        way = range(at + step, len(tree.spans) if step > 0 else -1, step)
        found = next((i for i in way if i not in hidden and wanted(tree, i)), None)
        if found is None:
            self.notify(otherwise.capitalize() + ".", markup=False, timeout=2)
        self._go(found)

    def _go(self, index: int | None) -> None:
        """Put the cursor on a span, unfolding whatever hides it."""
        tree = self._tree
        if tree is None or index is None:
            return
        above = {tree.keys[i] for i in tree.ancestors(index)} & self._collapsed
        needs_proxies = index in tree.folding and not self._proxies
        if above or needs_proxies:
            self._collapsed -= above
            self._proxies = self._proxies or needs_proxies
            self._paint()
        self.listing.select(tree.keys[index])

    def action_other(self, step: int) -> None:
        """The next or previous trace of the finding or the search."""
        if len(self._evidence) > 1:
            self._at = (self._at + step) % len(self._evidence)
            self._tree, self._collapsed = None, frozenset()
            self.listing.show(NoRows(), top=True)
            self._ask()

    def action_read(self) -> None:
        """Into the details, opening them."""
        self.add_class("-details")
        self.query_one(Document).focus()
        self.call_after_refresh(self._tell)

    def action_tree(self) -> None:
        """Back to the tree."""
        self.listing.focus()

    def action_reload(self) -> None:
        """Ask again: more spans may have arrived."""
        self._ask()

    def action_back(self) -> None:
        """To the list that this was opened from."""
        self.workbench.evidence.interrupt("trace")
        self.dismiss(None)

    # --- what every screen can do -------------------------------------------------------------------------------

    def view(self) -> View:
        """The SQL of the trace."""
        starts = [s.start_time_unix_nano for s in self._tree.spans] if self._tree is not None else []
        return TraceView(self.trace_id, min(starts), max(starts)) if starts else TraceView(self.trace_id)

    def copy_text(self) -> str | None:
        """The selected span in one line."""
        at = self._cursor
        return waterfall.essentials(self._tree, at) if self._tree is not None and at is not None else None

    def export(self) -> Export:
        """Every span of the trace."""
        frame = self._tree.trace.frame if self._tree is not None else pl.DataFrame()
        return Export(f"trace-{self.trace_id[:12]}", frame)

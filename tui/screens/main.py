"""The workbench's main screen: findings, calls, traces. It asks, and shows what arrives."""

from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.events import Resize
from textual.widgets import ContentSwitcher, Footer, Input

from tui.line import plain
from tui.messages import EdgesArrived, Failed, FindingsArrived, HitsArrived, LiveFinished, StatusArrived
from tui.screens.base import EvidenceScreen
from tui.screens.trace import TraceScreen
from tui.snapshots import Health, TraceQuery, View
from tui.source import Evidence
from tui.syntax import render
from tui.widgets.bars import StatusLine, Tab, TabBar
from tui.widgets.painting import Label
from tui.widgets.panes import CallsPane, Export, FindingsPane, OpenSearch, OpenTrace, Pane, TracesPane

if TYPE_CHECKING:
    from textual.timer import Timer

PANES: Final = ("findings", "calls", "traces")
WIDE: Final = 120
"""From this width on, the selected finding stands beside the list."""

_REST: Final = 2.0
"""The live lane rests at least this many times as long as its last round took: watching must not load the watched."""

_REPAINT_SECONDS: Final = 5.0
"""How often relative times in lists move on; the clock and the status line do every second."""


class FilterInput(Input):
    """The filter's line; Esc clears and leaves it, Enter keeps it."""

    KEYS_TITLE: ClassVar[str] = "Filter and search"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "keep", key_display="enter"),
        Binding("escape", "screen.clear_filter", "clear"),
        Binding("down", "screen.leave_filter", "to the list", show=False),
    ]


class MainScreen(EvidenceScreen):
    """Findings first."""

    KEYS_TITLE: ClassVar[str] = "Main screen"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "pane('findings')", "findings", show=False),
        Binding("2", "pane('calls')", "calls", show=False),
        Binding("3", "pane('traces')", "traces", show=False),
        Binding("tab", "turn(1)", "next tab", show=False),
        Binding("shift+tab", "turn(-1)", "previous tab", show=False),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("r", "refresh_now", "refresh", show=False),
        Binding("escape", "clear_filter", "clear the filter", show=False),
        Binding("q", "app.quit", "quit"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._filters = dict.fromkeys(PANES, "")
        self._asked_for: Health | None = None
        self._next: Timer | None = None
        self._seconds = 0.0

    def compose(self) -> ComposeResult:
        """Tabs, the pane, its filter, how things stand, keys."""
        yield TabBar()
        with ContentSwitcher(initial=PANES[0]):
            yield FindingsPane()
            yield CallsPane()
            yield TracesPane()
        with Horizontal(id="filter"):
            yield Label(id="filter-mark")
            yield FilterInput(compact=True, select_on_focus=False)
        yield Label(id="filter-note")
        yield StatusLine()
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Paint at once, then ask."""
        self.query_one("#filter-mark", Label).said = plain(" / ", "accent")
        self._tabs()
        for pane in self.query(Pane):
            pane.repaint(self.workbench.clock())
        self._pane.listing.focus()
        self.call_after_refresh(self._refresh)
        self.set_interval(1.0, self._tick)
        self.set_interval(_REPAINT_SECONDS, self._repaint)

    def on_resize(self, event: Resize) -> None:
        """Beside or below."""
        self.set_class(event.size.width >= WIDE, "-wide")

    # --- asking -------------------------------------------------------------------------------------------------

    def _refresh(self, *, anyway: bool = False) -> None:
        """One round of the live lane: status, then findings and edges if anything has arrived since the last."""
        if self.workbench.is_asking("live"):
            return
        if anyway:
            self._asked_for = None
        evidence, known = self.workbench.evidence, self._asked_for
        self.workbench.ask(self, "live", "the evidence", lambda: self._round(evidence, known))

    def _round(self, evidence: Evidence, known: Health | None) -> LiveFinished:
        """On a worker's thread: posts each snapshot as soon as there is one."""
        began = monotonic()
        health = evidence.status()
        self.post_message(StatusArrived(health))
        if known is None or evidence.has_moving_window or health != known:
            self.post_message(FindingsArrived(evidence.findings()))
            self.post_message(EdgesArrived(evidence.edges()))
        return LiveFinished(health, monotonic() - began)

    def on_live_finished(self, event: LiveFinished) -> None:
        """The next round, after a rest in proportion to what this one cost."""
        self._asked_for = event.health
        self._schedule(event.seconds)

    def _schedule(self, seconds: float) -> None:
        if self._next is not None:
            self._next.stop()
        if self.workbench.evidence.is_live:
            self._next = self.set_timer(max(self.workbench.refresh_seconds, _REST * seconds), self._refresh)

    def on_failed(self, event: Failed) -> None:
        """A live round that failed is tried again; the app tells of it."""
        if event.lane == "live":
            self._asked_for = None
            self._schedule(0.0)

    def _search(self, query: TraceQuery) -> None:
        evidence = self.workbench.evidence
        self.workbench.ask(self, "search", "the search", lambda: HitsArrived(evidence.search(query)))

    # --- what arrives -------------------------------------------------------------------------------------------

    def on_status_arrived(self, event: StatusArrived) -> None:
        """How much there is; the app shows it, an empty list of findings explains itself with it."""
        self.workbench.note_health(event.health)
        self.query_one(FindingsPane).health = event.health

    def on_findings_arrived(self, event: FindingsArrived) -> None:
        """The findings."""
        self.workbench.note_findings(event.findings)
        self.query_one(FindingsPane).receive(event.findings, self.workbench.clock())
        self._tabs()

    def on_edges_arrived(self, event: EdgesArrived) -> None:
        """The calls."""
        self.query_one(CallsPane).receive(event.edges, self.workbench.clock())
        self._tabs()
        if self._pane.id == "traces":
            self._search(self.query_one(TracesPane).asked)

    def on_hits_arrived(self, event: HitsArrived) -> None:
        """The traces of the last search."""
        pane = self.query_one(TracesPane)
        if event.hits.query == pane.asked:
            pane.receive(event.hits, self.workbench.clock())
            self._tabs()

    def _tick(self) -> None:
        self.workbench.note_time()
        self.query_one(TabBar).now_unix_nano = self.workbench.clock()

    def _repaint(self) -> None:
        self._pane.repaint(self.workbench.clock())

    def _tabs(self) -> None:
        found, edges = self.query_one(FindingsPane).findings, self.query_one(CallsPane).edges
        bar = self.query_one(TabBar)
        bar.tabs = (
            Tab("findings", "Findings", len(found.items) if found is not None else None),
            Tab("calls", "Calls", len(edges.items) if edges is not None else None),
            Tab("traces", "Traces"),
        )
        bar.active = self._pane.id or ""
        bar.now_unix_nano = self.workbench.clock()

    # --- panes --------------------------------------------------------------------------------------------------

    @property
    def _pane(self) -> Pane:
        return self.query_one(f"#{self.query_one(ContentSwitcher).current}", Pane)

    def action_pane(self, pane: str) -> None:
        """Show a tab."""
        self.query_one(ContentSwitcher).current = pane
        self.query_one(FilterInput).value = self._filters[pane]
        self._show_filter(bool(self._filters[pane]))
        self._pane.listing.focus()
        self._repaint()
        self._tabs()
        if pane == "traces":
            self._search(self.query_one(TracesPane).asked)

    def action_turn(self, step: int) -> None:
        """The next tab."""
        self.action_pane(PANES[(PANES.index(self._pane.id or PANES[0]) + step) % len(PANES)])

    def on_tab_bar_picked(self, event: TabBar.Picked) -> None:
        """A tab was clicked."""
        self.action_pane(event.pane)

    def on_traces_pane_search(self, event: TracesPane.Search) -> None:
        """Search."""
        self._search(event.query)

    def on_open_search(self, event: OpenSearch) -> None:
        """The traces of an edge."""
        self._filters["traces"] = render(event.query)
        self.action_pane("traces")
        self.query_one(TracesPane).submit_filter(self._filters["traces"])

    def on_open_trace(self, event: OpenTrace) -> None:
        """The waterfall."""
        self.app.push_screen(TraceScreen(event.evidence, event.at, event.span_ids))

    # --- the filter ---------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While a filter is typed its keys are the only ones."""
        if action == "filter" and isinstance(self.focused, FilterInput):
            return False
        return super().check_action(action, parameters)

    def action_filter(self) -> None:
        """Type a filter or a search."""
        self._show_filter(True)
        self._note(None)
        self.query_one(FilterInput).focus()

    def action_clear_filter(self) -> None:
        """No filter, and back to the list."""
        had_one = bool(self._filters[self._pane.id or ""])
        self._filters[self._pane.id or ""] = ""
        self.query_one(FilterInput).value = ""
        self._show_filter(False)
        self._pane.listing.focus()
        if had_one:
            self._pane.submit_filter("")

    def action_leave_filter(self) -> None:
        """Back to the list, the filter stays."""
        self._pane.listing.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Narrow as it is typed."""
        event.stop()
        if event.input.has_focus:
            self._filters[self._pane.id or ""] = event.value
            self._note(self._pane.live_filter(event.value))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Search, or keep the filter."""
        event.stop()
        problem = self._pane.submit_filter(event.value)
        self._note(problem)
        if problem is None:
            self._show_filter(bool(event.value.strip()))
            self._pane.listing.focus()

    def _note(self, problem: str | None) -> None:
        note = plain(f" ✗ {problem}", "critical") if problem else plain(f" {self._pane.hint}", "dim")
        self.query_one("#filter-note", Label).said = note

    def on_descendant_focus(self) -> None:
        """The note stands below the filter while it is typed."""
        self.set_class(isinstance(self.focused, FilterInput), "-typing")

    def _show_filter(self, shown: bool) -> None:  # noqa: FBT001 - it is the value
        self.set_class(shown, "-filtering")

    # --- what every screen can do -------------------------------------------------------------------------------

    def action_refresh_now(self) -> None:
        """Ask everything again."""
        self._refresh(anyway=True)

    def view(self) -> View:
        """The pane's question."""
        return self._pane.view()

    def copy_text(self) -> str | None:
        """The pane's selected row."""
        return self._pane.copy_text()

    def export(self) -> Export:
        """What is on the pane."""
        return self._pane.export()

"""Where the screens' snapshots come from: the `Evidence` Protocol, and its one real implementation over a `Source`.

Every method of `Evidence` blocks and is called from worker threads only; each raises `CollectorError`s and nothing else
on purpose. There are three lanes, so that an interrupted search never takes the refresh down with it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal, Protocol

from collector.client import Source
from collector.commands.scope import Scope
from collector.errors import SourceUnreachableError
from tui.snapshots import (
    SEARCH_LIMIT,
    Edges,
    EdgesView,
    Findings,
    FindingsView,
    Health,
    Hits,
    Hop,
    SearchView,
    Trace,
    TraceQuery,
    TraceView,
    View,
    decode_edges,
    decode_findings,
    decode_hits,
    decode_trace,
)

if TYPE_CHECKING:
    from collector.forensics.search import TraceFilter
    from collector.forensics.short_cuts import ShortCuts
    from collector.forensics.tables import Window

Lane = Literal["live", "search", "trace"]

LAID_OUT_CHARACTERS: Final = 30_000
"""Longer statements stay on one line: half a second of a processor below it, seven seconds for the longest there is."""


class Evidence(Protocol):
    """What the workbench asks."""

    @property
    def name(self) -> str:
        """What the user typed."""
        ...

    @property
    def is_live(self) -> bool:
        """Whether more may arrive: a collector, not a file."""
        ...

    @property
    def has_moving_window(self) -> bool:
        """Whether the same evidence may answer otherwise later, because the window moves with the clock."""
        ...

    def status(self) -> Health:
        """How much evidence there is."""
        ...

    def findings(self) -> Findings:
        """What the detectors found."""
        ...

    def edges(self) -> Edges:
        """Who calls whom, how often, how badly, how slowly."""
        ...

    def search(self, query: TraceQuery) -> Hits:
        """The traces that match."""
        ...

    def trace(self, trace_id: str) -> Trace:
        """One trace whole, without verdicts on its hops: those take longer."""
        ...

    def hops(self, trace: Trace) -> tuple[Hop, ...]:
        """What the proxies prove of the trace's calls."""
        ...

    def sql_of(self, view: View) -> str:
        """The SQL that answers a view, to be run anywhere else: one statement, or several, each below `-- its name` and ended by `;`."""
        ...

    def interrupt(self, lane: Lane) -> None:
        """End what this lane is asking; any thread may call it."""
        ...

    def close(self) -> None:
        """Let go of the source."""
        ...


class SourceEvidence:
    """`Evidence` over a file or a collector: forensics decides, this only asks and decodes."""

    def __init__(
        self,
        first: Source,
        reopen: Callable[[], Source],
        *,
        is_live: bool,
        scope: Scope | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._name = first.name
        self._sources: dict[Lane, Source] = {"live": first}
        self._is_closed = False
        self._reopen = reopen
        self._scope = scope or Scope()
        self._clock = clock
        self._lock = threading.Lock()
        self._is_live = is_live

    @property
    def name(self) -> str:
        """What the user typed."""
        return self._name

    @property
    def is_live(self) -> bool:
        """Whether more may arrive."""
        return self._is_live

    @property
    def has_moving_window(self) -> bool:
        """Whether the window moves with the clock."""
        return self._scope.is_moving

    def status(self) -> Health:
        """How much evidence there is, from `forensics.status`."""
        from collector.forensics.status import status
        from tui.health import health_of

        source = self._lane("live")
        return health_of(status(source.query), source.lacks)

    def findings(self) -> Findings:
        """Every detector's findings in the window."""
        from collector.forensics.scan import examine

        scope = self._scope
        scan = examine(
            self._lane("live").query,
            window=self._window(),
            shadow=scope.shadow(),
            egress=scope.egress(),
            latency=scope.latency(),
        )
        return decode_findings(scan.findings, scan.notes)

    def edges(self) -> Edges:
        """RED per edge in the window."""
        from collector.forensics.edges import edges

        return decode_edges(edges(self._lane("live").query, self._window()))

    def search(self, query: TraceQuery) -> Hits:
        """The traces that match, in the window."""
        from collector.forensics.search import search

        return decode_hits(query, search(self._lane("search").query, self._filter(query)))

    def trace(self, trace_id: str) -> Trace:
        """One trace and its access-log records."""
        from collector.forensics.traces import trace, trace_records

        query = self._lane("trace").query
        return decode_trace(trace_id, trace(query, trace_id), trace_records(query, trace_id))

    def hops(self, trace: Trace) -> tuple[Hop, ...]:
        """Forensics' verdicts on the trace's calls."""
        from tui.hops import hops

        return hops(self._lane("trace").query, trace)

    def sql_of(self, view: View) -> str:
        """Exactly the SQL that the view's method runs."""
        from collector.forensics import edges, search
        from collector.forensics.short_cuts import short_cuts

        match view:
            case FindingsView():
                return self._findings_sql()
            case EdgesView():
                return _laid_out(edges.edges_sql(self._window()))
            case SearchView(query):
                wanted, ask = self._filter(query), self._lane("search").query
                return _join(search.search_sql(wanted, search.known_to(ask, wanted)))
            case TraceView():
                return _trace_sql(view, short_cuts(self._lane("trace").query))

    def interrupt(self, lane: Lane) -> None:
        """End the lane's running query with a QueryError; nothing happens when none runs."""
        with self._lock:
            source = self._sources.get(lane)
        if source is not None:
            source.interrupt()

    def close(self) -> None:
        """Interrupt and close every lane, once; whoever asks afterwards is told that it is closed."""
        with self._lock:
            self._is_closed = True
            sources, self._sources = list(self._sources.values()), {}
        for source in sources:
            with contextlib.closing(source):
                source.interrupt()

    def _lane(self, lane: Lane) -> Source:
        """The lane's own source. It is opened outside the lock: `interrupt` is called on the event loop and must not wait."""
        with self._lock:
            known = self._of(lane)
        if known is not None:
            return known
        opened = self._reopen()
        with self._lock, contextlib.ExitStack() as undo:
            undo.callback(opened.close)
            known = self._of(lane)
            if known is None:
                self._sources[lane] = known = opened
                undo.pop_all()
            return known

    def _of(self, lane: Lane) -> Source | None:
        if self._is_closed:
            raise SourceUnreachableError(f"{self.name}: this source is closed")
        return self._sources.get(lane)

    def _window(self) -> "Window":
        return self._scope.window(self._clock())

    def _filter(self, query: TraceQuery) -> "TraceFilter":
        from collector.forensics.search import TraceFilter

        return TraceFilter(
            service=query.service,
            operation=query.operation,
            text=query.text,
            min_duration_ns=query.min_duration_ns,
            max_duration_ns=query.max_duration_ns,
            errors_only=query.errors_only,
            window=self._window(),
            limit=SEARCH_LIMIT,
            order=query.order,
        )

    def _findings_sql(self) -> str:
        from collector.forensics.egress import egress_sql
        from collector.forensics.latency import latency_sql
        from collector.forensics.shadow import shadow_sql

        window = self._window()
        parts = {
            "shadow": shadow_sql(window, self._scope.shadow()),
            "egress": egress_sql(window, self._scope.egress()),
            "latency": latency_sql(window, self._scope.latency()),
        }
        return "\n\n".join(_join(statements, of) for of, statements in parts.items())


def _trace_sql(view: TraceView, known: "ShortCuts") -> str:
    from collector.forensics import traces
    from collector.forensics.tables import Window
    from tui.hops import verdicts_sql

    parts = {
        "spans": traces.trace_sql(view.trace_id, known),
        "access log": traces.trace_records_sql(view.trace_id, known),
    }
    if view.first_start_unix_nano is not None and view.last_start_unix_nano is not None:
        window = Window(view.first_start_unix_nano, view.last_start_unix_nano + 1)
        parts["verdicts"] = verdicts_sql(view.trace_id, window)
    return _join(parts)


def _join(parts: Mapping[str, str] | str, of: str = "") -> str:
    """Several statements as one text, each under the name of what it answers."""
    if isinstance(parts, str):
        return _laid_out(parts)
    titles = {f"-- {of} {name}".replace("--  ", "-- "): sql for name, sql in parts.items()}
    return "\n\n".join(f"{title}\n{_laid_out(sql)};" for title, sql in titles.items())


def _laid_out(sql: str) -> str:
    """A statement on many lines, as far as that is cheap; what is longer nobody reads, but it can be copied and run."""
    import sqlglot

    sql = sql.rstrip().rstrip(";")
    return sql if len(sql) > LAID_OUT_CHARACTERS else sqlglot.transpile(sql, "duckdb", "duckdb", pretty=True)[0]

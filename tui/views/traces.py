"""Traces that a search found, as rows."""

from collections.abc import Sequence
from typing import Final

from tui.columns import Cell, Column, TableRows, table
from tui.line import Line, plain
from tui.snapshots import Hits, TraceSummary
from tui.syntax import EXAMPLE
from tui.text import ago, duration, number, plural, utc

COLUMNS: Final = (
    Column("START (UTC)", 13),
    Column("SERVICE", 12, grow=2, most=24),
    Column("OPERATION", 14, grow=5, most=60),
    Column("DURATION", 8, right=True),
    Column("ERRORS", 6, right=True),
    Column("SPANS", 6, right=True),
    Column("SERVICES", 8, right=True, rank=2),
    Column("LAST", 9, right=True, rank=1),
    Column("TRACE", 32, rank=3),
)


def rows(items: Sequence[TraceSummary], now_unix_nano: int) -> TableRows[TraceSummary]:
    """The list of traces."""

    def cells(item: TraceSummary) -> Sequence[Cell]:
        return (
            Cell(utc(item.start_time_unix_nano)[11:]),
            Cell(item.root_service, "strong"),
            Cell(item.root_operation),
            Cell(duration(item.duration_ns)),
            Cell(f"✗ {number(item.error_count)}", "critical") if item.error_count else Cell("0", "dim"),
            Cell(number(item.span_count)),
            Cell(number(item.service_count)),
            Cell(ago(item.start_time_unix_nano, now_unix_nano), "dim"),
            Cell(item.trace_id, "dim"),
        )

    return table(COLUMNS, items, lambda item: item.trace_id, cells)


def nothing(hits: Hits | None, query_text: str) -> tuple[Line, ...]:
    """Why the list is empty."""
    if hits is None:
        return (plain("Searching…", "dim"),)
    if not query_text:
        return (plain("No traces yet."), plain("They appear as soon as spans arrive; r asks again.", "dim"))
    return (plain(f"No trace matches “{query_text}”."), plain(f"/ changes the search, for example {EXAMPLE}", "dim"))


def summary(hits: Hits, query_text: str) -> str:
    """One line above the list."""
    count = f"{len(hits.items):,} or more traces" if hits.is_cut else plural(len(hits.items), "trace")
    return f"{count}, {hits.query.order} first" + (f", for “{query_text}”" if query_text else "")


def essentials(item: TraceSummary) -> str:
    """What to paste into an incident channel."""
    return (
        f"trace {item.trace_id}: {item.root_service} {item.root_operation}, {duration(item.duration_ns)}, "
        f"{plural(item.error_count, 'error')} in {plural(item.span_count, 'span')} of "
        f"{plural(item.service_count, 'service')}, started {utc(item.start_time_unix_nano)}"
    )

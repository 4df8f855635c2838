"""Edges as rows of RED metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tui.columns import Cell, Column, TableRows, table
from tui.snapshots import Edge, TraceQuery
from tui.text import ago, duration, number, percent, rate, utc

COLUMNS: Final = (
    Column("CALLER", 10, grow=2, most=24),
    Column("CALLEE", 10, grow=2, most=24),
    Column("OPERATION", 20, grow=5, most=48),
    Column("CALLS", 7, right=True, rank=5),
    Column("RATE/s", 6, right=True),
    Column("", 8, rank=3, grow=1, most=12),
    Column("ERRORS", 7, right=True),
    Column("P50", 7, right=True),
    Column("", 8, rank=1, grow=1, most=12),
    Column("P95", 7, right=True, rank=2),
    Column("P99", 7, right=True, rank=4),
    Column("LAST", 9, right=True, rank=7),
)


@dataclass(frozen=True, slots=True)
class Sort:
    """One order of the table: its name on screen, and the column whose title carries the mark."""

    name: str
    column: int
    descending: bool = True


SORTS: Final = (
    Sort("errors", 6),
    Sort("p50", 7),
    Sort("p95", 9),
    Sort("rate", 4),
    Sort("caller", 0, descending=False),
    Sort("callee", 1, descending=False),
)


def _value(edge: Edge, sort: Sort) -> tuple[float | str, ...]:
    match sort.name:
        case "errors":
            return (edge.error_ratio, edge.calls)
        case "p50":
            return (edge.duration_ns_p50 or 0.0,)
        case "p95":
            return (edge.duration_ns_p95 or 0.0,)
        case "rate":
            return (edge.request_rate,)
        case "caller":
            return (edge.caller or "", edge.callee, edge.operation)
        case _:
            return (edge.callee, edge.operation, edge.caller or "")


def ordered(items: Sequence[Edge], sort: Sort) -> list[Edge]:
    """The edges in that order; equal ones by name, so that rows do not jump about at a refresh."""
    by_name = sorted(items, key=lambda e: e.key)
    return sorted(by_name, key=lambda e: _value(e, sort), reverse=sort.descending)


def rows(items: Sequence[Edge], sort: Sort, now_unix_nano: int) -> TableRows[Edge]:
    """The table, with the sorted column marked."""
    arrow = "▼" if sort.descending else "▲"
    columns = tuple(
        Column(f"{c.title}{arrow}", c.width, c.grow, c.rank, c.right, c.most) if i == sort.column else c
        for i, c in enumerate(COLUMNS)
    )

    def cells(edge: Edge) -> Sequence[Cell]:
        failing = edge.error_ratio > 0
        return (
            Cell(caller_name(edge), "dim" if edge.caller is None else "plain"),
            Cell(f"↗ {edge.callee}" if edge.is_external else edge.callee, "strong"),
            Cell(edge.operation),
            Cell(number(edge.calls), "dim"),
            Cell(rate(edge.request_rate)),
            Cell("", "accent", series=edge.rate_series),
            Cell(f"✗ {percent(edge.error_ratio)}" if failing else "0", "critical" if failing else "dim"),
            Cell(duration(edge.duration_ns_p50)),
            Cell("", "accent", series=edge.duration_series),
            Cell(duration(edge.duration_ns_p95)),
            Cell(duration(edge.duration_ns_p99), "dim"),
            Cell(ago(edge.last_seen_unix_nano, now_unix_nano), "dim"),
        )

    return table(columns, items, lambda e: e.key, cells)


def traces_of(edge: Edge) -> TraceQuery:
    """The search that brings this edge's traces."""
    if edge.is_external:
        return TraceQuery(service=edge.caller, text=edge.callee)
    return TraceQuery(service=edge.callee, operation=edge.operation or None)


def caller_name(edge: Edge) -> str:
    """The caller, or that nothing inside called."""
    return edge.caller or "(outside)"


def matches(edge: Edge, needle: str) -> bool:
    """Whether every word of `needle` is in the edge's names."""
    haystack = f"{caller_name(edge)} → {edge.callee} {edge.operation}".casefold()
    return all(word in haystack for word in needle.casefold().split())


def essentials(edge: Edge) -> str:
    """What to paste into an incident channel."""
    return (
        f"{caller_name(edge)} → {edge.callee} {edge.operation}: {number(edge.calls)} calls, "
        f"{rate(edge.request_rate)}/s, errors {percent(edge.error_ratio)}, "
        f"p50 {duration(edge.duration_ns_p50)}, p95 {duration(edge.duration_ns_p95)}, p99 {duration(edge.duration_ns_p99)}, "
        f"last {utc(edge.last_seen_unix_nano, millis=False)}"
    )

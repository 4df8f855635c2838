"""What an edge did at the same time on earlier days: what it does every night at three is no incident at three.

A stretch in which an edge is slower than around it is held against the same stretch 24 h, 48 h, … earlier, by the quantile that tells it. No time
zone and no weekday: days without calls enough do not count, and of those that do the median decides, so that an incident yesterday
excuses nothing. A deployment that made an edge slower for good was on no earlier day, and is told; days later everything around it is slow too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Final

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.durations import SlowEdge, Usual, durations, during, is_edge
from collector.forensics.shifts import ShiftParams, least_calls
from collector.forensics.statements import compiled_once, number, windowed
from collector.forensics.tables import NS_PER_S, Query, Window, compile_sql, spans

DAY_NS: Final = 24 * 3600 * NS_PER_S

MAX_WINDOW_NS: Final = DAY_NS // 2
"""A longer window is held against itself alone: a deployment of yesterday noon would be half of a whole day before, and told again."""


@dataclass(frozen=True, slots=True)
class History:
    """How far back is asked, and from when on there is anything to ask.

    Attributes:
        first_unix_nano: When the evidence begins: days before are not asked about.
        days: How many earlier days are asked about at most.
        min_days: With calls enough on fewer of them nothing is usual.
    """

    first_unix_nano: int
    days: int
    min_days: int


def unusual(
    query: Query,
    slow: Sequence[SlowEdge],
    history: History,
    params: ShiftParams,
    *,
    rows: Callable[[Window], ir.Table] = durations,
    around: Window | None = None,
) -> list[SlowEdge]:
    """The slow edges that were not as slow at the same time on most earlier days, with what they were then.

    Args:
        query: Raises what a source's `query` raises.
        slow: In the order in which they are given back.
        history: The days to ask about.
        params: By how much an edge must be slower than usual, as it must be than around it.
        rows: What is slow, as `durations_in` has it, of a window.
        around: The window of today's rows, where a row's duration depends on what else is in it: then each day's is of the same hours. By
            default from the first shift to the end of the last.
    """
    if not slow:
        return []
    earlier: list[list[float]] = [[] for _ in slow]
    first, last = min(e.shift.start_unix_nano for e in slow), max(e.shift.end_unix_nano for e in slow)
    today = Window(first, last) if around is None else around

    @cache  # one statement for all days: compiling it takes longer than it does
    def statement(window: Window) -> str:
        return compile_sql(_at_the_same_time(rows(window), number("value"), slow))

    for back in range(DAY_NS, (history.days + 1) * DAY_NS, DAY_NS):
        if last - back <= history.first_unix_nano:
            break
        sql = windowed(today.moved(-back), statement, value=first - back)
        for row in query(sql).iter_rows(named=True):
            edge = slow[row["edge"]]
            if row["calls"] >= max(params.min_calls, least_calls(edge.shift.quantile)):
                earlier[row["edge"]].append(row[_column(edge.shift.quantile)])
    told = [
        replace(edge, usual=Usual(len(ns), median(ns))) if len(ns) >= history.min_days else edge
        for edge, ns in zip(slow, earlier, strict=True)
    ]
    return [e for e in told if e.usual is None or params.is_slower(e.shift.quantile, e.usual.ns, e.shift.during_ns)]


def day_before(query: Query, window: Window, params: ShiftParams) -> Window | None:
    """The same hours a day earlier, if an operation's median rose since then by what a person would care about.

    A window that is slow from end to end has nothing normal in it. To know that one is, spans are grouped by name, without following
    calls: that is a fraction of what the search takes. None where the window has no start, is longer than
    `MAX_WINDOW_NS`, or is as fast as the day before.
    """
    since, until = window.since_unix_nano, window.until_unix_nano
    if since is None:
        return None
    if until is None:
        until = query(compiled_once(_end))["end"][0]
    if until is None or not 0 < until - since <= MAX_WINDOW_NS:
        return None
    window, earlier = Window(since, until), Window(since - DAY_NS, until - DAY_NS)
    was, now = (query(windowed(w, lambda blank: compiled_once(_medians, blank))) for w in (earlier, window))
    both = now.join(was, on=["service_name", "name"], suffix="_before")
    both = both.filter((pl.col("calls") >= params.min_calls) & (pl.col("calls_before") >= params.min_calls))
    pairs = both.select("duration_ns_before", "duration_ns").iter_rows()
    return earlier if any(params.is_slower(0.5, before, during) for before, during in pairs) else None


def _end() -> ir.Table:
    return spans().aggregate(end=spans().start_time_unix_nano.max() + 1)


def _medians(window: Window) -> ir.Table:
    table = window.of(spans())
    table = table.filter(table.witness != "proxy")
    return table.group_by("service_name", "name").aggregate(
        calls=table.count(), duration_ns=table.duration_ns.cast("float64").approx_median()
    )


def _at_the_same_time(calls: ir.Table, at: int, slow: Sequence[SlowEdge]) -> ir.Table:
    """Row an edge: `edge` (its place in `slow`), calls, and their quantiles in ns, where the edges' shifts lie if the first began `at`."""
    moved = at - min(edge.shift.start_unix_nano for edge in slow)
    start = calls.start_time_unix_nano
    matches = (is_edge(calls, edge) & during(start, edge.shift.moved(moved)) for edge in slow)
    numbered = calls.mutate(edge=ibis.cases(*((match, n) for n, match in enumerate(matches))))
    numbered = numbered.filter(numbered.edge.notnull())
    quantiles = {_column(q): numbered.duration_ns.quantile(q) for q in sorted({e.shift.quantile for e in slow})}
    return numbered.group_by("edge").aggregate(calls=numbered.count(), **quantiles)


def _column(quantile: float) -> str:
    return f"p{round(quantile * 1000)}"

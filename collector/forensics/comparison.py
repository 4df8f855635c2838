"""What a comparison of two windows asks of a store: whole traces of each, a bounded part of them.

A trace belongs to the window in which its first span starts; the rest of it may lie up to `MARGIN_NS` outside. Where a window has more than
`limit` spans a part of its traces is read, drawn by the tail of their ids, which is random in every id scheme.
"""

from dataclasses import dataclass
from typing import Final

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.anatomy import COLUMNS
from collector.forensics.columns import is_error
from collector.forensics.edges import destination_of
from collector.forensics.statements import compiled_once, text, windowed
from collector.forensics.tables import NS_PER_S, Query, Window, spans

MARGIN_NS: Final = 60 * NS_PER_S
SPANS: Final = 40_000
"""Spans of each window to compare: a thousand for each of forty services."""

_DRAWS: Final = 4096
"""Parts that the last three hex digits of a trace id tell apart."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The spans of a window.

    Attributes:
        frame: Them, columns `anatomy.COLUMNS`.
        share: What part of the window's traces they are, 0 to 1.
        last: Which ones: those whose ids end in less than these three hex digits.
    """

    frame: pl.DataFrame
    share: float
    last: str


def draw(query: Query, window: Window, limit: int = SPANS) -> Drawn:
    """The spans of about as many traces of the window as have `limit` spans. Raises what `query` raises."""
    count = query(windowed(window, lambda blank: compiled_once(_count, blank)))["spans"][0]
    below = min(_DRAWS, max(1, int(_DRAWS * limit / max(count, 1))))
    last = "g" if below == _DRAWS else f"{below:03x}"  # no hex digit comes after f
    frame = query(windowed(window, lambda blank: compiled_once(_whole_traces, blank), value=last))
    return Drawn(frame, below / _DRAWS, last)


def _count(window: Window) -> ir.Table:
    table = window.of(spans())
    return table.aggregate(spans=table.count())


def drawn_traces(window: Window) -> ir.Table:
    """All columns of the spans of the traces that begin in the window and are drawn: their ids' tails are below the blank `value`."""
    table = window.of(spans(), margin_ns=MARGIN_NS)
    drawn = table.filter(table.trace_id.cast("string").right(3) < ibis.literal(text("value")))
    first = drawn.group_by("trace_id").aggregate(first_start=drawn.start_time_unix_nano.min())
    inside = first.filter(_starts_in(first.first_start, window)).select("trace_id")
    return drawn.semi_join(inside, "trace_id")


def _whole_traces(window: Window) -> ir.Table:
    found = drawn_traces(window)
    found = found.mutate(error=is_error(found), destination=destination_of(found))
    return found.select(*COLUMNS)


def _starts_in(start: ir.IntegerColumn, window: Window) -> ir.BooleanValue:
    held = ibis.literal(value=True)
    if window.since_unix_nano is not None:
        held &= start >= window.since_unix_nano
    if window.until_unix_nano is not None:
        held &= start < window.until_unix_nano
    return held

"""What the latency detector asks of a store: durations by edge and time, sampled calls, their traces, exact figures.

Ibis expressions only; `latency` decides what the answers mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Final
from uuid import UUID

import ibis
import ibis.expr.types as ir

from collector.forensics.attribution import Component
from collector.forensics.beside import Beside
from collector.forensics.edges import LINKING, answering, bucketed, calls_in, deduplicated, destination_of
from collector.forensics.shifts import BINS_PER_OCTAVE, Shift
from collector.forensics.stages import given
from collector.forensics.statements import TRACE_ID, compiled_once, text, windowed
from collector.forensics.tables import Window, spans

KEY: Final = ("caller", "callee", "operation", "side")

_DRAWS: Final = 4096
DRAWN: Final = 4
"""How many times more calls are looked at than are sampled."""

TRACE_MARGIN_NS: Final = 3_600_000_000_000
"""How far outside the sampled calls the rest of their traces may lie; it keeps the store from reading everything."""


@dataclass(frozen=True, slots=True)
class Usual:
    """What the quantile of a shift was at the same time on earlier days: on how many, and their median in ns."""

    days: int
    ns: float


@dataclass(frozen=True, slots=True)
class SlowEdge:
    """An edge that got slower, seen from one side, and when; `side` as in `durations_in`.

    `beside` tells what its request rate and its errors did meanwhile, `usual` what it did at that time on earlier days, where there are enough.
    """

    caller: str | None
    callee: str
    operation: str
    side: str
    shift: Shift
    beside: Beside | None = None
    usual: Usual | None = None

    @property
    def key(self) -> tuple[str | None, str, str, str]:
        """What names the edge."""
        return (self.caller, self.callee, self.operation, self.side)

    @property
    def label(self) -> str:
        """As people read it."""
        return f"{self.caller or 'outside'} -> {self.callee} {self.operation}"


def durations_in(window: Window, table: ir.Table | None = None) -> ir.Table:
    """One row a call and side: KEY, trace_id, span_id, start_time_unix_nano, duration_ns, error.

    side is 'server' (the entry's own span), 'client' (the CLIENT span above it: hop included) or 'exit' (nothing below it). `table` may be
    a part of the spans that keeps traces whole.
    """
    found = calls_in(window, table, LINKING)
    entries = found.entries
    exits = found.exits.left_join(answering(entries), [("address", "answering_address")])
    served = entries.select(
        "trace_id",
        "start_time_unix_nano",
        "span_id",
        "duration_ns",
        caller="parent_service",
        callee="service_name",
        operation="name",
        side=ibis.literal("server"),
        error=entries.error,
    )
    called = entries.filter(entries.parent_kind == "CLIENT").select(
        "trace_id",
        "start_time_unix_nano",
        span_id="app_parent",
        duration_ns="parent_duration_ns",
        caller="parent_service",
        callee="service_name",
        operation="name",
        side=ibis.literal("client"),
        error=entries.error,
    )
    left = exits.select(
        "trace_id",
        "start_time_unix_nano",
        "span_id",
        "duration_ns",
        caller="service_name",
        callee=ibis.coalesce(exits.answering_service, exits.destination),
        operation="name",
        side=ibis.literal("exit"),
        error=exits.error,
    )
    return served.union(called, left)


_COLUMNS: Final = {
    "trace_id": "uuid",
    "start_time_unix_nano": "int64",
    "span_id": "uint64",
    "duration_ns": "int64",
    "caller": "string",
    "callee": "string",
    "operation": "string",
    "side": "string",
    "error": "boolean",
}


def durations(window: Window, share: float = 1.0) -> ir.Table:
    """`durations_in`, compiled before, of all traces or about this share of them: by the last three hex digits of their ids."""
    below = int(share * _DRAWS) + 1
    if below >= _DRAWS:
        sql = windowed(window, lambda blank: compiled_once(durations_in, blank))
    else:
        sql = windowed(window, lambda blank: compiled_once(_durations_of_part, blank), tail=f"{below:03x}")
    return given("durations", sql, _COLUMNS)


def _durations_of_part(window: Window) -> ir.Table:
    return durations_in(window, spans().filter(spans().trace_id.cast("string").right(3) < ibis.literal(text("tail"))))


def histogram(window: Window, buckets: int) -> ir.Table:
    """Calls and errors by KEY, bucket and log bin of the duration, with window_since and window_ns: from the first call to the last.

    Not from the window's own ends: of a day that was asked for and an hour that was recorded, the hour has to fill the buckets.
    """
    return binned(durations_in(window), buckets)


def binned(calls: ir.Table, buckets: int) -> ir.Table:
    """The histogram of rows such as those of `durations_in`."""
    calls = bucketed(calls, Window(), buckets)
    octaves = ibis.greatest(calls.duration_ns, 1).cast("float64").log2()
    calls = calls.mutate(bin=(octaves * BINS_PER_OCTAVE).floor().cast("int64"))
    return calls.group_by([*KEY, "bucket", "bin"]).aggregate(
        calls=calls.count(),
        errors=calls.count(where=calls.error),
        window_since=calls.window_since.max(),
        window_ns=calls.window_ns.max(),
    )


def first_spans() -> ir.Table:
    """service_name and the start of its very first span: first_unix_nano."""
    table = spans()
    return table.group_by("service_name").aggregate(first_unix_nano=table.start_time_unix_nano.min())


@dataclass(frozen=True, slots=True)
class Normal:
    """When an edge was normal: `within` its baseline, outside of all of its `shifts`."""

    within: Window
    shifts: tuple[Shift, ...]

    def holds(self, start: ir.IntegerColumn) -> ir.BooleanValue:
        """Whether a start lies there."""
        outside = [~during(start, shift) for shift in self.shifts]
        if self.within.since_unix_nano is not None:
            outside.append(start >= self.within.since_unix_nano)
        if self.within.until_unix_nano is not None:
            outside.append(start < self.within.until_unix_nano)
        return reduce(lambda a, b: a & b, outside)


def sampled_calls(group: Sequence[tuple[SlowEdge, Normal]], window: Window, limit: int) -> ir.Table:
    """Up to `limit` calls of each slow edge, during and before: edge (its place in `group`), during, trace_id, span_id.

    Traces are drawn by the tail of their id, which is random in every id scheme, so that edges of one trace draw the same traces; of
    edges with many calls only so large a part of the traces is looked at as gives enough. Where only a tail got slow, calls are drawn
    from the slowest part of either side.
    """
    fewest = min(min(e.shift.calls_before, e.shift.calls_during) * e.shift.of_calls for e, _ in group)
    calls = durations(window, DRAWN * limit / max(fewest, 1))
    start = calls.start_time_unix_nano
    matches = [is_edge(calls, edge) for edge, _ in group]
    numbered = calls.mutate(
        edge=ibis.cases(*((match, n) for n, match in enumerate(matches))),
        during=ibis.cases(*((m, during(start, e.shift)) for m, (e, _) in zip(matches, group, strict=True))),
        normal=ibis.cases(*((m, normal.holds(start)) for m, (_, normal) in zip(matches, group, strict=True))),
    )
    numbered = numbered.filter(numbered.edge.notnull() & (numbered.during | numbered.normal))
    least = ibis.cases(
        *((numbered.edge == n, _least_duration(numbered.during, edge.shift)) for n, (edge, _) in enumerate(group))
    )
    numbered = numbered.filter(numbered.duration_ns >= least)
    place = ibis.row_number().over(
        group_by=[numbered.edge, numbered.during],
        order_by=[numbered.trace_id.cast("string").right(12), numbered.span_id],
    )
    ranked = numbered.mutate(place=place)
    return ranked.filter(ranked.place < limit).select("edge", "during", "trace_id", "span_id")


def spans_of_traces_sql(trace_ids: Sequence[str], window: Window) -> str:
    """Every span of these traces that starts within an hour of the window, as `attribution.place_traces` wants them."""
    return windowed(window, lambda blank: compiled_once(_spans_of_traces, blank), trace_id=trace_ids)


def _spans_of_traces(window: Window) -> ir.Table:
    table = window.of(spans(), margin_ns=TRACE_MARGIN_NS)
    table = table.filter(table.trace_id.isin([ibis.literal(UUID(TRACE_ID), "uuid")]))
    found = deduplicated(table)
    return found.select(
        "trace_id",
        "span_id",
        "parent_span_id",
        "service_name",
        "name",
        "kind",
        "witness",
        "start_time_unix_nano",
        "duration_ns",
        destination=destination_of(found),
    )


def component_figures(  # noqa: PLR0917  (one place calls it)
    component: Component,
    shifts: Sequence[Shift],
    quantile: float,
    normal: Normal,
    window: Window,
    limit_ns: int | None = None,
) -> ir.Table:
    """One row about the component's spans: calls_before, calls_during, before_ns, during_ns (the quantile), first_, last_unix_nano.

    With `limit_ns`, first_unix_nano is the first span during that took at least so long.
    """
    table = window.of(spans())
    table = table.filter(
        (table.service_name == component.service) & (table.name == component.operation) & (table.witness != "proxy")
    )
    if component.kind == "exit":
        table = table.filter(table.kind.isin(["CLIENT", "PRODUCER"]) & (destination_of(table) == component.destination))
    start, duration = table.start_time_unix_nano, table.duration_ns
    inside, before = reduce(or_, (during(start, shift) for shift in shifts)), normal.holds(start)
    slow = inside if limit_ns is None else inside & (duration >= limit_ns)
    return table.aggregate(
        calls_before=table.span_id.nunique(where=before),
        calls_during=table.span_id.nunique(where=inside),
        before_ns=duration.quantile(quantile, where=before),
        during_ns=duration.quantile(quantile, where=inside),
        first_unix_nano=start.min(where=slow),
        last_unix_nano=start.max(where=inside),
    )


def during(start: ir.IntegerValue, shift: Shift) -> ir.BooleanValue:
    """Whether a start lies in the shift."""
    return (start >= shift.start_unix_nano) & (start < shift.end_unix_nano)


def _least_duration(inside: ir.BooleanValue, shift: Shift) -> ir.IntegerValue:
    slow = ibis.literal(int(shift.slow_during_ns), "int64")
    return ibis.ifelse(inside, slow, ibis.literal(int(shift.slow_before_ns), "int64"))


def is_edge(calls: ir.Table, edge: SlowEdge) -> ir.BooleanValue:
    """Whether a row of `durations_in` is a call of this edge."""
    same = calls.caller.isnull() if edge.caller is None else calls.caller == edge.caller
    return same & (calls.callee == edge.callee) & (calls.operation == edge.operation) & (calls.side == edge.side)

"""How long messages waited: from the end of the span that sent one to the start of the CONSUMER span that took it.

Sender and consumer are two hosts with two clocks, so of each pair of replicas the shortest wait in the window is taken for none: what
is left is by how much the others waited longer, and a lag that begins is seen whatever the clocks say. A sender is known by parent or by
link. What is slower is then decided as for every edge, by `shifts`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.causes import milliseconds, quantiles_of, when
from collector.forensics.columns import pairs_of
from collector.forensics.durations import KEY, SlowEdge, binned
from collector.forensics.edges import deduplicated
from collector.forensics.findings import EVIDENCE_LIMIT, Finding
from collector.forensics.ids import span_id_hex, trace_id_hex
from collector.forensics.statements import compiled_once, number, text, windowed
from collector.forensics.tables import NS_PER_S, Query, Window, span_links, spans

SIDE: Final = "queue"
SENDER_MARGIN_NS: Final = 3600 * NS_PER_S
"""How long before its consumer a message may have been sent, at most, to be recognised."""

_TOPIC: Final = ("messaging.destination.name", "messaging.destination_publish.name", "messaging.destination")
"""Where a span says its queue; the last before messaging's conventions were revised in 2022."""


def waits_sql(window: Window, buckets: int) -> str:
    """Messages by KEY (`side` is 'queue'), bucket and log bin of their wait: the columns of `durations.histogram`."""
    return windowed(window, lambda blank: compiled_once(_histogram, blank, buckets))


def waits_in(window: Window) -> ir.Table:
    """One row a message that was taken in the window: KEY, trace_id, span_id and attributes of the consumer's span, start_time_unix_nano, duration_ns."""
    consumers = _consumers(window)
    senders = window.of(spans(), margin_ns=SENDER_MARGIN_NS)
    senders = senders.filter(senders.kind != "CONSUMER").select(
        sender_trace="trace_id",
        sender_span="span_id",
        caller="service_name",
        sender_instance="service_instance_id",
        sent="end_time_unix_nano",
    )
    linked = consumers.join(
        span_links().select("trace_id", "span_id", "linked_trace_id", "linked_span_id"), ["trace_id", "span_id"]
    )
    by_parent = consumers.join(senders, [("trace_id", "sender_trace"), ("parent_span_id", "sender_span")])
    by_link = linked.join(senders, [("linked_trace_id", "sender_trace"), ("linked_span_id", "sender_span")])
    columns = ("trace_id", "span_id", "start_time_unix_nano", "caller", "sender_instance", "sent", "sender_span")
    own = {"callee": "service_name", "operation": "name", "instance": "service_instance_id"}
    pairs = ibis.union(*(t.select(*columns, **own) for t in (by_parent, by_link)), distinct=True)
    pairs = pairs.mutate(gap=pairs.start_time_unix_nano - pairs.sent, side=ibis.literal(SIDE))
    shortest = pairs.gap.min().over(group_by=[*KEY, "sender_instance", "instance"])
    return pairs.mutate(duration_ns=pairs.gap - shortest, error=ibis.literal(value=False))


def longest_waits(query: Query, window: Window, edge: SlowEdge) -> pl.DataFrame:
    """The messages that waited longest while the edge was slow: trace_id, span_id, attributes of the consumer's span."""
    sql = windowed(
        window,
        lambda blank: compiled_once(_longest, blank),
        caller=edge.caller,
        callee=edge.callee,
        operation=edge.operation,
        min=edge.shift.start_unix_nano,
        max=edge.shift.end_unix_nano,
    )
    return query(sql)


def queue_finding(edge: SlowEdge, longest: pl.DataFrame) -> Finding:
    """The finding of a queue in which messages waited longer."""
    shift = edge.shift
    topic = _topic(longest["attributes"].to_list())
    named = f" in {topic}" if topic else ""
    beside = "" if edge.beside is None else edge.beside.sentence
    return Finding(
        kind="latency",
        reasons=("latency_shift", "queue_wait"),
        severity="medium",
        score=1 - shift.before_ns / max(shift.during_ns, 1.0),
        caller=edge.caller,
        callee=edge.callee,
        operation=edge.operation,
        destination=topic or SIDE,  # keeps its id apart from that of the consumer's own time
        first_seen_unix_nano=shift.start_unix_nano,
        last_seen_unix_nano=shift.end_unix_nano,
        count=shift.calls_during,
        explanation=(
            f"messages from {edge.caller}{named} wait {milliseconds(shift.during_ns)} longer than the quickest for {edge.callee} "
            f"{edge.operation}, where {milliseconds(shift.before_ns)} is usual (p{shift.quantile * 100:g}, {shift.calls_during} messages "
            f"{when(shift.start_unix_nano, shift.end_unix_nano, ended=shift.ended)} against {shift.calls_before} in normal times; "
            f"{quantiles_of(edge)}){beside}"
        ),
        affected=(edge.label,),
        trace_ids=tuple(trace_id_hex(t) or "" for t in longest["trace_id"]),
        span_ids=tuple(span_id_hex(s) or "" for s in longest["span_id"]),
    )


def _consumers(window: Window) -> ir.Table:
    consumers = spans().filter((spans().kind == "CONSUMER") & (spans().witness != "proxy"))
    return deduplicated(window.of(consumers))


def _histogram(window: Window, buckets: int) -> ir.Table:
    return binned(waits_in(window), buckets)


def _longest(window: Window) -> ir.Table:
    waits = waits_in(window)
    start = waits.start_time_unix_nano
    found = waits.filter(
        (waits.caller == text("caller"))
        & (waits.callee == text("callee"))
        & (waits.operation == text("operation"))
        & (start >= number("min"))
        & (start < number("max"))
    )
    order = (ibis._.duration_ns.desc(), ibis._.trace_id, ibis._.span_id)
    found = found.order_by(*order).limit(EVIDENCE_LIMIT)
    attributes = _consumers(window).select("trace_id", "span_id", "attributes")
    # Ordered once more: a join keeps no order.
    return found.select("trace_id", "span_id", "duration_ns").join(attributes, ["trace_id", "span_id"]).order_by(*order)


def _topic(attributes: Sequence[Any]) -> str | None:
    """The queue that most of them name."""
    told: Counter[str] = Counter()
    for value in attributes:
        said: Mapping[str, str] = dict(pairs_of(value))
        told.update([next(said[key] for key in _TOPIC if key in said)] if any(key in said for key in _TOPIC) else [])
    return told.most_common(1)[0][0] if told else None

"""Search for traces: a filter in, one row a trace out, the newest first without reading all the older ones.

Whole files are read only where the answer needs it. For the newest traces, the last moments are searched first, then
ever more, until there are enough that began in what was searched: older spans can add nothing to those. The answer is
that of `search_sql` to the row.
"""

from dataclasses import dataclass, field, replace
from typing import Final, Literal
from uuid import UUID

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.columns import is_error
from collector.forensics.ids import hex_ids
from collector.forensics.search_words import Meaning, columns_of, matches, meaning_of, words_of
from collector.forensics.short_cuts import NONE, ShortCuts, arrived, short_cuts
from collector.forensics.statements import compiled_once, fill, number, text
from collector.forensics.tables import NS_PER_S, Query, Window, spans
from collector.schema import ibis_schema

TRACE_MARGIN_NS: Final = 3600 * NS_PER_S
"""How far outside the window the rest of a found trace may lie."""

_LATER: Final = 3 * 10**18
"""Added to the start of spans that have a parent, so that roots sort first; added twice it still fits into 64 bits."""

_CHOOSES: Final = ("trace_id", "parent_span_id", "start_time_unix_nano", "end_time_unix_nano", "duration_ns")
"""What traces are chosen and ordered by."""

_FAILS: Final = ("status_code", "http_response_status_code", "rpc_grpc_status_code")
"""What `is_error` reads."""

_NAMES: Final = ("span_id", "name", "service_name", "witness", *_FAILS)
"""What is told of a listed trace, beside those."""

SEARCH_SCHEMA: Final[dict[str, pl.DataType]] = {
    "trace_id": pl.String(),
    "start_time_unix_nano": pl.Int64(),
    "duration_ns": pl.Int64(),
    "root_service": pl.String(),
    "root_operation": pl.String(),
    "service_count": pl.Int64(),
    "span_count": pl.Int64(),
    "error_count": pl.Int64(),
}

_SPANS_PER_TRACE: Final = 20
"""For a first guess of how far back the newest traces lie; a wrong one costs a second look."""

_LOOKS: Final = 4
_WIDER: Final = (4.0, 64.0)
"""How many times further back the next look goes, at least and at most."""


@dataclass(frozen=True, slots=True)
class TraceFilter:
    """Which traces to list; every condition must hold, None asks nothing.

    Attributes:
        service: service.name of a span in the trace.
        operation: Name of that same span.
        text: A trace id (32 hex digits); a span id (16); `key=value` for an attribute, where the key has a dot in it or a column of
            its own; or else text that occurs, whatever the case, in that span's name, service, status message, URL, route,
            method, address, error type, request hash or id, and for another `key=value` the attribute too.
        min_duration_ns: The trace took at least so long.
        max_duration_ns: And at most so long.
        errors_only: Some span of the trace failed.
        window: That span starts here.
        limit: Traces to list.
        order: Newest or slowest first.
    """

    service: str | None = None
    operation: str | None = None
    text: str | None = None
    min_duration_ns: int | None = None
    max_duration_ns: int | None = None
    errors_only: bool = False
    window: Window = field(default_factory=Window)
    limit: int = 200
    order: Literal["newest", "slowest"] = "newest"


def search(query: Query, wanted: TraceFilter) -> pl.DataFrame:
    """The traces that the filter describes; columns `SEARCH_SCHEMA`.

    duration_ns is the root's, or from the first start to the last end where the root is missing.
    """
    known = known_to(query, wanted)
    if meaning_of(wanted.text, known).is_impossible or wanted.limit <= 0:
        return pl.DataFrame(schema=SEARCH_SCHEMA)
    # An id is found at once; the slowest may be anywhere.
    is_id = meaning_of(wanted.text, known).kind == "trace_id"
    frame = None if is_id or wanted.order == "slowest" else _newest(query, wanted, known)
    frame = query(search_sql(wanted, known)) if frame is None else frame
    return hex_ids(frame).select(pl.col(name).cast(dtype) for name, dtype in SEARCH_SCHEMA.items())


def known_to(query: Query, wanted: TraceFilter) -> ShortCuts:
    """The short cuts of this source that the filter can use."""
    return short_cuts(query, with_keys="=" in (wanted.text or ""))


def search_sql(wanted: TraceFilter, known: ShortCuts = NONE, *, few: bool = False) -> str:
    """One statement with the answer of `search`; `few` is better where the window is short, and changes no answer."""
    meaning = meaning_of(wanted.text, known)
    sql = compiled_once(_search, _shape(wanted), meaning, known.has_arrivals, few)
    key, _, value = words_of(wanted.text).partition("=")
    trace_id = UUID(words_of(wanted.text)) if meaning.kind == "trace_id" else None
    span_id = int(words_of(wanted.text), 16) if meaning.kind == "span_id" else None
    return fill(
        sql,
        since=wanted.window.since_unix_nano,
        until=wanted.window.until_unix_nano,
        service=wanted.service,
        operation=wanted.operation,
        words=words_of(wanted.text).lower(),
        key=key.strip(),
        is_=value.strip(),
        value=int(value) if meaning.is_number else None,
        min=wanted.min_duration_ns,
        max=wanted.max_duration_ns,
        trace_id=None if trace_id is None else str(trace_id),
        span_id=trace_id.int & (2**64 - 1) if trace_id else span_id,
    )


# --- the newest -----------------------------------------------------------------------------------------------------------


def _newest(query: Query, wanted: TraceFilter, known: ShortCuts) -> pl.DataFrame | None:
    """The newest traces out of the last part of the window, if that has enough of them; else None.

    A trace that began in a part has all of its spans there, so that its row is the same as in the whole, and there are
    no newer ones elsewhere.
    """
    first, last, count = _extent(query, known)
    if last is None or first is None:
        return None
    end = min(last, wanted.window.until_unix_nano or last) + 1
    begin = max(first, wanted.window.since_unix_nano or first)
    width = max(1, (last - first) * wanted.limit * _SPANS_PER_TRACE // max(count, 1))
    if end > last:
        width += 2 * _delay_ns(query, last)
    for _ in range(_LOOKS):
        since = end - width
        if since <= begin:
            return None
        part = replace(wanted, window=Window(since, wanted.window.until_unix_nano))
        found = query(search_sql(part, known, few=True)).filter(pl.col("start_time_unix_nano") >= since)
        if found.height >= wanted.limit:
            return found
        low, high = _WIDER
        width = int(width * min(max(1.5 * wanted.limit / max(found.height, 1), low), high))
    return None


def _extent(query: Query, known: ShortCuts) -> tuple[int | None, int | None, int]:
    """From when to when spans were received, by the collector's own clock, and how many; a guess is good enough."""
    [row] = query(compiled_once(_extent_of, known.has_arrivals)).rows()
    return row[0], row[1], row[2]


def _delay_ns(query: Query, last: int) -> int:
    """How long after their start spans arrive, half of them at least: services send what they gathered for some seconds.

    So long the newest moments are empty, and a look at them alone would be in vain.
    """
    [delay] = query(fill(compiled_once(_delay_of), since=last - NS_PER_S)).to_series()
    return 0 if delay is None else max(0, int(delay))


def _delay_of() -> ir.Table:
    table = spans()
    latest = table.filter(table.received_unix_nano >= number("since"))
    return latest.aggregate(delay_ns=(latest.received_unix_nano - latest.start_time_unix_nano).quantile(0.5))


def _extent_of(has_arrivals: bool) -> ir.Table:  # noqa: FBT001 what is compiled once is told apart by values
    table = spans()
    if not has_arrivals:
        received = table.received_unix_nano
        return table.aggregate(first=received.min(), last=received.max(), count=table.count())
    # A tenth of the rows, with long runs of equal numbers.
    groups = ibis.table(ibis_schema("trace_arrivals"), name="trace_arrivals")
    times = groups.aggregate(first=groups.first_received_unix_nano.min(), last=groups.last_received_unix_nano.max())
    return times.cross_join(table.aggregate(count=table.count()))


# --- the statement --------------------------------------------------------------------------------------------------------


def _shape(wanted: TraceFilter) -> TraceFilter:
    """The filter with a blank for each value that it has, and no text: that is in the meaning."""

    def blank(name: str, value: int | None) -> int | None:
        return None if value is None else number(name)

    return replace(
        wanted,
        service=None if wanted.service is None else text("service"),
        operation=None if wanted.operation is None else text("operation"),
        text=None,
        min_duration_ns=blank("min", wanted.min_duration_ns),
        max_duration_ns=blank("max", wanted.max_duration_ns),
        window=Window(blank("since", wanted.window.since_unix_nano), blank("until", wanted.window.until_unix_nano)),
    )


def _search(wanted: TraceFilter, meaning: Meaning, has_arrivals: bool, few: bool) -> ir.Table:  # noqa: FBT001 part of the shape
    every = arrived(spans(), number("span_id")) if has_arrivals and meaning.kind == "trace_id" else spans()
    # Each use has columns of its own: engines plan every column through every step, which takes longer than reading the few, and
    # what is used twice as it is, Ibis writes as a common table expression, which DuckDB computes whole before anything is looked up in it.
    scope = wanted.window.of(every.select(*_CHOOSES, *_NAMES), margin_ns=TRACE_MARGIN_NS)
    one_pass = few and not _is_sifted(wanted)
    # Few failed among all; among few, looking for those that did takes longer than leaving out the others.
    failing_first = wanted.errors_only and not few
    chosen_by = (*_CHOOSES, *(_FAILS if wanted.errors_only and few else ()))
    members = scope if one_pass else wanted.window.of(every.select(*chosen_by), margin_ns=TRACE_MARGIN_NS)
    table = wanted.window.of(every.select(*_asked(wanted, meaning)))
    conditions = [*_conditions(table, wanted), *matches(table, meaning)]
    # Where little of the scope is asked for, finding that first is less work than taking it all together.
    if conditions or few:
        hits = table.filter(conditions) if conditions else table
        members = members.semi_join(hits.select("trace_id").distinct(), "trace_id")
    if failing_first:
        told = wanted.window.of(every.select("trace_id", "start_time_unix_nano", *_FAILS), margin_ns=TRACE_MARGIN_NS)
        members = members.semi_join(told.filter(is_error(told)).select("trace_id").distinct(), "trace_id")
    choosing = _choosing(members, wanted) | ({"failed": is_error(members).any()} if wanted.errors_only and few else {})
    if one_pass:
        grouped = members.group_by("trace_id").aggregate(**choosing, **_naming(members))
        return _listed(grouped, wanted).select(*SEARCH_SCHEMA)
    # Names and counts take longer than choosing: in a second pass, for those alone that are listed.
    grouped = members.group_by("trace_id").aggregate(**choosing)
    listed = _listed(grouped, wanted).select("trace_id", "start_time_unix_nano", "duration_ns")
    named = scope.semi_join(listed, "trace_id")
    found = listed.join(named.group_by("trace_id").aggregate(**_naming(named)), "trace_id")
    return found.order_by([ibis.desc(_by(wanted)), "trace_id"])


def _is_sifted(wanted: TraceFilter) -> bool:
    """Whether most traces that were found are left out again."""
    return wanted.errors_only or wanted.min_duration_ns is not None or wanted.max_duration_ns is not None


def _asked(wanted: TraceFilter, meaning: Meaning) -> list[str]:
    """The columns that tell whether a span is what is looked for."""
    asked = ["trace_id", "start_time_unix_nano", *columns_of(meaning)]
    asked += [] if wanted.service is None else ["service_name"]
    asked += [] if wanted.operation is None else ["name"]
    return list(dict.fromkeys(asked))


def _by(wanted: TraceFilter) -> str:
    return "start_time_unix_nano" if wanted.order == "newest" else "duration_ns"


@ibis.udf.agg.builtin(name="arg_min", signature=(("int64", "int64"), "int64"))  # type: ignore[untyped-decorator]
def _at_least(value: int, rank: int) -> int:
    """The value where the rank is least. Ibis sorts each group for its own `argmin`."""
    raise NotImplementedError  # Ibis replaces the call by the engine's function


def _choosing(members: ir.Table, wanted: TraceFilter) -> dict[str, ir.Value]:
    """What traces are chosen and ordered by, of each."""
    start, end = members.start_time_unix_nano, members.end_time_unix_nano
    inside = start.notnull()
    if wanted.window.since_unix_nano is not None:
        inside &= start >= wanted.window.since_unix_nano
    if wanted.window.until_unix_nano is not None:
        inside &= start < wanted.window.until_unix_nano
    rank = _root_first(members)
    return {
        "start_time_unix_nano": start.min(),
        "hull_ns": end.max() - start.min(),
        "root_ns": _at_least(members.duration_ns, rank),
        "rank": rank.min(),
        "inside": inside.any(),
    }


def _naming(members: ir.Table) -> dict[str, ir.Value]:
    """What a listed trace is called, and its counts."""
    rank = _root_first(members)
    # Behind an ingress proxy the root is the proxy's span, and `ingress` tells nobody what was asked: the application's
    # root names the trace, else its first span, else the proxy's.
    named = (members.witness == "proxy").ifelse(members.start_time_unix_nano + 2 * _LATER, rank)
    return {
        "root_service": members.service_name.argmin(named),
        "root_operation": members.name.argmin(named),
        "service_count": members.service_name.nunique(),
        "span_count": members.span_id.nunique(),
        "error_count": members.span_id.nunique(where=is_error(members)),
    }


def _listed(grouped: ir.Table, wanted: TraceFilter) -> ir.Table:
    """The traces that the answer has, in its order."""
    duration = (grouped["rank"] < _LATER).ifelse(grouped.root_ns, grouped.hull_ns)
    found = grouped.filter(grouped.inside).mutate(duration_ns=duration)
    if "failed" in grouped.columns:
        found = found.filter(found.failed)
    if wanted.min_duration_ns is not None:
        found = found.filter(found.duration_ns >= wanted.min_duration_ns)
    if wanted.max_duration_ns is not None:
        found = found.filter(found.duration_ns <= wanted.max_duration_ns)
    return found.order_by([ibis.desc(_by(wanted)), "trace_id"]).limit(max(wanted.limit, 0))


def _root_first(members: ir.Table) -> ir.IntegerValue:
    start = members.start_time_unix_nano
    return members.parent_span_id.isnull().ifelse(start, start + _LATER)


def _conditions(table: ir.Table, wanted: TraceFilter) -> list[ir.BooleanValue]:
    conditions: list[ir.BooleanValue] = []
    if wanted.service is not None:
        conditions.append(table.service_name == wanted.service)
    if wanted.operation is not None:
        conditions.append(table.name == wanted.operation)
    return conditions

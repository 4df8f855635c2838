"""The derived tables as a question uses them: to read less of `spans`, never to find less in it.

A file of an older release that was opened to be read only has no derived tables, and other engines need none: `short_cuts`
asks, and the statements that were made for what it says give the same answers without.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.errors import QueryError
from collector.forensics.tables import Query
from collector.schema import ibis_schema

_EARLIEST: Final = -(2**63)
_LATEST: Final = 2**63 - 1

_WHICH: Final = (
    "SELECT table_name FROM information_schema.tables WHERE table_name IN ('trace_arrivals', 'attribute_keys')"
)


@dataclass(frozen=True, slots=True)
class ShortCuts:
    """What there is of them.

    Attributes:
        has_arrivals: Whether `trace_arrivals` is there.
        keys: Of every key in the spans' maps the maps that have it; None where nobody knows them all.
    """

    has_arrivals: bool = False
    keys: Mapping[str, frozenset[str]] | None = field(default=None, hash=False)


NONE: Final = ShortCuts()


ARRIVED_JOIN: Final = (
    " JOIN (SELECT coalesce(min(first_received_unix_nano), (SELECT max(last_received_unix_nano) FROM trace_arrivals), "
    f"{_EARLIEST}) AS arrived_from, "
    f"coalesce(max(last_received_unix_nano), {_LATEST}) AS arrived_until "
    "FROM trace_arrivals WHERE trace_id_low = {low}) "
    "ON received_unix_nano >= arrived_from AND received_unix_nano <= arrived_until"
)
"""`arrived` as text; `low` is the last 16 hex digits of the trace id, as a number."""


def with_arrivals(ask: Callable[[ShortCuts], pl.DataFrame]) -> pl.DataFrame:
    """What a source answers that has `trace_arrivals`; one that has not says so, and is asked without.

    To look for the table first would take every trace as long again as its spans.
    """
    try:
        return ask(ShortCuts(has_arrivals=True))
    except QueryError as e:
        if "trace_arrivals" not in str(e):
            raise
    return ask(NONE)


def short_cuts(query: Query, *, with_keys: bool = False) -> ShortCuts:
    """What this source has; the keys only if they are asked for."""
    tables = set(query(_WHICH).to_series())
    keys = None
    if with_keys and "attribute_keys" in tables:
        keys = _complete(query("SELECT key, stored_in FROM attribute_keys").rows())
    return ShortCuts("trace_arrivals" in tables, keys)


def _complete(rows: list[tuple[str, str]]) -> dict[str, frozenset[str]] | None:
    """The keys; None where there are none at all, or an empty one: then the list is not known to be complete."""
    found: dict[str, set[str]] = {}
    for key, stored_in in rows:
        found.setdefault(key, set()).add(stored_in)
    return None if not found or "" in found else {key: frozenset(maps) for key, maps in found.items()}


def arrived(spans: ir.Table, trace_id_low: int) -> ir.Table:
    """The spans that came when spans of this trace came: the newest alone of a trace that is not there, all where no arrival is known.

    Every span is written with its arrival in one transaction, so a trace without one has no spans. DuckDB still reads whatever its range
    lets through, all of it if that is empty; so it is given the newest moment: on ten million spans 5 ms instead of 57.

    A join, because DuckDB hands the range over to the scan, which then skips what was stored at other times: on ten million
    spans 12 ms of processor time instead of 99. With the same range from two subqueries it skips nothing.
    """
    arrivals = ibis.table(ibis_schema("trace_arrivals"), name="trace_arrivals")
    of_trace = arrivals.filter(arrivals.trace_id_low == ibis.literal(trace_id_low, "uint64"))
    newest = arrivals.aggregate(newest=arrivals.last_received_unix_nano.max()).as_scalar()
    bounds = of_trace.aggregate(
        arrived_from=ibis.coalesce(of_trace.first_received_unix_nano.min(), newest, _EARLIEST),
        arrived_until=of_trace.last_received_unix_nano.max().fill_null(_LATEST),
    )
    received = spans.received_unix_nano
    joined = spans.join(bounds, [received >= bounds.arrived_from, received <= bounds.arrived_until])
    return joined.drop("arrived_from", "arrived_until")

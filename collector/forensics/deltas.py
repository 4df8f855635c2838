"""Which attribute values set some traces apart from others: version, replica, node, customer, whatever the spans and their resources say.

A *value* is one key's value on the spans of one service. Of the traces that reach that service, it is in so large a part of the slow
ones and so large a part of the normal ones; the difference, beyond what chance leaves, is its score. Values in a few traces only
(ids, times) are dropped before anything is compared, so that the cost is bounded by the traces, not by the keys.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.anatomy import COLUMNS
from collector.forensics.comparison import Drawn, drawn_traces
from collector.forensics.statements import TRACE_ID, compiled_once, windowed
from collector.forensics.tables import Query, Window, spans
from collector.schema import HOT_ATTRIBUTES, ibis_schema

MIN_TRACES: Final = 5
MIN_RATIO: Final = 0.05
"""A value in fewer of the slow traces (whichever is more) tells nothing about most of them."""

SLOW_QUANTILE: Final = 0.9
"""Slow is what took longer than this part of the baseline's traces of the same entry; or failed."""

DOUBT: Final = 2.0

UNIQUE: Final = frozenset(
    {
        "guid:x-request-id",
        "provenance.request.hash",
        "provenance.request_id",
        "provenance.stamp.nonce",
        "provenance.stamp.time_unix_ms",
    }
)
"""Keys whose values are different in every request by their nature."""

SCHEMA: Final[dict[str, pl.DataType]] = {
    "service": pl.String(),
    "key": pl.String(),
    "value": pl.String(),
    "score": pl.Float64(),
    "slow_ratio": pl.Float64(),
    "normal_ratio": pl.Float64(),
    "slow_traces": pl.Int64(),
    "normal_traces": pl.Int64(),
}

_HOT: Final = {a.column: a.key for a in HOT_ATTRIBUTES if a.key not in UNIQUE}
_NAMED: Final = {"service_instance_id": "service.instance.id", "service_namespace": "service.namespace"}
_TEXTS: Final = pl.List(pl.String)
_MAPS: Final = ("attributes", "attributes_json", "resource_attributes")
_SHAPE: Final = [pl.col("trace_id").cast(pl.String), pl.col("service_name"), pl.col("key"), pl.col("value")]


def values_in(query: Query, window: Window, share: str) -> pl.DataFrame:
    """trace_id, service_name, key and value of everything that the window's drawn traces say; see `comparison.draw` of `share`."""
    return _long(query(windowed(window, lambda blank: compiled_once(_of_window, blank), value=share)))


def values_of(query: Query, trace_ids: Sequence[str], window: Window) -> pl.DataFrame:
    """The same of these traces, within an hour of the window."""
    return _long(query(windowed(window, lambda blank: compiled_once(_of_traces, blank), trace_id=trace_ids)))


def _of_traces(window: Window) -> ir.Table:
    table = window.of(spans(), margin_ns=3_600_000_000_000)
    return _with_resources(table.filter(table.trace_id.isin([ibis.literal(UUID(TRACE_ID), "uuid")])))


def slow_and_normal(baseline: Drawn, incident: Drawn) -> tuple[pl.Series, pl.Series]:
    """The trace ids of the incident that are slower than nearly all of the baseline's, or failed; and those of all others."""
    before, during = _entries(baseline.frame), _entries(incident.frame)
    limits = before.group_by("service_name", "name").agg(limit=pl.col("duration_ns").quantile(SLOW_QUANTILE))
    judged = during.join(limits, on=["service_name", "name"], how="left")
    slow = (pl.col("duration_ns") > pl.col("limit")).fill_null(value=True) | pl.col("error").fill_null(value=False)
    held = before.join(limits, on=["service_name", "name"]).filter(pl.col("duration_ns") <= pl.col("limit"))
    return judged.filter(slow)["trace_id"], pl.concat([judged.filter(~slow)["trace_id"], held["trace_id"]])


def separating(values: pl.DataFrame, slow: pl.Series, normal: pl.Series) -> pl.DataFrame:
    """The values that are more frequent in slow traces than in normal ones, beyond doubt; columns `SCHEMA`, strongest first.

    Ratios are of the traces that reach the service. Values that always come together are told once, under the key that sorts first
    among the shortest.
    """
    sides = pl.concat([_side(slow, slow=True), _side(normal, slow=False)]).unique("trace_id")
    said = values.unique().join(sides, on="trace_id")
    reach = said.group_by("service_name").agg(
        _distinct(slow=True, name="slow_all"), _distinct(slow=False, name="normal_all")
    )
    found = said.group_by("service_name", "key", "value").agg(
        _distinct(slow=True, name="slow_traces"),
        _distinct(slow=False, name="normal_traces"),
        who=pl.col("trace_id").hash().sort().hash().sum(),
    )
    found = found.join(reach, on="service_name").filter(
        pl.col("slow_traces") >= pl.max_horizontal(pl.lit(MIN_TRACES), MIN_RATIO * pl.col("slow_all")),
        pl.col("normal_all") >= MIN_TRACES,
    )
    found = found.with_columns(
        slow_ratio=pl.col("slow_traces") / pl.col("slow_all"),
        normal_ratio=pl.col("normal_traces") / pl.col("normal_all"),
    )
    variance = _variance("slow_ratio", "slow_all") + _variance("normal_ratio", "normal_all")
    scored = found.with_columns(score=pl.col("slow_ratio") - pl.col("normal_ratio") - DOUBT * variance.sqrt())
    once = scored.sort(pl.col("key").str.len_chars(), "key").unique(["service_name", "who"], keep="first")
    return (
        once.filter(pl.col("score") > 0)
        .rename({"service_name": "service"})
        .select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())
        .sort("score", "service", "key", "value", descending=[True, False, False, False])
    )


def _side(trace_ids: pl.Series, *, slow: bool) -> pl.DataFrame:
    return pl.DataFrame({"trace_id": trace_ids.cast(pl.String)}, schema={"trace_id": pl.String}).with_columns(
        slow=pl.lit(slow)
    )


def _distinct(*, slow: bool, name: str) -> pl.Expr:
    return pl.col("trace_id").filter(pl.col("slow") == slow).n_unique().alias(name)


def _variance(ratio: str, of: str) -> pl.Expr:
    """Of a ratio, with one of each added, so that none and all are not certain."""
    share = (pl.col(ratio) * pl.col(of) + 1) / (pl.col(of) + 2)
    return share * (1 - share) / (pl.col(of) + 2)


def _entries(frame: pl.DataFrame) -> pl.DataFrame:
    """The longest span of each trace whose parent is not in it."""
    above = frame.select("trace_id", parent_span_id="span_id")
    tops = frame.select(COLUMNS).join(above, on=["trace_id", "parent_span_id"], how="anti")
    return tops.sort("duration_ns", descending=True).unique("trace_id", keep="first", maintain_order=True)


def _of_window(window: Window) -> ir.Table:
    return _with_resources(drawn_traces(window))


def _with_resources(table: ir.Table) -> ir.Table:
    resources = ibis.table(ibis_schema("resources"), name="resources")
    named = resources.select(told_id="resource_id", resource_attributes="attributes").distinct(
        on="told_id", keep="first"
    )
    joined = table.left_join(named, [("resource_id", "told_id")])
    hot = {column: joined[column].cast("string") for column in (*_NAMED, *_HOT)}
    # Keys and values apart: how a frame holds a map depends on the version of Polars.
    maps = {f"{name}_keys": joined[name].keys() for name in _MAPS}
    maps |= {f"{name}_values": joined[name].values() for name in _MAPS}
    return joined.select("trace_id", "service_name", **maps, **hot)


def _long(frame: pl.DataFrame) -> pl.DataFrame:
    """One row a trace, service, key and value."""
    names = {**_NAMED, **_HOT}
    columns = frame.rename(names).unpivot(
        list(names.values()), index=["trace_id", "service_name"], variable_name="key", value_name="value"
    )
    parts = [columns.drop_nulls("value").select(_SHAPE)]
    for name in _MAPS:
        pairs = [pl.col(f"{name}_keys").cast(_TEXTS).alias("key"), pl.col(f"{name}_values").cast(_TEXTS).alias("value")]
        entries = frame.select("trace_id", "service_name", *pairs).explode("key", "value").drop_nulls("key")
        parts.append(entries.filter(~pl.col("key").is_in(list(UNIQUE))).select(_SHAPE))
    return pl.concat(parts).unique()

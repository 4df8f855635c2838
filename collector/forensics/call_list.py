"""Every answered call with its verdict: what both proxies, the sockets and the flows prove of it, one row a call.

The same rules as behind the findings (`shadow_flags`, `verdicts`): a call that is listed as bypassed here is in a finding there.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.errors import ConfigError
from collector.forensics.absence import MISSED
from collector.forensics.connections import Present
from collector.forensics.ids import hex_ids
from collector.forensics.shadow_flags import DETAILS, ShadowParams, flagged_calls
from collector.forensics.statements import TRACE_ID, compiled_once, text, windowed
from collector.forensics.tables import Query, Window, spans
from collector.forensics.verdicts import BYPASSED, MESHED, UNKNOWN, without_misses
from collector.forensics.ways import Knowledge, is_opaque, known_workloads, way_of
from collector.forensics.witnesses import present_in

VERDICTS: Final = (BYPASSED, UNKNOWN, MESHED)

SCHEMA: Final[dict[str, pl.DataType]] = {
    "trace_id": pl.String(),
    "client_span_id": pl.String(),
    "server_span_id": pl.String(),
    "caller": pl.String(),
    "callee": pl.String(),
    "operation": pl.String(),
    "start_time_unix_nano": pl.Int64(),
    "outbound_verdict": pl.String(),
    "outbound_reason": pl.String(),
    "inbound_verdict": pl.String(),
    "inbound_reason": pl.String(),
    "verdict": pl.String(),
    "side": pl.String(),
    "way": pl.String(),
    "record_ids": pl.List(pl.String()),
}
"""`side`: client, server or both, of a bypassed call; `record_ids`: the rows of proxy_records, sockets or flows that prove it."""

_BYPASSES: Final = ("bypass_outbound", "bypass_inbound", "passed_through")
_IDS: Final = ("outbound_record_id", "inbound_record_id", "connection_id")
_JUDGED: Final = ("outbound_verdict", "outbound_reason", "inbound_verdict", "inbound_reason", "verdict")
_FACTS: Final = ("caller", "callee", *_JUDGED, *_BYPASSES, *DETAILS)
_WORDS: Final = (*_JUDGED, "side", "way")
"""What the facts of a bypassed call decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFilter:
    """Which calls: of one trace (hex), of one service at either end, of one verdict; None leaves it open."""

    trace_id: str | None = None
    service: str | None = None
    verdict: str | None = None


def call_verdicts(
    query: Query, window: Window, wanted: CallFilter | None = None, params: ShadowParams | None = None
) -> pl.DataFrame:
    """One row a call, in order of time; columns `SCHEMA`. Raises what `query` raises, ConfigError for what is no trace id."""
    wanted = wanted or CallFilter()
    if wanted.trace_id is not None:
        window = _of_trace(query, window, _uuid(wanted.trace_id))
    present = present_in(query, window)
    sql = calls_sql(window, wanted, params, present)
    known = known_workloads(query, window) if present.any else Knowledge()
    rows = _named(hex_ids(query(sql)), known)
    return rows if wanted.verdict is None else rows.filter(pl.col("verdict") == wanted.verdict)


def calls_sql(
    window: Window, wanted: CallFilter, params: ShadowParams | None = None, present: Present | None = None
) -> str:
    """The statement behind `call_verdicts`."""
    shape = (params or ShadowParams(), present or Present(), _shape(wanted))
    return windowed(
        window,
        lambda blank: compiled_once(_calls, blank, *shape),
        service=wanted.service,
        trace_id=None if wanted.trace_id is None else _uuid(wanted.trace_id),
    )


def _of_trace(query: Query, window: Window, trace_id: str) -> Window:
    """The part of the window in which the trace's spans began: what lies beyond cannot be its calls."""
    [found] = query(windowed(window, lambda blank: compiled_once(_extent, blank), trace_id=trace_id)).to_dicts()
    if found["first"] is None:
        return Window(0, 1)
    return Window(found["first"], found["last"] + 1)


def _extent(window: Window) -> ir.Table:
    table = window.of(spans().select("trace_id", "start_time_unix_nano"))
    table = table.filter(table.trace_id == ibis.literal(TRACE_ID).cast("uuid"))
    return table.agg(first=table.start_time_unix_nano.min(), last=table.start_time_unix_nano.max())


def _uuid(trace_id: str) -> str:
    try:
        return str(uuid.UUID(trace_id))
    except ValueError as e:
        raise ConfigError(f"{trace_id!r} is no trace id: expected 32 hexadecimal digits") from e


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a statement is compiled for; the values are filled in."""

    by_trace: bool
    by_service: bool
    verdict: str | None


def _shape(wanted: CallFilter) -> _Shape:
    return _Shape(wanted.trace_id is not None, wanted.service is not None, wanted.verdict)


def _calls(window: Window, params: ShadowParams, present: Present, shape: _Shape) -> ir.Table:
    table = flagged_calls(window, params, present, told="bypasses")
    if shape.by_trace:
        table = table.filter(table.trace_id == ibis.literal(TRACE_ID).cast("uuid"))
    if shape.by_service:
        table = table.filter((table.caller == text("service")) | (table.callee == text("service")))
    # A bypass may yet turn out to be none; what is meshed or unknown never turns out to be one.
    if shape.verdict == BYPASSED:
        table = table.filter(table.verdict == BYPASSED)
    elif shape.verdict == MESHED:
        table = table.filter(table.verdict != UNKNOWN)
    plain = [name for name in SCHEMA if name not in {"side", "way", "record_ids"}]
    table = table.select(*plain, *_BYPASSES, *_IDS, *DETAILS)
    return table.order_by("start_time_unix_nano", "trace_id", "server_span_id")


def _named(frame: pl.DataFrame, known: Knowledge) -> pl.DataFrame:
    """The calls with side and way. Many calls share the facts that decide: each combination of facts is judged once."""
    frame = frame.with_row_index("row")
    bypassed = frame.filter(pl.col("verdict") == BYPASSED)
    combinations = bypassed.select(_FACTS).unique()
    judged = [_judged(row, known) for row in combinations.iter_rows(named=True)]
    words = pl.DataFrame(judged, schema={name: SCHEMA[name] for name in _WORDS})
    combinations = combinations.hstack(words.rename({name: f"{name}_judged" for name in _WORDS}))
    bypassed = bypassed.join(combinations, on=_FACTS, how="left", nulls_equal=True)
    bypassed = bypassed.with_columns(pl.col(f"{name}_judged").alias(name) for name in _WORDS)
    plain = frame.filter(pl.col("verdict") != BYPASSED).with_columns(
        side=pl.lit(None, pl.String), way=pl.lit(None, pl.String)
    )
    columns = [*frame.columns, "side", "way"]
    both = pl.concat([plain.select(columns), bypassed.select(columns)]).sort("row")
    return both.with_columns(record_ids=_record_ids()).select(
        pl.col(name).cast(dtype) for name, dtype in SCHEMA.items()
    )


def _record_ids() -> pl.Expr:
    """The ids of the records that decided, as text, each once."""
    ids = [pl.col(name).cast(pl.String) for name in _IDS]
    return pl.concat_list(ids).list.drop_nulls().list.unique(maintain_order=True)


def _judged(row: Mapping[str, Any], known: Knowledge) -> dict[str, Any]:
    """`_WORDS` of the calls with these facts."""
    judged = _settled(row, known)
    if judged["verdict"] == BYPASSED:
        judged |= {"side": _side(judged), "way": way_of(judged, known).way}
    return {name: judged.get(name) for name in _WORDS}


def _settled(row: Mapping[str, Any], known: Knowledge) -> dict[str, Any]:
    """The row, with misses that are none taken back: what is meant to pass a sidecar by, and what no log could have shown."""
    judged = dict(row)
    opaque = is_opaque(row["destination_port"], known.of(row["callee"])) and not row["plaintext"]
    for side in ("outbound", "inbound"):
        if row[f"{side}_verdict"] != MISSED:
            continue
        hidden = opaque and not row[f"{side}_by_connection"]
        if hidden or not row[f"bypass_{side}"]:
            reason = "opaque" if hidden else "meant"
            judged |= {f"{side}_verdict": UNKNOWN, f"{side}_reason": reason, f"bypass_{side}": False}
    if row["verdict"] == BYPASSED and not any(judged[name] for name in _BYPASSES):
        judged["verdict"] = without_misses(row["caller"], judged["outbound_verdict"], judged["inbound_verdict"])
    return judged


def _side(row: Mapping[str, Any]) -> str:
    client = row["bypass_outbound"] or row["passed_through"]
    if client and row["bypass_inbound"]:
        return "both"
    return "client" if client else "server"

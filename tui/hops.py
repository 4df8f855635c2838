"""What the proxies prove of each call in one trace: forensics' verdicts, narrowed to the trace."""

import uuid
from typing import Final

import ibis
import ibis.expr.types as ir

from collector.forensics.ids import hex_ids
from collector.forensics.statements import TRACE_ID, compiled_once, windowed
from collector.forensics.tables import Query, Window
from collector.forensics.verdicts import REASONS, judged_calls
from tui.snapshots import Hop, Sight, Trace

_COLUMNS: Final = (
    "client_span_id",
    "server_span_id",
    "outbound_verdict",
    "inbound_verdict",
    "outbound_reason",
    "inbound_reason",
)


def verdicts_sql(trace_id: str, window: Window) -> str:
    """The verdicts on the calls of one trace that began in the window. Raises ValueError if it is no trace id."""
    return windowed(window, lambda blank: compiled_once(_verdicts, blank), trace_id=str(uuid.UUID(trace_id)))


def _verdicts(window: Window) -> ir.Table:
    judged = judged_calls(window)
    return judged.filter(judged.trace_id == ibis.literal(TRACE_ID).cast("uuid")).select(*_COLUMNS)


def hops(query: Query, trace: Trace) -> tuple[Hop, ...]:
    """One `Hop` a call of the trace."""
    if not trace.spans:
        return ()
    starts = [span.start_time_unix_nano for span in trace.spans]
    sql = verdicts_sql(trace.trace_id, Window(min(starts), max(starts) + 1))
    return tuple(_hop(row) for row in hex_ids(query(sql)).iter_rows(named=True))


def _hop(row: dict[str, str | None]) -> Hop:
    return Hop(
        row["client_span_id"],
        row["server_span_id"],
        _sight(row["outbound_verdict"]),
        _sight(row["inbound_verdict"]),
        _reason(row["outbound_reason"], row["inbound_reason"]),
    )


def _sight(verdict: str | None) -> Sight:
    return "seen" if verdict == "seen" else "missed" if verdict == "missed" else "unknown"


def _reason(outbound: str | None, inbound: str | None) -> str:
    """Why a side is unknown, in words, once where both have the same reason."""
    by_caller, by_callee = REASONS.get(outbound or "", outbound), REASONS.get(inbound or "", inbound)
    if by_caller == by_callee:
        return f"both proxies: {by_caller}" if by_caller else ""
    given = (("caller's proxy", by_caller), ("callee's proxy", by_callee))
    return "; ".join(f"{side}: {text}" for side, text in given if text)

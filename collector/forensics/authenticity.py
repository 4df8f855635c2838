"""Whether calls were made by whom they say: the stamps that callees recorded, against keys and against the callers' spans.

A call here is a span on which the middleware looked for a stamp. Its verdict, the first of these that holds:

- absent, malformed: there was no stamp, or none that can be read.
- tampered: what arrived is not what the caller sent: the body, or (by the MAC) method, target, digest or trace.
- forged: the MAC is not the named key's over anything that either side saw.
- impersonated: the MAC is right, and the span that made the stamp belongs to another service than the key.
- expired: made longer before or after its arrival than clocks and queues explain.
- replayed: its nonce arrived before. Not where the earlier call failed: proxies send such a call again, stamp and all.
- unsigned: none of the above, and without a MAC nobody can say more. unknown key: there is a MAC, and none of the keys is the
  one that it names. valid: none of the above.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.columns import is_error_row
from collector.forensics.ids import span_id_hex, trace_id_hex
from collector.forensics.short_cuts import with_arrivals
from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import Query, Window, spans
from collector.forensics.traces import trace_sql
from provenance import names
from provenance.keys import service_of

TOLERANCE_MS: Final = 300_000
"""How far a stamp's time may be from its arrival: five minutes, as for signed requests elsewhere (AWS, Kerberos)."""

FAILED: Final = ("unknown key", "tampered", "forged", "impersonated", "expired", "replayed")
"""Verdicts that say that evidence failed."""

VERDICTS: Final = (*FAILED, "malformed", "absent", "unsigned", "valid")

SCHEMA: Final[dict[str, pl.DataType]] = {
    "trace_id": pl.String(),
    "span_id": pl.String(),
    "start_time_unix_nano": pl.Int64(),
    "caller": pl.String(),
    "callee": pl.String(),
    "operation": pl.String(),
    "kid": pl.String(),
    "verdict": pl.String(),
    "reason": pl.String(),
}

_READ: Final = (
    "trace_id",
    "span_id",
    "service_name",
    "name",
    "start_time_unix_nano",
    "status_code",
    "http_response_status_code",
    "rpc_grpc_status_code",
    "provenance_request_hash",
    "provenance_stamp_status",
    "provenance_stamp_kid",
    "provenance_stamp_nonce",
    "provenance_stamp_time_unix_ms",
)

_MARGIN_NS: Final = 60_000_000_000
"""How long before the window a caller's span may have started, or an earlier use of a nonce have arrived."""


class Verifier(Protocol):
    """A key, as far as it is needed here."""

    def verify(self, message: bytes, mac: bytes) -> bool:
        """Whether the MAC is this key's over the message."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One of `VERDICTS`, and why."""

    verdict: str
    reason: str


def stamps_sql(window: Window) -> str:
    """The statement that fetches every span with a stamp, or on which one was looked for."""
    return windowed(window, lambda blank: compiled_once(_stamps, blank))


def verify(
    query: Query,
    window: Window,
    keys: Mapping[str, Verifier],
    *,
    trace_id: str | None = None,
    tolerance_ms: int = TOLERANCE_MS,
) -> pl.DataFrame:
    """The verdict of every call that arrived in the window, or of those of one trace; columns `SCHEMA`, in order of arrival.

    Raises ConfigError if `trace_id` is not an id.
    """
    if trace_id is not None:
        starts = with_arrivals(lambda known: query(trace_sql(trace_id, known)))["start_time_unix_nano"].to_list()
        if not starts:
            return pl.DataFrame(schema=SCHEMA)
        window = Window(min(starts), max(starts) + 1)
    rows = list(query(stamps_sql(window)).iter_rows(named=True))
    judged = judge_calls(rows, keys, tolerance_ms=tolerance_ms)
    within = [
        row
        for row in judged
        if _is_in(window, row["start_time_unix_nano"]) and trace_id_hex(trace_id) in {None, row["trace_id"]}
    ]
    return pl.DataFrame(within, schema=SCHEMA)


def judge_calls(
    rows: Iterable[Mapping[str, Any]], keys: Mapping[str, Verifier], *, tolerance_ms: int = TOLERANCE_MS
) -> list[dict[str, Any]]:
    """One row a call, in order of arrival; `rows` as `stamps_sql` gives them, callers and callees in any order."""
    callers: dict[tuple[str, str], Mapping[str, Any]] = {}
    callees: dict[tuple[str, int], Mapping[str, Any]] = {}
    for row in rows:
        if row["provenance_stamp_status"] is not None:
            callees.setdefault((str(row["trace_id"]), row["span_id"]), row)  # delivered twice: once
        elif row["provenance_stamp_nonce"] is not None:
            callers.setdefault((row["provenance_stamp_kid"], row["provenance_stamp_nonce"]), row)
    arrived: dict[tuple[str, str], Mapping[str, Any]] = {}
    judged = []
    for row in sorted(callees.values(), key=lambda row: (row["start_time_unix_nano"], row["span_id"])):
        stamp = (row["provenance_stamp_kid"], row["provenance_stamp_nonce"])
        caller = callers.get(stamp)
        verdict = judge_call(row, caller, arrived.get(stamp), keys, tolerance_ms=tolerance_ms)
        if None not in stamp:
            arrived[stamp] = row
        kid = row["provenance_stamp_kid"]
        named = None if kid is None else service_of(kid)
        judged.append(
            {
                "trace_id": trace_id_hex(str(row["trace_id"])),
                "span_id": span_id_hex(row["span_id"]),
                "start_time_unix_nano": row["start_time_unix_nano"],
                "caller": named if caller is None else caller["service_name"],
                "callee": row["service_name"],
                "operation": row["name"],
                "kid": kid,
                "verdict": verdict.verdict,
                "reason": verdict.reason,
            }
        )
    return judged


def judge_call(
    callee: Mapping[str, Any],
    caller: Mapping[str, Any] | None,
    earlier: Mapping[str, Any] | None,
    keys: Mapping[str, Verifier],
    *,
    tolerance_ms: int,
) -> Verdict:
    """The verdict of one call.

    Args:
        callee: The span on which it was looked for a stamp.
        caller: The span that made this stamp; None where nobody told of it.
        earlier: The call that brought the same nonce before; None where none did.
        keys: Keys by their ids.
        tolerance_ms: How far the stamp's time may be from the arrival.
    """
    status, kid = callee["provenance_stamp_status"], callee["provenance_stamp_kid"]
    if status == names.STAMP_ABSENT:
        return Verdict("absent", "the call came without a stamp")
    if status == names.STAMP_MALFORMED or kid is None:
        return Verdict("malformed", "the call came with a stamp or a digest that cannot be read")
    if callee["mac"] is not None and kid in keys and (wrong := _wrong_mac(callee, caller, keys[kid])):
        return wrong
    if body := _altered_body(callee, caller):
        return body
    if caller is not None and caller["service_name"] != service_of(kid):
        return Verdict("impersonated", f"{caller['service_name']} made it, under the name of {service_of(kid)}")
    away_ms = callee["start_time_unix_nano"] // 1_000_000 - callee["provenance_stamp_time_unix_ms"]
    if abs(away_ms) > tolerance_ms:
        return Verdict(
            "expired", f"it was made {abs(away_ms) / 1000:.1f} s {'before' if away_ms > 0 else 'after'} it came"
        )
    if earlier is not None and not is_error_row(earlier):
        return Verdict("replayed", f"its nonce came before, to {earlier['service_name']}, and was answered")
    if callee["mac"] is None:
        return Verdict("unsigned", "nothing contradicts it, and nothing proves it")
    if kid not in keys:
        return Verdict("unknown key", f"it is signed with {kid}, which is not among the keys")
    again = "; sent again after a failure" if earlier is not None else ""
    unseen = "; its caller left no span" if caller is None else ""
    return Verdict("valid", f"the MAC is {kid}'s over what arrived{again}{unseen}")


def _wrong_mac(callee: Mapping[str, Any], caller: Mapping[str, Any] | None, key: Verifier) -> Verdict | None:
    kid, mac = callee["provenance_stamp_kid"], _bytes(callee["mac"])
    if _verifies(key, callee["text_hash"], mac):
        return None
    if caller is not None and _verifies(key, caller["text_hash"], mac):
        what = "something that it covers (method, target, digest, trace context, time)"
        return Verdict("tampered", f"the MAC is {kid}'s over what was sent; {what} arrived as another")
    return Verdict("forged", f"the MAC is not {kid}'s over what arrived")


def _altered_body(callee: Mapping[str, Any], caller: Mapping[str, Any] | None) -> Verdict | None:
    if callee["provenance_stamp_status"] == names.STAMP_MISMATCHED:
        return Verdict("tampered", "the body is not the one that its digest promises")
    sent = None if caller is None else caller["provenance_request_hash"]
    if None not in {sent, callee["provenance_request_hash"]} and sent != callee["provenance_request_hash"]:
        return Verdict("tampered", "the caller sent another body than arrived")
    return None


def _verifies(key: Verifier, text_hash: str | None, mac: bytes) -> bool:
    return text_hash is not None and key.verify(_bytes(text_hash), mac)


def _bytes(text: str) -> bytes:
    """The bytes of hex; of anything else, which only a hand on the evidence writes, none."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _is_in(window: Window, at: int) -> bool:
    since, until = window.since_unix_nano, window.until_unix_nano
    return (since is None or at >= since) and (until is None or at < until)


def _stamps(window: Window) -> ir.Table:
    table = window.of(spans(), margin_ns=_MARGIN_NS)
    table = table.filter(table.provenance_stamp_status.notnull() | table.provenance_stamp_nonce.notnull())
    nothing = ibis.null("string")
    return table.select(
        *_READ,
        mac=table.attributes.get(names.STAMP_MAC, nothing),
        text_hash=table.attributes.get(names.STAMP_TEXT_HASH, nothing),
    )

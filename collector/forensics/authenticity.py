"""Whether calls were made by whom they say: the stamps that callees recorded, against keys and against the callers' spans.

A call here is a span on which the middleware looked for a stamp. Its verdict, the first of these that holds:

- absent, malformed: there was no stamp, or none that can be read.
- tampered: what arrived is not what the caller sent: the body, or (by the MAC) method, target, digest or trace.
- forged: the MAC is not the named key's over anything that either side saw.
- impersonated: the span that made the stamp belongs to another service than the key, or the principal that the mesh authenticated
  does (`forensics.principals`).
- expired: made longer before or after its arrival than clocks and queues explain.
- replayed: its nonce arrived before. Not where the earlier call failed: proxies send such a call again, stamp and all.
- unsigned: none of the above, and without a MAC nobody can say more. unknown key: there is a MAC, and none of the keys is the
  one that it names. valid: none of the above.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.columns import is_error_row
from collector.forensics.ids import span_id_hex, trace_id_hex
from collector.forensics.principals import Principals
from collector.forensics.short_cuts import with_arrivals
from collector.forensics.statements import compiled_once, text, windowed
from collector.forensics.tables import Query, Window, spans
from collector.forensics.traces import trace_sql
from provenance import names
from provenance.keys import service_of
from provenance.recording import sealed
from provenance.signing import HASH_SERVICE

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

_COLUMNS: Final = (
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

BATCH_ROWS: Final = 200_000
"""Spans that are judged at once: 0.4 GB, however many there are."""

_BEYOND_ALL: Final = "\U0010ffff"
"""After every nonce, those that a hand wrote into the evidence too."""

_MARGIN_NS: Final = 60_000_000_000
"""How long before the window a caller's span may have started, or an earlier use of a nonce have arrived."""


class Verifier(Protocol):
    """A key, as far as it is needed here."""

    def sign(self, message: bytes) -> bytes:
        """The MAC, where hashes are keyed with it."""

    def verify(self, message: bytes, mac: bytes) -> bool:
        """Whether the MAC is this key's over the message."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One of `VERDICTS`, and why."""

    verdict: str
    reason: str


def stamps_sql(window: Window, first: str = "", beyond: str = _BEYOND_ALL) -> str:
    """The statement that fetches every span with a stamp whose nonce is from `first` and before `beyond`."""
    return windowed(window, lambda blank: compiled_once(_stamps, blank), first=first, beyond=beyond)


def stampless_sql(window: Window) -> str:
    """The statement that fetches every span on which a stamp was looked for, and none found that can be read."""
    return windowed(window, lambda blank: compiled_once(_stampless, blank))


def principals_sql(window: Window) -> str:
    """The statement that fetches which principal brought whose stamps: columns `kid` and `principal`."""
    return windowed(window, lambda blank: compiled_once(_principals, blank))


def stamps_count_sql(window: Window) -> str:
    """The statement that counts the spans of `stamps_sql`."""
    return windowed(window, lambda blank: compiled_once(_count, blank))


def verify(
    query: Query,
    window: Window,
    keys: Mapping[str, Verifier],
    *,
    trace_id: str | None = None,
    tolerance_ms: int = TOLERANCE_MS,
    principals: Principals | None = None,
    only: Collection[str] | None = None,
    batch_rows: int = BATCH_ROWS,
    tally: Counter[str] | None = None,
) -> pl.DataFrame:
    """The verdict of every call that arrived in the window, or of those of one trace; columns `SCHEMA`, in order of arrival.

    Args:
        query: Where the evidence is.
        window: Which calls.
        keys: Keys by their ids.
        trace_id: Of one trace alone.
        tolerance_ms: How far a stamp's time may be from its arrival.
        principals: What is known of them beside what the evidence tells.
        only: Verdicts that are wanted; None: all.
        batch_rows: Spans that are held at once: they are fetched by their nonces, so that what belongs together comes together.
        tally: Is told how often each verdict was given, those not wanted too.

    Raises ConfigError if `trace_id` is not an id.
    """
    if trace_id is not None:
        starts = with_arrivals(lambda known: query(trace_sql(trace_id, known)))["start_time_unix_nano"].to_list()
        if not starts:
            return pl.DataFrame(schema=SCHEMA)
        window = Window(min(starts), max(starts) + 1)
    pairs = query(principals_sql(window)).rows()
    known = (principals or Principals()).learn((service_of(kid), principal) for kid, principal in pairs)
    wanted_trace = trace_id_hex(trace_id)
    frames = [pl.DataFrame(schema=SCHEMA)]
    for sql in _batches(window, query(stamps_count_sql(window)).item(), batch_rows):
        judged = judge_calls(query(sql).iter_rows(named=True), keys, tolerance_ms=tolerance_ms, principals=known)
        within = [
            row
            for row in judged
            if _is_in(window, row["start_time_unix_nano"]) and wanted_trace in {None, row["trace_id"]}
        ]
        if tally is not None:
            tally.update(row["verdict"] for row in within)
        frames.append(pl.DataFrame([row for row in within if only is None or row["verdict"] in only], schema=SCHEMA))
    return pl.concat(frames).sort("start_time_unix_nano", "span_id")


def _batches(window: Window, rows: int, batch_rows: int) -> Iterator[str]:
    """The statements that together fetch all: nonces are random, so their first two digits make parts of one size."""
    yield stampless_sql(window)
    parts = min(256, max(1, -(-rows // batch_rows)))
    bounds = ["", *(f"{part * 256 // parts:02x}" for part in range(1, parts)), _BEYOND_ALL]
    for first, beyond in pairwise(bounds):
        yield stamps_sql(window, first, beyond)


def judge_calls(
    rows: Iterable[Mapping[str, Any]],
    keys: Mapping[str, Verifier],
    *,
    tolerance_ms: int = TOLERANCE_MS,
    principals: Principals | None = None,
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
        verdict = judge_call(
            row, caller, arrived.get(stamp), keys, tolerance_ms=tolerance_ms, principals=principals or Principals()
        )
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
    principals: Principals = Principals(),  # noqa: B008  (frozen)
) -> Verdict:
    """The verdict of one call.

    Args:
        callee: The span on which it was looked for a stamp.
        caller: The span that made this stamp; None where nobody told of it.
        earlier: The call that brought the same nonce before; None where none did.
        keys: Keys by their ids.
        tolerance_ms: How far the stamp's time may be from the arrival.
        principals: What is known of them.
    """
    status, kid = callee["provenance_stamp_status"], callee["provenance_stamp_kid"]
    if status == names.STAMP_ABSENT:
        return Verdict("absent", "the call came without a stamp")
    if status == names.STAMP_MALFORMED or kid is None:
        return Verdict("malformed", "the call came with a stamp or a digest that cannot be read")
    is_known = kid in keys and service_of(kid) != HASH_SERVICE
    if callee["mac"] is not None and is_known:
        if callee["hash_key"] not in {None, *keys}:
            return Verdict(
                "unknown key", f"its hashes are keyed with {callee['hash_key']}, which is not among the keys"
            )
        if wrong := _wrong_mac(callee, caller, keys):
            return wrong
    if body := _altered_body(callee, caller):
        return body
    if caller is not None and caller["service_name"] != service_of(kid):
        return Verdict("impersonated", f"{caller['service_name']} made it, under the name of {service_of(kid)}")
    if contradiction := principals.contradiction(service_of(kid), callee["principal"]):
        return Verdict("impersonated", f"the stamp names {service_of(kid)}; {contradiction}")
    away_ms = callee["start_time_unix_nano"] // 1_000_000 - callee["provenance_stamp_time_unix_ms"]
    if abs(away_ms) > tolerance_ms:
        return Verdict(
            "expired", f"it was made {abs(away_ms) / 1000:.1f} s {'before' if away_ms > 0 else 'after'} it came"
        )
    if earlier is not None and not is_error_row(earlier):
        return Verdict("replayed", f"its nonce came before, to {earlier['service_name']}, and was answered")
    if callee["mac"] is None:
        return Verdict("unsigned", "nothing contradicts it, and nothing proves it")
    if not is_known:
        return Verdict("unknown key", f"it is signed with {kid}, which is no service's among the keys")
    again = "; sent again after a failure" if earlier is not None else ""
    unseen = "; its caller left no span" if caller is None else ""
    return Verdict("valid", f"the MAC is {kid}'s over what arrived{again}{unseen}")


def _wrong_mac(
    callee: Mapping[str, Any], caller: Mapping[str, Any] | None, keys: Mapping[str, Verifier]
) -> Verdict | None:
    kid, mac = callee["provenance_stamp_kid"], _bytes(callee["mac"])
    if _verifies(keys, callee, kid, mac):
        return None
    if caller is not None and _verifies(keys, caller, kid, mac):
        what = "something that it covers (method, target, digest, trace context, time)"
        return Verdict("tampered", f"the MAC is {kid}'s over what was sent; {what} arrived as another")
    return Verdict("forged", f"the MAC is not {kid}'s over what arrived")


def _altered_body(callee: Mapping[str, Any], caller: Mapping[str, Any] | None) -> Verdict | None:
    if callee["provenance_stamp_status"] == names.STAMP_MISMATCHED:
        return Verdict("tampered", "the body is not the one that its digest promises")
    if caller is None or caller["hash_key"] != callee["hash_key"]:
        return None  # between two keys nothing can be compared
    column = "provenance_request_hash" if callee["hash_key"] is None else "keyed_hash"
    if None not in {caller[column], callee[column]} and caller[column] != callee[column]:
        return Verdict("tampered", "the caller sent another body than arrived")
    return None


def _verifies(keys: Mapping[str, Verifier], span: Mapping[str, Any], kid: str, mac: bytes) -> bool:
    """Whether the MAC is this key's over what one side saw; what is sealed was sealed with the MAC that the side itself knows."""
    if span["text_hash"] is None:
        return False
    text_hash = _bytes(span["text_hash"])
    if span["hash_key"] is not None:
        if (hash_key := keys.get(span["hash_key"])) is None:
            return False
        text_hash = sealed(hash_key, _bytes(span["provenance_stamp_nonce"]), _bytes(span["mac"] or ""), text_hash)
    return keys[kid].verify(text_hash, mac)


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
    nonce = table.provenance_stamp_nonce
    return _read(table.filter((nonce >= text("first")) & (nonce < text("beyond"))))


def _stampless(window: Window) -> ir.Table:
    table = window.of(spans(), margin_ns=_MARGIN_NS)
    return _read(table.filter(table.provenance_stamp_status.notnull() & table.provenance_stamp_nonce.isnull()))


def _count(window: Window) -> ir.Table:
    table = window.of(spans(), margin_ns=_MARGIN_NS)
    return table.filter(table.provenance_stamp_nonce.notnull()).aggregate(rows=lambda t: t.count())


def _principals(window: Window) -> ir.Table:
    table = window.of(spans(), margin_ns=_MARGIN_NS)
    principal = table.attributes.get(names.PEER_PRINCIPAL, ibis.null("string"))
    table = table.filter(table.provenance_stamp_status.notnull() & table.provenance_stamp_kid.notnull())
    return (
        table.select(kid="provenance_stamp_kid", principal=principal).filter(lambda t: t.principal.notnull()).distinct()
    )


def _read(table: ir.Table) -> ir.Table:
    nothing = ibis.null("string")
    return table.select(
        *_COLUMNS,
        mac=table.attributes.get(names.STAMP_MAC, nothing),
        text_hash=table.attributes.get(names.STAMP_TEXT_HASH, nothing),
        principal=table.attributes.get(names.PEER_PRINCIPAL, nothing),
        hash_key=table.attributes.get(names.HASH_KEY, nothing),
        keyed_hash=table.attributes.get(names.KEYED_HASH, nothing),
    )

"""What the proxies prove of each call: `seen`, `missed` or `unknown`, and why it is unknown.

Absence is evidence only where presence was possible. A proxy *missed* a call only if all of this holds:

- its access log has lines for that side (inbound for the callee's proxy, outbound for the caller's) that carry request ids
  and are not only failures (a log filtered to errors says nothing about the rest), and the call carries a request id;
- or the callee's middleware looked and the call arrived *without* a request id, although every inbound line of that proxy
  has one and calls of that service are matched to its lines: Envoy gives each request an id that it lets in, so a call
  without one did not come through it. Then no unclaimed line of that path may lie near the call in time;
- where spans and lines name replicas by the same ids, lines of the call's own replica;
- a line that ended up to `COVERAGE_NS` before the call began and one that ended up to `COVERAGE_NS` after it ended, both by
  at least `CLOCK_MARGIN_NS`. A log is written in order: the later line proves that the call's own would be there by now.
  Where several files feed one proxy's log, none of them may have stopped in between;
- no line without request id and path (an opaque connection) overlaps the call: it may have carried it. At the caller's proxy
  one to another port did not; at the callee's the port that was dialled need not be the one that it listens on;
- no line of the same request id there is left over that might be the call's (another path, a clock far off);
- the log is not a sample: somebody's calls are all in it for a good part of the time (`collector.forensics.sampling`), or nobody's are;
- the call is no service's call to itself over loopback, which no sidecar takes.

What a connection proves goes before all that: a socket that bypassed the proxy is proof whatever spans and logs say, one that
the proxy had the other end of is proof of passage (`collector.forensics.connections`). A call that the callee's proxy took in
plaintext, while it took others with an identity, did not come through a proxy of the caller's; one that it took with an identity did.
A side whose pods all lack a sidecar missed the call, if the other side has one. Where only some connections of a
replica to one address went past the proxy, the calls stay unknown, and the connections are told of themselves (`dark`).

Lines whose direction is not known can vouch for a call; they never condemn one. Missing proxy *spans* never do:
tracing is sampled, and ambient meshes write few spans.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import ibis
import ibis.expr.types as ir

from collector.forensics.absence import MISSED, SIDES, Coverage, Side, logs_of, open_reasons, side_of, sides_of
from collector.forensics.addresses import without_sidecar
from collector.forensics.calls import MARGIN_NS, Narrow, calls, proxy_spans
from collector.forensics.connections import Present, connection_proofs
from collector.forensics.line_facts import with_line_facts
from collector.forensics.log_lines import lines
from collector.forensics.matching import CLOCK_SLACK_NS, NEEDED
from collector.forensics.stages import staged
from collector.forensics.tables import Window

SEEN: Final = "seen"
UNKNOWN: Final = "unknown"
MESHED: Final = "meshed"
BYPASSED: Final = "bypassed"

REASONS: Final[dict[str, str]] = {
    "caller_unknown": "nothing vouches for a caller, so its proxy is not known either",
    "self_over_loopback": "a service's call to itself over loopback passes no sidecar",
    "witness_not_deployed": "no access log and no spans of that proxy",
    "not_sampled": "that proxy writes spans but no access log, and spans are sampled",
    "no_join_key": "the call carries no request id",
    "log_without_request_ids": "the access log carries no request ids, or no directions, or failures only",
    "ambiguous_record": "a line of the same request id, or of a connection without any, may or may not be about the call",
    "log_sampled": "the access log holds a sample of the calls",
    "window_not_covered": "no line shortly before or after the call",
    "mixed_connections": "some of the connections that may have carried it went through the proxy, and some past it",
    "meant": "a health check or a scrape, or a call from outside to where those come in",
    "opaque": "the port is opaque to the mesh: its proxies encrypt it and log no request",
}

_SAID_BY_NOBODY: Final = (
    "witness_not_deployed",
    "not_sampled",
    "log_without_request_ids",
    "no_join_key",
    "window_not_covered",
    "log_sampled",
    "ambiguous_record",
)

_PROOFS: Final = ("exact_seen", "exact_missed", "alike_seen", "alike_missed", "alike_mixed")
_WORD: Final[dict[Side, str]] = {"outbound": "out", "inbound": "into"}
"""The verdict of each side, before the two are weighed against each other."""


_ONLY_MATCHED: Final = ("request_key", "client_request_key")
"""What nothing but the search for a call's lines reads."""

READ: Final = (
    *NEEDED,
    "caller_instance",
    "callee_instance",
    "operation",
    "stamp_status",
    "destination_address",
    "destination_port",
    "peer_address",
    "peer_port",
    "remote_address",
    "remote_port",
    "principal",
    "proxy_spans_inbound",
    "proxy_spans_outbound",
)
"""The columns of calls that they are judged by."""


def judged_calls(window: Window, coverage: Coverage | None = None, present: Present | None = None) -> ir.Table:
    """The answered calls that began in the window, judged by all evidence up to `MARGIN_NS` around it; columns as of `judge`."""
    return window.of(judge(window.widened(MARGIN_NS), coverage, present))


def judge(
    window: Window,
    coverage: Coverage | None = None,
    present: Present | None = None,
    narrow: Narrow = lambda table: table,
    extend: Narrow = lambda table: table,
) -> ir.Table:
    """The answered calls that began in the window with what both proxies prove.

    `narrow` leaves `READ` of their columns, and its own; `extend` adds what it finds in all calls of the window.

    Verdicts near the ends of the window lack evidence from beyond: see `judged_calls`.

    Columns on top of `calls`, whose request ids are but `has_request_id`: outbound_verdict, inbound_verdict (seen, missed, unknown); outbound_reason, inbound_reason
    (a key of `REASONS`, NULL unless unknown); outbound_connection_id, inbound_connection_id (the row of `sockets` or `flows` that
    decided), outbound_by_connection, inbound_by_connection (whether it proves a miss), outbound_uid, inbound_uid (of the process whose socket went past the proxy); plaintext: the callee's proxy took
    it without an identity, as it did not take others; passed_through: the caller's proxy passed it on without knowing where to;
    misnamed: the callee was told of another peer than its proxy logged; verdict: bypassed if a proxy missed the call or only
    passed it through, else meshed if both saw it, else unknown. Of a caller that nothing vouches for, the callee's proxy is enough, unless it came in plaintext.
    """
    table = calls(window, unanswered=False, narrow=narrow)
    # From here on, which request it is is not asked any more; texts as long as ids are most of what a call takes.
    table = staged("calls", table.mutate(has_request_id=table.request_key.notnull()).drop(*_ONLY_MATCHED))
    logged = lines(window, MARGIN_NS - CLOCK_SLACK_NS)  # as for the calls: one stage
    logs, present = logs_of(logged), present or Present()
    evidence = _Evidence(
        logs=logs,
        traced=_traced(window),
        open_=open_reasons(sides_of(table), logged, logs, coverage or Coverage()),
        proofs=connection_proofs(table, window, present) if present.sockets or present.flows else None,
    )
    judged = extend(table)
    for side in SIDES:
        judged = _with_side(judged, side, evidence)
    return _judged(_with_bare_ends(with_line_facts(judged, logs), window, present))


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What a side is judged by: `logs_of`, `_traced`, `open_reasons`, and `connection_proofs` if there are any connections."""

    logs: ir.Table
    traced: ir.Table
    open_: ir.Table
    proofs: ir.Table | None


def _with_side(table: ir.Table, side: Side, evidence: _Evidence) -> ir.Table:
    """The calls with the verdict of one side: 'seen', 'missed', or why it is unknown, as `_WORD` names it.

    And the connection that speaks of it: `{side}_connection_id`, `{side}_by_connection`, `{side}_uid`.
    """
    columns = table.columns
    table = table.mutate(**side_of(table, side))
    mine = evidence.logs.filter(evidence.logs.side == side)
    mine = mine.group_by(log_service="service").agg(log_able=mine.able.any())
    unsettled = evidence.open_.filter(evidence.open_.side == side)
    unsettled = unsettled.select("open_reason", open_trace_id=unsettled.trace_id, open_span_id=unsettled.server_span_id)
    table = table.left_join(mine, table.service == mine.log_service)
    table = table.left_join(evidence.traced, table.service == evidence.traced.traced_service)
    table = table.left_join(
        unsettled, [table.trace_id == unsettled.open_trace_id, table.server_span_id == unsettled.open_span_id]
    )
    if evidence.proofs is None:
        word = ibis.cases((table.seen, SEEN), else_=_reason(table))
        found = _spoken(word, ibis.literal(False), ibis.null("uint64"), ibis.null("int64"))
    else:
        table = _with_proofs(table, evidence.proofs.filter(evidence.proofs.side == side).drop("side"))
        found = _proven(table)
    return table.select(*columns, **{name.format(word=_WORD[side], side=side): value for name, value in found.items()})


def _spoken(
    word: ir.StringValue, proof: ir.BooleanValue, connection_id: ir.IntegerValue, uid: ir.IntegerValue
) -> dict[str, ir.Value]:
    """The columns that `_with_side` adds."""
    return {
        "{word}": word,
        "{side}_by_connection": proof,
        "{side}_connection_id": connection_id,
        "{side}_uid": uid,
    }


def _proven(table: ir.Table) -> dict[str, ir.Value]:
    """`_spoken` where connections may speak, too: a proof goes before everything, what is alike comes after what was seen."""
    word = ibis.cases(
        (table.exact_missed, MISSED),
        (table.exact_seen | table.seen, SEEN),
        (table.alike_missed, MISSED),
        (table.alike_seen, SEEN),
        else_=_reason(table),
    )
    # That some of the connections bypassed it does not say which: but it says more than that no log was there.
    weak = table.alike_mixed & word.isin(_SAID_BY_NOBODY)
    proof = table.exact_missed | (table.alike_missed & ~table.exact_seen & ~table.seen)
    spoken = proof | table.exact_seen | (table.alike_seen & ~table.seen)
    return _spoken(
        ibis.ifelse(weak, "mixed_connections", word),
        proof,
        ibis.ifelse(spoken, table.connection_id, ibis.null("uint64")),
        ibis.ifelse(proof, table.connection_uid, ibis.null("int64")),
    )


def _reason(table: ir.Table) -> ir.StringValue:
    """What is said of a side that nothing saw: why, or that it was missed."""
    return ibis.cases(
        (table.service.isnull(), "caller_unknown"),
        (table.loopback, "self_over_loopback"),
        (table.log_service.isnull() & table.traced_service.notnull(), "not_sampled"),
        (table.log_service.isnull(), "witness_not_deployed"),
        (~table.log_able, "log_without_request_ids"),
        else_=table.open_reason.fill_null("no_join_key"),
    )


def _with_proofs(table: ir.Table, proofs: ir.Table) -> ir.Table:
    """The calls with what sockets and flows prove of one side of them."""
    names = (*_PROOFS, "connection_id", "connection_uid")
    proofs = proofs.rename({f"proof_{name}": name for name in proofs.columns})
    joined = table.left_join(
        proofs,
        [table.trace_id == proofs.proof_trace_id, table.server_span_id == proofs.proof_server_span_id],
    )
    found = {name: joined[f"proof_{name}"] for name in names}
    found |= {name: found[name].fill_null(False) for name in _PROOFS}
    return joined.mutate(**found).drop(*proofs.columns)


def _with_bare_ends(table: ir.Table, window: Window, present: Present) -> ir.Table:
    """The calls with `bare_caller` and `bare_callee`: no pod of it has a sidecar."""
    if not (present.sockets or present.workloads):
        no = ibis.literal(False)
        return table.mutate(bare_caller=no, bare_callee=no)
    bare = without_sidecar(window)
    caller, callee = (bare.select(**{f"bare_{end}_service": bare.bare_service}) for end in ("caller", "callee"))
    table = table.left_join(caller, table.caller == caller.bare_caller_service)
    table = table.left_join(callee, table.callee == callee.bare_callee_service)
    return table.mutate(
        bare_caller=table.bare_caller_service.notnull(), bare_callee=table.bare_callee_service.notnull()
    ).drop("bare_caller_service", "bare_callee_service")


def _judged(table: ir.Table) -> ir.Table:
    """The calls with the verdicts of both sides, and of the whole."""
    known = (SEEN, MISSED)
    out, into = table.out.isin(known).fill_null(False), table["into"].isin(known).fill_null(False)
    # Whoever came without an identity did not come through a proxy of the caller's, if there is any; whoever came with one did.
    bare = (table.plaintext | (table.bare_caller & into)) & table.caller.notnull()
    table = table.mutate(
        out=ibis.cases(
            (bare & (table.out != SEEN).fill_null(True), MISSED),
            (table.authenticated & ~out & table.caller.notnull(), SEEN),
            else_=table.out,
        ),
        into=ibis.ifelse(table.bare_callee & out & ~into, MISSED, table["into"]),
    )
    table = table.mutate(
        outbound_verdict=_verdict(table.out),
        inbound_verdict=_verdict(table["into"]),
        outbound_reason=table.out.nullif(SEEN).nullif(MISSED),
        inbound_reason=table["into"].nullif(SEEN).nullif(MISSED),
    ).drop("out", "into")
    # A callee that nobody knows to be in the mesh may well lie outside, and be reached as the mesh reaches what lies outside.
    outside = (table.inbound_reason == "witness_not_deployed").fill_null(False)
    table = table.mutate(passed_through=table.passed_through & ~outside)
    missed = (table.outbound_verdict == MISSED) | (table.inbound_verdict == MISSED) | table.passed_through
    whole = (table.outbound_verdict == SEEN) | (table.caller.isnull() & ~table.plaintext)
    meshed = whole & (table.inbound_verdict == SEEN)
    return table.mutate(verdict=ibis.cases((missed, BYPASSED), (meshed, MESHED), else_=UNKNOWN))


def without_misses(caller: str | None, outbound: str, inbound: str) -> str:
    """The verdict of a call whose misses were taken back, from what is left of both sides."""
    return MESHED if inbound == SEEN and (outbound == SEEN or caller is None) else UNKNOWN


def is_unjudged(row: Mapping[str, Any]) -> bool:
    """Whether a call's verdict is unknown and neither side of it is known."""
    return row["verdict"] == UNKNOWN and SEEN not in {row["outbound_verdict"], row["inbound_verdict"]}


def _verdict(reason: ir.StringValue) -> ir.StringValue:
    return ibis.cases((reason == SEEN, SEEN), (reason == MISSED, MISSED), else_=UNKNOWN)


def _traced(window: Window) -> ir.Table:
    """(traced_service): the services whose proxies write spans; `shop.default` is shop's, too."""
    names = proxy_spans(window).select("service_name").distinct()
    short = names.select(traced_service=names.service_name.re_replace(r"\..*$", ""))
    return names.select(traced_service=names.service_name).union(short).distinct()

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
from typing import Any, Final, Literal

import ibis
import ibis.expr.types as ir

from collector.forensics.addresses import without_sidecar
from collector.forensics.calls import MARGIN_NS, Narrow, calls, proxy_spans
from collector.forensics.connections import Present, connection_proofs
from collector.forensics.line_facts import with_line_facts
from collector.forensics.matching import CLOCK_SLACK_NS, NEEDED, lines
from collector.forensics.sampling import sampled
from collector.forensics.stages import staged
from collector.forensics.tables import NS_PER_S, Window

Side = Literal["outbound", "inbound"]

SEEN: Final = "seen"
MISSED: Final = "missed"
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

COVERAGE_NS: Final = 60 * NS_PER_S
CLOCK_MARGIN_NS: Final = NS_PER_S // 10

_FAILED: Final = 400
_ANY: Final = "*"
_PROOFS: Final = ("exact_seen", "exact_missed", "alike_seen", "alike_missed", "alike_mixed")
_PROXY: Final = ("side", "service", "proxy", "source")
_LOOPBACK: Final = ("localhost", "::1", "[::1]")
_UNIT: Final = ("side", "trace_id", "server_span_id")


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


@dataclass(frozen=True, slots=True)
class Coverage:
    """How near in time a proxy's other lines must be, ns, for the absence of one to count."""

    within_ns: int = COVERAGE_NS
    clock_margin_ns: int = CLOCK_MARGIN_NS


def judged_calls(window: Window, coverage: Coverage | None = None, present: Present | None = None) -> ir.Table:
    """The answered calls that began in the window, judged by all evidence up to `MARGIN_NS` around it; columns as of `judge`."""
    return window.of(judge(window.widened(MARGIN_NS), coverage, present))


def judge(
    window: Window,
    coverage: Coverage | None = None,
    present: Present | None = None,
    narrow: Narrow = lambda table: table,
) -> ir.Table:
    """The answered calls that began in the window with what both proxies prove; `narrow` leaves `READ` of their columns, and its own.

    Verdicts near the ends of the window lack evidence from beyond: see `judged_calls`.

    Columns on top of `calls`: outbound_verdict, inbound_verdict (seen, missed, unknown); outbound_reason, inbound_reason
    (a key of `REASONS`, NULL unless unknown); outbound_connection_id, inbound_connection_id (the row of `sockets` or `flows` that
    decided), outbound_by_connection, inbound_by_connection (whether it proves a miss), outbound_uid, inbound_uid (of the process whose socket went past the proxy); plaintext: the callee's proxy took
    it without an identity, as it did not take others; passed_through: the caller's proxy passed it on without knowing where to;
    misnamed: the callee was told of another peer than its proxy logged; verdict: bypassed if a proxy missed the call or only
    passed it through, else meshed if both saw it, else unknown. Of a caller that nothing vouches for, the callee's proxy is enough, unless it came in plaintext.
    """
    table = staged("calls", calls(window, unanswered=False, narrow=narrow))
    logged = lines(window, MARGIN_NS - CLOCK_SLACK_NS)  # as for the calls: one stage
    sides = staged("sides", _sides(table))
    present = present or Present()
    # Most calls are seen, and only a connection could gainsay that: without any, just the others need a reason.
    units = sides if present.sockets or present.flows else sides.filter(~sides.seen)
    units = _with_id_proof(units, sides, logged)
    units = staged("units", _with_opaque(staged("units_by_id", units), logged))
    units = _with_connections(units, table, window, present)
    replicas = _replicas(sides, logged)
    covered = staged("covered", _covered(units, replicas, logged, coverage or Coverage()))
    excused = staged("sampled_logs", sampled(_excusable(sides, replicas)))
    judged = _reasons(_with_proxy(units, replicas), excused, logged, covered, window)
    judged = staged("side_verdicts", judged)
    table = _with_side(_with_side(table, judged, "outbound", "out"), judged, "inbound", "into")
    table = _with_bare_ends(with_line_facts(table, logged), window, present)
    return _judged(staged("line_facts", table))


def _with_side(table: ir.Table, judged: ir.Table, side: str, name: str) -> ir.Table:
    """The calls with the verdict of one side, as `name`, and the connection that speaks of it; who was not judged was seen."""
    mine = judged.filter(judged.side == side)
    mine = mine.select(
        "reason",
        "connection_id",
        "by_connection",
        "connection_uid",
        judge_trace_id=mine.trace_id,
        judge_span_id=mine.server_span_id,
    )
    joined = table.left_join(mine, [table.trace_id == mine.judge_trace_id, table.server_span_id == mine.judge_span_id])
    return joined.select(
        *table.columns,
        **{
            name: joined.reason.fill_null(SEEN),
            f"{side}_connection_id": joined.connection_id,
            f"{side}_by_connection": joined.by_connection.fill_null(False),
            f"{side}_uid": joined.connection_uid,
        },
    )


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


def _with_connections(units: ir.Table, table: ir.Table, window: Window, present: Present) -> ir.Table:
    """The units with what sockets and flows prove of them; false and NULL where there are none."""
    if not (present.sockets or present.flows):
        no = ibis.literal(False)
        return units.mutate(
            **dict.fromkeys(_PROOFS, no), connection_id=ibis.null("uint64"), connection_uid=ibis.null("int64")
        )
    proofs = connection_proofs(table, window, present)
    proofs = proofs.rename(proof_side="side", proof_trace_id="trace_id", proof_span_id="server_span_id")
    joined = units.left_join(
        proofs,
        [
            units.side == proofs.proof_side,
            units.trace_id == proofs.proof_trace_id,
            units.server_span_id == proofs.proof_span_id,
        ],
    ).drop("proof_side", "proof_trace_id", "proof_span_id")
    return staged("units_and_connections", joined.mutate(**{name: joined[name].fill_null(False) for name in _PROOFS}))


def _verdict(reason: ir.StringValue) -> ir.StringValue:
    return ibis.cases((reason == SEEN, SEEN), (reason == MISSED, MISSED), else_=UNKNOWN)


def _sides(answered: ir.Table) -> ir.Table:
    """Two rows a call: side, service and instance whose proxy should have seen it, the peer, when, and whether it was seen.

    `without_id`: the callee's middleware looked for a request id, and the call had none.
    """
    outbound = answered.select(
        "trace_id",
        "server_span_id",
        "request_key",
        side=ibis.literal("outbound"),
        service=answered.caller,
        instance=answered.caller_instance,
        peer=answered.callee,
        start=answered.start_time_unix_nano,
        end=answered.end_time_unix_nano,
        record_id=answered.outbound_record_id,
        recorded=answered.outbound_record_id.notnull(),
        seen=answered.outbound_record_id.notnull() | (answered.proxy_spans_outbound > 0),
        ambiguous=answered.outbound_ambiguous,
        port=answered.destination_port,
        without_id=ibis.literal(False),
        path=answered.path,
        operation=answered.operation,
        loopback=_to_itself(answered),
    )
    inbound = answered.select(
        "trace_id",
        "server_span_id",
        "request_key",
        side=ibis.literal("inbound"),
        service=answered.callee,
        instance=answered.callee_instance,
        peer=answered.caller,
        start=answered.server_start_time_unix_nano,
        end=answered.server_end_time_unix_nano,
        record_id=answered.inbound_record_id,
        recorded=answered.inbound_record_id.notnull(),
        seen=answered.inbound_record_id.notnull() | (answered.proxy_spans_inbound > 0),
        ambiguous=answered.inbound_ambiguous,
        port=ibis.null("int64"),
        # Only a middleware that looked could have told; it records every id that it finds.
        without_id=answered.request_key.isnull() & answered.stamp_status.notnull(),
        path=answered.path,
        operation=answered.operation,
        loopback=_to_itself(answered),
    )
    return outbound.union(inbound)


def _to_itself(answered: ir.Table) -> ir.BooleanValue:
    """Calls of a replica to itself over loopback: a sidecar's redirection leaves them alone."""
    address = answered.destination_address.lower()
    local = address.isin(_LOOPBACK) | address.re_search(r"^127(\.\d{1,3}){3}$")
    same = (answered.caller == answered.callee) & (answered.caller_instance == answered.callee_instance).fill_null(True)
    return (local & same).fill_null(False)


def _with_id_proof(units: ir.Table, sides: ir.Table, logged: ir.Table) -> ir.Table:
    """The units with `without_id` only where it proves something, and `ambiguous` where a line may yet be about one of them."""
    always = logged.filter(logged.direction.notnull()).group_by("side", "service")
    always = always.agg(every_line=logged.request_key.notnull().all())
    vouched = sides.group_by("side", "service").agg(matched=sides.recorded.any())
    giving = always.inner_join(vouched, ["side", "service"])
    giving = giving.filter(giving.every_line & giving.matched)
    giving = giving.select(giving_side=giving.side, giving_service=giving.service)
    table = units.left_join(giving, [units.side == giving.giving_side, units.service == giving.giving_service])
    table = table.mutate(without_id=table.without_id & table.giving_side.notnull())
    bare = table.filter(table.without_id & ~table.seen)
    free = logged.filter(logged.side == "inbound").anti_join(sides.filter(sides.recorded), ["side", "record_id"])
    free = free.select(
        free_service=free.service,
        free_path=free.path,
        free_start=free.start - CLOCK_SLACK_NS,
        free_end=free.end + CLOCK_SLACK_NS,
    )
    doubtful = bare.inner_join(
        free,
        [bare.service == free.free_service, bare.start <= free.free_end, bare.end >= free.free_start],
    )
    doubtful = doubtful.filter((doubtful.path == doubtful.free_path).fill_null(True))
    return _doubted(table.drop("giving_side", "giving_service"), doubtful)


def _with_opaque(units: ir.Table, logged: ir.Table) -> ir.Table:
    """The units with `ambiguous` also where a connection that the proxy did not look into may have carried the call."""
    opaque = logged.filter(logged.direction.notnull() & logged.request_key.isnull() & logged.path.isnull())
    opaque = opaque.select(
        "local_port",
        "upstream_port",
        opaque_side=opaque.side,
        opaque_service=opaque.service,
        opaque_start=opaque.start - CLOCK_SLACK_NS,
        opaque_end=opaque.end + CLOCK_SLACK_NS,
    )
    unseen = units.filter(~units.seen)
    doubtful = unseen.inner_join(
        opaque,
        [
            unseen.side == opaque.opaque_side,
            unseen.service == opaque.opaque_service,
            unseen.start <= opaque.opaque_end,
            unseen.end >= opaque.opaque_start,
        ],
    )
    other = (doubtful.port != doubtful.local_port) & (doubtful.port != doubtful.upstream_port).fill_null(True)
    return _doubted(units, doubtful.filter(~other.fill_null(False)))


def _doubted(units: ir.Table, doubtful: ir.Table) -> ir.Table:
    """The units with `ambiguous` also where they are among the doubtful."""
    doubtful = doubtful.select(*_UNIT).distinct()
    doubtful = doubtful.select(
        doubt_side=doubtful.side, doubt_trace_id=doubtful.trace_id, doubt_span_id=doubtful.server_span_id
    )
    table = units.left_join(
        doubtful,
        [
            units.side == doubtful.doubt_side,
            units.trace_id == doubtful.doubt_trace_id,
            units.server_span_id == doubtful.doubt_span_id,
        ],
    )
    return table.mutate(ambiguous=table.ambiguous | table.doubt_side.notnull()).drop(
        "doubt_side", "doubt_trace_id", "doubt_span_id"
    )


def _able(logged: ir.Table) -> ir.BooleanValue:
    """Which lines can prove an absence: their direction is known, they carry a request id, and they are no failures."""
    usable = logged.response_code.isnull() | (logged.response_code < _FAILED)
    return logged.direction.notnull() & logged.request_key.notnull() & usable


def _replicas(sides: ir.Table, logged: ir.Table) -> ir.Table:
    """(side, service) of the proxies whose lines name replicas by the same ids as the spans."""
    named = logged.filter(logged.instance.notnull()).select("side", "service", "instance").distinct()
    spoken = sides.filter(sides.instance.notnull()).select("side", "service", "instance").distinct()
    both = named.inner_join(spoken, ["side", "service", "instance"])
    return staged("replicas", both.select("side", "service").distinct())


def _with_proxy(table: ir.Table, replicas: ir.Table) -> ir.Table:
    """The table with `proxy`: the replica where it can be told apart, else '*'."""
    known = replicas.select(known_side=replicas.side, known_service=replicas.service)
    joined = table.left_join(known, [table.side == known.known_side, table.service == known.known_service])
    proxy = ibis.ifelse(joined.known_side.notnull(), joined.instance.fill_null(_ANY), _ANY)
    return joined.mutate(proxy=proxy).drop("known_side", "known_service")


def _covered(units: ir.Table, replicas: ir.Table, logged: ir.Table, coverage: Coverage) -> ir.Table:
    """The unseen units with `proxy_lines` (files with lines of their proxy) and `covered`: in time, by all of them.

    Columns: side, trace_id, server_span_id, proxy_lines, covered.
    """
    open_ = units.filter(~units.seen & units.service.notnull() & (units.request_key.notnull() | units.without_id))
    open_ = _with_proxy(open_, replicas)
    able = _with_proxy(logged.filter(_able(logged)), replicas).semi_join(open_, ["side", "service"])
    files = able.select(*_PROXY).distinct()
    waiting = open_.inner_join(files, ["side", "service", "proxy"]).select(*_UNIT, *_PROXY[1:], "start", "end")
    margin = coverage.clock_margin_ns
    moments = (
        able.select(
            *_PROXY,
            at=able.end,
            line_at=able.end,
            role=ibis.literal("line"),
            trace_id=ibis.null(waiting.trace_id.type()),
            server_span_id=ibis.null(waiting.server_span_id.type()),
        )
        .union(_moment(waiting, waiting.start - margin, "before"))
        .union(_moment(waiting, waiting.end + margin, "after"))
    )
    around = {"group_by": _PROXY, "order_by": [moments.at]}
    moments = moments.mutate(
        last=moments.line_at.max().over(ibis.window(preceding=None, following=0, **around)),
        next=moments.line_at.min().over(ibis.window(preceding=0, following=None, **around)),
    )
    moments = moments.filter(moments.role != "line")
    near = ibis.ifelse(
        moments.role == "before",
        (moments.at - moments.last) <= coverage.within_ns,
        (moments.next - moments.at) <= coverage.within_ns,
    ).fill_null(False)
    moments = moments.mutate(near=near)
    by_file = moments.group_by(*_UNIT, "source").agg(
        before=moments.near.any(where=moments.role == "before"), after=moments.near.any(where=moments.role == "after")
    )
    return by_file.group_by(_UNIT).agg(
        covered=(by_file.before & by_file.after).any() & ~(by_file.before & ~by_file.after).any()
    )


def _moment(waiting: ir.Table, at: ir.IntegerValue, role: str) -> ir.Table:
    return waiting.select(
        *_PROXY,
        at=at,
        line_at=ibis.null("int64"),
        role=ibis.literal(role),
        trace_id="trace_id",
        server_span_id="server_span_id",
    )


def _reasons(table: ir.Table, excused: ir.Table, logged: ir.Table, covered: ir.Table, window: Window) -> ir.Table:
    """(side, trace_id, server_span_id, reason): 'seen', 'missed', or why it is unknown."""
    logs = logged.group_by("side", "service").agg(able=_able(logged).any())
    logs = logs.select(log_side=logs.side, log_service=logs.service, log_able=logs.able)
    sampled_ = excused.rename(sampled_side="side", sampled_service="service", sampled_proxy="proxy")
    traced = _traced(window)
    table = table.left_join(logs, [table.side == logs.log_side, table.service == logs.log_service])
    table = table.left_join(traced, [table.service == traced.traced_service])
    table = table.left_join(
        sampled_,
        [
            table.side == sampled_.sampled_side,
            table.service == sampled_.sampled_service,
            table.proxy == sampled_.sampled_proxy,
        ],
    )
    cover = covered.select(
        cover_side=covered.side,
        cover_trace_id=covered.trace_id,
        cover_span_id=covered.server_span_id,
        covered=covered.covered,
    )
    table = table.left_join(
        cover,
        [
            table.side == cover.cover_side,
            table.trace_id == cover.cover_trace_id,
            table.server_span_id == cover.cover_span_id,
        ],
    )
    reason = ibis.cases(
        (table.exact_missed, MISSED),
        (table.exact_seen | table.seen, SEEN),
        (table.alike_missed, MISSED),
        (table.alike_seen, SEEN),
        (table.service.isnull(), "caller_unknown"),
        (table.loopback, "self_over_loopback"),
        (table.log_side.isnull() & table.traced_service.notnull(), "not_sampled"),
        (table.log_side.isnull(), "witness_not_deployed"),
        (~table.log_able, "log_without_request_ids"),
        (table.request_key.isnull() & ~table.without_id, "no_join_key"),
        (table.ambiguous, "ambiguous_record"),
        (table.covered.isnull(), "witness_not_deployed"),
        (~table.covered, "window_not_covered"),
        (table.sampled_side.notnull(), "log_sampled"),
        else_=MISSED,
    )
    # That some of the connections bypassed it does not say which: but it says more than that no log was there.
    weak = table.alike_mixed & reason.isin(_SAID_BY_NOBODY)
    proof = table.exact_missed | (table.alike_missed & ~table.exact_seen & ~table.seen)
    spoken = proof | table.exact_seen | (table.alike_seen & ~table.seen)
    return table.select(
        *_UNIT,
        by_connection=proof,
        connection_id=ibis.ifelse(spoken, table.connection_id, ibis.null("uint64")),
        connection_uid=ibis.ifelse(proof, table.connection_uid, ibis.null("int64")),
        reason=ibis.ifelse(weak, "mixed_connections", reason),
    )


def _traced(window: Window) -> ir.Table:
    """(traced_service): the services whose proxies write spans; `shop.default` is shop's, too."""
    names = proxy_spans(window).select("service_name").distinct()
    short = names.select(traced_service=names.service_name.re_replace(r"\..*$", ""))
    return names.select(traced_service=names.service_name).union(short).distinct()


def _excusable(sides: ir.Table, replicas: ir.Table) -> ir.Table:
    """The calls that a sampled log would excuse, with `proxy`."""
    known = sides.filter(sides.service.notnull() & sides.request_key.notnull() & ~sides.loopback)
    # Only where some calls are in the log and some are not, there is anything to excuse.
    logs = known.group_by("side", "service").agg(some=known.recorded.any(), all=known.recorded.all())
    known = known.semi_join(logs.filter(logs.some & ~logs["all"]), ["side", "service"])
    return _with_proxy(known, replicas)

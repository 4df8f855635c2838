"""Whether a line that is not there means something: the units, one a side of a call, of which an access log could have told.

The rules are those of `collector.forensics.verdicts`, which decides about all the others without them.
"""

from dataclasses import dataclass
from typing import Final, Literal

import ibis
import ibis.expr.types as ir

from collector.forensics.matching import CLOCK_SLACK_NS
from collector.forensics.sampling import sampled
from collector.forensics.stages import staged
from collector.forensics.tables import NS_PER_S

Side = Literal["outbound", "inbound"]
SIDES: Final[tuple[Side, ...]] = ("outbound", "inbound")

MISSED: Final = "missed"

COVERAGE_NS: Final = 60 * NS_PER_S
CLOCK_MARGIN_NS: Final = NS_PER_S // 10

_FAILED: Final = 400
_ANY: Final = "*"
_PROXY: Final = ("side", "service", "proxy", "source")
_LOOPBACK: Final = ("localhost", "::1", "[::1]")
_UNIT: Final = ("side", "trace_id", "server_span_id")


@dataclass(frozen=True, slots=True)
class Coverage:
    """How near in time a proxy's other lines must be, ns, for the absence of one to count."""

    within_ns: int = COVERAGE_NS
    clock_margin_ns: int = CLOCK_MARGIN_NS


def sides_of(answered: ir.Table) -> ir.Table:
    """Two rows a call: the columns of `side_of`, side, trace_id and server_span_id, has_request_id, path, operation."""
    both = (
        answered.select(
            "trace_id",
            "server_span_id",
            "has_request_id",
            "path",
            "operation",
            side=ibis.literal(side),
            **side_of(answered, side),
        )
        for side in SIDES
    )
    return ibis.union(*both)


def side_of(calls: ir.Table, side: Side) -> dict[str, ir.Value]:
    """By column: service and instance whose proxy should have seen the call, the peer, start and end, record_id, and whether it was seen.

    `without_id`: the callee's middleware looked for a request id, and the call had none.
    """
    recorded = calls[f"{side}_record_id"].notnull()
    common = {
        "record_id": calls[f"{side}_record_id"],
        "recorded": recorded,
        "seen": recorded | (calls[f"proxy_spans_{side}"] > 0),
        "ambiguous": calls[f"{side}_ambiguous"],
        "loopback": _to_itself(calls),
    }
    if side == "outbound":
        return common | {
            "service": calls.caller,
            "instance": calls.caller_instance,
            "peer": calls.callee,
            "start": calls.start_time_unix_nano,
            "end": calls.end_time_unix_nano,
            "port": calls.destination_port,
            "without_id": ibis.literal(False),
        }
    return common | {
        "service": calls.callee,
        "instance": calls.callee_instance,
        "peer": calls.caller,
        "start": calls.server_start_time_unix_nano,
        "end": calls.server_end_time_unix_nano,
        "port": ibis.null("int64"),
        # Only a middleware that looked could have told; it records every id that it finds.
        "without_id": ~calls.has_request_id & calls.stamp_status.notnull(),
    }


def _to_itself(answered: ir.Table) -> ir.BooleanValue:
    """Calls of a replica to itself over loopback: a sidecar's redirection leaves them alone."""
    address = answered.destination_address.lower()
    local = address.isin(_LOOPBACK) | address.re_search(r"^127(\.\d{1,3}){3}$")
    same = (answered.caller == answered.callee) & (answered.caller_instance == answered.callee_instance).fill_null(True)
    return ibis.ifelse(same.fill_null(False), local.fill_null(False), False)


def logs_of(logged: ir.Table) -> ir.Table:
    """One row a file and replica: side, service, instance, source, and what its lines are.

    every_line: all that have a direction have a request id; able: some can prove an absence (`_able`); named: some name the peer.
    """
    directed = logged.direction.notnull()
    table = logged.group_by("side", "service", "instance", "source").agg(
        every_line=logged.request_key.notnull().all(where=directed), able=_able(logged).any(), named=logged.named.any()
    )
    return staged("logs", table)


def open_reasons(sides: ir.Table, logged: ir.Table, logs: ir.Table, coverage: Coverage) -> ir.Table:
    """The calls that were not seen, and of which an access log could have told.

    Columns: side, trace_id, server_span_id; open_reason: 'missed', or why it is unknown.
    """
    totals = _totals(sides)
    replicas = _replicas(totals, logs)
    units = _unseen(sides, totals, logs)
    units = staged("units", _with_proxy(units, replicas))
    doubtful = _maybe_of_line_without_id(units, sides, logged).union(_maybe_in_opaque(units, logged)).distinct()
    doubtful = doubtful.rename({f"doubt_{name}": name for name in _UNIT})
    covered = _covered(units, replicas, logged, coverage)
    covered = covered.rename({f"cover_{name}": name for name in _UNIT})
    excused = sampled(_excusable(sides, totals, replicas))
    excused = excused.rename(sampled_side="side", sampled_service="service", sampled_proxy="proxy")
    table = units.left_join(doubtful, [units[name] == doubtful[f"doubt_{name}"] for name in _UNIT])
    table = table.left_join(covered, [table[name] == covered[f"cover_{name}"] for name in _UNIT])
    table = table.left_join(
        excused,
        [
            table.side == excused.sampled_side,
            table.service == excused.sampled_service,
            table.proxy == excused.sampled_proxy,
        ],
    )
    reason = ibis.cases(
        (table.ambiguous | table.doubt_side.notnull(), "ambiguous_record"),
        (table.covered.isnull(), "witness_not_deployed"),
        (~table.covered, "window_not_covered"),
        (table.sampled_side.notnull(), "log_sampled"),
        else_=MISSED,
    )
    return staged("open_reasons", table.select(*_UNIT, open_reason=reason))


def _totals(sides: ir.Table) -> ir.Table:
    """(side, service, instance): whether any call is matched to a line (`matched`), and of those that should be, any and all."""
    known = sides.has_request_id & ~sides.loopback
    table = sides.group_by("side", "service", "instance").agg(
        matched=sides.recorded.any(), some=sides.recorded.any(where=known), all=sides.recorded.all(where=known)
    )
    return staged("side_totals", table)


def _unseen(sides: ir.Table, totals: ir.Table, logs: ir.Table) -> ir.Table:
    """The sides that were not seen and have a request id, or are `without_id` where that proves something."""
    always = logs.group_by("side", "service").agg(every_line=logs.every_line.all())
    vouched = totals.group_by("side", "service").agg(matched=totals.matched.any())
    giving = always.inner_join(vouched, ["side", "service"])
    giving = giving.filter(giving.every_line & giving.matched)
    giving = giving.select(giving_side=giving.side, giving_service=giving.service)
    unseen = sides.filter(~sides.seen & sides.service.notnull() & (sides.has_request_id | sides.without_id))
    table = unseen.left_join(giving, [unseen.side == giving.giving_side, unseen.service == giving.giving_service])
    table = table.mutate(without_id=table.without_id & table.giving_side.notnull())
    return table.filter(table.has_request_id | table.without_id).drop("giving_side", "giving_service")


def _maybe_of_line_without_id(units: ir.Table, sides: ir.Table, logged: ir.Table) -> ir.Table:
    """`_UNIT` of those without a request id that a line which nobody claims may yet be about."""
    bare = units.filter(units.without_id)
    # Not a join: an engine would build it over all lines, not knowing that the units are few.
    free = logged.filter((logged.side == "inbound") & logged.service.isin(bare.service))
    free = free.anti_join(sides.filter(sides.recorded & (sides.side == "inbound")), "record_id")
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
    return doubtful.filter((doubtful.path == doubtful.free_path).fill_null(True)).select(*_UNIT)


def _maybe_in_opaque(units: ir.Table, logged: ir.Table) -> ir.Table:
    """`_UNIT` of those that a connection which the proxy did not look into may have carried."""
    opaque = logged.filter(logged.direction.notnull() & logged.request_key.isnull() & logged.path.isnull())
    opaque = opaque.select(
        "local_port",
        "upstream_port",
        opaque_side=opaque.side,
        opaque_service=opaque.service,
        opaque_start=opaque.start - CLOCK_SLACK_NS,
        opaque_end=opaque.end + CLOCK_SLACK_NS,
    )
    doubtful = units.inner_join(
        opaque,
        [
            units.side == opaque.opaque_side,
            units.service == opaque.opaque_service,
            units.start <= opaque.opaque_end,
            units.end >= opaque.opaque_start,
        ],
    )
    other = (doubtful.port != doubtful.local_port) & (doubtful.port != doubtful.upstream_port).fill_null(True)
    return doubtful.filter(~other.fill_null(False)).select(*_UNIT)


def _able(logged: ir.Table) -> ir.BooleanValue:
    """Which lines can prove an absence: their direction is known, they carry a request id, and they are no failures."""
    usable = logged.response_code.isnull() | (logged.response_code < _FAILED)
    return logged.direction.notnull() & logged.request_key.notnull() & usable


def _replicas(totals: ir.Table, logs: ir.Table) -> ir.Table:
    """(side, service) of the proxies whose lines name replicas by the same ids as the spans."""
    both = logs.inner_join(totals, ["side", "service", "instance"])
    return staged("replicas", both.select("side", "service").distinct())


def _with_proxy(table: ir.Table, replicas: ir.Table) -> ir.Table:
    """The table with `proxy`: the replica where it can be told apart, else '*'."""
    known = replicas.select(known_side=replicas.side, known_service=replicas.service)
    joined = table.left_join(known, [table.side == known.known_side, table.service == known.known_service])
    proxy = ibis.ifelse(joined.known_side.notnull(), joined.instance.fill_null(_ANY), _ANY)
    return joined.mutate(proxy=proxy).drop("known_side", "known_service")


def _covered(units: ir.Table, replicas: ir.Table, logged: ir.Table, coverage: Coverage) -> ir.Table:
    """(side, trace_id, server_span_id, covered) of the units of whose proxy there is any file: in time, by all of them."""
    # Of the other side, too: those lines are beside no unit. A join would be built over all lines, not over the few units.
    able = logged.filter(_able(logged)).filter(logged.service.isin(units.service))
    able = staged("able", _with_proxy(able.select("side", "service", "instance", "source", "end"), replicas))
    files = able.select(*_PROXY).distinct()
    waiting = units.inner_join(files, ["side", "service", "proxy"]).select(*_UNIT, *_PROXY[1:], "start", "end")
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


def _excusable(sides: ir.Table, totals: ir.Table, replicas: ir.Table) -> ir.Table:
    """The calls that a sampled log would excuse, with `proxy`."""
    known = sides.filter(sides.service.notnull() & sides.has_request_id & ~sides.loopback)
    # Only where some calls are in the log and some are not, there is anything to excuse.
    logs = totals.group_by("side", "service").agg(some=totals.some.any(), all=totals["all"].all())
    known = known.semi_join(logs.filter(logs.some & ~logs["all"]), ["side", "service"])
    return _with_proxy(known, replicas)

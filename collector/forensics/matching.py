"""Which access-log line is about which call, one to one.

A line vouches for one call. The same request id travels along a whole request and may come to the same callee and path
more than once, one of them past the mesh: so lines and calls of one (proxy, direction, request id) are paired by time and
path, never one line to two calls.

- One call and one line of the same path (as far as the call's is known) that overlap in time, give or take
  `CLOCK_SLACK_NS`: a pair.
- More: split into episodes, wherever nothing began for `CLOCK_SLACK_NS`; in an episode each line takes its nearest call
  (start and end) and each call the nearest line that took it; what is left over is paired in order of time.
- Episodes of more than `MAX_EPISODE` (a client that sends one constant request id) are paired in order of time; if calls
  are left over, it cannot be told which, and they are ambiguous.

A call that stays without a line is *ambiguous* as long as its proxy has an unclaimed line of the same request id: another
path (a rewritten one, a mount prefix), or another time (a clock far off).

A line of a caller's proxy that is left over names the caller of a call that nobody's span made (`_vouched`).

The caller's line is per client span: a proxy's retries are several server spans, but one line at the caller's proxy.
"""

from typing import Final

import ibis
import ibis.expr.types as ir

from collector.forensics.line_facts import FACTS_OF_SIDE, LINE_FACTS
from collector.forensics.log_lines import key_hash, lines
from collector.forensics.stages import once, staged
from collector.forensics.tables import NS_PER_S, Window

CLOCK_SLACK_NS: Final = 5 * NS_PER_S
"""How far the clocks of an app and of a proxy may disagree."""

MAX_EPISODE: Final = 64
"""Calls and lines of one episode that are paired by distance; beyond, in order of time."""

_GROUP: Final = ("side", "service", "request_key")
_UNIT: Final = ("side", "trace_id", "unit_span_id")

_LINE: Final = ("path", "start", "end", "record_id", *LINE_FACTS)
CARRIED: Final = tuple(f"{side}_{name}" for side, names in FACTS_OF_SIDE.items() for name in names)
"""What calls have of their lines: `FACTS_OF_SIDE`, NULL without a line."""

_SLOT: Final = (*_GROUP, "episode")
_SIDES: Final = {"outbound": "caller", "inbound": "callee"}
"""Whose proxy it is."""


NEEDED: Final = (
    "trace_id",
    "client_span_id",
    "server_span_id",
    "caller",
    "callee",
    "path",
    "request_key",
    "client_request_key",
    "start_time_unix_nano",
    "end_time_unix_nano",
    "server_start_time_unix_nano",
    "server_end_time_unix_nano",
)
"""The columns of calls that their lines are found by."""


def match_records(calls: ir.Table, window: Window, margin_ns: int) -> ir.Table:
    """The calls with outbound_record_id, inbound_record_id, outbound_ambiguous, inbound_ambiguous, and what their lines say (`CARRIED`).

    `calls` has the columns of `collector.forensics.calls.calls`, without those. Where one call and one line have a request
    id on a side, they are joined straight away; only those that have company there (`_crowded`) go through `_pair`.
    """
    logged = lines(window, margin_ns)
    logged = logged.filter(logged.key_hash.notnull())
    calls = staged("keyed_calls", _keyed(calls))
    crowded = {side: staged(f"crowded_{side}", _crowded(calls, logged, side)) for side in _SIDES}
    crowd = ibis.union(*(_of_side(logged, side).semi_join(keys, "key_hash") for side, keys in crowded.items()))
    crowd = staged("crowd", crowd.select(*_GROUP, *_LINE))
    pairs, unclear = _pair(_units(calls, crowded), crowd.drop(*LINE_FACTS))
    pairs = staged("pairs", pairs)
    unclaimed = crowd.anti_join(pairs, ["side", "record_id"])
    uncertain = unclaimed.select(*_GROUP).union(unclear.select(*_GROUP)).distinct()
    claimed = pairs.group_by(_UNIT).agg(record_id=pairs.record_id.min())
    claimed = claimed.inner_join(crowd.select("side", "record_id", *LINE_FACTS), ["side", "record_id"])
    alone = {side: _of_side(logged, side).anti_join(keys, "key_hash") for side, keys in crowded.items()}
    vouched = _vouched(calls, logged, alone["outbound"], pairs)
    for side in _SIDES:
        calls = _attach(calls, alone[side], claimed, uncertain, side)
    return _with_vouched(calls.drop("outbound_hash", "inbound_hash"), vouched)


def _of_side(table: ir.Table, side: str) -> ir.Table:
    return table.filter(table.side == side)


def _keyed(calls: ir.Table) -> ir.Table:
    """The calls with outbound_hash and inbound_hash: of the service and the request id; NULL where either isn't known."""
    answered = calls.server_span_id.notnull()
    return calls.mutate(
        outbound_hash=key_hash(calls.caller, calls.request_key),
        inbound_hash=ibis.ifelse(answered, key_hash(calls.callee, calls.request_key), ibis.null("int64")),
    )


def _crowded(calls: ir.Table, logged: ir.Table, side: str) -> ir.Table:
    """(key_hash) of the request ids that more than one call or line has on this side, or that a call has two of."""
    mine = calls.filter(calls[f"{side}_hash"].notnull())
    two = mine.filter(mine.client_request_key != mine.request_key)
    other = key_hash(two[_SIDES[side]], two.client_request_key)
    two = two.select(key_hash=f"{side}_hash").union(two.select(key_hash=other))
    return (
        _repeated(mine.select(key_hash=f"{side}_hash")).union(_repeated(_of_side(logged, side))).union(two).distinct()
    )


def _repeated(table: ir.Table) -> ir.Table:
    counted = table.group_by("key_hash").agg(copies=table.count())
    return counted.filter(counted.copies > 1).select("key_hash")


def _vouched(calls: ir.Table, logged: ir.Table, alone: ir.Table, pairs: ir.Table) -> ir.Table:
    """The calls from nobody whose caller's own proxy logged them: a service without telemetry, but in the mesh.

    One call and one line that is nobody else's, of the same request id and path at the same time. Columns: vouched_trace_id,
    vouched_span_id; vouched_service, vouched_record_id and the facts of the line.
    """
    nobody = calls.filter(calls.caller.isnull() & calls.server_span_id.notnull() & calls.request_key.notnull())
    nobody = nobody.select(
        "trace_id",
        "server_span_id",
        "callee",
        "request_key",
        unit_path=nobody.path,
        unit_start=nobody.start_time_unix_nano,
        unit_end=nobody.end_time_unix_nano,
    )
    sent = logged.filter((logged.side == "outbound") & (logged.direction == "outbound"))
    sent = sent.select("service", "request_key", "key_hash", *_LINE)
    table = nobody.inner_join(sent, [nobody.request_key == sent.request_key, nobody.unit_path == sent.path])
    table = staged("vouching", table.filter((table.service != table.callee) & _compatible(table)))
    # Those few first, then whose they are: to sort out the lines that are nobody's takes a look at each.
    own = _line_of_call(alone.filter(alone.record_id.isin(table.record_id)))
    own = calls.inner_join(own, calls.outbound_hash == own.key_hash)
    own = own.filter(_is_about(own, "outbound"))
    taken = own.select(record_id="line_record_id").union(_of_side(pairs, "outbound").select("record_id"))
    table = table.anti_join(taken, "record_id")
    table = table.mutate(
        lines=table.record_id.count().over(group_by=["trace_id", "server_span_id"]),
        calls=table.server_span_id.count().over(group_by=["record_id"]),
    )
    table = table.filter((table.lines == 1) & (table.calls == 1))
    return table.select(
        vouched_trace_id="trace_id",
        vouched_span_id="server_span_id",
        **{f"vouched_{name}": name for name in ("service", "record_id", *FACTS_OF_SIDE["outbound"])},
    )


def _with_vouched(calls: ir.Table, vouched: ir.Table) -> ir.Table:
    """The calls, those from nobody with the caller that `_vouched` has for them, and its line."""
    table = calls.left_join(
        vouched, [calls.trace_id == vouched.vouched_trace_id, calls.server_span_id == vouched.vouched_span_id]
    )
    return table.mutate(
        caller=ibis.coalesce(table.caller, table.vouched_service),
        **{
            f"outbound_{name}": ibis.coalesce(table[f"outbound_{name}"], table[f"vouched_{name}"])
            for name in ("record_id", *FACTS_OF_SIDE["outbound"])
        },
    ).drop(*vouched.columns)


def _line_of_call(alone: ir.Table) -> ir.Table:
    """The lines, every column but `key_hash` as `line_*`, to be joined to calls."""
    names = ("service", "request_key", *_LINE)
    return alone.select("key_hash", **{f"line_{name}": name for name in names})


def _is_about(table: ir.Table, side: str) -> ir.BooleanValue:
    """Whether the line beside the call is about it: of its service and request id, path and time."""
    begin, end = ("start", "end") if side == "outbound" else ("server_start", "server_end")
    call = (table.path, table[f"{begin}_time_unix_nano"], table[f"{end}_time_unix_nano"])
    fits = _fit(call, (table.line_path, table.line_start, table.line_end))
    return _is_named(table, side) & fits.fill_null(False)


def _is_named(table: ir.Table, side: str) -> ir.BooleanValue:
    """Whether the line beside the call is of its service and request id."""
    same = (table.line_request_key == table.request_key) & (table.line_service == table[_SIDES[side]])
    return same.fill_null(False)


def _attach(calls: ir.Table, alone: ir.Table, claimed: ir.Table, uncertain: ir.Table, side: str) -> ir.Table:
    """The calls with the line that is `alone` with their request id, else the one that `_pair` found."""
    alone = _line_of_call(alone)
    table = calls.left_join(alone, calls[f"{side}_hash"] == alone.key_hash)
    unit = table.server_span_id
    if side == "outbound":
        unit = ibis.coalesce(table.client_span_id, unit)
    fits = _is_about(table, side)
    table = table.mutate(unit=unit, fits=fits, odd=_is_named(table, side) & ~fits)
    facts = ("record_id", *FACTS_OF_SIDE[side])
    pairs = _of_side(claimed, side)
    pairs = pairs.select(
        pair_trace_id="trace_id", pair_span_id="unit_span_id", **{f"pair_{name}": name for name in facts}
    )
    open_ = _of_side(uncertain, side).select(open_service="service", open_key="request_key")
    joined = table.left_join(pairs, [table.trace_id == pairs.pair_trace_id, table.unit == pairs.pair_span_id])
    joined = joined.left_join(open_, [joined[_SIDES[side]] == open_.open_service, joined.request_key == open_.open_key])
    line = {name: ibis.ifelse(joined.fits, joined[f"line_{name}"], joined[f"pair_{name}"]) for name in facts}
    return joined.select(
        *calls.columns,
        **{f"{side}_{name}": value for name, value in line.items()},
        **{f"{side}_ambiguous": line["record_id"].isnull() & (joined.odd | joined.open_key.notnull())},
    )


def _units(calls: ir.Table, crowded: dict[str, ir.Table]) -> ir.Table:
    """What a line can be about, where it has company: (side, service, request_key, path, start, end, trace_id, unit_span_id), per request id known."""
    inbound = calls.semi_join(crowded["inbound"], calls.inbound_hash == crowded["inbound"].key_hash)
    inbound = inbound.select(
        "request_key",
        "client_request_key",
        "path",
        "trace_id",
        side=ibis.literal("inbound"),
        service=inbound.callee,
        start=inbound.server_start_time_unix_nano,
        end=inbound.server_end_time_unix_nano,
        unit_span_id=inbound.server_span_id,
    )
    outbound = calls.semi_join(crowded["outbound"], calls.outbound_hash == crowded["outbound"].key_hash)
    outbound = outbound.select(
        "request_key",
        "client_request_key",
        "path",
        "trace_id",
        side=ibis.literal("outbound"),
        service=outbound.caller,
        start=outbound.start_time_unix_nano,
        end=outbound.end_time_unix_nano,
        unit_span_id=ibis.coalesce(outbound.client_span_id, outbound.server_span_id),
    )
    outbound = once("outbound_units", staged("outbound_units", outbound), "trace_id", "unit_span_id")
    both = inbound.union(outbound)
    columns = ("side", "service", "request_key", "path", "start", "end", "trace_id", "unit_span_id")
    # A proxy at the edge gives the request a new id: then the two sides knew it by different ones.
    other = both.filter(both.client_request_key != both.request_key).mutate(request_key=both.client_request_key)
    return both.filter(both.request_key.notnull()).select(*columns).union(other.select(*columns))


def _pair(units: ir.Table, logged: ir.Table) -> tuple[ir.Table, ir.Table]:
    """(pairs: side, trace_id, unit_span_id, record_id; the slots in which it cannot be told which call has no line)."""
    events = staged(
        "events",
        units.mutate(record_id=ibis.null("uint64")).union(
            logged.select(
                *_GROUP,
                "path",
                "start",
                "end",
                trace_id=ibis.null(units.trace_id.type()),
                unit_span_id=ibis.null("uint64"),
                record_id="record_id",
            )
        ),
    )
    is_unit = events.unit_span_id.notnull()
    groups = events.group_by(_GROUP).agg(
        units=events.unit_span_id.count(),
        lines=events.record_id.count(),
        trace_id=events.trace_id.max(),
        unit_span_id=events.unit_span_id.max(),
        record_id=events.record_id.max(),
        unit_path=events.path.max(where=is_unit),
        unit_start=events.start.max(where=is_unit),
        unit_end=events.end.max(where=is_unit),
        path=events.path.max(where=~is_unit),
        start=events.start.max(where=~is_unit),
        end=events.end.max(where=~is_unit),
    )
    groups = staged("request_ids", groups)
    single = groups.filter((groups.units == 1) & (groups.lines == 1) & _compatible(groups))
    crowd = groups.filter((groups.units > 0) & (groups.lines > 0) & (groups.units + groups.lines > 2))
    slots = _episodes(events.semi_join(crowd, list(_GROUP)))
    complex_, unclear = _pair_episodes(slots)
    return single.select(*_UNIT, "record_id").union(complex_), unclear


def _compatible(table: ir.Table) -> ir.BooleanValue:
    unit = (table.unit_path, table.unit_start, table.unit_end)
    return _fit(unit, (table.path, table.start, table.end))


_Bounds = tuple[ir.StringValue, ir.IntegerValue, ir.IntegerValue]
"""Path, start and end."""


def _fit(unit: _Bounds, line: _Bounds) -> ir.BooleanValue:
    """Same path, as far as the call's is known, and an overlap in time."""
    path, start, end = unit
    line_path, line_start, line_end = line
    return (
        (path.isnull() | (path == line_path))
        & (line_start <= end + CLOCK_SLACK_NS)
        & (start <= line_end + CLOCK_SLACK_NS)
    )


def _episodes(events: ir.Table) -> ir.Table:
    """The events of crowded groups with `episode` and how many units and lines their slot has."""
    in_order = ibis.window(group_by=_GROUP, order_by=[events.start, events.record_id, events.unit_span_id])
    fresh = events.mutate(
        fresh=ibis.ifelse((events.start - events.start.lag().over(in_order)) > CLOCK_SLACK_NS, 1, 0).fill_null(0)
    )
    so_far = ibis.window(
        group_by=_GROUP, order_by=[fresh.start, fresh.record_id, fresh.unit_span_id], preceding=None, following=0
    )
    numbered = fresh.mutate(episode=fresh.fresh.sum().over(so_far)).drop("fresh")
    slot = ibis.window(group_by=_SLOT)
    numbered = staged("episodes", numbered)
    return numbered.mutate(
        slot_units=numbered.unit_span_id.count().over(slot), slot_lines=numbered.record_id.count().over(slot)
    )


def _pair_episodes(slots: ir.Table) -> tuple[ir.Table, ir.Table]:
    small = (slots.slot_units <= MAX_EPISODE) & (slots.slot_lines <= MAX_EPISODE)
    unclear = slots.filter(~small & (slots.slot_lines > 0) & (slots.slot_units > slots.slot_lines))
    units = slots.filter(slots.unit_span_id.notnull()).select(
        *_UNIT, *_SLOT[1:], unit_path="path", unit_start="start", unit_end="end", small=small
    )
    logged = slots.filter(slots.record_id.notnull()).select(*_SLOT, "path", "start", "end", "record_id")
    near = _nearest(units.filter(units.small), logged)
    units = units.anti_join(near, list(_UNIT))
    logged = logged.anti_join(near, ["side", "record_id"])
    return near.union(_by_rank(units, logged)), unclear


def _nearest(units: ir.Table, logged: ir.Table) -> ir.Table:
    """Each line takes its nearest call, each call the nearest line that took it."""
    table = units.inner_join(logged, list(_SLOT))
    table = table.filter(_compatible(table))
    distance = (table.start - table.unit_start).abs() + (table.end - table.unit_end).abs()
    table = table.mutate(distance=distance)
    table = table.mutate(
        taken=ibis.row_number().over(
            group_by=["side", "record_id"], order_by=[table.distance, table.trace_id, table.unit_span_id]
        )
    )
    table = table.filter(table.taken == 0)
    table = table.mutate(best=ibis.row_number().over(group_by=_UNIT, order_by=[table.distance, table.record_id]))
    return table.filter(table.best == 0).select(*_UNIT, "record_id")


def _by_rank(units: ir.Table, logged: ir.Table) -> ir.Table:
    """Of one path, the first call gets the first line, the second the second."""
    ranked = units.mutate(
        path=units.unit_path,
        rank=ibis.row_number().over(
            group_by=[*_SLOT, "unit_path"], order_by=[units.unit_start, units.trace_id, units.unit_span_id]
        ),
    )
    ranked_lines = logged.mutate(
        rank=ibis.row_number().over(group_by=[*_SLOT, "path"], order_by=[logged.start, logged.record_id])
    )
    table = ranked.inner_join(ranked_lines, [*_SLOT, "path", "rank"])
    return table.filter(_compatible(table)).select(*_UNIT, "record_id")

"""Whether an access log holds a sample of the calls: then what it lacks proves nothing."""

from typing import Final

import ibis
import ibis.expr.types as ir

from collector.forensics.stages import staged

_SAMPLED_MIN_CALLS: Final = 20
_SAMPLED_MIN_PEER_CALLS: Final = 5
_SAMPLED_RATIO: Final = 0.5
_RUN: Final = 20
"""By chance, a log that keeps half of all lines has all of a run in one of a million, one that keeps 80 % in one of 87."""
_WHOLE_RUNS_RATIO: Final = 0.25
_STRETCH: Final = 5
_A_FEW_RATIO: Final = 1 / 8
_WHOLE_FEW: Final = 10
"""A log that keeps two of three lines has all of ten in one of 58 cases, and leaves no pattern in most."""


def sampled(known: ir.Table) -> ir.Table:
    """(side, service, proxy) whose log holds a sample of the calls: a bypass begins, or concerns some peers; a sample is even.

    Calls of one (peer, operation) make a series in order of time, in runs of `_RUN`. A log that is no sample has at least a
    quarter of some series' runs whole, or a series of one run or more that is broken in one place only. Where no series has a
    run, not even at another replica of the service, the log is taken for a sample if a series is a mix without any pattern
    (`_series`) and no series speaks against it, or if there are calls enough and less than half of every peer's are in it.
    """
    series = _series(known)
    series = staged("series", series)
    proxies = series.group_by("side", "service", "proxy").agg(
        calls=series.calls.sum(),
        recorded=series.recorded.sum(),
        whole=series.whole.max(),
        mixed=series.mixed.any(),
        telling=series.telling.any(),
    )
    by_peer = series.group_by("side", "service", "proxy", "peer").agg(
        calls=series.calls.sum(), recorded=series.recorded.sum()
    )
    best = by_peer.filter(by_peer.calls >= _SAMPLED_MIN_PEER_CALLS)
    best = best.group_by("side", "service", "proxy").agg(best=(best.recorded / best.calls).max())
    table = proxies.left_join(best, ["side", "service", "proxy"]).drop("side_right", "service_right", "proxy_right")
    whole = ibis.coalesce(table.whole, table.whole.max().over(group_by=["side", "service"]))
    pattern = table.mixed & ~table.telling
    few = (table.calls >= _SAMPLED_MIN_CALLS) & (table.best < _SAMPLED_RATIO).fill_null(False)
    even = ibis.ifelse(whole.isnull(), pattern | few, whole < _WHOLE_RUNS_RATIO)
    return table.mutate(even=even).filter(lambda t: (t.recorded > 0) & t.even).select("side", "service", "proxy")


def _series(known: ir.Table) -> ir.Table:
    """The calls of each (side, service, proxy, peer, operation): what a sample would look like, and what speaks against one.

    Columns on top: calls, recorded; whole (the share of whole runs, NULL without a run); mixed (some are in the log, some are
    not); telling: all of `_WHOLE_FEW` calls are in the log, or `_STRETCH` in a row are and the others are a few or in one place.
    """
    key = ("side", "service", "proxy", "peer", "operation")
    known = staged(
        "known",
        known.select(
            *key[:3],
            "recorded",
            "start",
            "trace_id",
            "server_span_id",
            peer=known.peer.fill_null(""),
            operation=known.operation.fill_null(""),
        ),
    )
    order = [known.start, known.trace_id, known.server_span_id]
    known = known.mutate(
        number=ibis.row_number().over(group_by=key, order_by=order),
        turned=(known.recorded != known.recorded.lag().over(group_by=key, order_by=order)).fill_null(False),
    )
    known = known.mutate(
        stretch=known.turned.cast("int64")
        .sum()
        .over(ibis.window(group_by=key, order_by=known.number, preceding=None, following=0)),
        run=known.number // _RUN,
    )
    known = staged("runs", known)
    stretches = known.group_by(*key, "stretch").agg(calls=known.count(), recorded=known.recorded.sum())
    longest = stretches.recorded.max()
    table = stretches.group_by(key).agg(
        calls=stretches.calls.sum(), recorded=stretches.recorded.sum(), turns=stretches.stretch.max(), longest=longest
    )
    runs = known.group_by(*key, "run").agg(calls=known.count(), whole=known.recorded.all())
    runs = runs.filter(runs.calls == _RUN).group_by(key).agg(whole=runs.whole.mean(where=runs.calls == _RUN))
    table = table.left_join(runs, list(key)).drop(*(f"{name}_right" for name in key))
    missed = table.calls - table.recorded
    one_place = (table.longest >= _STRETCH) & (table.turns <= 2) & (missed > 0)
    one_place_long = one_place & (table.longest * 4 >= table.calls)
    a_few = (table.longest >= _STRETCH) & (missed > 0) & (missed <= table.calls * _A_FEW_RATIO)
    return table.mutate(
        whole=ibis.ifelse(table.whole.notnull() & one_place_long, 1.0, table.whole),
        mixed=(table.recorded > 0) & (missed > 0),
        telling=one_place | a_few | ((missed == 0) & (table.calls >= _WHOLE_FEW)),
    )

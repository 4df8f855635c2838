"""Latency on synthetic meshes: the cause is named once, wherever it lies; noise, start-up, pauses and slow hosts are not causes."""

import math
import random
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest

from collector.forensics.attribution import Component, Share, common_factor, place_traces, shares, take_apart
from collector.forensics.causes import Claim, Evidence, calls_in_all, causes_of, united
from collector.forensics.durations import SlowEdge, durations, durations_in
from collector.forensics.latency import LatencyParams, find_latency, incidents, latency_sql
from collector.forensics.shifts import BINS_PER_OCTAVE, Series, Shift, ShiftParams, find_shifts, quantile_ns
from collector.forensics.tables import Window
from tests.collector.forensics.factories import MS, T0, S, make_span, store

# --- the scan for shifts ------------------------------------------------------------------------------------------

BUCKETS = 144
HOUR_NS = 3_600 * S


def series(times, durations, *, window_ns=HOUR_NS, **extra):
    """A series of calls over a window, as the store would count them."""
    bucket = np.minimum((times / window_ns * BUCKETS).astype(int), BUCKETS - 1)
    numbers = np.floor(np.log2(np.maximum(durations, 1)) * BINS_PER_OCTAVE).astype(np.int64)
    bins = np.unique(numbers)
    counts = np.zeros((BUCKETS, len(bins)), dtype=np.int64)
    np.add.at(counts, (bucket, np.searchsorted(bins, numbers)), 1)
    return Series(np.linspace(0, window_ns, BUCKETS + 1).astype(np.int64), bins, counts, **extra)


def noise(seed, calls, *, sigma=0.5, wander=0.0, window_ns=HOUR_NS, median_ms=20):
    """Log-normal durations at random moments; `wander` is the deviation of a level that drifts from step to step."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, window_ns, calls))
    level = np.zeros(400)
    for step in range(1, 400):
        level[step] = 0.7 * level[step - 1] + wander * rng.normal()
    drift = level[np.minimum((times / window_ns * 400).astype(int), 399)]
    return times, median_ms * MS * np.exp(sigma * rng.normal(size=calls) + drift)


@pytest.mark.parametrize("sigma", [0.2, 0.6, 1.2])
# A level that wanders by 0.08 a step has a deviation of 0.11, so its own excursions stay below what counts as a shift (log 1.5 = 0.41).
@pytest.mark.parametrize("wander", [0.0, 0.08])
@pytest.mark.parametrize("calls", [40, 300, 4_000])
def test_stationary_noise_has_no_shifts(sigma, wander, calls):
    for seed in range(15):
        assert find_shifts(series(*noise(seed, calls, sigma=sigma, wander=wander)), ShiftParams()) == []


@pytest.mark.parametrize(
    ("part", "window_ns"),
    [
        (part, window_ns)
        for part in ((0.1, 0.25), (0.4, 1.0), (0.15, 0.95), (0.9, 1.0))
        for window_ns in (30 * S, HOUR_NS, 24 * HOUR_NS)
        if (part[1] - part[0]) * window_ns >= ShiftParams().min_duration_ns  # shorter is no incident
    ],
)
def test_a_shift_is_found_wherever_it_lies(part, window_ns):
    for seed in range(4):
        times, durations = noise(seed, 600, wander=0.05, window_ns=window_ns)
        slow = (times >= part[0] * window_ns) & (times < part[1] * window_ns)
        durations[slow] *= 4
        (found,) = find_shifts(series(times, durations, window_ns=window_ns), ShiftParams())
        assert found.start_unix_nano == pytest.approx(part[0] * window_ns, abs=0.03 * window_ns)
        assert found.end_unix_nano == pytest.approx(part[1] * window_ns, abs=0.03 * window_ns)
        assert found.ended is (part[1] < 1)
        assert found.quantile == 0.5
        assert found.during_ns / found.before_ns == pytest.approx(4, rel=0.25)


def test_some_slow_calls_move_the_tail():
    times, durations = noise(1, 3_000, sigma=0.3)
    rng = np.random.default_rng(2)
    durations[(times > 0.5 * HOUR_NS) & (rng.uniform(size=3_000) < 0.2)] *= 8
    (found,) = find_shifts(series(times, durations), ShiftParams())
    assert found.quantile == 0.9
    assert found.start_unix_nano == pytest.approx(0.5 * HOUR_NS, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("part", "quantiles"), [(0.01, {0.99, 0.995}), (0.03, {0.95, 0.99})])
def test_a_few_slow_calls_in_a_hundred_move_the_far_tail(seed, part, quantiles):
    times, durations = noise(seed, 60_000)
    rng = np.random.default_rng(seed + 50)
    durations[(times > 0.5 * HOUR_NS) & (times < 0.8 * HOUR_NS) & (rng.uniform(size=60_000) < part)] *= 10
    (found,) = find_shifts(series(times, durations), ShiftParams())
    assert found.quantile in quantiles
    assert found.start_unix_nano == pytest.approx(0.5 * HOUR_NS, abs=0.05 * HOUR_NS)
    assert found.end_unix_nano == pytest.approx(0.8 * HOUR_NS, abs=0.05 * HOUR_NS)
    assert [q.q for q in found.quantiles] == [0.5, 0.95, 0.99]
    assert not found.quantiles[0].moved


def test_a_quantile_is_told_only_where_there_are_calls_enough():
    times, durations = noise(1, 300)
    durations[times > 0.5 * HOUR_NS] *= 5
    (found,) = find_shifts(series(times, durations), ShiftParams())
    assert [q.q for q in found.quantiles] == [0.5, 0.95]
    assert all(q.moved for q in found.quantiles)


def test_two_shifts_of_one_series():
    times, durations = noise(3, 3_000)
    for begin, end in ((0.2, 0.3), (0.7, 0.8)):
        durations[(times > begin * HOUR_NS) & (times < end * HOUR_NS)] *= 5
    found = find_shifts(series(times, durations), ShiftParams())
    assert sorted(round(f.start_unix_nano / HOUR_NS, 1) for f in found) == [0.2, 0.7]


@pytest.mark.parametrize("seed", range(5))
def test_a_blip_is_no_shift(seed):
    times, durations = noise(seed, 3_000)
    durations[(times > 0.5 * HOUR_NS) & (times < 0.508 * HOUR_NS)] *= 30
    assert find_shifts(series(times, durations), ShiftParams()) == []


@pytest.mark.parametrize("ratio", [1.2, 1.35])
def test_a_small_rise_is_no_shift(ratio):
    times, durations = noise(1, 20_000, sigma=0.3)
    durations[times > 0.5 * HOUR_NS] *= ratio
    assert find_shifts(series(times, durations), ShiftParams()) == []


def test_a_rise_of_microseconds_is_no_shift():
    times, durations = noise(1, 5_000, median_ms=0.05)
    durations[times > 0.5 * HOUR_NS] *= 10
    assert find_shifts(series(times, durations), ShiftParams()) == []


def test_a_load_that_grows_slowly_and_mildly_is_no_shift():
    times, durations = noise(4, 5_000)
    assert find_shifts(series(times, durations * (1 + 0.3 * times / HOUR_NS)), ShiftParams()) == []


def test_start_up_is_no_shift_unless_it_lasts():
    times, durations = noise(5, 2_000)
    durations[times < 0.15 * HOUR_NS] *= 6
    assert find_shifts(series(times, durations, startup=True), ShiftParams()) == []
    assert len(find_shifts(series(times, durations, startup=False), ShiftParams())) == 1
    durations[times < 0.45 * HOUR_NS] *= 6
    assert len(find_shifts(series(times, durations, startup=True), ShiftParams())) == 1


def test_an_explicit_baseline_lets_all_of_the_window_be_slow():
    before, after = series(*noise(6, 500)), series(*noise(7, 500, median_ms=90))
    joined = sorted({*before.bins.tolist(), *after.bins.tolist()})
    counts = np.zeros((2 * BUCKETS, len(joined)), dtype=np.int64)
    counts[:BUCKETS, np.searchsorted(joined, before.bins)] = before.counts
    counts[BUCKETS:, np.searchsorted(joined, after.bins)] = after.counts
    edges = np.concatenate([before.edges_ns[:-1] - 2 * HOUR_NS, after.edges_ns])
    both = Series(edges, np.array(joined), counts, baseline=BUCKETS)
    (found,) = find_shifts(both, ShiftParams())
    assert found.start_unix_nano <= 0.05 * HOUR_NS
    assert found.calls_before == pytest.approx(500, abs=25)
    assert find_shifts(replace(both, counts=np.concatenate([counts[:BUCKETS]] * 2)), ShiftParams()) == []


def test_quantiles_of_bins_are_close():
    _, durations = noise(8, 5_000)
    binned = series(np.zeros(5_000), durations)
    for q in (0.1, 0.5, 0.9, 0.99):
        assert quantile_ns(binned.counts.sum(axis=0), binned.bins, q) == pytest.approx(
            np.quantile(durations, q), rel=0.03
        )
    assert quantile_ns(np.zeros(3, dtype=np.int64), np.arange(3), 0.5) == 0


# --- whole meshes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """An operation: median own time, what it calls (in turn, or at once), a database it waits for."""

    service: str
    name: str
    own_ms: float
    calls: tuple["Op", ...] = ()
    parallel: bool = False
    db_ms: float = 0


class Load:
    """Plays an entry operation over time. `slow(service, name, time)` gives what to multiply own time, hop or db by."""

    def __init__(self, seed, *, sigma=0.4, skew_ms=200, proxies=True, clients=True, kinds=True):
        self.rng = random.Random(seed)
        self.sigma, self.proxies, self.clients, self.kinds = sigma, proxies, clients, kinds
        self.skew = {}
        self.skew_ms = skew_ms
        self.spans = []
        self.factor = lambda what, service, name, time: 1.0
        self.next = 0

    def run(self, entry, *, seconds=600, rate=2.0):
        time = T0
        while True:
            time += int(self.rng.expovariate(rate) * S)
            if time >= T0 + seconds * S:
                return self
            self.trace = self.rng.getrandbits(127) | 1
            self.serve(entry, None, time)

    def serve(self, op, parent, at):
        span = self.span_id()
        own = op.own_ms * MS * self.draw() * self.factor("own", op.service, op.name, at)
        time = at + own / 2
        ends = [self.call(op, span, callee, time + 0.05 * MS) if op.parallel else 0 for callee in op.calls]
        if op.parallel:
            time = max([time, *ends])
        else:
            for callee in op.calls:
                time = self.call(op, span, callee, time)
        if op.db_ms:
            took = op.db_ms * MS * self.draw() * self.factor("db", op.service, op.name, at)
            self.add(
                (self.span_id(), span),
                op.service,
                "SELECT",
                "CLIENT",
                (time, time + took),
                server_address="db",
                server_port=5432,
            )
            time += took
        end = time + own / 2
        self.add((span, parent), op.service, op.name, "SERVER", (at, end))
        return end

    def call(self, caller, parent, callee, at):
        hop = 0.4 * MS * self.draw() * self.factor("hop", callee.service, callee.name, at)
        client = self.span_id() if self.clients else parent
        above = client
        if self.proxies:
            above = self.span_id()
        finish = self.serve(callee, above, at + hop)
        if self.proxies:
            times = (at + hop / 4, finish + hop / 4)
            self.add((above, client), caller.service, "egress", "CLIENT", times, witness="proxy")
        if self.clients:
            self.add(
                (client, parent),
                caller.service,
                callee.name,
                "CLIENT",
                (at, finish + hop),
                server_address=callee.service,
                server_port=80,
            )
        return finish + hop

    def draw(self):
        return self.rng.lognormvariate(0, self.sigma)

    def span_id(self):
        return self.rng.getrandbits(63) | 1

    def add(self, ids, service, name, kind, times, **extra):
        (span, parent), (start, end) = ids, times
        skew = self.skew.setdefault(service, self.rng.randint(-self.skew_ms, self.skew_ms) * MS)
        self.spans.append(
            make_span(
                trace_id=self.trace, span_id=span, parent_span_id=parent, service_name=service, name=name,
                kind=kind if self.kinds else "INTERNAL", start_time_unix_nano=int(start) + skew, end_time_unix_nano=int(end) + skew,
                duration_ns=int(end) - int(start), **extra,
            )
        )  # fmt: skip


QUOTE = Op("pricing", "pricing/Quote", 4)
TAX = Op("tax", "tax/Rate", 3)
STOCK = Op("inventory", "inventory/Reserve", 5, db_ms=3)
CHECKOUT = Op("checkout", "checkout/Buy", 6, (QUOTE, STOCK))
ENTRY = Op("gateway", "POST /buy", 3, (CHECKOUT, TAX))
FLAT = Op("gateway", "POST /buy", 3, (QUOTE, TAX, STOCK), parallel=True)


def during(begin, end, seconds=600):
    return lambda time: begin * seconds * S <= time - T0 < end * seconds * S


def slower(load, times, *targets, active):
    """Multiplies these (what, service) by `times` while active."""
    load.factor = lambda what, service, name, time: times if (what, service) in targets and active(time) else 1.0
    return load


def find(load, **params):
    return find_latency(store(load.spans), Window(), LatencyParams(**params))


def test_empty_store():
    assert find_latency(store(), Window()) == []
    assert find_latency(store(), Window(T0, T0 + S), LatencyParams(baseline=Window(0, T0))) == []
    statements = set(latency_sql(Window(), LatencyParams(baseline=Window(0, 1))))
    assert statements == {"durations", "services", "baseline", "queues", "queues_baseline"}


def test_a_deep_cause_is_one_finding_with_everything_upstream():
    load = slower(Load(1), 50, ("own", "pricing"), active=during(0.6, 1.0))
    (finding,) = find(load.run(ENTRY))
    assert (finding.caller, finding.callee, finding.operation) == ("checkout", "pricing", "pricing/Quote")
    assert finding.affected == (
        "checkout -> pricing pricing/Quote",
        "gateway -> checkout checkout/Buy",
        "outside -> gateway POST /buy",
    )
    assert finding.severity == "critical"
    assert finding.score > 0.9
    assert finding.first_seen_unix_nano == pytest.approx(T0 + 360 * S, abs=6 * S)
    assert finding.explanation.startswith("pricing pricing/Quote takes ")
    assert "% of the rise on gateway POST /buy (" in finding.explanation
    assert " since " in finding.explanation
    assert 0 < len(finding.trace_ids) <= 20
    assert len(finding.span_ids) == len(finding.trace_ids)
    cause = {f"{s['span_id']:016x}" for s in load.spans if s["service_name"] == "pricing"}
    assert set(finding.span_ids) <= cause


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("service", ["gateway", "checkout", "inventory", "tax"])
def test_the_cause_is_named_at_any_depth(seed, service):
    active = during(*random.Random(seed).choice([(0.2, 0.5), (0.3, 1.0), (0.15, 0.95)]))
    (finding,) = find(slower(Load(seed), 30, ("own", service), active=active).run(ENTRY))
    assert finding.callee == service


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [{"proxies": False}, {"clients": False}, {"kinds": False, "proxies": False, "clients": False}, {"sigma": 0.9}],
)
def test_plain_and_noisy_telemetry_is_enough(shape):
    (finding,) = find(slower(Load(5, **shape), 40, ("own", "pricing"), active=during(0.5, 1)).run(ENTRY))
    assert (finding.callee, finding.operation) == ("pricing", "pricing/Quote")


def test_a_slow_database_is_named_as_destination():
    (finding,) = find(slower(Load(2), 40, ("db", "inventory"), active=during(0.5, 0.9)).run(ENTRY))
    assert (finding.caller, finding.callee, finding.destination) == ("inventory", None, "db:5432")
    assert "db:5432" in finding.explanation
    assert "outside -> gateway POST /buy" in finding.affected


def test_a_slow_hop_is_named_as_hop():
    (finding,) = find(slower(Load(3), 200, ("hop", "pricing"), active=during(0.4, 0.8)).run(ENTRY))
    assert (finding.caller, finding.callee) == ("checkout", "pricing")
    assert finding.explanation.startswith(
        "the way from checkout to pricing pricing/Quote (network, proxies, queues) takes "
    )


@pytest.mark.slow
def test_a_window_far_wider_than_the_evidence_hides_nothing():
    query = store(slower(Load(1), 50, ("own", "pricing"), active=during(0.6, 1.0)).run(ENTRY).spans)
    wide = Window(T0 - 24 * HOUR_NS, T0 + 24 * HOUR_NS)
    assert find_latency(query, wide) == find_latency(query, Window())


@pytest.mark.slow
def test_a_few_slow_calls_in_a_hundred_are_told_with_their_quantiles_and_their_cause():
    load, lucky = Load(21, proxies=False), random.Random(3)
    active = during(0.5, 0.9)
    load.factor = lambda what, service, name, time: (
        40 if (what, service) == ("own", "pricing") and active(time) and lucky.random() < 0.03 else 1.0
    )
    (finding,) = find(load.run(Op("gateway", "GET /", 4, (QUOTE,)), rate=10))
    assert (finding.caller, finding.callee, finding.operation) == ("gateway", "pricing", "pricing/Quote")
    assert finding.severity == "high"
    assert re.search(r"gateway GET / \((p95 .* → .*, )?p99 \d+ ms → \d+ ms; p50 \d+", finding.explanation)


def test_two_causes_at_once_are_two_findings():
    found = find(slower(Load(4), 30, ("own", "pricing"), ("own", "tax"), active=during(0.5, 1)).run(ENTRY))
    assert {f.callee for f in found} == {"pricing", "tax"}


TWICE = ((0.2, 0.35), (0.6, 0.8))


def twice(load, *targets, times=50):
    """Slower in two stretches that are two incidents."""
    stretches = [during(*stretch) for stretch in TWICE]
    return slower(load, times, *targets, active=lambda time: any(active(time) for active in stretches))


@pytest.mark.parametrize("what", ["own", "hop"])
def test_one_cause_in_two_stretches_is_one_finding_with_the_evidence_of_both(what):
    load = twice(Load(1), (what, "pricing"), times=50 if what == "own" else 300).run(ENTRY)
    (finding,) = find(load)
    assert (finding.caller, finding.callee, finding.operation) == ("checkout", "pricing", "pricing/Quote")
    (first, _), (_, last) = TWICE
    assert finding.first_seen_unix_nano == pytest.approx(T0 + first * 600 * S, abs=6 * S)
    assert finding.last_seen_unix_nano == pytest.approx(T0 + last * 600 * S, abs=6 * S)
    starts = {f"{s['trace_id']:032x}": s["start_time_unix_nano"] for s in load.spans if s["name"] == "POST /buy"}
    inside = [any(during(*stretch)(start) for stretch in TWICE) for start in starts.values()]
    assert finding.count == pytest.approx(sum(inside), rel=0.05)
    assert ", in 2 stretches, against " in finding.explanation
    seen = {[during(*stretch)(starts[t]) for stretch in TWICE].index(True) for t in finding.trace_ids}
    assert seen == {0, 1}


def test_what_slowed_everything_twice_is_told_once():
    load, rng = Load(9), random.Random(2)
    factors = {name: rng.uniform(2, 3) for name in ("gateway", "checkout", "pricing", "tax", "inventory")}
    stretches = [during(*stretch) for stretch in TWICE]
    load.factor = lambda what, service, name, time: factors[service] if any(a(time) for a in stretches) else 1.0
    (finding,) = find(load.run(ENTRY))
    assert "common_cause" in finding.reasons
    assert finding.first_seen_unix_nano < T0 + 0.35 * 600 * S < T0 + 0.6 * 600 * S < finding.last_seen_unix_nano
    assert finding.count == pytest.approx((0.15 + 0.2) * 600 * 2, rel=0.2)
    assert "in 2 stretches, in the worst of which two thirds" in finding.explanation


def shift(begin, end, calls=40):
    return Shift(
        start_unix_nano=T0 + begin * S, end_unix_nano=T0 + end * S, ended=True, quantile=0.5,
        before_ns=4.0 * MS, during_ns=8.0 * MS, calls_before=100, calls_during=calls, z=9.0,
    )  # fmt: skip


def claim(operation, stretch, *, edge="gateway", excess_ms=4, incident=0, service="pricing"):
    component = Component("own", service, operation)
    share = Share(component, 0.5, 4.0 * MS, (4.0 + excess_ms) * MS, 1, 1, 1)
    return Claim(SlowEdge(None, edge, "GET /", "server", stretch), share, Evidence([], []), incident)


def test_causes_of_one_service_are_one_where_they_overlap_and_where_they_bear_one_name():
    def told(*claims):
        return [
            (cause.component.operation, len(cause.claims), len(cause.stretches))
            for cause in united([cause for c in claims for cause in causes_of([c])])
        ]

    # Edges that overlap by too little to be one incident, one service behind both.
    assert told(claim("A", shift(0, 12)), claim("B", shift(11, 30), incident=1, excess_ms=9)) == [("B", 2, 2)]
    # At another time another operation is another cause, and another service always is.
    assert told(claim("A", shift(0, 12)), claim("B", shift(12, 30), incident=1)) == [("A", 1, 1), ("B", 1, 1)]
    assert told(claim("A", shift(0, 12)), claim("A", shift(0, 12), service="tax")) == [("A", 1, 1), ("A", 1, 1)]
    # The second and the third are one, by which they become the same as the first.
    assert told(
        claim("A", shift(0, 12)),
        claim("B", shift(50, 60), incident=1),
        claim("A", shift(55, 70), incident=2, excess_ms=9),
    ) == [("A", 3, 3)]


def test_calls_at_one_time_are_counted_once():
    assert calls_in_all([shift(0, 10, 5)]) == 5
    assert calls_in_all([shift(20, 30, 7), shift(0, 10, 5)]) == 12
    assert calls_in_all([shift(0, 10, 5), shift(20, 30, 7), shift(5, 20, 6)]) == 13


def test_a_share_is_of_one_shift_of_an_edge_and_not_of_all_of_them():
    first, second = claim("A", shift(0, 10)), claim("A", shift(20, 30), incident=1)
    (cause,) = united([*causes_of([first]), *causes_of([second])])
    assert cause.share_on(first.edge) == cause.share_on(second.edge) == 0.5
    assert cause.farthest is first


def test_no_shift_of_an_edge_is_lost_beside_one_that_lasts():
    long, edge = (
        SlowEdge(None, "gateway", "GET /", "server", shift(0, 60)),
        claim("A", shift(0, 20), edge="pricing").edge,
    )
    again = replace(edge, shift=shift(40, 60))
    assert incidents([long, edge, again]) == [[long, edge], [again]]


@pytest.mark.slow
def test_of_parallel_calls_the_one_that_decides_is_named():
    (finding,) = find(slower(Load(6), 40, ("own", "tax"), active=during(0.4, 0.9)).run(FLAT))
    assert finding.callee == "tax"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [30, 120, 86_400])
def test_short_and_long_windows(seconds):
    active = during(0.5, 1, seconds)
    load = slower(Load(7), 40, ("own", "pricing"), active=active).run(
        ENTRY, seconds=seconds, rate=1_200 / seconds if seconds > 600 else 10
    )
    (finding,) = find(load)
    assert finding.callee == "pricing"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_contended_host_is_no_operations_incident(seed):
    load, rng = Load(seed), random.Random(seed)
    factors = {name: rng.uniform(2, 3) for name in ("gateway", "checkout", "pricing", "tax", "inventory")}
    active = during(0.4, 0.8)
    load.factor = lambda what, service, name, time: factors[service] if active(time) else 1.0
    found = find(load.run(ENTRY))
    assert [f.severity for f in found] == ["low"] * len(found)
    assert all("common_cause" in f.reasons for f in found)
    assert len(found) == 1
    assert found[0].callee is None
    assert "slowed together" in found[0].explanation
    assert find(load, common_cause=False) == []


@pytest.mark.slow
def test_a_real_cause_on_a_contended_host_is_still_named():
    load, active = Load(9), during(0.4, 0.8)
    load.factor = lambda what, service, name, time: (
        (60 if (what, service) == ("own", "pricing") else 2.2) if active(time) else 1.0
    )
    assert "pricing" in {f.callee for f in find(load.run(ENTRY))}


@pytest.mark.slow
def test_a_slow_start_is_no_incident():
    load = slower(Load(10), 60, ("own", "pricing"), active=during(0, 0.05)).run(ENTRY)
    assert find(load) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_quiet_mesh_has_no_findings(seed):
    assert find(Load(seed, sigma=random.Random(seed).uniform(0.2, 1)).run(ENTRY)) == []


@pytest.mark.slow
def test_an_explicit_baseline():
    load = slower(Load(11), 40, ("own", "pricing"), active=during(0.5, 1)).run(ENTRY)
    half = T0 + 300 * S
    query = store(load.spans)
    assert find_latency(query, Window(half + S, T0 + 600 * S)) == []
    (finding,) = find_latency(query, Window(half + S, T0 + 600 * S), LatencyParams(baseline=Window(T0, half - S)))
    assert finding.callee == "pricing"


@pytest.mark.slow
def test_more_calls_not_slower_ones_are_told_as_such():
    once, thrice = Op("gateway", "GET /", 2, (QUOTE,)), Op("gateway", "GET /", 2, (QUOTE,) * 8)
    load = Load(12)
    active = during(0.5, 1)
    time = T0
    while time < T0 + 600 * S:
        time += int(load.rng.expovariate(2) * S)
        load.trace = load.rng.getrandbits(127) | 1
        load.serve(thrice if active(time) else once, None, time)
    (finding,) = find(load)
    assert finding.callee == "pricing"
    assert "is called 8.0 instead of 1.0 times for each gateway GET /" in finding.explanation


@pytest.mark.slow
def test_spans_delivered_twice_change_nothing():
    load = slower(Load(13), 40, ("own", "tax"), active=during(0.5, 1)).run(ENTRY, seconds=300)
    once = find_latency(store(load.spans), Window())
    assert find_latency(store(load.spans * 2), Window()) == once


@pytest.mark.slow
def test_lost_spans_are_said():
    load = slower(Load(14), 40, ("own", "pricing"), active=during(0.5, 1)).run(ENTRY)
    rng = random.Random(1)
    load.spans = [s for s in load.spans if rng.random() > 0.05]
    found = find(load)
    assert "pricing" in {f.callee for f in found}
    assert "of the sampled traces lack spans" in found[0].completeness


# --- attribution --------------------------------------------------------------------------------------------------


def test_components_add_up_to_the_call():
    import polars as pl

    load = Load(15).run(ENTRY, seconds=20)
    columns = (
        "trace_id",
        "span_id",
        "parent_span_id",
        "service_name",
        "name",
        "kind",
        "witness",
        "start_time_unix_nano",
        "duration_ns",
    )
    rows = [
        {c: str(s[c]) if c == "trace_id" else s[c] for c in columns} | {"destination": s["server_address"]}
        for s in load.spans
    ]
    traces = place_traces(pl.DataFrame(rows, infer_schema_length=None))
    roots = [s for s in load.spans if s["parent_span_id"] is None]
    assert roots
    for root in roots:
        sample = take_apart(traces[str(root["trace_id"])], root["span_id"])
        assert sample is not None
        assert sum(sample.own_ns.values()) == root["duration_ns"] == sample.duration_ns
    assert take_apart(next(iter(traces.values())), 1 << 62) is None
    assert shares([], [], 1.0) == []
    assert math.isclose(common_factor(traces.values(), traces.values()), 1)


def test_the_columns_of_durations_are_those_that_it_is_given_as():
    assert dict(durations(Window()).schema()) == dict(durations_in(Window()).schema())

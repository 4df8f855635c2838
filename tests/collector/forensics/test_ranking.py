"""Ranking causes: on random systems that it was not written against, and piece by piece where the right answer is plain."""

import random

import polars as pl
import pytest

from collector.forensics.anatomy import COLUMNS, Place, take_apart_windows
from collector.forensics.comparison import draw
from collector.forensics.ranking import rank_causes
from collector.forensics.reasons import reason
from collector.forensics.rises import Rise, blame_hops
from collector.forensics.tables import Window
from tests.collector.forensics.factories import MS, T0, S, make_span, store
from tests.collector.forensics.random_systems import FAULTS, random_system

CALLS = 60


def ranked(baseline, incident, **options):
    before, during = take_apart_windows([baseline, incident])
    return rank_causes(before, during, **options)


def strict_rank(candidates, answers):
    """The worst place of a tied group; None where no answer is there."""
    best = next((c for c in candidates if c.unit[0] in answers), None)
    return (
        None if best is None else sum(1 for c in candidates if c.score >= best.score and c.unit[0] not in answers) + 1
    )


@pytest.mark.slow
def test_random_systems():
    """Two of each fault; what more of them give is in docs/latency.md."""
    ranks = []
    for kind in FAULTS:
        for seed in (501, 502):
            system = random_system(seed, kind, spans=2_000)
            ranks.append(strict_rank(ranked(system.baseline, system.incident), system.fault.services))
    assert sum(r == 1 for r in ranks) >= 0.75 * len(ranks), ranks
    assert sum(r is not None and r <= 3 for r in ranks) >= 0.85 * len(ranks), ranks


class Shop:
    """gateway -> (checkout -> pricing), stock; each call one after the other. What goes wrong is said by keyword arguments."""

    def __init__(self, seed=1, *, skew=None, pods=1):
        self.rng = random.Random(seed)
        self.rows = []
        self.skew = skew or {}
        self.pods = pods

    def play(self, count=CALLS, since=T0, **faults):
        for number in range(count):
            self.trace = f"{self.rng.getrandbits(128):032x}"
            self.faults = faults
            self.gateway(since + number * S // 4)
        return self

    def gateway(self, at):
        span, time = self.rng.getrandbits(62), at + self.ms("gateway", 2)
        for callee, below in (("checkout", self.checkout), ("stock", None)):
            for _ in range(self.faults.get(f"times {callee}", 1)):
                time = self.call("gateway", span, callee, time, below)
        self.add("gateway", "GET /", "SERVER", span, None, at, time)

    def checkout(self, span, time):
        if self.rng.random() < self.faults.get("return checkout", 0):
            return time
        return self.call("checkout", span, "pricing", time, None)

    def call(self, caller, parent, callee, at, below):
        client, span = self.rng.getrandbits(62), self.rng.getrandbits(62)
        hop = self.ms(f"{caller} {callee}", 1)
        failed = self.rng.random() < self.faults.get(f"errors {callee}", 0)
        if self.faults.get("gone") == callee:
            self.add(caller, f"call {callee}", "CLIENT", client, parent, at, at + hop, error=True)
            return at + hop
        time = at + hop // 2 + self.ms(callee, 3)
        if below is not None:
            time = below(span, time)
        self.add(callee, "serve", "SERVER", span, client, at + hop // 2, time, error=failed)
        self.add(caller, f"call {callee}", "CLIENT", client, parent, at, time + hop // 2, error=failed)
        return time + hop // 2

    def ms(self, what, usual):
        added = self.faults.get(what, 0)
        return int((usual * self.rng.lognormvariate(0, 0.3) + added * self.rng.lognormvariate(0, 0.1)) * MS)

    def add(self, service, name, kind, span, parent, start, end, *, error=False):
        skew = self.skew.get(service, 0)
        pod = f"{service}-{self.rng.randrange(self.pods)}"
        self.rows.append(
            (self.trace, span, parent, service, pod, name, kind, "app", start + skew, end - start, error, None)
        )

    @property
    def frame(self):
        types = {"span_id": pl.UInt64, "parent_span_id": pl.UInt64, "error": pl.Boolean}
        integers = dict.fromkeys(("start_time_unix_nano", "duration_ns"), pl.Int64)
        schema = {name: {**types, **integers}.get(name, pl.String) for name in COLUMNS}
        return pl.DataFrame(self.rows, schema=schema, orient="row")


USUAL = Shop(1).play().frame


@pytest.mark.parametrize(
    ("faults", "cause", "said"),
    [
        ({"pricing": 40}, "pricing", "serve itself takes 4"),
        ({"gateway": 40}, "gateway", "GET / itself takes 4"),
        ({"gateway stock": 60}, "stock", "between gateway and stock serve (network, proxies, queues) pass 6"),
        ({"errors pricing": 0.5}, "pricing", "serve fails first in "),
        ({"gone": "pricing"}, "pricing", "no span answers the calls to serve in 100.0% of the requests, 0.0% before"),
        ({"return checkout": 0.5}, "checkout", "serve stops before calls that it used to make in "),
        ({"times stock": 6}, "gateway", "gateway calls stock serve 6.0 instead of 1.0 times"),
        ({"times stock": 4, "errors stock": 0.8}, "stock", "gateway retries stock serve 4.0 instead of 1.0 times"),
    ],
)
@pytest.mark.parametrize("skew_s", [0, 3])
def test_one_fault_is_first_and_says_why(faults, cause, said, skew_s):
    skew = {"checkout": skew_s * S, "pricing": -skew_s * S}
    first, *_ = ranked(Shop(1, skew=skew).play().frame, Shop(2, skew=skew).play(since=T0 + 3_600 * S, **faults).frame)
    assert first.unit == (cause,)
    assert said in reason(first)
    assert 0.5 < first.share <= 1


def test_the_other_end_of_a_slower_hop_comes_next_and_says_so():
    """Traces name one end of a slow hop; who looks for the other finds it in the second line."""
    blamed, other, *_ = ranked(USUAL, Shop(2).play(**{"gateway stock": 60}).frame)
    assert (blamed.unit, other.unit) == (("stock",), ("gateway",))
    assert 0 < other.score < 0.05 * blamed.score
    assert other.share == 0
    assert reason(other).startswith("the other end of a slower hop: between gateway and stock serve")


def test_a_quiet_incident_blames_nobody():
    for seed in range(2, 7):
        candidates = ranked(USUAL, Shop(seed).play().frame)
        assert {c.unit[0] for c in candidates} == {"gateway", "checkout", "pricing", "stock"}
        assert max(c.score for c in candidates) < 0.02


def test_what_slowed_everywhere_is_nobodys_fault():
    slower = Shop(2).play()
    slower.rows = [(*row[:9], row[9] * 3, *row[10:]) for row in slower.rows]
    assert max(c.score for c in ranked(USUAL, slower.frame) if c.unit[0] != "gateway") < 0.1
    without = ranked(USUAL, slower.frame, signals=("own",))
    assert without[0].score > 0.1


def test_a_baseline_of_other_length_and_rate():
    baseline = Shop(1).play(400).frame
    first, *_ = ranked(baseline, Shop(2).play(25, pricing=40).frame)
    assert first.unit == ("pricing",)


def test_pods_and_operations():
    slow = Shop(2, pods=2).play()
    slow.rows = [(*r[:9], r[9] * (20 if r[4] == "stock-1" else 1), *r[10:]) for r in slow.rows]
    by_pod = ranked(Shop(1, pods=2).play().frame, slow.frame, by="pod")
    assert by_pod[0].unit == ("stock", "stock-1")
    assert len(by_pod) == 8
    by_operation = ranked(USUAL, Shop(2).play(pricing=40).frame, by="operation")
    assert by_operation[0].unit == ("pricing", "serve")


def test_a_replica_that_is_new_is_compared_with_the_older_ones():
    slow = Shop(2).play(pricing=40)
    slow.rows = [(*r[:4], r[4] + "-new", *r[5:]) for r in slow.rows]
    assert ranked(USUAL, slow.frame, by="pod")[0].unit == ("pricing", "pricing-0-new")


def test_lost_spans_circles_and_doubles_end():
    shop = Shop(2).play(pricing=40)
    broken = [row for row in shop.rows if shop.rng.random() > 0.1]
    broken += broken[:50]
    trace, span, *_ = broken[0]
    broken[0] = (trace, span, span, *broken[0][3:])
    shop.rows = broken
    assert ranked(USUAL, shop.frame)[0].unit == ("pricing",)


def test_messages_wait_longer_though_clocks_disagree():
    def window(wait_ms, since, seed):
        rng, rows = random.Random(seed), []
        for number in range(CALLS):
            trace, at = f"{rng.getrandbits(128):032x}", since + number * S
            ids = [rng.getrandbits(62) for _ in range(3)]
            wait = int(rng.uniform(0.5, 1.5) * wait_ms * MS)
            rows += [
                (trace, ids[0], None, "shop", None, "POST /", "SERVER", "app", at, 10 * MS, False, None),
                (trace, ids[1], ids[0], "shop", None, "send", "PRODUCER", "app", at + MS, 2 * MS, False, None),
                # The consumer's clock is a minute behind.
                (
                    trace,
                    ids[2],
                    ids[1],
                    "mailer",
                    None,
                    "mail",
                    "CONSUMER",
                    "app",
                    at + wait - 60 * S,
                    5 * MS,
                    False,
                    None,
                ),
            ]
        shop = Shop()
        shop.rows = rows
        return shop.frame

    first, *_ = ranked(window(200, T0, 1), window(4_000, T0 + 3_600 * S, 2))
    assert first.unit == ("mailer",)
    assert "messages from shop wait " in reason(first)


def hop(caller, callee, excess_ms, calls=100):
    return Rise(Place("hop", callee, "op", caller), (callee,), (caller,), calls, 1.0, 2.0, excess_ms * MS * calls)


@pytest.mark.parametrize(
    ("hops", "own", "blamed"),
    [
        ([hop("a", "b", 50)], {}, "b"),
        ([hop("a", "b", 50)], {("a",): 900.0 * MS * 100}, "a"),
        ([hop("a", "x", 50), hop("b", "x", 50), hop("a", "c", 0), hop("b", "c", 0)], {}, "x"),
        ([hop("x", "a", 50), hop("x", "b", 50), hop("x", "c", 50), hop("y", "a", 0)], {}, "x"),
        ([hop("a", "x", 50), hop("x", "b", 50), hop("x", "c", 50), hop("a", "b", 0)], {}, "x"),
        ([hop("a", "b", 50), hop("c", "b", 0), hop("a", "d", 0)], {}, "b"),
    ],
)
def test_who_stands_behind_slower_hops(hops, own, blamed):
    assert blame_hops(hops, own)[0].unit == (blamed,)


def test_no_slower_hops():
    assert blame_hops([], {}) == []
    assert blame_hops([hop("a", "b", 0)], {}) == []


def test_empty_windows():
    nothing = Shop().frame
    assert ranked(nothing, nothing) == []
    assert {c.score for c in ranked(nothing, USUAL)} == {0.0}
    assert {c.score for c in ranked(USUAL, nothing)} == {0.0}


@pytest.mark.slow
def test_a_store_is_asked_for_whole_traces_and_a_bounded_part():
    spans = []
    for number in range(200):
        trace, start = number << 64 | number, T0 + number * S
        spans += [
            make_span(trace_id=trace, span_id=2 * number + 1, start_time_unix_nano=start),
            # It begins after the window's end; its trace does not.
            make_span(
                trace_id=trace,
                span_id=2 * number + 2,
                parent_span_id=2 * number + 1,
                start_time_unix_nano=start + 30 * S,
            ),
        ]
    query = store(spans)
    window = Window(T0, T0 + 100 * S)
    drawn = draw(query, window)
    assert (drawn.frame.height, drawn.share) == (200, 1.0)
    assert drawn.frame.columns == list(COLUMNS)
    part = draw(query, window, limit=20)
    assert 0 < part.share < 0.2
    assert part.frame.group_by("trace_id").len()["len"].unique().to_list() == [2]
    assert draw(query, Window(0, 1)).frame.is_empty()

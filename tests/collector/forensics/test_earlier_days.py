"""Latency and the same time on earlier days: a nightly job is no incident, what is slow today alone is one, a deployment is told."""

import numpy as np
import pytest

from collector.forensics.latency import LatencyParams, find_latency
from collector.forensics.tables import NS_PER_S, Window
from tests.collector.forensics.factories import MS, T0, make_span, store

HOUR_NS = 3600 * NS_PER_S
DAY_NS = 24 * HOUR_NS
TODAY = T0 + 5 * DAY_NS
DAY = Window(TODAY, TODAY + DAY_NS)
AT_THREE = Window(TODAY + 2 * HOUR_NS, TODAY + 6 * HOUR_NS)

EVERY_NIGHT = range(6)
TONIGHT = (5,)


def days_of(seed, slow, *, since=0, per_day=400):
    """Six days of calls that ended, each a server's span: `slow(day, hour)` says when they take four times as long, `since` when they begin."""
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.uniform(since, 6, 6 * per_day))
    rhythm = 1 + 0.2 * np.sin(2 * np.pi * starts)
    durations = 30 * MS * rhythm * np.exp(0.4 * rng.normal(size=len(starts)))
    durations *= [4 if slow(int(t), t % 1 * 24) else 1 for t in starts]
    return store(
        make_span(
            trace_id=n + 1,
            service_name="shop",
            name="GET /",
            start_time_unix_nano=T0 + int(start * DAY_NS),
            duration_ns=int(duration),
        )
        for n, (start, duration) in enumerate(zip(starts, durations, strict=True))
    )


def at_three(days):
    return lambda day, hour: day in days and 3 <= hour < 5


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "window"), [(0, DAY), (1, AT_THREE), (2, DAY)])
def test_what_is_slow_every_night_is_no_incident(seed, window):
    query = days_of(seed, at_three(EVERY_NIGHT))
    assert find_latency(query, window) == []
    [known] = find_latency(query, window, LatencyParams(earlier_days=0))
    assert known.callee == "shop"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "window", "nights"), [(0, DAY, TONIGHT), (1, AT_THREE, TONIGHT), (2, AT_THREE, (4, 5))]
)
def test_what_was_fast_then_on_earlier_days_is_one(seed, window, nights):
    [found] = find_latency(days_of(seed, at_three(nights)), window)
    assert abs(found.first_seen_unix_nano - (TODAY + 3 * HOUR_NS)) < HOUR_NS
    assert "at this time on 5 earlier days" in found.explanation


@pytest.mark.slow
@pytest.mark.parametrize(("slow", "told"), [(TONIGHT, 1), (EVERY_NIGHT, 0)], ids=["tonight", "every night"])
def test_a_window_that_is_slow_from_end_to_end_is_held_against_the_day_before(slow, told):
    window = Window(TODAY + 3 * HOUR_NS, TODAY + 5 * HOUR_NS)
    found = find_latency(days_of(1, at_three(slow)), window)
    assert len(found) == told


@pytest.mark.slow
def test_a_window_without_an_end_ends_with_the_newest_span():
    query = days_of(1, lambda day, hour: day == 5 and hour >= 22)
    assert len(find_latency(query, Window(TODAY + 22 * HOUR_NS))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_deployment_is_told_on_its_day_and_no_more(seed):
    query = days_of(seed, lambda day, hour: (day, hour) >= (4, 12))
    deployed = Window(TODAY - DAY_NS, TODAY)
    [found] = find_latency(query, deployed)
    assert abs(found.first_seen_unix_nano - (TODAY - DAY_NS // 2)) < HOUR_NS
    assert find_latency(query, DAY) == []


@pytest.mark.slow
@pytest.mark.parametrize(("since", "told"), [(2, 0), (3, 1)])
def test_two_earlier_days_are_no_history(since, told):
    found = find_latency(days_of(1, at_three(EVERY_NIGHT), since=since), DAY)
    assert len(found) == told


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_days_rhythm_alone_is_quiet(seed):
    assert find_latency(days_of(seed, at_three(())), DAY) == []

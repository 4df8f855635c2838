"""The beacon score: RITA's formulas by hand-computed cases, and what must hold for any stream."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.forensics.beacon import (
    BINS,
    Observation,
    beacon_score,
    bimodal_fit,
    duration_score,
    flatness,
    histogram,
    jitter_ratio,
    observation,
    quartiles,
    regularity,
)

NS = 1_000_000_000
DAY = Observation(0, 86_400)
# 2026-03-04T03:00:00Z, on the hour.
HOUR = 1_772_593_200


def clock(period_s, count, *, start_s=0):
    return [(start_s + i * period_s) * NS for i in range(count)]


def test_a_perfect_clock_over_a_day_scores_one():
    beacon = beacon_score(clock(300, 288), [120] * 288, DAY)
    assert beacon is not None
    assert (beacon.score, beacon.timestamps, beacon.sizes, beacon.duration, beacon.histogram) == (1, 1, 1, 1, 1)
    assert (beacon.interval_s, beacon.interval_mad_s) == (300, 0)


@pytest.mark.parametrize(
    ("values", "default", "expected"),
    [
        ([60.0] * 9, 1, 1.0),
        ([58.0, 59, 59, 60, 60, 60, 61, 61, 62], 1, 0.992),  # MAD 1: (1 + 59/60) / 2
        ([50.0, 250] * 5, 1, 0.667),  # no skew, MAD 100 of median 150
        ([1.0, 1, 10, 100, 100, 1000, 5000], 1, 0.059),  # Q 1, 100, 1000: skew 801/999; MAD 99 of 100, in part
        ([0.0, 0, 0, 0], 0, 0.5),  # a median below 1 takes the default: 0 for sizes
        ([0.5, 0.5, 0.5], 1, 1.0),  # and 1 for intervals
    ],
)
def test_regularity(values, default, expected):
    assert regularity(sorted(values), mad_default=default) == pytest.approx(expected, abs=0.046)
    assert 0 <= regularity(sorted(values), mad_default=default) <= 1


def test_regularity_is_exact_where_computed_by_hand():
    assert regularity([58.0, 59, 59, 60, 60, 60, 61, 61, 62], mad_default=1) == 0.992
    # halves [1, 1, 10] and [100, 1000, 5000]: Q1 1, Q2 100, Q3 1000; skew 803/999; |v - 100| has median 99
    expected = ((1 - (1 + 1000 - 200) / 999) + (100 - 99) / 100) / 2
    assert regularity([1.0, 1, 10, 100, 100, 1000, 5000], mad_default=1) == pytest.approx(expected, abs=0.0005)


def test_quartiles_leave_the_middle_of_an_odd_count_out():
    assert quartiles([1.0, 2, 3, 4, 5]) == (1.5, 3, 4.5)
    assert quartiles([1.0, 2, 3, 4]) == (1.5, 2.5, 3.5)


def test_small_spreads_have_no_skew():
    assert regularity([1.0, 1, 2, 9, 9.9], mad_default=1) == 0.75  # MAD 1 of median 2; skew not taken: Q3 - Q1 < 10


def test_histogram_counts_the_last_second_in_the_last_bin():
    counts = histogram([0, 3_599, 3_600, 86_400], DAY)
    assert counts[0] == 2
    assert counts[1] == 1
    assert counts[-1] == 1
    assert sum(counts) == 4


def test_flatness():
    assert flatness([5] * BINS) == 1
    assert flatness([24] + [0] * 23) == 0
    assert flatness([1, 3] * 12) == 0.5  # mean 2, deviation 1


def test_bimodal_fit_needs_eleven_bins_and_forgives_one():
    assert bimodal_fit([10] * 10 + [0] * 14) == 0
    assert bimodal_fit([100, 10] * 12) == 1
    assert bimodal_fit([100] * 6 + [10] * 5 + [50, 75] + [0] * 11) == 0.917  # 11 of 13 - 1


def test_duration_is_the_better_of_coverage_and_run():
    assert duration_score([1] * 5 + [0] * 19, [0, 17_000], DAY) == 0  # five bins are too few
    assert duration_score([1] * 6 + [0] * 18, [0, 21_599], DAY) == 0.5  # a run of 6 of 12; coverage 0.25
    assert duration_score([1] * 3 + [0] * 18 + [1] * 3, [0, 86_399], DAY) == 1  # coverage; the run wraps round midnight
    assert duration_score([1, 1, 1, 0] * 6, [100, 43_300], DAY) == 0.5  # coverage alone


def test_unknown_sizes_leave_three_parts():
    beacon = beacon_score(clock(3, 20), [None] * 20, Observation(0, 60))
    assert beacon is not None
    assert beacon.sizes is None
    assert beacon.score == pytest.approx((beacon.timestamps + beacon.duration + beacon.histogram) / 3, abs=0.001)


@pytest.mark.parametrize("times", [[], clock(5, 3), [NS, NS, NS, NS, NS]])
def test_fewer_than_four_distinct_seconds_have_no_score(times):
    assert beacon_score(times, [1] * len(times), DAY) is None


def test_an_observation_is_the_last_day_with_data_from_the_full_hour_on():
    now = HOUR + 1_234
    assert observation((now - 100_000) * NS, now * NS) == Observation(now - 86_400, now, HOUR - 86_400)
    assert observation(now * NS, (now + 30) * NS) == Observation(now, now + 30, HOUR)
    assert observation(now * NS, now * NS) == Observation(now, now + 1, HOUR)


def test_what_is_before_the_last_day_counts_into_its_first_bin():
    window = Observation(HOUR + 1_000, HOUR + 1_000 + 86_400, HOUR)
    assert histogram([HOUR, HOUR + 999, HOUR + 1_000], window) == [3] + [0] * 23
    times = [(HOUR + 100 * i) * NS for i in range(-3, 5)]
    beacon = beacon_score(times, [1] * 8, window)
    assert beacon is not None
    assert beacon.interval_s == 100  # those before the full hour are not taken
    assert beacon_score([(HOUR - 1 - i) * NS for i in range(9)], [1] * 9, window) is None


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [  # as RITA's own tests have them
        ([1] * 9, 1),
        ([60] * 9, 1),
        ([98, 99, 99, 100, 100, 100, 101, 101, 102], 0.995),
        ([98, 300] * 5, 0.746),
        ([1, 299, 25, 4975, 90, 2, 42, 500, 1500], 0.083),
    ],
)
def test_rita_s_own_timestamps(intervals, expected):
    assert regularity(sorted(map(float, intervals)), mad_default=1) == expected


@pytest.mark.parametrize(
    ("sizes", "expected"), [(range(1, 11), 0.773), ([60] * 9, 1), ([98, 99, 99, 100, 100, 100, 101, 101, 102], 0.995)]
)
def test_rita_s_own_sizes(sizes, expected):
    assert regularity(sorted(map(float, sizes)), mad_default=0) == expected


@pytest.mark.parametrize(
    ("counts", "flat"),
    [
        (range(1, 11), 0.478),
        ([1] * 24, 1),
        ([1, 0, 2, 0, 3, 0, 2, 1], 0.064),
        ([7, 2, 1, 0, 0, 1, 0, 0, 0, 1], 0),
        ([4, 1] * 5, 0.4),
        ([2, 0, 3, 0, 1], 0.028),
        ([950, 970, 990, 1010, 1030, 1050, 1070], 0.96),
    ],
)
def test_rita_s_own_histograms(counts, flat):
    assert flatness(list(counts)) == flat


def test_a_call_a_second_is_a_strobe_and_no_beacon_unless_asked():
    times = clock(1, 86_400)
    assert beacon_score(times, [1] * 86_400, DAY) is None
    assert beacon_score(times, [1] * 86_400, DAY, scores_strobes=True) is not None


def test_a_short_window_keeps_the_formulas():
    beacon = beacon_score(clock(2, 90), [300] * 90, Observation(0, 180))
    assert beacon is not None
    assert beacon.score > 0.95


@pytest.mark.parametrize("seed", range(10))
def test_jitter_tells_a_clock_from_chance(seed):
    rng = random.Random(seed)
    regular = [i * 10 * NS + rng.randrange(-NS, NS) for i in range(1, 200)]
    chance = [0]
    for _ in range(200):
        chance.append(chance[-1] + int(rng.expovariate(1 / 10) * NS))
    paired = [t + extra for t in regular for extra in (0, NS // 20)]
    of_one, of_two, of_chance = map(jitter_ratio, (regular, paired, chance))
    assert of_one is not None
    assert of_one < 0.15
    assert of_two is not None
    assert of_two < 0.15  # two connections a beat
    assert of_chance is not None
    assert of_chance > 0.4


def test_jitter_needs_three_intervals():
    assert jitter_ratio(clock(1, 3)) is None
    assert jitter_ratio(clock(1, 4)) == 0


@given(
    times=st.lists(st.integers(0, 86_400 * NS), max_size=80),
    size=st.lists(st.one_of(st.none(), st.integers(0, 10**9)), min_size=80, max_size=80),
)
def test_every_part_is_a_share(times, size):
    beacon = beacon_score(times, size[: len(times)], DAY)
    if beacon is None:
        assert len({t // NS for t in times}) < 4
        return
    parts = (beacon.score, beacon.timestamps, beacon.sizes or 0.0, beacon.duration, beacon.histogram)
    assert all(0 <= part <= 1 for part in parts)


@given(
    times=st.lists(st.integers(0, 80_000), min_size=4, max_size=60, unique=True),
    shuffled=st.randoms(use_true_random=False),
)
def test_order_does_not_matter(times, shuffled):
    ns = [t * NS for t in times]
    mixed = ns.copy()
    shuffled.shuffle(mixed)
    assert beacon_score(mixed, [1] * len(ns), DAY) == beacon_score(ns, [1] * len(ns), DAY)


@given(period=st.integers(1, 3_000), size=st.integers(1, 10**6))
def test_any_clock_that_fills_the_day_scores_high(period, size):
    count = 86_400 // period
    beacon = beacon_score(clock(period, count), [size] * count, DAY, scores_strobes=True)
    assert beacon is not None
    assert beacon.timestamps == 1
    assert beacon.sizes == 1
    assert beacon.score >= 0.85

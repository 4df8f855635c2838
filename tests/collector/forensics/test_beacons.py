"""Scores of very many pairs at once are those of one pair at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.forensics.beacon import beacon_score, observation, rhythm_of
from collector.forensics.beacons import score_pairs, segments

NS = 1_000_000_000
T0 = 1_790_000_000 * NS

calls = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.one_of(st.integers(0, 100_000).map(lambda s: s * NS), st.integers(0, 100_000 * NS)),
        st.one_of(st.none(), st.integers(0, 2000), st.integers(0, 2**50)),
    ),
    min_size=1,
    max_size=120,
)


def scored(rows):
    times = [T0 + t for _, t, _ in rows]
    window = observation(min(times), max(times))
    frame = score_pairs(
        np.array([p for p, _, _ in rows], dtype=np.int64),
        np.array(times, dtype=np.int64),
        np.array([-1 if s is None else s for _, _, s in rows], dtype=np.int64),
        window,
        6,
    )
    return window, {row["pair"]: row for row in frame.iter_rows(named=True)}


@given(calls)
def test_every_pair_has_the_score_that_it_has_alone(rows):
    window, found = scored(rows)
    for pair in range(6):
        own = [(T0 + t, s) for p, t, s in rows if p == pair]
        beacon = beacon_score([t for t, _ in own], [s for _, s in own], window)
        assert (beacon is None) is (pair not in found)
        if beacon is None:
            continue
        row = found[pair]
        assert (beacon.score, beacon.timestamps, beacon.sizes) == (row["score"], row["ts"], row["ds"])
        assert (beacon.histogram, beacon.duration, beacon.interval_s) == (row["hist"], row["dur"], row["interval_s"])
        rhythm = rhythm_of([t for t, _ in own if window.first_s <= t // NS <= window.end_s])
        assert rhythm is not None
        assert row["jitter_ratio"] == pytest.approx(rhythm.jitter_ratio)
        assert row["log10_few"] == pytest.approx(rhythm.log10_few)
        assert row["log10_close"] == pytest.approx(rhythm.log10_close)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), max_size=60))
def test_medians_and_deviations_of_segments_are_numpys(rows):
    found = segments(np.array([p for p, _ in rows], dtype=np.int64), np.array([v for _, v in rows], dtype=np.int64), 4)
    for pair, mad in enumerate(found.mad()):
        values = np.array([v for p, v in rows if p == pair])
        if len(values):
            assert mad == np.median(np.abs(values - np.median(values)))


def test_values_too_wide_to_pack_are_sorted_all_the_same():
    found = segments(np.array([1, 0, 1], dtype=np.int64), np.array([2**62, 5, 3], dtype=np.int64), 2)
    assert found.values.tolist() == [5, 3, 2**62]
    assert found.starts.tolist() == [0, 1]


def test_nothing_to_score():
    empty = np.array([], dtype=np.int64)
    assert score_pairs(empty, empty, empty, observation(T0, T0 + NS), 3).is_empty()

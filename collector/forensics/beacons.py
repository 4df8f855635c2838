"""`beacon.beacon_score` and `beacon.rhythm_of` for very many pairs at once: NumPy over sorted segments, no loop over pairs.

A *segment* is what one pair has of something: its intervals, its sizes. Values are sorted within their segments by one sort of
(pair, value) packed into 63 bits, or by two sorts where they do not fit; every figure is then index arithmetic.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from collector.forensics.beacon import (
    BIMODAL_OUTLIERS,
    BINS,
    IDEAL_CONSECUTIVE_BINS,
    LEAST_CHANCE,
    MAX_SHORT,
    MIN_BINS_FOR_BIMODAL,
    MIN_BINS_FOR_DURATION,
    MIN_SKEW_SPREAD,
    MIN_UNIQUE_SECONDS,
    MODE_SENSITIVITY,
    POISSON_SHORT,
    SHORT_SHARE,
    STROBE_CALLS,
    Observation,
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_NS: Final = 1_000_000_000
_US: Final = 1_000
_BITS: Final = 63
_MODE_SLOTS: Final = 21
"""Buckets 5 % of the tallest bin wide, from 0 to 20."""

SCHEMA: Final = {
    "pair": pl.Int64(),
    "score": pl.Float64(),
    "ts": pl.Float64(),
    "ds": pl.Float64(),
    "hist": pl.Float64(),
    "dur": pl.Float64(),
    "interval_s": pl.Float64(),
    "jitter_ratio": pl.Float64(),
    "log10_close": pl.Float64(),
    "log10_few": pl.Float64(),
}


@dataclass(frozen=True, slots=True)
class Segments:
    """Values sorted within their pairs: those of pair p are `values[starts[p] : starts[p] + counts[p]]`."""

    values: Ints
    pairs: Ints
    starts: Ints
    counts: Ints

    def at(self, offsets: Ints) -> Floats:
        """The value at this offset of each segment; 0 where the segment is too short."""
        inside = (offsets >= 0) & (offsets < self.counts)
        where = np.where(inside, self.starts + offsets, 0)
        return np.where(inside, self.values[where] if len(self.values) else 0, 0).astype(np.float64)

    def median(self, first: Ints, count: Ints) -> Floats:
        """The median of `count` values from offset `first` on."""
        return (self.at(first + (count - 1) // 2) + self.at(first + count // 2)) / 2

    def mad(self) -> Floats:
        """The median absolute deviation from the median of every segment.

        Distances from the median grow to both sides of it, so the middle ones are found in two sorted halves: no second sort.
        """
        n = self.counts
        return (self._distance((n - 1) // 2) + self._distance(n // 2)) / 2

    def _distance(self, rank: Ints) -> Floats:
        """The distance from the median that has this rank, from 0: `taken` of the `rank + 1` least are on the left."""
        wanted, left = rank + 1, (self.counts + 1) // 2
        middle = self.median(np.zeros_like(self.counts), self.counts)
        low, high = np.maximum(0, wanted - (self.counts - left)), np.minimum(wanted, left)
        while (open_ := low < high).any():
            taken = (low + high) // 2
            few = middle - self.at(left - 1 - taken) < self.at(left + wanted - taken - 1) - middle
            low, high = np.where(open_ & few, taken + 1, low), np.where(open_ & ~few, taken, high)
        from_left = np.where(low > 0, middle - self.at(left - low), 0.0)
        from_right = np.where(wanted > low, self.at(left + wanted - low - 1) - middle, 0.0)
        return np.maximum(from_left, from_right)

    def kept(self, which: Flags) -> "Segments":
        """The values that are flagged, in their order."""
        pairs = self.pairs[which]
        counts = np.bincount(pairs, minlength=len(self.counts)).astype(np.int64)
        return Segments(self.values[which], pairs, np.cumsum(counts) - counts, counts)


def segments(pairs: Ints, values: Ints, pair_count: int) -> Segments:
    """The values, which are not negative, sorted within their pairs, which are numbered from 0."""
    counts = np.bincount(pairs, minlength=pair_count).astype(np.int64)
    starts = np.cumsum(counts) - counts
    bits = int(values.max(initial=0)).bit_length()
    if bits + pair_count.bit_length() <= _BITS:
        packed = np.sort((pairs << bits) | values)
        return Segments(packed & ((1 << bits) - 1), packed >> bits, starts, counts)
    order = np.lexsort((values, pairs))
    return Segments(values[order], pairs[order], starts, counts)


def score_pairs(pairs: Ints, times_unix_nano: Ints, sizes: Ints, window: Observation, pair_count: int) -> pl.DataFrame:
    """RITA's score and the rhythm of every pair; columns `SCHEMA`, one row a pair that has a score, in the order of their numbers.

    One element a call in the first three: the pair's number, the start, the bytes (negative: not known).
    """
    seconds = times_unix_nano // _NS
    taken = (seconds >= window.first_s) & (seconds <= window.end_s)
    pairs, sizes, times = pairs[taken], sizes[taken], times_unix_nano[taken]
    moments = segments(pairs, times // _US - window.first_s * (_NS // _US), pair_count)
    calls = replace(moments, values=moments.values // (_NS // _US))
    intervals = _intervals(calls)
    scored = (intervals.counts >= MIN_UNIQUE_SECONDS - 1) & (calls.counts < STROBE_CALLS)
    numbers = np.flatnonzero(scored)
    if not len(numbers):
        return pl.DataFrame(schema=SCHEMA)
    known = sizes >= 0
    sized = segments(pairs[known], sizes[known], pair_count)
    bins = _histograms(calls, window)
    ts = _regularity(intervals, 1.0)
    ds = np.where(sized.counts >= MIN_UNIQUE_SECONDS - 1, _regularity(sized, 0.0), np.nan)
    hist = np.maximum(_flatness(bins), _bimodal_fit(bins))
    dur = _duration(bins, calls, window)
    score = np.where(
        np.isnan(ds), _round3((ts + dur + hist) / 3), _round3(ts * 0.25 + ds * 0.25 + dur * 0.25 + hist * 0.25)
    )
    jitter, close, few = _rhythm(moments)
    middle = intervals.median(np.zeros_like(intervals.counts), intervals.counts)
    columns = (score, ts, ds, hist, dur, middle, jitter, close, few)
    frame = pl.DataFrame(
        {"pair": numbers, **{n: c[numbers] for n, c in zip(list(SCHEMA)[1:], columns, strict=True)}}, schema=SCHEMA
    )
    return frame.with_columns(pl.col("ds", "jitter_ratio").fill_nan(None))


def _intervals(calls: Segments, least: int = 1) -> Segments:
    """Between calls of the same pair, those of at least `least`."""
    steps = np.diff(calls.values)
    kept = (np.diff(calls.pairs) == 0) & (steps >= least)
    return segments(calls.pairs[1:][kept], steps[kept], len(calls.counts))


def _regularity(parts: Segments, mad_default: float) -> Floats:
    zero, n = np.zeros_like(parts.counts), parts.counts
    half = n // 2
    q1, q2, q3 = parts.median(zero, half), parts.median(zero, n), parts.median(n - half, half)
    has_skew = (q3 - q1 >= MIN_SKEW_SPREAD) & (q2 != q1) & (q2 != q3)
    skew = np.where(has_skew, (q1 + q3 - 2 * q2) / np.where(has_skew, q3 - q1, 1), 0.0)
    mad = parts.mad()
    measured = q2 >= 1
    closeness = np.where(measured, np.maximum(0.0, (q2 - mad) / np.where(measured, q2, 1)), mad_default)
    return _round3(((1 - np.abs(skew)) + closeness) / 2)


def _histograms(calls: Segments, window: Observation) -> Ints:
    """One row of `BINS` counts a pair."""
    offset = window.start_s - window.first_s
    index = np.clip((calls.values - offset) * BINS // (window.end_s - window.start_s), 0, BINS - 1)
    counted = np.bincount(calls.pairs * BINS + index, minlength=len(calls.counts) * BINS)
    return counted.astype(np.int64).reshape(-1, BINS)


def _flatness(bins: Ints) -> Floats:
    total = bins.sum(axis=1)
    spread = BINS * (bins * bins).sum(axis=1) - total * total
    return _round3(np.maximum(0.0, 1 - np.sqrt(spread) / np.maximum(total, 1)))


def _bimodal_fit(bins: Ints) -> Floats:
    filled = (bins > 0).sum(axis=1)
    width = np.ceil(bins.max(axis=1, initial=0) * MODE_SENSITIVITY).astype(np.int64)
    slot = bins // np.maximum(width, 1)[:, None]
    rows = np.repeat(np.arange(len(bins)), BINS)
    there = bins.ravel() > 0
    heights = np.bincount(rows[there] * _MODE_SLOTS + slot.ravel()[there], minlength=len(bins) * _MODE_SLOTS)
    commonest = np.sort(heights.reshape(-1, _MODE_SLOTS), axis=1)[:, -2:].sum(axis=1)
    fit = np.minimum(1.0, _round3(commonest / np.maximum(filled - BIMODAL_OUTLIERS, 1)))
    return np.where(filled >= MIN_BINS_FOR_BIMODAL, fit, 0.0)


def _duration(bins: Ints, calls: Segments, window: Observation) -> Floats:
    there = bins > 0
    run = longest = np.zeros(len(bins), dtype=np.int64)
    for column in (*range(BINS), *range(BINS)):
        run = np.where(there[:, column], run + 1, 0)
        longest = np.maximum(longest, run)
    span = calls.at(calls.counts - 1) - calls.at(np.zeros_like(calls.counts))
    coverage = _ceil3(span / (window.end_s - window.start_s))
    consistency = _ceil3(np.minimum(longest, BINS) / IDEAL_CONSECUTIVE_BINS)
    better = np.minimum(1.0, np.maximum(coverage, consistency))
    return np.where(there.sum(axis=1) >= MIN_BINS_FOR_DURATION, better, 0.0)


def _rhythm(moments: Segments) -> tuple[Floats, Floats, Floats]:
    """`jitter_ratio` (NaN where there are too few intervals), `log10_close` and `log10_few` of every pair."""
    every = _intervals(moments)
    after_pause = np.diff(moments.values, prepend=0) >= _NS // _US
    first_of_pair = np.diff(moments.pairs, prepend=-1) != 0
    beats = after_pause | first_of_pair
    by_burst = _intervals(moments.kept(beats))
    jitters = _mad_over_median(every), _mad_over_median(by_burst)
    jitter = np.fmin(*jitters)
    of_all, of_bursts = every.counts, by_burst.counts
    unequal = np.where(jitter == jitters[0], of_all, of_bursts)
    counts = np.where(jitters[0] == jitters[1], np.minimum(of_all, of_bursts), unequal)
    chance = np.maximum(np.log(2) * np.nan_to_num(jitter, nan=1.0), LEAST_CHANCE)
    unlikely = counts * (np.log(4) + np.log(chance) + np.log(np.maximum(1 - chance, LEAST_CHANCE))) / (2 * np.log(10))
    close = np.where(chance >= 0.5, 0.0, unlikely)
    limit = every.median(np.zeros_like(every.counts), every.counts) * SHORT_SHARE
    short = np.bincount(every.pairs, weights=every.values < limit[every.pairs], minlength=len(every.counts))
    return jitter, close, _log10_few(short, every.counts)


def _mad_over_median(intervals: Segments) -> Floats:
    zero, n = np.zeros_like(intervals.counts), intervals.counts
    middle = intervals.median(zero, n)
    return np.where(n >= MIN_UNIQUE_SECONDS - 1, intervals.mad() / np.where(middle > 0, middle, 1), np.nan)


def _log10_few(short: Floats | Ints, count: Ints) -> Floats:
    share = short / np.maximum(count, 1)
    few = (share <= MAX_SHORT) & (count > 0)
    safe = np.where(few, share, 0.0)
    rest = (1 - safe) * np.log((1 - safe) / (1 - POISSON_SHORT))
    some = np.where(safe > 0, safe * np.log(np.where(safe > 0, safe, 1) / POISSON_SHORT), 0.0)
    return np.where(few, -count * (rest + some) / np.log(10), 0.0)


def _round3(values: Floats) -> Floats:
    return np.floor(values * 1000 + 0.5) / 1000


def _ceil3(values: Floats) -> Floats:
    return np.ceil(values * 1000) / 1000

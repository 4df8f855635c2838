"""How much like a clock a stream of calls is: the beacon score of RITA v5, as a pure function.

`score = (timestamps + sizes + duration + histogram) / 4`, over one source and one destination, in the last 24 h, the
start floored to the hour, cut into 24 equal bins. Published by Active Countermeasures with RITA (github.com/activecm/rita,
`analysis/beacons.go`); the formulas are restated here, and each rounding step is kept, so that scores agree with RITA's to
the third decimal.

Two documented generalisations, neither of which changes a score that RITA would give:

- An observation shorter than 24 h keeps the formulas over 24 equal bins of what was observed; a "bin" stands where RITA
  says "hour".
- Calls without a known size leave the score with its other three parts, each weighing a third.

RITA counts time in whole seconds, and three of its four parts measure steadiness rather than rhythm: calls at random
moments (a Poisson process) with one size score about 0.8. `jitter_ratio` measures rhythm alone, at full resolution, so
that a caller can ask for both.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, sqrt
from statistics import median
from typing import Final

BINS: Final = 24
MIN_UNIQUE_SECONDS: Final = 4
"""RITA scores nothing with fewer distinct timestamps: three intervals are the least that quartiles mean anything for."""

MIN_BINS_FOR_DURATION: Final = 6
IDEAL_CONSECUTIVE_BINS: Final = 12
MIN_BINS_FOR_BIMODAL: Final = 11
BIMODAL_OUTLIERS: Final = 1
MODE_SENSITIVITY: Final = 0.05
MIN_SKEW_SPREAD: Final = 10
"""Quartiles closer together than this (seconds, bytes) have no skew worth measuring."""

_NS: Final = 1_000_000_000
_DAY_S: Final = 86_400
_HOUR_S: Final = 3_600


@dataclass(frozen=True, slots=True)
class Beacon:
    """The score of one stream of calls and its parts, each 0 to 1.

    Attributes:
        score: The mean of the parts.
        timestamps: Regularity of the intervals between calls.
        sizes: Regularity of the bytes sent; None where no size is known.
        duration: How much of the window the calls cover.
        histogram: How evenly they fill the window's bins.
        interval_s: Median of the non-zero intervals, in seconds.
        interval_mad_s: Median absolute deviation of those intervals, in seconds.
    """

    score: float
    timestamps: float
    sizes: float | None
    duration: float
    histogram: float
    interval_s: float
    interval_mad_s: float


@dataclass(frozen=True, slots=True)
class Observation:
    """The window that a stream is judged in, in whole Unix seconds; `end_s` is greater than `start_s`."""

    start_s: int
    end_s: int


def observation(start_unix_nano: int, end_unix_nano: int) -> Observation:
    """The window RITA would judge in: the last 24 h, floored to the hour, or what was observed where that is shorter."""
    start_s, end_s = start_unix_nano // _NS, -(-end_unix_nano // _NS)
    if end_s - start_s >= _DAY_S:
        floored = (end_s - _DAY_S) // _HOUR_S * _HOUR_S
        return Observation(floored, end_s)
    return Observation(start_s, max(end_s, start_s + 1))


def beacon_score(times_unix_nano: Sequence[int], sizes: Sequence[int | None], window: Observation) -> Beacon | None:
    """RITA's beacon score of calls that started at these times; None with fewer than four distinct seconds in the window.

    `sizes` are the calls' bytes, None where unknown, in any order.
    """
    seconds = sorted(t // _NS for t in times_unix_nano if window.start_s <= t // _NS <= window.end_s)
    if len(set(seconds)) < MIN_UNIQUE_SECONDS:
        return None
    intervals = sorted(float(b - a) for a, b in pairwise(seconds) if b > a)
    counts = histogram(seconds, window)
    known = sorted(float(size) for size in sizes if size is not None)
    parts = (
        regularity(intervals, mad_default=1.0),
        regularity(known, mad_default=0.0) if len(known) >= MIN_UNIQUE_SECONDS - 1 else None,
        duration_score(counts, seconds, window),
        max(flatness(counts), bimodal_fit(counts)),
    )
    present = [part for part in parts if part is not None]
    middle = median(intervals)
    return Beacon(
        score=_round3(sum(present) / len(present)),
        timestamps=parts[0] or 0.0,
        sizes=parts[1],
        duration=parts[2] or 0.0,
        histogram=parts[3] or 0.0,
        interval_s=middle,
        interval_mad_s=median(abs(i - middle) for i in intervals),
    )


def regularity(values: Sequence[float], *, mad_default: float) -> float:
    """How alike sorted values are, 0 to 1: the mean of (1 - |Bowley skewness|) and (median - MAD) / median."""
    q1, q2, q3 = quartiles(values)
    skew = 0.0
    if q3 - q1 >= MIN_SKEW_SPREAD and q2 not in {q1, q3}:
        skew = (q1 + q3 - 2 * q2) / (q3 - q1)
    middle = median(values)
    mad = median(abs(v - middle) for v in values)
    closeness = max(0.0, (middle - mad) / middle) if middle >= 1 else mad_default
    return _round3(((1 - abs(skew)) + closeness) / 2)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Medians of the lower half, of all and of the upper half of sorted values; an odd count leaves the middle one out."""
    half = len(values) // 2
    return median(values[:half]), median(values), median(values[-half:])


def histogram(seconds: Sequence[int], window: Observation) -> list[int]:
    """How many calls fell into each of `BINS` equal bins; a call at the very end belongs to the last one."""
    counts = [0] * BINS
    width = window.end_s - window.start_s
    for second in seconds:
        counts[min((second - window.start_s) * BINS // width, BINS - 1)] += 1
    return counts


def flatness(counts: Sequence[int]) -> float:
    """One less the coefficient of variation of the bins' counts, and 0 where that exceeds 1."""
    mean = sum(counts) / len(counts)
    variation = sqrt(sum((c - mean) ** 2 for c in counts) / len(counts)) / mean
    return _round3(max(0.0, 1 - variation))


def bimodal_fit(counts: Sequence[int]) -> float:
    """The share of non-empty bins that have one of the two commonest heights (to 5 % of the tallest), one outlier forgiven."""
    filled = [c for c in counts if c]
    if len(filled) < MIN_BINS_FOR_BIMODAL:
        return 0.0
    width = ceil(max(filled) * MODE_SENSITIVITY)
    commonest = Counter(c // width for c in filled).most_common(2)
    return min(1.0, _round3(sum(n for _, n in commonest) / max(len(filled) - BIMODAL_OUTLIERS, 1)))


def duration_score(counts: Sequence[int], seconds: Sequence[int], window: Observation) -> float:
    """The better of coverage (first to last call over the window) and the longest run of filled bins over 12, wrapping."""
    if sum(1 for c in counts if c) < MIN_BINS_FOR_DURATION:
        return 0.0
    coverage = _ceil3((seconds[-1] - seconds[0]) / (window.end_s - window.start_s))
    consistency = _ceil3(_longest_run(counts) / IDEAL_CONSECUTIVE_BINS)
    return min(1.0, max(coverage, consistency))


def jitter_ratio(times_unix_nano: Sequence[int]) -> float | None:
    """MAD over median of the intervals, at full resolution; None with fewer than three intervals.

    0 is a perfect clock, uniform jitter of ±20 % gives 0.1, random moments (Poisson) 0.69. Calls that follow another within a second may
    be one beat of several connections, so the better of the two readings counts: every call, or only the first of a burst.
    """
    times = sorted(set(times_unix_nano))
    first_of_burst = [b for a, b in pairwise([-_NS, *times]) if b - a >= _NS]
    ratios = [r for r in (_mad_over_median(times), _mad_over_median(first_of_burst)) if r is not None]
    return min(ratios, default=None)


def _mad_over_median(times: Sequence[int]) -> float | None:
    intervals = [b - a for a, b in pairwise(times)]
    if len(intervals) < MIN_UNIQUE_SECONDS - 1:
        return None
    middle = median(intervals)
    return float(median(abs(i - middle) for i in intervals) / middle)


def _longest_run(counts: Sequence[int]) -> int:
    longest = run = 0
    for count in (*counts, *counts):
        run = run + 1 if count else 0
        longest = max(longest, run)
    return min(longest, len(counts))


def _round3(value: float) -> float:
    return floor(value * 1000 + 0.5) / 1000


def _ceil3(value: float) -> float:
    return ceil(value * 1000) / 1000

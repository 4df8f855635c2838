"""How much like a clock a stream of calls is: the beacon score of RITA v5, as a pure function.

`score = (timestamps + sizes + duration + histogram) / 4`, over one source and one destination, in the last 24 h of what was
observed, cut into 24 equal bins. Published by Active Countermeasures with RITA (github.com/activecm/rita, `analysis/beacons.go`);
the formulas are restated here, and each rounding step is kept, so that scores agree with RITA's to the third decimal.

As RITA has it, an observation shorter than 24 h is cut into 24 bins too: a "bin" stands where RITA says "hour". Of a longer one
the calls are taken from the full hour on in which its last 24 h begin, since RITA stores them by the hour; what lies before those 24 h
counts into the first bin. A pair with a call a second on average (`STROBE_CALLS`) is not scored.

One documented generalisation, which changes no score that RITA would give: calls without a known size leave the score with its
other three parts, each weighing a third.

RITA counts time in whole seconds, and three of its four parts measure steadiness rather than rhythm: calls at random
moments (a Poisson process) with one size score about 0.8. `rhythm_of` measures rhythm alone, at full resolution, so
that a caller can ask for both. `beacons.score_pairs` does the same for very many pairs at once; this is its reference.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log, sqrt
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

STROBE_CALLS: Final = 86_400
"""RITA tells a pair with as many calls in a day as a strobe, and scores it by no beacon's measure."""

MAX_LOG10: Final = -5.0
"""Once in a hundred thousand times chance may look like this; a mesh has some thousands of pairs."""

SHORT_SHARE: Final = 0.25
"""An interval below this share of the median is short: of random moments (Poisson) `POISSON_SHORT` of the intervals are."""

POISSON_SHORT: Final = 1 - 0.5**SHORT_SHARE
LEAST_CHANCE: Final = 1e-3
"""Of one interval to be where the others are: clocks tell no less than that, since times have a resolution."""

MAX_SHORT: Final = 0.02
"""With more short intervals than this it is no clock, however improbable by chance: whoever waits for an answer calls steadily too."""

_NS: Final = 1_000_000_000
_US: Final = 1_000
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
    """The window that a stream is judged in, in whole Unix seconds; `end_s` is greater than `start_s`.

    Attributes:
        start_s: Where the first bin starts.
        end_s: Where the last bin ends; a call in that second belongs to it.
        admitted_s: Calls from this second on are taken; what is before `start_s` counts into the first bin. None: `start_s`.
    """

    start_s: int
    end_s: int
    admitted_s: int | None = None

    @property
    def first_s(self) -> int:
        """The earliest second that is taken."""
        return self.start_s if self.admitted_s is None else self.admitted_s


def observation(start_unix_nano: int, end_unix_nano: int) -> Observation:
    """The window RITA judges in, of what was observed from its first to its last call: the last 24 h, or all where that is shorter."""
    start_s, end_s = start_unix_nano // _NS, end_unix_nano // _NS
    start_s = max(start_s, end_s - _DAY_S)
    return Observation(start_s, max(end_s, start_s + 1), start_s // _HOUR_S * _HOUR_S)


def beacon_score(
    times_unix_nano: Sequence[int], sizes: Sequence[int | None], window: Observation, *, scores_strobes: bool = False
) -> Beacon | None:
    """RITA's beacon score of calls that started at these times; None with fewer than four distinct seconds in the window.

    `sizes` are the calls' bytes in the same order, None where unknown. `scores_strobes`: also with a call a second and more.
    """
    taken = [
        (t // _NS, size)
        for t, size in zip(times_unix_nano, sizes, strict=True)
        if window.first_s <= t // _NS <= window.end_s
    ]
    seconds = sorted(second for second, _ in taken)
    if len(set(seconds)) < MIN_UNIQUE_SECONDS or (len(seconds) >= STROBE_CALLS and not scores_strobes):
        return None
    intervals = sorted(float(b - a) for a, b in pairwise(seconds) if b > a)
    counts = histogram(seconds, window)
    known = sorted(float(size) for _, size in taken if size is not None)
    timestamps = regularity(intervals, mad_default=1.0)
    sizes_part = regularity(known, mad_default=0.0) if len(known) >= MIN_UNIQUE_SECONDS - 1 else None
    duration = duration_score(counts, seconds, window)
    flat = max(flatness(counts), bimodal_fit(counts))
    middle = median(intervals)
    return Beacon(
        score=mean_of(timestamps, sizes_part, duration, flat),
        timestamps=timestamps,
        sizes=sizes_part,
        duration=duration,
        histogram=flat,
        interval_s=middle,
        interval_mad_s=median(abs(i - middle) for i in intervals),
    )


def mean_of(timestamps: float, sizes: float | None, duration: float, flat: float) -> float:
    """The score out of its parts, each weighing a fourth; a third without sizes."""
    if sizes is None:
        return _round3((timestamps + duration + flat) / 3)
    return _round3(timestamps * 0.25 + sizes * 0.25 + duration * 0.25 + flat * 0.25)


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
        counts[max(0, min((second - window.start_s) * BINS // width, BINS - 1))] += 1
    return counts


def flatness(counts: Sequence[int]) -> float:
    """One less the coefficient of variation of the bins' counts, and 0 where that exceeds 1."""
    total = sum(counts)
    # n² times the variance, in integers: exact, and the same in whatever order it is summed.
    spread = len(counts) * sum(c * c for c in counts) - total * total
    return _round3(max(0.0, 1 - sqrt(spread) / total))


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


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How far the intervals of a stream are from those of random moments.

    Attributes:
        jitter_ratio: MAD over median of the intervals: 0 is a perfect clock, uniform jitter of ±20 % gives 0.1, random moments 0.69.
        log10_close: Base-10 logarithm of the probability that half of so many intervals between random moments lie so close to their median.
        log10_few: The same of so few short intervals. A clock waits before it beats again, whatever its jitter and however many
            beats were lost: there nearly no interval is short.
    """

    jitter_ratio: float
    log10_close: float
    log10_few: float

    def is_a_clocks(self, max_jitter_ratio: float) -> bool:
        """Whether random moments are excluded: by little jitter in enough calls, or by too few short intervals."""
        return (self.jitter_ratio <= max_jitter_ratio and self.log10_close <= MAX_LOG10) or self.log10_few <= MAX_LOG10


def rhythm_of(times_unix_nano: Sequence[int]) -> Rhythm | None:
    """The rhythm of calls that began at these times, in microseconds; None with fewer than three intervals.

    Calls that follow another within a second may be one beat of several connections, so the better of two readings
    counts: every call, or only the first of a burst.
    """
    times = sorted({t // _US for t in times_unix_nano})
    first_of_burst = [b for a, b in pairwise([times[0] - _NS, *times]) if b - a >= _NS // _US] if times else []
    found = [r for r in (_jitter(times), _jitter(first_of_burst)) if r is not None]
    if not found:
        return None
    # "The first of a burst" leaves no interval below a second, which is no proof of a clock: shortness is told by all calls.
    ratio, count = min(found)
    return Rhythm(ratio, log10_close(ratio, count), _log10_few_of(times))


def jitter_ratio(times_unix_nano: Sequence[int]) -> float | None:
    """The jitter of `rhythm_of`."""
    rhythm = rhythm_of(times_unix_nano)
    return None if rhythm is None else rhythm.jitter_ratio


def _jitter(times: Sequence[int]) -> tuple[float, int] | None:
    """MAD over median, and of how many intervals."""
    intervals = [b - a for a, b in pairwise(times)]
    if len(intervals) < MIN_UNIQUE_SECONDS - 1:
        return None
    middle = median(intervals)
    return float(median(abs(i - middle) for i in intervals) / middle), len(intervals)


def _log10_few_of(times: Sequence[int]) -> float:
    intervals = [b - a for a, b in pairwise(times)]
    if not intervals:
        return 0.0
    limit = median(intervals) * SHORT_SHARE
    return log10_few(sum(1 for i in intervals if i < limit), len(intervals))


def log10_close(jitter_ratio: float, count: int) -> float:
    """log10 of an upper bound of P(half of `count` intervals within that distance of the median | random moments), by Chernoff."""
    chance = max(log(2) * jitter_ratio, LEAST_CHANCE)
    return 0.0 if chance >= 0.5 else count * (log(4) + log(chance) + log(1 - chance)) / (2 * log(10))


def log10_few(short: int, count: int) -> float:
    """log10 of an upper bound of P(at most `short` of `count` intervals are short | random moments), by Chernoff; 0 where not few."""
    share = short / count
    if share > MAX_SHORT:
        return 0.0
    divergence = (1 - share) * log((1 - share) / (1 - POISSON_SHORT))
    if share:
        divergence += share * log(share / POISSON_SHORT)
    return -count * divergence / log(10)


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

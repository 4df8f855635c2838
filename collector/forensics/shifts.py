"""When did a series of durations become slower: a scan over every stretch of time, by ranks, with the noise that the series itself shows.

Pure NumPy over histograms, no clock and no table. A series arrives as counts per time bucket and duration bin. Sparse buckets are joined to
*cells* of at least `MIN_CELL_CALLS` calls. For every stretch of cells three questions are asked against all other cells: are
its calls slower (mean rank, which moves with the median), and do more of them exceed the slowest quarter, or the slowest
tenth, of all calls (which moves when only some calls are hit)? Where none finds anything, the slowest twentieth and the slowest
hundredth are asked about too, in cells large enough to hold `MIN_CELL_CALLS` of them. The stretch with the strongest answer is a shift if

- the answer is strong against chance, after allowing for the series' own bucket-to-bucket spread (overdispersion);
- it stays strong without its strongest cell, so that a blip is none;
- most of its cells, not a few, lie above what the other cells do;
- the median or a higher quantile, of which there are calls enough, rose by the ratio and the amount that a person would care about.

The scan has no fixed baseline, so a shift may begin at any time, may have ended, and may be longer than what was normal.
"""

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BINS_PER_OCTAVE: Final = 8
"""Durations are binned at powers of 2^(1/8), 9 % apart; quantiles are interpolated inside a bin."""

MIN_CELL_CALLS: Final = 5
MIN_CELLS: Final = 3
"""A shift covers at least so many cells, and leaves at least so many to compare with: less is a blip."""

MOST: Final = 0.7
"""The part of a shift's cells that must lie above what is normal."""

BLOCKS: Final = 6
"""So many stretches of a shift's length must fit into the rest to learn how much such stretches wander."""

BODY: Final = (0.25, 0.1)
TAIL: Final = (0.05, 0.01)
"""Parts of the slowest calls that a stretch is asked about: beside the rank, and where that finds nothing."""

QUESTIONS: Final = 1 + len(BODY) + len(TAIL)
"""How many scores each stretch is asked about."""

TAIL_QUANTILES: Final = (0.9, 0.95, 0.99, 0.995)
"""By which a shift may be told where the median stayed. The last because of one slow call in a hundred p99 sees the fastest only."""

TOLD_QUANTILES: Final = (0.5, 0.95, 0.99)
"""Those that every shift is told with."""

TAIL_WIDTH: Final = 2.5
"""Calls to look at beyond a quantile, in parts of those that lie beyond it: of the 90th percentile the slowest quarter."""

MAX_SHIFTS: Final = 3
"""Separate shifts that one series may report."""


@dataclass(frozen=True, slots=True)
class ShiftParams:
    """What counts as a shift.

    Attributes:
        min_ratio: The median must rise by this factor; 1.5 is where people start to notice and ordinary variation over a day has ended.
        min_tail_ratio: The same for the 90th percentile and higher ones, which are noisier.
        min_increase_ns: And by this much: below 5 ms schedulers and garbage collectors do it by themselves.
        min_calls: Calls inside the shift, and outside it, at least.
        max_chance: The probability that chance alone makes any stretch of a stationary series look so slow, at most: divided by the number of
            stretches that are looked at (Bonferroni) it gives the z that a stretch must reach, about 4.6 for a dozen sparse cells
            and 5.8 for a hundred and forty.
        rest_ratio: Without its strongest cell a shift must keep this part of that z.
        min_separation: How many of the other cells' robust standard deviations (MAD) the shift's median cell lies above
            their median; a stretch as a whole must lie two more above equally long ones.
        min_duration_ns: Shorter is a pause, not an incident.
    """

    min_ratio: float = 1.5
    min_tail_ratio: float = 2.0
    min_increase_ns: int = 5_000_000
    min_calls: int = 12
    max_chance: float = 1e-4
    rest_ratio: float = 0.85
    min_separation: float = 3.0
    min_duration_ns: int = 5_000_000_000

    def is_slower(self, quantile: float, before_ns: float, during_ns: float) -> bool:
        """Whether a quantile rose by what a person would care about."""
        least = self.min_ratio if quantile == 0.5 else self.min_tail_ratio
        return before_ns > 0 and during_ns / before_ns >= least and during_ns - before_ns >= self.min_increase_ns


@dataclass(frozen=True, slots=True)
class Series:
    """Counts of durations over time.

    Attributes:
        edges_ns: Bucket boundaries, Unix ns; one more than buckets.
        bins: Log-bin number of each column, ascending; see `bin_number`.
        counts: Calls by (bucket, bin).
        baseline: How many leading buckets are normal by definition; a shift never includes them.
        startup: Whether the first buckets may be a start: then a stretch with nothing normal before it must outlast a third of all.
    """

    edges_ns: npt.NDArray[np.int64]
    bins: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    baseline: int = 0
    startup: bool = False


@dataclass(frozen=True, slots=True)
class Quantile:
    """One quantile `q` of a series, outside of any shift and inside of one, in ns; `moved`: by what a person would care about."""

    q: float
    before_ns: float
    during_ns: float
    moved: bool


@dataclass(frozen=True, slots=True)
class Shift:
    """A stretch in which a series was slower.

    Attributes:
        start_unix_nano: Its beginning, to a bucket.
        end_unix_nano: Its end, to a bucket.
        ended: Whether normal calls followed.
        quantile: Which quantile tells it best: 0.5, or where only some calls are hit the first of `TAIL_QUANTILES` that moved.
        before_ns: That quantile outside of any shift.
        during_ns: That quantile inside.
        calls_before: Calls outside of any shift.
        calls_during: Calls inside.
        z: Strength against chance.
        slow_before_ns: Calls outside that took so long are to be compared with those inside; 0 compares all.
        slow_during_ns: The same of calls inside.
        quantiles: Those of `TOLD_QUANTILES` that there are calls enough for.
    """

    start_unix_nano: int
    end_unix_nano: int
    ended: bool
    quantile: float
    before_ns: float
    during_ns: float
    calls_before: int
    calls_during: int
    z: float
    slow_before_ns: float = 0.0
    slow_during_ns: float = 0.0
    quantiles: tuple[Quantile, ...] = ()

    def moved(self, by_ns: int) -> "Shift":
        """The same at another time."""
        return replace(self, start_unix_nano=self.start_unix_nano + by_ns, end_unix_nano=self.end_unix_nano + by_ns)

    @property
    def of_calls(self) -> float:
        """The part of the calls that is compared, the slowest ones."""
        return 1.0 if self.quantile == 0.5 else TAIL_WIDTH * (1 - self.quantile)


@dataclass(frozen=True, slots=True)
class _Cells:
    """Neighbouring buckets; `bounds` has the first bucket of each cell, and after the last cell's the number of buckets."""

    bounds: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    baseline: int


@dataclass(frozen=True, slots=True)
class _Stretches:
    """Every stretch of the cells, as matrices by its first and its last one, whatever is asked of it.

    Attributes:
        live: Calls of each cell.
        calls: Calls of each stretch.
        allowed: Which of them may be a shift.
        tried: How many these are.
    """

    live: Floats
    calls: Floats
    allowed: npt.NDArray[np.bool_]
    tried: int


def bin_number(duration_ns: float) -> int:
    """The log bin of a duration; durations up to 1 ns share bin 0."""
    return int(np.floor(np.log2(max(duration_ns, 1)) * BINS_PER_OCTAVE))


def find_shifts(series: Series, params: ShiftParams) -> list[Shift]:
    """Up to `MAX_SHIFTS` stretches in which the series was slower, strongest first."""
    usable = np.ones(len(series.counts), dtype=bool)
    found: list[tuple[int, int, float]] = []
    for _ in range(MAX_SHIFTS + 1):
        best = _strongest(series, usable, params)
        if best is None or len(found) == MAX_SHIFTS:
            break
        a, b, _, is_startup = best
        if is_startup:
            usable[:b] = False
            continue
        found.append(best[:3])
        usable[a:b] = False
    return [shift for one in found if (shift := _describe(series, usable, one, params)) is not None]


def quantile_ns(counts: npt.NDArray[np.int64], bins: npt.NDArray[np.int64], q: float) -> float:
    """The q-quantile of binned durations in ns, interpolated geometrically inside its bin; 0 where there are none."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    cumulative = np.cumsum(counts)
    at = int(np.searchsorted(cumulative, q * total, side="left"))
    inside = (q * total - (cumulative[at] - counts[at])) / max(int(counts[at]), 1)
    return float(2 ** ((int(bins[at]) + float(inside)) / BINS_PER_OCTAVE))


def _cells(series: Series, usable: npt.NDArray[np.bool_], least: float) -> _Cells:
    """Joins neighbouring buckets until each cell has `least` calls; a poor rest joins the last cell. Only usable buckets are counted."""
    groups: list[list[int]] = []
    baseline = 0
    calls = 0
    for bucket, n in enumerate(series.counts.sum(axis=1)):
        if not groups or calls >= least or bucket == series.baseline:
            groups.append([])
            calls = 0
            baseline += bucket < series.baseline
        groups[-1].append(bucket)
        calls += int(n)
    if len(groups) > baseline + 1 and calls < least:
        groups[-2].extend(groups.pop())
    bounds = np.array([g[0] for g in groups] + [len(series.counts)], dtype=np.int64)
    counts = np.where(usable[:, None], series.counts, 0)
    return _Cells(
        bounds=bounds,
        start=series.edges_ns[bounds[:-1]],
        end=series.edges_ns[bounds[1:]],
        counts=np.add.reduceat(counts, bounds[:-1], axis=0),
        baseline=baseline,
    )


def _rank(counts: npt.NDArray[np.int64]) -> Floats:
    """The mid-rank of a call by its bin, 0 to 1."""
    pooled = counts.sum(axis=0).astype(np.float64)
    return np.asarray((np.cumsum(pooled) - pooled / 2) / pooled.sum(), dtype=np.float64)


def _slowest(counts: npt.NDArray[np.int64], share: float) -> Floats:
    """Whether a call is in the slowest share of all, by its bin; in part, where the share ends in that bin."""
    pooled = counts.sum(axis=0).astype(np.float64)
    cumulative = np.cumsum(pooled)
    return np.asarray(np.clip((cumulative - (1 - share) * cumulative[-1]) / np.maximum(pooled, 1), 0, 1))


def _is_startup(cells: _Cells, found: tuple[int, int, float]) -> bool:
    """Whether a stretch is a slow start: it ends within the first third, and nothing normal preceded it."""
    a, b, _ = found
    live = cells.counts.sum(axis=1)
    filled = live > 0
    if 3 * np.count_nonzero(filled[:b]) > np.count_nonzero(filled):
        return False
    if np.count_nonzero(filled[:a]) < MIN_CELLS:
        return True
    sums = cells.counts @ _rank(cells.counts)
    earlier, within, after = (sums[p].sum() / max(live[p].sum(), 1) for p in (slice(a), slice(a, b), slice(b, None)))
    return bool(earlier > (within + after) / 2)


def _strongest(
    series: Series, usable: npt.NDArray[np.bool_], params: ShiftParams
) -> tuple[int, int, float, bool] | None:
    """(first bucket, bucket after the last, z, whether it is a start-up) of the strongest shift that meets the params."""
    if usable.any() and (calls := int(series.counts[usable].sum())) >= 2 * params.min_calls:
        asked = [(MIN_CELL_CALLS, (None, *BODY)), *((MIN_CELL_CALLS / share, (share,)) for share in TAIL)]
        for least, shares in asked:
            cells = _cells(series, usable, least)
            live = cells.counts.sum(axis=1).astype(np.float64)
            if calls < 2 * MIN_CELLS * least or np.count_nonzero(live) < 2 * MIN_CELLS:
                continue
            scores = [_rank(cells.counts) if share is None else _slowest(cells.counts, share) for share in shares]
            stretches = _stretches(cells, live, params)
            candidates = [c for score in scores if (c := _scan(cells, stretches, score, params)) is not None]
            if candidates:
                best = max(candidates, key=lambda c: c[2])
                a, b = int(cells.bounds[best[0]]), int(cells.bounds[best[1]])
                return a, b, best[2], series.startup and _is_startup(cells, best)
    return None


def _scan(cells: _Cells, stretches: _Stretches, score: Floats, params: ShiftParams) -> tuple[int, int, float] | None:
    sums, live, inside = cells.counts @ score, stretches.live, stretches.calls
    total, mean = live.sum(), sums.sum() / live.sum()
    variance = float((cells.counts.sum(axis=0) @ (score - mean) ** 2) / total)
    if variance <= 0:
        return None
    excess = _ranges(sums - live * mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = excess / np.sqrt(variance * inside * (total - inside) / max(total - 1, 1))
    z[~stretches.allowed | ~np.isfinite(z)] = -np.inf
    first, last = np.unravel_index(int(np.argmax(z)), z.shape)
    a, b = int(first), int(last) + 1
    least = NormalDist().inv_cdf(1 - params.max_chance / (QUESTIONS * max(stretches.tried, 1)))
    if z[first, last] < least:
        return None
    strength = _strength(sums, live, (a, b), variance, params)
    if strength is None or strength[0] < least or strength[1] < least * params.rest_ratio:
        return None
    return a, b, strength[0]


def _ranges(values: Floats) -> Floats:
    """Sums over cells a..b inclusive, as a matrix; only its upper triangle means anything."""
    cumulative = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(cumulative[None, 1:] - cumulative[:-1, None], dtype=np.float64)


def _stretches(cells: _Cells, live: Floats, params: ShiftParams) -> _Stretches:
    filled = (live > 0).astype(np.float64)
    width, calls = _ranges(filled), _ranges(live)
    allowed = np.triu(np.ones(width.shape, dtype=bool))
    allowed &= (width >= MIN_CELLS) & (filled.sum() - width >= MIN_CELLS)
    allowed &= (calls >= params.min_calls) & (live.sum() - calls >= params.min_calls)
    allowed &= (cells.end[None, :] - cells.start[:, None]) >= params.min_duration_ns
    allowed[: cells.baseline] = False
    # A stretch begins and ends with calls: empty cells at its ends would stretch its times.
    allowed &= (filled > 0)[:, None] & (filled > 0)[None, :]
    return _Stretches(live, calls, allowed, int(np.count_nonzero(allowed)))


def _strength(
    sums: Floats, live: Floats, stretch: tuple[int, int], variance: float, params: ShiftParams
) -> tuple[float, float] | None:
    """The stretch's z after overdispersion, with and without its strongest cell; None where its cells do not stand out."""
    within = np.zeros(len(live), dtype=bool)
    within[slice(*stretch)] = True
    means = np.divide(sums, live, out=np.zeros_like(sums), where=live > 0)
    inner, outer = np.flatnonzero(within & (live > 0)), np.flatnonzero(~within & (live > 0))
    centre = float(np.median(means[outer]))
    spread = 1.4826 * float(np.median(np.abs(means[outer] - centre)))
    spread = max(spread, float(np.sqrt(variance / np.median(live[outer]))) / 2)
    separation = (float(np.median(means[inner])) - centre) / spread
    above = float(np.mean(means[inner] > centre + spread))
    if separation < params.min_separation or above < MOST:
        return None
    if _stretches_apart(sums, live, inner, outer) < params.min_separation + 2:
        return None
    inflation = max(_overdispersion(means, live, inner, variance), _overdispersion(means, live, outer, variance))
    scale = float(np.sqrt(inflation * variance))
    rest = np.delete(inner, int(np.argmax(sums[inner] - live[inner] * means[outer].mean())))
    return _z(sums, live, inner, outer) / scale, _z(sums, live, rest, outer) / scale


def _stretches_apart(sums: Floats, live: Floats, inner: npt.NDArray[np.int64], outer: npt.NDArray[np.int64]) -> float:
    """How many robust deviations of equally long stretches of the other cells the stretch lies above them.

    A level that wanders keeps its excursions for several cells, which the spread of single cells does not show. Infinite where fewer than
    `BLOCKS` such stretches fit: then there is nothing to learn it from.
    """
    width = len(inner)
    if len(outer) < BLOCKS * width:
        return float("inf")
    n, total = (np.convolve(values[outer], np.ones(width), mode="valid") for values in (live, sums))
    blocks = total / n
    centre = float(np.median(blocks))
    spread = 1.4826 * float(np.median(np.abs(blocks - centre)))
    height = float(sums[inner].sum() / live[inner].sum()) - centre
    return height / spread if spread > 0 else float("inf")


def _z(sums: Floats, live: Floats, inner: npt.NDArray[np.int64], outer: npt.NDArray[np.int64]) -> float:
    """Difference of two groups' mean scores over its standard error for unit variance."""
    n_in, n_out = live[inner].sum(), live[outer].sum()
    gap = sums[inner].sum() / n_in - sums[outer].sum() / n_out
    return float(gap / np.sqrt(1 / n_in + 1 / n_out))


def _overdispersion(means: Floats, live: Floats, chosen: npt.NDArray[np.int64], variance: float) -> float:
    """How much more the cells' means vary than calls drawn at random would make them; at least 1."""
    if len(chosen) < 2:
        return 1.0
    n = live[chosen]
    centre = float((means[chosen] @ n) / n.sum())
    observed = float((n @ (means[chosen] - centre) ** 2) / (len(chosen) - 1))
    return max(1.0, observed / variance)


def _describe(
    series: Series, normal: npt.NDArray[np.bool_], found: tuple[int, int, float], params: ShiftParams
) -> Shift | None:
    """The shift in nanoseconds, by the first quantile that moved; None where none did."""
    a, b, z = found
    before, during = series.counts[normal].sum(axis=0), series.counts[a:b].sum(axis=0)

    def at(q: float) -> tuple[float, float]:
        return quantile_ns(before, series.bins, q), quantile_ns(during, series.bins, q)

    def quantile(q: float) -> Quantile:
        was, now = at(q)
        return Quantile(q, was, now, params.is_slower(q, was, now))

    calls = min(int(before.sum()), int(during.sum()))
    # The median where it moved: it speaks of most calls.
    moved = [m for q in (0.5, *TAIL_QUANTILES) if calls >= least_calls(q) and (m := quantile(q)).moved]
    if not moved:
        return None
    q = moved[0].q
    slow_before, slow_during = (0.0, 0.0) if q == 0.5 else at(1 - TAIL_WIDTH * (1 - q))
    return Shift(
        start_unix_nano=int(series.edges_ns[a]),
        end_unix_nano=int(series.edges_ns[b]),
        ended=bool(normal[b:].any()),
        quantile=q,
        before_ns=moved[0].before_ns,
        during_ns=moved[0].during_ns,
        calls_before=int(before.sum()),
        calls_during=int(during.sum()),
        z=z,
        slow_before_ns=slow_before,
        slow_during_ns=slow_during,
        quantiles=tuple(quantile(q) for q in TOLD_QUANTILES if calls >= least_calls(q)),
    )


def least_calls(q: float) -> float:
    """So many calls a quantile above the 90th needs on either side: `MIN_CELL_CALLS` beyond it. Lower ones need `min_calls` only."""
    return MIN_CELL_CALLS / (1 - q) if q > 0.9 else 0

"""When did a series of durations become slower: a scan over every stretch of time, by ranks, with the noise that the series itself shows.

Pure NumPy over histograms, no clock and no table. A series arrives as counts per time bucket and duration bin. Sparse buckets are joined to
*cells* of at least `MIN_CELL_CALLS` calls. For every stretch of cells three questions are asked against all other cells: are
its calls slower (mean rank, which moves with the median), and do more of them exceed the slowest quarter, or the slowest
tenth, of all calls (which moves when only some calls are hit)? The stretch with the strongest answer is a shift if

- the answer is strong against chance, after allowing for the series' own bucket-to-bucket spread (overdispersion);
- it stays strong without its strongest cell, so that a blip is none;
- most of its cells, not a few, lie above what the other cells do;
- the median or the 90th percentile rose by the ratio and the amount that a person would care about.

The scan has no fixed baseline, so a shift may begin at any time, may have ended, and may be longer than what was normal.
"""

from dataclasses import dataclass
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

QUESTIONS: Final = 3
"""How many scores each stretch is asked about."""

MAX_SHIFTS: Final = 3
"""Separate shifts that one series may report."""


@dataclass(frozen=True, slots=True)
class ShiftParams:
    """What counts as a shift.

    Attributes:
        min_ratio: The median must rise by this factor; 1.5 is where people start to notice and ordinary variation over a day has ended.
        min_tail_ratio: The same for the 90th percentile, which is noisier.
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
class Shift:
    """A stretch in which a series was slower.

    Attributes:
        start_unix_nano: Its beginning, to a bucket.
        end_unix_nano: Its end, to a bucket.
        ended: Whether normal calls followed.
        quantile: Which quantile tells it best: 0.5, or 0.9 where only some calls are hit.
        before_ns: That quantile outside of any shift.
        during_ns: That quantile inside.
        calls_before: Calls outside of any shift.
        calls_during: Calls inside.
        z: Strength against chance.
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


@dataclass(frozen=True, slots=True)
class _Cells:
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    baseline: int


def bin_number(duration_ns: float) -> int:
    """The log bin of a duration; durations up to 1 ns share bin 0."""
    return int(np.floor(np.log2(max(duration_ns, 1)) * BINS_PER_OCTAVE))


def find_shifts(series: Series, params: ShiftParams) -> list[Shift]:
    """Up to `MAX_SHIFTS` stretches in which the series was slower, strongest first."""
    cells = _cells(series)
    usable = np.ones(len(cells.start), dtype=bool)
    found: list[tuple[int, int, float]] = []
    for _ in range(MAX_SHIFTS + 1):
        best = _strongest(cells, usable, params)
        if best is None or len(found) == MAX_SHIFTS:
            break
        if series.startup and _is_startup(cells, usable, best):
            usable[: best[1]] = False
            continue
        found.append(best)
        usable[best[0] : best[1]] = False
    return [shift for one in found if (shift := _describe(cells, usable, one, series.bins, params)) is not None]


def quantile_ns(counts: npt.NDArray[np.int64], bins: npt.NDArray[np.int64], q: float) -> float:
    """The q-quantile of binned durations in ns, interpolated geometrically inside its bin; 0 where there are none."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    cumulative = np.cumsum(counts)
    at = int(np.searchsorted(cumulative, q * total, side="left"))
    inside = (q * total - (cumulative[at] - counts[at])) / max(int(counts[at]), 1)
    return float(2 ** ((int(bins[at]) + float(inside)) / BINS_PER_OCTAVE))


def _cells(series: Series) -> _Cells:
    """Joins neighbouring buckets until each cell has enough calls; a poor rest joins the last cell."""
    groups: list[list[int]] = []
    baseline = 0
    calls = 0
    for bucket, n in enumerate(series.counts.sum(axis=1)):
        if not groups or calls >= MIN_CELL_CALLS or bucket == series.baseline:
            groups.append([])
            calls = 0
            baseline += bucket < series.baseline
        groups[-1].append(bucket)
        calls += int(n)
    if len(groups) > baseline + 1 and calls < MIN_CELL_CALLS:
        groups[-2].extend(groups.pop())
    merged = [series.counts[g[0] : g[-1] + 1].sum(axis=0) for g in groups]
    return _Cells(
        start=np.array([series.edges_ns[g[0]] for g in groups], dtype=np.int64),
        end=np.array([series.edges_ns[g[-1] + 1] for g in groups], dtype=np.int64),
        counts=np.array(merged, dtype=np.int64).reshape(len(groups), series.counts.shape[1]),
        baseline=baseline,
    )


def _scores(counts: npt.NDArray[np.int64]) -> list[Floats]:
    """What is averaged over calls, per bin: the mid-rank (0 to 1), and whether a call is in the slowest quarter or tenth."""
    pooled = counts.sum(axis=0).astype(np.float64)
    cumulative = np.cumsum(pooled)
    total = cumulative[-1]
    rank = (cumulative - pooled / 2) / total
    above = [np.clip((cumulative - share * total) / np.maximum(pooled, 1), 0, 1) for share in (0.75, 0.9)]
    return [rank, *above]


def _is_startup(cells: _Cells, usable: npt.NDArray[np.bool_], found: tuple[int, int, float]) -> bool:
    """Whether a stretch is a slow start: it ends within the first third, and nothing normal preceded it."""
    a, b, _ = found
    live = np.where(usable, cells.counts.sum(axis=1), 0)
    filled = live > 0
    if 3 * np.count_nonzero(filled[:b]) > np.count_nonzero(filled):
        return False
    if np.count_nonzero(filled[:a]) < MIN_CELLS:
        return True
    sums = np.where(usable, cells.counts @ _scores(cells.counts)[0], 0.0)
    earlier, within, after = (sums[p].sum() / max(live[p].sum(), 1) for p in (slice(a), slice(a, b), slice(b, None)))
    return bool(earlier > (within + after) / 2)


def _strongest(cells: _Cells, usable: npt.NDArray[np.bool_], params: ShiftParams) -> tuple[int, int, float] | None:
    """(first cell, cell after the last, z) of the strongest shift among usable cells that meets the params."""
    live = np.where(usable, cells.counts.sum(axis=1), 0).astype(np.float64)
    if np.count_nonzero(live) < 2 * MIN_CELLS or live.sum() < 2 * params.min_calls:
        return None
    counts = np.where(usable[:, None], cells.counts, 0)
    best: tuple[int, int, float] | None = None
    for score in _scores(counts):
        candidate = _scan(cells, counts, live, score, params)
        if candidate is not None and (best is None or candidate[2] > best[2]):
            best = candidate
    return best


def _scan(
    cells: _Cells,
    counts: npt.NDArray[np.int64],
    live: Floats,
    score: Floats,
    params: ShiftParams,
) -> tuple[int, int, float] | None:
    sums = counts @ score
    total, mean = live.sum(), sums.sum() / live.sum()
    variance = float((counts.sum(axis=0) @ (score - mean) ** 2) / total)
    if variance <= 0:
        return None
    allowed = _allowed(cells, live, params)
    inside = _ranges(live)
    excess = _ranges(sums - live * mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = excess / np.sqrt(variance * inside * (total - inside) / max(total - 1, 1))
    z[~allowed | ~np.isfinite(z)] = -np.inf
    first, last = np.unravel_index(int(np.argmax(z)), z.shape)
    a, b = int(first), int(last) + 1
    least = NormalDist().inv_cdf(1 - params.max_chance / (QUESTIONS * max(int(allowed.sum()), 1)))
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


def _allowed(cells: _Cells, live: Floats, params: ShiftParams) -> npt.NDArray[np.bool_]:
    filled = (live > 0).astype(np.float64)
    width, calls = _ranges(filled), _ranges(live)
    allowed = np.triu(np.ones(width.shape, dtype=bool))
    allowed &= (width >= MIN_CELLS) & (filled.sum() - width >= MIN_CELLS)
    allowed &= (calls >= params.min_calls) & (live.sum() - calls >= params.min_calls)
    allowed &= (cells.end[None, :] - cells.start[:, None]) >= params.min_duration_ns
    allowed[: cells.baseline] = False
    # A stretch begins and ends with calls: empty cells at its ends would stretch its times.
    return np.asarray(allowed & (filled > 0)[:, None] & (filled > 0)[None, :], dtype=bool)


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
    cells: _Cells,
    normal: npt.NDArray[np.bool_],
    found: tuple[int, int, float],
    bins: npt.NDArray[np.int64],
    params: ShiftParams,
) -> Shift | None:
    """The shift in nanoseconds, by the quantile that rose most; None where neither rose enough."""
    a, b, z = found
    before, during = cells.counts[normal].sum(axis=0), cells.counts[a:b].sum(axis=0)
    options: list[tuple[float, float, float, float]] = []
    for q, least in ((0.5, params.min_ratio), (0.9, params.min_tail_ratio)):
        was, now = quantile_ns(before, bins, q), quantile_ns(during, bins, q)
        if was > 0 and now / was >= least and now - was >= params.min_increase_ns:
            options.append((q, was, now, now / was))
    if not options:
        return None
    # The median where it moved: it speaks of most calls.
    q, was, now, _ = options[0]
    return Shift(
        start_unix_nano=int(cells.start[a]),
        end_unix_nano=int(cells.end[b - 1]),
        ended=bool(normal[b:].any()),
        quantile=q,
        before_ns=was,
        during_ns=now,
        calls_before=int(before.sum()),
        calls_during=int(during.sum()),
        z=z,
    )

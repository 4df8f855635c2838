"""False alarms: days on which nothing happened, with a diurnal load, heavy tails and few calls."""

import math

import numpy as np
import pytest

from collector.forensics.shifts import ShiftParams, find_shifts
from tests.collector.forensics.test_latency import series

DAY_NS = 86_400 * 10**9


def clean_day(seed):
    """(start, duration) of the calls of one edge on one day.

    60 to 40,000 calls, three to ten times more at noon than at night; log-normal times with a Pareto tail, up to a quarter slower at noon, a level
    that wanders by a tenth, and pauses of some seconds that hit all calls.
    """
    rng = np.random.default_rng(seed)
    calls = int(math.exp(rng.uniform(math.log(60), math.log(40_000))))
    swing = rng.uniform(0.5, 0.82)
    times = rng.uniform(0, 1, 4 * calls)
    load = (1 - swing * np.cos(2 * np.pi * times)) / (1 + swing)
    kept = np.sort(times[rng.uniform(size=len(times)) < load][:calls])
    load = (1 - swing * np.cos(2 * np.pi * kept)) / (1 + swing)
    median = math.exp(rng.uniform(math.log(2), math.log(200))) * 1e6
    drift = np.interp(kept, np.linspace(0, 1, 97), np.cumsum(rng.normal(0, 0.02, 97)))
    durations = median * np.exp(rng.uniform(0.2, 1.2) * rng.normal(size=len(kept)) + drift) * (1 + 0.25 * load)
    tail = rng.uniform(size=len(kept)) < rng.uniform(0, 0.03)
    durations[tail] *= 1 + rng.pareto(1.5, int(tail.sum()))
    for pause in rng.uniform(0, 1, rng.poisson(3)):
        durations[(kept >= pause) & (kept < pause + 5 / 86_400)] += 1e9
    return kept * DAY_NS, durations


def alarms(days):
    return sum(len(find_shifts(series(*clean_day(seed), window_ns=DAY_NS), ShiftParams())) for seed in days)


@pytest.mark.slow
def test_clean_days_are_quiet():
    """What a thousand of them give is in docs/latency.md."""
    assert alarms(range(100)) <= 2

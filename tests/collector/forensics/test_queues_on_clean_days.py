"""False alarms of queues: days on which nothing happened, of consumers that wait for messages, fetch them, or are kept busy."""

import math
from typing import Literal

import numpy as np
import pytest

from collector.forensics.shifts import ShiftParams, find_shifts
from tests.collector.forensics.test_latency import series

DAY_S = 86_400
Consumer = Literal["waiting", "fetching", "busy"]


def clean_day(seed: int, consumer: Consumer):
    """(sent at, waited beyond the quickest) of the messages of one queue on one day, in ns.

    60 to 20,000 messages, up to ten times more at noon than at night. A waiting consumer's messages take what the broker takes; a fetching one comes
    every 1 to 300 s; a busy one works at one message at a time, for a tenth to three quarters of noon.
    """
    rng = np.random.default_rng(seed)
    messages = int(math.exp(rng.uniform(math.log(60), math.log(20_000))))
    swing = rng.uniform(0.2, 0.82)
    times = rng.uniform(0, 1, 4 * messages)
    load = (1 - swing * np.cos(2 * np.pi * times)) / (1 + swing)
    sent = DAY_S * np.sort(times[rng.uniform(size=len(times)) < load][:messages])
    noise = rng.normal(size=len(sent))
    if consumer == "waiting":
        waits = 1e-3 * rng.uniform(1, 50) * np.exp(rng.uniform(0.2, 1) * noise)
    elif consumer == "fetching":
        every = rng.choice([1, 5, 30, 60, 300])
        waits = every - sent % every + 2e-3 * np.exp(0.3 * noise)
    else:
        per_second = len(sent) / DAY_S * (1 + swing)
        works = rng.exponential(rng.uniform(0.1, 0.75) / per_second, len(sent))
        waits = _in_line(sent, works) + 2e-3 * np.exp(0.3 * noise)
    return 1e9 * sent, 1e9 * (waits - waits.min())


def _in_line(sent, works):
    """How long each waits until those before it are done."""
    free, waits = 0.0, np.empty(len(sent))
    for n, (at, work) in enumerate(zip(sent, works, strict=True)):
        begun = max(at, free)
        waits[n], free = begun - at, begun + work
    return waits


def alarms(consumer: Consumer, days):
    window_ns = DAY_S * 10**9
    return sum(len(find_shifts(series(*clean_day(day, consumer), window_ns=window_ns), ShiftParams())) for day in days)


@pytest.mark.slow
@pytest.mark.parametrize(("consumer", "most"), [("waiting", 0), ("fetching", 0), ("busy", 25)])
def test_clean_days_of_queues_are_quiet(consumer: Consumer, most: int):
    """What three hundred of each give is in docs/latency.md; a busy consumer's messages do wait longer when there are more of them."""
    assert alarms(consumer, range(100)) <= most

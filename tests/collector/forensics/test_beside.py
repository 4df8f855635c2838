"""What else changed beside a slower edge, and what came first."""

import numpy as np
import pytest

from collector.forensics.beside import Rates, beside
from collector.forensics.shifts import Shift
from tests.collector.forensics.factories import MS, S

BUCKETS = 100


def told(*, calls=(20, 20), errors=(0.0, 0.0), load_from=50, errors_from=50, shift=(50, 80)):
    bucket = np.arange(BUCKETS)
    rng = np.random.default_rng(1)

    def level(values, begin):
        return np.where((bucket >= begin) & (bucket < shift[1]), values[1], values[0])

    made = rng.poisson(level(calls, load_from))
    failed = rng.binomial(made, level(errors, errors_from))
    edges = np.arange(BUCKETS + 1) * S
    slower = Shift(shift[0] * S, shift[1] * S, True, 0.5, 10 * MS, 90 * MS, 1_000, 600, 9.0)
    return beside(Rates(edges, made, failed), slower)


def test_nothing_else_changed():
    assert told().sentence == "; its rate and its errors stayed as they were"
    assert told(errors=(0.05, 0.05)).sentence == "; its rate and its errors stayed as they were"


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"calls": (20, 60), "load_from": 40}, "load"),
        ({"calls": (20, 60), "load_from": 50}, "at once"),
        ({"calls": (20, 60), "load_from": 60}, "time"),
        ({"errors": (0.01, 0.4), "errors_from": 40}, "errors"),
        ({"errors": (0.01, 0.4), "errors_from": 60}, "time"),
        ({"calls": (20, 60), "load_from": 35, "errors": (0, 0.5), "errors_from": 45}, "load"),
    ],
)
def test_what_came_first(changes, first):
    found = told(**changes)
    assert found.first == first
    assert ("first" in found.sentence) is (first != "at once")


def test_the_numbers_are_said():
    sentence = told(calls=(20, 60), load_from=40, errors=(0.0, 0.3)).sentence
    assert "its requests went from 2" in sentence
    assert "its errors from 0.0% to " in sentence


def test_no_calls_at_all():
    nothing = Rates(np.arange(11) * S, np.zeros(10, dtype=np.int64), np.zeros(10, dtype=np.int64))
    assert beside(nothing, Shift(0, 5 * S, True, 0.5, 1, 2, 0, 0, 1.0)).first == ""

"""What else changed beside a slower edge: its request rate and its errors, and which of the three came first. Pure."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from collector.forensics.shifts import Shift

MIN_RATIO: Final = 1.5
"""A request rate that changed by less is ordinary."""

MIN_ERRORS: Final = 0.02
"""Errors rose if their part of the calls rose by this, and beyond `DOUBT`."""

DOUBT: Final = 3.0
EARLIER_BUCKETS: Final = 2
"""Came first: by more than this, because buckets are coarse and a mean needs some of them."""

LOOK_BACK: Final = 24
"""How many buckets before the shift another change may have begun."""

_S: Final = 1e9

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rates:
    """An edge's calls and errors by bucket; `edges_ns` has one more."""

    edges_ns: Numbers
    calls: Numbers
    errors: Numbers


@dataclass(frozen=True, slots=True)
class Beside:
    """What an edge did before and during a shift.

    Attributes:
        rate_before: Calls a second.
        rate_during: The same.
        errors_before: Part of the calls that failed.
        errors_during: The same.
        first: What changed first: load, errors or time; or "at once"; empty where neither load nor errors rose.
    """

    rate_before: float
    rate_during: float
    errors_before: float
    errors_during: float
    first: str

    @property
    def sentence(self) -> str:
        """For the end of an explanation; empty where there is nothing to say."""
        told = []
        if _changed(self.rate_before, self.rate_during):
            told.append(f"its requests went from {self.rate_before:.3g} to {self.rate_during:.3g} a second")
        if self.errors_during - self.errors_before >= MIN_ERRORS:
            told.append(f"its errors from {self.errors_before:.1%} to {self.errors_during:.1%}")
        if not told:
            return "; its rate and its errors stayed as they were"
        order = {"at once": ": all at once", "": ""}.get(self.first, f": the {self.first} came first")
        return f"; meanwhile {' and '.join(told)}{order}"


def beside(rates: Rates, shift: Shift) -> Beside:
    """The rates outside and inside of a shift."""
    middle = (rates.edges_ns[:-1] + rates.edges_ns[1:]) / 2
    inside = (middle >= shift.start_unix_nano) & (middle < shift.end_unix_nano)
    seconds = np.diff(rates.edges_ns) / _S
    calls, errors = rates.calls.astype(np.float64), rates.errors.astype(np.float64)
    before, during = _ratio(calls[~inside], seconds[~inside]), _ratio(calls[inside], seconds[inside])
    failing, failed = _ratio(errors[~inside], calls[~inside]), _ratio(errors[inside], calls[inside])
    onsets = {}
    if during > before and _changed(before, during):  # fewer requests are what slowness leads to
        onsets["load"] = _onset(calls / seconds, before, during, inside)
    if _more_errors(failing, failed, float(calls[inside].sum()), float(calls[~inside].sum())):
        onsets["errors"] = _onset(errors / np.maximum(calls, 1), failing, failed, inside)
    else:
        failed = min(failed, failing)
    return Beside(before, during, failing, failed, _first(onsets))


def _changed(before: float, during: float) -> bool:
    return before > 0 and during > 0 and max(during / before, before / during) >= MIN_RATIO


def _more_errors(before: float, during: float, calls: float, calls_before: float) -> bool:
    share = (before * calls_before + during * calls) / max(calls + calls_before, 1)
    spread = (share * (1 - share) * (1 / max(calls, 1) + 1 / max(calls_before, 1))) ** 0.5
    return bool(during - before >= max(MIN_ERRORS, DOUBT * spread))


def _onset(values: npt.NDArray[np.float64], before: float, during: float, inside: npt.NDArray[np.bool_]) -> int:
    """Buckets from the shift's first to the first of three in a row of which most are nearer to the new value than to the old."""
    start = int(np.argmax(inside))
    nearer = np.abs(values - during) < np.abs(values - before)
    for bucket in range(max(start - LOOK_BACK, 0), len(values)):
        if nearer[bucket] and nearer[bucket : bucket + 3].sum() >= 2:
            return bucket - start
    return 0


def _first(onsets: dict[str, int]) -> str:
    if not onsets:
        return ""
    what, earliest = min(onsets.items(), key=lambda item: item[1])
    if earliest < -EARLIER_BUCKETS:
        return what
    return "time" if earliest > EARLIER_BUCKETS else "at once"


def _ratio(values: npt.NDArray[np.float64], of: npt.NDArray[np.float64]) -> float:
    total = float(of.sum())
    return float(values.sum()) / total if total > 0 else 0.0

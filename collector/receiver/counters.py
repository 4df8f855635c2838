"""What the receiver and the writer count, for /metrics and /readyz: totals since the start, from any thread.

    counters.accepted(protocol, requests, spans)    acknowledged after their commit
    counters.refused(reason, requests, spans)       told to the sender; `spans` where they were counted
    counters.committed(seconds, rows)               one transaction, and its rows by table
    counters.failed(reason)                         a transaction that was rolled back; the next commit clears it

Each call takes one lock for a few additions: call it once a group of requests, not once a span. Labels are closed sets: no
sender can make a new time series.
"""

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

Protocol = Literal["grpc", "http/protobuf", "http/json"]
"""The values of OTEL_EXPORTER_OTLP_PROTOCOL."""

Reason = Literal[
    "malformed",
    "too_large",
    "invalid_span",
    "unsupported",
    "too_slow",
    "unauthenticated",
    "forbidden",
    "misdirected",
    "queue_full",
    "store_failed",
    "timeout",
    "shutting_down",
    "other",
]
"""Why something was not stored; docs/collector.md says of each what it means and what to do."""

PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)

COMMIT_BOUNDS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histogram's buckets, inclusive. An fdatasync alone takes 1 to 10 ms."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How many requests, and how many spans in them."""

    requests: int = 0
    spans: int = 0

    def plus(self, requests: int, spans: int) -> "Tally":
        """The sum."""
        return Tally(self.requests + requests, self.spans + spans)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations by bucket: `counts[i]` fell at or below `COMMIT_BOUNDS_SECONDS[i]`, the last one above them all."""

    counts: tuple[int, ...] = (0,) * (len(COMMIT_BOUNDS_SECONDS) + 1)
    sum_seconds: float = 0.0

    @property
    def count(self) -> int:
        """How many were observed."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Counts:
    """All counters at one moment, consistent with each other.

    Attributes:
        accepted: Committed requests and spans by protocol.
        refused: By reason; every reason is there.
        commits: How long the committed transactions took, in seconds.
        rows: Rows committed by table.
        failures: Transactions that were rolled back.
        failing: Why the newest transaction failed; None once one has succeeded.
        newest_received_unix_nano: When the newest committed span arrived; None if none has.
    """

    accepted: Mapping[Protocol, Tally]
    refused: Mapping[Reason, Tally]
    commits: Histogram
    rows: Mapping[str, int]
    failures: int
    failing: str | None
    newest_received_unix_nano: int | None


@dataclass(slots=True)
class _State:
    accepted: dict[Protocol, Tally] = field(default_factory=lambda: dict.fromkeys(PROTOCOLS, Tally()))
    refused: dict[Reason, Tally] = field(default_factory=lambda: dict.fromkeys(REASONS, Tally()))
    buckets: list[int] = field(default_factory=lambda: [0] * (len(COMMIT_BOUNDS_SECONDS) + 1))
    sum_seconds: float = 0.0
    rows: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    failing: str | None = None
    newest_received_unix_nano: int | None = None


class Counters:
    """Counts from any thread; `clock` is ns since the Unix epoch."""

    def __init__(
        self, *, newest_received_unix_nano: int | None = None, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._state = _State(newest_received_unix_nano=newest_received_unix_nano)

    def accepted(self, protocol: Protocol, requests: int, spans: int) -> None:
        """Requests that were acknowledged, and the spans of them that were stored."""
        with self._lock:
            self._state.accepted[protocol] = self._state.accepted[protocol].plus(requests, spans)

    def refused(self, reason: Reason, requests: int, spans: int = 0) -> None:
        """Requests that were refused whole; or, with `requests` 0, spans that were refused out of accepted ones."""
        with self._lock:
            self._state.refused[reason] = self._state.refused[reason].plus(requests, spans)

    def committed(self, seconds: float, rows: Mapping[str, int], *, received_unix_nano: int | None = None) -> None:
        """One transaction, its rows by table, and when its newest span arrived (by default: now)."""
        with self._lock:
            state = self._state
            state.buckets[bisect_left(COMMIT_BOUNDS_SECONDS, seconds)] += 1
            state.sum_seconds += seconds
            state.rows.update(rows)
            state.failing = None
            if rows.get("spans"):
                newest = self._clock() if received_unix_nano is None else received_unix_nano
                state.newest_received_unix_nano = max(state.newest_received_unix_nano or 0, newest)

    def failed(self, reason: str) -> None:
        """A transaction that was rolled back because of the store, not because of what a sender sent."""
        with self._lock:
            self._state.failures += 1
            self._state.failing = reason

    def read(self) -> Counts:
        """All of them now."""
        with self._lock:
            state = self._state
            return Counts(
                accepted=dict(state.accepted),
                refused=dict(state.refused),
                commits=Histogram(tuple(state.buckets), state.sum_seconds),
                rows=dict(state.rows),
                failures=state.failures,
                failing=state.failing,
                newest_received_unix_nano=state.newest_received_unix_nano,
            )

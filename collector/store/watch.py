"""One query under watch: it is interrupted when its time is over, when the process grows too large, or when somebody asks.

DuckDB looks at interrupts between its steps, not inside one call of a function, and counts towards its memory limit what its
operators keep, not what a function builds. So what the process has is looked at as well; and where a query neither ends nor heeds
its interrupts, whoever runs the process is told, and can only start it anew: a thread inside a library cannot be ended.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import duckdb

from collector.errors import QueryError
from collector.store.memory import resident_bytes

_AGAIN_SECONDS: Final = 0.05
"""Between two looks at the process, and between two interrupts."""

DEAF_SECONDS: Final = 30.0
"""How long a query may go on after its interrupt: one step of what is answered takes some seconds at most."""

DEAF_AND_LARGE_SECONDS: Final = 1.0
"""The same while the process is too large: a function builds a gigabyte or two a second."""

Reason = Literal["time", "memory", "request"]


class QueryTimeoutError(QueryError):
    """The query ran into its time limit."""


class QueryInterruptedError(QueryError):
    """Somebody interrupted the query."""


class QueryMemoryError(QueryError):
    """The process grew too large while the query ran."""


class Interrupt:
    """A switch that ends one query from another thread, whether it runs already or not."""

    __slots__ = ("_requested", "_wake")

    def __init__(self) -> None:
        self._requested = False
        self._wake = threading.Event()

    def __call__(self) -> None:
        """End the query: it raises QueryInterruptedError. Nothing happens if it is over."""
        self._requested = True
        self._wake.set()

    @property
    def requested(self) -> bool:
        """Whether somebody asked for it."""
        return self._requested

    def release(self) -> None:
        """Wake who waits: the query is over."""
        self._wake.set()

    def wait(self, seconds: float | None) -> bool:
        """Wait for a request or a release; False when the time ran out first."""
        return self._wake.wait(seconds)


@dataclass(frozen=True, slots=True)
class Bounds:
    """When one query is ended; None means never.

    Attributes:
        seconds: From its start to its last row.
        process_bytes: What the process may have of the machine's memory while it runs.
        on_deaf: Called once, from another thread, with a sentence for the log where the query does not heed its interrupt.
    """

    seconds: float | None = None
    process_bytes: int | None = None
    on_deaf: Callable[[str], None] | None = None


def is_deaf(seconds: float, *, too_large: bool) -> bool:
    """Whether a query that was interrupted so many seconds ago will not end by itself in time."""
    return seconds > (DEAF_AND_LARGE_SECONDS if too_large else DEAF_SECONDS)


@contextmanager
def watched(cursor: duckdb.DuckDBPyConnection, bounds: Bounds, interrupt: Interrupt) -> Iterator[None]:
    """Interrupt what runs on the cursor at its bounds or when somebody asks, and tell which it was.

    Raises QueryTimeoutError, QueryMemoryError, QueryInterruptedError in place of the error that the interrupt caused.
    """
    if interrupt.requested:
        raise QueryInterruptedError("the query was interrupted")
    watcher = _Watcher(cursor, bounds, interrupt)
    watcher.thread.start()
    try:
        yield
    except (duckdb.Error, QueryError) as e:
        if watcher.reason is not None:
            raise watcher.error() from e
        raise
    finally:
        watcher.over.set()
        interrupt.release()
        watcher.thread.join()  # so that the cursor is closed only when nobody interrupts it any more


class _Watcher:
    """The thread beside one query."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, bounds: Bounds, interrupt: Interrupt) -> None:
        self._cursor = cursor
        self._bounds = bounds
        self._interrupt = interrupt
        self.over = threading.Event()
        self.reason: Reason | None = None
        self.thread = threading.Thread(target=self._watch, name="query-watch", daemon=True)

    def error(self) -> QueryError:
        """What the query raises."""
        match self.reason:
            case "time":
                limit = f"{self._bounds.seconds:g} s"
                return QueryTimeoutError(f"the query took longer than {limit}; narrow its time range or add a LIMIT")
            case "memory":
                return QueryMemoryError(
                    f"the process grew beyond {self._bounds.process_bytes:,} bytes while the query ran; ask about less time, "
                    "or collect fewer values into one list or text"
                )
            case _:
                return QueryInterruptedError("the query was interrupted")

    def _watch(self) -> None:
        self.reason = self._first()
        began = time.monotonic()
        told = False
        # One interrupt may come between two steps of the query and be lost: so again, until it is over.
        while not self.over.is_set():
            self._cursor.interrupt()
            if (on_deaf := self._bounds.on_deaf) and not told:
                seconds = time.monotonic() - began
                if is_deaf(seconds, too_large=self._too_large()):
                    told = True
                    on_deaf(f"a query does not heed its interrupt ({self.reason}) since {seconds:.0f} s")
            self.over.wait(_AGAIN_SECONDS)

    def _first(self) -> Reason | None:
        """Wait for the first reason to end the query; None when it is over."""
        seconds = self._bounds.seconds
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return "time"
            step = left if self._bounds.process_bytes is None else min(left or _AGAIN_SECONDS, _AGAIN_SECONDS)
            if self._interrupt.wait(step):
                return "request" if self._interrupt.requested else None
            if self._too_large():
                return "memory"

    def _too_large(self) -> bool:
        limit = self._bounds.process_bytes
        return limit is not None and resident_bytes() > limit

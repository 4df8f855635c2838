"""What the writer does between two transactions, and when: it keeps to a pace that arriving data does not notice.

    chores = Chores(retention.step)
    chores.due_in()          seconds; None where there is none
    chores.run(cursor)       one step of it -> the content ids that it deleted; raises duckdb.Error
    chores.wrote(rows)       so many have been committed

A chore is asked once a second, after a row group was written (a small limit is reached within a second, too), and again at once while
it says that there is more. One that found nothing to do takes a twentieth of the time at most, however large the file.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import duckdb

from collector.store.database import ROW_GROUP_ROWS
from collector.store.failures import message

EVERY_SECONDS: Final = 1.0

_SHARE: Final = 1 / 20
"""Of the writer's time, for looking whether there is anything to do."""

_log = logging.getLogger(__name__)


class Report(Protocol):
    """What a step did."""

    @property
    def more(self) -> bool:
        """Whether to take another step at once."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether it found nothing to do."""
        ...

    @property
    def forgotten(self) -> Mapping[str, frozenset[int]]:
        """Content ids that are stored no more, by table."""
        ...


Chore = Callable[[duckdb.DuckDBPyConnection, int], Report]
"""One short step, given a cursor that is in no transaction, and ns since the Unix epoch; raises duckdb.Error."""


class Chores:
    """When the chore is due; belongs to the writer's thread, but for `failing`.

    Attributes:
        failing: Why the last step could not be done; None while all is well. It is tried again.
    """

    def __init__(
        self,
        chore: Chore | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.failing: str | None = None
        self._chore = chore
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._wall_clock = wall_clock
        self._earliest = self._due = clock() + EVERY_SECONDS
        self._rows = 0

    def due_in(self) -> float | None:
        """Seconds until the next step; None where there is nothing to do, ever."""
        if self._chore is None:
            return None
        due = self._earliest if self._rows >= ROW_GROUP_ROWS else self._due
        return max(0.0, due - self._clock())

    def wrote(self, rows: int) -> None:
        """So many rows have been committed."""
        self._rows += rows

    def run(self, cursor: duckdb.DuckDBPyConnection) -> Mapping[str, frozenset[int]]:
        """Take a step; returns the content ids that are stored no more, by table. Raises duckdb.Error."""
        if self._chore is None:
            return {}
        began = self._cpu_clock()
        try:
            report = self._chore(cursor, self._wall_clock())
        except duckdb.Error as error:
            self._failed(message(error))
            raise
        self.failing = None
        now = self._clock()
        # Work that is there to be done has no share: a file that grows while it waits outgrows its limit. And what others take of
        # a busy machine's time is no cost of the chore's.
        pause = (self._cpu_clock() - began) / _SHARE if report.is_idle else 0.0
        self._rows = 0
        self._earliest = now + pause
        self._due = now if report.more else now + max(EVERY_SECONDS, pause)
        return report.forgotten

    def _failed(self, reason: str) -> None:
        if self.failing != reason:
            _log.error("old evidence cannot be removed: %s; trying again every %g s", reason, EVERY_SECONDS)
        self.failing = reason
        self._earliest = self._due = self._clock() + EVERY_SECONDS

"""Whether the collector serves, and what it has counted.

    /healthz    200 as long as the process answers (in http_app): restart it when it does not
    /readyz     200, or 503 {"status": "not ready", "reasons": [...]}: send it nothing now, and do not restart it
    /metrics    Prometheus's text format

Not ready: before both ports listen, from the stop signal on, while the last commit failed, when the writer gave up, and while
the queue is full.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from collector.errors import CollectorError
from collector.receiver.counters import Counters
from collector.receiver.metrics import CONTENT_TYPE, Gauges, LogLag, exposition
from collector.store.kept import read_kept

QUEUE_FULL_RATIO: Final = 0.95
"""A queue never holds its limit to the byte: the request that would pass it is refused."""

_ROWS: Final = """\
SELECT table_name, estimated_size::BIGINT AS rows FROM duckdb_tables()
WHERE database_name = current_database() AND schema_name = 'main' AND NOT internal"""


class Phase(Enum):
    """Where in its life a collector is."""

    STARTING = "the collector is starting"
    SERVING = ""
    STOPPING = "the collector is shutting down"


class WriterStatus(Protocol):
    """The writer, as far as health knows it."""

    @property
    def queued_bytes(self) -> int:
        """What waits for its commit."""

    @property
    def failing(self) -> str | None:
        """Why the last transaction could not be committed, or old evidence not be removed."""

    @property
    def broken(self) -> str | None:
        """Why nothing can be written any more."""


class Stale(Protocol):
    """Files that are watched for changes: see collector/receiver/watched.py."""

    what: str
    problem: str | None


@dataclass(slots=True)
class Health:
    """One collector's state, looked at from the HTTP port.

    Attributes:
        path: The database file.
        query: One SELECT on it, as an Arrow table.
        writer: The writer's status now.
        queue_limit_bytes: Beyond it the writer refuses.
        max_size_bytes: What the file, its WAL and its journal may take together; None: no limit.
        access_logs: One dict a log that is followed: see collector/api.py.
        watched: Certificates and tokens.
        clock: ns since the Unix epoch.
    """

    path: Path
    query: Callable[[str], pa.Table]
    writer: Callable[[], WriterStatus]
    queue_limit_bytes: int
    counters: Counters
    max_size_bytes: int | None = None
    version: str = "unknown"
    access_logs: Callable[[], Sequence[Mapping[str, object]]] = tuple
    watched: Sequence[Stale] = ()
    clock: Callable[[], int] = time.time_ns
    started_unix_nano: int = field(default_factory=time.time_ns)
    phase: Phase = Phase.STARTING

    def reasons(self) -> list[str]:
        """Why it is not ready; nothing when it is."""
        status = self.writer()
        failing = self.counters.read().failing or status.failing
        full = status.queued_bytes >= QUEUE_FULL_RATIO * self.queue_limit_bytes
        reasons = (
            self.phase.value,
            status.broken,
            None if status.broken else failing,
            f"{status.queued_bytes} bytes wait to be written, the limit is {self.queue_limit_bytes}" if full else None,
        )
        return [reason for reason in reasons if reason]

    def gauges(self) -> Gauges:
        """What is looked up at a scrape; what cannot be is left out."""
        since_unix_nano, removed = self._kept()
        return Gauges(
            ready=not self.reasons(),
            queue_bytes=self.writer().queued_bytes,
            queue_limit_bytes=self.queue_limit_bytes,
            rows=self._rows(),
            file_bytes=_size(self.path),
            wal_bytes=_size(self.path.with_name(self.path.name + ".wal")) or 0,
            journal_bytes=_folder_size(self.path.with_name(self.path.name + ".journal")),
            max_size_bytes=self.max_size_bytes,
            evidence_since_seconds=None if since_unix_nano is None else since_unix_nano / 1e9,
            removed_rows=removed,
            data_age_seconds=self._data_age_seconds(),
            rss_bytes=rss_bytes(),
            start_time_seconds=self.started_unix_nano / 1e9,
            version=self.version,
            access_logs=[_lag(log) for log in self.access_logs()],
            stale={one.what: one.problem is not None for one in self.watched},
        )

    def routes(self) -> list[BaseRoute]:
        """The routes, to be mounted beside OTLP/HTTP's."""
        return [
            Route("/readyz", self._readyz, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]

    async def _readyz(self, _: Request) -> Response:
        reasons = self.reasons()
        if reasons:
            return JSONResponse({"status": "not ready", "reasons": reasons}, 503)
        return JSONResponse({"status": "ready"})

    async def _metrics(self, _: Request) -> Response:
        page = await asyncio.to_thread(lambda: exposition(self.counters.read(), self.gauges()))
        return PlainTextResponse(page, media_type=CONTENT_TYPE)

    def _rows(self) -> dict[str, int]:
        try:
            return {row["table_name"]: row["rows"] for row in self.query(_ROWS).to_pylist()}
        except CollectorError:
            return {}  # /readyz says what is wrong with the store; the counters must still be scraped

    def _kept(self) -> tuple[int | None, dict[str, int]]:
        """Since when there is evidence, where some was removed, and how many rows were, by table."""
        try:
            return read_kept(self.query)
        except CollectorError:
            return None, {}  # as above

    def _data_age_seconds(self) -> float | None:
        newest = self.counters.read().newest_received_unix_nano
        return None if newest is None else max(0.0, (self.clock() - newest) / 1e9)


def newest_received(query: Callable[[str], pa.Table]) -> int | None:
    """When the newest span of the file was received, in ns; None in a file without spans. Once, at the start."""
    [row] = query("SELECT max(received_unix_nano) AS newest FROM spans").to_pylist()
    newest: int | None = row["newest"]
    return newest


def rss_bytes() -> int | None:
    """Resident memory of this process; None where there is no /proc."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


def _lag(log: Mapping[str, Any]) -> LogLag:
    age = log.get("read_age_seconds")
    return LogLag(str(log["source"]), int(log.get("lag_bytes") or 0), None if age is None else float(age))


def _folder_size(path: Path) -> int:
    """Of the files in it; those that go away meanwhile count nothing."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return sum(_size(file) or 0 for file in path.iterdir())
    return 0


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None

"""The one writer: whatever arrived while the last transaction ran goes into the next one (group commit).

A commit costs one fdatasync, however many requests are in it; so under load the requests share it, and alone each is
committed at once. A future is done only after COMMIT: acknowledged means durable.

    Writer.append(batches) -> Future[None]
        raises StoreFullError at once when the queue holds `max_queued_bytes`
        raises StoreError at once when a batch does not fit its table, or the writer is closed or broken
        the future raises StoreError when this request could not be written; its neighbours are not affected
"""

import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

import duckdb
import pyarrow as pa

from collector import schema
from collector.errors import StoreError, StoreFullError
from collector.store.database import Store, message

Batches = Mapping[str, pa.RecordBatch]

MAX_QUEUED_BYTES: Final = 128 * 1024 * 1024
MAX_TRANSACTION_BYTES: Final = 64 * 1024 * 1024
"""One transaction takes at most this much of the queue, so that its first request does not wait for a flood behind it."""

_ARRIVED: Final = "arrived"
"""The name under which DuckDB sees an Arrow table, for as long as it is being inserted."""

_log = logging.getLogger(__name__)
_SCHEMAS: Final = {table: schema.arrow_schema(table) for table in schema.TABLES}


@dataclass(frozen=True, slots=True)
class _Request:
    batches: Batches
    size_bytes: int
    done: Future[None] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class WriterStatus:
    """How the writer is doing.

    Attributes:
        queued_bytes: Arrow bytes that wait for a transaction or are in one.
        commits: Transactions committed since the writer started.
        requests: Requests committed since the writer started.
        broken: Why nothing can be written any more; None while all is well.
    """

    queued_bytes: int
    commits: int
    requests: int
    broken: str | None


class Writer:
    """Appends record batches to the tables of one store, from any thread, on a thread of its own."""

    def __init__(self, store: Store, *, max_queued_bytes: int = MAX_QUEUED_BYTES) -> None:
        self._store = store
        self._cursor = store.cursor()
        self._known = {table: _known_ids(self._cursor, table, key) for table, key in schema.CONTENT_KEYS.items()}
        self._max_queued_bytes = max_queued_bytes
        self._changed = threading.Condition()
        self._queue: deque[_Request] = deque()
        self._queued_bytes = 0
        self._closing = False
        self._broken: str | None = None
        self._commits = 0
        self._requests = 0
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def append(self, batches: Batches) -> Future[None]:
        """Queue the batches; the future is done once they are committed."""
        for table, batch in batches.items():
            _check(table, batch)
        request = _Request(dict(batches), sum(b.nbytes for b in batches.values()))
        with self._changed:
            if self._broken is not None:
                raise StoreError(self._broken)
            if self._closing:
                raise StoreError(f"{self._store.path}: the collector is shutting down")
            # A request larger than the whole queue may pass through an empty one: it could never pass otherwise.
            if self._queued_bytes and self._queued_bytes + request.size_bytes > self._max_queued_bytes:
                raise StoreFullError(
                    f"{self._store.path}: {self._queued_bytes} bytes wait to be written, "
                    f"the limit is {self._max_queued_bytes}; retry in a moment"
                )
            self._queue.append(request)
            self._queued_bytes += request.size_bytes
            self._changed.notify()
        return request.done

    def status(self) -> WriterStatus:
        """The writer's counters, consistent with each other."""
        with self._changed:
            return WriterStatus(self._queued_bytes, self._commits, self._requests, self._broken)

    def close(self) -> None:
        """Refuse what comes now, commit what came before, checkpoint; raises StoreError when the checkpoint fails."""
        with self._changed:
            if self._closing and not self._thread.is_alive():
                return
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._cursor.close()
        if self._broken is None:
            self._store.checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while group := self._next_group():
            try:
                self._write_group(group)
            except BaseException as e:  # noqa: BLE001 the thread is the only writer: without it every request would wait for ever
                self._break(f"{self._store.path}: the writer failed: {e!r}; restart the collector")
                for request in group:
                    if not request.done.done():
                        request.done.set_exception(StoreError(str(self._broken)))
                _log.exception("the writer failed")
            finally:
                with self._changed:
                    self._queued_bytes -= sum(r.size_bytes for r in group)

    def _next_group(self) -> list[_Request]:
        """Everything that waits, up to a transaction's size; empty only when the writer is closed and drained."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            group: list[_Request] = []
            size = 0
            while self._queue and (not group or size + self._queue[0].size_bytes <= MAX_TRANSACTION_BYTES):
                group.append(self._queue.popleft())
                size += group[-1].size_bytes
            return group

    def _write_group(self, group: Sequence[_Request]) -> None:
        """Commit the group together; where that fails, each request alone, so that only the bad ones fail."""
        live = [r for r in group if r.done.set_running_or_notify_cancel()]
        error = self._commit(live)
        if error is None:
            for request in live:
                request.done.set_result(None)
        elif len(live) == 1:
            live[0].done.set_exception(error)
        else:
            for request in live:
                alone = self._commit([request])
                if alone is None:
                    request.done.set_result(None)
                else:
                    request.done.set_exception(alone)

    def _commit(self, requests: Sequence[_Request]) -> StoreError | None:
        """One transaction; returns what went wrong, after rolling it back."""
        if not requests:
            return None
        if self._broken is not None:
            return StoreError(self._broken)
        fresh: dict[str, set[int]] = {table: set() for table in self._known}
        try:
            self._cursor.begin()
            for table in schema.TABLES:
                arrived = [r.batches[table] for r in requests if table in r.batches]
                self._insert(table, pa.Table.from_batches(arrived, _SCHEMAS[table]), fresh)
            self._cursor.commit()
        except duckdb.Error as e:
            self._roll_back()
            if isinstance(e, duckdb.FatalException | duckdb.InternalException):
                self._break(f"{self._store.path}: DuckDB gave up: {message(e)}; restart the collector")
            return StoreError(f"{self._store.path}: not written: {message(e)}")
        for table, ids in fresh.items():
            self._known[table] |= ids
        with self._changed:
            self._commits += 1
            self._requests += len(requests)
        return None

    def _insert(self, table: str, rows: pa.Table, fresh: dict[str, set[int]]) -> None:
        if table in schema.CONTENT_KEYS:
            rows = _only_new(rows, schema.CONTENT_KEYS[table], self._known[table], fresh[table])
        elif table in schema.REPLACED_KEYS:
            rows = _last_of_each(rows, schema.REPLACED_KEYS[table])
        if not rows.num_rows:
            return
        self._cursor.register(_ARRIVED, rows)
        if key := schema.REPLACED_KEYS.get(table):
            self._cursor.execute(f"DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {_ARRIVED})")
        self._cursor.execute(f"INSERT INTO {table} SELECT * FROM {_ARRIVED}")
        self._cursor.unregister(_ARRIVED)

    def _roll_back(self) -> None:
        try:
            with suppress(duckdb.TransactionException):  # a failed COMMIT has rolled back already
                self._cursor.rollback()
            self._cursor.unregister(_ARRIVED)  # not before: an aborted transaction refuses it, and hides its own reason
        except duckdb.Error as e:
            self._break(
                f"{self._store.path}: the transaction could not be rolled back: {message(e)}; restart the collector"
            )

    def _break(self, reason: str) -> None:
        with self._changed:
            self._broken = self._broken or reason


def replace_rows(store: Store, table: str, rows: pa.RecordBatch) -> None:
    """Make these the only rows of a small table, in one transaction; raises StoreError.

    Only before the table is written by anyone else: two transactions that change the same rows conflict.
    """
    _check(table, rows)
    cursor = store.cursor()
    try:
        cursor.begin()
        cursor.execute(f"DELETE FROM {table}")
        cursor.register(_ARRIVED, rows)
        cursor.execute(f"INSERT INTO {table} SELECT * FROM {_ARRIVED}")
        cursor.commit()
    except duckdb.Error as e:
        raise StoreError(f"{store.path}: {table} could not be replaced: {message(e)}") from e
    finally:
        cursor.close()  # a transaction that is still open rolls back


def _check(table: str, batch: pa.RecordBatch) -> None:
    expected = _SCHEMAS.get(table)
    if expected is None:
        raise StoreError(f"no table {table!r}; there are {', '.join(schema.TABLES)}")
    if not batch.schema.equals(expected):
        got = {f.name: str(f.type) for f in batch.schema}
        wanted = {f.name: str(f.type) for f in expected}
        differing = sorted(n for n in got.keys() | wanted.keys() if got.get(n) != wanted.get(n))
        raise StoreError(f"the batch for {table!r} does not have its schema; see {', '.join(differing) or 'the order'}")


def _known_ids(cursor: duckdb.DuckDBPyConnection, table: str, key: str) -> set[int]:
    return {row[0] for row in cursor.execute(f"SELECT {key} FROM {table}").fetchall()}


def _only_new(rows: pa.Table, key: str, known: Iterable[int], fresh: set[int]) -> pa.Table:
    """The first row of each id that is not known yet; adds those ids to `fresh`."""
    keep = []
    for i, identifier in enumerate(rows.column(key).to_pylist()):
        if identifier not in known and identifier not in fresh:
            fresh.add(identifier)
            keep.append(i)
    return rows.take(pa.array(keep, pa.int64()))


def _last_of_each(rows: pa.Table, key: str) -> pa.Table:
    """The last row of each key: the newest, since requests are in the order of their arrival."""
    positions = {value: i for i, value in enumerate(rows.column(key).to_pylist())}
    return rows.take(pa.array(sorted(positions.values()), pa.int64()))

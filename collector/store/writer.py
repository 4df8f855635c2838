"""The one writer: whatever arrived goes into one transaction, and what a transaction waits for depends on who waits for it.

    Writer.append(batches) -> Future[None]          done once they are committed: acknowledged means durable
        raises StoreFullError at once when the queue holds `max_queued_bytes`
        raises StoreError at once when a batch does not fit its table, or the writer is closed or broken
        the future raises StoreError when this request could not be written; its neighbours are not affected
    Writer.append_journaled(parts, position)        durable already, in the journal, so nobody waits for the commit
        waits for room in the queue; raises StoreError as above

Somebody waits for a future, so a transaction with one in it is committed as soon as nothing more has arrived (group commit). One
with journaled rows only may linger: until it holds a row group, which DuckDB then compresses and writes in one piece, at a third
of the cost of one more or one less (see `split`), or for `linger_seconds`, so that readers see a span within a second.

What does not fit into the memory that a writer has is tried again with what a question would get.

When the disk is full or the file cannot be written, futures fail (their senders try again) and journaled rows are kept and
tried again every second, until they are in or the writer is closed; then the journal keeps them for the next start.

Between two transactions the thread does a chore, a short step at a time (see `chores`): what arrives waits for one step at most.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol, Self

import duckdb

from collector.errors import StoreError, StoreFullError
from collector.store.chores import Chore, Chores
from collector.store.database import ROW_GROUP_ROWS, Store
from collector.store.failures import (
    is_committed,
    is_out_of_memory,
    is_out_of_space,
    is_read_only,
    message,
    needs_reopen,
)
from collector.store.insert import ARRIVED, Batches, Inserter
from collector.store.journal import Position
from collector.store.pending import Request, Transaction, request_of

MAX_QUEUED_BYTES: Final = 20 * 1024 * 1024
MAX_INSERT_BYTES: Final = 8 * 1024 * 1024
"""One INSERT takes at most this much of the queue, so that the queue drains, and is freed, in steps."""

ENOUGH_BYTES: Final = 4 * 1024 * 1024
"""It waits for so much, as long as it may: of small requests, many small ones take three times as long. Not for more, or the queue is
full before it begins."""

LINGER_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 1.0

REOPEN_ROWS: Final = 1_000_000
"""After so many rows the file is opened again, for a quarter to half a second: DuckDB keeps some 200 bytes of memory for each row that
it wrote itself, checkpoint or not, and next to nothing for rows that it found. Without it a collector under load grows until it is
restarted."""

_SET_POSITION: Final = "UPDATE meta SET value = ? WHERE key = 'journal_position'"

_REQUESTS_FAULT: Final = (duckdb.DataError, duckdb.IntegrityError, duckdb.ProgrammingError)
"""Errors that this request would meet again tomorrow, on an empty disk."""

_log = logging.getLogger(__name__)


class Metrics(Protocol):
    """Who counts what the writer does."""

    def committed(self, seconds: float, rows: Mapping[str, int]) -> None:
        """One transaction: how long its work took, and its rows by table."""
        ...

    def failed(self, reason: str) -> None:
        """A transaction was rolled back, for a reason that is the store's."""
        ...


@dataclass(frozen=True, slots=True)
class WriterStatus:
    """How the writer is doing.

    Attributes:
        queued_bytes: Arrow bytes that wait for a transaction or are in one.
        commits: Transactions committed since the writer started.
        requests: Requests committed since the writer started.
        failing: Why the last transaction could not be committed, or the last chore not be done; None while all is well. Both are
            tried again.
        broken: Why nothing can be written any more; None while all is well.
    """

    queued_bytes: int
    commits: int
    requests: int
    failing: str | None
    broken: str | None


class Writer:
    """Appends record batches to the tables of one store, from any thread, on a thread of its own.

    Args:
        store: Open for writing.
        max_queued_bytes: Of Arrow batches that wait or are in the transaction.
        linger_seconds: How long journaled rows may wait for others.
        metrics: Who is told of commits and failures.
        ask_always: See `Inserter`.
        on_commit: Called on the writer's thread with the position up to which the journal is in the tables.
        chore: Done between transactions, on the writer's cursor.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
        linger_seconds: float = LINGER_SECONDS,
        metrics: Metrics | None = None,
        ask_always: bool = False,
        on_commit: Callable[[Position], None] | None = None,
        chore: Chore | None = None,
    ) -> None:
        self._store = store
        self._cursor = store.cursor()
        self._inserter = Inserter(self._cursor, ask_always=ask_always)
        self._max_queued_bytes = max_queued_bytes
        self._linger_seconds = linger_seconds
        self._metrics = metrics
        self._on_commit = on_commit
        self._chores = Chores(chore)
        self._changed = threading.Condition()
        self._queue: deque[Request] = deque()
        self._queued_bytes = 0
        self._transaction: Transaction | None = None
        self._closing = False
        self._failing: str | None = None
        self._is_last_try = False
        self._left_behind = False
        self._broken: str | None = None
        self._commits = 0
        self._rows_since_open = 0
        self._waiting_for_room = 0
        self._requests = 0
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    # --- from any thread ----------------------------------------------------------------------------------------------

    def append(self, batches: Batches) -> Future[None]:
        """Queue the batches; the future is done once they are committed."""
        request = request_of([batches])
        with self._changed:
            self._refuse_if_over()
            # A request larger than the whole queue may pass through an empty one: it could never pass otherwise.
            if not self._has_room(request.size_bytes):
                raise StoreFullError(
                    f"{self._store.path}: {self._queued_bytes} bytes wait to be written, "
                    f"the limit is {self._max_queued_bytes}; retry in a moment"
                )
            self._enqueue(request)
        return request.done

    def append_journaled(self, parts: Sequence[Batches], position: Position) -> None:
        """Queue what the journal holds up to `position`, after waiting for room."""
        request = request_of(parts, position)
        with self._changed:
            self._waiting_for_room += 1
            try:
                if not self._has_room(request.size_bytes):
                    self._changed.notify_all()
                self._changed.wait_for(lambda: self._is_over() or self._has_room(request.size_bytes))
            finally:
                self._waiting_for_room -= 1
            self._refuse_if_over()
            self._enqueue(request)

    def status(self) -> WriterStatus:
        """The writer's counters, consistent with each other."""
        with self._changed:
            failing = self._failing or self._chores.failing
            return WriterStatus(self._queued_bytes, self._commits, self._requests, failing, self._broken)

    def close(self) -> None:
        """Refuse what comes now, commit what came before, checkpoint; raises StoreError when some of that fails."""
        with self._changed:
            if self._closing and not self._thread.is_alive():
                return
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._cursor.close()
        if self._left_behind:
            raise StoreError(f"{self._failing}; acknowledged requests stay in the journal, for the next start")
        if self._broken is None and self._failing is None:
            self._store.checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _has_room(self, size_bytes: int) -> bool:
        return not self._queued_bytes or self._queued_bytes + size_bytes <= self._max_queued_bytes

    def _is_over(self) -> bool:
        return self._closing or self._broken is not None

    def _refuse_if_over(self) -> None:
        if self._broken is not None:
            raise StoreError(self._broken)
        if self._closing:
            raise StoreError(f"{self._store.path}: the collector is shutting down")

    def _enqueue(self, request: Request) -> None:
        self._queue.append(request)
        self._queued_bytes += request.size_bytes
        self._changed.notify_all()

    # --- the writer's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as e:  # noqa: BLE001 the thread is the only writer: without it every request would wait for ever
            _log.exception("the writer failed")
            self._break(f"{self._store.path}: the writer failed: {e!r}; restart the collector")

    def _step(self) -> bool:
        """Insert what arrived, commit if it is time; False when there is nothing left to do."""
        arrived = self._next()
        try:
            if arrived:
                self._insert(arrived)
            if self._transaction is not None and self._is_due():
                self._commit()
        except duckdb.Error as error:
            self._recover(error)
        if self._transaction is None and not self._closing:
            if self._chores.due_in() == 0:
                self._do_chore()
            if self._rows_since_open >= REOPEN_ROWS:
                self._shed()
        with self._changed:
            return not self._closing or self._transaction is not None or bool(self._queue)

    def _next(self) -> list[Request]:
        """Everything that waits, up to an INSERT's size; nothing when the transaction is due, or the writer drained."""
        with self._changed:
            due_in = self._chores.due_in() if self._transaction is None else self._due_at() - time.monotonic()
            self._changed.wait_for(lambda: self._queue or self._closing, timeout=due_in)
            if self._queue:
                patience = self._queue[0].arrived + self._linger_seconds - time.monotonic()
                if self._transaction is not None:
                    patience = min(patience, self._due_at() - time.monotonic())
                self._changed.wait_for(self._has_enough, timeout=max(0.0, patience))
            arrived = self._taken(self._transaction.room if self._transaction is not None else ROW_GROUP_ROWS)
        given_up = [r for r in arrived if not r.is_journaled and not r.done.set_running_or_notify_cancel()]
        self._forget(given_up)
        return [request for request in arrived if request not in given_up]

    def _taken(self, room: int) -> list[Request]:
        """From the queue: up to an INSERT's size, and up to the end of the row group, in which a journaled request is cut."""
        taken: list[Request] = []
        size = 0
        while self._queue and room > 0 and (not taken or size + self._queue[0].size_bytes <= MAX_INSERT_BYTES):
            request = self._queue.popleft()
            if request.is_journaled and request.spans > room:
                request, rest = request.split(room)
                self._queue.appendleft(rest)
            taken.append(request)
            size += request.size_bytes
            room -= request.spans
        return taken

    def _has_enough(self) -> bool:
        """Whether the next INSERT is worth its while, or somebody waits for it."""
        return (
            self._closing
            or self._waiting_for_room > 0
            or any(not request.is_journaled for request in self._queue)
            or sum(request.size_bytes for request in self._queue) >= ENOUGH_BYTES
        )

    def _due_at(self) -> float:
        transaction = self._transaction
        if transaction is None or transaction.somebody_waits:
            return 0.0
        return transaction.begun + self._linger_seconds

    def _is_due(self) -> bool:
        transaction = self._transaction
        if transaction is None:
            return False
        if transaction.rows["spans"] >= ROW_GROUP_ROWS:
            return True
        with self._changed:
            if time.monotonic() >= transaction.begun + self._linger_seconds:
                # Under load what waits fills the row group at once.
                return transaction.somebody_waits or sum(r.spans for r in self._queue) < transaction.room
            return not self._queue and (transaction.somebody_waits or self._closing)

    def _insert(self, requests: Sequence[Request]) -> None:
        begun = time.monotonic()
        if self._transaction is None:
            # It lingers from the arrival of its first row.
            self._transaction = Transaction(min(request.arrived for request in requests), list(requests))
            self._cursor.begin()
        else:
            self._transaction.requests += requests
        self._transaction.rows += self._inserter.insert([part for request in requests for part in request.parts])
        self._transaction.seconds += time.monotonic() - begun

    def _commit(self) -> None:
        transaction = self._transaction
        if transaction is None:
            return
        begun = time.monotonic()
        position = transaction.position
        if position is not None:
            self._cursor.execute(_SET_POSITION, [str(position)])
        self._cursor.commit()
        transaction.seconds += time.monotonic() - begun
        self._is_committed(transaction)

    def _is_committed(self, transaction: Transaction) -> None:
        self._transaction = None
        self._inserter.committed()
        self._chores.wrote(transaction.rows.total())
        self._rows_since_open += transaction.rows.total()
        with self._changed:
            self._commits += 1
            self._requests += sum(request.is_whole for request in transaction.requests)
            self._failing = None
        if self._metrics:
            self._metrics.committed(transaction.seconds, transaction.rows)
        if self._on_commit and transaction.position is not None:
            self._on_commit(transaction.position)
        self._finish(transaction.requests, None)

    def _finish(self, requests: Sequence[Request], error: StoreError | None) -> None:
        for request in requests:
            if not request.is_journaled:
                if error is None:
                    request.done.set_result(None)
                else:
                    request.done.set_exception(error)
        self._forget(requests)

    def _forget(self, requests: Iterable[Request]) -> None:
        with self._changed:
            self._queued_bytes -= sum(request.size_bytes for request in requests)
            self._changed.notify_all()

    def _do_chore(self) -> None:
        try:
            self._inserter.forget(self._chores.run(self._cursor))
        except duckdb.Error as error:
            with suppress(duckdb.Error):  # the chore's own rollback may have failed with the file
                self._cursor.rollback()
            self._inserter.doubt()  # it may have deleted ids, and not come to say so
            if needs_reopen(error) and self._reopen():
                with self._changed:
                    self._failing = None

    # --- when it cannot be written ------------------------------------------------------------------------------------

    def _recover(self, error: duckdb.Error) -> None:
        """Undo the transaction; write its requests one by one, so that only the bad ones fail, or all of them later."""
        if self._transaction is not None and is_committed(error):  # what failed is the checkpoint behind the COMMIT
            self._is_committed(self._transaction)
            self._later([], error)
            return
        requests = self._undo()
        if is_out_of_memory(error) and not needs_reopen(error) and self._store.memory.lend(self._cursor):
            try:
                self._insert(requests)
                self._commit()
            except duckdb.Error as again:
                self._recover(again)  # not for ever: there is no more to lend
            return
        if is_out_of_space(error) or is_read_only(error) or needs_reopen(error):
            self._later(requests, error)
            return
        for number, request in enumerate(requests):
            try:
                self._insert([request])
                self._commit()
            except duckdb.Error as again:
                self._undo()
                if not isinstance(again, _REQUESTS_FAULT):
                    self._later(requests[number:], again)
                    return
                self._refuse(request, again)

    def _undo(self) -> list[Request]:
        """Roll back; returns the requests that were in the transaction."""
        transaction, self._transaction = self._transaction, None
        self._inserter.rolled_back()
        with suppress(duckdb.Error):  # a failed COMMIT has rolled back already; a file that is gone is opened again
            self._cursor.rollback()
        with suppress(duckdb.Error):  # not before: an aborted transaction refuses it, and hides its own reason
            self._cursor.unregister(ARRIVED)
        return transaction.requests if transaction else []

    def _refuse(self, request: Request, error: duckdb.Error) -> None:
        """The request's own fault, such as a number that its column cannot hold."""
        if request.is_journaled:
            _log.error(
                "%s: an acknowledged request of %d bytes cannot be stored: %s",
                self._store.path,
                request.size_bytes,
                message(error),
            )
        self._finish([request], StoreError(f"{self._store.path}: not written: {message(error)}"))

    def _later(self, requests: Sequence[Request], error: duckdb.Error) -> None:
        """Nobody's fault but the store's: journaled rows wait, the others' senders are told to."""
        reason = f"{self._store.path}: not written: {message(error)}"
        if self._failing != reason:
            _log.error("%s; trying again every %g s", reason, RETRY_SECONDS)
        if self._metrics:
            self._metrics.failed(reason)
        self._finish([r for r in requests if not r.is_journaled], StoreError(reason))
        with self._changed:
            self._failing = reason
            self._queue.extendleft(r for r in reversed(requests) if r.is_journaled)
            if self._is_last_try:
                self._give_up(reason)
                return
            # Whoever closes may have made room first: what waits is tried once more.
            self._is_last_try = self._changed.wait_for(lambda: self._closing, timeout=RETRY_SECONDS)
        if needs_reopen(error):
            self._reopen()

    def _reopen(self) -> bool:
        try:
            self._store.reopen()
            self._cursor = self._store.cursor()
        except StoreError as error:
            with self._changed:
                self._failing = str(error)
            return False
        self._inserter.use(self._cursor)
        self._rows_since_open = 0
        return True

    def _shed(self) -> None:
        """Open the file again, if nobody is asking; what is asked meanwhile waits."""
        with self._store.memory.nobody_asking() as nobody:
            if nobody:
                self._reopen()

    def _give_up(self, reason: str) -> None:
        """Closing, and nothing can be written: what is in the journal stays there, who waits is told."""
        given_up = list(self._queue)
        self._left_behind = any(request.is_journaled for request in given_up)
        self._queue.clear()
        self._finish(given_up, StoreError(reason))

    def _break(self, reason: str) -> None:
        with self._changed:
            self._broken = self._broken or reason
            waiting = [*(self._transaction.requests if self._transaction else ()), *self._queue]
            self._queue.clear()
            self._transaction = None
            self._changed.notify_all()
        for request in waiting:
            if not request.is_journaled and not request.done.done():
                request.done.set_exception(StoreError(reason))
        self._forget(waiting)

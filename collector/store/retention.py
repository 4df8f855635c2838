"""Old evidence makes room for new: by age and by size, in steps that ingest does not notice.

    policy = Policy(keep_ns=7 * DAY_NS, max_size_bytes=20 * GIB)
    retention = Retention(store.path, policy)
    retention.catch_up(store) -> Sizes                           every step that there is, at a start
    retention.step(cursor, now_unix_nano) -> RetentionReport     between two transactions of the writer, on its cursor
    evidence_since(cursor) -> int | None                         before it nothing is left, by the collector's clock

Evidence ages by when it was received, on the collector's clock: senders' clocks are theirs to set. Tables are in the order
of arrival, so that a step reads and deletes at their beginning; DuckDB drops a row group whose rows are all gone at the next
checkpoint, writes new ones into the lowest free blocks, and cuts free blocks off the end of the file. Under a steady load
the file therefore circles within its limit. Measured with 2 M spans: 800,000 deleted in 60 ms; after the evidence shrank to a
tenth, the file shrank from 68 to 20 MB within one turn. What cannot wait for that turn, `compaction` writes anew.

A step either deletes, or checkpoints, or looks; it raises duckdb.Error with its transaction rolled back.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import duckdb

from collector.errors import StoreError
from collector.schema import EVIDENCE_SINCE_KEY
from collector.store.database import ROW_GROUP_ROWS, Store
from collector.store.failures import message, needs_reopen
from collector.store.sizes import Sizes, measure

SINCE_KEY: Final = EVIDENCE_SINCE_KEY
"""In `meta`: what was received before it was deleted."""

REMOVED_KEY: Final = "retention_removed_"
"""In `meta`, with a table's name: how many of its rows were deleted."""

CHECKPOINT_KEY: Final = "retention_checkpoint_unix_nano"
"""In `meta`: when retention last asked for blocks to be freed."""

HIGH_RATIO: Final = 0.9
LOW_RATIO: Final = 0.85
"""Above the first, evidence is deleted down to the second: the rest of the limit is for blocks that wait for their reuse."""

REWRITTEN_ROW_GROUPS: Final = 2
"""So much less is kept: a checkpoint writes row groups that are not full anew before the old ones' blocks are free. It is nothing
beside gigabytes; beside 64 MiB, spans of half a kilobyte let the file outgrow its limit by two fifths without it."""

BETWEEN_BYTES: Final = 48 * 1024 * 1024
_BETWEEN_RATIO: Final = 0.15
"""What the log and the journal grow by between two looks: a few transactions; the first at most, and this share of a small limit."""

_REWRITTEN_RATIO: Final = 0.4
"""Of the limit, at most: something must be left to keep."""

WAL_RATIO: Final = 1 / 16
"""A log larger than this share of the limit is checkpointed; a row there is three times as large as in the file."""

AGE_STEP_RATIO: Final = 1 / 100
"""Evidence outlives its age by up to a hundredth: ages are looked at once in that time, or in an hour."""

MAX_STEP_ROWS: Final = 100_000
"""Spans that one step deletes: with an event each, 100 to 200 ms."""

_SMALL_WAL_BYTES: Final = 2 * 1024 * 1024

_PROBE_ROWS: Final = 250_000
"""Events or links that are looked at together; they are in the order of their spans."""

_CHECKPOINT_AGAIN_NS: Final = 5 * 10**9
"""When a checkpoint that freed nothing is repeated: readers that began before a deletion keep its rows until they end."""

_ARRIVING: Final = ("spans", "proxy_records", "flows", "sockets", "socket_watches", "ingest_errors")
"""Tables that are cut by `received_unix_nano`."""

_EVIDENCE: Final = ("spans", "proxy_records", "flows", "sockets")
"""Those of them whose oldest row says since when there is evidence."""

_OF_SPANS: Final = ("span_events", "span_links")
"""Tables whose rows go with their span."""

_REFERRED: Final = {"resources": "resource_id", "scopes": "scope_id"}


@dataclass(frozen=True, slots=True)
class Policy:
    """What to keep; None is no limit.

    Attributes:
        keep_ns: Evidence received longer ago than this is deleted.
        max_size_bytes: Of the file, its WAL and its journal together.
    """

    keep_ns: int | None = None
    max_size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class RetentionReport:
    """What one step did.

    Attributes:
        sizes: Before it.
        removed: Rows deleted, by table.
        forgotten: Content ids that are stored no more, by table: rows with them are to be inserted when they come again.
        checkpointed: Whether it moved the WAL into the file and freed blocks.
        since_unix_nano: What `evidence_since` is now.
        more: Whether to call again at once; else after a second or so.
        seconds: It took.
    """

    sizes: Sizes
    removed: Mapping[str, int] = field(default_factory=dict)
    forgotten: Mapping[str, frozenset[int]] = field(default_factory=dict)
    checkpointed: bool = False
    since_unix_nano: int | None = None
    more: bool = False
    seconds: float = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether it only looked."""
        return not (self.removed or self.forgotten or self.checkpointed)


@dataclass(frozen=True, slots=True)
class Rows:
    """A table's rows: those that are there, and those that are deleted and still occupy their place."""

    table: str
    live: int
    dead: int


def rows_to_remove(policy: Policy, sizes: Sizes, rows: Rows) -> int:
    """How many of the oldest rows must go for the rest to have room, those that are dead already counted; 0: none."""
    if policy.max_size_bytes is None or not rows.live:
        return 0
    limit = policy.max_size_bytes
    row_group_bytes = sizes.live_bytes * ROW_GROUP_ROWS / (rows.live + rows.dead)
    rewritten = min(REWRITTEN_ROW_GROUPS * row_group_bytes, limit * _REWRITTEN_RATIO)
    high = limit * HIGH_RATIO - rewritten - min(limit * _BETWEEN_RATIO, BETWEEN_BYTES)
    if sizes.live_bytes <= high:
        return 0
    # Two row groups below it at least: one of them may go in part only, and what is left of it must not ask for the next.
    low = max(high - max(limit * (HIGH_RATIO - LOW_RATIO), 2 * row_group_bytes), high / 2)
    excess = sizes.live_bytes - low
    # Row groups go as a whole: what is dead in one that is not all dead is no gain yet.
    goal = max((rows.live + rows.dead) * excess / sizes.live_bytes, 2 * ROW_GROUP_ROWS)
    return min(rows.live, int(goal))


def wants_checkpoint(policy: Policy, sizes: Sizes) -> bool:
    """Whether the WAL takes too large a share of the limit."""
    if policy.max_size_bytes is None:
        return False
    return sizes.wal_bytes > max(policy.max_size_bytes * WAL_RATIO, _SMALL_WAL_BYTES)


class Retention:
    """Keeps one file to its policy, a step at a time; belongs to the writer's thread."""

    def __init__(self, path: Path, policy: Policy) -> None:
        self._path = path
        self._policy = policy
        self._unswept_rows = 0
        self._next_age_unix_nano = 0
        self._next_checkpoint_unix_nano = 0
        self._is_kept = False

    def step(self, cursor: duckdb.DuckDBPyConnection, now_unix_nano: int) -> RetentionReport:
        """Do what is most urgent, no more; outside a transaction. Raises duckdb.Error."""
        began = time.perf_counter()
        sizes, rows = measure(cursor, self._path), _largest(cursor)
        done = (
            self._by_size(cursor, sizes, rows, now_unix_nano)
            or self._by_age(cursor, sizes, now_unix_nano)
            or self._tidy(cursor, sizes, rows, now_unix_nano)
            or RetentionReport(sizes)
        )
        return replace(done, since_unix_nano=evidence_since(cursor), seconds=time.perf_counter() - began)

    def catch_up(self, store: Store, is_enough: Callable[[], bool] = lambda: False) -> Sizes:
        """Take every step that there is, before anybody writes; returns what is left. Raises StoreError."""
        cursor = store.cursor()
        try:
            while self.step(cursor, time.time_ns()).more and not is_enough():
                pass
            return measure(cursor, store.path)
        except duckdb.Error as e:
            if needs_reopen(e):
                store.reopen()
            raise StoreError(f"{store.path}: old evidence cannot be removed: {message(e)}") from e
        finally:
            cursor.close()

    def _by_size(self, cursor: duckdb.DuckDBPyConnection, sizes: Sizes, rows: Rows, now: int) -> RetentionReport | None:
        # First, because a row in the log is three times as large as in the file: deleting on that account is deleting too much.
        if wants_checkpoint(self._policy, sizes):
            return self._checkpoint(cursor, sizes, rows, now)
        goal = rows_to_remove(self._policy, sizes, rows)
        missing = goal - rows.dead
        # What is dead is most of it: see what a checkpoint gains before more is deleted for the sake of a few rows.
        # And while a reader keeps that, more would be gone and nothing gained: it ends, and so does each checkpoint's extra block.
        if missing > (ROW_GROUP_ROWS if rows.dead else 0) and not self._is_kept:
            count = max(min(missing, MAX_STEP_ROWS), min(ROW_GROUP_ROWS, rows.live))
            cut = _received_at(cursor, rows.table, count)
            return None if cut is None else self._cut(cursor, sizes, cut, count, rows.table)
        return self._reclaim(cursor, sizes, rows, now) if goal else None

    def _by_age(self, cursor: duckdb.DuckDBPyConnection, sizes: Sizes, now: int) -> RetentionReport | None:
        keep = self._policy.keep_ns
        if keep is None or now < self._next_age_unix_nano:
            return None
        done = self._cut(cursor, sizes, now - keep - 1, MAX_STEP_ROWS, "spans")
        if done is None:
            self._next_age_unix_nano = now + min(int(keep * AGE_STEP_RATIO), 3600 * 10**9)
        return done

    def _cut(
        self, cursor: duckdb.DuckDBPyConnection, sizes: Sizes, cut: int, count: int, bounded: str
    ) -> RetentionReport | None:
        removed = _delete(cursor, cut, count, bounded)
        self._unswept_rows += removed.get("spans", 0)
        return RetentionReport(sizes, removed, more=True) if removed else None

    def _tidy(self, cursor: duckdb.DuckDBPyConnection, sizes: Sizes, rows: Rows, now: int) -> RetentionReport | None:
        """Once nothing is too old or too much: what only deleted rows referred to, and the blocks of those."""
        if self._unswept_rows * 4 > rows.live:
            self._unswept_rows = 0
            return RetentionReport(sizes, forgotten=_sweep(cursor), more=True)
        return self._reclaim(cursor, sizes, rows, now) if rows.dead > ROW_GROUP_ROWS else None

    def _reclaim(self, cursor: duckdb.DuckDBPyConnection, sizes: Sizes, rows: Rows, now: int) -> RetentionReport | None:
        """Checkpoint for the sake of what is dead, and not again for a while where a reader keeps it."""
        return self._checkpoint(cursor, sizes, rows, now) if now >= self._next_checkpoint_unix_nano else None

    def _checkpoint(self, cursor: duckdb.DuckDBPyConnection, sizes: Sizes, rows: Rows, now: int) -> RetentionReport:
        # With an empty WAL a checkpoint does nothing at all, though a reader may have gone that kept it from freeing blocks.
        # With an UPDATE in the WAL it frees none either: DuckDB 2.0 and 1.5 want rows that came or went.
        cursor.execute("DELETE FROM meta WHERE key = ?", [CHECKPOINT_KEY])
        cursor.execute("INSERT INTO meta VALUES (?, ?)", [CHECKPOINT_KEY, str(now)])
        cursor.execute("CHECKPOINT")
        freed = rows.dead - _rows(cursor, rows.table).dead
        self._is_kept = freed <= 0 and rows.dead > ROW_GROUP_ROWS
        if freed <= 0 < rows.dead:
            self._next_checkpoint_unix_nano = now + _CHECKPOINT_AGAIN_NS
        still = rows_to_remove(self._policy, measure(cursor, self._path), rows)
        return RetentionReport(sizes, checkpointed=True, more=freed > 0 or still > 0)


def evidence_since(cursor: duckdb.DuckDBPyConnection) -> int | None:
    """What was received before then is gone, in ns since the Unix epoch; None while nothing was deleted."""
    row = cursor.execute("SELECT value FROM meta WHERE key = ?", [SINCE_KEY]).fetchone()
    return int(row[0]) if row else None


def _largest(cursor: duckdb.DuckDBPyConnection) -> Rows:
    """The table whose age decides: the one with the most rows."""
    return max((_rows(cursor, table) for table in _ARRIVING), key=lambda rows: rows.live + rows.dead)


def _rows(cursor: duckdb.DuckDBPyConnection, table: str) -> Rows:
    row = cursor.execute(
        f"SELECT (SELECT count(*) FROM {table}), estimated_size FROM duckdb_tables() "
        "WHERE database_name = current_database() AND table_name = ?",
        [table],
    ).fetchone()
    live, occupied = (int(row[0]), int(row[1])) if row else (0, 0)
    return Rows(table, live, max(occupied - live, 0))


def _received_at(cursor: duckdb.DuckDBPyConnection, table: str, position: int) -> int | None:
    """When the row at this place from the beginning was received; the median of a few, as one clock may have jumped."""
    row = cursor.execute(
        f"SELECT quantile_disc(received_unix_nano, 0.5) FROM "
        f"(SELECT received_unix_nano FROM {table} LIMIT 2048 OFFSET {max(position - 1024, 0)})"
    ).fetchone()
    return None if row is None or row[0] is None else int(row[0])


def _delete(cursor: duckdb.DuckDBPyConnection, cut: int, count: int, bounded: str) -> dict[str, int]:
    """Delete what was received at `cut` or before, at most about `count` rows of one table; returns what it did."""
    cursor.begin()
    try:
        removed = _delete_received(cursor, cut, count, bounded)
        if removed:
            _record(cursor, cut, removed)
        cursor.commit()
    except duckdb.Error:
        with suppress(duckdb.TransactionException):  # a COMMIT that failed has rolled back
            cursor.rollback()
        raise
    return removed


def _delete_received(cursor: duckdb.DuckDBPyConnection, cut: int, count: int, bounded: str) -> dict[str, int]:
    old = f"received_unix_nano <= {cut}"
    first = cursor.execute(f"SELECT rowid FROM {bounded} WHERE {old} LIMIT 1").fetchone()
    # Rows of one request share their time, and those of an import all do: their order in the table goes on from there.
    wheres = dict.fromkeys(_ARRIVING, old)
    if first is not None:
        wheres[bounded] = f"{old} AND rowid < {int(first[0]) + count}"
    removed = {table: _delete_of_spans(cursor, table, wheres["spans"]) for table in _OF_SPANS}
    for table, where in wheres.items():
        removed[table] = _deleted(cursor, f"DELETE FROM {table} WHERE {where}")
    if not cursor.execute(f"SELECT 1 FROM spans WHERE {old} LIMIT 1").fetchone():
        removed["trace_arrivals"] = _deleted(cursor, f"DELETE FROM trace_arrivals WHERE last_{old}")
    return {table: rows for table, rows in removed.items() if rows}


def _delete_of_spans(cursor: duckdb.DuckDBPyConnection, table: str, spans: str) -> int:
    """Delete the rows that belong to these spans, from the beginning on until none is among those looked at."""
    removed, start = 0, 0
    while first := cursor.execute(f"SELECT rowid FROM {table} WHERE rowid >= {start} LIMIT 1").fetchone():
        start = int(first[0]) + _PROBE_ROWS
        found = _deleted(
            cursor,
            f"DELETE FROM {table} WHERE rowid >= {first[0]} AND rowid < {start} AND (trace_id, span_id) IN "
            f"(SELECT (trace_id, span_id) FROM spans WHERE {spans})",
        )
        removed += found
        if not found:
            break
    return removed


def _deleted(cursor: duckdb.DuckDBPyConnection, sql: str) -> int:
    row = cursor.execute(sql).fetchone()
    return int(row[0]) if row else 0


def _record(cursor: duckdb.DuckDBPyConnection, cut: int, removed: Mapping[str, int]) -> None:
    """Say in the file itself what is gone, in the transaction that deletes it."""
    oldest = [cursor.execute(f"SELECT min(received_unix_nano) FROM {table}").fetchone() for table in _EVIDENCE]
    left = [row[0] for row in oldest if row and row[0] is not None]
    values = {REMOVED_KEY + table: _meta(cursor, REMOVED_KEY + table) + rows for table, rows in removed.items()}
    values[SINCE_KEY] = max(_meta(cursor, SINCE_KEY), min([cut + 1, *left]))
    for key, value in values.items():
        cursor.execute("DELETE FROM meta WHERE key = ?", [key])
        cursor.execute("INSERT INTO meta VALUES (?, ?)", [key, str(value)])


def _meta(cursor: duckdb.DuckDBPyConnection, key: str) -> int:
    row = cursor.execute("SELECT value FROM meta WHERE key = ?", [key]).fetchone()
    return int(row[0]) if row else 0


def _sweep(cursor: duckdb.DuckDBPyConnection) -> dict[str, frozenset[int]]:
    """Delete resources and scopes that no span refers to; returns their ids."""
    forgotten = {}
    for table, key in _REFERRED.items():
        rows = cursor.execute(
            f"DELETE FROM {table} WHERE {key} NOT IN (SELECT DISTINCT {key} FROM spans) RETURNING {key}"
        ).fetchall()
        forgotten[table] = frozenset(int(row[0]) for row in rows)
    return {table: ids for table, ids in forgotten.items() if ids}

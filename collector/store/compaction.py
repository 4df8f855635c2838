"""An evidence file written anew without its free blocks, for the room that cannot wait for retention's next turn.

    worth_it(sizes, max_size_bytes) -> bool     after the limit was lowered, or once most of the file is free
    compact(store) -> None                      raises StoreError; the old file is untouched unless all went well
    remove_leftover(path)                       of a compaction that was killed; before the file is opened

The copy is `FILE.compact`, synced and checkpointed before it takes the file's name in one rename: a crash leaves the old file
or the new one, whole. Readers are answered from the old file until the rename; writes must wait, so it belongs to start-up:
two million spans take 12 s of CPU.
"""

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Final

import duckdb

from collector.errors import StoreError
from collector.store import database
from collector.store.database import Store, message
from collector.store.sizes import Sizes, measure

FREE_RATIO: Final = 0.5
"""Of the file: less is soon written again."""

SMALLEST_BYTES: Final = 256 * 1024 * 1024
"""Free space below this is not worth a second's wait."""

_log = logging.getLogger(__name__)


def worth_it(sizes: Sizes, max_size_bytes: int | None) -> bool:
    """Whether free blocks keep the file above its limit, or are most of a large file."""
    if max_size_bytes is not None and sizes.total_bytes > max_size_bytes:
        return sizes.free_bytes > sizes.file_bytes * 0.1
    return sizes.free_bytes > max(sizes.file_bytes * FREE_RATIO, SMALLEST_BYTES)


def remove_leftover(path: Path) -> None:
    """Delete an unfinished copy; raises StoreError."""
    try:
        for suffix in database.COMPACT_SUFFIXES:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    except OSError as e:
        raise StoreError(
            f"{path}.compact, left by a compaction that was killed, cannot be deleted: {e.strerror}"
        ) from e


def compact(store: Store) -> None:
    """Write the file anew and put the copy in its place; no other thread may write meanwhile. Raises StoreError.

    Older cursors answer nothing afterwards, as after `Store.reopen`.
    """
    remove_leftover(store.path)
    began, copy = time.monotonic(), store.path.with_name(f"{store.path.name}.compact")
    cursor = store.cursor()
    try:
        cursor.execute("CHECKPOINT")
        before = measure(cursor, store.path)
        _check_room(store.path, before)
        _copy(cursor, copy)
    except duckdb.Error as e:
        raise StoreError(f"{store.path} could not be compacted: {message(e)}; it is as it was") from e
    finally:
        cursor.close()
    try:
        with copy.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as e:
        raise StoreError(f"{store.path} could not be compacted: {copy.name}: {e.strerror}; it is as it was") from e
    store.reopen(copy)
    _log.info(
        "%s: compacted from %d to %d bytes in %.1f s",
        store.path,
        before.file_bytes,
        store.path.stat().st_size,
        time.monotonic() - began,
    )


def _copy(cursor: duckdb.DuckDBPyConnection, copy: Path) -> None:
    quoted = str(copy).replace("'", "''")
    cursor.execute(f"ATTACH '{quoted}' AS compacted ({database.NEW_FILE_OPTIONS})")
    try:
        cursor.execute(f"COPY FROM DATABASE {database.CATALOG} TO compacted")
        _check_counts(cursor)
        cursor.execute("CHECKPOINT compacted")
    finally:
        cursor.execute("DETACH compacted")


def _check_counts(cursor: duckdb.DuckDBPyConnection) -> None:
    tables = cursor.execute(
        "SELECT table_name FROM duckdb_tables() WHERE database_name = ?", [database.CATALOG]
    ).fetchall()
    for (table,) in tables:
        counts = cursor.execute(
            f"SELECT (SELECT count(*) FROM {database.CATALOG}.{table}), (SELECT count(*) FROM compacted.{table})"
        ).fetchone()
        if counts is None or counts[0] != counts[1]:
            raise StoreError(f"the copy of {table} is not whole: {counts}; the file is as it was")


def _check_room(path: Path, sizes: Sizes) -> None:
    free, needed = shutil.disk_usage(path.parent).free, sizes.file_bytes - sizes.free_bytes
    if free < needed * 1.1:
        raise StoreError(f"{path} could not be compacted: the copy needs {needed} bytes beside it, {free} are free")

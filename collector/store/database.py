"""One evidence file, opened: created with its tables, checked for its version, hardened before anyone can ask it anything.

DuckDB's lock is the ownership rule: while one process has the file open for writing, no other can open it, not even to read.

    Store.open(path)             create or open, for the collector; raises StoreError, StoreBusyError
    Store.open_read_only(path)   for everyone else; raises the same
"""

import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final, Self

import duckdb

from collector import schema
from collector.errors import StoreBusyError, StoreError, StoreInUseError
from collector.store import failures, machine
from collector.store.birth import make_whole
from collector.store.failures import message
from collector.store.memory import WRITING_BYTES, Allowance
from collector.store.spilled import forget_spilled, spill_folder

__all__ = [
    "CATALOG",
    "COMPACT_SUFFIXES",
    "CREATE_META",
    "NEW_FILE_OPTIONS",
    "ROW_GROUP_ROWS",
    "Store",
    "message",
    "release",
]

CREATE_META: Final = "CREATE TABLE IF NOT EXISTS meta (key VARCHAR NOT NULL, value VARCHAR NOT NULL)"

_STORAGE_VERSION: Final = "v1.5.0"
"""A default file of DuckDB 2 cannot be opened by 1.5; a file in 1.5's format can be opened by both."""

ROW_GROUP_ROWS: Final = 20_480
"""Rows in a row group: what the writer fills in one piece, and the grain at which zone maps prune. DuckDB forgets it when
the file is closed, so that it is said at every opening; `duckdb.connect(file)` has no way to say it, ATTACH has."""

CATALOG: Final = "evidence"
"""The name under which the file is attached to an instance that has no other."""

_FILE_OPTIONS: Final = f"TYPE duckdb, ROW_GROUP_SIZE {ROW_GROUP_ROWS}"
NEW_FILE_OPTIONS: Final = f"{_FILE_OPTIONS}, STORAGE_VERSION '{_STORAGE_VERSION}'"
"""What ATTACH is told of a file that it is to make."""

COMPACT_SUFFIXES: Final = (".compact", ".compact.wal", ".compact.wal.checkpoint", ".compact.wal.recovery")
"""What a compaction writes beside the file: see compaction.py."""

_CONFIG: Final[dict[str, str | bool | int | float | list[str]]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    # Into `FILE.tmp` beside the file, so what a question spills must leave the disk to the evidence.
    "max_temp_directory_size": "8GiB",
    # At 16 MB, DuckDB's default, ingest costs two and a half times the CPU: each checkpoint rewrites what is half full.
    "checkpoint_threshold": "64MB",
    # Raised for questions, lowered behind them (see memory.py): no statement that the reader lets through can change it.
    "allowed_configs": ["memory_limit", "threads"],
}

_HARDENING: Final = (
    # Investigators' SQL runs in this process: no files, no network, no extensions, and no way to turn them on again.
    # The database's own file, its WAL and its spill directory stay allowed. Only after ATTACH, which needs the files.
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)

_HEADERS_BYTES: Final = 3 * 4096
"""Before the first block of a DuckDB file."""

_COLLECTOR_MEMORY_BYTES: Final = 1024**3
"""At most, and at most a quarter of the machine: a collector runs beside what it watches. Larger questions spill. On a
million spans `scan --kind shadow` peaks at 1.3 GB of process memory with it and at 3.1 GB without any, in 47 s and 30 s."""

_READER_MEMORY_BYTES: Final = 4 * 1024**3
"""At most, and at most half of what there is: a laptop has other work, and a pod that takes all of its memory is killed."""


_RELEASE_SECONDS: Final = 5.0
"""How long a reopening waits for queries that it has interrupted; one that builds a large value looks late."""

_INTERRUPT_AGAIN_SECONDS: Final = 0.02


@dataclass(slots=True, eq=False)
class Store:
    """One open evidence file. Cursors are independent connections; each belongs to the thread that asked for it.

    Nothing else in this process may open the file, not even to copy it: closing any descriptor of it gives up the lock
    that keeps a second collector away.

    Attributes:
        path: The file, absolute.
        read_only: Whether it was opened without the right to write.
        memory: What DuckDB may hold while it writes, and while it answers.
        generation: How often it was opened again: a cursor serves its own generation only.
    """

    path: Path
    read_only: bool
    _connection: duckdb.DuckDBPyConnection
    _identity: tuple[int, int]
    memory: Allowance
    generation: int = 0
    _stand_ins: tuple[str, ...] = ()
    _unusable: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _cursors: "weakref.WeakSet[duckdb.DuckDBPyConnection]" = field(default_factory=weakref.WeakSet)

    @classmethod
    def open(cls, path: str | Path, *, memory_bytes: int | None = None) -> Self:
        """Create the file or open it for writing; raises StoreBusyError, StoreError.

        `memory_bytes` is what DuckDB may hold while it answers (default: see `_memory_limit`).
        """
        return cls._open(Path(path), read_only=False, memory_bytes=memory_bytes)

    @classmethod
    def open_read_only(cls, path: str | Path, *, memory_bytes: int | None = None) -> Self:
        """Open an existing file that no collector holds; raises StoreBusyError, StoreError. `memory_bytes` as of `open`."""
        return cls._open(Path(path), read_only=True, memory_bytes=memory_bytes)

    @classmethod
    def _open(cls, path: Path, *, read_only: bool, memory_bytes: int | None = None) -> Self:
        path = path.absolute()
        _check_path(path, read_only=read_only)
        limit = memory_bytes or _memory_limit(read_only=read_only)
        if not read_only:
            make_whole(path, lambda unfinished: _attach(unfinished, limit, read_only=False).close())
        connection = _connect(path, limit, read_only=read_only)
        if not read_only:
            forget_spilled(path)
        memory = Allowance(limit if read_only else WRITING_BYTES, limit)
        missing = _stand_ins(connection, path) if read_only else ()
        return cls(path, read_only, connection, _identity(path), memory, _stand_ins=missing)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the same file; raises StoreError once the store is closed.

        Its default database is the file. A cursor made from a cursor starts without one: ask the store for each.
        """
        with self._lock:
            if self._unusable is not None:
                raise StoreError(self._unusable)
            try:
                cursor = self._connection.cursor().execute(f"USE {CATALOG}")
                for statement in self._stand_ins:
                    cursor.execute(statement)
            except duckdb.Error as e:
                raise StoreError(f"{self.path}: the database cannot be used: {message(e)}") from e
            self._cursors.add(cursor)
            return cursor

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file; raises StoreError, after which the store may need to be reopened."""
        cursor = self.cursor()
        try:
            cursor.execute("CHECKPOINT")
        except duckdb.Error as e:
            raise StoreError(f"{self.path}: the checkpoint failed: {message(e)}") from e
        finally:
            cursor.close()

    def lower_memory(self) -> None:
        """Take back what questions were lent, if the last one is long enough ago; call it now and then."""
        try:
            cursor = self.cursor()
        except StoreError:
            return  # whoever writes opens it again, and says why it cannot
        try:
            self.memory.lower_when_idle(cursor)
        except duckdb.Error as e:
            if not failures.needs_reopen(e):
                raise StoreError(f"{self.path}: its memory could not be limited: {message(e)}") from e
        finally:
            cursor.close()

    def reopen(self, replacement: Path | None = None) -> None:
        """Close the file and open it again in place: what DuckDB asks for after an error that `needs_reopen`.

        Running queries are interrupted, and cursors handed out before answer nothing any more. With a replacement, that
        file takes the evidence file's name in between. Raises StoreError where it cannot be opened (no room to replay the
        WAL, another process was faster); then every `cursor()` says so, until a later reopen succeeds.
        """
        with self._lock:
            if self._unusable == self._closed():
                raise StoreError(self._closed())
            self._unusable = f"{self.path} could not be opened again; see the collector's log"
            self.generation += 1
            try:
                self._release(replacement)
                self._connection = self._persist(
                    lambda: _connect(self.path, self.memory.largest, read_only=self.read_only)
                )
                self._identity = _identity(self.path)
            except StoreError as e:
                self._unusable = str(e)
                raise
            self.memory.reopened()
            self._unusable = None

    def is_in_place(self) -> bool:
        """Whether the file that is open is the one that has its name: not removed, not replaced by somebody else."""
        try:
            return _identity(self.path) == self._identity
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Release the file; the last close also checkpoints. A second call does nothing."""
        with self._lock:
            self._unusable = self._closed()
            self._close_connection()

    def _closed(self) -> str:
        return f"{self.path}: the store is closed"

    def _release(self, replacement: Path | None) -> None:
        """Let go of the file, though cursors are still about: DuckDB closes it with the last transaction on it."""
        if self._cursors:
            self._interrupt()  # DuckDB 1.5 lets go of the catalog only when what runs on it has ended
        # A cursor that is being made or closed elsewhere keeps its instance open; a catalog that is detached, it does not.
        with suppress(duckdb.Error):  # the whole instance may be invalid: then nothing runs on it any more
            self._connection.execute("ATTACH IF NOT EXISTS ':memory:' AS released").execute("USE released")
            self._connection.execute(f"DETACH DATABASE IF EXISTS {CATALOG}")
        self._close_connection()
        if replacement is not None:
            # The last to close the file also clears its WAL away: it must be closed before another takes its name.
            self._persist(lambda: _attach(self.path, self.memory.largest, read_only=True)).close()
            _replace(replacement, self.path)

    def _persist(self, attach: Callable[[], duckdb.DuckDBPyConnection]) -> duckdb.DuckDBPyConnection:
        """Attach the file, as soon as no query of this process holds it any more."""
        deadline = time.monotonic() + _RELEASE_SECONDS
        while True:
            try:
                connection = attach()
            except StoreInUseError:
                if time.monotonic() > deadline:
                    raise
            else:
                self._cursors.clear()
                return connection
            self._interrupt()

    def _close_connection(self) -> None:
        """Close the instance and every cursor on it; raises StoreError where a query does not end."""
        deadline = time.monotonic() + _RELEASE_SECONDS
        while True:
            try:
                self._connection.close()
            except duckdb.Error as e:  # a cursor runs a query: DuckDB 2 refuses to close it, and to wait
                if time.monotonic() > deadline:
                    raise StoreError(f"{self.path}: a query does not end: {message(e)}") from e
            else:
                return
            self._interrupt()

    def _interrupt(self) -> None:
        """End what runs on the cursors, and leave it a moment."""
        for cursor in list(self._cursors):
            with suppress(duckdb.Error):  # closed by its owner meanwhile
                cursor.interrupt()
        time.sleep(_INTERRUPT_AGAIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _connect(path: Path, memory_bytes: int, *, read_only: bool) -> duckdb.DuckDBPyConnection:
    """A hardened instance whose only database is this file, with its tables; raises StoreError."""
    is_new = not path.exists()
    try:
        connection = _attach(path, memory_bytes, read_only=read_only)
        try:
            _check_length(connection, path)
            if read_only:
                _check_version(connection, path)
            else:
                _create(connection, path)
        except BaseException:
            connection.close()
            raise
    except StoreBusyError:
        raise
    except StoreError:
        # Half a file, of a disk that is full, would be taken for a damaged one the next time.
        if is_new and path.exists():
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.wal").unlink(missing_ok=True)
        raise
    return connection


def _attach(path: Path, memory_bytes: int, *, read_only: bool) -> duckdb.DuckDBPyConnection:
    limits = {"memory_limit": f"{memory_bytes}B", "temp_directory": str(spill_folder(path))}
    connection = duckdb.connect(":memory:", config=_CONFIG | limits)
    try:
        quoted = str(path).replace("'", "''")
        connection.execute(f"ATTACH '{quoted}' AS {CATALOG} ({_options(path, read_only=read_only)})")
        connection.execute(f"USE {CATALOG}")
        # What nobody can reach, nobody fills: without it the evidence is the only catalog that tables may be made in.
        connection.execute("DETACH memory")
        for statement in (f"SET allowed_paths = [{_quoted(path)}]", *_HARDENING):
            connection.execute(statement)
    except duckdb.Error as e:
        connection.close()
        raise failures.opening(e, path) from e
    return connection


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _replace(replacement: Path, path: Path) -> None:
    """Put another file in the file's place, so that a crash leaves one of them whole; raises StoreError."""
    try:
        replacement.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as e:
        raise StoreError(f"{path} could not be replaced by {replacement.name}: {e.strerror}") from e


def _quoted(path: Path) -> str:
    """The only other files that the instance may touch, as SQL."""
    paths = [f"{path}{suffix}".replace("'", "''") for suffix in COMPACT_SUFFIXES]
    return ", ".join(f"'{name}'" for name in paths)


def _options(path: Path, *, read_only: bool) -> str:
    """What ATTACH is told of the file."""
    # The type, lest DuckDB takes another program's file for what an extension could read.
    if read_only:
        return "TYPE duckdb, READ_ONLY"
    is_new = not path.exists() or path.stat().st_size == 0
    # An existing file keeps its version, and one that has a newer format than this is refused if it is named.
    return NEW_FILE_OPTIONS if is_new else _FILE_OPTIONS


def release() -> str:
    """This distribution's version; 'unknown' where it runs from a tree that was never installed."""
    try:
        return metadata.version("mesh-provenance")
    except metadata.PackageNotFoundError:
        return "unknown"


def _memory_limit(*, read_only: bool) -> int:
    """Bytes that DuckDB may hold: up to half of what there is for an investigator's file, less for a collector."""
    there_is = machine.memory_bytes()
    return min(there_is // 2, _READER_MEMORY_BYTES) if read_only else min(there_is // 4, _COLLECTOR_MEMORY_BYTES)


def _check_path(path: Path, *, read_only: bool) -> None:
    """The mistakes that DuckDB reports in its own terms, reported in ours."""
    try:
        if path.is_dir():
            raise StoreError(f"{path} is a directory; name a file in it, such as {path / 'evidence.duckdb'}")
        if read_only and not path.exists():
            raise StoreError(f"{path}: no such file; `provenance collect --db {path}` creates one")
        if not path.parent.is_dir():
            raise StoreError(f"{path}: the directory {path.parent} does not exist; create it first")
    except OSError as e:  # a directory on the way to it that may not be entered, a name that is too long
        raise StoreError(
            f"{path} cannot be looked at: {e.strerror}; check the path and the modes of its directories"
        ) from e


def _create(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Create the tables of a new file, or bring those of an existing one up to date."""
    from collector.store import migrations

    try:
        if _tables(connection):
            migrations.migrate(connection, path)
        connection.begin()
        if "meta" not in _tables(connection):
            connection.execute(CREATE_META)
            rows = [("schema_version", str(schema.SCHEMA_VERSION)), ("created_by", f"mesh-provenance {release()}")]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        for table in (*schema.TABLES, *schema.DERIVED_TABLES):
            connection.execute(schema.ddl(table))
        for macro in schema.MACROS.values():
            connection.execute(macro)
        connection.commit()
    except duckdb.Error as e:
        raise StoreError(f"{path}: the tables could not be created: {message(e)}") from e


def _check_length(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Refuse a file that was cut off: DuckDB would open it, and fail on the rows that are missing once they are asked for.

    Used blocks, not all of them: a checkpoint cuts free blocks off the end, and counts them all the same. So of a file with
    free blocks a part of the end may be missing unnoticed.
    """
    try:
        row = connection.execute("SELECT block_size * used_blocks FROM pragma_database_size()").fetchone()
    except duckdb.Error as e:
        raise failures.opening(e, path) from e
    missing = (int(row[0]) if row else 0) + _HEADERS_BYTES - path.stat().st_size
    if missing > 0:
        raise StoreError(
            f"{path} is damaged: {missing} bytes at its end are missing; keep it as it is, and restore a copy"
        )


def _tables(connection: duckdb.DuckDBPyConnection) -> set[str]:
    rows = connection.execute(
        "SELECT table_name FROM duckdb_tables() WHERE database_name = current_database()"
    ).fetchall()
    return {name for (name,) in rows}


def _check_version(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    from collector.store import migrations

    migrations.check_readable(migrations.stored_version(connection, path), path)


def _stand_ins(connection: duckdb.DuckDBPyConnection, path: Path) -> tuple[str, ...]:
    from collector.store import migrations

    return migrations.stand_ins(migrations.stored_version(connection, path), CATALOG)

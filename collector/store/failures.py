"""What DuckDB's errors mean for an evidence file: pure, from an error to a judgement or a message.

Seen on small filesystems with DuckDB 2.0 and 1.5:

| what failed                         | the rows            | the database            |
|-------------------------------------|---------------------|-------------------------|
| writing the WAL at COMMIT           | not stored          | goes on when there is room |
| the checkpoint right after a COMMIT | stored and durable  | invalidated: reopen     |
| the checkpoint instead of the WAL   | not stored          | invalidated: reopen     |
| a CHECKPOINT of its own             | stored since long   | invalidated: reopen     |
| memory, at COMMIT                   | not stored          | columns of unequal lengths in memory, which the next checkpoint finds: reopen |
| an internal error                   | not known           | invalidated: reopen     |

    is_out_of_space(error)    no room: keep the rows and try again later
    is_out_of_memory(error)   DuckDB's own limit is too low for it: again with the higher one, which a reopened file has too
    is_read_only(error)       the filesystem takes no writes any more: the same
    is_committed(error)       COMMIT raised it, and yet the transaction is stored: do not write its rows again
    needs_reopen(error)       nothing works on this database until Store.reopen()
    opening(error, path)      why a file could not be opened, what was expected, and what to try
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import duckdb

from collector.errors import StoreBusyError, StoreError, StoreInUseError

# ENOSPC, EDQUOT and EFBIG as strerror has them; Windows is not among our platforms.
_OUT_OF_SPACE: Final = ("no space left on device", "disk quota exceeded", "file too large", "out of disk space")
_OUT_OF_MEMORY: Final = ("could not allocate block", "failed to allocate")
_READ_ONLY: Final = ("read-only file system",)
_INVALIDATED: Final = (
    "has been invalidated",
    # The file itself was closed below: after a reopen that failed, or by a DETACH.
    'catalog "evidence" does not exist',
    "connection already closed",
)
_NOT_COMMITTED: Final = "failed to commit"
_DURABLE: Final = "commit succeeded and is durable"


def message(error: duckdb.Error) -> str:
    """DuckDB's message without the names of its classes, its stack and its links."""
    text = str(error).split("\n\nSee also", 1)[0].split("\n\nStack Trace", 1)[0].strip()
    head, separator, rest = text.partition(" Error: ")
    return rest if separator and "\n" not in head and len(head) < 40 else text


def is_out_of_space(error: BaseException) -> bool:
    """Whether it failed for want of room on the disk: of the file, its WAL or what a query spilled."""
    return _says(error, _OUT_OF_SPACE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it needed more than DuckDB's own limit; of a COMMIT only the words say so."""
    return isinstance(error, duckdb.OutOfMemoryException) or _says(error, _OUT_OF_MEMORY)


def is_read_only(error: BaseException) -> bool:
    """Whether the filesystem refuses every write, as one that was remounted after an I/O error does."""
    return _says(error, _READ_ONLY)


def is_committed(error: BaseException) -> bool:
    """Whether the transaction whose COMMIT raised this is stored all the same: only the checkpoint after it failed."""
    return _says(error, (_DURABLE,))


def needs_reopen(error: BaseException) -> bool:
    """Whether the open database is of no use any more, though the file may be."""
    if is_out_of_memory(error) and _says(error, (_NOT_COMMITTED,)):
        return True
    return isinstance(error, duckdb.FatalException | duckdb.InternalException) or _says(
        error, (*_INVALIDATED, _DURABLE)
    )


def _says(error: BaseException, phrases: tuple[str, ...]) -> bool:
    lowered = str(error).lower()
    return any(phrase in lowered for phrase in phrases)


def opening(error: duckdb.Error, path: Path) -> StoreError:
    """The error of a file that could not be opened."""
    text = message(error)
    lowered = text.lower()
    for phrases, explain in _OPENING:
        if any(phrase in lowered for phrase in phrases):
            return explain(path, text)
    return StoreError(f"{path} cannot be opened: {text}")


def _busy(path: Path, text: str) -> StoreError:
    return StoreBusyError(
        f"{path} is held by another process ({_holder(text)}); "
        "if that is a collector, ask it instead: use its URL, such as http://127.0.0.1:4318"
    )


def _ours(path: Path, _: str) -> StoreError:
    return StoreInUseError(f"{path} is already open in this process; close it first, or use the collector's URL")


def _no_database(path: Path, _: str) -> StoreError:
    return StoreError(f"{path} exists, but it is not a DuckDB file; name another file")


def _newer(path: Path, text: str) -> StoreError:
    return StoreError(
        f"{path} was written by a newer DuckDB than the {duckdb.__version__} here ({_first_sentence(text)}); "
        "upgrade duckdb, or open it with the release that wrote it"
    )


def _no_permission(path: Path, _: str) -> StoreError:
    return StoreError(f"{path}: no permission to open it for this; check the owner and mode of it and its directory")


def _no_writes(path: Path, _: str) -> StoreError:
    return StoreError(
        f"{path} is on a filesystem that is mounted read-only; remount it, or name a file elsewhere: "
        "`provenance scan` and `provenance sql` can read it where it is"
    )


def _no_room(path: Path, text: str) -> StoreError:
    return StoreError(
        f"{path} cannot be opened: no space left for it on the disk ({_first_sentence(text)}); "
        f"free some beside {path.parent}, or name a file elsewhere"
    )


def _broken_wal(path: Path, text: str) -> StoreError:
    return StoreError(
        f"{path}.wal, the newest commits of {path.name}, cannot be replayed ({_first_sentence(text)}); keep both files, and "
        f"move {path.name}.wal aside to open what was in the file before them"
    )


def _corrupt(path: Path, text: str) -> StoreError:
    return StoreError(
        f"{path} is damaged: {_first_sentence(text)}; keep it as it is, restore a copy, or collect into a new file. "
        "What can still be read of it, `EXPORT DATABASE` of the duckdb shell may save"
    )


_OPENING: Final[tuple[tuple[tuple[str, ...], Callable[[Path, str], StoreError]], ...]] = (
    (("conflicting lock", "could not set lock"), _busy),
    (("file handle conflict",), _ours),
    (("newer", "unsupported version", "higher storage version", "storage version number"), _newer),
    (("not a valid duckdb database",), _no_database),
    (_OUT_OF_SPACE, _no_room),
    (_READ_ONLY, _no_writes),
    (("permission denied", "operation not permitted"), _no_permission),
    (("replaying wal", "wal file", "write-ahead log"), _broken_wal),
    (("corrupt", "checksum", "could not read enough bytes", "deserialize", "out of range", "end of buffer"), _corrupt),
)
"""In this order: DuckDB has one kind of exception for most of them, so that its words are what tells them apart."""


def _holder(text: str) -> str:
    found = re.search(r"PID \d+", text)
    return found[0] if found else "its lock says so"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[^.])\. |\n", text, maxsplit=1)[0].rstrip(".")

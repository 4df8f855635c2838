"""The journal beside an evidence file: requests as they arrived, durable before their rows are in any table.

DuckDB is cheapest when it receives whole row groups, several times a second; a sender wants its answer within
milliseconds. So a request is first appended here, with one fdatasync for all that arrived meanwhile, and then acknowledged.
The writer inserts its rows within a quarter of a second and notes in the same transaction how far the tables have come;
what lies before that is deleted, and after a crash what lies behind it is inserted first.

    FILE.journal/0000000001      the line "mesh-provenance journal 1 <id>", then records:
        length   u32  of the payload
        crc32    u32  of received and payload
        received u64  ns since the Unix epoch
        payload       a serialised ExportTraceServiceRequest

All little-endian. A record whose checksum does not fit ends its segment: it was being written when the machine stopped, and nobody
was told that it is safe. The id ties a journal to its evidence file, which holds it in `meta`.
"""

import logging
import os
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from collector.errors import StoreError
from collector.store.database import Store

SEGMENT_BYTES: Final = 64 * 1024 * 1024
"""A segment is deleted as a whole, so this is about how much longer than needed a journal may be."""

_WORTH_DELETING_BYTES: Final = 1024 * 1024
"""A segment of which nothing is needed any more, but that is not full, goes when it is at least this long."""

_RECORD: Final = struct.Struct("<IIQ")
_RECEIVED: Final = struct.Struct("<Q")
_WRITE_AT_ONCE: Final = 512
"""writev takes at most IOV_MAX (1024) buffers; a record is two."""


_log = logging.getLogger(__name__)


class Position(NamedTuple):
    """A place in the journal: everything before it, that is in earlier segments or at smaller offsets, is older."""

    segment: int
    offset: int

    def __str__(self) -> str:
        return f"{self.segment}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """What `str` made. Raises ValueError."""
        segment, _, offset = text.partition(":")
        return cls(int(segment), int(offset))


START: Final = Position(0, 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One request, and the place behind it."""

    received_unix_nano: int
    payload: bytes
    end: Position


class Journal:
    """One journal, written by one thread; `release` may come from another.

    Args:
        folder: Where the segments are; made when the first request is written.
        identity: Of the evidence file, one word.
        after: How far the tables have come.
        segment_bytes: How long a segment gets (default: SEGMENT_BYTES).
    """

    def __init__(
        self, folder: Path, identity: str, after: Position = START, *, segment_bytes: int | None = None
    ) -> None:
        self._folder = folder
        self._segment_bytes = SEGMENT_BYTES if segment_bytes is None else segment_bytes
        self._header = f"mesh-provenance journal 1 {identity}\n".encode()
        self._after = after
        self._end = after
        self._replayed: int | None = None
        # Never an old segment again: what its last record is worth is known only once it was replayed.
        self._number = max([after.segment, *self._segments()])
        self._file: int | None = None
        self._offset = 0

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(self, requests: Sequence[tuple[int, bytes]]) -> Position:
        """Append (received_unix_nano, payload) each, durably; returns the place behind them. Raises StoreError.

        After an error nothing of it counts: a later write begins a segment of its own.
        """
        records = [part for received, payload in requests for part in (_head(received, payload), payload)]
        try:
            file = self._open_segment()
            self._offset += _write_all(file, records)
            os.fdatasync(file)
        except OSError as error:
            self._abandon_segment()
            raise StoreError(
                f"{self._folder}: requests cannot be kept: {error.strerror or error}; free some space, or mend the disk"
            ) from error
        self._end = Position(self._number, self._offset)
        return self._end

    @property
    def end(self) -> Position:
        """The place behind the last request that was read or written."""
        return self._end

    def _open_segment(self) -> int:
        if self._file is not None and self._offset < self._segment_bytes:
            return self._file
        self._close_segment()
        self._folder.mkdir(exist_ok=True)
        self._number += 1
        self._file = os.open(self._path(self._number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._offset = _write_all(self._file, [self._header])
        self._sync_folder()
        return self._file

    def _abandon_segment(self) -> None:
        """Cut off what a failed write left: its senders will send it again."""
        if self._file is not None:
            with suppress(OSError):
                os.ftruncate(self._file, self._offset)
        with suppress(OSError):
            self._close_segment()

    def _close_segment(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _sync_folder(self) -> None:
        """A file is durable only when its name is."""
        for folder in (self._folder, self._folder.parent):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    # --- forgetting ---------------------------------------------------------------------------------------------------

    def release(self, position: Position) -> None:
        """Everything before this place is in the tables: segments that hold nothing else are deleted."""
        self._after = max(self._after, position)
        for number in self._segments():
            done = number < self._after.segment
            if done:
                self._path(number).unlink(missing_ok=True)

    def retire(self) -> None:
        """Between two writes: end a segment of which nothing is needed, so that an idle journal takes no room."""
        if self._offset >= _WORTH_DELETING_BYTES and self._after >= Position(self._number, self._offset):
            self._close_segment()
            self._offset = 0
            self._path(self._number).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the segment, and leave no file behind of which nothing is needed."""
        self._close_segment()
        segments = self._segments()
        if not any(self._is_needed(number) for number in segments):
            for number in segments:
                self._path(number).unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                self._folder.rmdir()

    def _is_needed(self, number: int) -> bool:
        """Whether a segment may hold a request that is not in the tables: what is no whole record at its end is none."""
        if self._replayed is not None and number <= self._replayed:
            return self._end > self._after
        size = self._path(number).stat().st_size
        return size > len(self._header) and Position(number, size) > self._after

    # --- reading ------------------------------------------------------------------------------------------------------

    def replay(self) -> Iterator[Entry]:
        """The requests that are not in the tables yet, in order. Raises StoreError for another file's journal."""
        last = max(self._segments(), default=None)
        for entry in self.entries(warn=_log.warning):
            self._end = entry.end
            yield entry
        self._replayed = last

    def entries(self, warn: Callable[..., None] | None = None) -> Iterator[Entry]:
        """The same, to be looked at only; `warn` is told where a segment ends in what is no whole record."""
        for number in self._segments():
            if number >= self._after.segment:
                yield from self._read(number, self._after.offset if number == self._after.segment else 0, warn)

    def _read(self, number: int, start: int, warn: Callable[..., None] | None) -> Iterator[Entry]:
        path = self._path(number)
        with path.open("rb") as file:
            header = file.read(len(self._header))
            if not self._header.startswith(header):
                raise StoreError(
                    f"{path} is not this evidence file's journal (it begins with {header[:26]!r}); "
                    f"move {self._folder} away, or put back the evidence file that it belongs to"
                )
            file.seek(max(start, len(header)))
            while (head := file.read(_RECORD.size)) and len(head) == _RECORD.size:
                length, checksum, received = _RECORD.unpack(head)
                payload = file.read(length)
                if len(payload) < length or _checksum(received, payload) != checksum:
                    break
                start = file.tell()
                yield Entry(received, payload, Position(number, start))
            torn = path.stat().st_size - max(start, len(header))
            if torn and warn is not None:
                warn(
                    "%s: the last %d bytes are no whole record and were left out; nobody was told they are safe",
                    path,
                    torn,
                )

    # --- files --------------------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """What the segments take on disk."""
        sizes = 0
        for number in self._segments():
            with suppress(FileNotFoundError):
                sizes += self._path(number).stat().st_size
        return sizes

    def _segments(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:010d}"


def _head(received: int, payload: bytes) -> bytes:
    return _RECORD.pack(len(payload), _checksum(received, payload), received)


def _checksum(received: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_RECEIVED.pack(received)))


def _write_all(file: int, parts: Sequence[bytes]) -> int:
    """Write the parts one after the other, however many calls that takes; returns how many bytes they were."""
    written = 0
    for first in range(0, len(parts), 2 * _WRITE_AT_ONCE):
        waiting = [memoryview(part) for part in parts[first : first + 2 * _WRITE_AT_ONCE] if part]
        while waiting:
            count = os.writev(file, waiting)
            written += count
            while waiting and count >= len(waiting[0]):
                count -= len(waiting.pop(0))
            if waiting:
                waiting[0] = waiting[0][count:]
    return written


# --- whose journal ------------------------------------------------------------------------------------------------------


def open_journal(store: Store, *, segment_bytes: int | None = None) -> Journal:
    """The journal of an evidence file, as far as its tables have come. Raises StoreError."""
    cursor = store.cursor()
    try:
        known = dict(cursor.execute("SELECT key, value FROM meta WHERE key LIKE 'journal_%'").fetchall())
        missing = {"journal_id": uuid.uuid4().hex, "journal_position": str(START)}
        new = [(key, value) for key, value in missing.items() if key not in known]
        if new:
            cursor.executemany("INSERT INTO meta VALUES (?, ?)", new)
        known = missing | known
    finally:
        cursor.close()
    after = Position.parse(known["journal_position"])
    return Journal(folder_of(store.path), known["journal_id"], after, segment_bytes=segment_bytes)


def folder_of(path: Path) -> Path:
    """Where the journal of an evidence file is."""
    return path.with_name(f"{path.name}.journal")


@dataclass(frozen=True, slots=True)
class Unread:
    """Requests in a journal that are not in the tables, and their bytes."""

    requests: int = 0
    size_bytes: int = 0


def unread(store: Store) -> Unread:
    """What a crash left in the journal beside an evidence file, which may be open to read. Raises StoreError.

    Only that it is an evidence file's own is asked of a journal: what is no whole record at its end is not counted.
    """
    folder = folder_of(store.path)
    try:
        if not folder.is_dir() or not any(folder.iterdir()):
            return Unread()
        cursor = store.cursor()
        try:
            known = dict(cursor.execute("SELECT key, value FROM meta WHERE key LIKE 'journal_%'").fetchall())
        finally:
            cursor.close()
        journal = Journal(
            folder, known.get("journal_id", ""), Position.parse(known.get("journal_position", str(START)))
        )
        sizes = [len(entry.payload) for entry in journal.entries()]
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror or error}") from error
    return Unread(len(sizes), sum(sizes))

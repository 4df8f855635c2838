"""Follows access logs and flow logs while they are written, across rotation, truncation and restarts of the collector.

Each line is stored exactly once: what was read and how far go into the same transaction, and a file that is opened
again is recognised by its first bytes, not by its name. So a collector that comes back reads on where it had committed,
in the rotated file first if the log was rotated meanwhile.
"""

import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, Self

import pyarrow as pa

from collector.errors import StoreError, StoreFullError
from collector.schema import arrow_schema
from collector.witnesses.envoy import MAX_LINE_BYTES, Direction, Origin
from collector.witnesses.reading import Format, Header, Reader, make_reader

POLL_SECONDS: Final = 0.1
RETRY_SECONDS: Final = 1.0
CLOSE_SECONDS: Final = 10.0
"""How long a last reading may try while the store's queue is full."""

CHUNK_BYTES: Final = 1024 * 1024
HEAD_BYTES: Final = 1024
"""A file is known by this many first bytes: the first lines of a log carry a time and a request id."""

HEADER_BYTES: Final = 64 * 1024
"""Of a file that is read on from its middle: what its header lines are looked for in. Zeek's take one."""

DIED: Final = "the thread that reads access logs died, its traceback is on stderr; restart the collector"

_log = logging.getLogger(__name__)


class Appender(Protocol):
    """The store's writer."""

    def append(self, batches: Mapping[str, pa.RecordBatch]) -> Future[None]:
        """Queue the batches; the future is done once they are committed."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a file was read, as the table `access_logs` keeps it.

    Attributes:
        offset_bytes: Everything before it is committed.
        head_bytes: How many first bytes `head_hash` covers.
        head_hash: Hex SHA-256 of them.
    """

    offset_bytes: int
    head_bytes: int
    head_hash: str


@dataclass(frozen=True, slots=True)
class LogFile:
    """One log to follow: where it is, whose proxy writes it, its direction if its lines do not say, and its format."""

    path: Path
    service_name: str
    direction: Direction | None = None
    format: Format = "envoy"

    @property
    def source(self) -> str:
        """Its name in `proxy_records.source` and `flows.source`."""
        return os.path.abspath(self.path)  # noqa: PTH100 Path.absolute keeps `..`; resolve() would follow the link that rotation moves

    def reader(self) -> Reader:
        """What reads its lines."""
        return make_reader(self.format, Origin(self.source, self.service_name, self.direction))


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What one reading found: rows of a table, refused lines by reason, and where and with which header to read on."""

    table: str
    rows: pa.RecordBatch
    refused: Counter[str]
    end: int
    header: Header
    skipping: bool
    more: bool


@dataclass(slots=True)
class _Tail:
    """One file that is being read. Only the follower's thread changes it."""

    log: LogFile
    position: Position | None
    reader: Reader
    header: Header = None
    fd: int | None = None
    offset: int = 0
    head: bytes = b""
    skipping: bool = False
    backlog: list[Path] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    refused: int = 0
    error: str | None = None
    caught_up_unix_nano: int | None = None


class Follower:
    """Reads a set of access logs on one thread and appends what they say."""

    def __init__(
        self,
        logs: Iterable[LogFile],
        writer: Appender,
        positions: Mapping[str, Position],
        *,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tails = [_Tail(log, positions.get(log.source), log.reader()) for log in logs]
        self._writer = writer
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-logs", daemon=True)

    def start(self) -> Self:
        """Begin to read."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Read what is there by now, commit it, and stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for tail in self._tails:
            _close(tail)

    def status(self) -> list[dict[str, object]]:
        """One dict a log: how far behind it is, how many lines were stored and refused, and what is in the way."""
        now = self._clock()
        died = self._thread.ident is not None and not self._thread.is_alive() and not self._stop.is_set()
        return [_status(tail, now) | ({"error": DIED} if died else {}) for tail in self._tails]

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._pass():
                self._stop.wait(POLL_SECONDS)
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._pass() and time.monotonic() < deadline:
            pass

    def _pass(self) -> bool:
        """Read once from every log and commit it; True when one of them has more to read at once."""
        read = [(tail, chunk) for tail in self._tails if (chunk := self._read(tail)) is not None]
        queued = [(tail, chunk, self._append(tail, chunk)) for tail, chunk in read]
        committed = [self._committed(tail, chunk, future) for tail, chunk, future in queued]
        return any(committed)

    def _read(self, tail: _Tail) -> _Chunk | None:
        """The next lines of a log; None when there are none now."""
        try:
            chunk = _next_chunk(tail, self._clock)
        except OSError as e:
            tail.error = f"{e.strerror}: {e.filename or tail.log.source}"
            return None
        if chunk is None:
            return None
        if not chunk.more:
            tail.caught_up_unix_nano = self._clock()
        return chunk if chunk.rows.num_rows or chunk.refused or chunk.end != tail.offset else None

    def _append(self, tail: _Tail, chunk: _Chunk) -> Future[None] | None:
        """Queue a reading, waiting while the queue is full; None when the store does not take it."""
        batches = _batches(tail, chunk, self._clock())
        deadline = time.monotonic() + CLOSE_SECONDS
        while True:
            try:
                return self._writer.append(batches)
            except StoreFullError as e:
                if self._stop.is_set() and time.monotonic() > deadline:
                    self._failed(tail, str(e))
                    return None
                time.sleep(POLL_SECONDS)
            except StoreError as e:
                self._failed(tail, str(e))
                return None

    def _committed(self, tail: _Tail, chunk: _Chunk, future: Future[None] | None) -> bool:
        """Wait for the commit and move on past it; what was not committed is read again."""
        if future is None:
            return False
        try:
            future.result()
        except StoreError as e:
            self._failed(tail, str(e))
            return False
        tail.error = None
        tail.offset, tail.header, tail.skipping = chunk.end, chunk.header, chunk.skipping
        tail.lines += chunk.rows.num_rows
        tail.refused += chunk.refused.total()
        tail.notes.clear()
        return chunk.more

    def _failed(self, tail: _Tail, reason: str) -> None:
        if tail.error != reason:
            _log.error("%s: not stored, it will be read again: %s", tail.log.source, reason)
        tail.error = reason
        self._stop.wait(RETRY_SECONDS)


# --- one reading ----------------------------------------------------------------------------------------------------------


def _next_chunk(tail: _Tail, clock: Callable[[], int]) -> _Chunk | None:
    if tail.fd is None and not _open(tail):
        return None
    assert tail.fd is not None  # noqa: S101 _open said so
    if _was_rewritten(tail):
        tail.offset, tail.head, tail.header, tail.skipping = 0, b"", None, False
    data = os.pread(tail.fd, CHUNK_BYTES, tail.offset)
    last = len(data) < CHUNK_BYTES and _has_successor(tail)
    if last:
        # What came between the reading and the look at its successor: nothing writes to this file any more.
        data = os.pread(tail.fd, CHUNK_BYTES, tail.offset)
        last = len(data) < CHUNK_BYTES
    chunk = _split(tail, data, clock(), at_end=last)
    if last and chunk.end == tail.offset and not chunk.refused:
        _queue_rotated_since(tail)
        _close(tail)  # everything in it is committed; its successor begins at its own beginning
        return _next_chunk(tail, clock)
    return chunk


def _split(tail: _Tail, data: bytes, now: int, *, at_end: bool) -> _Chunk:
    """Decode the complete lines of what was read; at a file's end its last line is complete without a newline."""
    complete = data if at_end else data[: data.rfind(b"\n") + 1]
    start = 0
    skipping = tail.skipping
    if skipping:  # the rest of a line that is too long
        start = complete.find(b"\n") + 1 or len(complete)
        skipping = not complete[:start].endswith(b"\n")
    decoded = tail.reader.read(complete[start:], offset=tail.offset + start, header=tail.header, received_unix_nano=now)
    refused = Counter(tail.notes)
    refused.update(line.reason for line in decoded.refused)
    end = tail.offset + len(complete)
    if not complete and len(data) > MAX_LINE_BYTES:
        if not skipping:
            refused["line too long"] += 1
        end, skipping = tail.offset + len(data), True
    more = at_end or len(data) == CHUNK_BYTES
    return _Chunk(decoded.table, decoded.batch, refused, end, decoded.header, skipping, more)


def _batches(tail: _Tail, chunk: _Chunk, now: int) -> dict[str, pa.RecordBatch]:
    source = tail.log.source
    head = _head(tail, chunk.end)
    position: dict[str, object] = {
        "source": source,
        "service_name": tail.log.service_name,
        "offset_bytes": chunk.end,
        "head_bytes": len(head),
        "head_hash": hashlib.sha256(head).hexdigest(),
        "read_unix_nano": now,
    }
    batches = {"access_logs": pa.RecordBatch.from_pylist([position], schema=arrow_schema("access_logs"))}
    if chunk.rows.num_rows:
        batches[chunk.table] = chunk.rows
    if chunk.refused:
        errors = [
            {"received_unix_nano": now, "source": source, "reason": reason, "count": count}
            for reason, count in chunk.refused.items()
        ]
        batches["ingest_errors"] = pa.RecordBatch.from_pylist(errors, schema=arrow_schema("ingest_errors"))
    return batches


# --- which file -----------------------------------------------------------------------------------------------------------


def _open(tail: _Tail) -> bool:
    """Open what is to be read next; False when it is not there yet."""
    if tail.position is not None:
        _find_again(tail, tail.position)
    if tail.fd is None:
        path = tail.backlog.pop(0) if tail.backlog else tail.log.path
        try:
            tail.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            tail.error = "the file does not exist yet"
            return False
        tail.offset, tail.head, tail.header, tail.skipping = 0, b"", None, False
    tail.error = None
    return True


def _find_again(tail: _Tail, position: Position) -> None:
    """Open the file that was read before the restart where it was left: the log itself, or what rotation made of it."""
    path = tail.log.path
    rotated = _rotated(path)
    for i, candidate in enumerate([path, *rotated]):
        fd = _open_if_same(candidate, position)
        if fd is not None:
            tail.fd, tail.offset, tail.position = fd, position.offset_bytes, None
            tail.head = os.pread(fd, position.head_bytes, 0)
            tail.header = tail.reader.begin(os.pread(fd, min(position.offset_bytes, HEADER_BYTES), 0))
            tail.backlog = rotated[i:] if i else []
            return
    if path.exists():
        tail.position = None
        tail.notes["rotated away while no collector ran: its last lines were not read"] += 1


def _rotated(path: Path) -> list[Path]:
    """What rotation made of the log, the oldest first."""
    files = (p for p in path.parent.glob(_escaped(path.name) + "[.-]*") if p.is_file())
    return sorted(files, key=lambda p: p.stat().st_mtime_ns)


def _queue_rotated_since(tail: _Tail) -> None:
    """Before the open file is left: the log may have been rotated more than once while the store took nothing."""
    assert tail.fd is not None  # noqa: S101 open here
    here = os.fstat(tail.fd)
    rotated = _rotated(tail.log.path)
    nodes = [(s.st_dev, s.st_ino) for s in (p.stat() for p in rotated)]
    try:
        tail.backlog = rotated[nodes.index((here.st_dev, here.st_ino)) + 1 :]
    except ValueError:  # deleted, compressed or moved elsewhere: it cannot be told which of the others came after it
        if tail.backlog:
            return
        newer = sum(p.stat().st_mtime_ns > here.st_mtime_ns for p in rotated)
        if newer:
            tail.notes["rotated more than once before it was read: lines between were not read"] += newer


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _open_if_same(path: Path, position: Position) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None  # gone, or not ours to read: then it is not the one that was being read
    head = os.pread(fd, position.head_bytes, 0)
    same = (
        os.fstat(fd).st_size >= position.offset_bytes
        and len(head) == position.head_bytes
        and hashlib.sha256(head).hexdigest() == position.head_hash
    )
    if same:
        return fd
    os.close(fd)
    return None


def _was_rewritten(tail: _Tail) -> bool:
    """Whether the open file was truncated, even if it has grown past the old place since."""
    assert tail.fd is not None  # noqa: S101 open here
    return os.fstat(tail.fd).st_size < tail.offset or os.pread(tail.fd, len(tail.head), 0) != tail.head


def _has_successor(tail: _Tail) -> bool:
    """Whether another file has taken this one's place and is written to.

    `logrotate` creates the new file before the proxy is told to reopen: while that is empty, the old one still grows.
    """
    assert tail.fd is not None  # noqa: S101 open here
    if tail.backlog:
        return True
    try:
        there = tail.log.path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(tail.fd)
    return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino) and there.st_size > 0


def _head(tail: _Tail, end: int) -> bytes:
    """The file's first bytes that are committed with `end`; they grow until there are enough of them."""
    assert tail.fd is not None  # noqa: S101 open here
    if len(tail.head) < min(end, HEAD_BYTES):
        tail.head = os.pread(tail.fd, min(end, HEAD_BYTES), 0)
    return tail.head


def _close(tail: _Tail) -> None:
    if tail.fd is not None:
        os.close(tail.fd)
    tail.fd, tail.offset, tail.head, tail.header, tail.skipping = None, 0, b"", None, False


def _status(tail: _Tail, now: int) -> dict[str, object]:
    fd, offset = tail.fd, tail.offset
    try:
        lag = max(0, os.fstat(fd).st_size - offset) if fd is not None else None
    except OSError:  # closed by the other thread in this moment
        lag = None
    caught_up = tail.caught_up_unix_nano
    return {
        "source": tail.log.source,
        "service_name": tail.log.service_name,
        "direction": tail.log.direction,
        "lines": tail.lines,
        "refused": tail.refused,
        "lag_bytes": lag,
        "read_age_seconds": None if caught_up is None else max(0.0, (now - caught_up) / 1e9),
        "error": tail.error,
    }


def positions_from(rows: Sequence[Mapping[str, object]]) -> dict[str, Position]:
    """The positions that rows of `access_logs` hold, by source."""
    return {
        str(r["source"]): Position(int(str(r["offset_bytes"])), int(str(r["head_bytes"])), str(r["head_hash"]))
        for r in rows
    }

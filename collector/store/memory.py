"""What DuckDB may use: little while it only writes, more while somebody asks, and what it gives back goes back to the machine.

DuckDB keeps every block that it has read or written until it reaches its limit. A sidecar has better uses for that memory, and the
kernel's page cache holds the same file; an investigator's join needs it. So the limit is raised when a query begins, and lowered
when none has run for a while. The same goes for its threads: one writes for a sixth less CPU than two, a question wants every core.
"""

import ctypes
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

WRITING_BYTES: Final = 48 * 1024 * 1024
"""A row group that waits for its commit takes 31 MB of it. What is above that DuckDB fills with blocks that it has written, which nobody
reads; what does not fit is lent (see `lend`)."""

IDLE_SECONDS: Final = 3.0
"""How long after a query its blocks are kept for the next one. Under full load 16 MB a second are added to them, of rows that were written;
and without them a block comes from the machine's cache of files."""


_MADV_DONTNEED: Final = 4
_READ_ONLY: Final = frozenset({"r-xp", "r--p"})
_MAPPING: Final = re.compile(r"^([0-9a-f]+-[0-9a-f]+ .*)$(?:\n[A-Z].*)*?\nAnonymous: +(\d+) kB$", re.MULTILINE)


class Allowance:
    """The memory limit of one instance, which may be changed though its configuration is locked.

    Args:
        writing: Bytes while nobody asks.
        asking: Bytes while a query runs, and shortly after.
    """

    def __init__(self, writing: int, asking: int) -> None:
        self._writing = writing
        self._asking = asking
        self._lock = threading.Lock()
        self._running = 0
        # A file is opened with the larger limit: it may have to replay a WAL, or be migrated. Once that is done nobody needs it.
        self._raised = asking > writing
        self._last = -math.inf

    @property
    def largest(self) -> int:
        """Bytes that the file is opened with."""
        return self._asking

    def reopened(self) -> None:
        """The file was opened again, with the larger limit."""
        self._raised = self._asking > self._writing

    @contextmanager
    def asking(self, connect: Callable[[], duckdb.DuckDBPyConnection]) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection, with the larger limit, for the time of a query."""
        with self._lock:
            cursor = connect()
            self._raise(cursor)
            self._running += 1
        try:
            yield cursor
        finally:
            cursor.close()  # which also ends its transaction
            with self._lock:
                self._running -= 1
                self._last = time.monotonic()
            if self._asking > self._writing and resident_bytes() > self._asking:
                # A large answer, freed: the C library keeps it for the next, and the next may be as large beside it.
                give_back()

    def lend(self, cursor: duckdb.DuckDBPyConnection) -> bool:
        """Raise the limit for who writes, as for a question; False where there is no more to lend.

        A transaction is as large as its largest value, and DuckDB writes it in one piece: one text of 64 MiB needs the smaller limit
        to itself.
        """
        with self._lock:
            self._last = time.monotonic()
            return self._raise(cursor)

    def _raise(self, cursor: duckdb.DuckDBPyConnection) -> bool:
        if self._raised or self._asking <= self._writing:
            return False
        _set(cursor, self._asking, os.cpu_count() or 1)
        self._raised = True
        return True

    @contextmanager
    def nobody_asking(self) -> Iterator[bool]:
        """Whether no query runs; if so, none begins until this is over."""
        if not self._lock.acquire(blocking=False):
            yield False
            return
        try:
            yield not self._running
        finally:
            self._lock.release()

    def lower_when_idle(self, cursor: duckdb.DuckDBPyConnection) -> bool:
        """Take back what the last query was lent, if it is long enough ago; call it now and then. True if it did."""
        with self._lock:
            if not self._raised or self._running or time.monotonic() - self._last < IDLE_SECONDS:
                return False
            try:
                _set(cursor, self._writing, 1)
            except duckdb.OutOfMemoryException:
                return False  # something is still pinned: the next time
            self._raised = False
        give_back()
        return True


def _set(cursor: duckdb.DuckDBPyConnection, size_bytes: int, threads: int) -> None:
    cursor.execute(f"SET GLOBAL memory_limit = '{size_bytes}B'")
    cursor.execute(f"SET GLOBAL threads = {threads}")


def give_back() -> None:
    """Return freed memory to the machine, where the C library can (glibc)."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_code() -> None:
    """Return pages of libraries and programs that no longer need to be mapped (Linux): they stay in the machine's cache of files.

    Starting touches 100 MB of code and tables once, most of it DuckDB's functions and Arrow's; full load needs half of it. What is needed
    again comes back by itself, sixteen pages at a time. Only pages that are as they are in the file: what the linker has written to is
    this process's own, and would be lost.
    """
    with suppress(AttributeError, OSError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, size in unwritten_mappings(Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")):
            madvise(start, size, _MADV_DONTNEED)


def unwritten_mappings(smaps: str) -> list[tuple[int, int]]:
    """Address and size of each mapping of a file that cannot be written and has no page of the process's own, from /proc/…/smaps."""
    found: list[tuple[int, int]] = []
    for head, anonymous in _MAPPING.findall(smaps):
        addresses, rights, _, _, _, *path = head.split(maxsplit=5)
        if path and path[0].startswith("/") and rights in _READ_ONLY and int(anonymous) == 0:
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append((start, end - start))
    return found


def resident_bytes() -> int:
    """What this process has of the machine's memory; 0 where the system does not tell (/proc/self/statm)."""
    return _pages(1)


def mapped_bytes() -> int:
    """The part of it that is pages of files; 0 where the system does not tell."""
    return _pages(2)


def _pages(field: int) -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[field])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def tune_allocator() -> None:
    """Make the allocators fit a process that needs the same few large buffers again and again, on several threads.

    By default glibc returns each large buffer to the kernel and faults its pages in anew (a fifth of the time of decoding), and
    keeps up to eight heaps a core; Arrow's own pool keeps three times what was ever in use. Call it before threads start; on
    other C libraries only the latter changes.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    mmap_threshold, trim_threshold, arena_max = -3, -1, -8
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 * 1024 * 1024)
        mallopt(trim_threshold, 16 * 1024 * 1024)
        mallopt(arena_max, 2)

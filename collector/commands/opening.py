"""The evidence file at a collector's start, before anybody writes: opened, within its limits, and how much may wait beside it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from collector.errors import StoreBusyError, StoreError
from collector.store.compaction import compact, remove_leftover, worth_it
from collector.store.database import Store
from collector.store.failures import is_out_of_space
from collector.store.journal import SEGMENT_BYTES
from collector.store.retention import Retention
from collector.store.writer import MAX_QUEUED_BYTES

_SEGMENT_SHARE: Final = 64
_QUEUE_SHARE: Final = 16
"""Parts of --max-size that a segment of the journal, and the rows that wait for their commit, are at most."""

_log = logging.getLogger(__name__)


def open_store(path: Path, *, memory_bytes: int | None = None) -> Store:
    """The evidence file, and nothing beside it of a compaction that was killed; raises StoreError, StoreBusyError."""
    try:
        store = Store.open(path, memory_bytes=memory_bytes)
    except StoreBusyError:
        raise  # what is beside the file may be its collector's, which compacts it at this moment
    except StoreError as e:
        if not is_out_of_space(e.__cause__ or e):
            raise
        remove_leftover(path)  # it may be what takes the room
        return Store.open(path, memory_bytes=memory_bytes)
    try:
        remove_leftover(path)
    except StoreError:
        store.close()
        raise
    return store


def make_room(store: Store, retention: Retention, max_size_bytes: int | None, is_enough: Callable[[], bool]) -> None:
    """Delete what is too old or too much, and write the file anew where its free blocks cannot wait for their reuse."""
    try:
        sizes = retention.catch_up(store, is_enough)
        if worth_it(sizes, max_size_bytes) and not is_enough():
            _log.info("%s: compacting: %d of its %d bytes are free", store.path, sizes.free_bytes, sizes.file_bytes)
            compact(store)
    except StoreError as e:
        # Evidence that is too old is no reason to refuse new evidence; the writer tries again, and says what it meets.
        _log.warning("%s", e)


@dataclass(frozen=True, slots=True)
class Room:
    """How much may wait in memory and in the journal: small beside a small limit, which counts the journal."""

    queue_bytes: int
    segment_bytes: int

    @classmethod
    def under(cls, max_size_bytes: int | None) -> "Room":
        """What a limit of the file's size leaves room for."""
        if max_size_bytes is None:
            return cls(MAX_QUEUED_BYTES, SEGMENT_BYTES)
        return cls(
            min(MAX_QUEUED_BYTES, max_size_bytes // _QUEUE_SHARE), min(SEGMENT_BYTES, max_size_bytes // _SEGMENT_SHARE)
        )

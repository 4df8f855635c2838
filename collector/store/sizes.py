"""What an evidence file occupies: the file, its write-ahead log and the journal of requests beside it.

measure(cursor, path) -> Sizes
"""

from dataclasses import dataclass
from pathlib import Path

import duckdb


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes on the disk.

    Attributes:
        file_bytes: The file.
        free_bytes: Of them, blocks that hold nothing: written again before the file grows, and given back from its end.
        wal_bytes: The write-ahead log.
        journal_bytes: Raw requests in `FILE.journal/`.
    """

    file_bytes: int
    free_bytes: int
    wal_bytes: int
    journal_bytes: int

    @property
    def total_bytes(self) -> int:
        """What a limit counts."""
        return self.file_bytes + self.wal_bytes + self.journal_bytes

    @property
    def live_bytes(self) -> int:
        """What is left of it once the free blocks are written again."""
        return self.total_bytes - self.free_bytes


def measure(cursor: duckdb.DuckDBPyConnection, path: Path) -> Sizes:
    """The sizes now; raises duckdb.Error. Files that go away meanwhile count nothing."""
    row = cursor.execute(
        "SELECT block_size * free_blocks FROM pragma_database_size() WHERE database_name = current_database()"
    ).fetchone()
    journal = path.with_name(f"{path.name}.journal")
    names = journal.iterdir() if journal.is_dir() else ()
    return Sizes(
        file_bytes=_size(path),
        free_bytes=int(row[0]) if row else 0,
        wal_bytes=sum(_size(path.with_name(path.name + suffix)) for suffix in (".wal", ".wal.checkpoint")),
        journal_bytes=sum(_size(name) for name in names),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

"""What waits to be written: requests, and the transaction that they go into. No thread, no database.

request_of(parts, position) -> Request      raises StoreError when a batch does not fit its table
"""

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import pyarrow as pa

from collector import schema
from collector.errors import StoreError
from collector.store.database import ROW_GROUP_ROWS
from collector.store.insert import SCHEMAS, Batches
from collector.store.journal import Position
from collector.store.split import span_count, split


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What is written together, or a piece of it. `position`: how far the journal is in the tables with it; None for pieces but the last."""

    parts: tuple[Batches, ...]
    size_bytes: int
    position: Position | None
    is_journaled: bool
    done: Future[None] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def spans(self) -> int:
        """How many rows of `spans` it has."""
        return span_count(self.parts)

    @property
    def is_whole(self) -> bool:
        """Whether it ends a request: false of every piece but the last."""
        return self.position is not None or not self.is_journaled

    def split(self, spans: int) -> "tuple[Request, Request]":
        """A piece with so many spans, and the rest; of a journaled one with more."""
        head, rest = split(self.parts, spans)
        size = self.size_bytes * spans // self.spans
        return (
            replace(self, parts=tuple(head), size_bytes=size, position=None),
            replace(self, parts=tuple(rest), size_bytes=self.size_bytes - size),
        )


@dataclass(slots=True)
class Transaction:
    """What has been inserted and not yet committed."""

    begun: float
    requests: list[Request] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def position(self) -> Position | None:
        """How far the journal is in the tables once this is committed."""
        return max((r.position for r in self.requests if r.position is not None), default=None)

    @property
    def somebody_waits(self) -> bool:
        """Whether a future hangs on its commit."""
        return any(not request.is_journaled for request in self.requests)

    @property
    def room(self) -> int:
        """How many spans fill its row group."""
        return ROW_GROUP_ROWS - self.rows["spans"] % ROW_GROUP_ROWS


def request_of(parts: Sequence[Batches], position: Position | None = None) -> Request:
    """The parts as one request, journaled up to a position or not; raises StoreError where one does not fit its table."""
    for part in parts:
        for table, batch in part.items():
            check_fits(table, batch)
    size = sum(batch.nbytes for part in parts for batch in part.values())
    return Request(tuple(dict(part) for part in parts), size, position, position is not None)


def check_fits(table: str, batch: pa.RecordBatch) -> None:
    """Raise StoreError where a batch does not have the schema of its table."""
    expected = SCHEMAS.get(table)
    if expected is None:
        raise StoreError(f"no table {table!r}; there are {', '.join(schema.TABLES)}")
    if not batch.schema.equals(expected):
        got = {f.name: str(f.type) for f in batch.schema}
        wanted = {f.name: str(f.type) for f in expected}
        differing = sorted(n for n in got.keys() | wanted.keys() if got.get(n) != wanted.get(n))
        raise StoreError(f"the batch for {table!r} does not have its schema; see {', '.join(differing) or 'the order'}")

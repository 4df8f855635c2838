"""The sink of an import that is a store of this process."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from collector import schema
from collector.errors import StoreFullError
from collector.exchange.importing import Outcome, Taken
from collector.exchange.parquet import TABLES_ALONE
from collector.exchange.records import Rows
from collector.otlp import decode_traces
from collector.store.database import ROW_GROUP_ROWS

if TYPE_CHECKING:
    from concurrent.futures import Future

    from collector.store.reader import Reader
    from collector.store.writer import Writer

GATHERED: Final = ("proxy_records", "flows")
"""Tables of which a file brings many rows: they are stored a row group at a time, which DuckDB compresses and writes in one piece, for
two thirds of what the same rows cost in other portions."""

GATHERED_BYTES: Final = 16 * 1024 * 1024
"""Of Arrow, at which they no longer wait for more: a row group of usual lines has 11 MB, of the longest it would have 5 GB."""

IN_FLIGHT: Final = 4
"""Groups that wait for their commit while the next one is decoded."""

_OLDEST_SECONDS: Final = 600.0
"""No commit takes so long; without an end, a dead writer would hold the import for ever."""


class StoreSink:
    """Decodes requests, and appends to a store that this process has open.

    `received_unix_nano` is when a group was decoded; rows of our own exports keep theirs. What is there already is left
    alone: spans by the writer, by their ids; rows of other tables here.
    """

    def __init__(self, writer: "Writer", reader: "Reader", clock: Callable[[], int] = time.time_ns) -> None:
        self._writer = writer
        self._reader = reader
        self._clock = clock
        self._waiting: deque[tuple[Future[Any], Taken]] = deque()
        self._gathered: dict[str, Gathered] = {table: Gathered() for table in GATHERED}
        self._stored = self._count("spans")

    def requests(self, payload: bytes) -> Iterator[Taken]:
        """Decode and queue; raises DecodeError, StoreError."""
        decoded = decode_traces(payload, received_unix_nano=self._clock())
        batches = {table: batch for table, batch in decoded.batches.items() if batch.num_rows}
        taken = Taken(decoded.span_count, rejected=decoded.rejected, amended=decoded.notes)
        if not batches:
            return iter([taken])
        return self._append(batches, taken)

    def rows(self, rows: Rows) -> Iterator[Taken]:
        """Queue what is not there yet; raises StoreError."""
        if rows.are_new and rows.batches.keys() <= self._gathered.keys():
            for table, batch in rows.batches.items():
                yield from self._append_new(table, self._gathered[table].add(batch))
            return
        if not rows.are_new and not rows.batches.keys().isdisjoint(TABLES_ALONE):
            yield from self._settle(0)  # what is under way is not there yet, and may be the same
        new = {table: self._new(table, batch) for table, batch in rows.batches.items()}
        taken = Taken(
            new["spans"].num_rows if "spans" in new else 0,
            rows=sum(batch.num_rows for table, batch in new.items() if table in TABLES_ALONE),
            already_there=sum(rows.batches[table].num_rows - batch.num_rows for table, batch in new.items()),
        )
        batches = {table: batch for table, batch in new.items() if batch.num_rows}
        if batches:
            yield from self._append(batches, taken)
        else:
            yield taken

    def _append_new(self, table: str, groups: Iterable[pa.RecordBatch]) -> Iterator[Taken]:
        """Queue what the store lacks of rows that were gathered; raises StoreError."""
        for group in groups:
            new = self._new(table, group)
            taken = Taken(0, rows=new.num_rows, already_there=group.num_rows - new.num_rows)
            if new.num_rows:
                yield from self._append({table: new}, taken)
            else:
                yield taken

    def finish(self, outcome: Outcome) -> Iterator[Taken]:
        """Wait for every commit, then record what could not be read."""
        for table, gathered in self._gathered.items():
            yield from self._append_new(table, gathered.rest())
        yield from self._settle(0)
        stored, self._stored = self._stored, self._count("spans")
        if left_out := outcome.spans - (self._stored - stored):
            yield Taken(-left_out, already_there=left_out)  # the writer says of no request which of its spans it knew
        if reasons := outcome.reasons():
            now = self._clock()
            rows = [
                {"received_unix_nano": now, "source": outcome.name, "reason": reason, "count": count}
                for reason, count in reasons.items()
            ]
            batch = pa.RecordBatch.from_pylist(rows, schema=schema.arrow_schema("ingest_errors"))
            self._writer.append({"ingest_errors": batch}).result(_OLDEST_SECONDS)

    def _append(self, batches: Mapping[str, pa.RecordBatch], taken: Taken) -> Iterator[Taken]:
        while True:
            try:
                self._waiting.append((self._writer.append(batches), taken))
            except StoreFullError:
                if not self._waiting:
                    raise
                yield from self._settle(len(self._waiting) - 1)
            else:
                break
        yield from self._settle(IN_FLIGHT)

    def _settle(self, most: int) -> Iterator[Taken]:
        """Wait until at most this many are under way."""
        while len(self._waiting) > most:
            future, taken = self._waiting.popleft()
            future.result(_OLDEST_SECONDS)
            yield taken

    def _new(self, table: str, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that the store lacks, of the tables that the writer does not look after."""
        match table:
            case "proxy_records" | "flows":
                return self._without_known(batch, table, "record_id", "start_time_unix_nano")
            case "sockets":
                return self._newer(batch, table, "record_id", "last_seen_unix_nano")
            case "socket_watches":
                return self._newer(batch, table, "since_unix_nano", "until_unix_nano")
            case "workloads":
                return self._newer(batch, table, "address", "received_unix_nano")
            case "ingest_errors":
                return self._without_known(batch, table, "received_unix_nano", "received_unix_nano")
            case "access_logs":
                # Where reading goes on is the business of the store that reads.
                return self._without_known(batch, table, "source", "read_unix_nano", whole=True)
            case "egress_allow":
                # Two lists together would allow more than either.
                return batch if self._count(table) == 0 else batch.slice(0, 0)
            case _:
                return batch

    def _without_known(
        self, batch: pa.RecordBatch, table: str, key: str, time_column: str, *, whole: bool = False
    ) -> pa.RecordBatch:
        """The rows whose key the table does not have; times narrow the look-up, for equal rows have equal ones."""
        low, high = (v.as_py() for v in pc.min_max(batch.column(time_column)).values())
        where = "" if whole else f" WHERE {time_column} BETWEEN {low} AND {high}"
        known = self._reader.query(f"SELECT DISTINCT {key} FROM {table}{where}").column(key)
        values = batch.column(key)
        if not len(known):
            return batch
        return batch.filter(pc.invert(pc.is_in(values, value_set=known.cast(values.type).combine_chunks())))

    def _newer(self, batch: pa.RecordBatch, table: str, sorted_by: str, time_column: str) -> pa.RecordBatch:
        """The rows that say more than the one that they would replace: with no such key, or with an earlier time."""
        key = schema.REPLACED_KEYS[table]
        low, high = (v.as_py() for v in pc.min_max(batch.column(sorted_by)).values())
        bounds = f"BETWEEN {_literal(low)} AND {_literal(high)}"
        answer = self._reader.query(
            f"SELECT {', '.join(key)}, {time_column} AS known FROM {table} WHERE {sorted_by} {bounds}"
        )
        known = {tuple(row[name] for name in key): row["known"] for row in answer.to_pylist()}
        keys = zip(*(batch.column(name).to_pylist() for name in key), strict=True)
        times = batch.column(time_column).to_pylist()
        return batch.filter(pa.array([known.get(k, -1) < time for k, time in zip(keys, times, strict=True)]))

    def _count(self, table: str) -> int:
        [row] = self._reader.query(f"SELECT count(*) AS n FROM {table}").to_pylist()
        return int(row["n"])


class Gathered:
    """Rows of one table that wait until they fill a row group, or are large enough without."""

    __slots__ = ("_batches", "_rows")

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Put these rows behind the others; gives out what is to be stored now, in order."""
        while self._rows + batch.num_rows >= ROW_GROUP_ROWS:
            missing = ROW_GROUP_ROWS - self._rows
            self._batches.append(batch.slice(0, missing))
            batch = batch.slice(missing)
            yield from self.rest()
        if batch.num_rows:
            self._batches.append(batch)
            self._rows += batch.num_rows
        if sum(waiting.nbytes for waiting in self._batches) >= GATHERED_BYTES:
            yield from self.rest()

    def rest(self) -> Iterator[pa.RecordBatch]:
        """What waits, in one piece: DuckDB reads several with several threads, and takes a tenth longer."""
        waiting, self._batches, self._rows = self._batches, [], 0
        yield from pa.Table.from_batches(waiting).combine_chunks().to_batches() if waiting else ()


def _literal(value: object) -> str:
    """A number or a text as SQL."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)

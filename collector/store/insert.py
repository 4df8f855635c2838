"""Rows into tables, within a transaction that somebody else begins and ends: what is new of them, each once.

    Inserter.insert(arrived)    the rows of some requests, in the order of their arrival
    Inserter.committed()        what was inserted since is there to stay
    Inserter.rolled_back()      it never happened
    Inserter.forget(ids)        content ids that somebody deleted

Resources and scopes come with every request and are stored once. A reading position, a report
of a socket and an address's owner replace the older one (`schema.REPLACED_KEYS`). A span that is there already is left out, with its events and links,
and so is a proxy's record (see `recent`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collector import schema
from collector.store.derived import derived_rows
from collector.store.recent import CAPACITY, IDENTITY, Hashes, Mask, Recent, span_hashes

Batches = Mapping[str, pa.RecordBatch]
Rows = np.ndarray[Any, np.dtype[np.int64]]

SCHEMAS: Final = {table: schema.arrow_schema(table) for table in schema.TABLES}

ARRIVED: Final = "arrived"
"""The name under which DuckDB sees an Arrow table, for as long as it is being inserted."""

OF_SPANS: Final = ("span_events", "span_links")
"""Tables whose rows belong to a span."""

_SEEDED: Final = CAPACITY // 4
"""How many of a file's last spans are remembered when it is opened: those whose senders may not know that they are safe."""

_KNOWN: Final = f"""\
WITH suspects AS MATERIALIZED (FROM {ARRIVED})
SELECT row_number FROM (
  SELECT row_number, row_number() OVER (PARTITION BY {", ".join(IDENTITY)} ORDER BY row_number) AS nth FROM suspects
) WHERE nth > 1
UNION
SELECT suspects.row_number FROM suspects JOIN spans USING ({", ".join(IDENTITY)})
WHERE spans.received_unix_nano >= ?"""
"""Of the spans in question, those that are stored, or that repeat an earlier one of them. Materialized, because DuckDB 1.5
pushes the join's filter into the scan of the Arrow table, and knows no UUIDs there."""


_KNOWN_RECORDS: Final = f"""\
SELECT record_id FROM proxy_records
WHERE received_unix_nano >= ? AND record_id IN (SELECT record_id FROM {ARRIVED})"""

_RECENT_RECORDS: Final = CAPACITY // 4
"""How many of the last proxies' records are remembered, a quarter of them over a restart."""

_TRACE_ID_BYTES: Final = "unhex(replace(trace_id::VARCHAR, '-', '')) AS trace_id"
"""DuckDB gives a UUID to Arrow as text; in big-endian order it came, and is hashed."""


class Inserter:
    """Inserts through one cursor.

    Args:
        cursor: In no transaction now.
        ask_always: Look for every span in the whole table, not only for those that were stored lately: for imports, where
            the second copy may come a year after the first.
    """

    def __init__(self, cursor: duckdb.DuckDBPyConnection, *, ask_always: bool = False) -> None:
        self._cursor = cursor
        self._ask_always = ask_always
        self._known = _known_ids(cursor)
        self._is_doubtful = False
        self._fresh: dict[str, set[int]] = {table: set() for table in self._known}
        self._recent = Recent()
        self._recent_records = Recent(_RECENT_RECORDS)
        self._seed()

    def use(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Go on with another cursor: the file was opened again."""
        self._cursor = cursor
        self.rolled_back()
        self.doubt()

    def forget(self, ids: Mapping[str, frozenset[int]]) -> None:
        """These content ids, by table, have been deleted: rows with them are new when they come again. Between transactions."""
        for table, gone in ids.items():
            self._known[table] -= gone

    def doubt(self) -> None:
        """The file may lack what it had: read the content ids again before the next insert."""
        self._is_doubtful = True

    def insert(self, arrived: Sequence[Batches]) -> Counter[str]:
        """Insert the rows that are new; returns how many, by table. Raises duckdb.Error."""
        if self._is_doubtful:
            self._known, self._is_doubtful = _known_ids(self._cursor), False
        tables = {
            table: pa.Table.from_batches([b[table] for b in arrived if table in b], SCHEMAS[table])
            for table in schema.TABLES
            if any(table in b for b in arrived)
        }
        if "spans" in tables:
            self._leave_out_known_spans(tables)
            tables |= _derived(tables["spans"])
        if (
            "proxy_records" in tables and not self._ask_always
        ):  # who imports has looked for them already, in the whole table
            tables["proxy_records"] = self._new_records(tables["proxy_records"])
        inserted: Counter[str] = Counter()
        for table, rows in tables.items():
            new = self._new(table, rows)
            if new.num_rows:
                self._insert(table, new)
                inserted[table] += new.num_rows
        return inserted

    def committed(self) -> None:
        """The transaction is committed."""
        for table, ids in self._fresh.items():
            self._known[table] |= ids
            ids.clear()

    def rolled_back(self) -> None:
        """The transaction is undone. What the filter remembers of it does no harm: the table is asked before a span is left out."""
        for ids in self._fresh.values():
            ids.clear()

    def _insert(self, table: str, rows: pa.Table) -> None:
        self._cursor.register(ARRIVED, rows)
        if key := schema.REPLACED_KEYS.get(table):
            columns = ", ".join(key)
            self._cursor.execute(f"DELETE FROM {table} WHERE ({columns}) IN (SELECT ({columns}) FROM {ARRIVED})")
        self._cursor.execute(f"INSERT INTO {table} SELECT * FROM {ARRIVED}")
        self._cursor.unregister(ARRIVED)

    def _new(self, table: str, rows: pa.Table) -> pa.Table:
        if key := schema.CONTENT_KEYS.get(table):
            return _only_new(rows, key, self._known[table], self._fresh[table])
        if replaced := schema.REPLACED_KEYS.get(table):
            return _last_of_each(rows, replaced)
        return rows

    # --- spans that are there already ---------------------------------------------------------------------------------

    def _seed(self) -> None:
        """Remember the last spans of the file."""
        columns = ", ".join((*IDENTITY, "received_unix_nano")).replace("trace_id", _TRACE_ID_BYTES)
        newest = f"SELECT {columns} FROM spans WHERE rowid > (SELECT max(rowid) - {_SEEDED} FROM spans)"
        for batch in self._cursor.sql(newest).to_arrow_reader(8192):
            ids = batch.column("trace_id").cast(pa.binary(16))
            _remember(self._recent, batch, span_hashes(batch.set_column(0, "trace_id", ids)))
        newest = (
            "SELECT record_id, received_unix_nano FROM proxy_records "
            f"WHERE rowid > (SELECT max(rowid) - {_RECENT_RECORDS // 4} FROM proxy_records)"
        )
        for batch in self._cursor.sql(newest).to_arrow_reader(8192):
            _remember(self._recent_records, batch, batch.column("record_id").to_numpy())

    def _leave_out_known_spans(self, tables: dict[str, pa.Table]) -> None:
        spans = tables["spans"]
        told = spans.select(
            (*IDENTITY, "received_unix_nano")
        ).combine_chunks()  # the few that are looked at: the rest is not copied
        hashes = span_hashes(told)
        suspects = self._suspects(hashes)
        if suspects.any():
            known = self._known_rows(told, np.flatnonzero(suspects))
            if len(known):
                left_out = np.zeros(spans.num_rows, dtype=np.bool_)
                left_out[known] = True
                for table in OF_SPANS:
                    if table in tables:
                        tables[table] = _without_those_of(tables[table], told, left_out)
                kept = pa.array(~left_out)
                tables["spans"], told, hashes = spans.filter(kept), told.filter(kept), hashes[~left_out]
        _remember(self._recent, told, hashes)

    def _suspects(self, hashes: Hashes) -> Mask:
        """Of each span whether it may be stored already, or twice among these."""
        if self._ask_always:
            return np.ones(len(hashes), dtype=np.bool_)
        suspects = self._recent.maybe_known(hashes)
        ordered = np.sort(hashes)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        return suspects | np.isin(hashes, twice) if len(twice) else suspects

    def _known_rows(self, spans: pa.Table, suspects: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Rows:
        """Which of these rows are stored already, or repeat an earlier one of them."""
        asked = spans.select(IDENTITY).take(pa.array(suspects)).append_column("row_number", pa.array(suspects))
        self._cursor.register(ARRIVED, asked)
        since = 0 if self._ask_always else (self._recent.since or 0)
        known = self._cursor.execute(_KNOWN, [since]).fetchnumpy()["row_number"]
        self._cursor.unregister(ARRIVED)
        return np.asarray(known, dtype=np.int64)

    # --- proxies' records that are there already -------------------------------------------------------------------------

    def _new_records(self, records: pa.Table) -> pa.Table:
        """The rows that are not stored: a sender that got no answer sends its log again, and equal records have equal ids."""
        ids = records.column("record_id").to_numpy()
        keep = np.zeros(len(ids), dtype=np.bool_)
        keep[np.unique(ids, return_index=True)[1]] = True
        suspects = ids[self._recent_records.maybe_known(ids)]
        if len(suspects):
            self._cursor.register(ARRIVED, pa.table({"record_id": suspects}))
            stored = self._cursor.execute(_KNOWN_RECORDS, [self._recent_records.since or 0]).fetchnumpy()["record_id"]
            self._cursor.unregister(ARRIVED)
            keep &= ~np.isin(ids, stored)
        if not keep.all():
            records = records.filter(pa.array(keep))
        _remember(self._recent_records, records, ids[keep])
        return records


def _remember(recent: Recent, rows: pa.RecordBatch | pa.Table, hashes: Hashes) -> None:
    if rows.num_rows:
        recent.add(hashes, pc.min(rows.column("received_unix_nano")).as_py())


def _derived(spans: pa.Table) -> dict[str, pa.Table]:
    """What all the batches add to the derived tables."""
    parts = [derived_rows({"spans": batch}) for batch in spans.to_batches()]
    return {
        table: pa.Table.from_batches([part[table] for part in parts if table in part], schema.arrow_schema(table))
        for table in schema.DERIVED_TABLES
        if any(table in part for part in parts)
    }


def _hashable(column: pa.ChunkedArray | pa.Array) -> list[object]:
    """UUIDs as their 16 bytes: making objects of them takes longer than all the rest."""
    if isinstance(column.type, pa.ExtensionType):
        column = column.cast(column.type.storage_type)
    plain: list[object] = column.to_pylist()
    return plain


def _without_those_of(rows: pa.Table, spans: pa.Table, left_out: Mask) -> pa.Table:
    """The events or links without those of spans that are left out; where a span is both left out and kept, each row once."""
    gone = set(owners(spans.filter(pa.array(left_out))))
    kept = set(owners(spans.filter(pa.array(~left_out))))
    seen: set[str] = set()
    keep = []
    for number, owner in enumerate(owners(rows)):
        if owner not in gone:
            keep.append(number)
        elif owner in kept and (content := repr(rows.slice(number, 1).to_pylist())) not in seen:
            seen.add(content)
            keep.append(number)
    return rows.take(pa.array(keep, pa.int64()))


def owners(rows: pa.Table | pa.RecordBatch) -> Iterable[tuple[object, ...]]:
    """Whose each row of `spans`, or of a table in `OF_SPANS`, is: trace_id and span_id."""
    return zip(_hashable(rows.column("trace_id")), _hashable(rows.column("span_id")), strict=True)


# --- rows that repeat -----------------------------------------------------------------------------------------------------


def _known_ids(cursor: duckdb.DuckDBPyConnection) -> dict[str, set[int]]:
    return {
        table: {row[0] for row in cursor.execute(f"SELECT {key} FROM {table}").fetchall()}
        for table, key in schema.CONTENT_KEYS.items()
    }


def _only_new(rows: pa.Table, key: str, known: Iterable[int], fresh: set[int]) -> pa.Table:
    """The first row of each id that is not known yet; adds those ids to `fresh`."""
    keep = []
    for i, identifier in enumerate(rows.column(key).to_pylist()):
        if identifier not in known and identifier not in fresh:
            fresh.add(identifier)
            keep.append(i)
    return rows.take(pa.array(keep, pa.int64()))


def _last_of_each(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """The last row of each key: the newest, since requests are in the order of their arrival."""
    columns = (rows.column(name).to_pylist() for name in key)
    positions = {values: i for i, values in enumerate(zip(*columns, strict=True))}
    return rows.take(pa.array(sorted(positions.values()), pa.int64()))

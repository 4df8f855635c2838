"""The tables as Parquet that every engine reads, and back: one file a table, zstd, named `TABLE.parquet`.

Columns are those of `collector.schema` but for ids, which are lowercase hex text: 32 digits of a trace id (Spark and
others have no UUID), 16 of everything that is an unsigned 64-bit number here (Spark reads those as decimals).

Files are written page by page: a page of spans is a row group of `spans`, its events and links are at most one row group
of theirs. The file's metadata says how many rows each page has, so that an import reads what belongs together.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from collector import schema
from collector.errors import ConfigError
from collector.exchange.records import Rows

SUFFIX: Final = ".parquet"

TABLES_TOGETHER: Final = ("spans", "span_events", "span_links")
"""Whose pages belong together."""

TABLES_FIRST: Final = ("resources", "scopes")
"""Whose rows the spans name."""

TABLES_ALONE: Final = tuple(t for t in schema.TABLES if t not in {*TABLES_TOGETHER, *TABLES_FIRST})

_TABLE_KEY: Final = b"provenance.table"
_VERSION_KEY: Final = b"provenance.schema_version"
_PAGES_KEY: Final = b"provenance.page_rows"

_HEX_DIGITS: Final = {"UUID": 32, "UBIGINT": 16}
_DIGITS: Final = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


def parquet_schema(table: str) -> pa.Schema:
    """The schema of a table's file."""
    fields = schema.arrow_schema(table)
    return pa.schema(
        [
            fields.field(c.name).with_type(pa.string()) if c.type in _HEX_DIGITS else fields.field(c.name)
            for c in schema.TABLES[table]
        ]
    )


# --- writing ------------------------------------------------------------------------------------------------------------


class TableFile:
    """One table's file while it is written, page by page."""

    def __init__(self, directory: Path, table: str) -> None:
        self.table = table
        self.rows = 0
        self._pages: list[int] = []
        self._schema = parquet_schema(table)
        self._writer = pq.ParquetWriter(directory / f"{table}{SUFFIX}", self._schema, compression="zstd")

    def write(self, page: pa.Table) -> None:
        """Append a page: rows as a store answers them, with ids as numbers and trace ids as text with hyphens."""
        self._pages.append(page.num_rows)
        self.rows += page.num_rows
        if page.num_rows:
            arrays = [
                _stored(page.column(c.name), c, self._schema.field(c.name).type) for c in schema.TABLES[self.table]
            ]
            self._writer.write_table(pa.table(arrays, schema=self._schema), row_group_size=page.num_rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._writer.add_key_value_metadata(
                {
                    _TABLE_KEY: self.table.encode(),
                    _VERSION_KEY: str(schema.SCHEMA_VERSION).encode(),
                    _PAGES_KEY: json.dumps(self._pages).encode(),
                }
            )
        self._writer.close()


def _stored(values: pa.ChunkedArray, column: schema.Column, type_: pa.DataType) -> pa.Array:
    array = _whole(values)
    match column.type:
        case "UUID":
            return pc.replace_substring(array.cast(pa.string()), "-", "")
        case "UBIGINT":
            return _hex_of(array)
        case "MAP(VARCHAR, VARCHAR)":
            return _map_of(array, type_)
        case _:
            return array.cast(type_)


def _whole(values: pa.ChunkedArray) -> pa.Array:
    combined = values.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def _hex_of(numbers: pa.Array) -> pa.Array:
    """Unsigned 64-bit numbers as 16 hex digits."""
    raw = pc.fill_null(numbers, 0).to_numpy(zero_copy_only=False).astype(">u8").view(np.uint8)
    digits = np.empty((len(raw), 2), dtype=np.uint8)
    digits[:, 0], digits[:, 1] = _DIGITS[raw >> 4], _DIGITS[raw & 15]
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * 16
    texts = pa.Array.from_buffers(
        pa.string(), len(numbers), [None, pa.py_buffer(offsets), pa.py_buffer(digits.tobytes())]
    )
    return pc.if_else(numbers.is_valid(), texts, pa.scalar(None, pa.string())) if numbers.null_count else texts


def _map_of(array: pa.Array, type_: pa.DataType) -> pa.Array:
    """A map, which some frames hold as a list of structs of `key` and `value`."""
    if pa.types.is_map(array.type):
        return array.cast(type_)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    if array.null_count:
        offsets = pc.if_else(
            pa.concat_arrays([array.is_valid(), pa.array([True])]), offsets, pa.scalar(None, pa.int32())
        )
    entries = array.filter(array.is_valid()).flatten()
    return pa.MapArray.from_arrays(
        offsets, entries.field("key").cast(pa.string()), entries.field("value").cast(pa.string())
    ).cast(type_)


# --- reading ------------------------------------------------------------------------------------------------------------


def find_tables(path: Path) -> dict[str, Path]:
    """The files of an export by table: of a directory, or the one that is named. Raises ConfigError."""
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path} is a directory without *{SUFFIX}; name the files in it that are to be imported")
    tables = {}
    for file in files:
        metadata = _metadata(file)
        table = metadata.get(_TABLE_KEY, b"").decode("utf-8", "replace")
        if table not in schema.TABLES:
            raise ConfigError(
                f"{file} is Parquet, but not written by `provenance export --format parquet`: its metadata names no table"
            )
        version = metadata.get(_VERSION_KEY, b"?").decode("utf-8", "replace")
        if not version.isdigit() or int(version) > schema.SCHEMA_VERSION:
            raise ConfigError(
                f"{file} has schema version {version}, this mesh-provenance reads up to {schema.SCHEMA_VERSION}; "
                "use the release that wrote it"
            )
        tables[table] = file
    return tables


def read_tables(tables: Mapping[str, Path]) -> Iterator[tuple[Rows, int]]:
    """The rows, what belongs together together, with the bytes read so far. Raises ConfigError for a damaged file."""
    read = 0
    for group in (*((t,) for t in TABLES_FIRST), TABLES_TOGETHER, *((t,) for t in TABLES_ALONE)):
        present = {table: _Pages(tables[table], table) for table in group if table in tables}
        if len({len(p.pages) for p in present.values()}) > 1:
            raise ConfigError(f"{', '.join(present)}: these files are not of one export")
        for page in range(max((len(p.pages) for p in present.values()), default=0)):
            batches = {table: pages.read(page) for table, pages in present.items()}
            yield (
                Rows({t: b for t, b in batches.items() if b.num_rows}),
                read + sum(p.bytes_read for p in present.values()),
            )
        read += sum(p.bytes_read for p in present.values())


class _Pages:
    """One table's file while it is read."""

    def __init__(self, path: Path, table: str) -> None:
        self.bytes_read = 0
        self._path = path
        self._table = table
        self._file = _open(path)
        self._group = 0
        self.pages = self._page_rows()

    def _page_rows(self) -> list[int]:
        metadata = self._file.metadata
        try:
            pages = json.loads((metadata.metadata or {}).get(_PAGES_KEY, b""))
        except ValueError:
            pages = None
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        if not isinstance(pages, list) or [rows for rows in pages if rows] != groups:
            raise ConfigError(f"{self._path}: its row groups are not those that its metadata tells of: export it again")
        return pages

    def read(self, page: int) -> pa.RecordBatch:
        """The rows of one page; pages are read in order."""
        if not self.pages[page]:
            return pa.RecordBatch.from_pylist([], schema=schema.arrow_schema(self._table))
        try:
            rows = self._file.read_row_group(self._group)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{self._path}: row group {self._group} cannot be read: {error}") from error
        self.bytes_read += sum(
            self._file.metadata.row_group(self._group).column(i).total_compressed_size
            for i in range(self._file.metadata.num_columns)
        )
        self._group += 1
        return self._batch(rows)

    def _batch(self, rows: pa.Table) -> pa.RecordBatch:
        wanted = schema.arrow_schema(self._table)
        arrays = []
        for column in schema.TABLES[self._table]:
            type_ = wanted.field(column.name).type
            if column.name not in rows.schema.names:
                if column.required:
                    raise ConfigError(f"{self._path} has no column {column.name}")
                arrays.append(pa.nulls(rows.num_rows, type_))
                continue
            try:
                arrays.append(_loaded(_whole(rows.column(column.name)), column, type_))
            except (pa.ArrowException, ValueError) as error:
                raise ConfigError(f"{self._path}, column {column.name}: {error}") from error
        return pa.RecordBatch.from_arrays(arrays, schema=wanted)


def _open(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {error}") from error


def _metadata(path: Path) -> dict[bytes, bytes]:
    with _open(path) as file:
        return dict(file.metadata.metadata or {})


def _loaded(array: pa.Array, column: schema.Column, type_: pa.DataType) -> pa.Array:
    if column.required and array.null_count:
        raise ValueError(f"{array.null_count} values are missing")
    digits = _HEX_DIGITS.get(column.type)
    if digits is None:
        return array.cast(type_)
    raw = _bytes_of_hex(array, digits)
    if column.type == "UBIGINT":
        numbers = np.frombuffer(raw, dtype=">u8").astype(np.uint64)
        return pa.array(numbers, mask=_nulls(array))
    storage = pa.Array.from_buffers(pa.binary(16), len(array), [None, pa.py_buffer(raw)])
    if array.null_count:
        storage = pc.if_else(array.is_valid(), storage, pa.scalar(None, pa.binary(16)))
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


def _bytes_of_hex(array: pa.Array, digits: int) -> bytes:
    """Hex texts of one length as their bytes, end to end; zeros where there is none."""
    texts = pc.fill_null(array.cast(pa.string()), "0" * digits)
    if not pc.all(pc.equal(pc.binary_length(texts), digits), min_count=0).as_py():
        raise ValueError(f"an id has not {digits} hex digits")
    return bytes.fromhex("".join(texts.to_pylist()))


def _nulls(array: pa.Array) -> "np.ndarray[Any, np.dtype[np.bool_]] | None":
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False)) if array.null_count else None

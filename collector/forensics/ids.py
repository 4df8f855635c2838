"""Ids as people and other programs write them: lowercase hex, 32 digits for a trace and 16 for a span.

DuckDB hands trace ids over as hyphenated UUID text and span ids as unsigned integers; engines without those types store
hex already. Both pass.
"""

import polars as pl
import pyarrow as pa


def trace_id_hex(value: str | None) -> str | None:
    """32 lowercase hex digits, from hyphenated or plain hex; None stays None."""
    return None if value is None else value.replace("-", "").lower()


def span_id_hex(value: int | str | None) -> str | None:
    """16 lowercase hex digits, from an integer or from hex; None stays None."""
    if value is None:
        return None
    return value.lower() if isinstance(value, str) else f"{value:016x}"


def hex_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with every `*trace_id` and `*span_id` column as hex text; other columns as they were."""
    columns = [
        column.cast(pl.String).str.replace_all("-", "", literal=True).str.to_lowercase()
        if column.name.endswith("trace_id")
        else _span_ids_hex(column)
        for column in frame
        if column.name.endswith(("trace_id", "span_id"))
    ]
    return frame.with_columns(columns)


def _span_ids_hex(column: pl.Series) -> pl.Series:
    """As `span_id_hex`, a column at a time: of a million of them a third of a second would go into formatting."""
    if not column.dtype.is_integer():
        return column.cast(pl.String).str.to_lowercase()
    big_endian = column.fill_null(0).to_numpy().astype(">u8").tobytes()
    raw = pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), len(column), [None, pa.py_buffer(big_endian)])
    digits = pl.Series(column.name, raw.cast(pa.binary())).bin.encode("hex")
    return digits.set(column.is_null(), None)

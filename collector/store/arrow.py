"""Types that DuckDB's answers have and data frames lack, made plain. Pure."""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

_HUGEINT: Final = pa.decimal128(38, 0)
_INTERVAL: Final = pa.month_day_nano_interval()


def plain_types(table: pa.Table) -> pa.Table:
    """The table with sums of integers as integers, intervals and enumerations as text, the rest as it is.

    DuckDB's `sum` of a BIGINT is a 128-bit integer, which Arrow knows only as a decimal.
    """
    for i, column in enumerate(table.columns):
        plain = _plain(column)
        if plain is not column:
            table = table.set_column(i, table.schema.field(i).name, plain)
    return table


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.type == _HUGEINT:
        try:
            return pc.cast(column, pa.int64())
        except pa.ArrowInvalid:  # a value that needs more than 64 bits: exact as a decimal
            return column
    if column.type == _INTERVAL:
        return pa.chunked_array([[_interval(v) for v in column.to_pylist()]], pa.string())
    if pa.types.is_dictionary(column.type):
        return pc.cast(column, column.type.value_type)
    return column


def _interval(value: pa.MonthDayNano | None) -> str | None:
    if value is None:
        return None
    parts = [f"{value.months} months"] * bool(value.months) + [f"{value.days} days"] * bool(value.days)
    seconds = value.nanoseconds / 1e9
    return " ".join([*parts, f"{seconds:g} seconds"] if seconds or not parts else parts)

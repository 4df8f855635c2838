"""Types that DuckDB's answers have and data frames lack, made plain, and names made unique. Pure."""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_HUGEINT: Final = pa.decimal128(38, 0)
_INTERVAL: Final = pa.month_day_nano_interval()

_MIN_DAY: Final = -719_162
_MAX_DAY: Final = 2_932_896
"""0001-01-01 and 9999-12-31, in days since 1970: what Python's dates and data frames can say."""

_PER_DAY: Final = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def plain_types(table: pa.Table) -> pa.Table:
    """The table with sums of integers as integers and columns whose names occur once; the rest as data frames can hold it.

    DuckDB's `sum` of a BIGINT is a 128-bit integer, which Arrow knows only as a decimal. Intervals, enumerations and
    unions become text, and so does a column of times with one that is infinite or beyond the years 1 to 9999; within
    lists, structs and maps too, and a map with such a value becomes a list of structs of `key` and `value`.
    The second column `a` is `a_1`, as a join's `SELECT *` may give it.
    """
    return pa.table([_plain(column) for column in table.columns], names=_unique(table.schema.names))


def _unique(names: list[str]) -> list[str]:
    taken: set[str] = set()
    unique = []
    for name in names:
        candidate, n = name, 0
        while candidate in taken or (n and candidate in names):
            n += 1
            candidate = f"{name}_{n}"
        taken.add(candidate)
        unique.append(candidate)
    return unique


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.type == _HUGEINT:
        try:
            return pc.cast(column, pa.int64())
        except pa.ArrowInvalid:  # a value that needs more than 64 bits: exact as a decimal
            return column
    if not _may_be_odd(column.type):
        return column
    whole = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return pa.chunked_array([_array(whole)])


def _may_be_odd(type_: pa.DataType) -> bool:
    if pa.types.is_nested(type_) and not pa.types.is_union(type_):
        return any(_may_be_odd(type_.field(i).type) for i in range(type_.num_fields))
    checks = (pa.types.is_temporal, pa.types.is_union, pa.types.is_dictionary)  # an interval is temporal
    return any(check(type_) for check in checks)


def _array(array: pa.Array) -> pa.Array:
    type_ = array.type
    if not _may_be_odd(type_):
        return array
    if type_ == _INTERVAL:
        return pa.array([_interval(value) for value in array.to_pylist()], pa.string())
    if pa.types.is_dictionary(type_):
        return pc.cast(array, type_.value_type)
    if pa.types.is_union(type_):
        return pa.array([_text(value) for value in array], pa.string())
    if pa.types.is_struct(type_):
        children = [_array(child) for child in array.flatten()]
        return pa.StructArray.from_arrays(children, [f.name for f in type_], mask=array.is_null())
    if pa.types.is_map(type_):
        entry = pa.struct([("key", type_.key_type), ("value", type_.item_type)])
        return _array(array.cast(pa.list_(entry)))
    if pa.types.is_nested(type_):
        return _list(array)
    return _moments(array)


def _list(array: pa.Array) -> pa.Array:
    """A list of any kind, as a list of plain values."""
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    values = array.filter(array.is_valid()).flatten()
    return pa.ListArray.from_arrays(offsets, _array(values), mask=array.is_null())


def _moments(array: pa.Array) -> pa.Array:
    """Dates, times and timestamps: as they are if they all can be said, else all as text."""
    type_ = array.type
    wide = pa.int32() if type_.bit_width == 32 else pa.int64()
    numbers = array.view(wide)
    per_day = 1 if pa.types.is_date(type_) else _PER_DAY[type_.unit]
    low, high = (0, per_day) if pa.types.is_time(type_) else (_MIN_DAY * per_day, (_MAX_DAY + 1) * per_day)
    bounds = pc.min_max(numbers).as_py()
    if bounds["min"] is None or (low <= bounds["min"] and bounds["max"] < high):
        return array
    limit = 2 ** (type_.bit_width - 1) - 1
    odd = {limit: "infinity", -limit: "-infinity"} if not pa.types.is_time(type_) else {high: "24:00:00"}
    texts = [
        None
        if n is None
        else odd.get(n) or (_text(v) if low <= n < high else f"year {1970 + n / per_day / 365.2425:.0f}")
        for n, v in zip(numbers.to_pylist(), array, strict=True)
    ]
    return pa.array(texts, pa.string())


def _text(value: pa.Scalar) -> str | None:
    try:
        plain = value.as_py()
    except (ValueError, OverflowError):  # a time in it that Python cannot say
        return "beyond the years 1 to 9999"
    return None if plain is None else str(plain)


def _interval(value: pa.MonthDayNano | None) -> str | None:
    if value is None:
        return None
    parts = [f"{value.months} months"] * bool(value.months) + [f"{value.days} days"] * bool(value.days)
    seconds = value.nanoseconds / 1e9
    return " ".join([*parts, f"{seconds:g} seconds"] if seconds or not parts else parts)

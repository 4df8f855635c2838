"""What the lines of every format are made of: numbers, times, addresses, and rows of `flows`. Pure.

Conversions answer None for what is no such thing; the caller decides whether the line is refused or the value is kept as text.
"""

import hashlib
import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any, Final

import numpy as np
import pyarrow as pa

from collector.errors import DecodeError
from collector.schema import TABLES, arrow_schema

Row = dict[str, object]

INT64_MAX: Final = 2**63 - 1
NS_PER_S: Final = 1_000_000_000

_NOTHING: Final = (None, "", "-")


def flow_row(format_: str) -> Row:
    """A row of `flows` in which nothing is known but whose format it is."""
    row = _FLOW.copy()
    row["format"] = format_
    return row


_FLOW: Final[Row] = dict.fromkeys(c.name for c in TABLES["flows"])


def count(value: object) -> int | None:
    """A whole number that fits a BIGINT and is not negative, from a number or its text."""
    match value:
        case bool():
            return None
        case int():
            number = value
        case float() if value.is_integer():
            number = int(value)
        case str() if value.isascii() and value.isdigit() and len(value) < 20:
            number = int(value)
        case _:
            return None
    return number if 0 <= number <= INT64_MAX else None


def port(value: object) -> int | None:
    """A port from 0 to 65535."""
    number = count(value)
    return number if number is not None and number <= 65535 else None


@lru_cache(maxsize=65536)
def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def address(value: object) -> str | None:
    """An IP address in its shortest form; an IPv4 address that came mapped into IPv6 as IPv4."""
    if not isinstance(value, str) or len(value) > 64:
        return None
    found = _address(value)
    return found[7:] if found is not None and found.startswith("::ffff:") and "." in found else found


def address_and_port(value: object) -> tuple[str | None, int | None]:
    """Of `10.0.0.1:80`, `[::1]:80`; (None, None) for anything else."""
    if not isinstance(value, str):
        return None, None
    host, _, number = value.rpartition(":")
    return address(host.removeprefix("[").removesuffix("]")), port(number)


def epoch_ns(text: str) -> int | None:
    """Nanoseconds of seconds since the epoch as decimal text, to its last digit: `1517422326.539915`."""
    whole, _, fraction = text.partition(".")
    if not (whole.isascii() and whole.isdigit() and len(whole) <= 10 and (not fraction or fraction.isdigit())):
        return None
    nanos = int(whole) * NS_PER_S + int(fraction[:9].ljust(9, "0") if fraction.isascii() and fraction else 0)
    return nanos if nanos <= INT64_MAX else None


def seconds_ns(value: object) -> int | None:
    """Nanoseconds of a duration in seconds: a number, or its decimal text."""
    match value:
        case bool():
            return None
        case int() | float() if 0 <= value <= 9e9:
            return round(value * 1_000_000) * 1_000
        case str():
            return epoch_ns(value)
        case _:
            return None


def json_text(value: object) -> str:
    """A value of `attributes`; raises DecodeError."""
    try:
        return _encode(value)
    except RecursionError:
        raise DecodeError("nested too deep") from None
    except ValueError:
        raise DecodeError("a number that no float can hold") from None


_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode  # `json.dumps` would make one a value


def attributes_of(values: Mapping[str, object] | Iterable[tuple[str, object]]) -> list[tuple[str, str]]:
    """What has no column, as it is stored: without what was not logged."""
    pairs = values.items() if isinstance(values, Mapping) else values
    return [(key, json_text(value)) for key, value in pairs if value not in _NOTHING]


def json_object(text: str) -> dict[str, Any]:
    """The object that a line is; raises DecodeError."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise DecodeError("not JSON") from None
    if not isinstance(value, dict):
        raise DecodeError("not a JSON object")
    if has_surrogate(text):
        raise DecodeError("not Unicode: an unpaired surrogate")
    return value


def _no_constant(name: str) -> object:
    raise ValueError(name)


def has_surrogate(text: str) -> bool:
    r"""Whether an escape such as \ud800 may stand alone; only then is it worth looking."""
    if "\\ud" not in text and "\\uD" not in text:
        return False
    decoded = json.dumps(json.loads(text), ensure_ascii=False)
    try:
        decoded.encode()
    except UnicodeEncodeError:
        return True
    return False


def record_id(source: str, offset: int, line: bytes) -> int:
    """A hash of what was read and where.

    The line is part of it, because offsets start again when a file is rotated; the offset is, because one proxy may
    log the same line twice.
    """
    content = id_prefix(source) + b"%d\0" % offset + line.strip()
    return int.from_bytes(hash_of(content, usedforsecurity=False).digest()[:8])


hash_of: Final = hashlib.sha256
"""With the instructions that processors have for it, the fastest of Python's: a microsecond a line."""


def id_prefix(source: str) -> bytes:
    """What the ids of all lines of a source begin with."""
    return source.encode("utf-8", "surrogateescape") + b"\0"


# --- rows as Arrow ------------------------------------------------------------------------------------------------------


def to_batch(table: str, rows: Sequence[Row]) -> pa.RecordBatch:
    """The rows as a record batch for this table."""
    schema = schema_of(table)
    values = zip(*map(_in_order(table), rows), strict=True) if rows else [()] * len(schema)
    columns = [_column(column, field.type) for column, field in zip(values, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@cache
def schema_of(table: str) -> pa.Schema:
    """Made once a table."""
    return arrow_schema(table)


@cache
def _in_order(table: str) -> "itemgetter[Any]":
    return itemgetter(*schema_of(table).names)


def _column(values: Sequence[object], type_: pa.DataType) -> pa.Array:
    """An Arrow array. Through NumPy where numbers exceed 2^63: from a list they take Arrow 55 µs each, 400 times as long."""
    return pa.array(np.array(values, dtype=np.uint64) if type_ == pa.uint64() else values, type_)

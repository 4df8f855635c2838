"""Frames on a terminal, in a pipe or in a file: table, json, ndjson, csv. Shared by every command that prints rows."""

import csv
import io
import json
import math
import re
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Final, Literal, TextIO, TypeGuard, get_args

import polars as pl

from collector.commands.plain_columns import padded, plain_csv, plain_json, plain_text
from collector.commands.terminal import escape

Format = Literal["table", "json", "ndjson", "csv"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

_GAP: Final = "  "
_NARROWEST: Final = 12
"""A column is never squeezed below this many cells: less tells nobody anything."""

_ROWS_AT_ONCE: Final = 50_000

_UNSAFE_IN_JSON: Final = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_ID: Final = r"[0-9a-fA-F-]{12,36}(?:, [0-9a-fA-F-]{12,36})*|[0-9]+"


def write_frame(frame: pl.DataFrame, format: str, stream: TextIO) -> None:  # noqa: A002 the word people type
    """Print the frame in one of `FORMATS`.

    The table is cut to the terminal's width only where the stream is a terminal, and ids are never cut. JSON keeps
    64-bit integers as integers, writes maps as objects, and NaN and infinities as null. A format that is not in
    `FORMATS` raises ValueError.
    """
    match format:
        case "table":
            width = shutil.get_terminal_size().columns if stream.isatty() else None
            stream.writelines(line + "\n" for line in render_table(frame, width=width))
        case "json":
            _write_json_array(frame, stream)
        case "ndjson":
            stream.writelines(line + "\n" for line in _json_rows(frame))
        case "csv":
            _write_csv(frame, stream)
        case _:
            raise ValueError(f"no format {format!r}; there are {', '.join(FORMATS)}")


def render_table(frame: pl.DataFrame, *, width: int | None) -> list[str]:
    """The lines of a table: a header, a rule and one line a row; `width` in cells, None for as wide as it gets."""
    if not frame.width:
        return []
    plain = [plain_text(column) for column in frame]
    cells = [
        pl.Series([_text(value) for value in column.to_list()], dtype=pl.String) if text is None else text.fill_null("")
        for column, text in zip(frame, plain, strict=True)
    ]
    header = [escape(name) for name in frame.columns]
    widths = [max(_width(title), _widest(column)) for title, column in zip(header, cells, strict=True)]
    if width is not None:
        fixed = [bool(column.str.contains(f"^(?:{_ID})?$").all()) for column in cells]
        widths = _squeeze(widths, fixed, width)
    right = [dtype.is_numeric() for dtype in frame.dtypes]
    columns = [
        _padded(column, w, right=r).alias(str(n))
        for n, (column, w, r) in enumerate(zip(cells, widths, right, strict=True))
    ]
    rows = pl.DataFrame(columns).select(pl.concat_str(pl.all(), separator=_GAP).str.strip_chars_end())
    return [_line(header, widths, right), _GAP.join("-" * w for w in widths), *rows.to_series().to_list()]


def _widest(cells: pl.Series) -> int:
    if cells.len() == 0:
        return 0
    if _is_ascii(cells):
        return int(cells.str.len_chars().max())  # type: ignore[arg-type]
    return max(_width(cell) for cell in cells.to_list())


def _padded(cells: pl.Series, width: int, *, right: bool) -> pl.Series:
    if _is_ascii(cells):
        return padded(cells, width, right=right)
    return pl.Series([_pad(cell, width, right=right) for cell in cells.to_list()], dtype=pl.String)


def _is_ascii(cells: pl.Series) -> bool:
    """Whether every character is as wide as it is long."""
    return bool((cells.str.len_bytes() == cells.str.len_chars()).all())


def _squeeze(widths: list[int], fixed: list[bool], total: int) -> list[int]:
    """Narrow the widest columns first until the line fits, ids and short columns excepted."""
    widths = list(widths)
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - total
    while excess > 0:
        candidates = [i for i, w in enumerate(widths) if not fixed[i] and w > _NARROWEST]
        if not candidates:
            return widths
        widest = max(candidates, key=lambda i: widths[i])
        others = [widths[i] for i in candidates if widths[i] < widths[widest]]
        floor = max([_NARROWEST, *others])
        step = max(1, min(excess, widths[widest] - floor))
        widths[widest] -= step
        excess -= step
    return widths


def _line(cells: Sequence[str], widths: list[int], right: list[bool]) -> str:
    return _GAP.join(_pad(c, w, right=r) for c, w, r in zip(cells, widths, right, strict=True)).rstrip()


def _pad(text: str, width: int, *, right: bool) -> str:
    text = _cut(text, width)
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    kept, used = [], 1
    for character in text:
        used += _width(character)
        if used > width:
            break
        kept.append(character)
    return "".join(kept) + "…"


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(_character_width(c) for c in text)


def _character_width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _text(value: object) -> str:
    """One cell of a table."""
    plain = _plain(value)
    match plain:
        case None:
            return ""
        case bool():
            return str(plain).lower()
        case float():
            return f"{plain:.6g}"
        case dict():
            return ", ".join(f"{escape(str(k))}={_text(v)}" for k, v in plain.items())
        case list():
            return ", ".join(_text(v) for v in plain)
        case _:
            return escape(str(plain))


def _plain(value: object) -> object:
    """The value as JSON has it."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case bytes():
            return value.hex()
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case list() if _is_map(value):
            return {str(entry["key"]): _plain(entry["value"]) for entry in value}
        case list() | tuple():
            return [_plain(v) for v in value]
        case dict():
            return {str(k): _plain(v) for k, v in value.items()}
        case pl.Series():
            return _plain(value.to_list())
        case _:
            return str(value)


def _is_map(value: list[object]) -> TypeGuard[list[dict[str, object]]]:
    """Whether this is a MAP: Arrow and Polars have it as a list of structs with `key` and `value`."""
    return bool(value) and all(isinstance(v, dict) and v.keys() == {"key", "value"} for v in value)


def _json_rows(frame: pl.DataFrame) -> Iterator[str]:
    """Each row as an object."""
    if not frame.width:
        return
    for some in frame.iter_slices(_ROWS_AT_ONCE):
        parts: list[pl.Expr | pl.Series] = []
        for n, column in enumerate(some):
            cells = plain_json(column)
            if cells is None:
                cells = pl.Series([_json(v) for v in _values(column)], dtype=pl.String)
            parts += [pl.lit(("{" if n == 0 else ", ") + _json(column.name) + ": "), cells.alias(str(n))]
        yield from pl.select(pl.concat_str(*parts, pl.lit("}"))).to_series().to_list()


def _values(column: pl.Series) -> list[object]:
    """The values as JSON has them."""
    is_map = _is_map_type(column.dtype)
    return [{} if is_map and v == [] else _plain(v) for v in column.to_list()]


def _is_map_type(dtype: pl.DataType) -> bool:
    inner = dtype.inner if isinstance(dtype, pl.List) else None
    return isinstance(inner, pl.Struct) and [f.name for f in inner.fields] == ["key", "value"]


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNSAFE_IN_JSON.sub(lambda m: f"\\u{ord(m.group()):04x}", text)


def _write_json_array(frame: pl.DataFrame, stream: TextIO) -> None:
    stream.write("[")
    stream.writelines(("," if i else "") + "\n  " + row for i, row in enumerate(_json_rows(frame)))
    stream.write("\n]\n" if frame.height else "]\n")


def _write_csv(frame: pl.DataFrame, stream: TextIO) -> None:
    """RFC 4180 with a header line; lists and maps as JSON; values exact, except that a terminal gets no control codes."""
    terminal = stream.isatty()
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(frame.columns)
    _flush(buffer, stream, terminal=terminal)
    for some in frame.iter_slices(_ROWS_AT_ONCE):
        found = [plain_csv(column) for column in some]
        columns = [fields.alias(str(n)) for n, fields in enumerate(found) if fields is not None]
        # A lone empty field is quoted, which only the writer knows.
        if len(columns) == some.width > 1:
            lines = pl.DataFrame(columns).select(pl.concat_str(pl.all(), separator=",")).to_series()
            stream.writelines(line + "\n" for line in lines.to_list())
            continue
        for row in zip(*(_values(column) for column in some), strict=True):
            writer.writerow([_csv_cell(v) for v in row])
            _flush(buffer, stream, terminal=terminal)


def _csv_cell(value: object) -> object:
    match value:
        case bool():
            return str(value).lower()
        case dict() | list():
            return _json(value)
        case _:
            return value


def _flush(buffer: io.StringIO, stream: TextIO, *, terminal: bool) -> None:
    text = buffer.getvalue()
    if terminal:
        text = "\n".join(escape(line) for line in text.removesuffix("\n").split("\n")) + "\n" if text else text
    stream.write(text)
    buffer.seek(0)
    buffer.truncate()

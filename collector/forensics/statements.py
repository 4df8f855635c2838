"""Statements compiled once and filled in: Ibis takes longer to compile a question than DuckDB to answer it.

A statement is compiled with *blanks* where the values will stand, each of them a literal that nothing else uses; filling replaces
literal by literal. A text is written by sqlglot, as Ibis has it written, so that what people type stays a literal.

    moment("since")                 an integer's blank; blank ± n, up to `REACH`, becomes value ± n
    text("service")                 a text's blank; of `column.isin([text("services")])`, where a list of texts fills it
    fill(sql, since=1, service="")  the statement; values of blanks that it has not are ignored
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Final

import ibis.expr.types as ir

from collector import statement_files
from collector.forensics.tables import Window, compile_sql

REACH: Final = 30 * 24 * 3600 * 10**9
"""How far a literal may lie from its integer blank: margins around a window, in ns."""

_NUMBERS: Final = {
    "since": 55 * 10**17,
    "value": 65 * 10**17,
    "until": 75 * 10**17,
    "span_id": 82 * 10**17,
    "min": 86 * 10**17,
    "max": 90 * 10**17 + 10**16,
}
"""Each with 19 digits and far from the others, from times of our century and from `traces._LATER`."""

TRACE_ID: Final = "e0e0e0e0-e0e0-e0e0-e0e0-e0e0e0e0e0e0"
"""A trace id's blank, as a UUID is written; of `column.isin([UUID(TRACE_ID)])`, where a list of ids fills it."""

_BLANK: Final = re.compile(rf"'\ue000([a-z_]+)\ue000'|\b([5-9][0-9]{{18}})\b|CAST\('{TRACE_ID}' AS UUID\)")


def number(name: str) -> int:
    """The blank of an integer: since, until, span_id, min, max or value."""
    return _NUMBERS[name]


def text(name: str) -> str:
    """The blank of a text."""
    return f"\ue000{name}\ue000"


Value = str | int | Sequence[str] | None
"""What fills a blank."""


def fill(sql: str, **values: Value) -> str:
    """The statement with every blank replaced, in one pass: what stands in a value is never taken for a blank."""
    return _BLANK.sub(lambda found: _literal(found, values), sql)


def _literal(found: "re.Match[str]", values: dict[str, Value]) -> str:
    if name := found[1]:
        value = values[name]
        return _quoted(str(value)) if isinstance(value, str | int | None) else _listed(map(_quoted, value))
    if not found[2]:
        trace_ids = values["trace_id"]
        listed = trace_ids if isinstance(trace_ids, Sequence) and not isinstance(trace_ids, str) else [trace_ids]
        return _listed(f"CAST({_quoted(str(trace_id))} AS UUID)" for trace_id in listed)
    written = int(found[2])
    for name, blank in _NUMBERS.items():
        value = values.get(name)
        if isinstance(value, int) and abs(written - blank) <= REACH:
            return str(value + written - blank)
    return found[0]


def _listed(literals: Iterable[str]) -> str:
    """For the brackets of IN, which are never empty: nothing is in NULL."""
    return ", ".join(literals) or "NULL"


def _quoted(value: str) -> str:
    from sqlglot import exp

    return exp.Literal.string(value).sql("duckdb")


def windowed(window: Window, compiled: Callable[[Window], str], **values: Value) -> str:
    """The statement for a window, out of the one that `compiled` (which remembers its answers) has for windows of this shape.

    `values` fill what other blanks there are.
    """
    since, until = window.since_unix_nano, window.until_unix_nano
    blank = Window(None if since is None else number("since"), None if until is None else number("until"))
    return fill(compiled(blank), since=since, until=until, **values)


@lru_cache(maxsize=64)
def compiled_once(build: Callable[..., ir.Table], *shape: object) -> str:
    """The SQL of `build(*shape)`, remembered; between processes too, where the function and its arguments have names that last."""
    key = f"{build.__module__}:{build.__qualname__}{shape!r}"
    if "<" in key:  # a function within a function, or an object that is told apart by its address
        return compile_sql(build(*shape))
    return statement_files.of_user().recall(key, lambda: compile_sql(build(*shape)))

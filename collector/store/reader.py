"""One SELECT in, Arrow out: everything that anybody may ask of the evidence, and nothing else.

Six walls, each enough against most of it:
1. DuckDB's own parser must see exactly one statement, a SELECT or an EXPLAIN of one.
2. Every table function in its syntax tree must be on a list; a few scalar functions are refused, and those that build
   large values from small arguments must have small ones, also inside each other (see growth.py): DuckDB looks at no
   interrupt and no limit inside one value.
3. It runs in a transaction that was begun READ ONLY.
4. The database was opened without files, network and extensions, and its configuration is locked (see database.py).
5. Rows, bytes and seconds are limited, and what the process may have; what takes more is interrupted (see watch.py).
6. Whoever asks over the network gives no function a list, map or text of unlimited length (see guards.py).

    Reader.query(sql) -> pyarrow.Table       raises QueryError, QueryTimeoutError
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import duckdb
import pyarrow as pa

from collector.errors import QueryError
from collector.store.arrow import plain_types
from collector.store.database import Store, message
from collector.store.growth import arguments, check_growth, literal
from collector.store.guards import guards
from collector.store.watch import Bounds, Interrupt, QueryInterruptedError, QueryTimeoutError, watched

__all__ = ["Interrupt", "Limits", "QueryInterruptedError", "QueryTimeoutError", "Reader"]

TABLE_FUNCTIONS: Final = frozenset({
    "duckdb_columns", "duckdb_constraints", "duckdb_databases", "duckdb_functions", "duckdb_indexes", "duckdb_keywords",
    "duckdb_memory", "duckdb_schemas", "duckdb_settings", "duckdb_tables", "duckdb_types", "duckdb_views",
    "generate_series", "histogram", "histogram_values", "json_each", "json_tree", "pragma_database_size",
    "pragma_show", "pragma_storage_info", "pragma_table_info", "pragma_version", "range", "repeat", "repeat_row",
    "summary", "unnest",
})  # fmt: skip
"""Table functions without effects on files, memory addresses, the log or other connections."""

REFUSED_FUNCTIONS: Final = frozenset({
    "getenv", "nextval", "write_log", "json_execute_serialized_sql", "setseed", "sleep_ms", "pg_sleep",
    "list_reduce", "array_reduce", "reduce", "setval", "json_serialize_plan",
})  # fmt: skip
"""Scalar functions that have an effect, look outside the evidence, double a value at each step, or plan SQL (which computes
its constants) that nobody has checked."""

GROWING_FUNCTIONS: Final = frozenset({
    "repeat", "range", "generate_series", "lpad", "rpad", "list_resize", "array_resize", "bitstring", "format", "printf",
})  # fmt: skip
"""Scalar functions whose result may be far larger than all that is given to them."""

MAX_GROWN: Final = 10_000
"""Characters or elements that one of them may build: 2,048 rows of them, a vector, stay below 100 MB."""

# The tree as text: a quote inside a user's literal is escaped in it, so the pattern matches keys only. Python's parser
# would need a recursion as deep as the expression.
_FUNCTION_NAME: Final = re.compile(r'(?<!\\)"function_name":"((?:[^"\\]|\\.)*)"')

_SYSTEM: Final = re.compile(r'(?<!\\)"(?:catalog|schema)":"system"', re.IGNORECASE)
"""What is qualified with the catalog of DuckDB's own functions."""

MAX_DEPTH: Final = 200
"""Of brackets. The detectors' SQL, the deepest that we know, has 44."""

_OPENING: Final = frozenset({b"(", b"[", b"{"})
_CLOSING: Final = frozenset({b")", b"]", b"}"})

_BATCH_ROWS: Final = 8192


@dataclass(frozen=True, slots=True)
class Limits:
    """What one query may cost; None means no limit.

    Attributes:
        rows: Of the answer.
        size_bytes: Of the answer, as Arrow.
        seconds: From its start to its last row.
        process_bytes: Of the whole process while it runs.
        guarded: Whether the lists, maps and texts are limited that functions are given (see guards.py).
    """

    rows: int | None = None
    size_bytes: int | None = None
    seconds: float | None = None
    process_bytes: int | None = None
    guarded: bool = False


class Reader:
    """Answers queries on one store; any thread may ask, each query has a connection of its own.

    `on_deaf` is told of a query that does not heed its interrupt, in a sentence for the log, from another thread.
    """

    def __init__(
        self, store: Store, limits: Limits | None = None, *, on_deaf: Callable[[str], None] | None = None
    ) -> None:
        self._store = store
        self._limits = limits or Limits()
        self._bounds = Bounds(self._limits.seconds, self._limits.process_bytes, on_deaf)

    def query(self, sql: str, *, interrupt: Interrupt | None = None) -> pa.Table:
        """The answer to one SELECT.

        UUIDs come as text, 128-bit sums as 64-bit integers where they fit, intervals as text.
        Raises QueryError for SQL that is refused or fails, QueryTimeoutError, QueryMemoryError, QueryInterruptedError;
        StoreError when the store is closed.
        """
        try:
            with self._store.memory.asking(self._store.cursor) as cursor:
                statement, called = _one_statement(cursor, sql, guarded=self._limits.guarded)
                for guard in guards(called) if self._limits.guarded else ():
                    cursor.execute(guard)
                with watched(cursor, self._bounds, interrupt or Interrupt()):
                    cursor.execute("BEGIN TRANSACTION READ ONLY")
                    return plain_types(_fetch(cursor, statement, self._limits))
        except duckdb.Error as e:
            raise QueryError(message(e)) from e
        except pa.ArrowException as e:
            raise QueryError(f"the answer has a value that cannot be sent ({e}); cast it to VARCHAR") from e


def _one_statement(
    cursor: duckdb.DuckDBPyConnection, sql: str, *, guarded: bool
) -> tuple[str | duckdb.Statement, frozenset[str]]:
    """The one statement, if it is one that we run, and the names of the functions that it calls.

    It is parsed already where its text is all that was written, else it is its text.
    """
    if "\0" in sql:
        raise QueryError("the query has a NUL character, where DuckDB 1.5 would stop reading; remove it")
    _check_depth(sql)
    try:
        statements = cursor.extract_statements(sql)
    except duckdb.Error as e:
        raise QueryError(message(e)) from e
    if len(statements) != 1:
        raise QueryError(
            f"expected one SELECT, got {len(statements)} statements" if statements else "the query is empty"
        )
    [statement] = statements
    # DuckDB 1.5 gives for some PRAGMAs the SELECT that it makes of them, and keeps what is written before EXPLAIN.
    if _after(sql, "pragma") is not None:
        raise QueryError("only SELECT is answered here, not PRAGMA; the evidence cannot be changed")
    text = statement.query
    match _type(statement):
        case duckdb.StatementType.SELECT:
            called = _check_functions(cursor, text, guarded=guarded)
        case duckdb.StatementType.EXPLAIN:
            called = _check_functions(cursor, _explained(text), guarded=guarded)
        case duckdb.StatementType.MULTI:
            raise QueryError(
                "this statement needs several steps (a PIVOT?): give PIVOT its values with ON column IN (...)"
            )
        case other:
            raise QueryError(f"only SELECT is answered here, not {other.name}; the evidence cannot be changed")
    # What was checked is the text: only where that is the whole of it, what was parsed is surely the same. Of a detector's statement,
    # each parsing takes a tenth of a second.
    return (statement if text == sql else text), called


def _check_depth(sql: str) -> None:
    """Refuse what is nested deeper than anybody writes, by DuckDB's own tokens, before its parser sees it.

    The parser of DuckDB 2.0 takes cubic time for brackets that are not closed (1,600 of them 2 s, 20,000 an hour), heeds no
    interrupt, and holds Python's lock: nothing else in this process would run.
    """
    try:
        text = sql.encode()
    except UnicodeEncodeError as e:
        raise QueryError(f"the query is no text: {e.reason}") from e
    try:
        tokens = duckdb.tokenize(sql)
    except duckdb.Error as e:
        raise QueryError(message(e)) from e
    depth = 0
    for offset, kind in tokens:
        if kind != duckdb.token_type.operator:
            continue
        character = text[offset : offset + 1]
        if character in _OPENING:
            depth += 1
            if depth > MAX_DEPTH:
                raise QueryError(f"brackets are nested more than {MAX_DEPTH} deep; write the query in steps, with WITH")
        elif character in _CLOSING:
            depth = max(depth - 1, 0)


def _type(statement: duckdb.Statement) -> duckdb.StatementType:
    try:
        return statement.type
    except (
        ValueError
    ) as e:  # a kind that DuckDB's parser knows and its Python package does not, such as UPDATE EXTENSIONS
        raise QueryError("only SELECT is answered here; the evidence cannot be changed") from e


def _explained(sql: str) -> str:
    """What EXPLAIN [ANALYZE] explains; options in brackets are not supported."""
    rest = _after(sql, "explain") or ""
    return analyzed if (analyzed := _after(rest, "analyze")) is not None else rest


def _after(sql: str, keyword: str) -> str | None:
    """What follows the keyword if the statement begins with it, comments apart; None if it does not."""
    tokens = duckdb.tokenize(sql)
    text = sql.encode()
    start = tokens[0][0] if tokens else len(text)
    end = start + len(keyword)
    return text[end:].decode() if text[start:end].lower() == keyword.encode() else None


def _check_functions(cursor: duckdb.DuckDBPyConnection, sql: str, *, guarded: bool) -> frozenset[str]:
    """Refuse every function that is not harmless, by the syntax tree that DuckDB itself will run; the names of the others."""
    row = cursor.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    tree = str(row[0]) if row else ""
    if not tree.startswith('{"error":false'):
        raise QueryError("only SELECT is answered here; the evidence cannot be changed")
    called = frozenset(name.lower() for name in _FUNCTION_NAME.findall(tree))
    if guarded and _SYSTEM.search(tree):
        raise QueryError("names are written without system. here: it would lead past the guards of functions")
    refused = called & (REFUSED_FUNCTIONS | _other_table_functions())
    if refused:
        raise QueryError(f"not available here: {', '.join(sorted(refused))}; ask the tables of the evidence")
    for match in _FUNCTION_NAME.finditer(tree):
        name = match[1].lower()
        if name in GROWING_FUNCTIONS and not _is_bounded(name, tree, match.start()):
            raise QueryError(
                f"{name} is answered with literal arguments that build at most {MAX_GROWN:,} characters or elements; "
                "for rows, write FROM range(...)"
            )
    check_growth(tree)
    return called


def _is_bounded(name: str, tree: str, at: int) -> bool:
    """Whether the call whose name stands at this place of the tree builds a value of limited size; in doubt it does not."""
    start = tree.rfind("{", 0, at)
    if tree.endswith('"function":', 0, start):
        return True  # a table function: rows come in batches, and the limits hold between them
    try:
        call, _ = json.JSONDecoder().raw_decode(tree, start)
    except (ValueError, RecursionError):
        return False
    literals = [literal(argument) for argument in arguments(call)]
    match name, literals:
        case "repeat", [str(text), int(times)]:
            return len(text) * times <= MAX_GROWN
        case "range" | "generate_series", [*numbers]:
            return all(isinstance(n, int) and abs(n) <= MAX_GROWN // 2 for n in numbers)
        case "lpad" | "rpad" | "list_resize" | "array_resize" | "bitstring", [_, int(size), *_]:
            return size <= MAX_GROWN
        case "format" | "printf", [str(text), *_]:
            # No width of more than three digits, none taken from another argument.
            return not re.search(r"[0-9]{4}|\*|\{[^{}]*\{", text)
        case _:
            return False


@cache
def _other_table_functions() -> frozenset[str]:
    """Every table function of this DuckDB that is not on the list, names that are scalar functions too excepted."""
    connection = duckdb.connect(":memory:")
    try:
        rows = connection.execute("SELECT lower(function_name), function_type FROM duckdb_functions()").fetchall()
    finally:
        connection.close()
    tables = {name for name, kind in rows if kind in {"table", "table_macro", "pragma"}}
    return frozenset(tables - TABLE_FUNCTIONS - {name for name, kind in rows if kind in {"scalar", "aggregate"}})


def _fetch(cursor: duckdb.DuckDBPyConnection, sql: str | duckdb.Statement, limits: Limits) -> pa.Table:
    """Run the statement and read its answer batch by batch, so that one that is too large is never held whole."""
    # `cursor.execute` would plan the statement once instead of twice, but hold the whole answer before the first batch.
    relation = cursor.sql(sql)
    if relation is None:
        raise QueryError("the statement returns no rows")
    try:
        reader = relation.to_arrow_reader(_BATCH_ROWS)
    except OSError as e:  # how pyarrow passes on that DuckDB 1.5 has no Arrow type for VARIANT
        raise QueryError(f"the answer has a value that cannot be sent ({e}); cast it to VARCHAR") from e
    batches: list[pa.RecordBatch] = []
    rows = size = 0
    try:
        for batch in reader:
            batches.append(batch)
            rows += batch.num_rows
            size += batch.nbytes
            if limits.rows is not None and rows > limits.rows:
                raise QueryError(f"the answer has more than {limits.rows} rows; add a LIMIT or aggregate")
            if limits.size_bytes is not None and size > limits.size_bytes:
                raise QueryError(
                    f"the answer has more than {limits.size_bytes} bytes; name fewer columns or add a LIMIT"
                )
    except (pa.ArrowException, OSError) as e:  # how an error of DuckDB 1.5, or 2.0, arrives from inside a stream
        raise QueryError(str(e)) from e
    return pa.Table.from_batches(batches, reader.schema)

"""Stores to fill, to compare and to export from, and the commands, called as a shell would."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from collector.commands import export, import_
from collector.otlp import decode_traces
from collector.store.database import Store
from collector.store.reader import Reader
from collector.store.writer import Writer

DEADLINE = 30


def append(path: Path, *batches: dict[str, pa.RecordBatch]) -> None:
    """Write batches into the store at this path, each in an append of its own."""
    with Store.open(path) as store, Writer(store) as writer:
        for batch in batches:
            writer.append(batch).result(DEADLINE)


def append_request(path: Path, payload: bytes, received_unix_nano: int = 7) -> None:
    """Store one OTLP request."""
    append(path, decode_traces(payload, received_unix_nano=received_unix_nano).batches)


def rows(path: Path, sql: str) -> list[dict[str, Any]]:
    """A query's rows."""
    [answer] = answers(path, [sql])
    return answer


def answers(path: Path, queries: Iterable[str]) -> list[list[dict[str, Any]]]:
    """The rows of several queries."""
    with Store.open_read_only(path) as store:
        reader = Reader(store)
        return [reader.query(sql).to_pylist() for sql in queries]


def table(path: Path, name: str) -> list[str]:
    """A table's rows as comparable text, in an order of their own."""
    return sorted(map(repr, rows(path, f"SELECT * FROM {name}")))


def span_tables(path: Path, *, received_too: bool) -> list[list[str]]:
    """Everything about spans, comparable: with resources and scopes as far as spans name them."""
    received = "" if received_too else " EXCLUDE (received_unix_nano)"
    queries = [
        f"SELECT *{received} FROM spans",
        "SELECT * FROM span_events",
        "SELECT * FROM span_links",
        "SELECT * FROM resources WHERE resource_id IN (SELECT resource_id FROM spans)",
        "SELECT * FROM scopes WHERE scope_id IN (SELECT scope_id FROM spans)",
    ]
    return [sorted(map(repr, found)) for found in answers(path, queries)]


def run_import(*argv: object) -> int:
    """`provenance import`."""
    return import_.main([str(a) for a in argv])


def run_export(*argv: object) -> int:
    """`provenance export`."""
    return export.main([str(a) for a in argv])

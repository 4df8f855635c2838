"""From one schema version to the next: ordered steps, run in one transaction when a file is opened for writing.

    stored_version(connection, path)    what a file says of itself; StoreError where it is no evidence store
    check_readable(version, path)       for those who only read: older files answer, with fewer short cuts
    migrate(connection, path)           for the collector and for imports: every step that is missing, or none of them

A step is never edited once it was released: files that went through it exist. Its SQL is therefore written out here, and not
taken from `collector.schema`, which says how a file looks today.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb

from collector import schema
from collector.errors import StoreError
from collector.store.database import message
from collector.store.derived import INCOMPLETE, MAPS, MAX_KEYS, attribute_key_id

OLDEST_READABLE: Final = 1
"""The oldest version that the queries of this release can answer from without a migration."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """How a file of version `before` becomes one of version `before + 1`.

    Attributes:
        before: The version that it starts from.
        what: What it does, for the log.
        apply: Does it, inside a transaction that somebody else begins and ends.
    """

    before: int
    what: str
    apply: Callable[[duckdb.DuckDBPyConnection], None]


def _derive_short_cuts(connection: duckdb.DuckDBPyConnection) -> None:
    """Version 2: trace_arrivals and attribute_keys, filled from the spans that are there."""
    connection.execute(
        "CREATE TABLE trace_arrivals (trace_id_low UBIGINT NOT NULL, first_received_unix_nano BIGINT NOT NULL, "
        "last_received_unix_nano BIGINT NOT NULL)"
    )
    connection.execute(
        "CREATE TABLE attribute_keys (attribute_key_id UBIGINT NOT NULL, key VARCHAR NOT NULL, "
        "stored_in VARCHAR NOT NULL, first_received_unix_nano BIGINT NOT NULL)"
    )
    connection.execute(
        "CREATE MACRO spans_of_trace(id) AS TABLE SELECT spans.* FROM spans JOIN ("
        "SELECT coalesce(min(first_received_unix_nano), -9223372036854775808) AS arrived_from, "
        "coalesce(max(last_received_unix_nano), 9223372036854775807) AS arrived_until FROM trace_arrivals "
        "WHERE trace_id_low = ('0x' || right(replace((id::UUID)::VARCHAR, '-', ''), 16))::UBIGINT"
        ") ON received_unix_nano >= arrived_from AND received_unix_nano <= arrived_until WHERE trace_id = id::UUID"
    )
    # One row for a trace and a minute: an id that comes back after hours must not make the whole file its range.
    connection.execute(
        "INSERT INTO trace_arrivals "
        "SELECT ('0x' || right(replace(trace_id::VARCHAR, '-', ''), 16))::UBIGINT, first, last "
        "FROM (SELECT trace_id, min(received_unix_nano) AS first, max(received_unix_nano) AS last "
        "FROM spans GROUP BY trace_id, received_unix_nano // 60_000_000_000) ORDER BY first"
    )
    for column in MAPS:
        rows = connection.execute(
            f"SELECT key, min(first) FROM (SELECT unnest(map_keys({column})) AS key, received_unix_nano AS first "
            f"FROM spans WHERE {column} IS NOT NULL) GROUP BY key LIMIT {MAX_KEYS + 1}"
        ).fetchall()
        if len(rows) > MAX_KEYS:
            rows = [(INCOMPLETE, min(first for _, first in rows))]
        if rows:
            connection.executemany(
                "INSERT INTO attribute_keys VALUES (?, ?, ?, ?)",
                [(attribute_key_id(column, key), key, column, first) for key, first in rows],
            )


def _add_witnesses(connection: duckdb.DuckDBPyConnection) -> None:
    """Version 3: tables for network flows, sockets and addresses; two columns more of what proxies log."""
    for column in ("format", "downstream_peer"):
        connection.execute(f"ALTER TABLE proxy_records ADD COLUMN {column} VARCHAR")
    for table, columns in _TABLES_OF_VERSION_3.items():
        connection.execute(f"CREATE TABLE {table} ({columns})")


_TABLES_OF_VERSION_3: Final = {
    "flows": (
        "record_id UBIGINT NOT NULL, source VARCHAR NOT NULL, format VARCHAR NOT NULL, "
        "start_time_unix_nano BIGINT NOT NULL, duration_ns BIGINT, protocol VARCHAR, "
        "source_address VARCHAR NOT NULL, source_port INTEGER, destination_address VARCHAR NOT NULL, "
        "destination_port INTEGER, destination_name VARCHAR, bytes_out BIGINT, bytes_in BIGINT, "
        "packets_out BIGINT, packets_in BIGINT, state VARCHAR, source_workload VARCHAR, "
        "source_namespace VARCHAR, source_identity VARCHAR, destination_workload VARCHAR, "
        "destination_namespace VARCHAR, destination_identity VARCHAR, mesh_tls BOOLEAN, trace_id UUID, "
        "node VARCHAR, received_unix_nano BIGINT NOT NULL, attributes MAP(VARCHAR, VARCHAR)"
    ),
    "sockets": (
        "record_id UBIGINT NOT NULL, source VARCHAR NOT NULL, service_name VARCHAR NOT NULL, "
        "service_instance_id VARCHAR, protocol VARCHAR NOT NULL, direction VARCHAR, "
        "local_address VARCHAR NOT NULL, local_port INTEGER NOT NULL, remote_address VARCHAR, "
        "remote_port INTEGER, state VARCHAR NOT NULL, capture VARCHAR, proxy_port INTEGER, uid BIGINT, "
        "first_seen_unix_nano BIGINT NOT NULL, last_seen_unix_nano BIGINT NOT NULL, "
        "received_unix_nano BIGINT NOT NULL, attributes MAP(VARCHAR, VARCHAR)"
    ),
    "socket_watches": (
        "source VARCHAR NOT NULL, service_name VARCHAR NOT NULL, service_instance_id VARCHAR, "
        "addresses VARCHAR, since_unix_nano BIGINT NOT NULL, until_unix_nano BIGINT NOT NULL, "
        "interval_ns BIGINT, samples BIGINT, proxy_found BOOLEAN, received_unix_nano BIGINT NOT NULL"
    ),
    "workloads": (
        "address VARCHAR NOT NULL, service_name VARCHAR NOT NULL, namespace VARCHAR, pod VARCHAR, "
        "principal VARCHAR, mesh VARCHAR, host_network BOOLEAN, first_seen_unix_nano BIGINT, "
        "last_seen_unix_nano BIGINT, source VARCHAR NOT NULL, received_unix_nano BIGINT NOT NULL, "
        "attributes MAP(VARCHAR, VARCHAR)"
    ),
}
"""Their columns."""

STEPS: Final = (
    Step(1, "short cuts to a trace and to the keys of attributes", _derive_short_cuts),
    Step(2, "tables for network flows, sockets and addresses", _add_witnesses),
)


def stand_ins(version: int, catalog: str) -> tuple[str, ...]:
    """Statements that make an older file look like today's on a connection that only reads it.

    Tables that it lacks are empty there, columns NULL. Derived tables are left out: who asks for them knows how to do without.
    `catalog` is where the file is attached.
    """
    if version > _BEFORE_WITNESSES:
        return ()
    tables = (
        f"CREATE TEMP VIEW {table} AS SELECT "
        + ", ".join(f"NULL::{column.type} AS {column.name}" for column in schema.TABLES[table])
        + " WHERE false"
        for table in _TABLES_OF_VERSION_3
    )
    records = (
        "CREATE TEMP VIEW proxy_records AS SELECT *, NULL::VARCHAR AS format, NULL::VARCHAR AS downstream_peer "
        f"FROM {catalog}.main.proxy_records"
    )
    return (*tables, records)


_BEFORE_WITNESSES: Final = 2


def stored_version(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """The schema version that the file says it has; raises StoreError."""
    try:
        found = connection.execute(
            "SELECT count(*) FROM duckdb_tables() WHERE database_name = current_database() AND table_name = 'meta'"
        ).fetchone()
        if found != (1,):
            raise StoreError(
                f"{path} is a DuckDB file, but not an evidence store: it has no table `meta`; name another file"
            )
        row = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    except duckdb.Error as e:
        raise StoreError(f"{path} is a DuckDB file, but not an evidence store: {message(e)}") from e
    version = "none" if row is None else str(row[0])
    if not version.isdecimal() or version == "0":
        raise StoreError(
            f"{path} has schema version {version}, and versions are numbers from 1 on; "
            "its table `meta` was changed by hand or is damaged: use a copy, or a new file"
        )
    return int(version)


def check_readable(version: int, path: Path, *, oldest: int = OLDEST_READABLE) -> None:
    """Raise StoreError where this release's queries cannot answer from a file of this version."""
    _check_not_newer(version, path)
    if version < oldest:
        raise StoreError(
            f"{path} has schema version {version}, this mesh-provenance reads {oldest} to {schema.SCHEMA_VERSION}; "
            f"migrate it with `provenance collect --db {path}` or `provenance import FILES --into {path}`, which "
            "bring it up to date when they open it"
        )


def migrate(connection: duckdb.DuckDBPyConnection, path: Path, *, steps: Sequence[Step] = STEPS) -> None:
    """Bring the file to the newest version in one transaction, or leave it as it was; raises StoreError."""
    newest = steps[-1].before + 1 if steps else schema.SCHEMA_VERSION
    version = stored_version(connection, path)
    _check_not_newer(version, path, newest=newest)
    missing = [step for step in steps if step.before >= version]
    if not missing:
        return
    if [step.before for step in missing] != list(range(version, newest)):
        raise StoreError(
            f"{path} has schema version {version}, and this mesh-provenance has no way from it to {newest}"
        )
    began = time.monotonic()
    for step in missing:
        _log.info("%s: schema version %d to %d: %s", path, step.before, step.before + 1, step.what)
    _apply(connection, path, missing, newest)
    _log.info("%s: schema version %d after %.1f s", path, newest, time.monotonic() - began)


def _apply(connection: duckdb.DuckDBPyConnection, path: Path, missing: Sequence[Step], newest: int) -> None:
    step = missing[0]
    try:
        connection.begin()
        try:
            for step in missing:
                step.apply(connection)
            connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", [str(newest)])
        except BaseException:
            connection.rollback()
            raise
        connection.commit()
    except duckdb.Error as e:
        raise StoreError(
            f"{path}: the migration from schema version {step.before} to {step.before + 1} failed: {message(e)}; "
            f"the file is as it was, of version {missing[0].before}: give it room (about a tenth of its size) and "
            "memory, or use the release that wrote it"
        ) from e


def _check_not_newer(version: int, path: Path, *, newest: int = schema.SCHEMA_VERSION) -> None:
    if version > newest:
        raise StoreError(
            f"{path} has schema version {version}, this mesh-provenance reads {newest} and older; "
            "a newer release wrote it: install that one, or name another file"
        )

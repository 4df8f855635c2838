"""Synthetic evidence: rows with sensible defaults, and an in-memory store that answers SQL about them.

Ids may be given as integers or as hex text. Times are ns; `T0` is where synthetic history begins.
"""

import itertools
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa

from collector.schema import DERIVED_TABLES, TABLES, arrow_schema, ddl

T0 = 1_790_000_000_000_000_000
MS = 1_000_000
S = 1_000 * MS
MINUTE = 60 * S

Row = dict[str, Any]
Query = Callable[[str], pl.DataFrame]

_serial = itertools.count(1)


def next_id() -> int:
    """An id that nothing else in this process has."""
    return next(_serial)


def make_span(**overrides: Any) -> Row:
    """One row of `spans`: an app's SERVER span of `shop` at T0 that took 10 ms, unless told otherwise.

    `start_time_unix_nano`, `end_time_unix_nano` and `duration_ns` agree when any two or fewer are given; so do a proxy
    span's `witness` and `component`.
    """
    start = overrides.get("start_time_unix_nano", T0)
    if "duration_ns" in overrides:
        end = overrides.get("end_time_unix_nano", start + overrides["duration_ns"])
    else:
        end = overrides.get("end_time_unix_nano", start + 10 * MS)
    row: Row = dict.fromkeys(c.name for c in TABLES["spans"])
    row |= {
        "trace_id": next_id(),
        "span_id": next_id(),
        "name": "GET /",
        "kind": "SERVER",
        "start_time_unix_nano": start,
        "end_time_unix_nano": end,
        "duration_ns": end - start,
        "status_code": "UNSET",
        "service_name": "shop",
        "witness": "app",
        "resource_id": 1,
        "scope_id": 1,
        "received_unix_nano": end + 5 * S,
    }
    if overrides.get("witness") == "proxy":
        row["component"] = "proxy"
    return _with(row, overrides)


def make_proxy_record(**overrides: Any) -> Row:
    """One row of `proxy_records`: shop's inbound proxy answering `GET /` with 200 at T0 after 11 ms, unless told otherwise."""
    start = overrides.get("start_time_unix_nano", T0)
    row: Row = dict.fromkeys(c.name for c in TABLES["proxy_records"])
    row |= {
        "record_id": next_id(),
        "source": "envoy.log",
        "service_name": "shop",
        "direction": "inbound",
        "start_time_unix_nano": start,
        "duration_ns": 11 * MS,
        "request_id": make_request_id(),
        "method": "GET",
        "path": "/",
        "response_code": 200,
        "received_unix_nano": start + 5 * S,
    }
    return _with(row, overrides)


def make_socket(**overrides: Any) -> Row:
    """One row of `sockets`: a connection from web's pod to pay's that the witness in web's saw captured for a minute."""
    first = overrides.get("first_seen_unix_nano", T0)
    row: Row = dict.fromkeys(c.name for c in TABLES["sockets"])
    row |= {
        "record_id": next_id(),
        "source": "witness/web-1",
        "service_name": "web",
        "protocol": "tcp",
        "direction": "outbound",
        "local_address": "10.0.0.1",
        "local_port": 40_000,
        "remote_address": "10.0.0.2",
        "remote_port": 8080,
        "state": "ESTABLISHED",
        "capture": "captured",
        "first_seen_unix_nano": first,
        "last_seen_unix_nano": first + MINUTE,
        "received_unix_nano": first + MINUTE,
    }
    return _with(row, overrides)


def make_watch(**overrides: Any) -> Row:
    """One row of `socket_watches`: a witness in web's pod that looked every second for ten minutes around T0."""
    row: Row = dict.fromkeys(c.name for c in TABLES["socket_watches"])
    row |= {
        "source": "witness/web-1",
        "service_name": "web",
        "addresses": "10.0.0.1",
        "since_unix_nano": T0 - 5 * MINUTE,
        "until_unix_nano": T0 + 5 * MINUTE,
        "interval_ns": S,
        "samples": 600,
        "proxy_found": True,
        "received_unix_nano": T0 + 5 * MINUTE,
    }
    return _with(row, overrides)


def make_flow(**overrides: Any) -> Row:
    """One row of `flows`: a TCP connection of a second from web's pod to pay's, of which nobody says how it was secured."""
    start = overrides.get("start_time_unix_nano", T0)
    row: Row = dict.fromkeys(c.name for c in TABLES["flows"])
    row |= {
        "record_id": next_id(),
        "source": "conn.log",
        "format": "zeek",
        "start_time_unix_nano": start,
        "duration_ns": S,
        "protocol": "tcp",
        "source_address": "10.0.0.1",
        "source_port": 40_000,
        "destination_address": "10.0.0.2",
        "destination_port": 8080,
        "bytes_out": 1_000,
        "bytes_in": 5_000,
        "received_unix_nano": start + 5 * S,
    }
    return _with(row, overrides)


def make_workload(**overrides: Any) -> Row:
    """One row of `workloads`: web's pod, in an Istio mesh."""
    row: Row = dict.fromkeys(c.name for c in TABLES["workloads"])
    row |= {
        "address": "10.0.0.1",
        "service_name": "web",
        "namespace": "shop",
        "pod": "web-1",
        "mesh": "istio",
        "source": "pods.json",
        "received_unix_nano": T0,
    }
    return _with(row, overrides)


def make_request_id(number: int | None = None) -> str:
    """A UUID-shaped `x-request-id`, as Envoy makes them."""
    return str(uuid.UUID(int=(next_id() if number is None else number) << 64 | 0x4000 << 64, version=4))


def store(
    spans: Iterable[Mapping[str, Any]] = (),
    proxy_records: Iterable[Mapping[str, Any]] = (),
    egress_allow: Iterable[Mapping[str, Any]] = (),
    *,
    optimized: bool = False,
    **others: Iterable[Mapping[str, Any]],
) -> Query:
    """An in-memory store with the real schema that holds these rows, `others` by table; returns its query function."""
    connection = duckdb.connect()
    if not optimized:  # of a detector's statement on a handful of rows, the optimizer takes more than half of the time
        connection.execute("PRAGMA disable_optimizer")
    for table in (*TABLES, *DERIVED_TABLES):
        connection.execute(ddl(table))
    connection.execute("CREATE TABLE meta (key VARCHAR NOT NULL, value VARCHAR NOT NULL)")
    named = {"spans": spans, "proxy_records": proxy_records, "egress_allow": egress_allow}
    for table, rows in (named | others).items():
        batch = to_arrow(table, rows)
        if batch.num_rows:
            connection.register("incoming", batch)
            connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")
            connection.unregister("incoming")

    def query(sql: str) -> pl.DataFrame:
        answer = connection.execute(sql).to_arrow_reader()
        assert answer is not None
        return pl.DataFrame(answer.read_all())

    return query


def to_arrow(table: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """The rows as an Arrow table of the schema; missing columns are NULL."""
    listed = list(rows)
    schema = arrow_schema(table)
    # Most columns of most stores are empty: building those value by value would cost more than all the others.
    used = {name for row in listed for name, value in row.items() if value is not None}
    columns = [
        _column(field.type, [row.get(field.name) for row in listed])
        if field.name in used
        else pa.nulls(len(listed), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _column(type_: pa.DataType, values: list[Any]) -> pa.Array:
    if type_ == pa.uuid():
        storage = pa.array([None if v is None else _uuid(v).bytes for v in values], pa.binary(16))
        return pa.ExtensionArray.from_storage(pa.uuid(), storage)
    if pa.types.is_map(type_):
        return pa.array([None if v is None else list(v.items()) for v in values], type_)
    if type_ == pa.uint64():
        values = [int(v, 16) if isinstance(v, str) else v for v in values]
    return pa.array(values, type_)


def _uuid(value: int | str) -> uuid.UUID:
    return uuid.UUID(int=value) if isinstance(value, int) else uuid.UUID(value)


def _with(row: Row, overrides: Mapping[str, Any]) -> Row:
    unknown = overrides.keys() - row.keys()
    if unknown:
        raise KeyError(f"no such column: {sorted(unknown)}")
    return {**row, **overrides}

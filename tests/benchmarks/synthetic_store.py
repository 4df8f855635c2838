"""A realistic evidence file of any size: for benchmarks of queries, detectors and the workbench.

    python tests/benchmarks/synthetic_store.py --spans 1000000 --db /tmp/million.duckdb --seed 1

Six request types run through ten services in each of four cells: forty services. A call is a CLIENT and a SERVER span; in
one trace of ten also both sidecars' spans, and for every second trace both sidecars' access log lines. Two cells stamp
their calls, two have plain OpenTelemetry spans. A span has 9 to 13 attributes, of which three to five have no column of their
own. Latencies are log-normal and add up: a span contains its children. Rows are in the order of their arrival: each service
exports every five seconds. One seed gives one file's contents.

With `--records N` every trace is in both sidecars' logs, and what is missing to N lines is of workloads that write no spans.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from collector import schema
from collector.store.database import Store
from collector.store.derived import derived_rows

Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.uint64]
Columns = dict[str, Any]

TRACES_PER_BATCH: Final = 10_000
CELLS: Final = 4
STAMPED_CELLS: Final = 2
EXPORT_NS: Final = 5 * 10**9
ROW_GROUP_SIZE: Final = 40_960
GROUP_ROWS: Final = 8_192
"""Spans that the collector writes in one piece."""
TENANTS: Final = 500
RARE_RATIO: Final = 0.001
START_UNIX_NANO: Final = 1_763_856_000 * 10**9
HOURS: Final = 6
PROXY_SPANS_EVERY: Final = 10
PROXY_RECORDS_EVERY: Final = 2
LEGACY_WORKLOADS: Final = 20
ERROR_RATIO: Final = 0.004
PROXY_NS: Final = 400_000


@dataclass(frozen=True, slots=True)
class Call:
    """One call in a request type: whom it reaches, how long the callee itself works, and whom that calls in turn."""

    service: str
    operation: str
    own_ms: float
    calls: tuple["Call", ...] = ()
    http: bool = True


AUTH: Final = Call("auth", "auth.v1.Auth/Verify", 1.5, http=False)
STOCK: Final = Call("inventory", "POST /reserve", 6)
PAY: Final = Call("payment", "POST /charge", 45)
MAIL: Final = Call("mailer", "POST /send", 12)
PRICES: Final = Call("pricing", "pricing.v1.Prices/Get", 3, http=False)
SEARCH: Final = Call("search", "GET /query", 20, (PRICES,))

REQUEST_TYPES: Final = (
    (0.30, Call("gateway", "GET /search", 2, (AUTH, SEARCH, Call("recommend", "GET /for", 9, (PRICES,))))),
    (0.25, Call("gateway", "GET /item/{id}", 2, (AUTH, Call("catalog", "GET /item/{id}", 4, (PRICES, STOCK))))),
    (0.20, Call("gateway", "GET /cart", 2, (AUTH, Call("checkout", "GET /cart", 5, (PRICES, STOCK))))),
    (0.15, Call("gateway", "POST /buy", 3, (AUTH, Call("checkout", "POST /buy", 8, (STOCK, PAY, PRICES, MAIL))))),
    (0.07, Call("gateway", "GET /orders", 2, (AUTH, Call("checkout", "GET /orders", 15)))),
    (0.03, Call("gateway", "GET /healthz", 0.2)),
)
"""(share of the traffic, the tree of calls)"""

_KINDS_OF_SERVICE: Final = (
    "gateway", "auth", "search", "recommend", "catalog", "pricing", "inventory", "checkout", "payment", "mailer",
)  # fmt: skip
SERVICES: Final = tuple(f"{kind}-{cell}" for cell in range(CELLS) for kind in _KINDS_OF_SERVICE)


@dataclass(slots=True)
class Batch:
    """One request type, `n` traces of it, on its way to the tables."""

    rng: np.random.Generator
    cell: int
    n: int
    trace_ids: pa.Array
    proxied: npt.NDArray[np.bool_]
    logged: npt.NDArray[np.bool_]
    spans: list[pa.Table] = field(default_factory=list)
    records: list[pa.Table] = field(default_factory=list)

    def service(self, kind: str) -> str:
        """The name of this cell's service of a kind."""
        return f"{kind}-{self.cell}"

    def ids(self) -> Ids:
        """Random span ids, none zero."""
        return self.rng.integers(1, 2**64, self.n, dtype=np.uint64)

    def add(self, service: str, columns: Columns, *, only: npt.NDArray[np.bool_] | None = None) -> None:
        """Append one span a trace, or one in some of them; `service` is its kind, the cell makes it the name."""
        ends = columns["start_time_unix_nano"] + columns["duration_ns"]
        service = self.service(service)
        phase = SERVICES.index(service) * EXPORT_NS // len(SERVICES)
        columns |= {
            "trace_id": self.trace_ids,
            "end_time_unix_nano": ends,
            # Every service sends all that ended meanwhile, at moments of its own.
            "received_unix_nano": -(-(ends - phase) // EXPORT_NS) * EXPORT_NS + phase + 10**7,
            "service_name": service,
            "service_instance_id": f"{service}-7d4b9",
            "resource_id": SERVICES.index(service) + 1,
            "scope_id": 1,
        }
        table = _table(columns, self.n)
        self.spans.append(table if only is None else table.filter(pa.array(only)))


def main(argv: Sequence[str]) -> None:
    """Write the file, and say how long it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spans", type=int, default=1_000_000, help="at least this many (default: %(default)s)")
    parser.add_argument("--db", type=Path, required=True, help="a file that does not exist yet")
    parser.add_argument(
        "--records", type=int, help="access log lines, at least (default: both sidecars', every second trace)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=int, default=HOURS, help="over so much time (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.db.exists():
        parser.error(f"{options.db} exists already")
    began = time.perf_counter()
    written = write_store(
        options.db, spans=options.spans, seed=options.seed, records=options.records, hours=options.hours
    )
    size_mb = options.db.stat().st_size / 1e6
    print(f"{written} spans in {options.db}, {size_mb:.0f} MB, {time.perf_counter() - began:.1f} s")


def write_store(path: Path, *, spans: int, seed: int, records: int | None = None, hours: int = HOURS) -> int:
    """Create the file with at least `spans` spans over `hours`, and `records` access log lines; returns how many spans."""
    Store.open(path).close()
    connection = duckdb.connect(":memory:", config={"threads": 1})
    connection.execute(f"ATTACH '{path}' AS evidence (ROW_GROUP_SIZE {ROW_GROUP_SIZE})")
    connection.execute("USE evidence")
    connection.execute("SET checkpoint_threshold = '256MB'")
    _insert(connection, "resources", _resources())
    _insert(connection, "scopes", pa.table({"scope_id": pa.array([1], pa.uint64()), "name": ["synthetic"]}))
    written = 0
    for batch in _batches(np.random.default_rng(seed), spans, records, hours):
        arrived = pa.concat_tables(batch.spans, promote_options="default")
        _insert_spans(connection, arrived.take(_order(arrived)))
        if batch.records:
            logged = pa.concat_tables(batch.records, promote_options="default")
            _insert(connection, "proxy_records", logged.take(_order(logged)))
        written += arrived.num_rows
    connection.execute("CHECKPOINT")
    connection.close()
    return written


def _order(table: pa.Table) -> pa.Array:
    """Where each row goes when they are in the order of their arrival."""
    return pa.array(np.argsort(table.column("received_unix_nano").to_numpy(), kind="stable"))


def _batches(rng: np.random.Generator, spans: int, records: int | None, hours: int) -> Iterator[Batch]:
    """Batches in the order of time, each with all cells and request types, until there are enough spans."""
    shares = np.array([share for share, _ in REQUEST_TYPES])
    per_trace = sum(share * _span_count(tree) for share, tree in REQUEST_TYPES)
    traces = int(np.ceil(spans / per_trace * 1.02)) + CELLS * len(REQUEST_TYPES)
    chunks = max(1, -(-traces // TRACES_PER_BATCH))
    slot_ns = hours * 3600 * 10**9 // chunks
    logged = 0
    for chunk in range(chunks):
        counts = np.maximum(1, np.round(shares * traces / chunks / CELLS)).astype(int)
        parts: list[Batch] = []
        for cell in range(CELLS):
            for (_, tree), n in zip(REQUEST_TYPES, counts, strict=True):
                part = _new_batch(rng, cell, int(n), PROXY_RECORDS_EVERY if records is None else 1)
                starts = START_UNIX_NANO + chunk * slot_ns + np.sort(rng.integers(0, slot_ns, int(n)))
                _serve(part, tree, starts, None, {})
                parts.append(part)
        whole = parts[0]
        whole.spans = [table for part in parts for table in part.spans]
        whole.records = [table for part in parts for table in part.records]
        if records is not None:
            logged += sum(table.num_rows for table in whole.records)
            missing = -(-records * (chunk + 1) // chunks) - logged
            if missing > 0:
                whole.records.append(_lines_alone(rng, START_UNIX_NANO + chunk * slot_ns, slot_ns, missing))
                logged += missing
        yield whole


def _new_batch(rng: np.random.Generator, cell: int, n: int, records_every: int) -> Batch:
    raw = rng.bytes(16 * n)
    storage = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), n, [None, pa.py_buffer(raw)])
    numbers = np.arange(n)
    return Batch(
        rng,
        cell,
        n,
        pa.ExtensionArray.from_storage(pa.uuid(), storage),
        numbers % PROXY_SPANS_EVERY == 0,
        numbers % records_every == 0,
    )


def _span_count(call: Call) -> float:
    """Spans a trace on average, with the sidecars' share."""
    return 1 + sum(1 + 2 / PROXY_SPANS_EVERY + _span_count(child) for child in call.calls)


def _serve(batch: Batch, call: Call, starts: Ints, parent: Ids | None, stamp: Columns) -> Ints:
    """The SERVER span of a call and everything below it; returns its durations."""
    span_ids = batch.ids()
    own = (batch.rng.lognormal(0, 0.45, batch.n) * call.own_ms * 1e6).astype(np.int64) + 20_000
    elapsed = own // 2
    for child in call.calls:
        elapsed = elapsed + 30_000 + _call(batch, call.service, span_ids, child, starts + elapsed)
    durations = elapsed + own // 2
    columns = _common(batch, call, "SERVER", starts, durations) | {"span_id": span_ids} | stamp
    if parent is not None:
        columns["parent_span_id"] = parent
    batch.add(call.service, columns)
    return durations


def _call(batch: Batch, caller: str, caller_ids: Ids, call: Call, starts: Ints) -> Ints:
    """The CLIENT span of a call, what its sidecars saw, and the callee's part; returns the caller's durations."""
    client, outbound, inbound = batch.ids(), batch.ids(), batch.ids()
    wire = batch.rng.integers(1_000_000, 1_600_000, batch.n)
    stamped = batch.cell < STAMPED_CELLS
    request_ids = _hex(batch.rng, batch.n, 16)
    seen: Columns = {"user_agent_original": "python-httpx/0.28.1"}
    stamp: Columns = {"client_address": _address(batch.service(caller))}
    if stamped:
        seen = {
            "provenance_request_hash": _hex(batch.rng, batch.n, 32),
            "provenance_request_id": request_ids,
            "provenance_request_size": batch.rng.integers(20, 2000, batch.n),
        }
        stamp |= seen | {
            "provenance_stamp_status": "unsigned",
            "provenance_stamp_kid": batch.service(caller),
            "provenance_stamp_nonce": _hex(batch.rng, batch.n, 12),
        }
    durations = wire + _serve(batch, call, starts + wire // 2, np.where(batch.proxied, inbound, client), stamp)
    dialled = {
        "server_address": batch.service(call.service),
        "server_port": 8080,
        "network_peer_address": _address(batch.service(call.service)),
        "network_peer_port": 8080,
    }
    ids = {"span_id": client, "parent_span_id": caller_ids}
    batch.add(caller, _common(batch, call, "CLIENT", starts, durations) | ids | seen | dialled)
    sidecars = (
        (caller, "egress", "outbound", outbound, client),
        (call.service, "ingress", "inbound", inbound, outbound),
    )
    for nth, (service, name, direction, span_id, parent) in enumerate(sidecars, 1):
        at, took = starts + nth * PROXY_NS // 2, durations - nth * PROXY_NS
        _sidecar_span(batch, service, name, call, starts=at, durations=took, span_id=span_id, parent=parent)
        _access_log(batch, service, direction, call, starts=at, durations=took, request_ids=request_ids)
    return durations


def _common(batch: Batch, call: Call, kind: str, starts: Ints, durations: Ints) -> Columns:
    """What CLIENT and SERVER spans of a call have in common."""
    failed = batch.rng.random(batch.n) < ERROR_RATIO
    columns: Columns = _remaining(batch.rng, batch.n) | {
        "name": call.operation,
        "kind": kind,
        "start_time_unix_nano": starts,
        "duration_ns": durations,
        "status_code": pa.array(np.where(failed, "ERROR", "UNSET")),
        "witness": "app",
    }
    if not call.http:
        service, _, method = call.operation.partition("/")
        status = np.where(failed, 13, 0)
        return columns | {
            "rpc_system": "grpc",
            "rpc_service": service,
            "rpc_method": method,
            "rpc_grpc_status_code": status,
        }
    method, _, route = call.operation.partition(" ")
    return columns | {
        "http_request_method": method,
        "http_route": route,
        "http_response_status_code": np.where(failed, 500, 200),
    }


def _sidecar_span(
    batch: Batch, service: str, name: str, call: Call, *, starts: Ints, durations: Ints, span_id: Ids, parent: Ids
) -> None:
    columns: Columns = {
        "name": name,
        "kind": "SERVER" if name == "ingress" else "CLIENT",
        "start_time_unix_nano": starts,
        "duration_ns": durations,
        "status_code": "UNSET",
        "witness": "proxy",
        "component": "proxy",
        "span_id": span_id,
        "parent_span_id": parent,
        "upstream_cluster": f"{'inbound' if name == 'ingress' else 'outbound'}|8080||{batch.service(call.service)}",
    }
    batch.add(service, columns, only=batch.proxied)


def _access_log(
    batch: Batch, service: str, direction: str, call: Call, *, starts: Ints, durations: Ints, request_ids: pa.Array
) -> None:
    method, _, path = call.operation.partition(" ") if call.http else ("POST", " ", f"/{call.operation}")
    columns: Columns = {
        "record_id": batch.ids(),
        "source": f"/var/log/envoy/{batch.service(service)}.json",
        "service_name": batch.service(service),
        "direction": direction,
        "start_time_unix_nano": starts // 1_000_000 * 1_000_000,
        "duration_ns": durations // 1_000_000 * 1_000_000,
        "request_id": request_ids,
        "method": method,
        "path": path,
        "authority": f"{batch.service(call.service)}:8080",
        "protocol": "HTTP/1.1" if call.http else "HTTP/2",
        "response_code": 200,
        "upstream_host": f"{_address(batch.service(call.service))}:8080",
        "upstream_cluster": f"{direction}|8080||{batch.service(call.service)}",
        "received_unix_nano": starts + 10**9,
    }
    batch.records.append(_table(columns, batch.n).filter(pa.array(batch.logged)))


def _lines_alone(rng: np.random.Generator, begin: int, slot_ns: int, n: int) -> pa.Table:
    """Lines of the proxies of workloads whose applications write no spans."""
    workloads = pa.array([f"legacy-{i}" for i in range(LEGACY_WORKLOADS)]).take(
        pa.array(np.arange(n) % LEGACY_WORKLOADS)
    )
    starts = begin + np.sort(rng.integers(0, slot_ns // 10**6, n)) * 10**6
    columns: Columns = {
        "record_id": rng.integers(1, 2**64, n, dtype=np.uint64),
        "source": "/var/log/envoy/legacy.json",
        "service_name": workloads,
        "direction": pa.array(["inbound", "outbound"]).take(pa.array(rng.integers(0, 2, n))),
        "start_time_unix_nano": starts,
        "duration_ns": rng.integers(1, 200, n) * 10**6,
        "request_id": _hex(rng, n, 16),
        "method": "POST",
        "path": "/run",
        "authority": "legacy:8080",
        "protocol": "HTTP/1.1",
        "response_code": 200,
        "received_unix_nano": starts + 10**9,
    }
    return _table(columns, n)


def _remaining(rng: np.random.Generator, n: int) -> Columns:
    """The attributes without a column of their own: three in every span, two in some; one key is rare."""
    numbers = np.arange(n)
    tenant = pa.array([f"tenant-{i}" for i in range(TENANTS)]).take(pa.array(rng.zipf(1.3, n) % TENANTS))
    ring = pa.array(["canary", "early", "general"]).take(pa.array(rng.integers(0, 3, n)))
    user = pa.array(np.char.mod("user-%d", rng.integers(0, 1_000_000, n)))
    flag = pa.repeat("flags/new-pricing", n)
    thread = pa.array(rng.integers(1, 65, n)).cast(pa.string())
    cached = pa.array(["false", "true"]).take(pa.array(rng.integers(0, 2, n)))
    everywhere, half = np.ones(n, np.bool_), numbers % 2 == 0
    rare = rng.random(n) < RARE_RATIO
    return {
        "attributes": _maps(
            {
                "app.tenant": (tenant, everywhere),
                "deployment.ring": (ring, everywhere),
                "app.user.id": (user, half),
                "feature_flag.key": (flag, rare),
            }
        ),
        "attributes_json": _maps({"thread.id": (thread, everywhere), "app.cached": (cached, ~half)}),
        "dropped_attributes_count": 0,
    }


def _maps(columns: dict[str, tuple[pa.Array, npt.NDArray[np.bool_]]]) -> pa.Array:
    """One map a row out of columns, each with where it is present."""
    present = np.stack([there for _, there in columns.values()], axis=1)
    n, width = present.shape
    flat = np.flatnonzero(present.ravel())
    values = pa.concat_arrays([column for column, _ in columns.values()])
    keys = pa.array(list(columns)).take(pa.array(flat % width))
    items = values.take(pa.array(flat % width * n + flat // width))
    offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int32)
    return pa.MapArray.from_arrays(pa.array(offsets), keys, items)


def _resources() -> pa.Table:
    ids = pa.array(range(1, len(SERVICES) + 1), pa.uint64())
    return pa.table({"resource_id": ids, "service_name": list(SERVICES)})


def _address(service: str) -> str:
    return f"10.0.0.{SERVICES.index(service) + 10}"


def _hex(rng: np.random.Generator, n: int, size_bytes: int) -> pa.Array:
    digits, width = rng.bytes(size_bytes * n).hex(), 2 * size_bytes
    offsets = pa.py_buffer(np.arange(0, width * n + 1, width, dtype=np.int32))
    return pa.StringArray.from_buffers(n, offsets, pa.py_buffer(digits.encode()))


def _table(columns: Columns, n: int) -> pa.Table:
    """Scalars stand for columns that say the same in every row."""
    return pa.table({k: pa.repeat(v, n) if isinstance(v, str | int) else pa.array(v) for k, v in columns.items()})


def _insert_spans(connection: duckdb.DuckDBPyConnection, rows: pa.Table) -> None:
    """The spans, and what the collector's writer derives from each group of them."""
    conformed = _conformed("spans", rows)
    _insert(connection, "spans", conformed)
    groups = [derived_rows({"spans": group}) for group in conformed.combine_chunks().to_batches(GROUP_ROWS)]
    _insert(connection, "trace_arrivals", pa.Table.from_batches([group["trace_arrivals"] for group in groups]))
    known = {row[0] for row in connection.execute("SELECT attribute_key_id FROM attribute_keys").fetchall()}
    keys = pa.Table.from_batches([group["attribute_keys"] for group in groups]).to_pylist()
    fresh = {row["attribute_key_id"]: row for row in reversed(keys) if row["attribute_key_id"] not in known}
    _insert(
        connection, "attribute_keys", pa.Table.from_pylist(list(fresh.values()), schema.arrow_schema("attribute_keys"))
    )


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    connection.register("synthetic", _conformed(table, rows))
    connection.execute(f"INSERT INTO {table} SELECT * FROM synthetic")
    connection.unregister("synthetic")


def _conformed(table: str, rows: pa.Table) -> pa.Table:
    """The rows with the columns of the table; those that are not given are NULL."""
    wanted = schema.arrow_schema(table)
    return pa.table(
        [
            rows.column(field.name).cast(field.type)
            if field.name in rows.schema.names
            else pa.nulls(rows.num_rows, field.type)
            for field in wanted
        ],
        schema=wanted,
    )


if __name__ == "__main__":
    main(sys.argv[1:])

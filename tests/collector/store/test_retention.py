"""Retention: what is deleted, what is kept, what the file says of it, and how large it gets."""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from collector import schema
from collector.store.database import Store
from collector.store.retention import (
    REMOVED_KEY,
    Policy,
    Retention,
    RetentionReport,
    Rows,
    evidence_since,
    rows_to_remove,
)
from collector.store.sizes import Sizes, measure
from tests.collector.store.evidence_rows import make_batch, make_row

SECOND = 10**9
NOW = 1_763_859_600 * SECOND


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "evidence.duckdb") as opened:
        yield opened


def insert(cursor: duckdb.DuckDBPyConnection, table: str, *rows: Mapping[str, Any]) -> None:
    cursor.register("arrived", make_batch(table, *rows))
    cursor.execute(f"INSERT INTO {table} SELECT * FROM arrived")
    cursor.unregister("arrived")


def count(cursor: duckdb.DuckDBPyConnection, table: str) -> int:
    [(rows,)] = cursor.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(rows)


def finish(retention: Retention, cursor: duckdb.DuckDBPyConnection, now: int = NOW) -> list[RetentionReport]:
    reports = [retention.step(cursor, now)]
    while reports[-1].more:
        assert len(reports) < 1000
        reports.append(retention.step(cursor, now))
    return reports


def test_evidence_that_is_too_old_goes_from_every_table_and_the_rest_stays(store: Store) -> None:
    cursor = store.cursor()
    for age, number in ((100, 1), (61, 2), (59, 3), (0, 4)):
        received = NOW - age * SECOND
        ids = {"trace_id": UUID(int=number), "span_id": number}
        span = {"resource_id": number, "scope_id": number, "received_unix_nano": received}
        insert(cursor, "spans", make_row("spans", **ids, **span))
        insert(cursor, "span_events", make_row("span_events", **ids), make_row("span_events", **ids))
        insert(cursor, "span_links", make_row("span_links", **ids))
        insert(cursor, "resources", make_row("resources", resource_id=number))
        insert(cursor, "scopes", make_row("scopes", scope_id=number))
        for table in ("proxy_records", "flows", "sockets", "socket_watches", "workloads"):
            insert(cursor, table, make_row(table, received_unix_nano=received))
        insert(cursor, "ingest_errors", make_row("ingest_errors", received_unix_nano=received))
        cursor.execute("INSERT INTO trace_arrivals VALUES (?, ?, ?)", [number, received, received])

    reports = finish(Retention(store.path, Policy(keep_ns=60 * SECOND)), cursor)

    left = {table: count(cursor, table) for table in (*schema.TABLES, "trace_arrivals")}
    assert left == {
        "spans": 2, "span_events": 4, "span_links": 2, "resources": 2, "scopes": 2, "proxy_records": 2,
        "flows": 2, "sockets": 2, "socket_watches": 2, "workloads": 4,
        "ingest_errors": 2, "trace_arrivals": 2, "egress_allow": 0, "access_logs": 0,
    }  # fmt: skip
    assert cursor.execute("SELECT span_id FROM spans ORDER BY 1").fetchall() == [(3,), (4,)]
    assert cursor.execute("SELECT DISTINCT span_id FROM span_events ORDER BY 1").fetchall() == [(3,), (4,)]
    assert reports[-1].since_unix_nano == evidence_since(cursor) == NOW - 60 * SECOND
    [forgotten] = [report.forgotten for report in reports if report.forgotten]
    assert forgotten == {"resources": frozenset({1, 2}), "scopes": frozenset({1, 2})}


def test_a_file_says_how_much_was_deleted_and_nothing_while_all_is_there(store: Store) -> None:
    cursor = store.cursor()
    insert(cursor, "spans", make_row("spans", received_unix_nano=NOW))
    retention = Retention(store.path, Policy(keep_ns=60 * SECOND, max_size_bytes=10**9))

    assert finish(retention, cursor)[-1].since_unix_nano is None
    finish(retention, cursor, NOW + 61 * SECOND)

    assert cursor.execute("SELECT value FROM meta WHERE key = ?", [REMOVED_KEY + "spans"]).fetchall() == [("1",)]
    assert evidence_since(cursor) == NOW + SECOND


def test_access_log_lines_age_where_there_are_no_spans(store: Store) -> None:
    cursor = store.cursor()
    insert(cursor, "proxy_records", make_row("proxy_records", received_unix_nano=NOW - 90 * SECOND))

    finish(Retention(store.path, Policy(keep_ns=60 * SECOND)), cursor)

    assert count(cursor, "proxy_records") == 0


def test_ages_are_looked_at_again_once_a_hundredth_of_the_age_has_passed(store: Store) -> None:
    cursor = store.cursor()
    retention = Retention(store.path, Policy(keep_ns=100 * SECOND))
    finish(retention, cursor)
    insert(cursor, "spans", make_row("spans", received_unix_nano=NOW - 200 * SECOND))

    assert finish(retention, cursor, NOW + SECOND - 1)[-1].since_unix_nano is None
    assert finish(retention, cursor, NOW + SECOND)[-1].since_unix_nano is not None


def test_without_a_policy_nothing_is_deleted(store: Store) -> None:
    cursor = store.cursor()
    insert(cursor, "spans", make_row("spans", received_unix_nano=1))

    [report] = finish(Retention(store.path, Policy()), cursor)

    assert report.removed == {}
    assert count(cursor, "spans") == 1


def test_an_old_row_behind_newer_ones_is_found_though_a_step_deletes_only_so_many(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.store.retention.MAX_STEP_ROWS", 10)
    cursor = store.cursor()
    insert(cursor, "spans", *(make_row("spans", received_unix_nano=NOW) for _ in range(50)))
    insert(cursor, "spans", *(make_row("spans", received_unix_nano=NOW - 99 * SECOND) for _ in range(35)))

    reports = finish(Retention(store.path, Policy(keep_ns=60 * SECOND)), cursor)

    assert [r.removed["spans"] for r in reports if r.removed] == [10, 10, 10, 5]
    assert count(cursor, "spans") == 50


def test_a_failing_step_leaves_no_transaction_behind(store: Store) -> None:
    cursor = store.cursor()
    insert(cursor, "spans", make_row("spans", received_unix_nano=1))
    cursor.execute("DROP TABLE span_links")

    with pytest.raises(duckdb.Error, match="span_links"):
        Retention(store.path, Policy(keep_ns=1)).step(cursor, NOW)

    assert count(cursor, "spans") == 1
    cursor.begin()
    cursor.rollback()


@pytest.mark.parametrize(
    ("live_bytes", "rows", "expected"),
    [
        (749, Rows("spans", 10**8, 0), 0),
        (1000, Rows("spans", 10**8, 0), 30_040_959),  # 30 %, and two row groups that a checkpoint may write anew
        (749, Rows("spans", 10**6, 0), 106_380),  # row groups are larger beside the limit
        (700, Rows("spans", 10**6, 0), 0),
        (1000, Rows("spans", 800_000, 200_000), 340_960),  # of which most are dead: a checkpoint first
        (1000, Rows("spans", 100_000, 0), 82_500),  # and here a few are all that has room
        (1000, Rows("spans", 10, 0), 10),
        (1000, Rows("spans", 0, 0), 0),
    ],
)
def test_how_many_rows_a_size_asks_for(live_bytes: int, rows: Rows, expected: int) -> None:
    sizes = Sizes(file_bytes=live_bytes + 5, free_bytes=5, wal_bytes=0, journal_bytes=0)

    assert rows_to_remove(Policy(max_size_bytes=1000), sizes, rows) == expected
    assert rows_to_remove(Policy(), sizes, rows) == 0


def test_the_size_counts_the_log_and_the_journal(store: Store) -> None:
    cursor = store.cursor()
    cursor.execute("CREATE TEMP TABLE t (a INT)")
    insert(cursor, "spans", make_row("spans"))
    journal = store.path.with_name(store.path.name + ".journal")
    journal.mkdir()
    (journal / "1").write_bytes(b"x" * 1000)
    (journal / "2").write_bytes(b"x" * 234)

    sizes = measure(cursor, store.path)

    assert sizes.journal_bytes == 1234
    assert sizes.wal_bytes == store.path.with_name(store.path.name + ".wal").stat().st_size > 0
    assert sizes.total_bytes == sizes.file_bytes + sizes.wal_bytes + 1234


# --- under load -----------------------------------------------------------------------------------------------------------


class Load:
    """Spans that do not compress well, in order of arrival."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self.cursor = cursor
        self.now = NOW
        rows = 8192
        batch = make_batch("spans", *(make_row("spans", name=os.urandom(60).hex()) for _ in range(rows)))
        self._table = pa.Table.from_batches([batch])
        self._random = np.random.default_rng(1)

    def write(self) -> None:
        self.now += SECOND
        table = self._table
        rows = table.num_rows
        for name, values in (
            ("received_unix_nano", pa.array(np.full(rows, self.now))),
            ("span_id", pa.array(self._random.integers(0, 2**63, rows, dtype=np.uint64))),
        ):
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(at), values)
        self.cursor.begin()
        self.cursor.register("arrived", table)
        self.cursor.execute("INSERT INTO spans SELECT * FROM arrived")
        self.cursor.unregister("arrived")
        self.cursor.commit()


@pytest.mark.slow
def test_under_a_steady_load_the_file_stays_within_its_limit_and_the_newest_evidence_stays(store: Store) -> None:
    cursor = store.cursor()
    load, limit = Load(cursor), 48_000_000
    retention = Retention(store.path, Policy(max_size_bytes=limit))
    peak, slowest = 0, 0.0
    for _ in range(70):
        load.write()
        for report in finish(retention, cursor, load.now):
            slowest = max(slowest, report.seconds)
        peak = max(peak, measure(cursor, store.path).total_bytes)

    [(oldest, newest, rows)] = cursor.execute(
        "SELECT min(received_unix_nano), max(received_unix_nano), count(*) FROM spans"
    ).fetchall()
    assert peak <= limit * 1.1
    assert newest == load.now
    assert rows * 100 > limit / 2  # it is used, not merely not exceeded: a span takes over a hundred bytes
    assert evidence_since(cursor) in {oldest, oldest - SECOND + 1}
    assert slowest < 5, "a step must not stall ingest"


@pytest.mark.slow
def test_a_reader_that_holds_what_was_deleted_does_not_make_more_be_deleted(store: Store) -> None:
    cursor = store.cursor()
    load = Load(cursor)
    for _ in range(25):
        load.write()
    store.checkpoint()
    limit = int(measure(cursor, store.path).live_bytes / 0.75)  # one step is enough
    reader = store.cursor()
    reader.execute("BEGIN TRANSACTION READ ONLY")
    assert reader.execute("SELECT count(*) FROM spans").fetchall() == [(204_800,)]
    retention = Retention(store.path, Policy(max_size_bytes=limit))

    finish(retention, cursor, load.now)
    left = count(cursor, "spans")
    for _ in range(20):
        load.now += 10 * SECOND
        finish(retention, cursor, load.now)

    assert 0 < left == count(cursor, "spans") < 204_800
    assert reader.execute("SELECT count(*) FROM spans").fetchall() == [(204_800,)]
    before = measure(cursor, store.path).live_bytes
    reader.close()
    finish(retention, cursor, load.now + 20 * SECOND)
    assert measure(cursor, store.path).live_bytes < before
    assert count(cursor, "spans") == left


@pytest.mark.slow
def test_a_file_that_holds_less_gives_its_end_back_within_a_turn(store: Store) -> None:
    cursor = store.cursor()
    load = Load(cursor)
    for _ in range(40):
        load.write()
    store.checkpoint()
    large = store.path.stat().st_size
    retention = Retention(store.path, Policy(max_size_bytes=large // 4))

    deadline = time.monotonic() + 60
    while store.path.stat().st_size > large // 2 and time.monotonic() < deadline:
        load.write()
        finish(retention, cursor, load.now)

    assert store.path.stat().st_size <= large // 2

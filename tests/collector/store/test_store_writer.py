"""The writer: committed means there, requests share commits, and a bad one harms nobody else."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import duckdb
import pyarrow as pa
import pytest

from collector import schema
from collector.errors import StoreError, StoreFullError
from collector.store.database import ROW_GROUP_ROWS, Store
from collector.store.journal import Position
from collector.store.reader import Reader
from collector.store.replace import replace_rows
from collector.store.writer import Writer
from tests.collector.store.evidence_rows import make_batch, make_row

DEADLINE = 10


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "evidence.duckdb") as opened:
        yield opened


def count(store: Store, table: str) -> int:
    [row] = Reader(store).query(f"SELECT count(*) AS n FROM {table}").to_pylist()
    number: int = row["n"]
    return number


class Gate:
    """Holds the writer before its next transaction: the database's `begin` waits."""

    def __init__(self, writer: Writer) -> None:
        self._cursor = writer._cursor
        self.reached = threading.Event()
        self.open = threading.Event()
        writer._cursor = self  # type: ignore[assignment]

    def begin(self) -> None:
        self.reached.set()
        assert self.open.wait(DEADLINE)
        self._cursor.begin()

    def __getattr__(self, name: str) -> object:
        return getattr(self._cursor, name)


def test_a_done_future_means_that_a_reader_sees_the_rows(store: Store) -> None:
    with Writer(store) as writer:
        writer.append({"spans": make_batch("spans"), "ingest_errors": make_batch("ingest_errors")}).result(DEADLINE)

        assert (count(store, "spans"), count(store, "ingest_errors")) == (1, 1)


@pytest.mark.parametrize("table", schema.TABLES)
def test_every_table_keeps_every_column_and_its_nulls(store: Store, table: str) -> None:
    values = {"UBIGINT": 2**64 - 1, "BIGINT": -(2**63), "INTEGER": 2**31 - 1, "BOOLEAN": True, "VARCHAR": "ünï\0code"}
    maps = {c.name: [("k", "v"), ("", "")] for c in schema.TABLES[table] if c.type.startswith("MAP")}
    full = make_row(table) | {c.name: values[c.type] for c in schema.TABLES[table] if c.type in values} | maps
    sparse = make_row(table)
    with Writer(store) as writer:
        writer.append({table: make_batch(table, full, sparse)}).result(DEADLINE)
        stored = Reader(store).query(f"SELECT * FROM {table}").to_pylist()

    assert stored == [{k: str(v) if isinstance(v, UUID) else v for k, v in row.items()} for row in (full, sparse)]


def test_requests_that_arrive_during_an_insert_share_its_commit(store: Store) -> None:
    with Writer(store) as writer:
        gate = Gate(writer)
        first = writer.append({"spans": make_batch("spans")})
        assert gate.reached.wait(DEADLINE)
        others = [writer.append({"spans": make_batch("spans")}) for _ in range(5)]
        gate.open.set()
        for future in [first, *others]:
            future.result(DEADLINE)

        assert writer.status().commits == 1
        assert writer.status().requests == 6
        assert count(store, "spans") == 6


def test_a_request_is_not_acknowledged_before_its_commit(store: Store) -> None:
    with Writer(store) as writer:
        gate = Gate(writer)
        future = writer.append({"spans": make_batch("spans")})
        assert gate.reached.wait(DEADLINE)

        assert not future.done()
        assert count(store, "spans") == 0

        gate.open.set()
        future.result(DEADLINE)


def test_a_request_that_breaks_a_constraint_fails_alone(store: Store) -> None:
    bad = make_batch("spans", make_row("spans") | {"name": None})
    with Writer(store) as writer:
        gate = Gate(writer)
        blocker = writer.append({"spans": make_batch("spans")})
        assert gate.reached.wait(DEADLINE)
        before = writer.append({"spans": make_batch("spans"), "resources": make_batch("resources", resource_id=7)})
        failing = writer.append({"spans": bad, "resources": make_batch("resources", resource_id=8)})
        after = writer.append({"spans": make_batch("spans"), "resources": make_batch("resources", resource_id=8)})
        gate.open.set()

        for future in (blocker, before, after):
            future.result(DEADLINE)
        with pytest.raises(StoreError, match="NOT NULL"):
            failing.result(DEADLINE)
        assert count(store, "spans") == 3
        assert count(store, "resources") == 2
        assert writer.status().queued_bytes == 0


def test_the_writer_works_on_after_a_failure(store: Store) -> None:
    with Writer(store) as writer:
        with pytest.raises(StoreError):
            writer.append({"spans": make_batch("spans", make_row("spans") | {"kind": None})}).result(DEADLINE)
        writer.append({"spans": make_batch("spans")}).result(DEADLINE)

        assert count(store, "spans") == 1


def test_a_resource_is_stored_once_within_a_request_between_requests_and_after_a_restart(store: Store) -> None:
    twice = make_batch("resources", make_row("resources", resource_id=1), make_row("resources", resource_id=1))
    with Writer(store) as writer:
        writer.append({"resources": twice}).result(DEADLINE)
        writer.append({"resources": make_batch("resources", resource_id=1)}).result(DEADLINE)
    with Writer(store) as writer:
        writer.append({"resources": make_batch("resources", resource_id=1)}).result(DEADLINE)
        writer.append({"resources": make_batch("resources", resource_id=2)}).result(DEADLINE)

    assert count(store, "resources") == 2


def test_a_resource_of_a_failed_request_is_not_taken_for_stored(store: Store) -> None:
    resource = make_batch("resources", resource_id=1)
    bad = make_batch("ingest_errors", make_row("ingest_errors") | {"reason": None})
    with Writer(store) as writer:
        with pytest.raises(StoreError):
            writer.append({"resources": resource, "ingest_errors": bad}).result(DEADLINE)
        writer.append({"resources": resource}).result(DEADLINE)

    assert count(store, "resources") == 1


def test_a_position_replaces_the_older_one_of_its_source(store: Store) -> None:
    with Writer(store) as writer:
        for offset in (10, 20):
            rows = [make_row("access_logs", source=s, offset_bytes=offset) for s in ("a", "b")]
            writer.append({"access_logs": make_batch("access_logs", *rows)}).result(DEADLINE)

    stored = Reader(store).query("SELECT source, offset_bytes FROM access_logs ORDER BY source").to_pylist()
    assert stored == [{"source": "a", "offset_bytes": 20}, {"source": "b", "offset_bytes": 20}]


def test_a_full_queue_refuses_and_takes_more_once_it_is_written(store: Store) -> None:
    batch = make_batch("spans")
    with Writer(store, max_queued_bytes=int(batch.nbytes * 2.5)) as writer:
        gate = Gate(writer)
        accepted = [writer.append({"spans": batch}), writer.append({"spans": make_batch("spans")})]
        with pytest.raises(StoreFullError, match="retry"):
            writer.append({"spans": batch})
        gate.open.set()
        for future in accepted:
            future.result(DEADLINE)
        assert writer.append({"spans": make_batch("spans")}).result(DEADLINE) is None

    assert count(store, "spans") == 3


def test_a_request_larger_than_the_queue_passes_when_it_is_empty(store: Store) -> None:
    with Writer(store, max_queued_bytes=1) as writer:
        writer.append({"spans": make_batch("spans")}).result(DEADLINE)

    assert count(store, "spans") == 1


@pytest.mark.parametrize(
    ("batches", "complaint"),
    [
        ({"nosuch": make_batch("spans")}, "no table 'nosuch'"),
        ({"spans": make_batch("resources")}, "does not have its schema"),
        ({"scopes": pa.RecordBatch.from_pydict({"scope_id": [1]})}, "does not have its schema"),
    ],
)
def test_batches_that_fit_no_table_are_refused_at_once(
    store: Store, batches: dict[str, pa.RecordBatch], complaint: str
) -> None:
    with Writer(store) as writer, pytest.raises(StoreError, match=complaint):
        writer.append(batches)


def test_close_commits_what_is_queued_and_then_refuses(store: Store) -> None:
    writer = Writer(store)
    gate = Gate(writer)
    futures = [writer.append({"spans": make_batch("spans")}) for _ in range(3)]
    gate.open.set()
    writer.close()
    writer.close()

    assert all(future.done() and future.exception() is None for future in futures)
    assert count(store, "spans") == 3
    with pytest.raises(StoreError, match="shutting down"):
        writer.append({"spans": make_batch("spans")})


def test_close_leaves_nothing_in_the_write_ahead_log(store: Store) -> None:
    with Writer(store) as writer:
        writer.append({"spans": make_batch("spans")}).result(DEADLINE)

    wal = Path(f"{store.path}.wal")
    assert not wal.exists() or wal.stat().st_size == 0


def test_a_defect_in_the_writer_fails_its_requests_and_is_reported_not_hidden(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(store)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(writer, "_commit", broken)
    with pytest.raises(StoreError, match="ZeroDivisionError"):
        writer.append({"spans": make_batch("spans")}).result(DEADLINE)
    with pytest.raises(StoreError, match="restart the collector"):
        writer.append({"spans": make_batch("spans")})
    assert "ZeroDivisionError" in str(writer.status().broken)
    writer.close()


def test_a_reader_sees_whole_commits_while_the_writer_writes(store: Store) -> None:
    with Writer(store) as writer:
        futures = [
            writer.append({"spans": make_batch("spans", *[make_row("spans") for _ in range(10)])}) for _ in range(50)
        ]
        seen = []
        while not futures[-1].done():
            seen.append(count(store, "spans"))
        futures[-1].result(DEADLINE)

    assert all(n % 10 == 0 for n in seen)
    assert seen == sorted(seen)
    assert count(store, "spans") == 500


# --- what is durable already ----------------------------------------------------------------------------------------------


def visible(store: Store, rows: int) -> bool:
    """Whether so many spans are there before the deadline."""
    end = time.monotonic() + DEADLINE
    while count(store, "spans") != rows and time.monotonic() < end:
        time.sleep(0.01)
    return count(store, "spans") == rows


def test_journaled_rows_share_a_transaction_until_it_lingered_long_enough(store: Store) -> None:
    with Writer(store, linger_seconds=0.3) as writer:
        for offset in range(1, 6):
            writer.append_journaled([{"spans": make_batch("spans")}], Position(1, offset))
        assert visible(store, 5)
        assert writer.status().commits == 1


def test_journaled_rows_do_not_linger_when_a_row_group_is_full(store: Store) -> None:
    rows = [make_row("spans") for _ in range(ROW_GROUP_ROWS)]
    with Writer(store, linger_seconds=10 * DEADLINE) as writer:
        writer.append_journaled([{"spans": make_batch("spans", *rows)}], Position(1, 1))
        assert visible(store, ROW_GROUP_ROWS)


def test_who_waits_for_a_future_does_not_wait_for_lingering_rows(store: Store) -> None:
    with Writer(store, linger_seconds=10 * DEADLINE) as writer:
        writer.append_journaled([{"spans": make_batch("spans")}], Position(1, 1))
        writer.append({"spans": make_batch("spans")}).result(DEADLINE)
        assert count(store, "spans") == 2


def test_the_position_is_committed_with_its_rows_and_then_told(store: Store) -> None:
    store.cursor().execute("INSERT INTO meta VALUES ('journal_position', '0:0')")
    told: list[Position] = []
    with Writer(store, on_commit=told.append) as writer:
        writer.append_journaled([{"spans": make_batch("spans")}], Position(1, 7))
        writer.append_journaled([{"spans": make_batch("spans")}], Position(2, 3))
    stored = store.cursor().execute("SELECT value FROM meta WHERE key = 'journal_position'").fetchall()
    assert stored == [("2:3",)]
    assert told[-1] == Position(2, 3)


def test_journaled_rows_are_tried_again_until_they_are_in(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.store.writer.RETRY_SECONDS", 0.02)
    with Writer(store, linger_seconds=0) as writer:
        failures = iter(range(3))
        commit = writer._commit

        def full() -> None:
            if next(failures, None) is not None:
                raise duckdb.IOException("IO Error: Could not write file: No space left on device")
            commit()

        monkeypatch.setattr(writer, "_commit", full)
        writer.append_journaled([{"spans": make_batch("spans")}], Position(1, 1))
        waiting = writer.append({"spans": make_batch("spans")})
        assert "No space left" in str(waiting.exception(DEADLINE)), "its sender keeps it"
        assert visible(store, 1)
        assert writer.status().failing is None


def test_a_writer_that_cannot_write_can_be_closed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the journal stays there, and whoever closes is told; the close does not wait for room."""
    writer = Writer(store, linger_seconds=0)

    def full() -> None:
        raise duckdb.IOException("IO Error: Could not write file: No space left on device")

    monkeypatch.setattr(writer, "_commit", full)
    writer.append_journaled([{"spans": make_batch("spans")}], Position(1, 1))
    end = time.monotonic() + DEADLINE
    while writer.status().failing is None and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(StoreError, match="stay in the journal"):
        writer.close()
    assert count(store, "spans") == 0
    with pytest.raises(StoreError, match="shutting down"):
        writer.append_journaled([{"spans": make_batch("spans")}], Position(1, 2))


@pytest.mark.parametrize("megabytes", [6, 16], ids=["fails to commit", "fails to insert"])
def test_a_value_that_needs_more_memory_than_a_writer_has_is_written_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch, megabytes: int
) -> None:
    """Of a text of 64 MiB nothing could be written before somebody asked something, and everything else waited behind it."""
    monkeypatch.setattr("collector.store.memory.IDLE_SECONDS", 0.0)
    monkeypatch.setattr("collector.store.writer.RETRY_SECONDS", 0.01)
    monkeypatch.setattr(store.memory, "_writing", 8 * 1024**2)
    store.lower_memory()
    large = {"spans": make_batch("spans", name="x" * megabytes * 1024**2)}
    written = threading.Event()  # not asked for: a question would lend the memory
    with Writer(store, on_commit=lambda _: written.set()) as writer:
        writer.append_journaled([large], Position(1, 1))
        assert written.wait(DEADLINE)
        writer.append({"spans": make_batch("spans")}).result(DEADLINE)
        assert writer.status().failing is None
    assert count(store, "spans") == 2, "and the last checkpoint found nothing wrong"


def test_replace_rows_leaves_only_the_new_ones(store: Store) -> None:
    replace_rows(store, "egress_allow", make_batch("egress_allow", destination="a.example"))
    replace_rows(store, "egress_allow", make_batch("egress_allow", destination="b.example"))

    assert Reader(store).query("SELECT destination FROM egress_allow").to_pylist() == [{"destination": "b.example"}]


def test_replace_rows_keeps_the_old_ones_when_the_new_ones_do_not_fit(store: Store) -> None:
    replace_rows(store, "egress_allow", make_batch("egress_allow", destination="a.example"))
    with pytest.raises(StoreError):
        replace_rows(
            store, "egress_allow", make_batch("egress_allow", make_row("egress_allow") | {"destination": None})
        )

    assert Reader(store).query("SELECT destination FROM egress_allow").to_pylist() == [{"destination": "a.example"}]

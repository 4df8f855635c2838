"""A collector's start: what a killed compaction left goes, what is too old or too much goes, and the file gets small again."""

import time
from pathlib import Path

import pytest

from collector.commands import opening
from collector.commands.opening import Room, make_room, open_store
from collector.errors import StoreBusyError, StoreError
from collector.store.database import Store
from collector.store.journal import SEGMENT_BYTES
from collector.store.reader import Reader
from collector.store.retention import Policy, Retention
from collector.store.sizes import measure
from collector.store.writer import MAX_QUEUED_BYTES

MIB = 1024 * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Store.open(tmp_path / "evidence.duckdb").close()
    return tmp_path / "evidence.duckdb"


def leftover(path: Path) -> Path:
    copy = path.with_name(path.name + ".compact")
    copy.write_bytes(b"half a copy")
    return copy


def test_what_a_killed_compaction_left_goes(path: Path) -> None:
    copy = leftover(path)
    open_store(path).close()
    assert not copy.exists()


def test_what_a_running_collector_compacts_stays(path: Path) -> None:
    with Store.open(path):
        copy = leftover(path)
        with pytest.raises(StoreBusyError):
            open_store(path)
        assert copy.exists()


def test_beside_a_file_that_cannot_be_opened_it_stays(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)
    copy = leftover(path)
    with pytest.raises(StoreError):
        open_store(path)
    assert copy.exists()


def test_it_goes_first_where_it_takes_the_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, opened = leftover(path), Store.open

    def full(*arguments: object, **options: object) -> Store:
        if copy.exists():
            raise StoreError("no space left on device")
        return opened(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "open", full)
    open_store(path).close()
    assert not copy.exists()


def test_the_memory_of_answers_is_what_it_was_told(path: Path) -> None:
    with open_store(path, memory_bytes=256 * MIB) as store:
        sql = "SELECT current_setting('memory_limit') AS told"
        assert Reader(store).query(sql).to_pylist() == [{"told": "256.0 MiB"}]
        store.reopen()
        assert Reader(store).query(sql).to_pylist() == [{"told": "256.0 MiB"}]


def test_memory_is_lowered_also_after_the_file_was_opened_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.store.memory.IDLE_SECONDS", 0.0)
    with open_store(path, memory_bytes=256 * MIB) as store:
        for _ in range(2):
            store.lower_memory()
            told = store.cursor().execute("SELECT current_setting('memory_limit')").fetchall()
            assert told == [("48.0 MiB",)]
            store.reopen()
    store.lower_memory()  # nothing to do, and nobody to tell


def test_what_is_too_old_is_gone_before_anybody_asks(path: Path) -> None:
    with Store.open(path) as store:
        now = time.time_ns()
        for age_s in (10, 1000):
            store.cursor().execute("INSERT INTO ingest_errors VALUES (?, 'otlp', 'r', 1)", [now - age_s * 10**9])
        make_room(store, Retention(path, Policy(keep_ns=100 * 10**9)), None, lambda: False)

        assert Reader(store).query("SELECT count(*) AS n FROM ingest_errors").to_pylist() == [{"n": 1}]


@pytest.mark.slow
def test_a_limit_that_was_lowered_is_kept_from_the_start(path: Path) -> None:
    with Store.open(path) as store:
        cursor = store.cursor()
        cursor.execute(
            "INSERT INTO ingest_errors SELECT range, 'otlp', md5(range::VARCHAR) || md5((-range)::VARCHAR), 1 FROM range(1_500_000)"
        )
        store.checkpoint()
        limit = measure(cursor, path).total_bytes // 2
        cursor.close()
        make_room(store, Retention(path, Policy(max_size_bytes=limit)), limit, lambda: False)

        assert limit / 3 < path.stat().st_size <= limit
        [row] = Reader(store).query("SELECT max(received_unix_nano) AS newest FROM ingest_errors").to_pylist()
        assert row["newest"] == 1_499_999


def test_a_start_that_cannot_make_room_goes_on_and_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Store) -> None:
        raise StoreError("could not be compacted")

    monkeypatch.setattr(opening, "worth_it", lambda *_: True)
    monkeypatch.setattr(opening, "compact", fails)
    with Store.open(path) as store:
        make_room(store, Retention(path, Policy()), None, lambda: False)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["could not be compacted"]


def test_no_compaction_is_begun_for_who_is_told_to_stop(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Store] = []
    monkeypatch.setattr(opening, "worth_it", lambda *_: True)
    monkeypatch.setattr(opening, "compact", begun.append)
    with Store.open(path) as store:
        make_room(store, Retention(path, Policy()), None, lambda: True)
    assert begun == []


def test_a_small_limit_leaves_little_room_beside_the_file() -> None:
    assert Room.under(None) == Room.under(1024**4) == Room(MAX_QUEUED_BYTES, SEGMENT_BYTES)
    assert Room.under(64 * MIB) == Room(4 * MIB, MIB)

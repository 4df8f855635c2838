"""What the writer does between transactions: at its pace, past its errors, and never in the way of what arrives."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pytest

from collector.store.chores import EVERY_SECONDS, Chores
from collector.store.database import ROW_GROUP_ROWS, Store
from collector.store.journal import Position
from collector.store.reader import Reader
from collector.store.retention import Policy, Retention
from collector.store.writer import Writer
from tests.collector.store.evidence_rows import make_batch, make_row

DEADLINE = 10
FULL = "IO Error: Could not write file: No space left on device"


@dataclass
class Did:
    more: bool = False
    is_idle: bool = True
    forgotten: Mapping[str, frozenset[int]] = field(default_factory=dict)


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "evidence.duckdb") as opened:
        yield opened


def until(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + DEADLINE
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    return what()


def count(store: Store, table: str) -> int:
    [row] = Reader(store).query(f"SELECT count(*) AS n FROM {table}").to_pylist()
    return int(row["n"])


# --- when ---------------------------------------------------------------------------------------------------------------


def test_no_chore_is_never_due() -> None:
    assert Chores(None).due_in() is None
    assert Chores(None).run(duckdb.connect(":memory:")) == {}


def test_a_chore_is_due_every_second_and_again_at_once_while_there_is_more(store: Store) -> None:
    clock, answers = Clock(), iter([Did(more=True), Did(), Did()])
    chores = Chores(lambda *_: next(answers), clock=clock, cpu_clock=lambda: 0.0)
    assert chores.due_in() == EVERY_SECONDS
    clock.now += 5
    assert chores.due_in() == 0
    chores.run(store.cursor())
    assert chores.due_in() == 0
    chores.run(store.cursor())
    assert chores.due_in() == EVERY_SECONDS
    chores.wrote(ROW_GROUP_ROWS - 1)
    assert chores.due_in() == EVERY_SECONDS
    chores.wrote(1)
    assert chores.due_in() == 0
    chores.run(store.cursor())
    assert chores.due_in() == EVERY_SECONDS


def test_one_that_takes_long_to_find_nothing_takes_a_twentieth_of_the_time(store: Store) -> None:
    clock = Clock()

    def slow(*_: object) -> Did:
        clock.now += 0.5
        return Did()

    chores = Chores(slow, clock=clock, cpu_clock=clock)
    chores.run(store.cursor())
    assert chores.due_in() == 10
    chores.wrote(ROW_GROUP_ROWS)
    assert chores.due_in() == 10


def test_one_that_takes_long_to_do_something_does_not_wait_for_its_share(store: Store) -> None:
    clock = Clock()

    def slow(*_: object) -> Did:
        clock.now += 5
        return Did(is_idle=False)

    chores = Chores(slow, clock=clock, cpu_clock=clock)
    chores.run(store.cursor())
    assert chores.due_in() == EVERY_SECONDS
    chores.wrote(ROW_GROUP_ROWS)
    assert chores.due_in() == 0


def test_a_chore_that_fails_says_so_once_and_is_tried_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    clock, failing = Clock(), True

    def chore(*_: object) -> Did:
        if failing:
            raise duckdb.IOException(FULL)
        return Did()

    chores = Chores(chore, clock=clock)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with pytest.raises(duckdb.IOException):
                chores.run(store.cursor())
            assert chores.due_in() == EVERY_SECONDS
    assert "No space left" in str(chores.failing)
    assert len(caplog.records) == 1
    failing = False
    chores.run(store.cursor())
    assert chores.failing is None


# --- in the writer --------------------------------------------------------------------------------------------------------


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.store.chores.EVERY_SECONDS", 0.01)


@pytest.mark.usefixtures("often")
def test_an_idle_writer_does_its_chore_with_the_time_of_day(store: Store) -> None:
    seen: list[int] = []

    def chore(cursor: duckdb.DuckDBPyConnection, now: int) -> Did:
        cursor.begin()  # would raise within a transaction
        cursor.commit()
        seen.append(now)
        return Did()

    with Writer(store, chore=chore):
        assert until(lambda: len(seen) >= 3)
    assert seen == sorted(seen)
    assert abs(seen[-1] - time.time_ns()) < 60 * 10**9


@pytest.mark.usefixtures("often")
def test_what_arrives_waits_for_one_step_and_not_for_all_of_them(store: Store) -> None:
    steps: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def endless(_: object, now: int) -> Did:
        steps.append(now)
        begun.set()
        assert go_on.wait(DEADLINE)
        return Did(more=True)

    with Writer(store, chore=endless) as writer:
        assert begun.wait(DEADLINE)
        future = writer.append({"spans": make_batch("spans")})
        at_most = len(steps) + 1
        seen: list[int] = []
        future.add_done_callback(lambda _: seen.append(len(steps)))
        go_on.set()
        future.result(DEADLINE)
        assert until(lambda: bool(seen))
        assert seen[0] <= at_most
        writer.append_journaled([{"spans": make_batch("spans")}], Position(1, 1))
        assert until(lambda: count(store, "spans") == 2)


@pytest.mark.usefixtures("often")
def test_a_chore_is_never_done_within_a_transaction(store: Store) -> None:
    open_ones: list[bool] = []
    with Writer(store, linger_seconds=0.1, chore=lambda *_: Did()) as writer:
        do = writer._do_chore

        def look() -> None:
            open_ones.append(writer._transaction is not None)
            do()

        writer._do_chore = look  # type: ignore[method-assign]
        for offset in range(1, 20):
            writer.append_journaled([{"spans": make_batch("spans")}], Position(1, offset))
        assert until(lambda: count(store, "spans") == 19 and len(open_ones) > 3)
    assert not any(open_ones)


@pytest.mark.usefixtures("often")
def test_an_id_that_was_deleted_is_stored_when_it_comes_again(store: Store) -> None:
    batch = {"resources": make_batch("resources", resource_id=7)}
    wanted, done = threading.Event(), threading.Event()

    def chore(cursor: duckdb.DuckDBPyConnection, _: int) -> Did:
        if not wanted.is_set() or done.is_set():
            return Did()
        cursor.execute("DELETE FROM resources WHERE resource_id = 7")
        done.set()
        return Did(forgotten={"resources": frozenset({7})})

    with Writer(store, chore=chore) as writer:
        writer.append(batch).result(DEADLINE)
        wanted.set()
        assert done.wait(DEADLINE)
        writer.append(batch).result(DEADLINE)
        assert count(store, "resources") == 1


@pytest.mark.usefixtures("often")
def test_an_id_that_a_failing_chore_deleted_is_stored_when_it_comes_again(store: Store) -> None:
    batch = {"resources": make_batch("resources", resource_id=7)}
    wanted, done = threading.Event(), threading.Event()

    def chore(cursor: duckdb.DuckDBPyConnection, _: int) -> Did:
        if wanted.is_set() and not done.is_set():
            cursor.execute("DELETE FROM resources")
            done.set()
            cursor.begin()
            raise duckdb.IOException(FULL)
        return Did()

    with Writer(store, chore=chore) as writer:
        writer.append(batch).result(DEADLINE)
        wanted.set()
        assert done.wait(DEADLINE)
        writer.append(batch).result(DEADLINE)
        assert count(store, "resources") == 1


@pytest.mark.usefixtures("often")
def test_a_failing_chore_is_in_the_status_and_stops_nobody(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    failing = threading.Event()
    failing.set()

    def chore(*_: object) -> Did:
        if failing.is_set():
            raise duckdb.IOException(FULL)
        return Did()

    with Writer(store, chore=chore) as writer:
        assert until(lambda: writer.status().failing is not None)
        assert "No space left" in str(writer.status().failing)
        writer.append({"spans": make_batch("spans")}).result(DEADLINE)
        assert "No space left" in str(writer.status().failing), "a commit does not end what the chore met"
        failing.clear()
        assert until(lambda: writer.status().failing is None)
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
        "old evidence cannot be removed: Could not write file: No space left on device; trying again every 0.01 s"
    ]


@pytest.mark.usefixtures("often")
def test_a_database_that_a_chore_invalidated_is_opened_again(store: Store) -> None:
    batch = {"spans": make_batch("spans"), "resources": make_batch("resources", resource_id=7)}
    failed = threading.Event()

    def chore(cursor: duckdb.DuckDBPyConnection, _: int) -> Did:
        if not failed.is_set():
            failed.set()
            raise duckdb.FatalException("FATAL Error: Checkpoint failed. The database has been invalidated.")
        cursor.execute("SELECT 1")
        return Did()

    with Writer(store, chore=chore) as writer:
        assert failed.wait(DEADLINE)
        assert until(lambda: store.generation == 1 and writer.status().failing is None)
        writer.append(batch).result(DEADLINE)
        assert count(store, "resources") == 1


@pytest.mark.usefixtures("often")
def test_retention_is_such_a_chore(store: Store) -> None:
    old = make_row("spans", received_unix_nano=time.time_ns() - 3600 * 10**9)
    new = make_row("spans", received_unix_nano=time.time_ns(), name="new")
    retention = Retention(store.path, Policy(keep_ns=60 * 10**9))
    with Writer(store, chore=retention.step) as writer:
        writer.append({"spans": make_batch("spans", old, new)}).result(DEADLINE)
        # Ages are looked at once in a hundredth of what is kept.
        assert until(lambda: count(store, "spans") == 1)
    assert Reader(store).query("SELECT name FROM spans").to_pylist() == [{"name": "new"}]


# --- the memory of what it wrote ------------------------------------------------------------------------------------------


def opened_again(store: Store, before: int) -> bool:
    deadline = time.monotonic() + 20
    while store.generation == before and time.monotonic() < deadline:
        time.sleep(0.01)
    return store.generation > before


def test_after_so_many_rows_the_file_is_opened_again_and_nothing_is_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.store.writer.REOPEN_ROWS", 100)
    before = store.generation
    with Writer(store, linger_seconds=0.0) as writer:
        for number in range(300):
            writer.append({"spans": make_batch("spans", make_row("spans", span_id=number + 1))}).result(20)
        assert opened_again(store, before)
        assert store.generation - before < 30, "not at every commit"
        [row] = Reader(store).query("SELECT count(*) AS n, count(DISTINCT span_id) AS d FROM spans").to_pylist()
    assert row == {"n": 300, "d": 300}


def test_it_is_not_opened_again_under_a_query_and_a_query_waits_for_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.store.writer.REOPEN_ROWS", 1)
    before = store.generation
    with Writer(store, linger_seconds=0.0) as writer:
        with store.memory.asking(store.cursor) as cursor:
            for number in range(5):
                writer.append({"spans": make_batch("spans", make_row("spans", span_id=number + 1))}).result(20)
            assert cursor.execute("SELECT 1").fetchall() == [(1,)]
            assert store.generation == before
        asked: list[object] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                asked.append(Reader(store).query("SELECT 1 AS one").to_pylist())

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(5, 40):
            writer.append({"spans": make_batch("spans", make_row("spans", span_id=number + 1))}).result(20)
        stop.set()
        for thread in threads:
            thread.join(20)
        writer.append({"spans": make_batch("spans", make_row("spans", span_id=99))}).result(20)
        assert opened_again(store, before)
    assert asked
    assert all(answer == [{"one": 1}] for answer in asked), "none was refused or interrupted"

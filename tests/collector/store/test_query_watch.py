"""A query beside which the process grows too large, or that does not heed its interrupt."""

import threading
import time
from pathlib import Path

import duckdb
import pytest

from collector.store import watch
from collector.store.database import Store
from collector.store.reader import Limits, Reader
from collector.store.watch import Bounds, Interrupt, QueryMemoryError, QueryTimeoutError, is_deaf, watched

ENDLESS = "SELECT count(*) FROM range(1000000000000) a, range(1000) b WHERE a.range <> b.range"
DEADLINE_S = 20.0


class Deaf:
    """A cursor whose query takes no notice of interrupts."""

    def __init__(self) -> None:
        self.interrupts = 0

    def interrupt(self) -> None:
        self.interrupts += 1


def test_a_query_ends_when_the_process_grows_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "evidence.duckdb") as store:
        reader = Reader(store, Limits(process_bytes=10**15))
        large = threading.Timer(0.3, monkeypatch.setattr, (watch, "resident_bytes", lambda: 2 * 10**15))
        large.start()
        with pytest.raises(QueryMemoryError, match="grew beyond 1,000,000,000,000,000 bytes"):
            reader.query(ENDLESS)
        large.join()


def test_a_process_that_is_large_enough_already_says_so_of_the_next_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "resident_bytes", lambda: 100)
    with Store.open(tmp_path / "evidence.duckdb") as store:
        assert Reader(store, Limits(process_bytes=100)).query("SELECT 1 AS n").to_pylist() == [{"n": 1}]
        with pytest.raises(QueryMemoryError):
            Reader(store, Limits(process_bytes=99)).query(ENDLESS)


@pytest.mark.parametrize("size", [0, 200])
def test_who_runs_the_process_is_told_once_of_a_query_that_heeds_no_interrupt(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "resident_bytes", lambda: size)
    monkeypatch.setattr(watch, "DEAF_SECONDS", 0.1)
    monkeypatch.setattr(watch, "DEAF_AND_LARGE_SECONDS", 0.1)
    told: list[str] = []
    cursor = Deaf()
    seconds = None if size else 0.01
    bounds = Bounds(seconds=seconds, process_bytes=100, on_deaf=told.append)

    def ask() -> None:
        with watched(cursor, bounds, Interrupt()):  # type: ignore[arg-type]
            deadline = time.monotonic() + DEADLINE_S
            while not told and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.2)
            raise duckdb.InterruptException("at last")

    with pytest.raises(QueryMemoryError if size else QueryTimeoutError):
        ask()
    [sentence] = told
    assert "does not heed its interrupt" in sentence
    assert cursor.interrupts > 1


def test_patience_is_shorter_where_memory_runs_out() -> None:
    assert not is_deaf(watch.DEAF_AND_LARGE_SECONDS, too_large=True)
    assert is_deaf(watch.DEAF_AND_LARGE_SECONDS + 1, too_large=True)
    assert not is_deaf(watch.DEAF_AND_LARGE_SECONDS + 1, too_large=False)
    assert is_deaf(watch.DEAF_SECONDS + 1, too_large=False)

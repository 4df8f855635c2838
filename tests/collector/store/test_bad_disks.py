"""Filesystems that are full, read-only or gone, under a store that is open: real ones, mounted for the test."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from collector.errors import StoreError
from collector.store.database import Store
from collector.store.failures import is_committed, is_out_of_space, is_read_only, needs_reopen
from collector.store.reader import Reader
from tests.collector.store.evidence_rows import make_batch, make_row

ROWS = 500


def mounted(directory: Path, size: str) -> str | None:
    """Mount a small filesystem there; None, or why it cannot be."""
    if os.geteuid() != 0:
        return "only root may mount"
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    if reason := mounted(directory, "24m"):
        pytest.skip(f"no small filesystem here: {reason}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


class Collecting:
    """A store that is written to, and a count of the rows whose commit was acknowledged."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(path)
        self.cursor = self.store.cursor()
        self.acknowledged = 0
        rows = (make_row("spans", name=os.urandom(400).hex()) for _ in range(ROWS))
        self._batch = make_batch("spans", *rows)

    def write(self) -> None:
        """One transaction; an error whose rows are stored all the same counts them."""
        try:
            self.cursor.begin()
            self.cursor.register("arrived", self._batch)
            self.cursor.execute("INSERT INTO spans SELECT * FROM arrived")
            self.cursor.commit()
        except duckdb.Error as e:
            self.acknowledged += ROWS * is_committed(e)
            raise
        self.acknowledged += ROWS

    def write_until_it_fails(self) -> duckdb.Error:
        for _ in range(1000):
            try:
                self.write()
            except duckdb.Error as e:
                return e
        raise AssertionError("the disk never filled")

    def reopen(self) -> None:
        self.store.reopen()
        self.cursor = self.store.cursor()

    def stored(self) -> int:
        [row] = Reader(self.store).query("SELECT count(*) AS n FROM spans").to_pylist()
        return int(row["n"])


@pytest.fixture
def collecting(small: Path) -> Iterator[Collecting]:
    opened = Collecting(small / "evidence.duckdb")
    yield opened
    opened.store.close()


def leave_free(directory: Path, size_bytes: int) -> Path:
    """Fill the filesystem but for so much; returns the file whose removal makes room again."""
    state = os.statvfs(directory)
    ballast = directory / "ballast"
    ballast.write_bytes(b"\0" * (state.f_bavail * state.f_frsize - size_bytes))
    return ballast


@pytest.mark.slow
def test_a_commit_on_a_full_disk_fails_cleanly_and_works_once_there_is_room(collecting: Collecting) -> None:
    collecting.write()
    ballast = leave_free(collecting.store.path.parent, 2_000_000)

    error = collecting.write_until_it_fails()

    assert is_out_of_space(error)
    assert not needs_reopen(error)
    assert not is_committed(error)
    assert collecting.stored() == collecting.acknowledged, "what was there is still answered"
    ballast.unlink()
    collecting.write()
    collecting.store.checkpoint()
    assert collecting.stored() == collecting.acknowledged


@pytest.mark.slow
def test_a_checkpoint_on_a_full_disk_ends_the_database_and_reopening_brings_it_back(collecting: Collecting) -> None:
    for _ in range(5):
        collecting.write()
    ballast = leave_free(collecting.store.path.parent, 100_000)

    with pytest.raises(StoreError, match="the checkpoint failed") as raised:
        collecting.store.checkpoint()

    assert is_out_of_space(raised.value)
    assert needs_reopen(raised.value)
    with pytest.raises(duckdb.Error) as again:
        collecting.write()
    assert needs_reopen(again.value)
    with pytest.raises(StoreError, match=r"evidence\.duckdb"):
        collecting.store.cursor()

    ballast.unlink()
    collecting.reopen()
    collecting.write()
    collecting.store.checkpoint()
    assert collecting.stored() == collecting.acknowledged == 6 * ROWS


@pytest.mark.slow
@pytest.mark.parametrize("free_bytes", [1_800_000, 2_500_000, 4_000_000])
def test_a_commit_whose_checkpoint_fails_stores_its_rows_if_it_says_so_and_not_otherwise(
    small: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int
) -> None:
    from collector.store import database

    monkeypatch.setitem(database._CONFIG, "checkpoint_threshold", "1MB")
    collecting = Collecting(small / "evidence.duckdb")
    collecting.write()
    ballast = leave_free(small, free_bytes)

    error = collecting.write_until_it_fails()

    assert is_out_of_space(error)
    assert needs_reopen(error)
    ballast.unlink()
    collecting.reopen()
    assert collecting.stored() == collecting.acknowledged
    collecting.write()
    assert collecting.stored() == collecting.acknowledged
    collecting.store.close()
    with Store.open_read_only(small / "evidence.duckdb") as store:
        assert Reader(store).query("SELECT * FROM spans").num_rows == collecting.acknowledged


@pytest.mark.slow
def test_a_store_that_cannot_be_reopened_says_why_until_it_can(collecting: Collecting) -> None:
    collecting.write()
    collecting.store.checkpoint()
    path = collecting.store.path
    aside = path.with_name("aside")
    path.rename(aside)
    path.mkdir()

    with pytest.raises(StoreError, match=r"evidence\.duckdb"):
        collecting.store.reopen()
    with pytest.raises(StoreError, match=r"evidence\.duckdb"):
        collecting.store.cursor()
    path.rmdir()
    aside.rename(path)
    collecting.reopen()

    collecting.write()
    assert collecting.stored() == collecting.acknowledged


JUDGEMENTS = {
    "out of space": is_out_of_space,
    "read-only": is_read_only,
    "stored": is_committed,
    "reopen": needs_reopen,
}


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ('Failed to commit: Could not write file "e.wal": No space left on device', {"out of space"}),
        ('Could not write file "e.wal": Disk quota exceeded', {"out of space"}),
        ('Cannot open file "e.wal": Read-only file system', {"read-only"}),
        ("Checkpoint failed. The database has been invalidated. No space left on device", {"out of space", "reopen"}),
        ("Transaction COMMIT succeeded and is durable, but the autocheckpoint failed. Detach.", {"stored", "reopen"}),
        ("Constraint Error: NOT NULL constraint failed: spans.name", set()),
    ],
)
def test_what_an_error_means(text: str, means: set[str]) -> None:
    error = duckdb.IOException(f"IO Error: {text}")

    assert {name for name, judge in JUDGEMENTS.items() if judge(error)} == means
    assert needs_reopen(duckdb.FatalException("anything"))


def write_span(store: Store) -> None:
    cursor = store.cursor()
    cursor.execute("INSERT INTO egress_allow VALUES (NULL, 'example.com', 443)")
    cursor.close()


def test_reopening_a_healthy_store_keeps_what_is_in_it_and_ends_older_cursors(tmp_path: Path) -> None:
    with Store.open(tmp_path / "evidence.duckdb") as store:
        write_span(store)
        older = store.cursor()
        store.reopen()

        assert Reader(store).query("SELECT * FROM egress_allow").num_rows == 1
        with pytest.raises(duckdb.Error) as raised:
            older.execute("SELECT * FROM egress_allow")
        assert needs_reopen(raised.value)
        write_span(store)
        assert Reader(store).query("SELECT * FROM egress_allow").num_rows == 2


def test_reopening_ends_a_running_question_and_waits_for_it(tmp_path: Path) -> None:
    with Store.open(tmp_path / "evidence.duckdb") as store:
        cursor = store.cursor()
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        cursor.execute("SELECT count(*) FROM spans").fetchall()
        started, failures = threading.Event(), []

        def ask() -> None:
            try:
                started.set()
                cursor.execute("SELECT count(*) FROM spans, range(100_000_000) a, range(100_000_000) b, egress_allow")
                cursor.execute(
                    "SELECT count(*) FROM range(100_000_000) a, range(100_000_000) b WHERE a.range = -b.range"
                )
            except duckdb.Error as e:
                failures.append(e)
            finally:
                cursor.close()

        thread = threading.Thread(target=ask)
        thread.start()
        assert started.wait(10)
        store.reopen()
        thread.join(10)

        assert not thread.is_alive()
        assert len(failures) == 1
        write_span(store)


def test_many_readers_ask_while_a_store_is_reopened(tmp_path: Path) -> None:
    with Store.open(tmp_path / "evidence.duckdb") as store:
        write_span(store)
        stop, wrong = threading.Event(), []

        def ask() -> None:
            while not stop.is_set():
                try:
                    if Reader(store).query("SELECT * FROM egress_allow").num_rows != 1:
                        wrong.append("a row is missing")
                except Exception as e:  # noqa: BLE001 looked at below
                    wrong.append(str(e))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            store.reopen()
        stop.set()
        for thread in threads:
            thread.join(10)

        expected = ("does not exist", "nterrupt", "closed", "No open result set")  # all of them: ended by the reopening
        assert [text for text in wrong if not any(phrase in text for phrase in expected)] == []
        assert Reader(store).query("SELECT * FROM egress_allow").num_rows == 1


def test_a_closed_store_is_not_reopened(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "evidence.duckdb")
    store.close()

    with pytest.raises(StoreError, match="closed"):
        store.reopen()


def removed(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    other = path.with_name("other")
    Store.open(other).close()
    other.rename(path)


@pytest.mark.parametrize("change", [removed, replaced])
def test_a_file_that_goes_away_under_the_store_is_made_anew_by_reopening(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    with Store.open(tmp_path / "evidence.duckdb") as store:
        store.checkpoint()
        change(store.path)
        assert not store.is_in_place()
        store.reopen()

        assert store.is_in_place()
        write_span(store)
        assert Reader(store).query("SELECT * FROM egress_allow").num_rows == 1

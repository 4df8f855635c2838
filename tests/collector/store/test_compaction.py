"""Compaction: the file gets smaller, keeps everything, and survives being killed at every moment."""

import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from collector.errors import StoreError
from collector.store import compaction
from collector.store.compaction import compact, remove_leftover, worth_it
from collector.store.database import ROW_GROUP_ROWS, Store
from collector.store.reader import Reader
from collector.store.sizes import Sizes

MIB = 1024 * 1024
LEFT = 50_000


def half_empty(path: Path) -> int:
    """A file most of which is free, in the middle of it; returns its size."""
    with Store.open(path) as store:
        cursor = store.cursor()
        cursor.execute("INSERT INTO egress_allow SELECT NULL, md5(range::VARCHAR), range FROM range(500_000)")
        cursor.execute("INSERT INTO ingest_errors SELECT range, 'otlp', 'a reason', 1 FROM range(50_000)")
        store.checkpoint()
        cursor.execute(f"DELETE FROM egress_allow WHERE port >= {LEFT}")
        store.checkpoint()
        cursor.close()
    return path.stat().st_size


def check(path: Path) -> None:
    """Everything is there, in its order."""
    with Store.open(path) as store:
        reader = Reader(store)
        rows = reader.query("SELECT destination = md5(port::VARCHAR) AS whole, port FROM egress_allow")
        assert rows.column("port").to_pylist() == list(range(LEFT))
        assert set(rows.column("whole").to_pylist()) == {True}
        [meta] = reader.query("SELECT count(*) AS n FROM meta WHERE key = 'schema_version'").to_pylist()
        assert meta["n"] == 1


@pytest.mark.slow
def test_a_compacted_file_is_smaller_keeps_its_rows_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "evidence.duckdb"
    large = half_empty(path)
    with Store.open(path) as store:
        older = store.cursor()
        compact(store)

        assert path.stat().st_size < large / 2
        assert store.is_in_place()
        with pytest.raises(duckdb.Error):
            older.execute("SELECT * FROM spans")
        store.cursor().execute(f"INSERT INTO egress_allow VALUES (NULL, md5('{LEFT}'), {LEFT})")
        store.cursor().execute(f"DELETE FROM egress_allow WHERE port = {LEFT}")
        tags = Reader(store).query("SELECT database_name, tags FROM duckdb_databases() WHERE NOT internal").to_pylist()
        assert [row["database_name"] for row in tags] == ["evidence"]
        assert dict(tags[0]["tags"])["storage_version"].startswith("v1.5.0")
        sizes = Reader(store).query("SELECT max(count) AS n FROM pragma_storage_info('egress_allow')").to_pylist()
        assert sizes == [{"n": ROW_GROUP_ROWS}]
    assert [p.name for p in tmp_path.iterdir()] == ["evidence.duckdb"]
    check(path)


KILLED = """
import os, signal, sys
from pathlib import Path
from collector.store import compaction, database
from collector.store.database import Store

path, moment = Path(sys.argv[1]), sys.argv[2]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def killing(module, name, *, after):
    original = getattr(module, name)
    def run(*arguments):
        if after:
            original(*arguments)
        die()
    setattr(module, name, run)

store = Store.open(path)
match moment:
    case "before the copy":
        killing(compaction, "_copy", after=False)
    case "within the copy":
        import threading
        def watch():
            copy = path.with_name(path.name + ".compact")
            while not copy.exists():
                pass
            die()
        threading.Thread(target=watch, daemon=True).start()
    case "before its checkpoint":
        killing(compaction, "_check_counts", after=True)
    case "after the copy":
        killing(compaction, "_copy", after=True)
    case "before the rename":
        killing(database, "_replace", after=False)
    case "after the rename":
        killing(database, "_replace", after=True)
compaction.compact(store)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "before the copy",
        "within the copy",
        "before its checkpoint",
        "after the copy",
        "before the rename",
        "after the rename",
    ],
)
def test_a_compaction_that_is_killed_leaves_one_whole_file(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "evidence.duckdb"
    half_empty(path)

    done = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], check=False, timeout=60)

    assert done.returncode == -signal.SIGKILL
    check(path)
    remove_leftover(path)
    check(path)
    with Store.open(path) as store:
        compact(store)
    assert [p.name for p in tmp_path.iterdir()] == ["evidence.duckdb"]
    check(path)


@pytest.mark.slow
def test_a_copy_that_fails_leaves_the_file_and_its_store_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "evidence.duckdb"
    half_empty(path)

    def fail(_: object) -> None:
        raise duckdb.IOException("No space left on device")

    monkeypatch.setattr(compaction, "_check_counts", fail)
    with Store.open(path) as store:
        with pytest.raises(StoreError, match="could not be compacted: No space left on device; it is as it was"):
            compact(store)
        assert Reader(store).query("SELECT * FROM egress_allow").num_rows == LEFT
        names = Reader(store).query("SELECT database_name FROM duckdb_databases() WHERE NOT internal").to_pylist()
        assert names == [{"database_name": "evidence"}]


def test_no_copy_is_begun_without_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("collector.store.compaction.shutil.disk_usage", lambda _: Usage)
    with Store.open(tmp_path / "evidence.duckdb") as store, pytest.raises(StoreError, match="1000 are free"):
        compact(store)
    assert not (tmp_path / "evidence.duckdb.compact").exists()


@pytest.mark.parametrize(
    ("file_mib", "free_mib", "limit_mib", "worth"),
    [
        (1000, 300, None, False),  # soon written again
        (1000, 600, None, True),
        (100, 90, None, False),  # not worth the wait
        (1000, 300, 900, True),  # above its limit
        (1000, 50, 900, False),  # compaction would not help
        (800, 300, 900, False),
    ],
)
def test_when_it_is_worth_it(file_mib: int, free_mib: int, limit_mib: int | None, *, worth: bool) -> None:
    sizes = Sizes(file_mib * MIB, free_mib * MIB, wal_bytes=0, journal_bytes=0)

    assert worth_it(sizes, None if limit_mib is None else limit_mib * MIB) is worth

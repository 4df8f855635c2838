"""A file that cannot be opened: each mistake and each damage has a message of its own, made with real files."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from collector.errors import StoreBusyError, StoreError
from collector.store.database import Store
from collector.store.reader import Reader

KILLED = """
import os, signal, sys
from collector.store.database import Store
cursor = Store.open(sys.argv[1]).cursor()
cursor.execute("INSERT INTO egress_allow SELECT NULL, 'host ' || range, 443 FROM range(5000)")
os.kill(os.getpid(), signal.SIGKILL)
"""

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "evidence.duckdb"


def filled(path: Path) -> bytes:
    """A file of some blocks, all of it checkpointed."""
    with Store.open(path) as store:
        store.cursor().execute("INSERT INTO egress_allow SELECT NULL, md5(range::VARCHAR), 443 FROM range(50_000)")
        store.checkpoint()
    return path.read_bytes()


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: b"SQLite format 3\0" + content[16:], "not a DuckDB file"),
        (lambda content: content[:4096], "damaged"),
        (lambda content: content[:12_288], "damaged"),
        (lambda content: content[: len(content) // 2], "damaged"),
        (lambda content: flipped(flipped(content, 4096 + 8), 8192 + 8), "damaged"),
    ],
    ids=["another magic", "one header", "headers only", "half of it", "both headers flipped"],
)
@pytest.mark.parametrize("opener", [Store.open, Store.open_read_only])
def test_a_damaged_file_is_refused_and_left_as_it_is(
    path: Path, opener: Callable[[Path], Store], damage: Callable[[bytes], bytes], says: str
) -> None:
    broken = damage(filled(path))
    path.write_bytes(broken)

    with pytest.raises(StoreError, match=says) as raised:
        opener(path)
    assert str(path) in str(raised.value)
    assert path.read_bytes() == broken


def test_a_file_of_a_newer_duckdb_says_so(path: Path) -> None:
    content = filled(path)
    at = content.index(b"DUCK") + 4  # after it, the storage version: 8 bytes, little-endian
    path.write_bytes(content[:at] + (9999).to_bytes(8, "little") + content[at + 8 :])

    with pytest.raises(StoreError, match=r"newer DuckDB|damaged") as raised:
        Store.open(path)
    assert str(path) in str(raised.value)


def test_the_wal_of_a_killed_collector_is_replayed(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.with_name(path.name + ".wal").stat().st_size > 0

    with Store.open(path) as store:
        assert Reader(store).query("SELECT * FROM egress_allow").num_rows == 5000


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_a_wal_that_ends_early_is_replayed_as_far_as_it_goes(path: Path, cut: int) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=60)
    wal = path.with_name(path.name + ".wal")
    wal.write_bytes(wal.read_bytes()[:-cut])

    with Store.open(path) as store:
        assert Reader(store).query("SELECT * FROM egress_allow").num_rows in {0, 5000}


@pytest.mark.slow
def test_a_wal_that_is_damaged_is_named(path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=60)
    wal = path.with_name(path.name + ".wal")
    wal.write_bytes(flipped(wal.read_bytes(), wal.stat().st_size // 2))

    with pytest.raises(StoreError, match=r"evidence\.duckdb\.wal.*cannot be replayed.*aside"):
        Store.open(path)
    wal.rename(path.with_name("aside"))
    with Store.open(path) as store:
        assert Reader(store).query("SELECT * FROM egress_allow").num_rows == 0


# --- permissions ----------------------------------------------------------------------------------------------------------

OPEN_AS_NOBODY = """
import os, sys
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
from collector.errors import StoreError
from collector.store.database import Store
try:
    Store.{opener}(sys.argv[1])
except StoreError as e:
    print(e)
else:
    print("opened")
"""


def opened_as_nobody(path: Path, opener: str) -> str:
    """What an unprivileged user is told."""
    code = OPEN_AS_NOBODY.format(nobody=NOBODY, opener=opener)
    # Imported before the user changes: the interpreter's own folders may be closed to them.
    code = "import duckdb, pyarrow\nfrom collector.store import database, migrations\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout, done.stderr
    return done.stdout.strip()


@pytest.fixture
def public() -> Iterator[Path]:
    """A path that everybody may get to: pytest's own folders are their owner's alone."""
    if os.geteuid() != 0:
        pytest.skip("only root may become somebody else")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name) / "evidence.duckdb"


@pytest.mark.slow
def test_a_file_that_may_not_be_written(public: Path) -> None:
    Store.open(public).close()
    public.chmod(0o444)

    assert "no permission" in opened_as_nobody(public, "open")
    assert opened_as_nobody(public, "open_read_only") == "opened"


@pytest.mark.slow
def test_a_file_that_may_not_even_be_read(public: Path) -> None:
    Store.open(public).close()
    public.chmod(0o000)

    assert "no permission" in opened_as_nobody(public, "open_read_only")


@pytest.mark.slow
def test_a_directory_where_no_file_may_be_made(public: Path) -> None:
    assert "no permission" in opened_as_nobody(public, "open")


@pytest.mark.slow
@pytest.mark.parametrize("opener", ["open", "open_read_only"])
def test_a_directory_that_may_not_be_entered(public: Path, opener: str) -> None:
    Store.open(public).close()
    public.parent.chmod(0o700)

    assert "Permission denied; check the path and the modes" in opened_as_nobody(public, opener)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="File name too long"):
        Store.open(tmp_path / ("x" * 300))


# --- filesystems ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small filesystem here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.slow
def test_a_filesystem_that_is_mounted_read_only(disk: Path) -> None:
    path = disk / "evidence.duckdb"
    filled(path)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

    with pytest.raises(StoreError, match=r"mounted read-only; remount it"):
        Store.open(path)
    with pytest.raises(StoreError, match=r"other\.duckdb.*[Rr]ead-only"):
        Store.open(disk / "other.duckdb")
    with Store.open_read_only(path) as store:
        assert Reader(store).query("SELECT * FROM egress_allow").num_rows == 50_000


@pytest.mark.slow
def test_a_disk_that_has_no_room_for_a_new_file(disk: Path) -> None:
    (disk / "ballast").write_bytes(b"\0" * (4 * 1024 * 1024 - 4096))

    with pytest.raises(StoreError, match=r"no space left"):
        Store.open(disk / "evidence.duckdb")
    (disk / "ballast").unlink()
    with Store.open(disk / "evidence.duckdb") as store:
        assert Reader(store).query("SELECT * FROM spans").num_rows == 0


# --- owners ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_collector_is_told_who_holds_the_file_and_harms_nothing(path: Path) -> None:
    code = (
        "import sys\nfrom collector.store.database import Store\nfrom collector.errors import StoreBusyError\n"
        "try:\n    Store.open(sys.argv[1])\nexcept StoreBusyError as e:\n    print(e)"
    )
    with Store.open(path) as store:
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, timeout=60
            )
            assert f"PID {os.getpid()}" in done.stdout
            with pytest.raises(StoreBusyError, match="already open in this process"):
                Store.open(path)
        store.cursor().execute("INSERT INTO egress_allow VALUES (NULL, 'a', 1)")
    with Store.open_read_only(path) as store:
        assert Reader(store).query("SELECT * FROM egress_allow").num_rows == 1


def test_a_version_of_the_tables_that_is_no_number_is_an_error(path: Path) -> None:
    Store.open(path).close()
    with duckdb.connect(str(path)) as other:
        other.execute("UPDATE meta SET value = 'two' WHERE key = 'schema_version'")

    with pytest.raises(StoreError, match="schema version two"):
        Store.open(path)

"""A new evidence file: killed at any moment of its making, there is either none or one that can be opened."""

import errno
import os
import sys
from pathlib import Path

import pytest

from collector.errors import StoreError
from collector.store.birth import make_whole
from collector.store.database import Store
from collector.store.reader import Reader


def stored(path: Path) -> int:
    with Store.open_read_only(path) as store:
        return int(Reader(store).query("SELECT * FROM spans").num_rows)


def test_a_new_file_leaves_nothing_else_behind(tmp_path: Path) -> None:
    Store.open(tmp_path / "evidence.duckdb").close()

    assert [path.name for path in tmp_path.iterdir()] == ["evidence.duckdb"]


@pytest.mark.parametrize("left", [b"", b"\0" * 4096, b"\0" * 8192])
def test_what_a_killed_process_left_half_made_is_made_again(tmp_path: Path, left: bytes) -> None:
    for suffix in (".new", ".new.wal"):
        (tmp_path / f"evidence.duckdb{suffix}").write_bytes(left)

    Store.open(tmp_path / "evidence.duckdb").close()

    assert [path.name for path in tmp_path.iterdir()] == ["evidence.duckdb"]
    assert stored(tmp_path / "evidence.duckdb") == 0


def test_a_killed_process_leaves_no_file_or_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "evidence"

    def is_killed(unfinished: Path) -> None:
        unfinished.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_whole(path, is_killed)
    assert not path.exists()


def test_who_was_faster_keeps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "evidence"

    def is_slow(unfinished: Path) -> None:
        unfinished.write_bytes(b"mine")
        path.write_bytes(b"theirs")

    make_whole(path, is_slow)

    assert path.read_bytes() == b"theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["evidence"]


def test_a_filesystem_without_links_has_a_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuses)
    Store.open(tmp_path / "evidence.duckdb").close()

    assert stored(tmp_path / "evidence.duckdb") == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a directory that takes no file is Linux's")
def test_a_directory_that_takes_no_file_is_a_store_error() -> None:
    with pytest.raises(StoreError, match="evidence"):
        Store.open(Path("/proc/evidence.duckdb"))

"""What a killed process had spilled is removed by the next one that writes."""

import logging
from pathlib import Path

import pytest

from collector.store.database import Store
from collector.store.spilled import forget_spilled, spill_folder

LEFT = ("duckdb_temp_3893_0_storage_S32K-0.tmp", "duckdb_temp_3893_0_owner", "duckdb_temp_storage-0.tmp")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "evidence.duckdb"
    Store.open(path).close()
    spill_folder(path).mkdir()
    for name in LEFT:
        (spill_folder(path) / name).write_bytes(b"x" * 1000)
    (spill_folder(path) / "notes.txt").write_text("somebody's own")
    return path


def left(path: Path) -> set[str]:
    return {file.name for file in spill_folder(path).iterdir()}


def test_who_opens_to_write_removes_it_and_nothing_else(path: Path) -> None:
    Store.open(path).close()
    assert left(path) == {"notes.txt"}


def test_who_only_reads_leaves_it(path: Path) -> None:
    """Other readers may have the file open, and spill there."""
    Store.open_read_only(path).close()
    assert left(path) == {*LEFT, "notes.txt"}


def test_what_cannot_be_removed_is_said_and_stops_nobody(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (spill_folder(path) / "duckdb_temp_folder").mkdir()
    with caplog.at_level(logging.WARNING):
        assert forget_spilled(path) == len(LEFT)
    assert "duckdb_temp_folder" in caplog.text
    Store.open(path).close()

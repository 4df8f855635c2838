"""A writer that is closed while it cannot write: it tries once more, and says what it leaves in the journal."""

from pathlib import Path

import duckdb
import pytest

from collector.errors import StoreError
from collector.store.database import Store
from collector.store.insert import Inserter
from collector.store.journal import Position
from collector.store.reader import Reader
from collector.store.writer import Writer
from tests.collector.store.evidence_rows import make_batch, make_row


def full_for(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """The disk takes nothing so many times; returns a list that grows with every try."""
    tries: list[int] = []
    insert = Inserter.insert

    def inserts(self, arrived):
        tries.append(1)
        if len(tries) <= times:
            raise duckdb.IOException("IO Error: No space left on device")
        return insert(self, arrived)

    monkeypatch.setattr(Inserter, "insert", inserts)
    return tries


def written(store: Store) -> Writer:
    writer = Writer(store)
    writer.append_journaled([{"spans": make_batch("spans", make_row("spans"))}], Position(1, 100))
    return writer


def test_room_that_was_made_before_closing_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = full_for(monkeypatch, 1)
    with Store.open(tmp_path / "evidence.duckdb") as store:
        written(store).close()

        assert len(tries) == 2
        assert Reader(store).query("SELECT * FROM spans").num_rows == 1


def test_what_stays_in_the_journal_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_for(monkeypatch, 1_000)
    with Store.open(tmp_path / "evidence.duckdb") as store:
        with pytest.raises(StoreError, match=r"No space left on device; acknowledged requests stay in the journal"):
            written(store).close()
        assert Reader(store).query("SELECT * FROM spans").num_rows == 0

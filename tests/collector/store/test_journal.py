"""What the journal promises: what `write` returned for is read again after any end of the process, in order, and once."""

import errno
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.errors import StoreError
from collector.store import journal as journal_module
from collector.store.database import Store
from collector.store.journal import START, Journal, Position, open_journal
from collector.store.writer import Writer
from tests.collector.store.evidence_rows import make_batch

REQUESTS = [(1, b"one"), (2, b""), (3, b"three" * 1000)]


def entries(folder, after=START, identity="x"):
    return [(e.received_unix_nano, e.payload) for e in Journal(folder, identity, after).replay()]


def segments(folder):
    return sorted(folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "evidence.duckdb.journal"


def test_what_was_written_is_read_again_in_order(folder):
    journal = Journal(folder, "x")
    assert journal.write(REQUESTS[:1]) < journal.write(REQUESTS[1:])
    assert entries(folder) == REQUESTS


def test_nothing_is_on_disk_before_the_first_request(folder):
    Journal(folder, "x").close()
    assert not folder.exists()


def test_what_is_in_the_tables_is_not_read_again(folder):
    journal = Journal(folder, "x")
    position = journal.write(REQUESTS[:2])
    journal.write(REQUESTS[2:])
    assert entries(folder, after=position) == REQUESTS[2:]


@settings(max_examples=60)
@given(cut=st.integers(min_value=1, max_value=3 * 16 + 5003), flip=st.booleans())
def test_a_torn_end_costs_only_what_is_torn(tmp_path_factory, cut, flip):
    """Cut off, or overwritten with other bytes, as a machine that loses power may leave it."""
    folder = tmp_path_factory.mktemp("torn") / "journal"
    journal = Journal(folder, "x")
    ends = [journal.write([request]).offset for request in REQUESTS]
    [segment] = segments(folder)
    size = segment.stat().st_size
    with segment.open("r+b") as file:
        if flip:
            file.seek(size - cut)
            byte = file.read(1)
            file.seek(size - cut)
            file.write(bytes([byte[0] ^ 0xFF]))
        else:
            file.truncate(size - cut)
    whole = [request for request, end in zip(REQUESTS, ends, strict=True) if end <= size - cut]
    assert entries(folder) == whole


def test_a_torn_end_is_said_aloud_and_later_requests_follow_it(folder, caplog):
    Journal(folder, "x").write(REQUESTS[:2])
    [segment] = segments(folder)
    os.truncate(segment, segment.stat().st_size - 1)
    Journal(folder, "x").write(REQUESTS[2:])
    with caplog.at_level(logging.WARNING):
        assert entries(folder) == [REQUESTS[0], REQUESTS[2]]
    assert "no whole record" in caplog.text


def test_another_files_journal_is_refused(folder):
    Journal(folder, "x").write(REQUESTS)
    with pytest.raises(StoreError, match=r"is not this evidence file's journal.*move .* away"):
        entries(folder, identity="y")


def test_full_segments_go_when_their_rows_are_in_the_tables(folder, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 100)
    journal = Journal(folder, "x")
    positions = [journal.write([(n, b"p" * 100)]) for n in range(4)]
    assert [p.segment for p in positions] == [1, 2, 3, 4]
    journal.release(positions[2])
    assert [int(s.name) for s in segments(folder)] == [3, 4]
    assert entries(folder, after=positions[2]) == [(3, b"p" * 100)]


def test_an_idle_journal_takes_no_room(folder, monkeypatch):
    monkeypatch.setattr(journal_module, "_WORTH_DELETING_BYTES", 1)
    journal = Journal(folder, "x")
    first = journal.write(REQUESTS)
    journal.retire()
    assert journal.size_bytes > 0, "it may be needed still"
    journal.release(first)
    journal.retire()
    assert journal.size_bytes == 0
    assert journal.write(REQUESTS) > first, "positions only grow"
    assert entries(folder, after=first) == REQUESTS


def test_closing_removes_what_is_not_needed_and_nothing_else(folder):
    journal = Journal(folder, "x")
    position = journal.write(REQUESTS)
    journal.close()
    assert entries(folder) == REQUESTS
    journal = Journal(folder, "x", position)
    journal.close()
    assert not folder.exists()


def test_a_write_that_fails_is_an_error_and_the_next_one_begins_anew(folder, monkeypatch):
    journal = Journal(folder, "x")
    journal.write(REQUESTS[:1])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", full)
        with pytest.raises(StoreError, match="No space left on device; free some space"):
            journal.write(REQUESTS[1:2])
    position = journal.write(REQUESTS[2:])
    assert position.segment == 2
    read = entries(folder)
    assert (read[0], read[-1]) == (REQUESTS[0], REQUESTS[2])


def test_a_position_survives_its_text():
    assert Position.parse(str(Position(7, 2**40))) == Position(7, 2**40)


def test_an_evidence_file_knows_its_journal_and_how_far_its_tables_have_come(tmp_path):
    path = tmp_path / "evidence.duckdb"
    with Store.open(path) as store:
        journal = open_journal(store)
        position = journal.write(REQUESTS)
        with Writer(store, on_commit=journal.release) as writer:
            writer.append_journaled([{"spans": make_batch("spans")}], position)
    with Store.open(path) as store:
        assert list(open_journal(store).replay()) == []
        assert store.cursor().execute("SELECT count(*) FROM spans").fetchone() == (1,)

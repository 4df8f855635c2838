"""What a crash leaves in a journal, and what is left of the journal after the next graceful stop."""

import time
from pathlib import Path

import pytest

from collector.otlp.synthetic import trace_request
from collector.receiver.ingest import Ingest, replay
from collector.store.database import Store
from collector.store.journal import Journal, Position, open_journal
from collector.store.writer import Writer


def payload(seed: int) -> bytes:
    made: bytes = trace_request(3, seed=seed).SerializeToString()
    return made


def crashed(folder: Path) -> Journal:
    """A journal with one request, as a process that was killed leaves it; the tables have not come to it."""
    journal = Journal(folder, "me")
    journal.write([(time.time_ns(), payload(1))])
    return journal


@pytest.mark.parametrize("tail", [b"", b"\0" * 7, b"\xff" * 400], ids=["whole", "half a head", "half a record"])
def test_half_a_record_keeps_no_journal_alive(tmp_path: Path, tail: bytes) -> None:
    folder = tmp_path / "journal"
    crashed(folder)
    [segment] = folder.iterdir()
    segment.write_bytes(segment.read_bytes() + tail)

    journal = Journal(folder, "me")
    [entry] = journal.replay()
    assert journal.end == entry.end
    journal.release(entry.end)
    journal.close()

    assert not folder.exists()


def test_a_segment_that_was_only_begun_keeps_no_journal_alive(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    crashed(folder)
    [segment] = folder.iterdir()
    (folder / f"{int(segment.name) + 1:010d}").write_bytes(segment.read_bytes()[:9])

    journal = Journal(folder, "me")
    [entry] = journal.replay()
    journal.release(entry.end)
    journal.close()

    assert not folder.exists()


def test_what_is_not_in_the_tables_stays(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    crashed(folder)
    unread = Journal(folder, "me")
    unread.close()
    assert len(list(Journal(folder, "me").replay())) == 1

    read = Journal(folder, "me")
    assert list(read.replay())
    read.close()
    assert len(list(Journal(folder, "me").replay())) == 1


def test_a_group_of_refusals_does_not_set_the_position_back(tmp_path: Path) -> None:
    path = tmp_path / "evidence.duckdb"
    for number, body in enumerate([payload(1), b"\xff" * 40]):
        with Store.open(path) as store:
            journal = open_journal(store)
            with Writer(store, on_commit=journal.release) as writer:
                assert replay(journal.replay(), writer) == 0
                ingest = Ingest(writer, (journal, writer))
                accepted = ingest.traces(body)
                ingest.close()
                assert (accepted.committed.exception() is None) == (number == 0)
            journal.close()
            row = store.cursor().execute("SELECT value FROM meta WHERE key = 'journal_position'").fetchone()
        assert row is not None
        assert Position.parse(row[0]) > Position(1, 0)

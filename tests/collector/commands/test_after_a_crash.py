"""What a crashed collector acknowledged and did not store: every reader of the file says so, and import brings it in."""

import subprocess
import time
from pathlib import Path

import pytest

from collector.client import open_source
from collector.commands import export, import_, scan, sql
from collector.otlp.synthetic import trace_request
from collector.store.database import Store
from collector.store.journal import Position, open_journal, unread

COUNT = "SELECT count(*) FROM spans"


def payload(seed: int) -> bytes:
    made: bytes = trace_request(3, seed=seed).SerializeToString()
    return made


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A file whose journal has two requests that the tables do not have."""
    path = tmp_path / "evidence.duckdb"
    with Store.open(path) as store:
        open_journal(store).write([(time.time_ns(), payload(1)), (time.time_ns(), payload(2))])
    return path


def journal(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def asked(path: Path) -> tuple[str, int]:
    source = open_source(str(path))
    try:
        return source.lacks, source.query(COUNT).item()
    finally:
        source.close()


def test_a_file_in_good_order_lacks_nothing(tmp_path: Path) -> None:
    Store.open(tmp_path / "evidence.duckdb").close()
    assert asked(tmp_path / "evidence.duckdb") == ("", 0)
    journal(tmp_path / "evidence.duckdb").mkdir()
    assert asked(tmp_path / "evidence.duckdb") == ("", 0)


def test_a_source_says_how_much_it_lacks_and_what_to_do(crashed: Path) -> None:
    lacks, spans = asked(crashed)

    assert spans == 0
    assert f"2 requests ({len(payload(1)) + len(payload(2)):,} bytes)" in lacks
    assert f"`provenance import --into {crashed}`" in lacks
    assert "evidence.duckdb.journal/" in lacks


def test_half_a_record_is_not_counted_and_nothing_is_logged_of_it(
    crashed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [segment] = journal(crashed).iterdir()
    segment.write_bytes(segment.read_bytes()[:-1])

    assert asked(crashed)[0].startswith("1 request (")
    assert caplog.records == []


def test_what_is_in_the_tables_is_not_counted(crashed: Path) -> None:
    with Store.open(crashed) as store:
        [first, _] = open_journal(store).replay()
        store.cursor().execute("UPDATE meta SET value = ? WHERE key = 'journal_position'", [str(first.end)])
        assert unread(store).requests == 1
        store.cursor().execute("UPDATE meta SET value = ? WHERE key = 'journal_position'", [str(Position(9, 0))])
        assert unread(store).requests == 0


def test_another_files_journal_is_said_to_be_one(crashed: Path) -> None:
    with Store.open(crashed) as store:
        store.cursor().execute("UPDATE meta SET value = 'another' WHERE key = 'journal_id'")
    lacks, spans = asked(crashed)

    assert "not this evidence file's journal" in lacks
    assert spans == 0
    assert import_.main(["--into", str(crashed)]) == 2


@pytest.mark.parametrize(
    ("command", "argv"),
    [(scan, []), (sql, [COUNT]), (export, ["--format", "otlp-json"])],
    ids=["scan", "sql", "export"],
)
def test_commands_that_read_say_it_on_stderr(
    crashed: Path, command: object, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(crashed), *argv]) == 0  # type: ignore[attr-defined]
    captured = capsys.readouterr()

    assert "2 requests" in captured.err
    assert "requests (" not in captured.out


def test_import_without_files_brings_it_in_once(crashed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_.main(["--into", str(crashed)]) == 0
    assert "2 requests that a collector acknowledged and had not stored" in capsys.readouterr().err
    assert asked(crashed) == ("", 6)
    assert not journal(crashed).exists()

    assert import_.main(["--into", str(crashed)]) == 0
    assert "all that a collector acknowledged is in it" in capsys.readouterr().err
    assert asked(crashed) == ("", 6)


def test_import_of_a_file_brings_the_journal_in_first_and_counts_its_own_alone(
    crashed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.pb"
    other.write_bytes(payload(2))  # the same spans: what the journal has is there before
    more = tmp_path / "more.pb"
    more.write_bytes(payload(3))

    assert import_.main([str(other), str(more), "--into", str(crashed)]) == 0
    said = capsys.readouterr().err
    assert "3 spans from 2 sources" in said
    assert "3 were there already" in said
    assert asked(crashed) == ("", 9)


def test_a_collector_that_comes_after_an_import_goes_on_behind_it(crashed: Path) -> None:
    assert import_.main(["--into", str(crashed)]) == 0
    with Store.open(crashed) as store:
        first = open_journal(store)
        assert list(first.replay()) == []
        first.write([(time.time_ns(), payload(4))])
    assert asked(crashed)[0].startswith("1 request (")
    assert import_.main(["--into", str(crashed)]) == 0
    assert asked(crashed) == ("", 9)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--into", "http://127.0.0.1:9"], "nothing to import"),
        (["--into", "nosuch.duckdb"], "--into nosuch.duckdb: no such file"),
    ],
)
def test_nothing_to_import_makes_no_file(
    argv: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert import_.main(argv) == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_may_not_be_read_is_said_to_be_one(crashed: Path) -> None:
    subprocess.run(["rm", "-r", str(journal(crashed))], check=True)
    journal(crashed).mkdir()
    (journal(crashed) / "0000000001").mkdir()
    assert "cannot be read: Is a directory" in asked(crashed)[0]

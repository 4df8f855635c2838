"""`provenance sql`: data on stdout, everything else on stderr, and exit codes that a script can use."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from collector.commands.sql import main
from collector.store.database import Store


@pytest.fixture
def db(tmp_path: Path) -> str:
    path = tmp_path / "evidence.duckdb"
    Store.open(path).close()
    return str(path)


def test_an_answer_goes_to_stdout(db: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([db, "SELECT 1 AS a, 'x' AS b"]) == 0

    captured = capsys.readouterr()
    assert captured.out == "a  b\n-  -\n1  x\n"
    assert captured.err == ""


@pytest.mark.parametrize(
    ("format_", "printed"),
    [("json", '[\n  {"a": 1}\n]\n'), ("ndjson", '{"a": 1}\n'), ("csv", "a\n1\n"), ("table", "a\n-\n1\n")],
)
def test_formats(db: str, capsys: pytest.CaptureFixture[str], format_: str, printed: str) -> None:
    assert main([db, "SELECT 1 AS a", "--format", format_]) == 0
    assert capsys.readouterr().out == printed


def test_sql_from_stdin(db: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT count(*) AS n\nFROM spans;\n"))

    assert main([db, "-", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"n": 0}]


def test_a_refused_query_exits_2(db: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([db, "DROP TABLE spans"]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("provenance sql: only SELECT is answered here")


def test_a_recorded_value_in_an_error_cannot_drive_the_terminal(db: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([db, "SELECT CAST(chr(27) || ']0;owned' || chr(7) || chr(13) AS INTEGER)"]) == 2

    error = capsys.readouterr().err
    assert "\\x1b]0;owned\\x07\\x0d" in error
    assert not {"\x1b", "\x07", "\r"} & set(error)


def test_an_error_of_several_lines_keeps_them(db: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([db, "SELECT nosuch FROM spans"]) == 2
    assert "!\nCandidate bindings: " in capsys.readouterr().err


def test_a_missing_file_exits_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nosuch.duckdb"), "SELECT 1"]) == 3
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["x"], ["x", "SELECT 1", "--format", "xml"], ["x", "SELECT 1", "--nosuch"]])
def test_usage_exits_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(db: str) -> None:
    code = "import sys; from collector.commands.sql import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, db, "SELECT range AS n FROM range(300000)", "--format", "csv"]
    read, write = os.pipe()
    with subprocess.Popen(argv, stdout=write, stderr=subprocess.PIPE, text=True) as process:
        os.close(write)
        assert os.read(read, 2) == b"n\n"
        os.close(read)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")

"""Compiled statements between processes: compiled once, never taken from another generation or from a damaged file, never in the way."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from collector import statement_files
from collector.forensics import statements
from collector.forensics.tables import Window, spans
from collector.statement_files import GENERATIONS, StatementFiles, default_folder


def never() -> str:
    raise AssertionError("it was compiled again")


def counted(sql: str, calls: list[str]) -> Callable[[], str]:
    def compiled() -> str:
        calls.append(sql)
        return sql

    return compiled


def test_a_statement_is_compiled_once_for_all_processes(tmp_path: Path) -> None:
    sql = "SELECT '\ue000service\ue000',\r\n 'ü' -- end"
    assert StatementFiles(tmp_path, "a").recall("key", lambda: sql) == sql
    assert StatementFiles(tmp_path, "a").recall("key", never) == sql


def test_another_key_and_another_generation_are_other_statements(tmp_path: Path) -> None:
    StatementFiles(tmp_path, "a").recall("key", lambda: "SELECT 1")
    assert StatementFiles(tmp_path, "a").recall("other", lambda: "SELECT 2") == "SELECT 2"
    assert StatementFiles(tmp_path, "b").recall("key", lambda: "SELECT 3") == "SELECT 3"


@pytest.mark.parametrize("damage", [b"", b"SELECT 1", b"\xff\xfe\n", b"0" * 32 + b"\nSELECT 2"])
def test_a_damaged_file_is_written_anew(tmp_path: Path, damage: bytes) -> None:
    StatementFiles(tmp_path, "a").recall("key", lambda: "SELECT 1")
    [file] = (tmp_path / "a").iterdir()
    file.write_bytes(damage)
    assert StatementFiles(tmp_path, "a").recall("key", lambda: "SELECT 1") == "SELECT 1"
    assert StatementFiles(tmp_path, "a").recall("key", never) == "SELECT 1"


def test_a_directory_that_cannot_be_made_costs_time_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    calls: list[str] = []
    files = StatementFiles(tmp_path / "file", "a")
    assert [files.recall("key", counted("SELECT 1", calls)) for _ in range(2)] == ["SELECT 1"] * 2
    assert len(calls) == 2


def test_only_the_newest_generations_stay(tmp_path: Path) -> None:
    for number in range(GENERATIONS + 3):
        StatementFiles(tmp_path, f"g{number}").recall("key", lambda: "SELECT 1")
        os.utime(tmp_path / f"g{number}", (number, number))
    assert len(list(tmp_path.iterdir())) == GENERATIONS
    assert (tmp_path / f"g{GENERATIONS + 2}").exists()


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"PROVENANCE_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a/statements")),
        ({"PROVENANCE_CACHE_DIR": "", "XDG_CACHE_HOME": "/b"}, None),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/mesh-provenance/statements")),
        ({"XDG_CACHE_HOME": "not/absolute"}, Path.home() / ".cache/mesh-provenance/statements"),
        ({}, Path.home() / ".cache/mesh-provenance/statements"),
    ],
)
def test_where_statements_are_kept(environ: dict[str, str], folder: Path | None) -> None:
    assert default_folder(environ) == folder


def test_nothing_is_kept_under_a_name_that_does_not_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("collector.statement_files.of_user", lambda: StatementFiles(tmp_path, "a"))
    statements.compiled_once(lambda window: window.of(spans()), Window(1))
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_older_than_its_source_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would leave what it compiles under the name of source that it does not run."""
    monkeypatch.setattr(statement_files, "_IMPORTED", Path(statement_files.__file__).stat().st_mtime - 1)
    assert statement_files.of_user.__wrapped__().recall("key of this test", lambda: "SELECT 1") == "SELECT 1"
    assert statement_files.of_user.__wrapped__().recall("key of this test", lambda: "SELECT 2") == "SELECT 2"


@pytest.mark.slow
def test_a_second_process_reads_what_the_first_compiled(tmp_path: Path) -> None:
    program = (
        "from collector.forensics import statements, stages\n"
        "from collector.forensics.edges import edges_sql\n"
        "from collector.forensics.tables import Window\n"
        "import sys\n"
        "compiled = []\n"
        "compile_sql = statements.compile_sql\n"
        "statements.compile_sql = lambda e: compiled.append(e) or compile_sql(e)\n"
        "sql = edges_sql(Window(5, 7))\n"
        "print(len(compiled), sql)\n"
    )
    environ = os.environ | {"PROVENANCE_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
        ).stdout.split(" ", 1)
        for _ in range(2)
    )
    assert (first[0], second[0]) == ("1", "0")
    assert first[1] == second[1]

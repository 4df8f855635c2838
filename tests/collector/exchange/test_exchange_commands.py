"""`provenance import` and `provenance export`: exit codes, what is told, and files that are whole or not there."""

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from collector.commands import import_
from collector.errors import SourceUnreachableError
from collector.exchange import exporting
from collector.exchange.exporting import json_line
from collector.otlp.synthetic import START_UNIX_NANO, trace_request
from collector.store.database import Store
from tests.collector.exchange.exchange_helpers import append, append_request, rows, run_export, run_import
from tests.collector.store.evidence_rows import make_batch


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "evidence.duckdb"
    append_request(path, trace_request(16).SerializeToString())
    return path


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def spans_in(text: str) -> list[dict[str, object]]:
    return [
        span
        for request in lines(text)
        for resource in request["resourceSpans"]  # type: ignore[attr-defined]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


@pytest.mark.slow
def test_stdout_is_the_default_and_has_data_alone(db: Path) -> None:
    script = "import sys; from collector.commands.export import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", script, str(db), "--format", "otlp-json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)

    assert len(spans_in(done.stdout)) == 16
    assert done.stderr == "provenance export: 16 spans\n"


def test_a_trace_and_a_time_range(db: Path, tmp_path: Path) -> None:
    trace_id = rows(db, "SELECT trace_id FROM spans LIMIT 1")[0]["trace_id"]
    out = tmp_path / "out.jsonl"
    assert run_export(db, "--format", "otlp-json", "--trace", trace_id.upper(), "--out", out) == 0
    assert {s["traceId"] for s in spans_in(out.read_text())} == {trace_id.replace("-", "")}

    seconds = START_UNIX_NANO // 10**9
    assert seconds * 10**9 == START_UNIX_NANO
    range_ = ["--since", "2025-11-23T01:00:00.004Z", "--until", "2025-11-23T01:00:00.006Z"]
    assert run_export(db, "--format", "otlp-json", *range_, "--out", out, "--force") == 0
    assert sorted(int(str(s["startTimeUnixNano"])) - START_UNIX_NANO for s in spans_in(out.read_text())) == [
        4_000_000,
        5_000_000,
    ]


def test_what_has_no_place_in_otlp_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(tmp_path / "db", {name: make_batch(name) for name in ("proxy_records", "egress_allow")})
    assert run_export(tmp_path / "db", "--format", "otlp-json", "--out", tmp_path / "o") == 0
    assert "not in OTLP: 1 rows of proxy_records, 1 rows of egress_allow" in capsys.readouterr().err


def test_ids_in_parquet_are_hex_text(db: Path, tmp_path: Path) -> None:
    assert run_export(db, "--format", "parquet", "--out", tmp_path / "out") == 0
    [row, *_] = pq.read_table(tmp_path / "out" / "spans.parquet").to_pylist()
    [stored, *_] = rows(db, "SELECT trace_id, span_id FROM spans")
    assert row["trace_id"] == stored["trace_id"].replace("-", "")
    assert row["span_id"] == f"{stored['span_id']:016x}"


def test_importing_an_export_of_proxy_records_twice_keeps_them_once(tmp_path: Path) -> None:
    tables = ("proxy_records", "ingest_errors", "egress_allow", "access_logs")
    append(tmp_path / "one", {name: make_batch(name) for name in tables})
    assert run_export(tmp_path / "one", "--format", "parquet", "--out", tmp_path / "out") == 0
    for _ in range(2):
        assert run_import(tmp_path / "out", "--into", tmp_path / "two") == 0
    for name in tables:
        assert rows(tmp_path / "two", f"SELECT count(*) AS n FROM {name}") == [{"n": 1}]


def test_damaged_parquet_is_named(db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_export(db, "--format", "parquet", "--out", tmp_path / "out") == 0
    spans = tmp_path / "out" / "spans.parquet"
    data = spans.read_bytes()
    spans.write_bytes(data[: len(data) // 2])
    assert run_import(tmp_path / "out", "--into", tmp_path / "two") == 2
    assert "spans.parquet cannot be read as Parquet" in capsys.readouterr().err


def test_foreign_parquet_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    assert run_import(tmp_path / "a.parquet", "--into", tmp_path / "two") == 2
    assert "not written by `provenance export" in capsys.readouterr().err


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format_", "out"), [("otlp-json", "out.jsonl"), ("parquet", "out")])
def test_what_is_there_is_replaced_only_by_force(
    db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format_: str, out: str
) -> None:
    argv = [db, "--format", format_, "--out", tmp_path / out]
    assert [run_export(*argv), run_export(*argv), run_export(*argv, "--force")] == [0, 2, 0]
    assert f"{tmp_path / out} exists: --force replaces it" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([db.name, out])


def test_force_replaces_no_directory_that_is_not_an_export(db: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    assert run_export(db, "--format", "parquet", "--out", tmp_path / "home", "--force") == 2
    assert (tmp_path / "home" / "thesis.txt").exists()


@pytest.mark.parametrize(("format_", "out"), [("otlp-json", "out.jsonl.gz"), ("parquet", "out")])
def test_an_export_that_fails_leaves_nothing(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str, out: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SourceUnreachableError("the collector went away")

    monkeypatch.setattr(exporting, "plan_pages", refuse)
    assert run_export(db, "--format", format_, "--out", tmp_path / out) == 3
    assert [p.name for p in tmp_path.iterdir()] == [db.name]


def test_a_directory_that_does_not_exist_is_told(db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_export(db, "--format", "otlp-json", "--out", tmp_path / "no" / "out") == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "db"
    append_request(path, trace_request(3000).SerializeToString())
    script = "import sys; from collector.commands.export import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", script, str(path), "--format", "otlp-json"]
    read, write = os.pipe()
    with subprocess.Popen(argv, stdout=write, stderr=subprocess.PIPE, text=True) as process:
        os.close(write)
        assert os.read(read, 2) == b'{"'
        os.close(read)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


# --- usage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--format", "parquet"], "name it with --out DIR"),
        (["--format", "otlp-json", "--trace", "xyz"], "a trace id has 32 hex digits"),
        (["--format", "otlp-json", "--since", "yesterday"], "is no time"),
        (["--format", "otlp-json", "--since", "1h", "--until", "2h"], "--since is not before --until"),
    ],
)
def test_wrong_options_exit_2(db: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    assert run_export(db, *argv) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_a_source_that_is_not_there_exits_3(tmp_path: Path) -> None:
    assert run_export(tmp_path / "nosuch", "--format", "otlp-json") == 3


def test_a_store_that_is_held_says_by_whom(db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f").write_bytes(json_line(trace_request(1)))
    with Store.open(db):
        assert run_import(tmp_path / "f", "--into", db) == 2
    assert "collector" in capsys.readouterr().err


def test_no_collector_there_exits_3(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(json_line(trace_request(1)))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert run_import(tmp_path / "f", "--into", url) == 3


def test_progress_is_for_terminals(db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f").write_bytes(json_line(trace_request(1)))
    assert run_import(tmp_path / "f", "--into", tmp_path / "d") == 0
    assert "\r" not in capsys.readouterr().err

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    times = iter([0.0, 0.0, 0.1, 2.0, 2.1])
    stream = Terminal()
    progress = import_._Progress(stream, lambda: next(times), is_shown=True)
    from collector.exchange.importing import Source as File

    with progress.of(File("traces\x1b.jsonl", 4_000_000)):
        progress(500_000, 10)
        progress(1_000_000, 2_000)
    assert stream.getvalue() == "\rtraces\\x1b.jsonl  25 %  1 of 4 MB  2,000 spans  1,000 spans/s\x1b[K\r\x1b[K"


def test_both_commands_teach(capsys: pytest.CaptureFixture[str]) -> None:
    for run in (run_import, run_export):
        with pytest.raises(SystemExit) as left:
            run("--help")
        assert left.value.code == 0
        out = capsys.readouterr().out
        assert "examples:" in out
        assert "exit codes:" in out

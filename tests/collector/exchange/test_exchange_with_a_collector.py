"""A collector that runs: traces are sent to it, and exported from it."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.client import open_source
from collector.exchange.exporting import framed
from collector.otlp.synthetic import trace_request
from tests.collector.exchange.exchange_helpers import rows, run_export, run_import, span_tables

DEADLINE = 60


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[str]:
    """The URL of a collector with its file at `live.duckdb`; stopped at the end, so that the file is free."""
    ready = tmp_path / "ready"
    script = "import sys; from collector.commands.collect import main; sys.exit(main(sys.argv[1:]))"
    argv = ["--db", "live.duckdb", "--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready)]
    with subprocess.Popen([sys.executable, "-c", script, *argv], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + DEADLINE
            while not ready.exists():
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.02)
            yield f"http://127.0.0.1:{json.loads(ready.read_text())['http_port']}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE)


def wait_for_spans(url: str, count: int) -> None:
    """What is acknowledged is durable at once, and visible soon."""
    source = open_source(url)
    until = time.monotonic() + DEADLINE
    while source.query("SELECT count(*) AS n FROM spans").item() < count:
        assert time.monotonic() < until
        time.sleep(0.02)
    source.close()


@pytest.mark.slow
def test_what_is_sent_to_a_collector_is_exported_from_it(
    tmp_path: Path, collector: str, capsys: pytest.CaptureFixture[str]
) -> None:
    request = trace_request(500)
    request.resource_spans[0].scope_spans[0].spans.add(trace_id=b"t" * 16, name="without a span id, but long enough")
    (tmp_path / "f.pb").write_bytes(framed(request))

    assert run_import(tmp_path / "f.pb", "--into", collector) == 0
    told = capsys.readouterr().err
    assert "500 spans from 1 source (otlp-proto)" in told
    assert "1 skipped: span: " in told

    wait_for_spans(collector, 500)
    assert run_export(collector, "--format", "parquet", "--out", tmp_path / "out") == 0
    assert run_export(collector, "--format", "otlp-json", "--out", tmp_path / "out.jsonl.gz") == 0
    for out in ("out", "out.jsonl.gz"):
        assert run_import(tmp_path / out, "--into", tmp_path / f"{out}.duckdb") == 0
        assert rows(tmp_path / f"{out}.duckdb", "SELECT count(*) AS n FROM spans") == [{"n": 500}]
    one, other = (span_tables(tmp_path / f"{out}.duckdb", received_too=False) for out in ("out", "out.jsonl.gz"))
    assert one == other


@pytest.mark.slow
def test_a_parquet_export_is_not_for_a_collector(
    tmp_path: Path, collector: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f.pb").write_bytes(framed(trace_request(3)))
    assert run_import(tmp_path / "f.pb", "--into", tmp_path / "db") == 0
    assert run_export(tmp_path / "db", "--format", "parquet", "--out", tmp_path / "out") == 0
    assert run_import(tmp_path / "out", "--into", collector) == 2
    assert "spans of Parquet can then be exported as OTLP" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_that_a_collector_holds_is_refused_with_its_url_as_the_way_out(
    tmp_path: Path, collector: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collector
    (tmp_path / "f.pb").write_bytes(framed(trace_request(3)))
    assert run_import(tmp_path / "f.pb", "--into", tmp_path / "live.duckdb") == 2
    assert "is held by another process" in capsys.readouterr().err

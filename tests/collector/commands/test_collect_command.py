"""`provenance collect` as a process of its own: what it acknowledged is there, whatever ended it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.client import open_source
from collector.commands.collect import main, parse, parse_access_log
from collector.errors import ConfigError
from collector.store.database import Store

DEADLINE = 60
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

# --- the command line -----------------------------------------------------------------------------------------------------


def test_access_logs() -> None:
    log = parse_access_log("checkout:inbound=/var/log/a=b.json")

    assert (log.service_name, log.direction, str(log.path)) == ("checkout", "inbound", "/var/log/a=b.json")
    assert parse_access_log("checkout=a.json").direction is None


@pytest.mark.parametrize("text", ["", "checkout", "=x", "checkout=", ":inbound=x", "checkout:sideways=x"])
def test_access_logs_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--access-log"):
        parse_access_log(text)


def test_one_file_has_one_workload() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        parse(["--db", "x", "--access-log", "a=log", "--access-log", "b=./log"])


@pytest.mark.parametrize(
    "argv", [[], ["--db"], ["--db", "x", "--grpc-port", "70000"], ["--db", "x", "--http-port", "-1"]]
)
def test_usage_exits_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(argv)
    assert left.value.code == 2


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    for word in ("OTEL_EXPORTER_OTLP_ENDPOINT", "--access-log", "--policy", "no authentication", "exit codes"):
        assert word in text


def ran(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """`main` without leaving its signal handlers behind."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return main(argv)


def test_a_port_in_use_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flags in (["--http-port", port, "--grpc-port", "0"], ["--grpc-port", port, "--http-port", "0"]):
            assert ran(["--db", str(tmp_path / "evidence.duckdb"), *flags], monkeypatch) == 2
            assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_bad_files_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("not a database")
    (tmp_path / "bad.toml").write_text("[egress]\nallow = [5]")
    ports = ["--grpc-port", "0", "--http-port", "0"]
    for flags, complaint in (
        (["--db", str(tmp_path / "text")], "not a DuckDB file"),
        (["--db", str(tmp_path / "nowhere" / "x")], "does not exist"),
        (["--db", str(tmp_path / "a"), "--policy", str(tmp_path / "bad.toml")], "egress.allow[0]"),
        (["--db", str(tmp_path / "a"), "--policy", str(tmp_path / "nosuch.toml")], "cannot be read"),
        (["--db", str(tmp_path / "a"), "--ready-file", str(tmp_path / "nowhere" / "x")], "--ready-file"),
    ):
        assert ran([*flags, *ports], monkeypatch) == 2
        assert complaint in capsys.readouterr().err


# --- the process ----------------------------------------------------------------------------------------------------------


@dataclass
class Collector:
    process: subprocess.Popen[str]
    url: str
    grpc: str
    db: Path
    ready: Path

    def export(self, *names: str) -> None:
        """Returns once the collector has acknowledged the spans."""
        with grpc.insecure_channel(self.grpc) as channel:
            export = channel.unary_unary(EXPORT, request_serializer=bytes, response_deserializer=bytes)
            export(request(*names), timeout=DEADLINE, wait_for_ready=True)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)


def request(*names: str) -> bytes:
    message = ExportTraceServiceRequest()
    resource_spans = message.resource_spans.add()
    resource_spans.resource.attributes.add(key="service.name").value.string_value = "checkout"
    spans = resource_spans.scope_spans.add().spans
    for name in names:
        spans.add(
            trace_id=os.urandom(16),
            span_id=os.urandom(8),
            name=name,
            kind=2,
            start_time_unix_nano=1,
            end_time_unix_nano=2,
        )
    payload: bytes = message.SerializeToString()
    return payload


class Starter:
    """Starts collectors on one database, and kills what a failing test left running."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, *flags: str) -> Collector:
        db, ready = self.directory / "evidence.duckdb", self.directory / "ready.json"
        ready.unlink(missing_ok=True)
        argv = ["--db", str(db), "--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready), *flags]
        code = "import sys; from collector.commands.collect import main; sys.exit(main(sys.argv[1:]))"
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, *argv], stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        deadline = time.monotonic() + DEADLINE
        while not ready.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        told = json.loads(ready.read_text())
        assert told["pid"] == process.pid
        assert told["database"] == str(db)
        url, address = f"http://127.0.0.1:{told['http_port']}", f"127.0.0.1:{told['grpc_port']}"
        return Collector(process, url, address, db, ready)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    for process in starter.started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=DEADLINE)


def stored(db: Path, sql: str) -> list[object]:
    source = open_source(str(db))
    try:
        return source.query(sql).to_series().to_list()
    finally:
        source.close()


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(start: Starter) -> None:
    for round_ in range(3):
        collector = start()
        collector.export(f"span {round_}", f"other {round_}")
        assert collector.stop(signal.SIGKILL) == -signal.SIGKILL

        names = stored(collector.db, "SELECT name FROM spans ORDER BY name")
        assert names == sorted(f"{kind} {n}" for kind in ("other", "span") for n in range(round_ + 1))
    assert stored(collector.db, "SELECT service_name FROM resources") == ["checkout"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(start: Starter, tmp_path: Path, number: signal.Signals) -> None:
    log, policy = tmp_path / "access.log", tmp_path / "provenance.toml"
    policy.write_text('[egress]\nallow = ["a.example:443"]')
    collector = start("--access-log", f"checkout:inbound={log}", "--policy", str(policy))
    collector.export("over grpc")
    headers = {"content-type": "application/x-protobuf"}
    posted = httpx.post(f"{collector.url}/v1/traces", content=request("over http"), headers=headers, timeout=DEADLINE)
    assert posted.status_code == 200
    log.write_text('{"start_time": "2026-01-01T00:00:00Z", "path": "/last"}\n')

    assert collector.stop(number) == 0

    assert not collector.ready.exists()
    assert not Path(f"{collector.db}.wal").exists()
    assert stored(collector.db, "SELECT name FROM spans ORDER BY name") == ["over grpc", "over http"]
    assert stored(collector.db, "SELECT path FROM proxy_records") == ["/last"]
    assert stored(collector.db, "SELECT destination FROM egress_allow") == ["a.example"]
    said = collector.process.communicate()[1]
    assert "OTLP/gRPC on 127.0.0.1:" in said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_a_restarted_collector_reads_each_access_log_line_once(start: Starter, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_text('{"start_time": "2026-01-01T00:00:00Z", "path": "1"}\n')
    flags = ("--access-log", f"checkout={log}")
    assert start(*flags).stop() == 0
    with log.open("a") as file:
        file.write('{"start_time": "2026-01-01T00:00:00Z", "path": "2"}\n')
    collector = start(*flags)
    assert collector.stop() == 0

    assert stored(collector.db, "SELECT path FROM proxy_records ORDER BY path") == ["1", "2"]


@pytest.mark.slow
def test_a_running_collector_answers_and_ends_with_a_query_under_way(start: Starter) -> None:
    collector = start()
    collector.export("seen")
    source = open_source(collector.url)
    assert source.query("SELECT name FROM spans").item() == "seen"
    with httpx.Client(timeout=DEADLINE) as http:
        assert http.get(f"{collector.url}/api/v1/status").json()["spans"] == 1
    endless = b'{"sql": "SELECT count(*) FROM range(1000000000000) a, range(1000) b"}'
    host, port = collector.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /api/v1/query HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(endless)}"
        client.sendall(head.encode() + b"\r\n\r\n" + endless)
        assert collector.stop() == 0
    source.close()


@pytest.mark.slow
def test_a_second_collector_on_the_same_file_is_refused(
    start: Starter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = start()

    assert ran(["--db", str(collector.db), "--grpc-port", "0", "--http-port", "0"], monkeypatch) == 2
    assert f"PID {collector.process.pid}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_policy_stays_until_another_replaces_it(start: Starter, tmp_path: Path) -> None:
    policy = tmp_path / "provenance.toml"
    policy.write_text('[egress]\nallow = ["a.example"]')
    assert start("--policy", str(policy)).stop() == 0
    collector = start()
    assert collector.stop() == 0
    assert stored(collector.db, "SELECT destination FROM egress_allow") == ["a.example"]
    policy.write_text("[egress]\nallow = []")
    assert start("--policy", str(policy)).stop() == 0
    assert stored(collector.db, "SELECT destination FROM egress_allow") == [""]
    Store.open(collector.db).close()

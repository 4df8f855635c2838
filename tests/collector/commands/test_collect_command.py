"""`provenance collect` as a process of its own: what it acknowledged is there, whatever ended it."""

import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.client import Access, Source, open_source
from collector.commands.collect import log_files, main
from collector.errors import ConfigError
from collector.settings import Settings
from collector.store.database import Store
from tests.collector.receiver.guarded_collector import WRITE, Files

DEADLINE = 60
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

# --- the command line -----------------------------------------------------------------------------------------------------


def test_access_logs() -> None:
    [log, other] = log_files(Settings(access_log=("checkout:inbound=/var/log/a=b.json", "checkout=a.json")))

    assert (log.service_name, log.direction, str(log.path)) == ("checkout", "inbound", "/var/log/a=b.json")
    assert other.direction is None


def test_one_file_has_one_workload() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        log_files(Settings(access_log=("a=log", "b=./log")))


@pytest.mark.parametrize(
    "text", ["", "checkout", "=x", "checkout=", ":inbound=x", "checkout:sideways=x", "checkout:=x"]
)
def test_access_logs_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--db", "x", f"--access-log={text}"]) == 2
    assert "--access-log: expected SERVICE[:inbound|outbound]=PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "db is not set"),
        (["--db", "x", "--grpc-port", "70000"], "--grpc-port: expected a port from 0 to 65535, got '70000'"),
        (["--db", "x", "--http-port", "-1"], "--http-port: expected a port"),
        (["--db", "x", "--config", "/nowhere/x.toml"], "/nowhere/x.toml cannot be read"),
        (
            ["--db", "x", "--host", "0.0.0.0"],
            "--tls-cert, --tls-key, --write-token-file, --read-token-file are missing",
        ),
        (["--db", "x", "--write-token-file", "/nowhere/x"], "--write-token-file /nowhere/x cannot be read"),
        (["--db", "x", "--tls-cert", "x"], "--tls-cert and --tls-key belong together"),
    ],
)
def test_bad_settings_exit_2_before_a_file_is_made(
    argv: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ran(argv, monkeypatch) == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["--db"], ["--db", "x", "--nosuch"]])
def test_usage_exits_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    for word in (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "--access-log",
        "--policy",
        "--insecure",
        "--print-config",
        "exit codes",
    ):
        assert word in text


def test_the_effective_settings_are_printed_and_nothing_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROVENANCE_COLLECT_HTTP_PORT", "0")
    (tmp_path / "tokens").write_text("a-secret-that-is-a-token")
    assert main(["--db", "x", "--read-token-file", "tokens", "--print-config"]) == 0
    out = capsys.readouterr().out

    assert tomllib.loads(out)["collector"]["http_port"] == 0
    assert "# PROVENANCE_COLLECT_HTTP_PORT" in out
    assert "a-secret" not in out
    assert not (tmp_path / "x").exists()


def test_in_json_even_the_last_words_are_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran(["--db", str(tmp_path / "nowhere" / "x"), "--log-format", "json"], monkeypatch) == 2
    record = json.loads(capsys.readouterr().err)

    assert record["level"] == "critical"
    assert "does not exist" in record["message"]


def ran(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """`main` without leaving its signal handlers, its log handler or its environment behind."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    try:
        return main(argv)
    finally:
        logging.captureWarnings(capture=False)


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


def rows(source: Source, sql: str) -> list[object]:
    """The first column, once there is a row: what is acknowledged becomes visible soon, not at once."""
    deadline = time.monotonic() + DEADLINE
    while not (found := source.query(sql).to_series().to_list()):
        assert time.monotonic() < deadline
    return found


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(start: Starter) -> None:
    for round_ in range(3):
        collector = start()
        collector.export(f"span {round_}", f"other {round_}")
        assert collector.stop(signal.SIGKILL) == -signal.SIGKILL

    collector = start()  # whatever a crash left beside the file is brought into it at the next start
    assert collector.stop() == 0
    names = stored(collector.db, "SELECT name FROM spans ORDER BY name")
    assert names == sorted(f"{kind} {n}" for kind in ("other", "span") for n in range(3))
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
    assert rows(source, "SELECT name FROM spans") == ["seen"]
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


@pytest.mark.slow
def test_a_request_that_is_larger_than_it_may_be_is_refused_on_both_ports(start: Starter) -> None:
    collector = start("--max-request-bytes", "64KiB")
    large = request(*(f"span {n:0100}" for n in range(700)))
    assert len(large) > 64 * 1024
    posted = httpx.post(
        f"{collector.url}/v1/traces",
        content=large,
        headers={"content-type": "application/x-protobuf"},
        timeout=DEADLINE,
    )
    assert posted.status_code == 413
    with grpc.insecure_channel(collector.grpc) as channel:
        export = channel.unary_unary(EXPORT, request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.RpcError) as refused:
            export(large, timeout=DEADLINE, wait_for_ready=True)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    collector.export("small")
    assert collector.stop() == 0
    assert stored(collector.db, "SELECT name FROM spans") == ["small"]


def test_grpc_may_have_a_smaller_limit_of_its_own(start: Starter) -> None:
    collector = start("--max-grpc-request-bytes", "64KiB")
    large = request(*(f"span {n:0100}" for n in range(700)))
    with grpc.insecure_channel(collector.grpc) as channel:
        export = channel.unary_unary(EXPORT, request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.RpcError) as refused:
            export(large, timeout=DEADLINE, wait_for_ready=True)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    headers = {"content-type": "application/x-protobuf"}
    assert httpx.post(f"{collector.url}/v1/traces", content=large, headers=headers, timeout=DEADLINE).status_code == 200
    assert collector.stop() == 0
    assert stored(collector.db, "SELECT count(*) FROM spans") == [700]


# --- guarded --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_guarded_collector_from_a_file_of_settings(start: Starter, tmp_path: Path) -> None:
    files = Files(tmp_path)
    config = tmp_path / "provenance.toml"
    settings = {**files.tls(), **files.tokens()}
    lines = [f"{name} = {str(path)!r}" for name, path in settings.items()]
    config.write_text(
        "\n".join(["[collector]", "log_format = 'json'", *lines, "[egress]", "allow = ['a.example']", ""])
    )
    collector = start("--config", str(config))
    url = collector.url.replace("http", "https")
    authority, port = files.authority.read_bytes(), collector.grpc.partition(":")[2]
    with grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(authority)) as channel:
        export = channel.unary_unary(EXPORT, request_serializer=bytes, response_deserializer=bytes)
        export(request("sent"), timeout=DEADLINE, metadata=(("authorization", f"Bearer {WRITE}"),))
        with pytest.raises(grpc.RpcError) as refused:
            export(request("not sent"), timeout=DEADLINE)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    source = open_source(url, Access(files.read_tokens, files.authority))
    assert rows(source, "SELECT name FROM spans") == ["sent"]
    source.close()

    # The running process looks at its files by itself.
    fresh = "fresh-" + "f" * 20
    files.put(files.read_tokens, fresh)
    context = ssl.create_default_context(cafile=str(files.authority))
    deadline = time.monotonic() + DEADLINE
    with httpx.Client(verify=context, headers={"authorization": f"Bearer {fresh}"}, timeout=DEADLINE) as http:
        while (page := http.get(f"{url}/metrics")).status_code == 401:
            assert time.monotonic() < deadline
        assert http.get(f"{url}/readyz").json() == {"status": "ready"}
    assert collector.stop() == 0

    assert 'provenance_collector_refused_requests_total{reason="unauthenticated"}' in page.text
    assert 'provenance_collector_accepted_spans_total{protocol="grpc"} 1' in page.text
    assert stored(collector.db, "SELECT destination FROM egress_allow") == ["a.example"]
    records = [json.loads(line) for line in collector.process.communicate()[1].splitlines()]
    assert "OTLP/gRPC on 127.0.0.1:" in records[0]["message"]
    assert {record["level"] for record in records} == {"info", "warning"}
    assert not any(WRITE in str(record) or fresh in str(record) for record in records)


@pytest.mark.slow
def test_insecure_is_said_aloud(start: Starter) -> None:
    collector = start("--host", "0.0.0.0", "--insecure")
    collector.export("sent")
    assert collector.stop() == 0

    assert "--insecure: whoever reaches 0.0.0.0 may use it" in collector.process.communicate()[1]

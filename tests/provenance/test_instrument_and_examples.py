"""One call sets everything up, and the examples run: their spans arrive, stamped, at a real OTLP receiver."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from provenance.instrumentor import ProvenanceInstrumentor
from provenance.setup import exporter_endpoint, make_exporter, make_resource

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 45.0
OPENTELEMETRY_INSTRUMENT = re.compile(r"^    (opentelemetry-instrument .*?) python server\.py$", re.MULTILINE)
"""The line in the README."""


@pytest.mark.parametrize(
    ("protocol", "endpoint", "environ", "expected"),
    [
        ("grpc", None, {}, "http://127.0.0.1:4317"),
        ("grpc", "collector:4317", {}, "http://collector:4317"),
        ("grpc", "https://collector:4317", {}, "https://collector:4317"),
        ("grpc", None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, None),
        (
            "grpc",
            None,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": " "},
            "http://127.0.0.1:4317",
        ),
        ("http/protobuf", "collector:4318", {}, "http://collector:4318/v1/traces"),
        ("grpc", "http://y", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, "http://y"),
        ("http/protobuf", None, {}, "http://127.0.0.1:4318/v1/traces"),
        ("http/protobuf", "http://collector:4318/", {}, "http://collector:4318/v1/traces"),
        ("http/protobuf", "http://collector/otlp/v1/traces", {}, "http://collector/otlp/v1/traces"),
        ("http/protobuf", None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, None),
    ],
)
def test_the_endpoint(protocol: str, endpoint: str | None, environ: dict[str, str], expected: str | None) -> None:
    assert exporter_endpoint(protocol, endpoint, environ) == expected


ENDPOINT, PROTOCOL = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"
TRACES_ENDPOINT, TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"


@pytest.mark.parametrize(
    ("endpoint", "environ", "module"),
    [
        ("http://127.0.0.1:1", {}, "grpc"),
        ("http://127.0.0.1:1/", {}, "grpc"),
        ("http://127.0.0.1:1", {PROTOCOL: "http/protobuf"}, "http"),
        ("http://127.0.0.1:1", {PROTOCOL: "http/protobuf", TRACES_PROTOCOL: "grpc"}, "grpc"),
        ("http://127.0.0.1:1", {PROTOCOL: "http/protobuf", TRACES_PROTOCOL: ""}, "http"),
        ("http://127.0.0.1:1", {PROTOCOL: ""}, "grpc"),
        ("http://127.0.0.1:4318", {}, "http"),
        ("127.0.0.1:4318", {}, "http"),
        ("http://127.0.0.1:4318", {PROTOCOL: " "}, "http"),
        ("http://127.0.0.1:4318", {PROTOCOL: "grpc"}, "grpc"),
        ("http://127.0.0.1:1/v1/traces", {}, "http"),
        ("unix:///run/collector.sock", {}, "grpc"),
        (None, {ENDPOINT: "http://127.0.0.1:4318"}, "http"),
        (None, {ENDPOINT: "http://127.0.0.1:4318", TRACES_ENDPOINT: "http://127.0.0.1:1"}, "grpc"),
        (None, {ENDPOINT: ""}, "grpc"),
    ],
)
def test_the_exporter_that_is_asked_for(endpoint: str | None, environ: dict[str, str], module: str) -> None:
    exporter = make_exporter(endpoint, environ)

    assert exporter is not None
    assert type(exporter).__module__.startswith(f"opentelemetry.exporter.otlp.proto.{module}.")
    exporter.shutdown()


def test_no_exporter_is_an_answer_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert make_exporter(None, {"OTEL_TRACES_EXPORTER": "none"}) is None
    assert caplog.records == []
    assert make_exporter(None, {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}) is None
    assert "http/json" in caplog.text


def test_the_service_name_by_argument_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=by-attributes,service.namespace=shop")
    assert make_resource(None, {}).attributes["service.name"] == "by-attributes"
    assert make_resource("by-argument", {}).attributes["service.name"] == "by-argument"
    assert make_resource("x", {"service.namespace": "mine"}).attributes["service.namespace"] == "mine"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "by-name")
    assert make_resource(None, {}).attributes["service.name"] == "by-name"

    monkeypatch.delenv("OTEL_SERVICE_NAME")
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES")
    assert str(make_resource(None, {}).attributes["service.name"]).startswith("unknown_service")


def test_an_instance_has_an_id_unless_it_was_given_one() -> None:
    assert make_resource("x", {}).attributes["service.instance.id"]
    assert make_resource("x", {"service.instance.id": "pod-1"}).attributes["service.instance.id"] == "pod-1"


def test_the_entry_point_names_the_instrumentor() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["entry-points"]["opentelemetry_instrumentor"] == {
        "provenance": "provenance.instrumentor:ProvenanceInstrumentor"
    }
    assert ProvenanceInstrumentor().instrumentation_dependencies() == ()


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver that can be waited on."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, Span]] = []
        self._headers: set[str] = set()
        self._changed = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  (OTLP's name)
        with self._changed:
            self._headers.update(key for key, _ in context.invocation_metadata())
            for resource_spans in request.resource_spans:
                resource = {a.key: a.value.string_value for a in resource_spans.resource.attributes}
                assert resource["service.instance.id"]
                self._spans.extend(
                    (resource["service.name"], s) for scope in resource_spans.scope_spans for s in scope.spans
                )
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait(self, kind: int, count: int) -> list[tuple[str, Span]]:
        """The first `count` spans of a kind, with their services."""

        def found() -> list[tuple[str, Span]]:
            return [(service, span) for service, span in self._spans if span.kind == kind]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, DEADLINE_SECONDS), self._spans
            return found()

    def headers(self) -> set[str]:
        with self._changed:
            return set(self._headers)


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    servicer = Receiver()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(None).wait(DEADLINE_SECONDS)


@pytest.fixture
def environment(receiver: tuple[Receiver, str], tmp_path: Path) -> dict[str, str]:
    """A child's environment: our checkout importable, and its entry points visible even where it is not installed."""
    path = [str(ROOT)]
    if not any(each.name == "provenance" for each in entry_points(group="opentelemetry_instrumentor")):
        metadata = tmp_path / "mesh_provenance-0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mesh-provenance\nVersion: 0\n")
        (metadata / "entry_points.txt").write_text(
            "[opentelemetry_instrumentor]\nprovenance = provenance.instrumentor:ProvenanceInstrumentor\n"
        )
        path.append(str(tmp_path))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    return kept | {
        "PYTHONPATH": os.pathsep.join(path),
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver[1],
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }


@contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[str]:
    """A server that says on stdout where it listens, and ends well when it is told to."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        match = re.fullmatch(r"listening on (\S+)\n", line)
        if match is None:
            process.kill()
            raise AssertionError(line, process.communicate())
        yield match[1]
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=DEADLINE_SECONDS)
        assert "Traceback" not in stderr, stderr
        assert "provenance:" not in stderr, stderr
    finally:
        process.kill()
        process.communicate()


def run_client(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 x shirt: 25.00\n2 x shirt: 50.00\n"


def attributes(span: Span) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value") or "string_value") for a in span.attributes}


def assert_stamped_pairs(receiver: Receiver, callee: str = "checkout") -> None:
    clients, servers = receiver.wait(Span.SPAN_KIND_CLIENT, 2), receiver.wait(Span.SPAN_KIND_SERVER, 2)

    assert len(clients) == len(servers) == 2, "the exporter's own calls are no spans"
    assert {name for name, _ in clients} == {"web"}
    assert {name for name, _ in servers} == {callee}
    by_id = {span.span_id: attributes(span) for _, span in clients}
    for _, span in servers:
        server, client = attributes(span), by_id.pop(span.parent_span_id)
        for key in (
            "request.hash",
            "request.size",
            "response.size",
            "request_id",
            "stamp.kid",
            "stamp.nonce",
            "stamp.time_unix_ms",
        ):
            assert server[f"provenance.{key}"] == client[f"provenance.{key}"]
        assert client["provenance.stamp.kid"] == "web"
        assert server["provenance.stamp.status"] == "unsigned"
        assert client["server.port"] > 0
    assert "provenance" not in receiver.headers(), "and are not stamped"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "address"), [("grpc_service", "--target={}"), ("fastapi_service", "--url=http://{}")]
)
def test_an_example_runs_as_its_docstring_says(
    receiver: tuple[Receiver, str], environment: dict[str, str], example: str, address: str
) -> None:
    directory = ROOT / "examples" / example
    with running([sys.executable, str(directory / "server.py"), "--port=0"], environment) as listening:
        run_client([sys.executable, str(directory / "client.py"), address.format(listening), "--calls=2"], environment)

    assert_stamped_pairs(receiver[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "address"), [("grpc_service", "--target={}"), ("fastapi_service", "--url=http://{}")]
)
def test_an_example_runs_under_opentelemetry_instrument(
    receiver: tuple[Receiver, str], environment: dict[str, str], example: str, address: str
) -> None:
    directory = ROOT / "examples" / example
    code = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"
    wrapped = [sys.executable, "-c", code, sys.executable]
    named = environment | {"OTEL_SERVICE_NAME": "checkout"}
    with running([*wrapped, str(directory / "server.py"), "--port=0"], named) as listening:
        run_client([sys.executable, str(directory / "client.py"), address.format(listening), "--calls=2"], environment)

    assert_stamped_pairs(receiver[0])


WITHOUT_OUR_LINES = """
import threading
import fastapi, httpx, uvicorn
from fastapi import FastAPI
app = FastAPI()
@app.post("/buy")
def buy() -> str:
    return "sold"
config = uvicorn.Config(app, port=0, log_level="warning")
listener = config.bind_socket()
server = uvicorn.Server(config)
thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
thread.start()
for count in range(2):
    assert httpx.post(f"http://127.0.0.1:{listener.getsockname()[1]}/buy", content=b"shirt").text == '"sold"'
server.should_exit = True
thread.join()
print("fine")
"""


@pytest.mark.slow
def test_a_script_that_does_not_know_us_is_stamped_under_opentelemetry_instrument(
    receiver: tuple[Receiver, str], environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "shop.py"
    script.write_text(WITHOUT_OUR_LINES)
    command = shlex.split(OPENTELEMETRY_INSTRUMENT.search((ROOT / "README.md").read_text())[1])  # type: ignore[index]
    kept = {key: value for key, value in environment.items() if not key.startswith("OTEL_") or "ENDPOINT" in key}
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:], sys.executable, str(script)],
        env=kept,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")
    clients, servers = receiver[0].wait(Span.SPAN_KIND_CLIENT, 2), receiver[0].wait(Span.SPAN_KIND_SERVER, 2)
    assert {name for name, _ in clients + servers} == {"checkout"}
    stamps = [{attributes(span)["provenance.stamp.nonce"] for _, span in side} for side in (clients, servers)]
    assert stamps[0] == stamps[1]
    assert len(clients) == len(servers) == len(stamps[0]) == 2


ENDED_BY_A_SIGNAL = """
import provenance
provenance.instrument("checkout")
import uvicorn
from fastapi import FastAPI
app = FastAPI()
config = uvicorn.Config(app, port=0, log_level="warning")
listener = config.bind_socket()
listener.listen()  # from now on callers wait for uvicorn, and are not refused
print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
uvicorn.Server(config).run(sockets=[listener])
"""


@pytest.mark.slow
def test_the_last_spans_arrive_though_a_signal_ends_the_process(
    receiver: tuple[Receiver, str], environment: dict[str, str]
) -> None:
    late = environment | {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with running([sys.executable, "-c", ENDED_BY_A_SIGNAL], late) as listening:
        assert httpx.get(f"http://{listening}/nowhere").status_code == 404

    receiver[0].wait(Span.SPAN_KIND_SERVER, 1)


INSTRUMENT_TWICE = """
import logging, sys
logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s")
import provenance
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient
def hook(span, request): ...
GrpcInstrumentorClient().instrument(request_hook=hook)
first = provenance.instrument("shop", resource_attributes={"service.namespace": "x"})
assert provenance.instrument("other") is first
assert first.owned and first.provider is trace.get_tracer_provider()
assert first.provider.resource.attributes["service.namespace"] == "x"
assert GrpcInstrumentorClient._instance._request_hook is hook, "the user's own set-up stays"
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from provenance.instrumentor import ProvenanceInstrumentor
assert HTTPXClientInstrumentor().is_instrumented_by_opentelemetry
assert ProvenanceInstrumentor().is_instrumented_by_opentelemetry
first.shutdown()
first.shutdown()
print("fine")
"""

PROVIDER_OF_THE_USERS = """
import logging, sys
logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s")
import provenance
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
provider = TracerProvider()
memory = InMemorySpanExporter()
provider.add_span_processor(SimpleSpanProcessor(memory))
trace.set_tracer_provider(provider)
handle = provenance.instrument("shop")
assert handle.provider is provider and not handle.owned
handle.shutdown()
with trace.get_tracer("x").start_as_current_span("after"): pass
assert len(memory.get_finished_spans()) == 1, "it is the user's to shut down"
print("fine")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("code", "said"), [(INSTRUMENT_TWICE, []), (PROVIDER_OF_THE_USERS, ["set already"])])
def test_instrument_is_idempotent_and_respects_what_is_there(
    environment: dict[str, str], code: str, said: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING provenance:")]
    assert len(warnings) == len(said)
    assert all(words in line for words, line in zip(said, warnings, strict=True))

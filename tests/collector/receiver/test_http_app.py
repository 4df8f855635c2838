"""Real clients against a listening server, and the answers that OTLP/HTTP demands."""

import gzip
import socket

import httpx
import pytest
from google.rpc import code_pb2, status_pb2
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from collector.errors import StoreError, StoreFullError
from collector.otlp.synthetic import trace_request
from collector.receiver.http_app import create_app
from collector.receiver.ingest import Ingest
from tests.collector.receiver.receiver_fakes import DEADLINE_S, FakeWriter, http_server

PROTOBUF = "application/x-protobuf"


class Recording(OTLPSpanExporter):
    def __init__(self, **options):
        super().__init__(**options)
        self.sent, self.results = [], []

    def export(self, spans):
        self.sent += [(s.context.trace_id, s.context.span_id) for s in spans]
        self.results.append(super().export(spans))
        return self.results[-1]


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_every_span_of_the_python_exporter_arrives(compression):
    writer = FakeWriter()
    with http_server(create_app(ingest=Ingest(writer))) as port:
        exporter = Recording(endpoint=f"http://127.0.0.1:{port}/v1/traces", compression=compression)
        provider = TracerProvider(resource=Resource({"service.name": "cart"}))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("test")
        for index in range(5):
            tracer.start_span(f"span {index}").end()
        provider.shutdown()
    assert exporter.results == [SpanExportResult.SUCCESS] * 5
    assert [(row["trace_id"].int, row["span_id"]) for row in writer.rows("spans")] == exporter.sent


def client(writer, **options):
    """A client of the application, without a socket."""
    transport = httpx.ASGITransport(create_app(ingest=Ingest(writer), **options))
    return httpx.AsyncClient(transport=transport, base_url="http://collector")


async def post(client_, body, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client_:
        return await client_.post("/v1/traces", content=body, headers={"content-type": PROTOBUF, **named})


def status_of(response):
    assert response.headers["content-type"] == PROTOBUF
    return status_pb2.Status.FromString(response.content)


@pytest.mark.parametrize("content_type", [PROTOBUF, "Application/X-Protobuf; charset=x"])
async def test_a_full_success_has_no_partial_success(content_type):
    writer = FakeWriter()
    response = await post(client(writer), trace_request(2).SerializeToString(), content_type=content_type)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == PROTOBUF
    assert len(writer.rows("spans")) == 2


async def test_refused_spans_are_a_partial_success():
    request = trace_request(3)
    request.resource_spans[0].scope_spans[0].spans[0].span_id = b"short"
    response = await post(client(FakeWriter()), request.SerializeToString())
    partial = ExportTraceServiceResponse.FromString(response.content).partial_success
    assert (response.status_code, partial.rejected_spans) == (200, 1)
    assert partial.error_message == "1 span: span_id is not 8 bytes"


def sent_by_hand(connection):
    """One request on a bare socket, whose answer can then be waited for, or not."""
    body = trace_request(1).SerializeToString()
    head = f"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: {PROTOBUF}\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


def test_no_answer_before_the_commit():
    writer = FakeWriter(held=True)
    with (
        http_server(create_app(ingest=Ingest(writer))) as port,
        socket.create_connection(("127.0.0.1", port), DEADLINE_S) as connection,
    ):
        sent_by_hand(connection)
        writer.wait_for(1)
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(DEADLINE_S)
        writer.commit(writer.futures[0])
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_the_event_loop_is_free_while_a_commit_is_awaited():
    writer = FakeWriter(held=True)
    with (
        http_server(create_app(ingest=Ingest(writer))) as port,
        socket.create_connection(("127.0.0.1", port), DEADLINE_S) as connection,
    ):
        sent_by_hand(connection)
        writer.wait_for(1)
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=DEADLINE_S).json() == {"status": "ok"}
        writer.commit(writer.futures[0])
        assert connection.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"\xff", "identity"),
        (trace_request(3).SerializeToString()[:-3], ""),
        (b"not gzip", "gzip"),
        (gzip.compress(trace_request(3).SerializeToString(), mtime=0)[:-9], "gzip"),
    ],
)
async def test_bad_data_is_a_400_with_a_status(body, encoding):
    writer = FakeWriter()
    response = await post(client(writer), body, content_encoding=encoding)
    assert response.status_code == 400
    assert status_of(response).code == code_pb2.INVALID_ARGUMENT
    assert status_of(response).message
    assert writer.rows("spans") == []


async def chunks(count, size):
    for _ in range(count):
        yield b"\0" * size


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"\0" * 1001, {}),
        (chunks(11, 100), {}),
        (gzip.compress(b"\0" * 1001, mtime=0), {"content_encoding": "gzip"}),
        (gzip.compress(b"\0" * 50_000_000, mtime=0), {"content_encoding": "GZIP"}),
    ],
    ids=["plain", "chunked", "just too large inflated", "bomb"],
)
async def test_a_body_beyond_the_limit_is_a_413(body, headers):
    limit = 60_000 if headers.get("content_encoding") == "GZIP" else 1000
    response = await post(client(FakeWriter(), max_request_bytes=limit), body, **headers)
    assert response.status_code == 413
    assert status_of(response).code == code_pb2.RESOURCE_EXHAUSTED
    assert f"exceeds {limit} bytes" in status_of(response).message


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": "text/plain"},
        {"content_type": ""},
        {"content_encoding": "br"},
        {"content_encoding": "gzip, gzip"},
        {"content_encoding": "gzip,zstd"},
    ],
)
async def test_what_is_not_spoken_here_is_a_415_that_says_what_is(headers):
    response = await post(client(FakeWriter()), trace_request(1).SerializeToString(), **headers)
    assert response.status_code == 415
    assert "not supported" in status_of(response).message
    if "content_type" in headers:
        assert response.headers["accept"] == "application/x-protobuf, application/json"
    else:
        assert response.headers["accept-encoding"] == "gzip, zstd, deflate"


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        ({"refusal": StoreFullError("the queue is full")}, "the queue is full"),
        ({"failure": StoreError("no space")}, "no space"),
        ({"held": True}, "not committed in time: send this request again"),
    ],
)
async def test_a_failing_store_is_a_503_so_that_the_sender_tries_again(writer, message):
    response = await post(client(FakeWriter(**writer), commit_timeout_s=0.05), trace_request(1).SerializeToString())
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    status = status_of(response)
    assert (status.code, status.message) == (code_pb2.UNAVAILABLE, message)


async def test_a_timeout_does_not_cancel_the_commit():
    writer = FakeWriter(held=True)
    await post(client(writer, commit_timeout_s=0.05), trace_request(1).SerializeToString())
    assert not writer.futures[0].cancelled()
    writer.commit(writer.futures[0])


def test_a_body_that_never_ends_is_a_408():
    with (
        http_server(create_app(ingest=Ingest(FakeWriter()), read_timeout_s=0.1)) as port,
        socket.create_connection(("127.0.0.1", port), DEADLINE_S) as connection,
    ):
        connection.sendall(f"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: {PROTOBUF}\r\n".encode())
        connection.sendall(b"content-length: 100\r\n\r\nslow")
        assert connection.recv(12) == b"HTTP/1.1 408"


async def test_routes_can_be_added():
    async def hello(_):
        return PlainTextResponse("hello")

    async with client(FakeWriter(), extra_routes=[Route("/hello", hello)]) as c:
        assert (await c.get("/hello")).text == "hello"
        assert (await c.get("/healthz")).json() == {"status": "ok"}
        assert (await c.get("/v1/traces")).status_code == 405


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:4318", "LOCALHOST.:1", "127.0.0.1:4318", "127.8.8.8", "10.0.0.5:4318", "[::1]:4318", "[::1]",
     "mesh.localhost:80", ""],
)  # fmt: skip
async def test_on_loopback_this_machine_s_names_and_addresses_are_served(host):
    writer = FakeWriter()
    response = await post(client(writer, loopback_only=True), trace_request(1).SerializeToString(), host=host)
    assert response.status_code == 200
    assert len(writer.rows("spans")) == 1


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:4318", "localhost.evil.example", "127.0.0.1.evil.example", "[x", "a@b:1"]
)
async def test_on_loopback_a_page_that_rebinds_its_name_gets_a_421(host):
    writer = FakeWriter()
    response = await post(client(writer, loopback_only=True), trace_request(1).SerializeToString(), host=host)
    assert response.status_code == 421
    assert "ask for localhost or an address" in status_of(response).message
    assert writer.rows("spans") == []


async def test_the_query_api_says_so_in_its_own_words():
    async with client(FakeWriter(), loopback_only=True) as c:
        response = await c.get("/api/v1/status", headers={"host": "evil.example"})
    assert response.status_code == 421
    assert "evil.example" in response.json()["error"]

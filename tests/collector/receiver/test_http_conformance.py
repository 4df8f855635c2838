"""What OTLP/HTTP demands of a server beyond the ordinary request: JSON, encodings, and failures that say what they are."""

import asyncio
import gzip
import json
import socket
import zlib

import httpx
import pytest
from google.protobuf import json_format
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceResponse,
)
from starlette.exceptions import HTTPException
from starlette.routing import Route

from collector.errors import StoreError, StoreFullError
from collector.otlp.json_form import request_to_json
from collector.otlp.synthetic import trace_request
from collector.receiver.counters import Counters
from collector.receiver.http_app import create_app
from collector.receiver.http_export import Signal
from collector.receiver.inflate import ENCODINGS
from collector.receiver.ingest import Ingest
from collector.receiver.statuses import GRPC_DETAILS, grpc_trailer, unavailable
from tests.collector.receiver.receiver_fakes import DEADLINE_S, FakeWriter, http_server
from tests.collector.receiver.test_inflate import PACKERS

PROTOBUF, JSON = "application/x-protobuf", "application/json"
both = pytest.mark.parametrize("language", [PROTOBUF, JSON])


def client(writer=None, **options):
    """A client of the application, without a socket; what fails inside is answered, as by a server."""
    app = create_app(ingest=Ingest(writer or FakeWriter()), **options)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://collector")


async def send(client_, body, *, method="POST", path="/v1/traces", language=PROTOBUF, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if language is not None:
        named["content-type"] = language
    async with client_:
        return await client_.request(method, path, content=body, headers=named)


def written(request, language):
    return request_to_json(request).encode() if language == JSON else request.SerializeToString()


def status_of(response):
    """The body as a Status, in the language that the response claims."""
    if response.headers["content-type"] == JSON:
        return json_format.Parse(response.content, status_pb2.Status())
    assert response.headers["content-type"] == PROTOBUF
    return status_pb2.Status.FromString(response.content)


def detail(status, message_class):
    [packed] = status.details
    made = message_class()
    assert packed.Unpack(made)
    return made


# --- JSON -------------------------------------------------------------------------------------------------------------


async def test_json_becomes_the_same_rows_as_protobuf():
    rows = {}
    for language in (PROTOBUF, JSON):
        writer = FakeWriter()
        assert (await send(client(writer), written(trace_request(20), language), language=language)).status_code == 200
        tables = {table: writer.rows(table) for table in ("spans", "resources", "scopes")}
        rows[language] = [{**row, "received_unix_nano": 0} for table in tables.values() for row in table]
    assert rows[JSON] == rows[PROTOBUF]
    assert len(rows[JSON]) == 22


@pytest.mark.parametrize(
    "content_type", [JSON, "Application/JSON", "application/json; charset=utf-8", "application/json;charset=x"]
)
async def test_a_full_success_in_json_is_an_empty_object(content_type):
    response = await send(client(), written(trace_request(2), JSON), language=content_type)
    assert (response.status_code, response.content) == (200, b"{}")
    assert response.headers["content-type"] == JSON


@pytest.mark.parametrize(
    ("body", "language", "answer"),
    [
        (b"", PROTOBUF, b""),
        (b"{}", JSON, b"{}"),
        (b'{"resourceSpans":[]}', JSON, b"{}"),
        (b'{"resourceSpans":[{}]}', JSON, b"{}"),
    ],
)
async def test_an_empty_request_succeeds(body, language, answer):
    writer = FakeWriter()
    response = await send(client(writer), body, language=language)
    assert (response.status_code, response.content) == (200, answer)
    assert writer.rows("spans") == []


async def test_spans_with_malformed_ids_are_a_partial_success_that_says_where_they_are():
    document = json.loads(request_to_json(trace_request(5)))
    spans = document["resourceSpans"][0]["scopeSpans"][0]["spans"]
    spans[1]["traceId"] = "5b8"
    spans[3]["spanId"] = "not hex at all!!"
    writer = FakeWriter()
    response = await send(client(writer), json.dumps(document), language=JSON)
    partial = response.json()["partialSuccess"]
    assert (response.status_code, partial["rejectedSpans"]) == (200, "2")
    assert "1 span: trace_id is not 16 bytes" in partial["errorMessage"]
    assert (
        "resourceSpans[0].scopeSpans[0].spans[1].traceId: expected 32 hex digits, got the string '5b8'"
        in partial["errorMessage"]
    )
    assert "spans[3].spanId: expected 16 hex digits" in partial["errorMessage"]
    assert len(writer.rows("spans")) == 3
    assert writer.errors() == {"trace_id is not 16 bytes": 1, "span_id is not 8 bytes": 1}


@both
async def test_refused_spans_are_a_partial_success_in_the_request_s_language(language):
    request = trace_request(3)
    request.resource_spans[0].scope_spans[0].spans[0].span_id = bytes(8)
    response = await send(client(), written(request, language), language=language)
    assert (response.status_code, response.headers["content-type"]) == (200, language)
    if language == JSON:
        assert response.json() == {
            "partialSuccess": {"rejectedSpans": "1", "errorMessage": "1 span: span_id is all zeros"}
        }
    else:
        assert ExportTraceServiceResponse.FromString(response.content).partial_success.rejected_spans == 1


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        (b'{"resourceSpans":5}', "resourceSpans", "expected an array, got the number 5"),
        (b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"kind":"SPAN_KIND_SERVER"}]}]}]}', "resourceSpans[0].scopeSpans[0].spans[0].kind", "an enum is an integer in OTLP/JSON, got the string 'SPAN_KIND_SERVER'"),
        (b"", "", "the document is empty; a request without contents is {}"),
        (b"{", "", "not JSON: expected a key in double quotes, got '' at character 1"),
        (b"\xff", "", "not UTF-8: invalid start byte, near byte 0"),
        (b'{"a":' + b"[" * 100_000, "a", "nested too deeply"),
    ],
)  # fmt: skip
async def test_bad_json_is_a_400_whose_details_name_the_field(body, field, reason):
    counters = Counters()
    response = await send(client(counters=counters), body, language=JSON)
    assert response.status_code == 400
    status = status_of(response)
    assert (status.code, status.message) == (code_pb2.INVALID_ARGUMENT, f"{field}: {reason}" if field else reason)
    [violation] = detail(status, error_details_pb2.BadRequest).field_violations
    assert (violation.field, violation.description) == (field, reason)
    assert counters.read().refused["malformed"].requests == 1


async def test_bad_protobuf_is_a_400_with_details():
    response = await send(client(), b"\xff")
    status = status_of(response)
    assert (response.status_code, status.code) == (400, code_pb2.INVALID_ARGUMENT)
    assert detail(status, error_details_pb2.BadRequest).field_violations[0].description == status.message


# --- encodings --------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("encoding", "packing"),
    [("gzip", "gzip"), ("GZIP", "gzip"), ("x-gzip", "gzip"), ("deflate", "zlib"), ("deflate", "bare"), ("zstd", "zstd"), ("identity, gzip", "gzip")],
)  # fmt: skip
async def test_encodings(language, encoding, packing):
    writer = FakeWriter()
    body = PACKERS[packing](written(trace_request(7), language))
    response = await send(client(writer), body, language=language, content_encoding=encoding)
    assert response.status_code == 200
    assert len(writer.rows("spans")) == 7


@pytest.mark.parametrize("encoding", ["", "identity"])
async def test_no_encoding(encoding):
    writer = FakeWriter()
    assert (
        await send(client(writer), written(trace_request(7), PROTOBUF), content_encoding=encoding)
    ).status_code == 200
    assert len(writer.rows("spans")) == 7


@both
@pytest.mark.parametrize("encoding", [*ENCODINGS, "identity"])
async def test_the_limit_holds_in_every_language_and_encoding(language, encoding):
    body = b" " * 2_000_000 if language == JSON else bytes(2_000_000)
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": PACKERS["zstd"], "identity": bytes}[encoding](
        body
    )
    counters = Counters()
    response = await send(
        client(max_request_bytes=100_000, counters=counters), packed, language=language, content_encoding=encoding
    )
    assert (response.status_code, status_of(response).code) == (413, code_pb2.RESOURCE_EXHAUSTED)
    assert not status_of(response).details, "RetryInfo would invite the sender to try again"
    assert counters.read().refused["too_large"].requests == 1


@both
async def test_a_body_that_is_not_its_encoding_is_a_400(language):
    response = await send(client(), b"not gzip", language=language, content_encoding="gzip")
    assert (response.status_code, response.headers["content-type"]) == (400, language)
    assert "not gzip" in status_of(response).message


# --- every failure's body is a Status ---------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "path", ["/v1/metrics", "/v1/logs", "/v1development/profiles", "/v1/traces/", "/v1", "/v1/traces/x"]
)
async def test_a_path_that_is_not_served_is_a_404(language, path):
    response = await send(client(), b"", path=path, language=language)
    assert (response.status_code, response.headers["content-type"]) == (404, language)
    assert (status_of(response).code, "POST /v1/traces" in status_of(response).message) == (code_pb2.NOT_FOUND, True)


async def test_an_exporter_at_a_wrong_path_is_told_in_protobuf_and_a_person_in_json():
    assert status_of(await send(client(), b"", path="/")).code == code_pb2.NOT_FOUND
    response = await send(client(), b"", method="GET", path="/favicon.ico", language=None)
    assert (response.status_code, "nothing is served" in response.json()["error"]) == (404, True)


@both
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_another_method_is_a_405_with_allow(language, method):
    response = await send(client(), b"", method=method, language=language)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.headers["content-type"] == language
    assert "OTLP is POST" in status_of(response).message


async def test_without_a_content_type_the_answer_is_protobuf():
    response = await send(client(), b"", language=None)
    assert response.status_code == 415
    assert "content-type '' is not supported" in status_of(response).message


@both
async def test_a_foreign_host_is_a_421(language):
    counters = Counters()
    response = await send(client(loopback_only=True, counters=counters), b"", language=language, host="evil.example")
    assert (response.status_code, status_of(response).code) == (421, code_pb2.PERMISSION_DENIED)
    assert counters.read().refused["misdirected"].requests == 1


class Broken:
    """An ingest with a defect."""

    def traces(self, payload):
        raise RuntimeError("the password is hunter2")

    def check_room(self):
        """There is some."""


@both
async def test_a_defect_is_a_500_that_tells_nothing_of_the_inside(language):
    app = create_app(ingest=Broken())  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    response = await send(httpx.AsyncClient(transport=transport, base_url="http://x"), b"{}", language=language)
    if language == PROTOBUF:
        response = await send(httpx.AsyncClient(transport=transport, base_url="http://x"), b"", language=language)
    assert (response.status_code, response.headers["content-type"]) == (500, language)
    assert status_of(response).code == code_pb2.INTERNAL
    assert b"hunter2" not in response.content
    assert b"Traceback" not in response.content


@both
async def test_a_failing_store_is_a_503_with_retry_after_and_retry_info(language):
    writer = FakeWriter(failure=StoreError("no space"))
    response = await send(client(writer), written(trace_request(1), language), language=language)
    assert (response.status_code, response.headers["retry-after"], response.headers["content-type"]) == (
        503,
        "1",
        language,
    )
    status = status_of(response)
    assert (status.code, status.message) == (code_pb2.UNAVAILABLE, "no space")
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.seconds == 1


def test_the_same_status_travels_in_a_trailer_of_grpc():
    [(key, value)] = grpc_trailer(unavailable("later", 7))
    assert key == GRPC_DETAILS
    status = status_pb2.Status.FromString(value)
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.seconds == 7


async def test_every_answer_is_counted_by_protocol_and_reason():
    counters = Counters()
    request = trace_request(3)
    request.resource_spans[0].scope_spans[0].spans[0].span_id = b"short"
    app = create_app(ingest=Ingest(FakeWriter()), counters=counters)
    for language, body in [(PROTOBUF, written(request, PROTOBUF)), (JSON, written(request, JSON)), (PROTOBUF, b"\xff")]:
        transport = httpx.ASGITransport(app)
        await send(httpx.AsyncClient(transport=transport, base_url="http://x"), body, language=language)
    counts = counters.read()
    for protocol in ("http/protobuf", "http/json"):
        assert (counts.accepted[protocol].requests, counts.accepted[protocol].spans) == (1, 2)
    assert (counts.refused["malformed"].requests, counts.refused["invalid_span"].spans) == (1, 2)


@pytest.mark.parametrize(
    ("writer", "reason"),
    [({"refusal": StoreFullError("full")}, "queue_full"), ({"failure": StoreError("no space")}, "store_failed"), ({"held": True}, "store_failed")],
)  # fmt: skip
async def test_every_503_is_counted(writer, reason):
    counters = Counters()
    app_client = client(FakeWriter(**writer), counters=counters, commit_timeout_s=0.05)
    assert (await send(app_client, written(trace_request(1), PROTOBUF))).status_code == 503
    assert counters.read().refused[reason].requests == 1


async def test_what_other_routes_raise_is_answered_in_their_words():
    async def refuse(_):
        raise HTTPException(403, "not for you")

    async with client(extra_routes=[Route("/api/x", refuse)]) as c:
        response = await c.get("/api/x")
    assert (response.status_code, response.json()) == (403, {"error": "not for you"})


# --- other signals ----------------------------------------------------------------------------------------------------


class Taken:
    """A signal's handler that takes everything and refuses a record."""

    rejected = {"not an access log": 1}

    def __init__(self):
        self.payloads = []

    def accept(self, payload):
        self.payloads.append(payload)
        return self

    @property
    def committed(self):
        future = FakeWriter().append({})
        assert future.done()
        return future

    def response(self):
        made = ExportLogsServiceResponse()
        made.partial_success.rejected_log_records = 1
        return made.SerializeToString()


async def test_other_signals_get_the_same_treatment():
    taken = Taken()
    logs = Signal("/v1/logs", ExportLogsServiceRequest, ExportLogsServiceResponse, taken.accept)
    body = gzip.compress(b'{"resourceLogs":[{"schemaUrl":"s"}]}')
    response = await send(client(signals=[logs]), body, path="/v1/logs", language=JSON, content_encoding="gzip")
    assert response.json() == {"partialSuccess": {"rejectedLogRecords": "1"}}
    assert ExportLogsServiceRequest.FromString(taken.payloads[0]).resource_logs[0].schema_url == "s"


# --- memory -----------------------------------------------------------------------------------------------------------


async def test_bodies_that_are_too_large_together_are_a_503():
    held, gate = asyncio.Event(), asyncio.Event()

    async def slow():
        yield b"\0" * 900
        held.set()  # the next piece is asked for when this one was taken
        await gate.wait()
        yield b"\0"

    counters = Counters()
    async with client(max_request_bytes=1000, room_bytes=1000, counters=counters) as c:
        headers = {"content-type": PROTOBUF}
        first = asyncio.create_task(c.post("/v1/traces", content=slow(), headers=headers))
        await asyncio.wait_for(held.wait(), DEADLINE_S)
        second = await c.post("/v1/traces", content=b"\0" * 200, headers=headers)
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        assert status_of(second).code == code_pb2.UNAVAILABLE
        assert counters.read().refused["queue_full"].requests == 1
        gate.set()
        assert (await asyncio.wait_for(first, DEADLINE_S)).status_code == 400
        third = await c.post("/v1/traces", content=b"\0" * 200, headers=headers)
        assert third.status_code == 400


async def test_what_a_body_inflates_to_counts_until_it_is_decoded():
    body = gzip.compress(bytes(900))
    response = await send(client(max_request_bytes=1000, room_bytes=500), body, content_encoding="gzip")
    assert response.status_code == 503


async def test_while_nothing_is_taken_nothing_is_inflated():
    writer = FakeWriter(held=True)
    ingest = Ingest(writer, max_waiting_bytes=1)
    ingest.traces(trace_request(1).SerializeToString())
    transport = httpx.ASGITransport(app=create_app(ingest=ingest))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as c:
        headers = {"content-type": PROTOBUF, "content-encoding": "gzip"}
        response = await c.post("/v1/traces", content=b"no gzip", headers=headers)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        writer.wait_for(1)
        writer.commit(writer.futures[0])
        assert (await c.post("/v1/traces", content=b"no gzip", headers=headers)).status_code == 400


# --- on a socket ------------------------------------------------------------------------------------------------------


class Connection:
    """A bare socket to a listening server."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), DEADLINE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *lines, body=b""):
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def response(self):
        """The next response: its status line, its headers, its body."""
        raw = self.socket.makefile("rb")
        line = raw.readline().decode().strip()
        headers = {}
        while header := raw.readline().decode().strip():
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        return line, headers, raw.read(int(headers.get("content-length", 0)))

    def closed(self):
        return self.socket.recv(1) == b""


@pytest.fixture
def served():
    writer = FakeWriter()
    with http_server(create_app(ingest=Ingest(writer), max_request_bytes=100_000, read_timeout_s=0.2)) as port:
        yield writer, port


HEAD = ("POST /v1/traces HTTP/1.1", "host: localhost", f"content-type: {PROTOBUF}")


def test_a_length_beyond_the_limit_is_refused_before_anything_is_read(served):
    _, port = served
    with Connection(port) as connection:
        connection.send(*HEAD, "content-length: 10000000000")
        line, _, body = connection.response()
    assert line.startswith("HTTP/1.1 413 ")
    assert "exceeds 100000 bytes" in status_pb2.Status.FromString(body).message


def test_a_sender_that_does_not_wait_reads_the_413_too(served):
    _, port = served
    with Connection(port) as connection:
        connection.send(*HEAD, "content-length: 200000", body=bytes(200_000))
        assert connection.response()[0].startswith("HTTP/1.1 413 ")


def test_expect_100_continue_is_answered_before_the_body_is_sent(served):
    writer, port = served
    body = trace_request(3).SerializeToString()
    with Connection(port) as connection:
        connection.send(*HEAD, f"content-length: {len(body)}", "expect: 100-continue")
        assert connection.response()[0] == "HTTP/1.1 100 Continue"
        connection.socket.sendall(body)
        assert connection.response()[0] == "HTTP/1.1 200 OK"
    assert len(writer.rows("spans")) == 3


def test_expect_100_continue_of_a_body_that_is_too_large_is_a_413_at_once(served):
    _, port = served
    with Connection(port) as connection:
        connection.send(*HEAD, "content-length: 200000", "expect: 100-continue")
        assert connection.response()[0].startswith("HTTP/1.1 413 ")


def test_http_1_0(served):
    writer, port = served
    body = trace_request(3).SerializeToString()
    with Connection(port) as connection:
        connection.send(
            "POST /v1/traces HTTP/1.0", f"content-type: {PROTOBUF}", f"content-length: {len(body)}", body=body
        )
        line, headers, _ = connection.response()
        assert (line.split()[1], headers["content-type"]) == ("200", PROTOBUF)
        assert connection.closed()
    assert len(writer.rows("spans")) == 3


def test_a_chunked_body_and_a_connection_that_is_kept(served):
    writer, port = served
    body = trace_request(3).SerializeToString()
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with Connection(port) as connection:
        for _ in range(2):
            connection.send(*HEAD, "transfer-encoding: chunked", body=chunked)
            assert connection.response()[0] == "HTTP/1.1 200 OK"
    assert len(writer.rows("spans")) == 6


def test_after_a_refusal_the_connection_serves_the_next_request(served):
    writer, port = served
    body = trace_request(3).SerializeToString()
    with Connection(port) as connection:
        connection.send(*HEAD, "content-length: 3", "content-encoding: br", body=b"abc")
        assert connection.response()[0].startswith("HTTP/1.1 415 ")
        connection.send(*HEAD, f"content-length: {len(body)}", body=body)
        assert connection.response()[0] == "HTTP/1.1 200 OK"
    assert len(writer.rows("spans")) == 3


def test_a_slow_body_is_a_408_and_the_connection_ends(served):
    _, port = served
    with Connection(port) as connection:
        connection.send(*HEAD, "content-length: 100", body=b"slow")
        line, headers, body = connection.response()
        assert (line.split()[1], headers["connection"]) == ("408", "close")
        assert status_pb2.Status.FromString(body).code == code_pb2.DEADLINE_EXCEEDED
        assert connection.closed()


def test_a_sender_that_goes_away_leaves_nothing_behind(served):
    writer, port = served
    with Connection(port) as connection:
        connection.send(*HEAD, "content-length: 100", body=b"gone")
    body = trace_request(1).SerializeToString()
    assert (
        httpx.post(f"http://127.0.0.1:{port}/v1/traces", content=body, headers={"content-type": PROTOBUF}).status_code
        == 200
    )
    assert len(writer.appended) == 1


def test_two_requests_at_once_in_both_languages(served):
    writer, port = served
    request = trace_request(3)
    with Connection(port) as first, Connection(port) as second:
        for connection, language in ((first, PROTOBUF), (second, JSON)):
            body = written(request, language)
            connection.send(
                "POST /v1/traces HTTP/1.1",
                "host: x",
                f"content-type: {language}",
                f"content-length: {len(body)}",
                body=body,
            )
        assert {first.response()[1]["content-type"], second.response()[1]["content-type"]} == {PROTOBUF, JSON}
    assert len(writer.rows("spans")) == 6

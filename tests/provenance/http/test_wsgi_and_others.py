"""The WSGI middleware by hand, Litestar behind the ASGI one, and httpx over HTTP/2."""

# ruff: noqa: FBT001  (pytest passes parameters and fixtures by name)

import contextlib
import hashlib
import io
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import urllib3
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from opentelemetry.trace import SpanKind

from provenance import ProvenanceMiddleware, ProvenanceWSGIMiddleware, setup
from provenance.http.wsgi import WatchedInput
from provenance.stamp import parse

DEADLINE_SECONDS = 20.0
BODY = b'{"item":\n "shirt",\n "count": 2}'
HASH = hashlib.sha256(BODY).hexdigest()


def read_into(stream: Any) -> bytes:
    buffer, got = bytearray(7), b""
    while count := stream.readinto(buffer):
        got += buffer[:count]
    return got


READS: dict[str, Any] = {
    "read": lambda stream: stream.read(),
    "read by the length": lambda stream: stream.read(len(BODY)),
    "read in pieces": lambda stream: b"".join(iter(lambda: stream.read(7), b"")),
    "readline": lambda stream: b"".join(iter(stream.readline, b"")),
    "readlines": lambda stream: b"".join(stream.readlines()),
    "iterated": b"".join,
    "readinto": read_into,
    "read1": lambda stream: b"".join(iter(lambda: stream.read1(7), b"")),
    "read twice": lambda stream: (stream.read(), stream.seek(0), stream.read())[2],
}


@pytest.mark.parametrize("length", [len(BODY), None])
@pytest.mark.parametrize("how", READS)
def test_a_body_is_hashed_however_it_is_read(no_faults: None, how: str, length: int | None) -> None:
    stream = WatchedInput(io.BytesIO(BODY), length=length, ends=True)
    assert READS[how](stream) == BODY
    if length is None and how == "read by the length":
        assert not stream.watch_end(), "more might have come"
        assert stream.read() == b""
    assert stream.watch_end()
    assert stream.hash.complete is not None
    assert stream.hash.complete.hexdigest() == HASH


@pytest.mark.parametrize(
    "read",
    [
        lambda stream: None,
        lambda stream: stream.read(3),
        lambda stream: stream.readline(),
        lambda stream: stream.readlines(3),
        lambda stream: stream.read(0),
        lambda stream: (stream.seek(3), stream.read()),
        lambda stream: (stream.getvalue(), stream.read()),
    ],
)
@pytest.mark.parametrize("length", [len(BODY), None])
def test_no_hash_is_claimed_of_a_body_that_was_read_in_part(no_faults: None, read: Any, length: int | None) -> None:
    stream = WatchedInput(io.BytesIO(BODY), length=length, ends=True)
    read(stream)
    assert not stream.watch_end()


def test_the_end_of_a_stream_that_does_not_end_with_the_body_says_nothing(no_faults: None) -> None:
    stream = WatchedInput(io.BytesIO(BODY), length=None, ends=False)
    assert stream.read() == BODY
    assert not stream.watch_end()


class Result:
    """A response's body that can be closed."""

    def __init__(self) -> None:
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        yield from (b"12345", b"678")

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("kind", ["list", "generator", "closeable", "written", "none"])
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_the_wsgi_middleware_can_be_added_by_hand(
    serve_wsgi: Any, spans: Any, no_faults: None, kind: str, where: str
) -> None:
    closeable = Result()
    results: dict[str, Any] = {
        "list": [b"12345", b"678"],
        "generator": (piece for piece in (b"12345", b"678")),
        "closeable": closeable,
        "written": [b"678"],
        "none": [],
    }

    def app(environ: Any, start_response: Any) -> Any:
        assert environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])) == BODY
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        if kind == "written":
            write(b"12345")
        return results[kind]

    wrapped: Any = OpenTelemetryMiddleware(ProvenanceWSGIMiddleware(app))
    if where == "outside":
        wrapped = ProvenanceWSGIMiddleware(wrapped)
    with urllib3.PoolManager() as pool:
        answer = pool.request("POST", serve_wsgi(wrapped), body=BODY)

    assert answer.data == (b"" if kind == "none" else b"12345678")
    assert closeable.closed == (kind == "closeable")
    callee = spans.server()
    assert callee["provenance.request.hash"] == HASH
    assert callee["provenance.stamp.status"] == "absent"
    assert callee.get("provenance.response.size", 0) == len(answer.data)


class FileWrapper:
    """As wsgiref's: servers know it by its class."""

    def __init__(self, file: Any, block_size: int = 8192) -> None:
        self.file = file

    def __iter__(self) -> Any:
        return iter(lambda: self.file.read(8192), b"")


@pytest.mark.parametrize("wrapper", [FileWrapper, lambda file, block_size=0: file])
def test_a_file_that_the_server_sends_itself_stays_what_it_is(spans: Any, no_faults: None, wrapper: Any) -> None:
    made = []

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        made.append(environ["wsgi.file_wrapper"](io.BytesIO(BODY)))
        return made[0]

    with trace.get_tracer("x").start_as_current_span("GET", kind=SpanKind.SERVER):
        result = ProvenanceWSGIMiddleware(app)({"wsgi.file_wrapper": wrapper}, lambda *_: None)

    assert result is made[0]
    assert "provenance.response.size" not in spans.server()


def test_a_response_keeps_its_length_and_an_application_its_failure(spans: Any, no_faults: None) -> None:
    class Sized(Result):
        def __len__(self) -> int:
            return 2

    def fail(environ: Any, start_response: Any) -> Any:
        raise KeyError("stock")

    tracer = trace.get_tracer("x")
    with tracer.start_as_current_span("GET", kind=SpanKind.SERVER):
        result: Any = ProvenanceWSGIMiddleware(lambda _environ, _start: Sized())({}, lambda *_: None)
        assert len(result) == 2
        assert list(result) == [b"12345", b"678"]
    with (
        contextlib.suppress(KeyError),
        tracer.start_as_current_span("GET", kind=SpanKind.SERVER, record_exception=False),
    ):
        ProvenanceWSGIMiddleware(fail)({}, lambda *_: None)

    sizes = [span.attributes.get("provenance.response.size") for span in spans.of(SpanKind.SERVER, 2)]
    assert sizes == [8, None]


def test_litestar_behind_the_asgi_middleware(serve_asgi: Any, spans: Any, no_faults: None) -> None:
    import litestar
    from litestar.plugins.opentelemetry import OpenTelemetryConfig, OpenTelemetryPlugin

    @litestar.post("/buy")
    async def buy(request: litestar.Request[Any, Any, Any]) -> bytes:
        return await request.body()

    app = litestar.Litestar(
        route_handlers=[buy],
        plugins=[OpenTelemetryPlugin(OpenTelemetryConfig(exclude_spans=["receive", "send"]))],
        middleware=[ProvenanceMiddleware],  # type: ignore[list-item]  # its types are narrower than ASGI
    )
    with urllib3.PoolManager() as pool:
        answer = pool.request("POST", f"{serve_asgi(app)}/buy", body=BODY)

    assert (answer.status, answer.data) == (201, BODY)
    callee = spans.server()
    assert callee["provenance.request.hash"] == HASH
    assert callee["provenance.stamp.status"] == "absent"


@contextlib.contextmanager
def http2_server() -> Iterator[tuple[str, dict[str, str], bytearray]]:
    """Answers one request of one connection; with its headers and body."""
    headers: dict[str, str] = {}
    body = bytearray()

    def serve() -> None:
        client, _ = listener.accept()
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        with client:
            client.settimeout(DEADLINE_SECONDS)
            client.sendall(connection.data_to_send())
            while data := client.recv(65_536):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        headers.update({str(key): str(value) for key, value in event.headers or ()})
                    elif isinstance(event, h2.events.DataReceived):
                        body.extend(event.data or b"")
                    elif isinstance(event, h2.events.StreamEnded):
                        connection.send_headers(event.stream_id, [(":status", "201"), ("content-length", "4")])
                        connection.send_data(event.stream_id, b"sold", end_stream=True)
                client.sendall(connection.data_to_send())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/", headers, body
        thread.join(DEADLINE_SECONDS)


@pytest.mark.parametrize("streamed", [False, True])
def test_httpx_over_http2_is_stamped(activate: Any, spans: Any, no_faults: None, streamed: bool) -> None:
    activate(HTTPXClientInstrumentor())
    with http2_server() as (url, headers, body):
        no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with httpx.Client(http1=False, http2=True, verify=no_tls, timeout=DEADLINE_SECONDS) as client:
            answer = client.post(url, content=iter([BODY]) if streamed else BODY)

    assert (answer.status_code, answer.http_version, bytes(body)) == (201, "HTTP/2", BODY)
    caller = spans.client()
    assert caller["provenance.stamp.nonce"] == parse(headers["provenance"]).nonce.hex()
    assert (caller["provenance.request.hash"], caller["provenance.response.size"]) == (HASH, 4)
    assert caller["network.peer.address"] == "127.0.0.1"
    assert ("content-digest" in headers) is not streamed


def test_django_without_settings_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    monkeypatch.setitem(sys.modules, "django.conf", None)
    assert not setup._django_has_settings()

    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop.settings")
    assert setup._django_has_settings()

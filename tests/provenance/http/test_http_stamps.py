"""Real HTTP calls over real sockets, in both orders of activation: stamped on both sides, and otherwise untouched."""

# ruff: noqa: FBT001  (pytest passes parameters and fixtures by name)

import asyncio
import hashlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import fastapi
import httpcore
import httpx
import pytest
import starlette.applications
import uvicorn
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.starlette import StarletteInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from provenance import faults
from provenance.digest import render_content_digest
from provenance.http import asgi as server_shell
from provenance.http import client as client_shell
from provenance.http import messages
from provenance.instrumentor import ProvenanceInstrumentor
from provenance.stamp import parse

DEADLINE_SECONDS = 20.0
BODY = b'{"item": "shirt", "count": 2}'
HASH = hashlib.sha256(BODY).hexdigest()
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading the certificate authorities would take longest of all
EMPTY = hashlib.sha256(b"").hexdigest()


@dataclass
class Seen:
    """What reached the application."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def values(self, key: str) -> list[str]:
        return [v for k, v in self.headers if k == key]


class Server(uvicorn.Server):
    """Tells when it serves."""

    def __init__(self, app: Any) -> None:
        super().__init__(uvicorn.Config(app, lifespan="off", log_config=None, ws="none"))
        self.serving = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.serving.set()


class Host:
    """One server with several ports, and an application behind each that is taken: starting one a test takes too long."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        self.free = [listener.getsockname()[1] for listener in listeners]
        self.apps: dict[int, Any] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.apps[scope["server"][1]](scope, receive, send)


HOST: list[Host] = []


@pytest.fixture(scope="module", autouse=True)
def _host() -> Iterator[None]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    HOST.append(Host(listeners))
    server = Server(HOST[0])
    thread = threading.Thread(target=server.run, kwargs={"sockets": listeners})
    thread.start()
    try:
        assert server.serving.wait(DEADLINE_SECONDS)
        yield
    finally:
        HOST.clear()
        server.should_exit = True
        thread.join(DEADLINE_SECONDS)
        for listener in listeners:
            listener.close()
        assert not thread.is_alive()


@contextmanager
def served(app: Any) -> Iterator[str]:
    host = HOST[0]
    port = host.free.pop()
    host.apps[port] = app
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        host.free.append(port)


def make_app(seen: Seen, framework: str) -> Any:
    async def buy(request: Any) -> Response:
        seen.headers = [(k.decode(), v.decode()) for k, v in request.headers.raw]
        seen.body = await request.body()
        return PlainTextResponse("sold", status_code=201)

    async def ignore(request: Any) -> Response:
        seen.headers = [(k.decode(), v.decode()) for k, v in request.headers.raw]
        return PlainTextResponse("not read")

    async def fail(request: Any) -> Response:
        await request.body()
        raise KeyError("stock")

    async def stream(request: Any) -> Response:
        async def pieces() -> Any:
            for _ in range(3):
                yield b"0123456789"

        return StreamingResponse(pieces())

    routes = {"/buy": buy, "/ignore": ignore, "/fail": fail, "/stream": stream}
    if framework == "starlette":
        return starlette.applications.Starlette(
            routes=[Route(p, f, methods=["GET", "POST"]) for p, f in routes.items()]
        )
    app = fastapi.FastAPI()
    for path, function in routes.items():
        function.__annotations__["request"] = fastapi.Request
        function.__annotations__["return"] = Response
        app.add_api_route(path, function, methods=["GET", "HEAD", "POST"], response_class=Response)
    return app


@dataclass
class Shop:
    url: str
    seen: Seen


FRAMEWORKS = {
    "fastapi, by itself": ("fastapi", ()),
    "fastapi, instrumented": ("fastapi", (FastAPIInstrumentor,)),
    "fastapi, doubly": ("fastapi", (StarletteInstrumentor, FastAPIInstrumentor)),
    "starlette, instrumented": ("starlette", (StarletteInstrumentor,)),
}


@pytest.fixture
def start(spans: Any) -> Iterator[Callable[..., Shop]]:
    """Start applications of a framework; the instrumentation has to be active before, as it replaces their classes."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def run(framework: str = "fastapi") -> Shop:
            seen = Seen()
            return Shop(stack.enter_context(served(make_app(seen, framework))), seen)

        yield run


@pytest.fixture(params=FRAMEWORKS)
def shop(request: Any, activate: Any, start: Any, no_faults: None) -> Shop:
    framework, instrumentors = FRAMEWORKS[request.param]
    activate(HTTPXClientInstrumentor(), *(each() for each in instrumentors))
    shop: Shop = start(framework)
    return shop


@pytest.fixture
def fastapi_shop(activate: Any, start: Any, no_faults: None) -> Shop:
    activate(HTTPXClientInstrumentor())
    shop: Shop = start()
    return shop


def send_sync(method: str, url: str, **kwargs: Any) -> httpx.Response:
    with httpx.Client(timeout=DEADLINE_SECONDS, verify=NO_TLS) as client:
        return client.request(method, url, **kwargs)


def send_async(method: str, url: str, **kwargs: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(timeout=DEADLINE_SECONDS, verify=NO_TLS) as client:
            return await client.request(method, url, **kwargs)

    return asyncio.run(run())


SENDERS = [send_sync, send_async]


@pytest.mark.parametrize("send", SENDERS)
def test_both_spans_say_the_same_of_a_call(shop: Shop, spans: Any, send: Any) -> None:
    response = send("POST", f"{shop.url}/buy", content=BODY)

    assert (response.status_code, response.text, shop.seen.body) == (201, "sold", BODY)
    client, server = spans.client(), spans.server()
    (header,) = shop.seen.values("provenance")
    stamp = parse(header)
    common = {
        "provenance.request.hash": HASH,
        "provenance.request.size": len(BODY),
        "provenance.response.size": len("sold"),
        "provenance.request_id": shop.seen.values("x-request-id")[0],
        "provenance.stamp.kid": "checkout",
        "provenance.stamp.nonce": stamp.nonce.hex(),
        "provenance.stamp.time_unix_ms": stamp.time_unix_ms,
    }
    port = httpx.URL(shop.url).port
    reached = {
        "server.address": "127.0.0.1",
        "server.port": port,
        "network.peer.address": "127.0.0.1",
        "network.peer.port": port,
    }
    assert {
        k: v for k, v in client.items() if k.startswith(("provenance.", "server.", "network.peer."))
    } == common | reached
    assert server.pop("network.peer.port") != port
    assert {k: v for k, v in server.items() if k.startswith(("provenance.", "network.peer."))} == common | {
        "provenance.stamp.status": "unsigned",
        "network.peer.address": "127.0.0.1",
    }


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_request_without_a_body_hashes_to_the_hash_of_nothing(fastapi_shop: Shop, spans: Any, method: str) -> None:
    send_sync(method, f"{fastapi_shop.url}/ignore")

    client, server = spans.client(), spans.server()
    assert client["provenance.request.hash"] == server["provenance.request.hash"] == EMPTY
    assert client["provenance.request.size"] == server["provenance.request.size"] == 0
    assert (
        client["provenance.response.size"]
        == server["provenance.response.size"]
        == (0 if method == "HEAD" else len("not read"))
    )


def test_no_hash_is_claimed_of_a_body_that_nobody_read(shop: Shop, spans: Any) -> None:
    send_sync("POST", f"{shop.url}/ignore", content=BODY)

    server = spans.server()
    assert "provenance.request.hash" not in server
    assert server["provenance.stamp.status"] == "unsigned"
    assert spans.client()["provenance.request.hash"] == HASH


@pytest.mark.parametrize("send", SENDERS)
def test_a_streamed_body_is_hashed_as_it_passes(fastapi_shop: Shop, spans: Any, send: Any) -> None:
    taken = []

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(BODY), 7):
            taken.append(at)
            yield BODY[at : at + 7]

    async def apieces() -> Any:
        for piece in pieces():
            yield piece

    send("POST", f"{fastapi_shop.url}/buy", content=apieces() if send is send_async else pieces())

    assert fastapi_shop.seen.body == BODY
    assert fastapi_shop.seen.values("content-digest") == [], "it could only be known by draining the stream first"
    assert len(taken) == len(set(taken))
    client, server = spans.client(), spans.server()
    assert client["provenance.request.hash"] == server["provenance.request.hash"] == HASH
    assert client["provenance.request.size"] == server["provenance.request.size"] == len(BODY)
    assert server["provenance.stamp.status"] == "unsigned"


@pytest.mark.parametrize("send", SENDERS)
def test_a_file_that_is_uploaded_is_hashed_as_it_passes(fastapi_shop: Shop, spans: Any, send: Any) -> None:
    response = send("POST", f"{fastapi_shop.url}/buy", data={"count": "2"}, files={"photo": ("shirt.png", BODY)})

    assert response.status_code == 201
    assert BODY in fastapi_shop.seen.body
    client, server = spans.client(), spans.server()
    sent = hashlib.sha256(fastapi_shop.seen.body).hexdigest()
    assert client["provenance.request.hash"] == server["provenance.request.hash"] == sent
    assert client["provenance.request.size"] == len(fastapi_shop.seen.body)


def test_a_streamed_response_is_counted(shop: Shop, spans: Any) -> None:
    assert len(send_sync("GET", f"{shop.url}/stream").content) == 30
    assert spans.server()["provenance.response.size"] == 30


def test_a_failing_application_fails_as_without_us(shop: Shop, spans: Any, caplog: pytest.LogCaptureFixture) -> None:
    response = send_sync("POST", f"{shop.url}/fail", content=BODY)

    assert (response.status_code, response.text) == (500, "Internal Server Error")
    server = spans.server()
    assert server["provenance.request.hash"] == HASH
    assert server["provenance.stamp.status"] == "unsigned"


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/nowhere", 404), ("DELETE", "/buy", 405)])
def test_a_request_without_a_handler_is_described_too(
    shop: Shop, spans: Any, method: str, path: str, status: int
) -> None:
    assert send_sync(method, shop.url + path).status_code == status
    assert spans.server()["provenance.stamp.status"] == "unsigned"


def test_the_callers_headers_and_request_are_untouched(fastapi_shop: Shop, spans: Any) -> None:
    headers = [("x", "1"), ("x", "2"), ("Content-Digest", "sha-512=:AAAA:"), ("x-request-id", "mine")]
    with httpx.Client(verify=NO_TLS) as client:
        request = client.build_request("POST", f"{fastapi_shop.url}/buy", content=BODY, headers=headers)
        client.send(request)
        client.send(request)  # the same one again

    assert fastapi_shop.seen.values("x") == ["1", "2"]
    assert fastapi_shop.seen.values("x-request-id") == ["mine"]
    assert fastapi_shop.seen.values("content-digest") == ["sha-512=:AAAA:"]
    assert len(fastapi_shop.seen.values("provenance")) == 1
    assert "provenance" not in request.headers
    clients, servers = spans.of(SpanKind.CLIENT, 2), spans.of(SpanKind.SERVER, 2)
    assert len({s.attributes["provenance.stamp.nonce"] for s in clients}) == 2
    assert {s.attributes["provenance.stamp.status"] for s in servers} == {"unsigned"}
    assert {s.attributes["provenance.request_id"] for s in clients + servers} == {"mine"}
    assert {s.attributes["provenance.request.hash"] for s in clients + servers} == {HASH}


def test_a_gateway_that_copies_all_headers_does_not_pass_on_an_old_stamp(fastapi_shop: Shop, spans: Any) -> None:
    old = {"provenance": 'v=1, kid="browser", t=1, n=:AAAAAAAAAAAAAAAA:', "content-digest": f"sha-256=:{'A' * 43}=:"}
    send_sync("POST", f"{fastapi_shop.url}/buy", content=BODY, headers=old)

    server = spans.server()
    assert len(fastapi_shop.seen.values("provenance")) == 1
    assert server["provenance.stamp.kid"] == "checkout"
    assert server["provenance.stamp.status"] == "unsigned"
    assert fastapi_shop.seen.values("content-digest") == [render_content_digest(HASH)], (
        "the old stamp's digest goes too"
    )


def test_a_changed_body_is_mismatched(fastapi_shop: Shop, spans: Any) -> None:
    with suppress_instrumentation():
        headers = {
            "provenance": 'v=1, kid="web", t=1, n=:AAAAAAAAAAAAAAAA:',
            "content-digest": f"sha-256=:{'A' * 43}=:",
        }
        send_sync("POST", f"{fastapi_shop.url}/buy", content=BODY, headers=headers)

    assert spans.server()["provenance.stamp.status"] == "mismatched"
    assert spans.server()["provenance.stamp.kid"] == "web"


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, "absent"), ({"provenance": "nonsense!"}, "malformed"), ({"provenance": "v=1, k=" + "x" * 9000}, "malformed")],
)
def test_a_caller_without_the_middleware(fastapi_shop: Shop, spans: Any, headers: dict[str, str], status: str) -> None:
    with suppress_instrumentation():
        assert send_sync("POST", f"{fastapi_shop.url}/buy", content=BODY, headers=headers).status_code == 201

    assert spans.server()["provenance.stamp.status"] == status
    assert spans.server()["provenance.request.hash"] == HASH


def test_a_proxy_in_front_vouches_for_the_peer(fastapi_shop: Shop, spans: Any) -> None:
    headers = [
        ("x-forwarded-client-cert", "URI=spiffe://forged"),
        ("x-forwarded-client-cert", "By=x;URI=spiffe://mesh/web"),
    ]
    send_sync("GET", f"{fastapi_shop.url}/ignore", headers=headers)

    assert spans.server()["provenance.peer.principal"] == "spiffe://mesh/web"


@pytest.mark.parametrize("send", SENDERS)
def test_redirects_are_stamped_one_by_one(activate: Any, start: Any, spans: Any, no_faults: None, send: Any) -> None:
    activate(HTTPXClientInstrumentor())
    shop = start()
    send("POST", f"{shop.url}/buy/", content=BODY, follow_redirects=True)

    assert shop.seen.body == BODY
    stamps = {s.attributes["provenance.stamp.nonce"] for s in spans.of(SpanKind.CLIENT, 2)}
    assert stamps == {s.attributes["provenance.stamp.nonce"] for s in spans.of(SpanKind.SERVER, 2)}
    assert len(stamps) == 2


def test_a_refused_connection_fails_as_without_us(activate: Any, spans: Any, no_faults: None) -> None:
    activate(HTTPXClientInstrumentor())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(httpx.ConnectError):
        send_sync("POST", f"http://localhost:{port}/", content=BODY)

    client = spans.client()
    assert client["provenance.request.hash"] == HASH
    assert (client["server.address"], client["server.port"]) == ("localhost", port)
    assert "network.peer.address" not in client


def test_the_peer_is_who_was_dialled_and_the_server_who_was_meant(fastapi_shop: Shop, spans: Any) -> None:
    port = httpx.URL(fastapi_shop.url).port
    with httpx.Client(proxy=fastapi_shop.url, verify=NO_TLS) as client:  # the application stands in for a forward proxy
        client.post("http://api.example.com/buy", content=BODY)

    attributes = spans.client()
    assert (attributes["server.address"], attributes["server.port"]) == ("api.example.com", 80)
    assert (attributes["network.peer.address"], attributes["network.peer.port"]) == ("127.0.0.1", port)


def test_httpcore_alone_is_stamped_and_touches_no_other_span(
    activate: Any, start: Any, spans: Any, no_faults: None
) -> None:
    activate()
    shop = start()
    tracer: Any = trace.get_tracer("user")
    for kind, attributes in ((SpanKind.INTERNAL, {}), (SpanKind.CLIENT, {"db.system.name": "opensearch"})):
        with (
            tracer.start_as_current_span("the user's own", kind=kind, attributes=attributes) as span,
            httpcore.ConnectionPool() as pool,
        ):
            assert pool.request("POST", f"{shop.url}/buy", content=BODY).status == 201
        assert dict(span.attributes) == attributes
        assert parse(shop.seen.values("provenance")[0]).kid == "checkout"
        assert len(shop.seen.values("content-digest")) == 1


def test_a_server_forwards_the_request_id_to_its_own_calls(
    activate: Any, start: Any, spans: Any, no_faults: None
) -> None:
    activate(HTTPXClientInstrumentor())
    behind = start()
    app = fastapi.FastAPI()

    @app.get("/async")
    async def by_await() -> str:
        async with httpx.AsyncClient(verify=NO_TLS) as client:
            return (await client.get(f"{behind.url}/ignore")).text

    @app.get("/thread")
    def in_a_thread() -> str:
        return httpx.get(f"{behind.url}/ignore", verify=NO_TLS).text

    with served(app) as url:
        for path in ("/async", "/thread"):
            assert send_sync("GET", url + path, headers={"x-request-id": f"id-of-{path[1:]}"}).status_code == 200
            assert behind.seen.values("x-request-id") == [f"id-of-{path[1:]}"]


def test_the_users_middleware_may_read_the_body_first(activate: Any, start: Any, spans: Any, no_faults: None) -> None:
    activate(HTTPXClientInstrumentor())
    seen = Seen()
    app = make_app(seen, "fastapi")

    class ReadsTheBody(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Response:
            assert await request.body() == BODY
            response: Response = await call_next(request)
            response.headers["seen"] = "yes"
            return response

    app.add_middleware(ReadsTheBody)
    with served(app) as url:
        assert send_sync("POST", f"{url}/buy", content=BODY).headers["seen"] == "yes"

    assert seen.body == BODY
    assert spans.server()["provenance.request.hash"] == HASH


def test_an_application_within_an_application_is_described_once(
    activate: Any, start: Any, spans: Any, no_faults: None
) -> None:
    activate(HTTPXClientInstrumentor(), StarletteInstrumentor())
    seen = Seen()
    app = starlette.applications.Starlette(routes=[Mount("/shop", make_app(seen, "starlette"))])
    with served(app) as url:
        send_sync("POST", f"{url}/shop/buy", content=BODY)

    assert spans.server()["provenance.request.hash"] == HASH
    assert not any(
        "provenance.stamp.status" in (s.attributes or {}) for s in spans._ended if s.kind is SpanKind.INTERNAL
    )


def test_a_call_within_the_process_does_not_write_on_the_span_of_the_request_around_it(
    spans: Any, no_faults: None
) -> None:
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    from provenance import ProvenanceMiddleware

    inner = ProvenanceMiddleware(make_app(Seen(), "starlette"))

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        assert trace.get_current_span().kind is SpanKind.SERVER  # type: ignore[attr-defined]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="http://inner") as client:
            await client.post("/buy", content=b"something else", headers={"x-request-id": "inner"})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"12345"})

    with served(OpenTelemetryMiddleware(ProvenanceMiddleware(outer))) as url:
        send_sync("POST", url, content=BODY, headers={"x-request-id": "outer"})

    server = spans.server()
    assert "provenance.request.hash" not in server, "the outer one was not read"
    assert (server["provenance.request_id"], server["provenance.response.size"]) == ("outer", 5)


def test_no_hash_is_claimed_of_a_body_that_was_read_in_part(spans: Any, no_faults: None) -> None:
    parts: list[Any] = [
        {"type": "http.request", "body": BODY[:9], "more_body": True},
        {"type": "http.request", "body": BODY[9:]},
    ]
    for read, claimed in ((1, None), (2, HASH)):
        with trace.get_tracer("x").start_as_current_span("POST", kind=SpanKind.SERVER) as span:
            recording: Any = span
            request = server_shell.WatchedRequest(recording, {"type": "http"}, {"content-length": str(len(BODY))})
            for message in parts[:read]:
                request.received(message)
            request.finish()
        assert recording.attributes.get("provenance.request.hash") == claimed
        assert recording.attributes["provenance.stamp.status"] == "absent"


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_the_middleware_can_be_added_by_hand(start: Any, spans: Any, no_faults: None, where: str) -> None:
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    from provenance import ProvenanceMiddleware

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise AssertionError(scope["type"])
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})

    wrapped: Any = OpenTelemetryMiddleware(ProvenanceMiddleware(app))
    if where == "outside":
        wrapped = ProvenanceMiddleware(wrapped)
    with served(wrapped) as url:
        assert send_sync("POST", url, content=BODY).content == BODY

    server = spans.server()
    assert server["provenance.request.hash"] == HASH
    assert (server["provenance.stamp.status"], server["provenance.response.size"]) == ("absent", len(BODY))


def test_other_scopes_pass_untouched() -> None:
    from provenance import ProvenanceMiddleware

    calls = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        calls.append((scope, receive, send))

    for kind in ("lifespan", "websocket"):
        arguments = ({"type": kind}, object(), object())
        asyncio.run(ProvenanceMiddleware(app)(*arguments))  # type: ignore[arg-type]
        assert all(got is given for got, given in zip(calls.pop(), arguments, strict=True))


@pytest.mark.parametrize("end", ["complete", "failed"])
@pytest.mark.parametrize("owned", [True, False])
def test_a_lifespan_ends_with_the_last_spans_exported(
    monkeypatch: pytest.MonkeyPatch, no_faults: None, owned: bool, end: str
) -> None:
    from provenance import ProvenanceMiddleware, setup

    events: list[Any] = []

    class Provider:
        def force_flush(self, timeout_ms: int) -> bool:
            events.append(threading.current_thread() is threading.main_thread())
            return True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in ("startup.complete", f"shutdown.{end}"):
            await send({"type": f"lifespan.{message}"})

    async def send(message: Any) -> None:
        events.append(message["type"])

    monkeypatch.setattr(setup, "_handle", setup.Handle(Provider(), owned))
    nested = ProvenanceMiddleware(ProvenanceMiddleware(app))
    asyncio.run(nested({"type": "lifespan"}, None, send))  # type: ignore[arg-type]

    flushed = [False] if owned else []
    assert events == ["lifespan.startup.complete", *flushed, f"lifespan.shutdown.{end}"]


def test_a_flush_that_hangs_does_not_hold_the_end_up(monkeypatch: pytest.MonkeyPatch, no_faults: None) -> None:
    from provenance import ProvenanceMiddleware, setup

    release, sent = threading.Event(), []

    class Provider:
        def force_flush(self, timeout_ms: int) -> bool:
            return release.wait(DEADLINE_SECONDS)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.shutdown.complete"})

    async def send(message: Any) -> None:
        sent.append((message["type"], release.is_set()))

    monkeypatch.setattr(server_shell, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(setup, "_handle", setup.Handle(Provider(), owned=True))
    asyncio.run(ProvenanceMiddleware(app)({"type": "lifespan"}, None, send))  # type: ignore[arg-type]
    release.set()

    assert sent == [("lifespan.shutdown.complete", False)]


@pytest.mark.parametrize(
    ("version", "headers", "known"),
    [
        ("1.1", {}, True),
        ("1.0", {"content-length": "0"}, True),
        ("1.1", {"content-length": "5"}, False),
        ("1.1", {"transfer-encoding": "chunked"}, False),
        ("1.1", {"transfer-encoding": "chunked", "content-length": "0"}, False),
        ("2", {}, False),
        ("2", {"content-length": "0"}, True),
    ],
)
def test_when_a_request_has_no_body_for_certain(version: str, headers: dict[str, str], known: bool) -> None:
    assert messages.has_no_body(version, headers) is known


@pytest.mark.parametrize(
    ("shell", "owner", "name"),
    [
        (client_shell, client_shell, "request_hash"),
        (client_shell, client_shell, "stamp_now"),
        (client_shell, client_shell, "_describe"),
        (server_shell, server_shell, "combined_headers"),
        (server_shell, server_shell.WatchedRequest, "received"),
        (server_shell, server_shell.WatchedRequest, "sending"),
        (server_shell, server_shell, "request_attributes"),
    ],
)
def test_a_broken_middleware_never_breaks_a_call(
    activate: Any,
    start: Any,
    spans: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    shell: Any,
    owner: Any,
    name: str,
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(name)

    faults.reset()
    activate(HTTPXClientInstrumentor())
    shop = start()
    monkeypatch.setattr(owner, name, broken)
    with caplog.at_level(logging.WARNING, logger="provenance"):
        response = send_sync("POST", f"{shop.url}/buy", content=BODY)

    assert (response.status_code, response.text, shop.seen.body) == (201, "sold", BODY)
    spans.of(SpanKind.SERVER)
    assert faults.counts().keys() == {shell.PLACE}
    assert [r.levelname for r in caplog.records if r.name == "provenance"] == ["WARNING"]


@pytest.mark.parametrize("send", SENDERS)
def test_a_broken_hash_never_breaks_a_stream(
    activate: Any, start: Any, spans: Any, monkeypatch: pytest.MonkeyPatch, send: Any
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError

    async def apieces() -> Any:
        yield BODY

    faults.reset()
    activate(HTTPXClientInstrumentor())
    shop = start()
    monkeypatch.setattr("provenance.digest.RunningHash.update", broken)
    send("POST", f"{shop.url}/buy", content=apieces() if send is send_async else iter([BODY]))

    assert shop.seen.body == BODY
    assert "provenance.request.hash" not in spans.client() | spans.server(), "half a hash is none"
    faults.reset()


def test_uninstrument_restores_everything(start: Any, spans: Any, no_faults: None) -> None:
    from starlette.middleware.errors import ServerErrorMiddleware
    from starlette.middleware.exceptions import ExceptionMiddleware
    from starlette.routing import Router

    places = [
        (httpcore.ConnectionPool, "handle_request"),
        (httpcore.AsyncConnectionPool, "handle_async_request"),
        (ServerErrorMiddleware, "__call__"),
        (ExceptionMiddleware, "__call__"),
        (Router, "__call__"),
    ]
    before = [getattr(owner, name) for owner, name in places]
    ProvenanceInstrumentor().instrument()
    assert not any(getattr(owner, name) is original for (owner, name), original in zip(places, before, strict=True))

    ProvenanceInstrumentor().uninstrument()
    assert [getattr(owner, name) for owner, name in places] == before

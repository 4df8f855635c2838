"""requests, urllib3 and aiohttp against Starlette, Flask and Django: every kind of body, in both orders of activation."""

import asyncio
import contextlib
import hashlib
import io
import json
import logging
import socket
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import django.conf
import flask
import pytest
import requests
import starlette.applications
import urllib3
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.urls import path as django_path
from opentelemetry import trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.starlette import StarletteInstrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind
from requests.adapters import HTTPAdapter
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from provenance import enforcement, faults
from provenance.digest import render_content_digest
from provenance.http import aiohttp as aiohttp_shell
from provenance.http import django as django_shell
from provenance.http import flask as flask_shell
from provenance.http import urllib3 as urllib3_shell
from provenance.http import wsgi as wsgi_shell
from provenance.http.passing import PassingHash
from provenance.instrumentor import ProvenanceInstrumentor
from provenance.stamp import parse

DEADLINE_SECONDS = 20.0
ITEM = {"item": "shirt", "count": 2}
BODY = json.dumps(ITEM).encode()
HASH = hashlib.sha256(BODY).hexdigest()
EMPTY = hashlib.sha256(b"").hexdigest()
METHODS = ["GET", "HEAD", "POST", "PUT"]


@dataclass
class Seen:
    """What reached the application."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def make_starlette(seen: Seen) -> Any:
    async def buy(request: Any) -> Response:
        seen.headers, seen.body = dict(request.headers), await request.body()
        return PlainTextResponse("sold", status_code=201)

    async def ignore(request: Any) -> Response:
        seen.headers = dict(request.headers)
        return PlainTextResponse("not read")

    async def moved(request: Any) -> Response:
        await request.body()
        return RedirectResponse("/buy", status_code=307)

    async def fail(request: Any) -> Response:
        await request.body()
        raise KeyError("stock")

    async def stream(request: Any) -> Response:
        async def pieces() -> Any:
            for _ in range(3):
                yield b"0123456789"

        return StreamingResponse(pieces())

    routes = {"/buy": buy, "/ignore": ignore, "/moved": moved, "/fail": fail, "/stream": stream}
    return starlette.applications.Starlette(
        routes=[Route(path, function, methods=METHODS) for path, function in routes.items()]
    )


def wsgi_headers(environ: Any) -> dict[str, str]:
    return {key[5:].replace("_", "-").lower(): value for key, value in environ.items() if key.startswith("HTTP_")}


def make_flask(seen: Seen) -> Any:
    app = flask.Flask("shop")

    def buy() -> Any:
        seen.headers, seen.body = wsgi_headers(flask.request.environ), flask.request.get_data()
        return "sold", 201

    def ignore() -> Any:
        seen.headers = wsgi_headers(flask.request.environ)
        return "not read"

    def moved() -> Any:
        flask.request.get_data()
        return flask.redirect("/buy", code=307)

    def fail() -> Any:
        flask.request.get_data()
        raise KeyError("stock")

    def stream() -> Any:
        return flask.Response(b"0123456789" for _ in range(3))

    for function in (buy, ignore, moved, fail, stream):
        app.add_url_rule(f"/{function.__name__}", view_func=function, methods=METHODS)
    return app


URLS: Any = types.ModuleType("urls")


def configure_django(seen: Seen) -> None:
    def buy(request: Any) -> Any:
        seen.headers, seen.body = wsgi_headers(request.META), request.body
        return HttpResponse("sold", status=201)

    def ignore(request: Any) -> Any:
        seen.headers = wsgi_headers(request.META)
        return HttpResponse("not read")

    def moved(request: Any) -> Any:
        _ = request.body
        response = HttpResponseRedirect("/buy")
        response.status_code = 307
        return response

    def fail(request: Any) -> Any:
        _ = request.body
        raise KeyError("stock")

    def stream(request: Any) -> Any:
        return StreamingHttpResponse(b"0123456789" for _ in range(3))

    from django.urls import clear_url_caches

    clear_url_caches()
    URLS.urlpatterns = [django_path(f.__name__, f) for f in (buy, ignore, moved, fail, stream)]


@pytest.fixture(scope="module", autouse=True)
def _django() -> None:
    if not django.conf.settings.configured:
        django.conf.settings.configure(
            ROOT_URLCONF=URLS,
            ALLOWED_HOSTS=["*"],
            SECRET_KEY="x",
            LOGGING_CONFIG=None,
            MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        )


def make_django_wsgi(seen: Seen) -> Any:
    configure_django(seen)
    return WSGIHandler()


def make_django_asgi(seen: Seen) -> Any:
    configure_django(seen)
    return ASGIHandler()


SERVERS: dict[str, tuple[Any, Any, str]] = {
    "starlette": (make_starlette, StarletteInstrumentor, "serve_asgi"),
    "flask": (make_flask, FlaskInstrumentor, "serve_wsgi"),
    "django": (make_django_wsgi, DjangoInstrumentor, "serve_wsgi"),
    "django, asgi": (make_django_asgi, DjangoInstrumentor, "serve_asgi"),
}


# --- clients -------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    status: int
    content: bytes


def pieces() -> Iterator[bytes]:
    for at in range(0, len(BODY), 7):
        yield BODY[at : at + 7]


REQUESTS_BODIES: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "empty": lambda: {"data": b""},
    "bytes": lambda: {"data": BODY},
    "text": lambda: {"data": "für zwei"},
    "json": lambda: {"json": ITEM},
    "generator": lambda: {"data": pieces()},
    "file": lambda: {"data": io.BytesIO(BODY)},
    "multipart": lambda: {"files": {"photo": ("shirt.png", BODY)}},
}


def send_requests(method: str, url: str, retry: Any = 0, **kwargs: Any) -> Answer:
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", HTTPAdapter(max_retries=retry))
        response = session.request(method, url, timeout=DEADLINE_SECONDS, **kwargs)
        return Answer(response.status_code, response.content)


URLLIB3_BODIES: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "empty": lambda: {"body": b""},
    "bytes": lambda: {"body": BODY},
    "text": lambda: {"body": "für zwei"},
    "json": lambda: {"json": ITEM},
    "generator": lambda: {"body": pieces()},
    "file": lambda: {"body": io.BytesIO(BODY)},
    "text file": lambda: {"body": io.StringIO("für zwei")},
    "buffer": lambda: {"body": bytearray(BODY)},
    "multipart": lambda: {"fields": {"photo": ("shirt.png", BODY)}},
}


def send_urllib3(method: str, url: str, retry: Any = None, **kwargs: Any) -> Answer:
    with urllib3.PoolManager(timeout=DEADLINE_SECONDS) as pool:
        response = pool.request(method, url, retries=retry, **kwargs)
        return Answer(response.status, response.data)


async def apieces() -> Any:
    for piece in pieces():
        yield piece


def form() -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("photo", io.BytesIO(BODY), filename="shirt.png")
    return data


AIOHTTP_BODIES: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "empty": lambda: {"data": b""},
    "bytes": lambda: {"data": BODY},
    "text": lambda: {"data": "für zwei"},
    "json": lambda: {"json": ITEM},
    "buffer": lambda: {"data": bytearray(BODY)},
    "form": lambda: {"data": {"count": "2"}},
    "generator": lambda: {"data": apieces()},
    "file": lambda: {"data": io.BytesIO(BODY)},
    "multipart": lambda: {"data": form()},
}


def send_aiohttp(method: str, url: str, retry: Any = None, **kwargs: Any) -> Answer:
    async def run() -> Answer:
        timeout = aiohttp.ClientTimeout(DEADLINE_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, **kwargs) as response,
        ):
            return Answer(response.status, await response.read())

    return asyncio.run(run())


@dataclass(frozen=True)
class Client:
    """How one client is used, what instruments it, and which of its bodies are known before they are sent."""

    send: Callable[..., Answer]
    bodies: dict[str, Callable[[], dict[str, Any]]]
    instrumentors: tuple[Any, ...]
    streamed: frozenset[str]
    place: str


STREAMED = frozenset({"generator", "file", "text file"})
CLIENTS = {
    "requests": Client(send_requests, REQUESTS_BODIES, (RequestsInstrumentor,), STREAMED, "http.urllib3"),
    "requests, doubly": Client(
        send_requests, REQUESTS_BODIES, (RequestsInstrumentor, URLLib3Instrumentor), STREAMED, "http.urllib3"
    ),
    "requests, beneath": Client(send_requests, REQUESTS_BODIES, (URLLib3Instrumentor,), STREAMED, "http.urllib3"),
    "urllib3": Client(send_urllib3, URLLIB3_BODIES, (URLLib3Instrumentor,), STREAMED, "http.urllib3"),
    "aiohttp": Client(
        send_aiohttp, AIOHTTP_BODIES, (AioHttpClientInstrumentor,), STREAMED | {"multipart"}, "http.aiohttp"
    ),
}
CASES = [(client, body) for client, each in CLIENTS.items() for body in each.bodies]


@dataclass
class Shop:
    url: str
    seen: Seen
    server: str


@pytest.fixture
def open_shop(request: pytest.FixtureRequest, activate: Any, spans: Any) -> Callable[..., Shop]:
    """Instrument a client and a server, and start the server."""

    def run(client: str, server: str) -> Shop:
        make, instrumentor, serve = SERVERS[server]
        activate(instrumentor(), *(each() for each in CLIENTS[client].instrumentors))
        seen = Seen()
        return Shop(request.getfixturevalue(serve)(make(seen)), seen, server)

    return run


def ours(attributes: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in attributes.items() if k.startswith(("provenance.", "server.", "network.peer."))}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(("client", "body"), CASES)
def test_both_spans_say_the_same_of_every_kind_of_body(
    open_shop: Any, spans: Any, no_faults: None, client: str, body: str, server: str
) -> None:
    shop = open_shop(client, server)
    its = CLIENTS[client]
    answer = its.send("POST", f"{shop.url}/buy", **its.bodies[body]())

    assert (answer.status, answer.content) == (201, b"sold")
    # Over WSGI, Django reads no body without a Content-Length.
    unframed = server == "django" and body in its.streamed and not shop.seen.body
    sent = ("für zwei".encode() if body == "text file" else BODY) if unframed else shop.seen.body
    expected, size = hashlib.sha256(sent).hexdigest(), len(sent)
    caller, callee = ours(spans.client()), ours(spans.server())
    stamp = parse(shop.seen.headers["provenance"])
    port = urllib3.util.parse_url(shop.url).port
    common = {
        "provenance.response.size": 4,
        "provenance.request_id": shop.seen.headers["x-request-id"],
        "provenance.stamp.kid": "checkout",
        "provenance.stamp.nonce": stamp.nonce.hex(),
        "provenance.stamp.time_unix_ms": stamp.time_unix_ms,
    }
    hashed = {"provenance.request.hash": expected, "provenance.request.size": size}
    assert caller == common | hashed | {
        "server.address": "127.0.0.1",
        "server.port": port,
        "network.peer.address": "127.0.0.1",
        "network.peer.port": port,
    }
    assert callee.pop("network.peer.port") != port
    assert callee == common | ({} if unframed else hashed) | {
        "provenance.stamp.status": "unsigned",
        "network.peer.address": "127.0.0.1",
    }
    digest = None if body in its.streamed else render_content_digest(expected)
    assert shop.seen.headers.get("content-digest") == digest
    if body in {"bytes", "file", "buffer"}:
        assert sent == BODY


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("client", ["requests", "urllib3", "aiohttp"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_request_without_a_body_hashes_to_the_hash_of_nothing(
    open_shop: Any, spans: Any, no_faults: None, client: str, server: str, method: str
) -> None:
    shop = open_shop(client, server)
    CLIENTS[client].send(method, f"{shop.url}/ignore")

    for attributes in (spans.client(), spans.server()):
        assert attributes["provenance.request.hash"] == EMPTY
        assert attributes["provenance.request.size"] == 0
        assert attributes["provenance.response.size"] == (0 if method == "HEAD" else len("not read"))


@pytest.mark.parametrize("server", SERVERS)
def test_no_hash_is_claimed_of_a_body_that_nobody_read(
    open_shop: Any, spans: Any, no_faults: None, server: str
) -> None:
    shop = open_shop("urllib3", server)
    send_urllib3("POST", f"{shop.url}/ignore", body=BODY)

    callee = spans.server()
    assert "provenance.request.hash" not in callee
    assert callee["provenance.stamp.status"] == "unsigned"
    assert spans.client()["provenance.request.hash"] == HASH


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("client", ["requests", "urllib3", "aiohttp"])
def test_a_redirect_is_stamped_hop_by_hop(
    open_shop: Any, spans: Any, no_faults: None, client: str, server: str
) -> None:
    shop = open_shop(client, server)
    CLIENTS[client].send("POST", f"{shop.url}/moved", **CLIENTS[client].bodies["bytes"]())

    assert shop.seen.body == BODY
    hops = [span.attributes for span in spans.of(SpanKind.SERVER, 2)]
    assert len({hop["provenance.stamp.nonce"] for hop in hops}) == 2
    assert {hop["provenance.request.hash"] for hop in hops} == {HASH}
    # One client span for each hop with urllib3, one for all of them with the others: then it tells of the last.
    callers = [span.attributes for span in spans.of(SpanKind.CLIENT, 2 if client == "urllib3" else 1)]
    assert callers[-1]["provenance.stamp.nonce"] == hops[-1]["provenance.stamp.nonce"]
    assert callers[-1]["provenance.request.hash"] == HASH


@pytest.mark.parametrize("server", SERVERS)
def test_a_failing_application_fails_as_without_us(open_shop: Any, spans: Any, no_faults: None, server: str) -> None:
    logging.getLogger("django.request").disabled = True
    shop = open_shop("urllib3", server)
    assert send_urllib3("POST", f"{shop.url}/fail", body=BODY).status == 500

    callee = spans.server()
    assert callee["provenance.request.hash"] == HASH
    assert callee["provenance.stamp.status"] == "unsigned"


@pytest.mark.parametrize("server", SERVERS)
def test_a_request_without_a_handler_is_described_too(open_shop: Any, spans: Any, no_faults: None, server: str) -> None:
    shop = open_shop("urllib3", server)
    assert send_urllib3("POST", f"{shop.url}/nowhere", body=BODY).status == 404
    assert spans.server()["provenance.stamp.status"] == "unsigned"


@pytest.mark.parametrize("server", ["starlette", "flask", "django"])
def test_a_streamed_response_is_counted_where_the_span_sees_its_end(
    open_shop: Any, spans: Any, no_faults: None, server: str
) -> None:
    shop = open_shop("urllib3", server)
    answer = send_urllib3("GET", f"{shop.url}/stream")

    assert answer.content == b"0123456789" * 3
    assert spans.server().get("provenance.response.size") == (30 if server == "starlette" else None)


def test_a_flask_called_in_process_does_not_write_on_the_span_of_the_request_around_it(
    activate: Any, spans: Any, no_faults: None, serve_wsgi: Any
) -> None:
    activate(FlaskInstrumentor())
    inner = flask.app.Flask("inner")  # nobody instruments this one
    inner.add_url_rule("/", view_func=lambda: flask.request.get_data() + b"!", methods=["POST"])
    outer = flask.Flask("outer")

    @outer.post("/")
    def call() -> bytes:
        return bytes(inner.test_client().post("/", data=b"something else").data)

    assert send_urllib3("POST", serve_wsgi(outer), body=BODY).content == b"something else!"
    assert "provenance.request.hash" not in spans.server(), "the outer one was not read"


def test_a_call_that_is_not_sampled_is_stamped(
    open_shop: Any, spans: Any, no_faults: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    monkeypatch.setattr(trace.get_tracer_provider(), "sampler", ALWAYS_OFF)
    shop = open_shop("requests, doubly", "flask")
    send_requests("POST", f"{shop.url}/buy", data=BODY)

    assert parse(shop.seen.headers["provenance"]).kid == "checkout"
    assert shop.seen.headers["content-digest"] == render_content_digest(HASH)


# --- requests that meet a closed connection ------------------------------------------------------------------------


@contextlib.contextmanager
def closes_once() -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads one request and closes, and answers the next one; with what it read."""
    got: list[bytes] = []

    def read(connection: socket.socket) -> bytes:
        request = b""
        while b"\r\n\r\n" not in request or not request.endswith((BODY, b"\r\n0\r\n\r\n")):
            request += connection.recv(65_536)
        return request

    def serve() -> None:
        for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(DEADLINE_SECONDS)
                got.append(read(connection))
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_SECONDS)
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/", got
        thread.join(DEADLINE_SECONDS)


@pytest.mark.parametrize("client", ["requests", "urllib3", "aiohttp"])
@pytest.mark.parametrize("body", ["bytes", "file"])
def test_a_retry_is_stamped_anew(activate: Any, spans: Any, no_faults: None, client: str, body: str) -> None:
    its = CLIENTS[client]
    activate(*(each() for each in its.instrumentors))
    with closes_once() as (url, got):
        retry = urllib3.Retry(1, allowed_methods=None)
        assert its.send("PUT", url, retry=retry, **its.bodies[body]()).content == b"ok"

    stamps = [
        line.partition(b": ")[2].decode()
        for request in got
        for line in request.split(b"\r\n")
        if line.lower().startswith(b"provenance:")
    ]
    nonces = [parse(stamp).nonce.hex() for stamp in stamps]
    assert len(nonces) == len(set(nonces)) == 2
    caller = spans.of(SpanKind.CLIENT)[-1].attributes
    assert caller["provenance.stamp.nonce"] == nonces[-1]
    assert (caller["provenance.request.hash"], caller["provenance.request.size"]) == (HASH, len(BODY))


# --- what the caller set -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["requests", "urllib3", "aiohttp"])
def test_the_callers_headers_are_untouched(open_shop: Any, spans: Any, no_faults: None, client: str) -> None:
    shop = open_shop(client, "flask")
    its = CLIENTS[client]
    headers = {"X": "1", "Content-Digest": "sha-512=:AAAA:", "X-Request-Id": "mine", "Provenance": "old"}
    given = dict(headers)
    for _ in range(2):
        its.send("POST", f"{shop.url}/buy", headers=headers, **its.bodies["bytes"]())

    assert headers == given
    assert shop.seen.headers["content-digest"] == "sha-512=:AAAA:"
    assert (shop.seen.headers["x"], shop.seen.headers["x-request-id"]) == ("1", "mine")
    assert parse(shop.seen.headers["provenance"]).kid == "checkout", "another call's stamp is not passed on"
    both = spans.of(SpanKind.CLIENT, 2) + spans.of(SpanKind.SERVER, 2)
    assert {span.attributes["provenance.request_id"] for span in both} == {"mine"}
    assert len({span.attributes["provenance.stamp.nonce"] for span in both}) == 2


@pytest.mark.parametrize("client", ["requests", "urllib3", "aiohttp"])
def test_what_is_suppressed_is_not_stamped(open_shop: Any, spans: Any, no_faults: None, client: str) -> None:
    shop = open_shop(client, "flask")
    with suppress_instrumentation():
        CLIENTS[client].send("POST", f"{shop.url}/buy", **CLIENTS[client].bodies["bytes"]())

    assert "provenance" not in shop.seen.headers
    assert spans.server()["provenance.stamp.status"] == "absent"


@pytest.mark.parametrize("client", ["requests", "urllib3", "aiohttp"])
def test_a_client_that_nobody_instruments_is_stamped_and_touches_no_other_span(
    activate: Any, spans: Any, no_faults: None, serve_wsgi: Any, client: str
) -> None:
    activate()
    seen = Seen()
    url = serve_wsgi(make_flask(seen))
    for kind, attributes in ((SpanKind.INTERNAL, {}), (SpanKind.CLIENT, {"rpc.system": "aws-api"})):
        with trace.get_tracer("user").start_as_current_span("the user's", kind=kind, attributes=attributes) as span:
            CLIENTS[client].send("POST", f"{url}/buy", **CLIENTS[client].bodies["generator"]())
        recorded: Any = span
        assert dict(recorded.attributes) == attributes
        assert parse(seen.headers["provenance"]).kid == "checkout"


@pytest.mark.parametrize("client", ["requests", "urllib3"])
def test_the_peer_is_who_was_dialled_and_the_server_who_was_meant(
    open_shop: Any, spans: Any, no_faults: None, client: str
) -> None:
    shop = open_shop(client, "starlette")  # which stands in for a forward proxy
    port = urllib3.util.parse_url(shop.url).port
    if client == "requests":
        send_requests("POST", "http://api.example.com/buy", data=BODY, proxies={"http": shop.url})
    else:
        with urllib3.ProxyManager(shop.url) as pool:
            pool.request("POST", "http://api.example.com/buy", body=BODY)

    caller = spans.client()
    assert (caller["server.address"], caller["server.port"]) == ("api.example.com", 80)
    assert (caller["network.peer.address"], caller["network.peer.port"]) == ("127.0.0.1", port)


@pytest.mark.parametrize("client", ["requests", "urllib3", "aiohttp"])
def test_a_refused_connection_fails_as_without_us(activate: Any, spans: Any, no_faults: None, client: str) -> None:
    its = CLIENTS[client]
    activate(*(each() for each in its.instrumentors))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises((requests.ConnectionError, urllib3.exceptions.MaxRetryError, aiohttp.ClientConnectorError)):
        its.send("POST", f"http://127.0.0.1:{port}/", retry=urllib3.Retry(0), **its.bodies["bytes"]())

    assert "network.peer.address" not in spans.client()


def test_no_hash_is_claimed_of_a_body_that_aiohttp_compresses(open_shop: Any, spans: Any, no_faults: None) -> None:
    shop = open_shop("aiohttp", "starlette")
    send_aiohttp("POST", f"{shop.url}/buy", data=BODY, compress="deflate")

    assert shop.seen.body != BODY
    assert "provenance.request.hash" not in spans.client()
    assert "content-digest" not in shop.seen.headers
    assert spans.server()["provenance.stamp.status"] == "unsigned"


def test_an_aiohttp_middleware_may_send_a_request_again(open_shop: Any, spans: Any, no_faults: None) -> None:
    shop = open_shop("aiohttp", "starlette")
    sent: list[dict[str, str]] = []

    async def twice(request: Any, handler: Any) -> Any:
        for _ in range(2):
            response = await handler(request)
            await response.read()
            sent.append(dict(request.headers))
        return response

    async def run() -> None:
        async with aiohttp.ClientSession(middlewares=[twice]) as session:
            await session.post(f"{shop.url}/buy", data=BODY)

    asyncio.run(run())

    assert not any("provenance" in {key.lower() for key in headers} for headers in sent)
    assert len({span.attributes["provenance.stamp.nonce"] for span in spans.of(SpanKind.SERVER, 2)}) == 2


# --- servers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", SERVERS)
def test_a_refused_call_leaves_one_server_span_that_says_what_came(
    open_shop: Any, spans: Any, no_faults: None, server: str
) -> None:
    shop = open_shop("urllib3", server)
    enforcement.enforce(enforcement.Guard(lambda _kid: None))
    try:
        answer = send_urllib3("POST", f"{shop.url}/buy?to=ann", body=BODY)
    finally:
        enforcement.enforce(None)

    assert answer.status == 401
    assert shop.seen.headers == {}
    [client], [refused] = spans.of(SpanKind.CLIENT), spans.of(SpanKind.SERVER)
    assert refused.parent.span_id == client.context.span_id
    assert refused.context.trace_id == client.context.trace_id
    assert refused.attributes["provenance.stamp.status"] == "unsigned"
    assert refused.attributes["provenance.stamp.nonce"] == client.attributes["provenance.stamp.nonce"]
    assert 401 in {refused.attributes.get(f"http.{name}") for name in ("status_code", "response.status_code")}
    assert "provenance.request.hash" not in refused.attributes, "nobody read the body"


@pytest.mark.parametrize("server", ["flask", "django", "django, asgi"])
def test_a_server_forwards_the_request_id_to_its_own_calls(
    open_shop: Any, spans: Any, no_faults: None, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    from provenance.context import current_request_id

    ids = []

    class Watching(Seen):
        def __setattr__(self, name: str, value: Any) -> None:
            ids.append(current_request_id())
            super().__setattr__(name, value)

    make, _, _ = SERVERS[server]
    monkeypatch.setitem(SERVERS, server, (lambda _seen: make(Watching()), *SERVERS[server][1:]))
    shop = open_shop("urllib3", server)
    ids.clear()
    send_urllib3("POST", f"{shop.url}/buy", body=BODY, headers={"x-request-id": "theirs"})

    assert set(ids) == {"theirs"}


@pytest.mark.parametrize(
    ("client", "owner", "name"),
    [
        ("urllib3", urllib3_shell, "request_hash"),
        ("urllib3", urllib3_shell, "stamp_now"),
        ("urllib3", urllib3_shell, "_describe_sent"),
        ("urllib3", urllib3_shell, "response_size"),
        ("aiohttp", aiohttp_shell, "request_hash"),
        ("aiohttp", aiohttp_shell, "stamp_now"),
        ("aiohttp", aiohttp_shell, "_describe"),
    ],
)
def test_a_broken_client_shell_never_breaks_a_call(
    open_shop: Any, spans: Any, monkeypatch: pytest.MonkeyPatch, client: str, owner: Any, name: str
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(name)

    faults.reset()
    shop = open_shop(client, "flask")
    monkeypatch.setattr(owner, name, broken)
    answer = CLIENTS[client].send("POST", f"{shop.url}/buy", **CLIENTS[client].bodies["bytes"]())

    assert (answer.status, answer.content, shop.seen.body) == (201, b"sold", BODY)
    spans.of(SpanKind.SERVER)
    assert faults.counts().keys() == {CLIENTS[client].place}
    faults.reset()


@pytest.mark.parametrize("client", ["requests", "urllib3", "aiohttp"])
@pytest.mark.parametrize("server", SERVERS)
def test_a_broken_hash_never_breaks_a_stream(
    open_shop: Any, spans: Any, monkeypatch: pytest.MonkeyPatch, client: str, server: str
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError

    faults.reset()
    shop = open_shop(client, server)
    monkeypatch.setattr("provenance.digest.RunningHash.update", broken)
    answer = CLIENTS[client].send("POST", f"{shop.url}/buy", **CLIENTS[client].bodies["file"]())

    assert answer.content == b"sold"
    assert shop.seen.body in ({BODY, b""} if server == "django" else {BODY})
    assert "provenance.request.hash" not in spans.client() | spans.server(), "half a hash is none"
    faults.reset()


@pytest.mark.parametrize(
    ("server", "owner", "name"),
    [
        ("flask", flask_shell, "environ_headers"),
        ("flask", flask_shell, "watched_input"),
        ("flask", flask_shell, "_describe"),
        ("flask", wsgi_shell, "environ_headers"),
        ("flask", wsgi_shell, "request_attributes"),
        ("flask", PassingHash, "end"),
        ("django", django_shell, "environ_headers"),
        ("django", django_shell, "_watched_stream"),
        ("django", django_shell, "_size"),
        ("django", wsgi_shell, "request_attributes"),
        ("django, asgi", django_shell, "_watched_stream"),
        ("django, asgi", wsgi_shell, "request_attributes"),
    ],
)
def test_a_broken_server_shell_never_breaks_a_call(
    open_shop: Any, spans: Any, monkeypatch: pytest.MonkeyPatch, server: str, owner: Any, name: str
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(name)

    faults.reset()
    shop = open_shop("urllib3", server)
    monkeypatch.setattr(owner, name, broken)
    answer = send_urllib3("POST", f"{shop.url}/buy", body=BODY)

    assert (answer.status, answer.content, shop.seen.body) == (201, b"sold", BODY)
    spans.of(SpanKind.SERVER)
    assert faults.counts().keys() == {wsgi_shell.PLACE}
    faults.reset()


def test_uninstrument_restores_everything() -> None:
    places = [
        (urllib3.connection.HTTPConnection, "request"),
        (urllib3.connection.HTTPConnection, "getresponse"),
        (aiohttp.ClientRequest, "send"),
        (aiohttp.ClientRequest, "write_bytes"),
        (aiohttp.ClientResponse, "start"),
        (flask.Flask, "wsgi_app"),
        (flask.Flask, "full_dispatch_request"),
        (flask.Flask, "dispatch_request"),
        (django.core.handlers.base, "convert_exception_to_response"),
    ]
    before = [getattr(owner, name) for owner, name in places]
    ProvenanceInstrumentor().instrument()
    assert not any(getattr(owner, name) is original for (owner, name), original in zip(places, before, strict=True))

    ProvenanceInstrumentor().uninstrument()
    assert [getattr(owner, name) for owner, name in places] == before


def test_urllib3_of_the_first_kind_is_told_and_not_half_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    from provenance.http import urllib3 as shell

    monkeypatch.setattr(shell, "version", lambda _name: "1.26.20")
    with pytest.raises(ImportError, match=r"urllib3 1\.26\.20: calls of requests and urllib3 go without stamps"):
        shell.client_patches()

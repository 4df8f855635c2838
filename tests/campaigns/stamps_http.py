"""The same attacks on HTTP: httpx calls an ASGI application, requests a WSGI one, and between them stands a plain HTTP proxy.

Among the clean calls are chunked bodies, redirects, calls that fail and are sent again by the proxy, and such as the caller gives up.
"""

import argparse
import http.client
import itertools
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from tests.campaigns import stamps

PAY: Final = "/till/Pay?to=ann"
UPLOAD: Final = "/till/Upload"
MOVED: Final = "/till/Moved"
_OF_ONE_HOP: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect"})


class Failing:
    """One call in some hundreds fails the first time."""

    def __init__(self) -> None:
        self._failed: set[str] = set()
        self._lock = threading.Lock()

    def now(self, request_id: str) -> bool:
        """Whether this one does."""
        with self._lock:
            first = request_id.endswith("7f") and request_id not in self._failed
            self._failed.add(request_id) if first else self._failed.discard(request_id)
            return first


def asgi_callee(_options: argparse.Namespace) -> None:
    """Starlette behind uvicorn."""
    import provenance

    provenance.instrument("till")
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Route

    failing = Failing()

    async def take(request: Request) -> Response:
        body = await request.body()
        if failing.now(request.headers.get("x-request-id", "")):
            return Response(status_code=503)
        return PlainTextResponse(str(len(body)))

    async def moved(request: Request) -> Response:
        await request.body()
        return RedirectResponse(PAY, 307)

    routes = [Route(f"/till/{name}", take, methods=["POST"]) for name in ("Pay", "Refund", "Upload")]
    app = Starlette(routes=[*routes, Route(MOVED, moved, methods=["POST"])])
    listening = socket.create_server(("127.0.0.1", 0))
    stamps.say(f"127.0.0.1:{listening.getsockname()[1]}")
    # `asyncio`, as everywhere uvloop is not: and spans are flushed as the lifespan ends.
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on")).run(sockets=[listening])


def wsgi_callee(_options: argparse.Namespace) -> None:
    """Flask behind werkzeug."""
    import provenance

    telemetry = provenance.instrument("till")
    import flask
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: Any) -> None:
            pass

    failing = Failing()
    app = flask.Flask("till")

    def take(name: str) -> Any:
        body = flask.request.get_data()
        if name == "Moved":
            return flask.redirect(PAY, 307)
        if failing.now(flask.request.headers.get("x-request-id", "")):
            return flask.Response(status=503)
        return str(len(body))

    app.add_url_rule("/till/<name>", view_func=take, methods=["POST"])
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    stamps.say(f"127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stamps.wait_for_the_end()
    server.shutdown()
    telemetry.shutdown()


def caller(options: argparse.Namespace) -> None:
    """Calls, with httpx or requests; as `mallory` it signs with `web`'s key."""
    import provenance

    telemetry = provenance.instrument(options.service)
    import httpx
    import requests

    if options.service == "mallory":
        stamps.sign_as_web()
    rng = random.Random(options.seed)
    base = f"http://{options.target}"
    is_httpx = options.transport == "asgi"
    client: Any = httpx.Client(follow_redirects=True) if is_httpx else requests.Session()
    gave_up: Any = httpx.TransportError if is_httpx else requests.RequestException

    def post(path: str, body: Any, timeout: float) -> str:
        known = {"content": body} if is_httpx else {"data": body}
        return str(client.post(base + path, timeout=timeout, **known).status_code)

    def call(number: int) -> str:
        body = number.to_bytes(8, "big") + rng.randbytes(rng.randrange(8, 400))
        try:
            if number % 5 == 0:
                return post(UPLOAD, iter([body, body[::-1], b"the end"]), 30)
            if number % 97 == 0:
                return post(PAY, body, 0.0005)
            return post(MOVED if number % 11 == 0 else PAY, body, 30)
        except gave_up:
            return "given up"

    with futures.ThreadPoolExecutor(stamps.THREADS) as pool:
        done = Counter(pool.map(call, range(options.calls)))
    telemetry.shutdown()
    stamps.say(json.dumps(done))


def between(options: argparse.Namespace) -> None:
    """Forwards, meddles, and writes down what it did, a line a call."""
    host, _, port = options.target.rpartition(":")
    rng, lock = random.Random(options.seed), threading.Lock()
    out = options.ledger.open("w", buffering=1)  # a thread may still write when the others are told to end

    turns = {attacks: itertools.cycle(attacks) for attacks in (stamps.OF_UNARY, stamps.OF_STREAMS)}

    def choose(attacks: tuple[str, ...], headers: stamps.Metadata) -> str:
        with lock:
            attack = next(turns[attacks]) if rng.random() < stamps.SHARE else stamps.CLEAN
            out.write(json.dumps({"request_id": headers["x-request-id"], "attack": attack}) + "\n")
        return attack

    def forward(path: str, body: bytes, headers: stamps.Metadata) -> tuple[int, list[tuple[str, str]], bytes]:
        """As a mesh's proxy does: what was unavailable is tried once more."""
        for attempt in (1, 2):
            connection = http.client.HTTPConnection(host, int(port), timeout=20)
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            answer = response.read()
            connection.close()
            if attempt == 2 or response.status != 503:
                return response.status, response.getheaders(), answer
        raise AssertionError

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            pieces = list(chunks(self))
            headers = {key.lower(): value for key, value in self.headers.items() if key.lower() not in _OF_ONE_HOP}
            is_stream = self.path == UPLOAD
            attack = choose(stamps.OF_STREAMS if is_stream else stamps.OF_UNARY, headers)
            if attack == "messages swapped":
                pieces[0], pieces[1] = pieces[1], pieces[0]
            elif attack == "last message dropped":
                pieces = pieces[:-1]
            path, body, headers = stamps.meddle(
                attack,
                self.path.replace("Moved", "Pay") if attack == "another method" else self.path,
                b"".join(pieces),
                headers,
            )
            status, told, answer = forward(path, body, headers)
            if attack == "replayed":
                status, told, answer = forward(path, body, headers)
            self.send_response_only(status)
            for key, value in told:
                if key.lower() not in _OF_ONE_HOP:
                    self.send_header(key, value)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """Callers that gave up."""

    server = Server(("127.0.0.1", 0), Handler)
    stamps.say(f"127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stamps.wait_for_the_end()
    server.shutdown()
    out.close()


def chunks(request: BaseHTTPRequestHandler) -> Iterator[bytes]:
    """A request's body, in the pieces in which it came."""
    if request.headers.get("transfer-encoding", "").lower() != "chunked":
        yield request.rfile.read(int(request.headers.get("content-length", 0)))
        return
    while size := int(request.rfile.readline(), 16):
        yield request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()

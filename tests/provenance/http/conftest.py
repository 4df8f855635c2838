"""One ASGI and one WSGI server for a module's tests: starting one a test takes too long."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from werkzeug.serving import WSGIRequestHandler, make_server

DEADLINE_SECONDS = 20.0


class AsgiServer(uvicorn.Server):
    """Tells when it serves."""

    def __init__(self, app: Any) -> None:
        super().__init__(uvicorn.Config(app, lifespan="off", log_config=None, ws="none"))
        self.serving = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.serving.set()


class Behind:
    """The application that a server has at the moment."""

    app: Any = None


class Quiet(WSGIRequestHandler):
    """HTTP/1.1, so that requests can be chunked, and no log."""

    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002  (werkzeug's name)
        """Say nothing."""


@pytest.fixture(scope="module")
def asgi_host() -> Iterator[tuple[Behind, str]]:
    behind = Behind()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await behind.app(scope, receive, send)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = AsgiServer(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert server.serving.wait(DEADLINE_SECONDS)
            yield behind, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def wsgi_host() -> Iterator[tuple[Behind, str]]:
    behind = Behind()

    def app(environ: Any, start_response: Any) -> Any:
        result = behind.app(environ, start_response)
        if environ["REQUEST_METHOD"] != "HEAD":
            return result
        for _ in result:  # which Django leaves to the server, and werkzeug's does not do
            pass
        if hasattr(result, "close"):
            result.close()
        return []

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield behind, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(DEADLINE_SECONDS)
        server.server_close()
    assert not thread.is_alive()


@pytest.fixture
def serve_asgi(asgi_host: Any) -> Callable[[Any], str]:
    """Put an ASGI application behind the module's server; its URL."""

    def serve(app: Any) -> str:
        behind, url = asgi_host
        behind.app = app
        return str(url)

    return serve


@pytest.fixture
def serve_wsgi(wsgi_host: Any) -> Callable[[Any], str]:
    """Put a WSGI application behind the module's server; its URL."""

    def serve(app: Any) -> str:
        behind, url = wsgi_host
        behind.app = app
        return str(url)

    return serve

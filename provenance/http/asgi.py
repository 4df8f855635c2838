"""Stamps on incoming HTTP requests: an ASGI middleware that watches `receive` and `send`, and never buffers.

It has to run inside the server span. `ProvenanceMiddleware(app)` therefore does its work where it finds one, and hands
on to the application where it does not: activated at class level (`http.starlette`) it stands at several places of an
application at once, and the outermost of them inside the span does the work, once a request.
"""

import asyncio
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from opentelemetry.trace import SpanKind

from provenance import names
from provenance.addresses import socket_attributes
from provenance.context import serving
from provenance.digest import RunningHash
from provenance.enforcement import current_guard
from provenance.faults import Contained
from provenance.http.guarded import GuardedApp
from provenance.http.messages import (
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    certified_of,
    combined_headers,
    has_no_body,
    request_attributes,
    target_of,
    watched_span,
)
from provenance.http.refusals import refused_span
from provenance.spans import FOREIGN_TO_HTTP, RecordingSpan, add_attributes, own_span

PLACE: Final = "http.server"

SEEN: Final = "provenance.seen"
"""In the scope of a request, or of a lifespan, that is being watched."""

ENFORCED: Final = "provenance.enforced"
"""In the scope of a request whose stamp has been judged."""

FLUSH_SECONDS: Final = 5.0
"""How long the end of a lifespan waits for the last spans: orchestrators commonly kill after 10 to 30."""


class ProvenanceMiddleware:
    """Wrap an ASGI application, inside the middleware that starts its server span."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; websocket scopes pass untouched, and at the end of the lifespan spans are flushed."""
        await serve(self.app, scope, receive, send)


async def serve(app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, is_last: bool = True) -> None:
    """Call `app`, watched if this is the outermost place inside the request's own server span.

    `is_last`: no further place of ours follows, so what is to be enforced is enforced here, span or none.
    """
    if scope["type"] == "lifespan" and SEEN not in scope and (handle := _own_handle()) is not None:
        scope[SEEN] = True
        await app(scope, receive, _flushing(handle, send))
        return
    if scope["type"] != "http" or SEEN in scope:
        await app(scope, receive, send)
        return
    headers: dict[str, str] = {}
    request: WatchedRequest | None = None
    guard = None if ENFORCED in scope else current_guard()
    with Contained(PLACE):
        headers = combined_headers(scope["headers"])
        span = own_span(SpanKind.SERVER, FOREIGN_TO_HTTP)
        if span is not None and span is not watched_span.get():
            request = WatchedRequest(span, scope, headers)
    if guard is not None and (request is not None or is_last):
        # Inside the span, if there is to be one: what is refused is evidence too.
        scope[ENFORCED] = True
        app = GuardedApp(app, guard, headers, partial(_describe_refused, scope, headers))
    with serving(headers.get(names.REQUEST_ID)):
        if request is None:
            await app(scope, receive, send)
        else:
            await _watch(request, app, scope, receive, send)


def _describe_refused(scope: Scope, headers: dict[str, str]) -> None:
    method, target = str(scope.get("method", "")), target_of(scope)
    with Contained(PLACE), refused_span(headers, method=method, target=target) as span:
        if span is not None:
            WatchedRequest(span, scope, headers).finish()


def _own_handle() -> Any:
    """What `instrument()` set up, if the tracer provider is its own; another's is its owner's to flush."""
    setup = sys.modules.get("provenance.setup")  # not imported here: this module works beside any other set-up
    handle = None if setup is None else setup.current_handle()
    return handle if handle is not None and handle.owned else None


def _flushing(handle: Any, send: Send) -> Send:
    """`send`, that exports what is left before the lifespan is over.

    Because uvicorn lets the signal that stopped it end the process then: nothing runs after it, no `atexit` either.
    """

    async def flush_and_send(message: Message) -> None:
        if message["type"] in {"lifespan.shutdown.complete", "lifespan.shutdown.failed"}:
            with Contained(PLACE):
                await _in_a_thread(handle.flush, FLUSH_SECONDS)
        await send(message)

    return flush_and_send


async def _in_a_thread(function: Callable[[], object], timeout_seconds: float) -> None:
    """Wait for `function`, but no longer than this; the thread is a daemon, which keeps no process from its end."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        with Contained(PLACE):
            function()
        with suppress(RuntimeError):  # it took so long that the loop is closed
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="provenance-flush", daemon=True).start()
    with suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), timeout_seconds)


async def _watch(request: "WatchedRequest", app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    async def watched_receive() -> Message:
        message = await receive()
        with Contained(PLACE):
            request.received(message)
        return message

    async def watched_send(message: Message) -> None:
        with Contained(PLACE):
            request.sending(message)
        await send(message)

    scope[SEEN] = True
    token = watched_span.set(request.span)
    try:
        await app(scope, watched_receive, watched_send)
    finally:
        watched_span.reset(token)
        with Contained(PLACE):
            request.finish()


class WatchedRequest:
    """What one request shows of itself, message by message, and the attributes that follow from it. No I/O."""

    __slots__ = ("_complete", "_finished", "_headers", "_intact", "_running", "_scope", "_sent_bytes", "span")

    def __init__(self, span: RecordingSpan, scope: Scope, headers: dict[str, str]) -> None:
        self.span = span
        self._scope = scope
        self._headers = headers
        self._running = RunningHash()
        self._intact = True
        self._complete = has_no_body(scope.get("http_version", ""), headers)
        self._sent_bytes: int | None = None
        self._finished = False

    def received(self, message: Message) -> None:
        """Take in a message of the request: its hash is complete with the last one, and no sooner."""
        if message["type"] == "http.request":
            intact, self._intact, self._complete = self._intact, False, False
            self._running.update(message.get("body", b""))
            self._intact = intact  # a piece that could not be hashed leaves a hash of something else
            self._complete = intact and not message.get("more_body", False)

    def sending(self, message: Message) -> None:
        """Count a message of the response; the last one ends the span, so everything is said before it goes."""
        match message["type"]:
            case "http.response.start":
                self._sent_bytes = 0
            case "http.response.body":
                self._sent_bytes = (self._sent_bytes or 0) + len(message.get("body", b""))
                if not message.get("more_body", False):
                    self.finish()
            case "http.response.pathsend":
                self._sent_bytes = None  # a file that the server reads itself
                self.finish()

    def finish(self) -> None:
        """Set the attributes, once."""
        if not self._finished and self.span.is_recording():
            self._finished = True
            add_attributes(self.span, self._attributes(), socket_attributes(tuple(self._scope.get("client") or ())))

    def _attributes(self) -> dict[str, str | int]:
        sent = 0 if self._sent_bytes is not None and self._scope.get("method") == "HEAD" else self._sent_bytes
        return request_attributes(
            self._headers,
            self._running if self._complete else None,
            sent,
            method=self._scope.get("method", ""),
            target=target_of(self._scope),
            certified=certified_of(self._scope),
        )

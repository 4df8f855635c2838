"""Every Django application watched, WSGI or ASGI, whatever started its server span and in whatever order.

Django passes each of its middlewares, and the views behind them, through `convert_exception_to_response`: so each layer is
a place to look, and the outermost one inside the span does the work, once a request. OpenTelemetry's own span starts and
ends in a middleware, so it is over before the response is sent.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.handlers import base
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler

from provenance import names
from provenance.context import serving
from provenance.faults import Contained
from provenance.http import asgi, wsgi
from provenance.http.guarded_wsgi import Environ, StartResponse
from provenance.http.messages import Receive, Scope, Send, target_of
from provenance.http.wsgi import (
    PLACE,
    WatchedInput,
    WatchedRequest,
    body_length,
    environ_headers,
    unwatched_span,
)
from provenance.patching import Patch


def server_patches() -> tuple[Patch, ...]:
    """The patches of this shell, not yet applied."""
    return (
        Patch(base, "convert_exception_to_response", _wrap_convert),
        Patch(WSGIHandler, "__call__", _wrap_wsgi_call),
        Patch(ASGIHandler, "__call__", _wrap_asgi_call),
    )


def _wrap_wsgi_call(original: Callable[..., Iterable[bytes]], patch: Patch) -> Callable[..., Iterable[bytes]]:
    @functools.wraps(original)
    def call(app: Any, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if patch.active:
            return wsgi.serve(functools.partial(original, app), environ, start_response)
        return original(app, environ, start_response)

    return call


def _wrap_asgi_call(original: Callable[..., Awaitable[None]], patch: Patch) -> Callable[..., Awaitable[None]]:
    @functools.wraps(original)
    async def call(app: Any, scope: Scope, receive: Receive, send: Send) -> None:
        if patch.active:
            await asgi.serve(functools.partial(original, app), scope, receive, send)
        else:
            await original(app, scope, receive, send)

    return call


def _wrap_convert(original: Callable[..., Any], patch: Patch) -> Callable[..., Any]:
    @functools.wraps(original)
    def convert_exception_to_response(get_response: Any) -> Any:
        layer = original(get_response)
        return _async_layer(layer, patch) if inspect.iscoroutinefunction(layer) else _sync_layer(layer, patch)

    return convert_exception_to_response


def _sync_layer(layer: Callable[[Any], Any], patch: Patch) -> Callable[[Any], Any]:
    @functools.wraps(layer)
    def watched(request: Any) -> Any:
        if not patch.active:
            return layer(request)
        with _watching(request) as answered:
            response = layer(request)
            answered(response)
        return response

    return watched


def _async_layer(layer: Callable[[Any], Any], patch: Patch) -> Callable[[Any], Any]:
    @functools.wraps(layer)
    async def watched(request: Any) -> Any:
        if not patch.active:
            return await layer(request)
        with _watching(request) as answered:
            response = await layer(request)
            answered(response)
        return response

    return watched


@contextmanager
def _watching(request: Any) -> Iterator[Callable[[Any], None]]:
    """Around one layer: watch the request if this is the outermost place inside its own server span."""
    headers: dict[str, str] = {}
    watched: WatchedRequest | None = None
    with Contained(PLACE):
        headers = environ_headers(request.META)
        span = unwatched_span()
        if span is not None:
            environ = request.META
            if (scope := getattr(request, "scope", None)) is not None:
                environ = environ | {"RAW_URI": target_of(scope)}
            watched = WatchedRequest(span, environ, headers, _watched_stream(request, headers))
    if watched is None:
        with serving(headers.get(names.REQUEST_ID)):
            yield _nothing
        return

    def answered(response: Any) -> None:
        with Contained(PLACE):
            watched.sent_bytes = _size(response)

    try:
        with watched.served():
            yield answered
    finally:
        with Contained(PLACE):
            watched.finish()


def _nothing(_response: Any) -> None:
    """Another layer watches, or nobody."""


def _watched_stream(request: Any, headers: dict[str, str]) -> WatchedInput | None:
    """Put a watched stream in the place of the one that Django reads the body from; None if somebody began to read it."""
    scope = getattr(request, "scope", None)
    version = str(request.META.get("SERVER_PROTOCOL", "")) if scope is None else str(scope.get("http_version", ""))
    # Django's own reader over WSGI ends after Content-Length: for a body without one, that is no end.
    length, ends = body_length(version.removeprefix("HTTP/"), headers), scope is not None
    if hasattr(request, "_body"):
        source = WatchedInput(None, length=None, ends=True)
        source.hash.take(request._body)  # noqa: SLF001  (`body` would read it)
        source.hash.end()
        return source
    if request._read_started:  # noqa: SLF001  (as above)
        return None
    source = request._stream = WatchedInput(request._stream, length=length, ends=ends)  # noqa: SLF001  (as above)
    return source


def _size(response: Any) -> int | None:
    """By the content that is there, else by the response's own word, since the span ends before it is sent."""
    if not response.streaming:
        return len(response.content)
    length = str(response.headers.get("Content-Length", ""))
    return int(length) if length.isascii() and length.isdigit() else None

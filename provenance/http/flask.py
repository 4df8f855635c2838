"""Every Flask application watched, whatever started its server span and in whatever order.

A span that is there before the application (OpenTelemetry's WSGI middleware) is found in `wsgi_app`. OpenTelemetry's Flask
instrumentation starts its own in the first function before the request and ends it before the response is sent, so that
one is described when `full_dispatch_request` returns.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from flask import request as current_request
from flask.app import Flask  # not `flask.Flask`, which OpenTelemetry replaces
from opentelemetry.trace import SpanKind

from provenance import names
from provenance.context import serving
from provenance.faults import Contained
from provenance.http.guarded_wsgi import Environ, StartResponse
from provenance.http.wsgi import (
    PLACE,
    WatchedInput,
    WatchedRequest,
    environ_headers,
    serve,
    unwatched_span,
    watched_input,
    watching,
)
from provenance.patching import Patch
from provenance.spans import FOREIGN_TO_HTTP, own_span


def server_patches() -> tuple[Patch, ...]:
    """The patches of this shell, not yet applied."""
    return (
        Patch(Flask, "wsgi_app", _wrap_wsgi_app),
        Patch(Flask, "full_dispatch_request", _wrap_full_dispatch_request),
        Patch(Flask, "dispatch_request", _wrap_dispatch_request),
    )


def _wrap_wsgi_app(original: Callable[..., Iterable[bytes]], patch: Patch) -> Callable[..., Iterable[bytes]]:
    @functools.wraps(original)
    def wsgi_app(app: Any, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if patch.active:
            return serve(functools.partial(original, app), environ, start_response)
        return original(app, environ, start_response)

    return wsgi_app


def _wrap_full_dispatch_request(original: Callable[..., Any], patch: Patch) -> Callable[..., Any]:
    @functools.wraps(original)
    def full_dispatch_request(app: Any, *args: Any, **kwargs: Any) -> Any:
        # A span that is current already is watched in `wsgi_app`, or is another request's.
        if not patch.active or own_span(SpanKind.SERVER, FOREIGN_TO_HTTP) is not None:
            return original(app, *args, **kwargs)
        environ: Environ = {}
        headers: dict[str, str] = {}
        source: WatchedInput | None = None
        with Contained(PLACE):
            environ = current_request.environ
            headers = environ_headers(environ)
            source = watched_input(environ, headers)
        response = None
        try:
            with serving(headers.get(names.REQUEST_ID)):
                response = original(app, *args, **kwargs)
        finally:
            with Contained(PLACE):
                _describe(environ, headers, source, response)
        return response

    return full_dispatch_request


def _wrap_dispatch_request(original: Callable[..., Any], patch: Patch) -> Callable[..., Any]:
    @functools.wraps(original)
    def dispatch_request(app: Any, *args: Any, **kwargs: Any) -> Any:
        span = own_span(SpanKind.SERVER, FOREIGN_TO_HTTP) if patch.active else None
        if span is None:
            return original(app, *args, **kwargs)
        with watching(span):
            return original(app, *args, **kwargs)

    return dispatch_request


def _describe(environ: Environ, headers: dict[str, str], source: WatchedInput | None, response: Any) -> None:
    span = unwatched_span()
    if span is None:
        return
    request = WatchedRequest(span, environ, headers, source)
    if response is not None:
        request.sent_bytes = _size(response)
    request.finish()


def _size(response: Any) -> int | None:
    """By the pieces that are there, else by the response's own word, since the span ends before they are sent."""
    size: int | None = response.calculate_content_length() if response.is_sequence else response.content_length
    return size

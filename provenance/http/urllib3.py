"""Stamps on outgoing HTTP calls of urllib3, and with it of requests, botocore and whatever else speaks through it.

`HTTPConnection.request` lies beneath the pools, requests' sessions and OpenTelemetry's instrumentations of both: each
redirect and each retry passes here by itself, with the innermost client span current.

A body that is there is hashed before it is sent. A file or an iterable is never drained: it is hashed while it passes,
and the hash goes on the span once the last piece is sent; then no digest travels ahead of it.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import SpanKind
from urllib3._collections import (
    HTTPHeaderDict,  # where 1.x has it too, so that it gets as far as to say what is missing
)
from urllib3.connection import HTTPConnection
from urllib3.exceptions import NewConnectionError

from provenance import names
from provenance.addresses import socket_attributes
from provenance.digest import request_hash
from provenance.egress_guard import check_address, current_egress_guard
from provenance.faults import Contained
from provenance.http.passing import PassingHash, as_bytes, response_size
from provenance.outgoing import Outgoing, Request, own_headers, stamp_now
from provenance.patching import Patch
from provenance.recording import late_request
from provenance.spans import FOREIGN_TO_HTTP, RecordingSpan, add_attributes, own_span, say

PLACE: Final = "http.urllib3"

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_SENT: Final = "_provenance_sent"
"""On a connection whose stamped request waits for its response."""


def client_patches() -> tuple[Patch, ...]:
    """The patches of this shell, not yet applied; raises ImportError for urllib3 1.x, whose connections send in another way."""
    if (installed := version("urllib3")).startswith("1."):
        message = f"urllib3 {installed}: calls of requests and urllib3 go without stamps; try: pip install 'urllib3>=2'"
        raise ImportError(message)
    return (
        Patch(HTTPConnection, "request", _wrap_request),
        Patch(HTTPConnection, "getresponse", _wrap_getresponse),
        Patch(HTTPConnection, "_new_conn", _wrap_new_conn),
    )


def _wrap_request(original: Callable[..., None], patch: Patch) -> Callable[..., None]:
    @functools.wraps(original)
    def request(
        connection: Any, method: str, url: str, body: Any = None, headers: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        sent = _prepare(connection, method, url, body, headers) if patch.active else None
        setattr(connection, _SENT, sent)
        if sent is None:
            original(connection, method, url, body, headers, *args, **kwargs)
            return
        original(connection, method, url, sent.body, sent.headers, *args, **kwargs)
        with Contained(PLACE):
            _describe_sent(sent, connection)

    return request


def _wrap_new_conn(original: Callable[..., Any], patch: Patch) -> Callable[..., Any]:
    """HTTPS is dialled before anything is requested: what the guard refuses is not even dialled."""

    @functools.wraps(original)
    def new_conn(connection: Any) -> Any:
        guard = current_egress_guard()
        asks_a_proxy = getattr(connection, "proxy", None) is not None and not getattr(connection, "_tunnel_host", None)
        if guard is not None and guard.enforces and patch.active and is_instrumentation_enabled() and not asks_a_proxy:
            check_address(_server_attributes(connection, ""), functools.partial(NewConnectionError, connection))
        return original(connection)

    return new_conn


def _wrap_getresponse(original: Callable[..., Any], patch: Patch) -> Callable[..., Any]:  # noqa: ARG001  (what was stamped is described)
    @functools.wraps(original)
    def getresponse(connection: Any, *args: Any, **kwargs: Any) -> Any:
        response = original(connection, *args, **kwargs)
        sent: _Sent | None = connection.__dict__.pop(_SENT, None)
        if sent is not None and sent.span is not None:
            with Contained(PLACE):
                size = response_size(sent.method, response.status, response.headers.get("content-length"))
                if size is not None and sent.span.is_recording():
                    say(sent.span, {names.RESPONSE_SIZE: size})
        return response

    return getresponse


@dataclass(frozen=True, slots=True)
class _Sent:
    """A stamped request on its way, the span that describes it, and the body's hash where it is known at the end."""

    method: str
    headers: Mapping[str, Any]
    body: Any
    span: RecordingSpan | None
    passing: PassingHash | None


def _prepare(connection: Any, method: str, url: str, body: Any, headers: Any) -> _Sent | None:
    """The stamped copy of a request; None: send it as it is."""
    # Not `is_http_instrumentation_enabled`: OpenTelemetry's instrumentations of requests and urllib3 switch that off
    # beneath themselves, which is where this is.
    if not is_instrumentation_enabled():
        return None
    check_address(_server_attributes(connection, url), functools.partial(NewConnectionError, connection))
    with Contained(PLACE):
        return _stamp(connection, method, url, body, {} if headers is None else headers)
    return None


def _stamp(connection: Any, method: str, url: str, body: Any, headers: Mapping[Any, Any]) -> _Sent:
    span = own_span(SpanKind.CLIENT, FOREIGN_TO_HTTP)
    known = _known_body(body)
    outgoing = stamp_now(
        span,
        Request(
            method=method,
            target=url,
            hash_hex=None if known is None else request_hash(known),
            size=0 if known is None else len(known),
            own=own_headers((_text(key), _text(value)) for key, value in headers.items()),
        ),
    )
    passing = PassingHash(PLACE) if known is None and span is not None else None
    if span is not None:
        add_attributes(span, outgoing.attributes, _server_attributes(connection, url))
    return _Sent(
        method=method.upper(),
        headers=_with_headers(headers, outgoing),
        body=body if passing is None else _passed(body, connection.blocksize, passing),
        span=span,
        passing=passing,
    )


def _with_headers(headers: Mapping[Any, Any], outgoing: Outgoing) -> Mapping[Any, Any]:
    """A copy, because the headers are the caller's, and sent again with the next attempt."""
    stamped: Any = headers.copy() if isinstance(headers, HTTPHeaderDict) else dict(headers.items())
    for key in [key for key in stamped if _text(key).lower() in outgoing.replaced]:
        del stamped[key]
    for key, value in outgoing.headers:
        stamped[key] = value
    return stamped  # type: ignore[no-any-return]


def _known_body(body: Any) -> bytes | None:
    """The body where it is in memory; None for anything that streams, or that urllib3 will refuse."""
    if body is None:
        return b""
    if isinstance(body, (bytes, str)):
        return as_bytes(body)
    if hasattr(body, "read"):
        return None
    try:
        return bytes(memoryview(body))
    except TypeError:
        return None


def _passed(body: Any, block_size: int, passing: PassingHash) -> Any:
    """The body as urllib3 reads it, hashed on its way: iterables and files are framed alike."""
    return _pieces(body, block_size, passing) if hasattr(body, "read") or hasattr(body, "__iter__") else body


def _pieces(body: Any, block_size: int, passing: PassingHash) -> Iterator[Any]:
    for piece in iter(lambda: body.read(block_size) or None, None) if hasattr(body, "read") else body:
        passing.take(piece)
        yield piece
    passing.end()


def _describe_sent(sent: _Sent, connection: Any) -> None:
    """What is known once the request is sent: whom the connection reached, what a streamed body hashed to."""
    if sent.span is None or not sent.span.is_recording():
        return
    attributes: dict[str, str | int] = {}
    if sent.passing is not None and (running := sent.passing.complete) is not None:
        attributes |= late_request(sent.span.attributes, running.hexdigest(), running.size)
    if hasattr(connection.sock, "getpeername"):
        with suppress(OSError):  # it may be closed already, from the other side
            # Over what instrumentation may have set: OpenTelemetry's writes the URL's host there, which is no peer.
            attributes |= socket_attributes(connection.sock.getpeername())
    say(sent.span, attributes)


def _server_attributes(connection: Any, url: str) -> dict[str, str | int]:
    """Who was meant: a proxy is dialled, but is told the server in the URL or in a CONNECT before."""
    if url.startswith(("http://", "https://")):
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme]
    elif getattr(connection, "_tunnel_host", None):
        host, port = connection._tunnel_host, connection._tunnel_port  # noqa: SLF001  (it has no other name)
    else:
        host, port = connection.host, connection.port
    attributes: dict[str, str | int] = {names.SERVER_ADDRESS: host.strip("[]")} if host else {}
    return attributes if port is None else attributes | {names.SERVER_PORT: port}


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)

"""Stamps on outgoing HTTP calls of httpx, and of whatever else speaks through httpcore's connection pools.

`httpcore.ConnectionPool.handle_request` (and the async one, and with them the proxies, which inherit both) lies beneath
httpx's clients, transports and OpenTelemetry's instrumentation of them: redirects and retries are stamped one by one,
and the client span is current, until the response's head has arrived.

A body that is there is hashed before it is sent. A streamed body is never drained: it is hashed while it passes, and the
hash goes on the span when the response's head is here; then no digest travels ahead of it.
"""

import functools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpcore
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.trace import SpanKind

from provenance import names
from provenance.addresses import socket_attributes
from provenance.digest import request_hash
from provenance.egress_guard import check
from provenance.faults import Contained
from provenance.http.passing import PassingHash, response_size
from provenance.outgoing import Outgoing, Request, own_headers, stamp_now
from provenance.patching import Patch
from provenance.recording import late_request
from provenance.spans import FOREIGN_TO_HTTP, RecordingSpan, add_attributes, own_span, say

PLACE: Final = "http.client"

_DEFAULT_PORTS: Final = {b"http": 80, b"https": 443, b"ws": 80, b"wss": 443}

_ByteStream: Final[Any] = type(httpcore.Request("GET", "http://localhost", content=b"").stream)  # it is not exported


def client_patches() -> tuple[Patch, ...]:
    """The patches of this shell, not yet applied."""
    return (
        Patch(httpcore.ConnectionPool, "handle_request", _wrap_handle_request),
        Patch(httpcore.AsyncConnectionPool, "handle_async_request", _wrap_handle_async_request),
    )


def _wrap_handle_request(original: Callable[..., Any], patch: Patch) -> Callable[..., Any]:
    @functools.wraps(original)
    def handle_request(pool: Any, request: httpcore.Request) -> httpcore.Response:
        sent = _prepare(request, patch, _SyncHashedStream)
        response: httpcore.Response = original(pool, request if sent is None else sent.request)
        if sent is not None:
            with Contained(PLACE):
                _describe(sent, response)
        return response

    return handle_request


def _wrap_handle_async_request(original: Callable[..., Awaitable[Any]], patch: Patch) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def handle_async_request(pool: Any, request: httpcore.Request) -> httpcore.Response:
        sent = _prepare(request, patch, _AsyncHashedStream)
        response: httpcore.Response = await original(pool, request if sent is None else sent.request)
        if sent is not None:
            with Contained(PLACE):
                _describe(sent, response)
        return response

    return handle_async_request


class HashedStream(PassingHash):
    """A body that passes through, hashed on its way; the hash is there once its last piece went by.

    Sync or async as the pool that sends it, because a stream may be both: httpx's multipart is. Whatever else the stream
    has (`close`, `aclose`) is found here too.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(PLACE)
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _SyncHashedStream(HashedStream):
    def __iter__(self) -> Iterator[bytes]:
        self.begin()
        for piece in self._stream:
            self.take(piece)
            yield piece
        self.end()


class _AsyncHashedStream(HashedStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.begin()
        async for piece in self._stream:
            self.take(piece)
            yield piece
        self.end()


@dataclass(frozen=True, slots=True)
class _Sent:
    """A stamped request on its way, the span that describes it, and the body's hash where it is known at the end."""

    request: httpcore.Request
    span: RecordingSpan | None
    stream: HashedStream | None


def _prepare(request: httpcore.Request, patch: Patch, passing: type[HashedStream]) -> _Sent | None:
    """The stamped copy of a request; None: send it as it is."""
    if not patch.active or not is_http_instrumentation_enabled():
        return None
    url = request.url
    check(url.host, url.port or _DEFAULT_PORTS.get(url.scheme), httpcore.ConnectError)
    with Contained(PLACE):
        return _stamp(request, passing)
    return None


def _stamp(request: httpcore.Request, passing: type[HashedStream]) -> _Sent:
    span = own_span(SpanKind.CLIENT, FOREIGN_TO_HTTP)
    body = _known_body(request.stream)
    outgoing = stamp_now(
        span,
        Request(
            method=request.method.decode("latin-1"),
            target=request.url.target.decode("latin-1"),
            hash_hex=None if body is None else request_hash(body),
            size=0 if body is None else len(body),
            own=own_headers((key.decode("latin-1"), value.decode("latin-1")) for key, value in request.headers),
        ),
    )
    hashed = passing(request.stream) if body is None and span is not None else None
    if span is not None:
        add_attributes(span, outgoing.attributes, _url_attributes(request.url))
    return _Sent(_with_headers(request, outgoing, hashed), span, hashed)


def _with_headers(request: httpcore.Request, outgoing: Outgoing, hashed: HashedStream | None) -> httpcore.Request:
    """A copy, because the request is the caller's and may be sent again.

    The caller's own headers stay as they are and in their order; only what was forwarded from another call goes.
    """
    kept = [(key, value) for key, value in request.headers if key.decode("latin-1").lower() not in outgoing.replaced]
    added = [(key.encode(), value.encode()) for key, value in outgoing.headers]
    stamped = httpcore.Request(request.method, request.url, headers=kept + added)
    stamped.stream = request.stream if hashed is None else hashed
    stamped.extensions = request.extensions
    return stamped


def _describe(sent: _Sent, response: httpcore.Response) -> None:
    """What only the response tells: whom the connection reached, how much came back, what a streamed body hashed to."""
    if sent.span is None:
        return
    attributes: dict[str, str | int] = {}
    if sent.stream is not None and (running := sent.stream.complete) is not None:
        attributes |= late_request(sent.span.attributes, running.hexdigest(), running.size)
    if (size := _response_size(sent.request, response)) is not None:
        attributes[names.RESPONSE_SIZE] = size
    stream = response.extensions.get("network_stream")
    if stream is not None:
        # Over what instrumentation may have set: OpenTelemetry's writes the URL's host there, which is no peer.
        attributes |= socket_attributes(stream.get_extra_info("server_addr"))
    say(sent.span, attributes)


def _response_size(request: httpcore.Request, response: httpcore.Response) -> int | None:
    length = next((value.decode("latin-1") for key, value in response.headers if _is(key, "content-length")), None)
    return response_size(request.method.decode("latin-1"), response.status, length)


def _known_body(stream: Any) -> bytes | None:
    """The body where it is in memory and can be read again and again; None for anything that streams."""
    httpx = sys.modules.get("httpx")  # httpcore may be used without it
    in_memory = (_ByteStream,) if httpx is None else (_ByteStream, httpx.ByteStream)
    return b"".join(stream) if isinstance(stream, in_memory) else None


def _url_attributes(url: httpcore.URL) -> dict[str, str | int]:
    host = url.host.decode("ascii", "replace").strip("[]")
    port = url.port if url.port is not None else _DEFAULT_PORTS.get(url.scheme)
    attributes: dict[str, str | int] = {names.SERVER_ADDRESS: host} if host else {}
    return attributes if port is None else attributes | {names.SERVER_PORT: port}


def _is(key: bytes, name: str) -> bool:
    return key.lower() == name.encode()

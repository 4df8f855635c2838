"""Stamps on outgoing HTTP calls of aiohttp's client.

`ClientRequest.send` lies beneath the session, its middlewares and OpenTelemetry's instrumentation (a `TraceConfig`, whose
span is current in the task that sends): each redirect and each retry passes here by itself, connected already.

A body that is there is hashed before it is sent. A streamed body is never drained: what is written of it is hashed, and
the hash goes on the span with the last piece; then no digest travels ahead of it. No hash is claimed of a body that
aiohttp compresses on its way.
"""

import errno
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp.client_exceptions import ClientConnectorError
from aiohttp.client_reqrep import ClientRequest, ClientResponse
from aiohttp.connector import TCPConnector
from aiohttp.payload import BytesPayload
from multidict import CIMultiDict
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.trace import SpanKind

from provenance import names
from provenance.addresses import socket_attributes
from provenance.digest import request_hash
from provenance.egress_guard import check
from provenance.faults import Contained
from provenance.http.passing import PassingHash, response_size
from provenance.outgoing import Request, own_headers, stamp_now
from provenance.patching import Patch
from provenance.recording import late_request
from provenance.spans import FOREIGN_TO_HTTP, RecordingSpan, add_attributes, own_span, say

PLACE: Final = "http.aiohttp"

_SPAN: Final = "_provenance_span"
"""On a request whose body streams: the span that wants its hash."""


def client_patches() -> tuple[Patch, ...]:
    """The patches of this shell, not yet applied."""
    return (
        Patch(ClientRequest, "send", _wrap_send),
        Patch(ClientRequest, "write_bytes", _wrap_write_bytes),
        Patch(ClientResponse, "start", _wrap_start),
        Patch(TCPConnector, "_create_connection", _wrap_create_connection),
    )


def _wrap_send(original: Callable[..., Awaitable[Any]], patch: Patch) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def send(request: Any, connection: Any, *args: Any, **kwargs: Any) -> Any:
        stamped = _prepare(request, connection, patch)
        if stamped is None:
            return await original(request, connection, *args, **kwargs)
        # Put back afterwards, because a middleware may send the same request again.
        own, request.headers = request.headers, stamped
        try:
            return await original(request, connection, *args, **kwargs)
        finally:
            request.headers = own

    return send


def _wrap_create_connection(original: Callable[..., Awaitable[Any]], patch: Patch) -> Callable[..., Awaitable[Any]]:
    """What the guard refuses is not even dialled; what it only reports is told with each request, in `send`."""

    @functools.wraps(original)
    async def create_connection(connector: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if patch.active and is_http_instrumentation_enabled():
            check(request.url.raw_host, request.url.port, functools.partial(_refusal, request), tells=False)
        return await original(connector, request, *args, **kwargs)

    return create_connection


def _refusal(request: Any, reason: str) -> ClientConnectorError:
    return ClientConnectorError(request.connection_key, ConnectionRefusedError(errno.ECONNREFUSED, reason))


def _wrap_write_bytes(original: Callable[..., Awaitable[None]], patch: Patch) -> Callable[..., Awaitable[None]]:  # noqa: ARG001  (what was stamped is described)
    @functools.wraps(original)
    async def write_bytes(request: Any, writer: Any, *args: Any, **kwargs: Any) -> None:
        span: RecordingSpan | None = request.__dict__.pop(_SPAN, None)
        if span is not None:
            with Contained(PLACE):
                _hash_what_is_written(writer, span)
        await original(request, writer, *args, **kwargs)

    return write_bytes


def _wrap_start(original: Callable[..., Awaitable[Any]], patch: Patch) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def start(response: Any, *args: Any, **kwargs: Any) -> Any:
        started = await original(response, *args, **kwargs)
        if patch.active and is_http_instrumentation_enabled():
            with Contained(PLACE):
                _describe(response)
        return started

    return start


def _prepare(request: Any, connection: Any, patch: Patch) -> "CIMultiDict[str] | None":
    """The stamped copy of a request's headers; None: send it as it is."""
    if not patch.active or not is_http_instrumentation_enabled():
        return None
    check(request.url.raw_host, request.url.port, functools.partial(_refusal, request))
    with Contained(PLACE):
        return _stamp(request, connection)
    return None


def _stamp(request: Any, connection: Any) -> "CIMultiDict[str]":
    span = own_span(SpanKind.CLIENT, FOREIGN_TO_HTTP)
    body = _known_body(request)
    outgoing = stamp_now(
        span,
        Request(
            method=request.method,
            target=request.url.raw_path_qs,
            hash_hex=None if body is None else request_hash(body),
            size=0 if body is None else len(body),
            own=own_headers(request.headers.items()),
        ),
    )
    stamped = CIMultiDict(request.headers)
    for key in outgoing.replaced:
        stamped.popall(key, None)
    stamped.extend(outgoing.headers)
    if span is not None:
        add_attributes(span, outgoing.attributes, _url_attributes(request.url))
        if connection.transport is not None:
            say(span, socket_attributes(connection.transport.get_extra_info("peername")))
        if body is None and not request.compress:
            setattr(request, _SPAN, span)
    return stamped


def _known_body(request: Any) -> bytes | None:
    """The body where it is in memory and sent as it is; None for anything that streams, or is compressed or cut."""
    body = request.body
    if not isinstance(body, BytesPayload):
        return None if body else b""
    value = bytes(body._value)  # noqa: SLF001  (what would hand it out has to be awaited)
    whole = request.headers.get("content-length", str(len(value))) == str(len(value))
    return value if whole and not (request.compress and value) else None


def _hash_what_is_written(writer: Any, span: RecordingSpan) -> None:
    """Watch one request's own writer, not its class; a payload sends all its bytes through these two."""
    passing = PassingHash(PLACE)
    write, write_eof = writer.write, writer.write_eof

    @functools.wraps(write)
    async def hashed_write(chunk: Any, *args: Any, **kwargs: Any) -> None:
        passing.take(chunk)
        await write(chunk, *args, **kwargs)

    @functools.wraps(write_eof)
    async def hashed_write_eof(chunk: Any = b"", *args: Any, **kwargs: Any) -> None:
        passing.take(chunk)
        passing.end()
        with Contained(PLACE):
            if passing.complete is not None and span.is_recording():
                running = passing.complete
                say(span, late_request(span.attributes, running.hexdigest(), running.size))
        await write_eof(chunk, *args, **kwargs)

    writer.write, writer.write_eof = hashed_write, hashed_write_eof


def _describe(response: Any) -> None:
    """What only the response tells: how much comes back."""
    span = own_span(SpanKind.CLIENT, FOREIGN_TO_HTTP)
    size = response_size(response.method, response.status, response.headers.get("content-length"))
    if span is not None and size is not None:
        say(span, {names.RESPONSE_SIZE: size})


def _url_attributes(url: Any) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {names.SERVER_ADDRESS: url.raw_host} if url.raw_host else {}
    return attributes if url.port is None else attributes | {names.SERVER_PORT: url.port}

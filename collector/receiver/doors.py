"""Where tokens are asked for: before anything of a request is read, let alone decoded.

Refusals are counted, and said to the sender in its protocol's words: UNAUTHENTICATED or PERMISSION_DENIED over gRPC, 401
with WWW-Authenticate or 403 over HTTP. OTLP clients retry neither.
"""

import json
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

import grpc
from google.rpc import code_pb2
from starlette.types import ASGIApp, Receive, Scope, Send

from collector.receiver.counters import Counters
from collector.receiver.credentials import Credentials, Refusal, needed
from collector.receiver.statuses import JSON, PROTOBUF, as_json, status

_log: Final = logging.getLogger(__name__)

_GRPC_CODES: Final = {
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
}
_HTTP: Final = {
    "unauthenticated": (401, code_pb2.UNAUTHENTICATED),
    "forbidden": (403, code_pb2.PERMISSION_DENIED),
}


class GrpcDoor(grpc.ServerInterceptor):
    """Lets calls with a write token in; all services of the gRPC port write."""

    def __init__(self, credentials: Credentials, counters: Counters) -> None:
        self._credentials = credentials
        self._counters = counters

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The service's handler, or one that refuses."""
        given = [v for k, v in handler_call_details.invocation_metadata or () if k == "authorization"]
        refusal = self._credentials.refusal("write", given)
        if refusal is None:
            return continuation(handler_call_details)
        self._counters.refused(refusal.reason, 1)
        _log.warning("OTLP/gRPC: a call was refused: %s", refusal.message)
        return _refuses(refusal)


def _refuses(refusal: Refusal) -> "grpc.RpcMethodHandler[Any, Any]":
    """A handler that ends the call. As one of a stream it does so before it asks for the message: gRPC reads none."""

    def refuse(_: Iterable[bytes], context: grpc.ServicerContext) -> bytes:
        context.set_code(_GRPC_CODES[refusal.reason])
        context.set_details(refusal.message)
        return b""

    return grpc.stream_unary_rpc_method_handler(refuse)


class HttpDoor:
    """An ASGI application around another one, which sees no request without its token."""

    def __init__(self, app: ASGIApp, credentials: Credentials, counters: Counters) -> None:
        self._app = app
        self._credentials = credentials
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it in, or answer it."""
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        self._counters.refused(refusal.reason, 1)
        _log.warning("HTTP: a request was refused: %s", refusal.message)
        await _answer(scope, send, refusal)

    def _refusal(self, scope: Scope) -> Refusal | None:
        permission = needed(str(scope["path"]))
        return None if permission is None else self._credentials.refusal(permission, _headers(scope, b"authorization"))


async def _answer(scope: Scope, send: Send, refusal: Refusal) -> None:
    http_status, _ = _HTTP[refusal.reason]
    media_type, body = _body(scope, refusal)
    headers = [
        (b"content-type", media_type),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", _challenge(refusal)),
    ]
    await send({"type": "http.response.start", "status": http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _challenge(refusal: Refusal) -> bytes:
    """RFC 6750, section 3."""
    error = b', error="insufficient_scope"' if refusal.reason == "forbidden" else b""
    return b'Bearer realm="mesh-provenance"' + error


def _body(scope: Scope, refusal: Refusal) -> tuple[bytes, bytes]:
    """Media type and body in the words of whoever asked: OTLP's Status, or the query API's error."""
    _, code = _HTTP[refusal.reason]
    if not str(scope["path"]).startswith("/v1/"):
        return JSON.encode(), json.dumps({"error": refusal.message}).encode()
    said = status(code, refusal.message)
    if any(JSON.encode() in value.lower() for value in _headers(scope, b"content-type")):
        return JSON.encode(), as_json(said).encode()
    body: bytes = said.SerializeToString()
    return PROTOBUF.encode(), body


def _headers(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]

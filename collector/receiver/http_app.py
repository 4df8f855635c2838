"""OTLP over HTTP: POST /v1/traces in an ASGI application that others may add routes to.

| outcome | status | the sender |
|---|---|---|
| committed | 200, with `partial_success` when spans were refused | goes on |
| not a trace request, not gzip | 400 | drops it |
| too slow a body | 408 | drops it |
| a Host that is not this machine, where only this machine is served | 421 | drops it |
| larger than the limit, also after decompression | 413 | drops it |
| a content type or encoding that is not spoken here | 415 | drops it |
| the store failed, is full, or took too long | 503 with Retry-After | sends it again |

"The response body for all HTTP 4xx and HTTP 5xx responses MUST be a Protobuf-encoded Status message" (OTLP/HTTP,
Failures); JSON where the request was JSON.
"""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Final

from google.rpc import code_pb2, status_pb2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from collector.errors import DecodeError, StoreError
from collector.receiver.hosts import names_this_machine
from collector.receiver.inflate import TooLargeError, gunzip, too_large
from collector.receiver.ingest import MAX_REQUEST_BYTES, Accepted, Ingest, store_failure

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

READ_TIMEOUT_S: Final = 30.0
"""For the whole body: who sends a byte a second must not hold a connection for ever."""

COMMIT_TIMEOUT_S: Final = 30.0
RETRY_AFTER_S: Final = 1


def create_app(
    *,
    ingest: Ingest,
    extra_routes: Sequence[BaseRoute] = (),
    loopback_only: bool = False,
    max_request_bytes: int = MAX_REQUEST_BYTES,
    read_timeout_s: float = READ_TIMEOUT_S,
    commit_timeout_s: float = COMMIT_TIMEOUT_S,
) -> Starlette:
    """The application: /v1/traces, /healthz, and `extra_routes`; `loopback_only` refuses Hosts that a foreign page may have."""

    async def traces(request: Request) -> Response:
        try:
            if (refusal := _unspoken(request)) is not None:
                return refusal
            body = await asyncio.wait_for(_read(request, max_request_bytes), read_timeout_s)
        except TooLargeError as error:
            return _status(request, 413, code_pb2.RESOURCE_EXHAUSTED, str(error))
        except TimeoutError:
            message = f"the body did not arrive within {read_timeout_s:g} s"
            return _status(request, 408, code_pb2.DEADLINE_EXCEEDED, message)
        except ClientDisconnect:
            return _status(request, 400, code_pb2.CANCELLED, "the sender went away before the body's end")
        gzipped = _encoding(request) == "gzip"
        return await _ingest(request, ingest, body, max_request_bytes if gzipped else None, commit_timeout_s)

    return Starlette(
        routes=[Route("/v1/traces", traces, methods=["POST"]), Route("/healthz", _healthz), *extra_routes],
        middleware=[Middleware(_OnlyThisMachine)] if loopback_only else [],
    )


class _OnlyThisMachine:
    """Answers 421 to requests for other hosts' names, before anything of them is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            host = request.headers.get("host", "")
            if not names_this_machine(host):
                message = f"the Host {host!r} is not served: ask for localhost or an address, or bind with --host"
                await _misdirected(request, message)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _misdirected(request: Request, message: str) -> Response:
    """In the words of whoever asked: OTLP's Status, or the query API's error."""
    if str(request.scope["path"]).startswith("/v1/"):
        return _status(request, 421, code_pb2.PERMISSION_DENIED, message)
    return JSONResponse({"error": message}, 421)


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _encoding(request: Request) -> str:
    return request.headers.get("content-encoding", "").strip().lower()


def _unspoken(request: Request) -> Response | None:
    """The answer to a body that is in no language spoken here."""
    media_type, encoding = _media_type(request), _encoding(request)
    if media_type != PROTOBUF:
        hint = (
            "; OTLP/JSON is not supported: set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" if media_type == JSON else ""
        )
        message = f"content-type {media_type!r} is not supported, {PROTOBUF} is{hint}"
        return _status(request, 415, code_pb2.INVALID_ARGUMENT, message)
    if encoding not in {"", "identity", "gzip"}:
        message = f"content-encoding {encoding!r} is not supported, gzip and none are"
        return _status(request, 415, code_pb2.INVALID_ARGUMENT, message)
    return None


async def _read(request: Request, limit: int) -> bytes:
    """The body as sent. The limit counts what arrives: a chunked body announces no length."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


async def _ingest(
    request: Request, ingest: Ingest, body: bytes, inflate_limit: int | None, commit_timeout_s: float
) -> Response:
    """Inflate and decode in a thread, wait for the commit, answer."""

    def accept() -> Accepted:
        return ingest.traces(body if inflate_limit is None else gunzip(body, inflate_limit))

    try:
        accepted = await run_in_threadpool(accept)
        await _committed(accepted, commit_timeout_s)
    except TooLargeError as error:
        return _status(request, 413, code_pb2.RESOURCE_EXHAUSTED, str(error))
    except DecodeError as error:
        return _status(request, 400, code_pb2.INVALID_ARGUMENT, str(error))
    except (StoreError, CancelledError, TimeoutError) as error:
        response = _status(request, 503, code_pb2.UNAVAILABLE, store_failure(error))
        response.headers["retry-after"] = str(RETRY_AFTER_S)
        return response
    return Response(accepted.response(), media_type=PROTOBUF)


async def _committed(accepted: Accepted, timeout_s: float) -> None:
    """Wait for the commit. A timeout must not cancel the writer's future: its rows may be in the next commit."""
    committed = asyncio.wrap_future(accepted.committed)
    done, _ = await asyncio.wait([committed], timeout=timeout_s)
    if not done:
        raise TimeoutError
    committed.result()


def _status(request: Request, http_status: int, code: int, message: str) -> Response:
    """A google.rpc.Status in the request's language."""
    if _media_type(request) == JSON:
        return Response(json.dumps({"code": code, "message": message}), http_status, media_type=JSON)
    status = status_pb2.Status(code=code, message=message)
    return Response(status.SerializeToString(), http_status, media_type=PROTOBUF)

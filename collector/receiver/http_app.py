"""OTLP over HTTP: POST /v1/traces, and other signals' endpoints, in an ASGI application that others may add routes to.

| outcome | status | the sender |
|---|---|---|
| committed | 200, with `partial_success` when spans were refused | goes on |
| not a trace request, not the content encoding that it says | 400 | drops it |
| no such path, or not POST | 404, 405 with Allow | drops it |
| too slow a body | 408 | drops it |
| larger than the limit, also after decompression | 413 | drops it |
| a content type or encoding that is not spoken here | 415, with Accept or Accept-Encoding | drops it |
| a Host that is not this machine, where only this machine is served | 421 | drops it |
| a defect in here | 500 | drops it |
| the store failed, is full, or took too long; too many large bodies at once | 503 with Retry-After and RetryInfo | sends it again |

One request's way is in `http_export`.
"""

from collections.abc import Sequence
from typing import Final

from google.rpc import code_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from collector.receiver.counters import Counters
from collector.receiver.hosts import names_this_machine
from collector.receiver.http_export import (
    COMMIT_TIMEOUT_S,
    READ_TIMEOUT_S,
    ROOM_BYTES,
    Limits,
    Receiver,
    Signal,
    failed,
    media_type,
)
from collector.receiver.ingest import MAX_REQUEST_BYTES, Ingest
from collector.receiver.statuses import DEFECT, PROTOBUF, status

TRACES_PATH: Final = "/v1/traces"

_CODES: Final = {404: code_pb2.NOT_FOUND, 405: code_pb2.UNIMPLEMENTED, 421: code_pb2.PERMISSION_DENIED}


def create_app(
    *,
    ingest: Ingest,
    signals: Sequence[Signal] = (),
    extra_routes: Sequence[BaseRoute] = (),
    loopback_only: bool = False,
    counters: Counters | None = None,
    max_request_bytes: int = MAX_REQUEST_BYTES,
    room_bytes: int = ROOM_BYTES,
    read_timeout_s: float = READ_TIMEOUT_S,
    commit_timeout_s: float = COMMIT_TIMEOUT_S,
) -> Starlette:
    """The application: /v1/traces, other `signals`, /healthz, and `extra_routes`.

    `loopback_only` refuses Hosts that a foreign page may have; `counters` are told of every answer.
    """
    counted = counters or Counters()
    receiver = Receiver(Limits(max_request_bytes, room_bytes, read_timeout_s, commit_timeout_s), counted)
    traces = Signal(
        TRACES_PATH,
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
        ingest.traces,
        is_quick=True,
        check_room=ingest.check_room,
    )
    served = (traces, *signals)
    app = Starlette(
        routes=[
            *(Route(signal.path, receiver.endpoint(signal), methods=["POST"]) for signal in served),
            Route("/healthz", _healthz),
            *extra_routes,
        ],
        middleware=[Middleware(_OnlyThisMachine, counters=counted)] if loopback_only else [],
        exception_handlers={HTTPException: _not_served, Exception: _defect},
    )
    # A redirect from /v1/traces/ would lose the spans of exporters that do not follow it, without a word.
    app.router.redirect_slashes = False
    return app


class _OnlyThisMachine:
    """Answers 421 to requests for other hosts' names, before anything of them is read."""

    def __init__(self, app: ASGIApp, counters: Counters) -> None:
        self._app = app
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            host = request.headers.get("host", "")
            if not names_this_machine(host):
                self._counters.refused("misdirected", 1)
                message = f"the Host {host!r} is not served: ask for localhost or an address, or bind with --host"
                await _refused(request, 421, message)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _not_served(request: Request, error: Exception) -> Response:
    """404 and 405, which the router raises, and what other routes raise."""
    if not isinstance(error, HTTPException):
        raise error
    path = request.url.path[:200]
    message = {
        404: f"nothing is served at {path!a}: traces are taken at POST {TRACES_PATH}",
        405: f"{request.method[:20]} is not served at {path!a}: OTLP is POST",
    }.get(error.status_code, error.detail)
    return _refused(request, error.status_code, message, dict(error.headers or {}))


async def _defect(request: Request, _: Exception) -> Response:
    """The sender learns that it is not its fault, and nothing of what went wrong inside; the server logs the traceback."""
    return _refused(request, 500, DEFECT)


def _refused(request: Request, http_status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """In the words of whoever asked: OTLP's Status, or the query API's error."""
    if request.url.path.startswith("/v1") or media_type(request) == PROTOBUF:
        return failed(request, http_status, status(_CODES.get(http_status, code_pb2.INTERNAL), message), headers)
    return JSONResponse({"error": message}, http_status, headers)

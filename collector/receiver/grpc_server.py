"""OTLP over gRPC: the TraceService and whatever else is handed in; other services are answered UNIMPLEMENTED by gRPC itself.

| outcome | status | the sender |
|---|---|---|
| durable | OK, with `partial_success` when spans were refused | goes on |
| not a trace request | INVALID_ARGUMENT | drops it |
| larger than the limit, also after decompression | RESOURCE_EXHAUSTED, by gRPC itself | drops it |
| the message did not arrive in time | DEADLINE_EXCEEDED | sends it again |
| the store failed, is full, or took too long; too many slow messages, or a large one beside another | UNAVAILABLE with RetryInfo | sends it again |
| a defect in here | INTERNAL | drops it |

An event loop on a thread of its own, not gRPC's thread pool: a request costs a third of the CPU, and how many messages are read at
once is ours to say (see `reading`). Export is declared as a stream of one message, which looks the same on the wire, so that a message is read when
there is room for it and not before.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Final

import grpc
from google.rpc import status_pb2

from collector.errors import ConfigError, DecodeError, StoreError, StoreFullError
from collector.receiver.counters import Counters, Reason
from collector.receiver.ingest import Ingest, store_failure
from collector.receiver.reading import CrowdedError, Places, TooSlowError
from collector.receiver.statuses import DEFECT, bad_request, grpc_trailer, unavailable
from collector.receiver.waking import Bell

LOG: Final = logging.getLogger(__name__)

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"

COMMIT_TIMEOUT_S: Final = 30.0
"""Longer than any healthy commit; OTLP exporters give up after 10 s by default."""

MAX_GRPC_REQUEST_BYTES: Final = 16 * 1024 * 1024
"""gRPC has a message three times before anybody sees it, and several may be on their way at one moment. A Collector's receiver takes 4 MiB."""

MAX_STREAMS: Final = 32
"""Calls of one connection at a time; a Collector makes ten. Without a limit, calls that were opened and reset by the thousand wait for their
turn. And until a client has acknowledged the server's settings, gRPC lets each of so many calls have headers of 16 MiB, which take 40 to 100 in memory."""

THREADS: Final = 8
"""For handlers that are no coroutines: refusals at the door."""


class GrpcServer:
    """A gRPC server on an event loop of its own thread; `start` and `stop` come from other threads."""

    def __init__(self, make: Callable[[], tuple[grpc.aio.Server, int]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="otlp-grpc", daemon=True)
        self._thread.start()

        async def made() -> tuple[grpc.aio.Server, int]:  # an aio server belongs to the loop that it is made on
            return make()

        try:
            self._server, self.port = self._run(made()).result()
        except BaseException:
            self._end()
            raise

    def start(self) -> None:
        """Take requests."""
        self._run(self._server.start()).result()

    def stop(self, grace_seconds: float | None) -> None:
        """Take no more requests, and return when those that are under way are answered, or the grace is over."""
        self._run(self._server.stop(grace_seconds)).result()
        self._end()

    def _run(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def create_server(
    ingest: Ingest,
    *,
    address: str,
    max_request_bytes: int = MAX_GRPC_REQUEST_BYTES,
    places: Places | None = None,
    commit_timeout_s: float = COMMIT_TIMEOUT_S,
    handlers: Sequence[grpc.GenericRpcHandler] = (),
    interceptors: Sequence[grpc.ServerInterceptor] = (),
    credentials: grpc.ServerCredentials | None = None,
    counters: Counters | None = None,
) -> tuple[GrpcServer, int]:
    """A server bound to `address` (`host:port`; port 0: any), not started yet, and its port. Raises ConfigError."""

    def make() -> tuple[grpc.aio.Server, int]:
        export = _Export(ingest, places or Places(), commit_timeout_s, counters or Counters())
        server = grpc.aio.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="otlp-grpc"),
            handlers=[export.handler(), *handlers],
            interceptors=[_Intercepts(interceptor) for interceptor in interceptors],
            options=[
                ("grpc.max_receive_message_length", max_request_bytes),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                # Off, or two collectors could listen on one port and each would get half of the spans.
                ("grpc.so_reuseport", 0),
            ],
        )
        bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        return server, bound

    try:
        server = GrpcServer(make)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen for OTLP/gRPC on {address}: {error}; is another collector running?"
        ) from error
    return server, server.port


class _Intercepts(grpc.aio.ServerInterceptor):
    """An interceptor that needs no event loop, on one."""

    def __init__(self, interceptor: grpc.ServerInterceptor) -> None:
        self._interceptor = interceptor

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        return self._interceptor.intercept_service(lambda _: handler, handler_call_details)


class _Export:
    """TraceService/Export without (de)serialisers: a request's bytes go to the decoder as they came."""

    def __init__(self, ingest: Ingest, places: Places, commit_timeout_s: float, counters: Counters) -> None:
        self._ingest = ingest
        self._places = places
        self._commit_timeout_s = commit_timeout_s
        self._counters = counters
        self._bell = Bell()

    def handler(self) -> grpc.GenericRpcHandler:
        """The service."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"Export": grpc.stream_unary_rpc_method_handler(self._export)}
        )

    async def _export(self, _: Any, context: Any) -> bytes:
        try:
            async with self._places.message(context) as payload:
                return await self._answer(payload, context)
        except CrowdedError as error:
            body = unavailable(str(error))
            return await self._refuse(context, grpc.StatusCode.UNAVAILABLE, str(error), "queue_full", body)
        except TooSlowError as error:
            return await self._refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, str(error), "too_slow")
        except Exception:
            LOG.exception("a trace request could not be handled")
            return await self._refuse(context, grpc.StatusCode.INTERNAL, DEFECT, "other")

    async def _answer(self, payload: Any, context: Any) -> bytes:
        if payload is grpc.aio.EOF:
            return await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "the call has no message", "malformed")
        try:
            accepted = self._ingest.traces(payload)
            await self._bell.wait(accepted.committed, self._commit_timeout_s)
        except DecodeError as error:
            error.__traceback__ = None  # its frames hold the request, and the request holds the error
            return await self._refuse(
                context, grpc.StatusCode.INVALID_ARGUMENT, str(error), "malformed", bad_request(str(error))
            )
        except (StoreError, CancelledError, TimeoutError) as error:
            error.__traceback__ = None
            reason: Reason = "queue_full" if isinstance(error, StoreFullError) else "store_failed"
            message = store_failure(error)
            return await self._refuse(context, grpc.StatusCode.UNAVAILABLE, message, reason, unavailable(message))
        self._counters.accepted("grpc", 1, accepted.span_count)
        if accepted.rejected:
            self._counters.refused("invalid_span", 0, sum(accepted.rejected.values()))
        return accepted.response()

    async def _refuse(
        self, context: Any, code: grpc.StatusCode, message: str, reason: Reason, body: status_pb2.Status | None = None
    ) -> bytes:
        """End the call with a status; what a handler returns beside one is not sent."""
        self._counters.refused(reason, 1)
        context.set_code(code)
        context.set_details(message)
        if body is not None:
            context.set_trailing_metadata(grpc_trailer(body))
        return b""

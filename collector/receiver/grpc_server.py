"""OTLP over gRPC: the TraceService, and nothing else, so metrics and logs are answered UNIMPLEMENTED by gRPC itself.

| outcome | status | the sender |
|---|---|---|
| committed | OK, with `partial_success` when spans were refused | goes on |
| not a trace request | INVALID_ARGUMENT | drops it |
| larger than the limit, also after decompression | RESOURCE_EXHAUSTED, by gRPC itself | drops it |
| the store failed, is full, or took too long | UNAVAILABLE | sends it again |
"""

from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, Final

import grpc

from collector.errors import ConfigError, DecodeError, StoreError
from collector.receiver.ingest import MAX_REQUEST_BYTES, Ingest, store_failure

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"

THREADS: Final = 64
"""A thread waits while its request is committed; so as many requests as there are threads can share one commit. gRPC
reads a request only when a thread is free for it: the rest waits in the senders' flow control windows."""

COMMIT_TIMEOUT_S: Final = 30.0
"""Longer than any healthy commit; OTLP exporters give up after 10 s by default."""


def create_server(
    ingest: Ingest,
    *,
    address: str,
    max_request_bytes: int = MAX_REQUEST_BYTES,
    threads: int = THREADS,
    commit_timeout_s: float = COMMIT_TIMEOUT_S,
    handlers: Sequence[grpc.GenericRpcHandler] = (),
    interceptors: Sequence[grpc.ServerInterceptor] = (),
    credentials: grpc.ServerCredentials | None = None,
) -> tuple[grpc.Server, int]:
    """A server bound to `address` (`host:port`; port 0: any), not started yet, and its port. Raises ConfigError."""
    server = grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="otlp-grpc"),
        handlers=[_trace_service(ingest, commit_timeout_s), *handlers],
        interceptors=list(interceptors),
        options=[
            ("grpc.max_receive_message_length", max_request_bytes),
            # Off, or two collectors could listen on one port and each would get half of the spans.
            ("grpc.so_reuseport", 0),
        ],
    )
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen for OTLP/gRPC on {address}: {error}; is another collector running?"
        ) from error
    return server, port


def _trace_service(ingest: Ingest, commit_timeout_s: float) -> grpc.GenericRpcHandler:
    """The service without (de)serialisers: a request's bytes go to the decoder as they came."""

    def export(payload: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            accepted = ingest.traces(payload)
            accepted.committed.result(commit_timeout_s)
        except DecodeError as error:
            return _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except (StoreError, CancelledError, TimeoutError) as error:
            return _refuse(context, grpc.StatusCode.UNAVAILABLE, store_failure(error))
        return accepted.response()

    return grpc.method_handlers_generic_handler(SERVICE, {"Export": grpc.unary_unary_rpc_method_handler(export)})


def _refuse(context: grpc.ServicerContext, code: Any, details: str) -> bytes:
    """End the call with a status; what a handler returns beside one is not sent."""
    context.set_code(code)
    context.set_details(details)
    return b""

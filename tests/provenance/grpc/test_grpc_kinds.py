"""All four kinds of RPC, sync and aio clients against sync and aio servers: both spans say the same, the call stays as it was.

The docs' table of what is stamped is this file's parameters.
"""

# mypy: disable-error-code="no-untyped-call"
# ruff: noqa: FBT001  (pytest passes parameters and fixtures by name)

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.instrumentation.grpc import (
    GrpcAioInstrumentorClient,
    GrpcAioInstrumentorServer,
    GrpcInstrumentorClient,
    GrpcInstrumentorServer,
)
from opentelemetry.trace import SpanKind

from provenance.instrumentor import ProvenanceInstrumentor
from provenance.stamp import parse

SERVICE = "shop.Checkout"
DEADLINE_SECONDS = 20.0
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
REQUESTS = [StringValue(value=text) for text in ("one shirt", "", "three shirts")]
RAW = [request.SerializeToString() for request in REQUESTS]


def hash_of(kind: str) -> str:
    if kind.startswith("unary"):
        return hashlib.sha256(RAW[0]).hexdigest()
    return hashlib.sha256(b"".join(len(raw).to_bytes(4, "big") + raw for raw in RAW)).hexdigest()


# --- servers: one service, in each of gRPC's styles -----------------------------------------------------------------------


class SyncServicer:
    """Plain functions and generators."""

    def unary_unary(self, request: Any, context: Any) -> Any:
        return request

    def unary_stream(self, request: Any, context: Any) -> Iterator[Any]:
        yield request
        yield request

    def stream_unary(self, requests: Any, context: Any) -> Any:
        return StringValue(value=" and ".join(request.value for request in requests))

    def stream_stream(self, requests: Any, context: Any) -> Iterator[Any]:
        yield from requests


class AioServicer:
    """Coroutines and asynchronous generators."""

    async def unary_unary(self, request: Any, context: Any) -> Any:
        return request

    async def unary_stream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield request
        yield request

    async def stream_unary(self, requests: Any, context: Any) -> Any:
        return StringValue(value=" and ".join([request.value async for request in requests]))

    async def stream_stream(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield request


class WritingServicer(AioServicer):
    """Coroutines that write their responses themselves."""

    async def unary_stream(self, request: Any, context: Any) -> None:  # type: ignore[override]
        await context.write(request)
        await context.write(request)

    async def stream_stream(self, requests: Any, context: Any) -> None:  # type: ignore[override]
        async for request in requests:
            await context.write(request)


@dataclass
class Running:
    target: str
    metadata: list[tuple[str, Any]]

    def values(self, key: str) -> list[Any]:
        return [v for k, v in self.metadata if k == key]


def handlers_of(servicer: Any) -> dict[str, Any]:
    return {
        kind: getattr(grpc, f"{kind}_rpc_method_handler")(
            getattr(servicer, kind), StringValue.FromString, StringValue.SerializeToString
        )
        for kind in KINDS
    }


class Metadata:
    """A generic handler that answers nothing, and remembers what every call brought."""

    def __init__(self, running: Running) -> None:
        self.running = running

    def service(self, details: Any) -> None:
        self.running.metadata = list(details.invocation_metadata)


def serve_sync(servicer: Any, *, registered: bool) -> tuple[Running, Callable[[], object]]:
    running = Running("", [])
    server = grpc.server(futures.ThreadPoolExecutor(2))
    add_handlers(server, running, servicer, registered=registered)
    running.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    return running, lambda: server.stop(None).wait(DEADLINE_SECONDS)


def add_handlers(server: Any, running: Running, servicer: Any, *, registered: bool) -> None:
    handlers = handlers_of(servicer)
    server.add_generic_rpc_handlers((Metadata(running),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if registered:
        server.add_registered_method_handlers(SERVICE, handlers)


def serve_aio(servicer: Any, *, registered: bool) -> tuple[Running, Callable[[], object]]:
    """In a thread with an event loop of its own."""
    running = Running("", [])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(DEADLINE_SECONDS)

    async def start() -> Any:
        server = grpc.aio.server(futures.ThreadPoolExecutor(2))
        add_handlers(server, running, servicer, registered=registered)
        running.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        return server

    server = run(start())

    def stop() -> None:
        run(server.stop(None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_SECONDS)
        loop.close()

    return running, stop


SERVERS: dict[str, Callable[..., tuple[Running, Callable[[], object]]]] = {
    "sync": lambda **options: serve_sync(SyncServicer(), **options),
    "aio": lambda **options: serve_aio(AioServicer(), **options),
    "aio, writing": lambda **options: serve_aio(WritingServicer(), **options),
    "aio, plain functions": lambda **options: serve_aio(SyncServicer(), **options),
}


# --- clients: one call of each kind, in each of gRPC's styles ----------------------------------------------------------------


def call_sync(target: str, kind: str, way: str = "call") -> list[str]:
    with grpc.insecure_channel(target) as channel:
        stub: Any = getattr(channel, kind)(f"/{SERVICE}/{kind}", StringValue.SerializeToString, StringValue.FromString)
        sent = REQUESTS[0] if kind.startswith("unary") else iter(REQUESTS)
        match way:
            case "future":
                answer = stub.future(sent, timeout=DEADLINE_SECONDS).result()
            case "with_call":
                answer = stub.with_call(sent, timeout=DEADLINE_SECONDS)[0]
            case _:
                answer = stub(sent, timeout=DEADLINE_SECONDS)
        return [each.value for each in answer] if kind.endswith("stream") else [answer.value]


async def iterated() -> AsyncIterator[StringValue]:
    for request in REQUESTS:
        yield request


async def call_aio(target: str, kind: str, way: str = "call") -> list[str]:
    async with grpc.aio.insecure_channel(target) as channel:
        stub: Any = getattr(channel, kind)(f"/{SERVICE}/{kind}", StringValue.SerializeToString, StringValue.FromString)
        if kind.startswith("unary"):
            call = stub(REQUESTS[0], timeout=DEADLINE_SECONDS)
        elif way == "write":
            call = stub(timeout=DEADLINE_SECONDS)
            for request in REQUESTS:
                await call.write(request)
            await call.done_writing()
        else:
            call = stub(iterated(), timeout=DEADLINE_SECONDS)
        if kind.endswith("stream"):
            return [each.value async for each in call]
        return [(await call).value]


CLIENTS: dict[str, Callable[[str, str], list[str]]] = {
    "sync": call_sync,
    "sync, future": lambda target, kind: call_sync(target, kind, "future"),
    "sync, with_call": lambda target, kind: call_sync(target, kind, "with_call"),
    "aio": lambda target, kind: asyncio.run(call_aio(target, kind)),
    "aio, write": lambda target, kind: asyncio.run(call_aio(target, kind, "write")),
}
ANSWERS = {
    "unary_unary": ["one shirt"],
    "unary_stream": ["one shirt", "one shirt"],
    "stream_unary": ["one shirt and  and three shirts"],
    "stream_stream": [request.value for request in REQUESTS],
}


def every_way() -> Iterator[Any]:
    for kind in KINDS:
        for client in CLIENTS:
            unary, stream = kind.startswith("unary"), kind.endswith("stream")
            if (client == "aio, write" and unary) or (client in {"sync, future", "sync, with_call"} and stream):
                continue
            for server in SERVERS:
                # OpenTelemetry's interceptor waits for the end of a call that is still to be written to: "RPC already finished".
                if (server != "aio, writing" or stream) and (client, kind) != ("aio, write", "stream_unary"):
                    yield pytest.param(kind, client, server, id=f"{kind}: {client} to {server}")


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    stops = []

    def run(server: str, *, registered: bool = True) -> Running:
        running, stop = SERVERS[server](registered=registered)
        stops.append(stop)
        return running

    yield run
    for stop in stops:
        stop()


OPENTELEMETRY = (GrpcInstrumentorClient, GrpcInstrumentorServer, GrpcAioInstrumentorClient, GrpcAioInstrumentorServer)


@pytest.mark.parametrize(("kind", "client", "server"), list(every_way()))
def test_both_spans_say_the_same(
    activate: Any, start: Any, spans: Any, no_faults: None, kind: str, client: str, server: str
) -> None:
    activate(*(each() for each in OPENTELEMETRY))
    running = start(server, registered=False)

    assert CLIENTS[client](running.target, kind) == ANSWERS[kind]
    called, served = spans.client(), spans.server()
    [stamp] = map(parse, running.values("provenance"))
    size = len(RAW[0]) if kind.startswith("unary") else sum(map(len, RAW))
    response_size = sum(StringValue(value=text).ByteSize() for text in ANSWERS[kind])
    common = {
        "provenance.request.hash": hash_of(kind),
        "provenance.request.size": size,
        "provenance.response.size": response_size,
        "provenance.request_id": running.values("x-request-id")[0],
        "provenance.stamp.kid": "checkout",
        "provenance.stamp.nonce": stamp.nonce.hex(),
        "provenance.stamp.time_unix_ms": stamp.time_unix_ms,
    }
    assert {k: v for k, v in called.items() if k.startswith("provenance.")} == common
    assert called["server.address"] == "127.0.0.1"
    assert {k: v for k, v in served.items() if k.startswith("provenance.")} == common | {
        "provenance.stamp.status": "unsigned"
    }
    assert len(running.values("content-digest")) == (1 if kind.startswith("unary") else 0)
    (one,), (other,) = spans.of(SpanKind.CLIENT), spans.of(SpanKind.SERVER)
    assert other.parent.span_id == one.context.span_id


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("client", ["sync", "aio", "aio, write"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_opentelemetry_calls_are_stamped_all_the_same(
    start: Any, no_faults: None, kind: str, client: str, server: str, registered: bool
) -> None:
    ProvenanceInstrumentor().instrument()
    try:
        running = start(server, registered=registered)
        assert CLIENTS[client](running.target, kind) == ANSWERS[kind]
    finally:
        ProvenanceInstrumentor().uninstrument()

    if not registered:  # a registered method is found before anybody else is asked
        assert len(running.values("provenance")) == 1

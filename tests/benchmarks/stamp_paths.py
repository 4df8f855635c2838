"""What our own code takes of a gRPC call, without gRPC: both sides around a wire that is a list, in one thread, with our shells and without.

The difference to what `bench_stamps` measures of whole calls is the metadata that gRPC carries, and the machine's noise.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

METHOD = "/bench.Echo/Call"
EXPORTED_CALLS = 50
RESPONSE = b"ok"


class Wire:
    """gRPC's multicallable, as far as the client's shell knows it: what is sent is kept."""

    def __init__(self) -> None:
        self.payload, self.metadata = b"", ()

    def __call__(self, payload: bytes, _timeout: float | None, metadata: Any) -> Any:
        self.payload, self.metadata = payload, metadata
        return RESPONSE


class Context:
    """gRPC's servicer context, as far as the server's shell knows it."""

    def __init__(self, metadata: Any) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Any:
        """What the call carries."""
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        """What TLS says of the caller."""
        return {}

    def peer_identities(self) -> None:
        """Who that is by TLS: nobody, without it."""

    def peer(self) -> str:
        """Who calls."""
        return "ipv4:127.0.0.1:40000"


def sides(size: int, processor: Any = None, *, with_ours: bool = True) -> tuple[Callable[[], None], Callable[[], None]]:
    """One call of the client's side, and one of the server's, each within a span of its own that ends at once."""
    import grpc
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanKind

    from provenance.grpc import client, server
    from provenance.grpc.outgoing import Callee

    provider = TracerProvider(resource=Resource({"service.name": "bench"}), shutdown_on_exit=False)
    if processor is not None:
        provider.add_span_processor(processor)
    tracer = provider.get_tracer("bench")
    address: dict[str, str | int] = {"server.address": "127.0.0.1", "server.port": 50051}
    patch: Any = SimpleNamespace(active=True)
    own = (("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),)
    payload = os.urandom(size)
    wire = Wire()
    stamped = client.StampedUnaryUnary(client._Method(wire, None, bytes, Callee(METHOD, address), patch))
    call: Callable[..., Any] = stamped if with_ours else wire
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda _request, _context: RESPONSE)
    method: Any = SimpleNamespace(name=lambda: METHOD, handler=lambda _details: handler)
    details: Any = SimpleNamespace(method=METHOD)

    def span(kind: SpanKind) -> Any:
        attributes = {"rpc.system": "grpc", "rpc.service": "bench.Echo", "rpc.method": "Call"}
        return trace.use_span(tracer.start_span("bench", kind=kind, attributes=attributes), end_on_exit=True)

    def client_side() -> None:
        with span(SpanKind.CLIENT):
            call(payload, None, own)

    def server_side() -> None:
        found = (server._ObservedMethod(method, method.handler, None) if with_ours else method).handler(details)
        request = wire.payload if found.request_deserializer is None else found.request_deserializer(wire.payload)
        with span(SpanKind.SERVER):
            response = found.unary_unary(request, Context(wire.metadata))
        if found.response_serializer is not None:
            found.response_serializer(response)

    return client_side, server_side


def best_us(function: Callable[[], None], *, calls: int, rounds: int) -> float:
    """Processor µs a call, in the best of many short rounds: what the machine did beside is not ours."""
    taken = []
    for _ in range(rounds):
        begun = time.thread_time_ns()
        for _ in range(calls):
            function()
        taken.append((time.thread_time_ns() - begun) / calls / 1000)
    return min(taken)


def export(size: int, *, rounds: int) -> float:
    """Processor µs to encode a call's two spans as OTLP, beyond what they take without what is ours: in batches, as exporters do."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    client_side, server_side = sides(size, SimpleSpanProcessor(kept))
    for _ in range(EXPORTED_CALLS):
        client_side()
        server_side()
    with_ours = kept.get_finished_spans()
    without = [
        ReadableSpan(
            each.name,
            each.context,
            resource=each.resource,
            attributes={key: value for key, value in (each.attributes or {}).items() if key.startswith("rpc.")},
            kind=each.kind,
            instrumentation_scope=each.instrumentation_scope,
            start_time=each.start_time,
            end_time=each.end_time,
        )
        for each in with_ours
    ]
    ours, others = (best_us(partial(_encode, each), calls=1, rounds=rounds) for each in (with_ours, without))
    return (ours - others) / EXPORTED_CALLS


def _encode(spans: Any) -> None:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    encode_spans(spans).SerializeToString()


def measure(
    *, calls: int = 20, rounds: int = 1200, size: int = 2000, keys: str | None = None, packed: bool = False
) -> dict[str, float]:
    """µs of the client's side, the server's, and both, and of exporting both spans; `keys` is a file to sign with."""
    from provenance import packing, signing

    signing.sign_with(keys)
    os.environ[packing.ENVIRONMENT] = "packed" if packed else "separate"
    packing.pack_as_the_environment_says()
    try:
        with_ours, without = sides(size), sides(size, with_ours=False)
        for client_side, _ in (with_ours, without):
            client_side()  # there is something on the wire, whichever side is measured first
        client, server = (
            best_us(each, calls=calls, rounds=rounds) - best_us(other, calls=calls, rounds=rounds)
            for each, other in zip(with_ours, without, strict=True)
        )
        exported = export(size, rounds=max(3, rounds // 10))
        taken = {"client": client, "server": server, "both": client + server, "export": exported}
        return {name: round(us, 1) for name, us in taken.items()}
    finally:
        signing.sign_with(None)
        os.environ[packing.ENVIRONMENT] = "separate"
        packing.pack_as_the_environment_says()

"""Trace requests made up for tests and benchmarks: repeatable by seed, and as heavy as real ones."""

import random
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

START_UNIX_NANO: Final = 1_763_859_600_000_000_000
"""2025-11-23 01:00 UTC."""

_ROUTES: Final = ("/api/v1/orders/{id}", "/api/v1/carts/{id}", "/api/v1/payments", "/api/v1/catalogue/{sku}")


def attribute(key: str, value: str | bool | float | bytes) -> KeyValue:  # noqa: FBT001 - a value, not a flag
    """One attribute of the member that fits the Python type."""
    match value:
        case str():
            return KeyValue(key=key, value=AnyValue(string_value=value))
        case bool():
            return KeyValue(key=key, value=AnyValue(bool_value=value))
        case int():
            return KeyValue(key=key, value=AnyValue(int_value=value))
        case float():
            return KeyValue(key=key, value=AnyValue(double_value=value))
        case bytes():
            return KeyValue(key=key, value=AnyValue(bytes_value=value))


def trace_request(span_count: int, *, seed: int = 0, service_name: str = "checkout") -> ExportTraceServiceRequest:
    """`span_count` spans of one service, about 450 bytes and 9 attributes each; equal arguments give equal bytes."""
    random_ = random.Random(seed)  # noqa: S311 - test data, not secrets
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.extend(
        [
            attribute("service.name", service_name),
            attribute("service.namespace", "shop"),
            attribute("service.instance.id", f"{service_name}-{seed}"),
            attribute("telemetry.sdk.name", "opentelemetry"),
        ]
    )
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = "mesh_provenance.synthetic"
    scope_spans.scope.version = "1"
    trace_id = parent_span_id = b""
    for index in range(span_count):
        if index % 8 == 0:
            trace_id, parent_span_id = random_.randbytes(16), b""
        span = _span(random_, trace_id, parent_span_id, START_UNIX_NANO + index * 1_000_000)
        scope_spans.spans.append(span)
        parent_span_id = span.span_id
    return request


def _span(random_: random.Random, trace_id: bytes, parent_span_id: bytes, start: int) -> Span:
    route = random_.choice(_ROUTES)
    status = random_.choice((200, 200, 200, 201, 404, 500))
    return Span(
        trace_id=trace_id,
        span_id=random_.randbytes(8),
        parent_span_id=parent_span_id,
        flags=0x101,
        name=f"POST {route}",
        kind=random_.choice((Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT)),
        start_time_unix_nano=start,
        end_time_unix_nano=start + random_.randrange(50_000, 50_000_000),
        status=Status(code=Status.STATUS_CODE_ERROR if status >= 500 else Status.STATUS_CODE_UNSET),
        attributes=[
            attribute("http.request.method", "POST"),
            attribute("http.route", route),
            attribute("http.response.status_code", status),
            attribute("url.path", route.replace("{id}", str(random_.randrange(10**6)))),
            attribute("server.address", "orders.shop"),
            attribute("server.port", 8080),
            attribute("provenance.request.hash", random_.randbytes(32).hex()),
            attribute("provenance.request_id", random_.randbytes(8).hex()),
            attribute("app.tenant", f"tenant-{random_.randrange(40)}"),
        ],
    )

"""Spans of other tools' models on their way into one ExportTraceServiceRequest, grouped by resource and scope."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from collector.errors import DecodeError

Value = str | bool | int | float | bytes | None | list["Value"] | dict[str, "Value"]
Attributes = Mapping[str, Value]

_HEX: Final = frozenset("0123456789abcdefABCDEF")
_INT64: Final = range(-(2**63), 2**63)
MAX_NANOS: Final = 2**63 - 1
MAX_DEPTH: Final = 32


@dataclass(slots=True)
class ForeignSpan:
    """A span, and whose it is.

    Attributes:
        span: As OTLP says it.
        resource: The resource's attributes.
        scope: Name and version of the instrumentation scope.
        is_shared: Whether its id is that of its caller's client span (Zipkin's B3 sharing).
    """

    span: Span
    resource: tuple[tuple[str, Value], ...]
    scope: tuple[str, str] = ("", "")
    is_shared: bool = False


@dataclass(slots=True)
class _Request:
    message: ExportTraceServiceRequest = field(default_factory=ExportTraceServiceRequest)
    resources: dict[object, ResourceSpans] = field(default_factory=dict)
    scopes: dict[object, ScopeSpans] = field(default_factory=dict)


def build_request(spans: Iterable[ForeignSpan]) -> bytes:
    """The serialised request with these spans."""
    request = _Request()
    for foreign in spans:
        who = repr(foreign.resource)
        if (resource := request.resources.get(who)) is None:
            resource = request.resources[who] = request.message.resource_spans.add()
            resource.resource.attributes.extend(key_values(dict(foreign.resource)))
        key = (who, foreign.scope)
        if (scope := request.scopes.get(key)) is None:
            scope = request.scopes[key] = resource.scope_spans.add()
            scope.scope.name, scope.scope.version = (utf8(text) for text in foreign.scope)
        scope.spans.append(foreign.span)
    return request.message.SerializeToString()


def split_shared(spans: list[ForeignSpan]) -> None:
    """Give the server's half of a shared span an id of its own, below the client's half, and its children with it.

    Zipkin's clients and servers may report one call under one id; here a span has its id alone. The new id follows from
    the old one, so that reading a file again gives the same spans. A child that is not among `spans` stays below the
    client's half, one level higher.
    """
    callers = {(s.span.trace_id, s.span.span_id) for s in spans if s.span.kind == Span.SPAN_KIND_CLIENT}
    halves: dict[tuple[bytes, bytes], list[ForeignSpan]] = {}
    for foreign in spans:
        key = (foreign.span.trace_id, foreign.span.span_id)
        if foreign.is_shared or (foreign.span.kind == Span.SPAN_KIND_SERVER and key in callers):
            halves.setdefault(key, []).append(foreign)
    if not halves:
        return
    for foreign in spans:
        _below_the_half(foreign, halves)
    for (trace_id, span_id), servers in halves.items():
        for server in servers:
            server.span.parent_span_id = span_id
            server.span.span_id = own_id(trace_id, span_id)


def _below_the_half(child: ForeignSpan, halves: Mapping[tuple[bytes, bytes], list[ForeignSpan]]) -> None:
    """What the server's process did is below the server's half; what another process did, below the client's."""
    parents = halves.get((child.span.trace_id, child.span.parent_span_id), [])
    if any(parent is not child and parent.resource == child.resource for parent in parents):
        child.span.parent_span_id = own_id(child.span.trace_id, child.span.parent_span_id)


def own_id(trace_id: bytes, span_id: bytes) -> bytes:
    """The id of the server's half of a shared span."""
    return hashlib.blake2b(trace_id + span_id, digest_size=8, person=b"shared").digest()


# --- values -------------------------------------------------------------------------------------------------------------


def trace_id_of(value: object) -> bytes:
    """16 bytes from up to 32 hex digits, padded on the left: 64-bit ids, and those without their leading zeros."""
    return _id(value, 32, "trace id")


def span_id_of(value: object) -> bytes:
    """8 bytes from up to 16 hex digits."""
    return _id(value, 16, "span id")


def _id(value: object, digits: int, what: str) -> bytes:
    if not isinstance(value, str) or not 0 < len(value) <= digits or not _HEX.issuperset(value):
        raise DecodeError(f"{what} is not 1 to {digits} hex digits")
    raw = bytes.fromhex(value.zfill(digits))
    if not any(raw):
        raise DecodeError(f"{what} is all zeros")
    return raw


def nanos_of(value: object, what: str) -> int:
    """Nanoseconds from microseconds, which some write as text or with a fraction."""
    match value:
        case bool():
            number: int | None = None
        case int():
            number = value * 1000
        case float() if abs(value) < 2**63:
            number = round(value * 1000)
        case str() if value.isascii() and value.isdigit() and len(value) < 20:
            number = int(value) * 1000
        case _:
            number = None
    if number is None or not 0 <= number <= MAX_NANOS:
        raise DecodeError(f"{what} is not a number of microseconds that fits")
    return number


def list_of(value: object, what: str) -> list[object]:
    """A list, which may be absent."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise DecodeError(f"{what} is not a list")
    return value


def object_of(value: object, what: str) -> dict[str, object]:
    """An object."""
    if not isinstance(value, dict):
        raise DecodeError(f"{what} is not an object")
    return value


def text_of(value: object, what: str) -> str:
    """A string, which may be absent."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DecodeError(f"{what} is not a string")
    return value


def utf8(text: str) -> str:
    r"""The text as protobuf takes it: JSON's \ud800 alone is no character."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def key_values(attributes: Attributes) -> list[KeyValue]:
    """The attributes as OTLP says them."""
    return [KeyValue(key=utf8(key), value=any_value(value)) for key, value in attributes.items()]


def any_value(value: Value, depth: int = 0) -> AnyValue:
    """A value as OTLP says it; an integer beyond 64 bits becomes text."""
    match value:
        case None:
            return AnyValue()
        case str():
            return AnyValue(string_value=utf8(value))
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value) if value in _INT64 else AnyValue(string_value=str(value))
        case float():
            return AnyValue(double_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case _ if depth > MAX_DEPTH:
            raise DecodeError(f"a value nested deeper than {MAX_DEPTH}")
        case list():
            return AnyValue(array_value=ArrayValue(values=[any_value(v, depth + 1) for v in value]))
        case dict():
            pairs = [KeyValue(key=utf8(k), value=any_value(v, depth + 1)) for k, v in value.items()]
            return AnyValue(kvlist_value=KeyValueList(values=pairs))

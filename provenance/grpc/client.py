"""Stamps on outgoing gRPC calls: unary-unary, synchronous (`grpc.insecure_channel`, `grpc.secure_channel`).

`grpc._channel.Channel.unary_unary` is the one place beneath every interceptor, OpenTelemetry's and the user's, whatever
the order in which they were activated. What it returns is wrapped so that the request is serialised once, here, by the
user's own serialiser; its bytes are hashed, and the same bytes are handed to gRPC.

Server streaming, client streaming, bidirectional calls and `grpc.aio` pass through untouched for now.
"""

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import SpanKind

from provenance import names
from provenance.addresses import target_attributes
from provenance.digest import request_hash
from provenance.faults import Contained
from provenance.outgoing import Outgoing, own_headers, stamp_now
from provenance.patching import Patch
from provenance.spans import FOREIGN_TO_RPC, RecordingSpan, add_attributes, own_span

PLACE: Final = "grpc.client"

METADATA_ROOM_BYTES: Final = 7 * 1024
"""Metadata above this goes out without a stamp: servers refuse calls beyond 8 kB, and a stamp must not be the last drop."""

_METADATA_ENTRY_OVERHEAD: Final = 32  # HPACK's accounting, which gRPC's limit uses (RFC 7541 section 4.1)

Metadata = tuple[tuple[str, str | bytes], ...]


class MetadataFullError(Exception):
    """No room for a stamp beside the caller's own metadata."""


@dataclass(frozen=True, slots=True)
class _SerialiserFailure:
    """What the user's serialiser raised; gRPC's own code is to meet it where it would have met it without us."""

    error: Exception


@dataclass(frozen=True, slots=True)
class _Method:
    """What a channel was asked for: gRPC's own multicallable, made with `_hand_over`, and what it leaves to us."""

    inner: Any
    serializer: Callable[[Any], bytes] | None
    deserializer: Callable[[bytes], Any] | None
    address: dict[str, str | int]
    patch: Patch


def client_patches() -> tuple[Patch, ...]:
    """The patches of this shell, not yet applied."""
    return (Patch(importlib.import_module("grpc._channel").Channel, "unary_unary", _wrap_unary_unary),)


def _wrap_unary_unary(original: Callable[..., Any], patch: Patch) -> Callable[..., Any]:
    def unary_unary(
        channel: Any,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not patch.active:
            return original(channel, method, request_serializer, response_deserializer, *args, **kwargs)
        inner = original(channel, method, _hand_over, response_deserializer, *args, **kwargs)
        address: dict[str, str | int] = {}
        with Contained(PLACE):
            address = target_attributes(_text(channel._target))  # noqa: SLF001  (what it dials is nowhere else)
        return StampedUnaryUnary(_Method(inner, request_serializer, response_deserializer, address, patch))

    return unary_unary


def _hand_over(payload: Any) -> Any:
    """The serialiser that gRPC sees: the work is done already."""
    if isinstance(payload, _SerialiserFailure):
        raise payload.error
    return payload


class StampedUnaryUnary(grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]  # generic in the stubs alone
    """Stamps, whichever of the three ways is used to call."""

    def __init__(self, method: _Method) -> None:
        self._method = method

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Call and wait for the response."""
        call = _prepare(self._method, request, metadata)
        return call.inner(call.payload, timeout, call.metadata, *args, **kwargs)

    def with_call(
        self, request: Any, timeout: float | None = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Call and wait for the response and the call."""
        call = _prepare(self._method, request, metadata)
        return call.inner.with_call(call.payload, timeout, call.metadata, *args, **kwargs)

    def future(
        self, request: Any, timeout: float | None = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Call and return at once; the response's size is set before anybody's done-callback runs."""
        call = _prepare(self._method, request, metadata)
        return call.inner.future(call.payload, timeout, call.metadata, *args, **kwargs)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One call, ready to go: the payload, serialised once, and the metadata with the stamp or as it came."""

    inner: Any
    payload: Any
    metadata: Any


def _prepare(method: _Method, request: Any, metadata: Any) -> _Prepared:
    payload = _serialise(request, method.serializer)
    # The exporter's own calls, among others: OpenTelemetry's suppression is ours too. And a payload that is not bytes
    # is a serialiser that failed or broke its contract: gRPC will say so.
    if not method.patch.active or not is_instrumentation_enabled() or not isinstance(payload, bytes):
        return _Prepared(method.inner, payload, metadata)
    own: Metadata = tuple(metadata) if metadata else ()  # once, because it may be a generator
    plain = _Prepared(method.inner, payload, own or None)
    with Contained(PLACE):
        return _stamp(method, payload, own)
    return plain


def _stamp(method: _Method, payload: bytes, own: Metadata) -> _Prepared:
    span = own_span(SpanKind.CLIENT, FOREIGN_TO_RPC)
    outgoing = stamp_now(
        span,
        own=own_headers((_text(key), _text(value)) for key, value in own),
        hash_hex=request_hash(payload),
        size=len(payload),
    )
    metadata = add_metadata(own, outgoing)
    if span is None:
        return _Prepared(method.inner, payload, metadata)
    add_attributes(span, outgoing.attributes, method.address)
    return _Prepared(_measuring(method, span), payload, metadata)


def _measuring(method: _Method, span: RecordingSpan) -> Any:
    """The multicallable with a deserialiser of this call's own, because gRPC may run it in another thread."""

    def measure(response: bytes) -> Any:
        with Contained(PLACE):
            span.set_attributes({names.RESPONSE_SIZE: len(response)})
        return response if method.deserializer is None else method.deserializer(response)

    inner = copy.copy(method.inner)
    inner._response_deserializer = measure  # noqa: SLF001  (grpcio's class has had it since 1.0)
    return inner


def add_metadata(own: Metadata, outgoing: Outgoing) -> Metadata:
    """The caller's metadata, as it is and in its order, and the stamp's after it.

    Only what somebody forwarded from another call goes: it is not this call's.

    Raises:
        MetadataFullError: The call would come close to the limit of what servers accept.
    """
    kept = tuple(entry for entry in own if _text(entry[0]).lower() not in outgoing.replaced)
    added = outgoing.headers
    size = sum(len(key) + len(value) + _METADATA_ENTRY_OVERHEAD for key, value in kept + added)
    if size > METADATA_ROOM_BYTES:
        message = f"{size} bytes of metadata with a stamp, over {METADATA_ROOM_BYTES}: the call goes without one"
        raise MetadataFullError(message)
    return kept + added


def _serialise(request: Any, serializer: Callable[[Any], bytes] | None) -> Any:
    if serializer is None:
        return request
    try:
        return serializer(request)
    except Exception as error:  # noqa: BLE001  (handed to gRPC, which reports it as it would without us)
        return _SerialiserFailure(error)


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value

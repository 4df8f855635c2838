"""What sync and aio clients share: a call's stamp in its metadata, its requests' hash, its responses' size."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import grpc
import grpc.aio
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import SpanKind

from provenance import names
from provenance.digest import StreamHash, request_hash
from provenance.egress_guard import check_address
from provenance.faults import Contained, report
from provenance.grpc.incoming import HTTP_METHOD
from provenance.outgoing import Request, stamp_now
from provenance.patching import Patch
from provenance.recording import late_request
from provenance.spans import FOREIGN_TO_RPC, RecordingSpan, add_attributes, own_span, say

PLACE: Final = "grpc.client"

METADATA_ROOM_BYTES: Final = 7 * 1024
"""Metadata above this goes out without a stamp: servers refuse calls beyond 8 kB, and a stamp must not be the last drop."""

_READ: Final[Mapping[str | bytes, str]] = {
    form: name
    for name in (names.STAMP, names.CONTENT_DIGEST, names.REQUEST_ID, names.TRACEPARENT)
    for form in (name, name.encode())
}
"""What of the caller's metadata a stamp looks at. gRPC takes keys as text or bytes, and refuses a call with a capital in one."""

_METADATA_ENTRY_OVERHEAD: Final = 32  # HPACK's accounting, which gRPC's limit uses (RFC 7541 section 4.1)

Metadata = tuple[tuple[str, str | bytes], ...]
Serializer = Callable[[Any], Any]


class MetadataFullError(Exception):
    """No room for a stamp beside the caller's own metadata."""


class EgressRefusedError(grpc.aio.AioRpcError):
    """A call that the egress guard refuses: an RpcError with the code that gRPC has where nobody listens, sync and aio alike."""

    def __init__(self, reason: str) -> None:
        super().__init__(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=reason)


@dataclass(frozen=True, slots=True)
class SerialiserFailure:
    """What the user's serialiser raised; gRPC's own code is to meet it where it would have met it without us."""

    error: Exception


def hand_over(payload: Any) -> Any:
    """The serialiser that gRPC sees where the work is done already."""
    if isinstance(payload, SerialiserFailure):
        raise payload.error
    return payload


def serialise(request: Any, serializer: Serializer | None) -> Any:
    """What the user's serialiser makes of it, or what it raised."""
    if serializer is None:
        return request
    try:
        return serializer(request)
    except Exception as error:  # noqa: BLE001  (handed to gRPC, which reports it as it would without us)
        return SerialiserFailure(error)


class Callee(NamedTuple):
    """Whom a call is for: `/package.Service/Method`, and what is dialled, as attributes."""

    method: str
    address: dict[str, str | int]


class Stamped(NamedTuple):
    """One stamped call: its metadata, the span that describes it, if there is one, and what that will say."""

    metadata: Metadata
    span: RecordingSpan | None
    attributes: dict[str, str | int]
    address: dict[str, str | int]

    def describe(self, response_size: int | None = None) -> None:
        """Say it on the span; in one go with the response's size where that is here already: half the cost is the going."""
        span = self.span
        if span is None:
            return
        try:
            if response_size is not None:
                self.attributes[names.RESPONSE_SIZE] = response_size
            add_attributes(span, self.attributes, self.address)
        except Exception as error:  # noqa: BLE001  (as `Contained` does, for nothing where nothing fails)
            report(PLACE, error)


def stamp_payload(patch: Patch, payload: Any, own: Metadata, callee: Callee) -> Stamped | None:
    """The stamp of a call with one request, which is here; None: it goes as it came. Its span is yet to be described.

    The exporter's own calls, among others: OpenTelemetry's suppression is ours too. And a payload that is not bytes is a
    serialiser that failed or broke its contract: gRPC will say so.
    """
    if not patch.active or not is_instrumentation_enabled() or not isinstance(payload, bytes):
        return None
    check_address(callee.address, EgressRefusedError)
    try:
        return _stamp(own, callee, request_hash(payload), len(payload))
    except Exception as error:  # noqa: BLE001  (as above)
        report(PLACE, error)
    return None


def stamp_stream(patch: Patch, own: Metadata, callee: Callee) -> Stamped | None:
    """The stamp of a call whose requests are yet to come: no digest travels ahead of them. None: it goes as it came."""
    if not patch.active or not is_instrumentation_enabled():
        return None
    check_address(callee.address, EgressRefusedError)
    with Contained(PLACE):
        return _stamp(own, callee, None, 0)
    return None


def _stamp(own: Metadata, callee: Callee, hash_hex: str | None, size: int) -> Stamped:
    span = own_span(SpanKind.CLIENT, FOREIGN_TO_RPC)
    said: dict[str, list[str]] = {}
    for key, value in own:
        if (name := _READ.get(key)) is not None:
            said.setdefault(name, []).append(text(value))
    method, address = callee
    headers, replaced, attributes = stamp_now(span, tuple.__new__(Request, (HTTP_METHOD, method, hash_hex, size, said)))
    kept = own if replaced.isdisjoint(said) else _without(own, replaced)
    return tuple.__new__(Stamped, (add_metadata(kept, headers), span, attributes, address))


def _without(own: Metadata, replaced: frozenset[str]) -> Metadata:
    """Without what somebody forwarded from another call: it is not this call's."""
    return tuple(entry for entry in own if _READ.get(entry[0]) not in replaced)


def add_metadata(own: Metadata, headers: Metadata) -> Metadata:
    """The caller's metadata, as it is and in its order, and the stamp's after it.

    Raises:
        MetadataFullError: The call would come close to the limit of what servers accept.
    """
    metadata = own + headers
    size = len(metadata) * _METADATA_ENTRY_OVERHEAD
    for key, value in metadata:
        size += len(key) + len(value)
    if size > METADATA_ROOM_BYTES:
        message = f"{size} bytes of metadata with a stamp, over {METADATA_ROOM_BYTES}: the call goes without one"
        raise MetadataFullError(message)
    return metadata


class HashedRequests:
    """The hash of a call's requests, taken as they are serialised; it goes on the span once there are no more.

    A stream that ends in another way (the call is over first, the caller's iterator fails) has no hash: what was sent of
    it is known to nobody.
    """

    __slots__ = ("_hash", "_intact", "_serializer", "_span")

    def __init__(self, serializer: Serializer | None, span: RecordingSpan) -> None:
        self._serializer = serializer
        self._span = span
        self._hash = StreamHash()
        self._intact = True

    def serialise(self, request: Any) -> Any:
        """The user's serialiser, listened to."""
        raw = request if self._serializer is None else self._serializer(request)
        intact, self._intact = self._intact, False  # a message that cannot be hashed leaves a hash of something else
        with Contained(PLACE):
            self._hash.update(raw)
            self._intact = intact
        return raw

    def end(self) -> None:
        """There are no more."""
        with Contained(PLACE):
            if self._intact and self._span.is_recording():
                say(self._span, late_request(self._span.attributes, self._hash.hexdigest(), self._hash.size))


def measured(deserializer: Serializer | None, span: RecordingSpan) -> Serializer:
    """A deserialiser of one call's own, which counts; because gRPC may run it in another thread, it holds the span."""
    size = 0

    def measure(response: bytes) -> Any:
        nonlocal size
        with Contained(PLACE):
            size += len(response)
            if span.is_recording():
                say(span, {names.RESPONSE_SIZE: size})
        return response if deserializer is None else deserializer(response)

    return measure


def own_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
    """The caller's metadata, read once, because it may be a generator."""
    return tuple(metadata) if metadata else ()


def text(value: str | bytes) -> str:
    """GRPC takes keys and values as either."""
    return value.decode("latin-1") if isinstance(value, bytes) else value

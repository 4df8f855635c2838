"""What sync and aio servers share: what one call shows of itself, and the attributes that follow from it. No I/O."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final, cast

from opentelemetry.trace import SpanKind

from provenance import names
from provenance.addresses import peer_attributes
from provenance.context import usable
from provenance.digest import StreamHash, request_hash
from provenance.enforcement import current_guard
from provenance.faults import Contained, report
from provenance.identity import certified_principal
from provenance.incoming import incoming_attributes
from provenance.recording import current_recording, late_request
from provenance.spans import FOREIGN_TO_RPC, Attributes, RecordingSpan, add_attributes, own_span, say

PLACE: Final = "grpc.server"
HTTP_METHOD: Final = "POST"
"""Of every gRPC call on the wire; what gRPC calls the method is the path there."""

_OPENTELEMETRY: Final = "opentelemetry."
_NOT_SERIALISED: Final = object()


_DESERIALIZER: Final = 2
_SERIALIZER: Final = 3
_BEHAVIOURS: Final = 4
"""Where a handler, which is a named tuple, has these; the last is that of one request and one response, and after it those of one
request and many responses, many and one, many and many."""


def observed(handler: Any, method: str, *, may_serialise_early: bool, observe: "Observe") -> Any:
    """The handler of a call, with an `IncomingCall` that listens; `observe` makes the behaviour's shell."""
    fields = list(handler)  # `_replace` takes four times as long, and this is done for every call
    streams_requests, streams_responses, deserializer, serializer, *_ = fields
    call = IncomingCall(
        method, deserializer, serializer, may_serialise_early, StreamHash() if streams_requests else None
    )
    at = _BEHAVIOURS + 2 * bool(streams_requests) + bool(streams_responses)
    fields[_DESERIALIZER], fields[_SERIALIZER] = call.deserialise, call.serialise
    fields[at] = observe(handler, fields[at], call)
    return tuple.__new__(type(handler), fields)


@lru_cache(maxsize=64)  # a server's interceptors are the same at every call
def only_opentelemetry(interceptors: tuple[object, ...]) -> bool:
    """Whether nobody but OpenTelemetry stands between the behaviour and the wire.

    An interceptor of the user's own may still change the response message after the behaviour returned it.
    """
    return all(map(is_opentelemetry, interceptors))


def is_opentelemetry(interceptor: object) -> bool:
    """Whether it is one of OpenTelemetry's."""
    return type(interceptor).__module__.startswith(_OPENTELEMETRY)


class IncomingCall:
    """One call, of a stream of requests if there is a `stream` to hash. gRPC calls `deserialise` for every request, then the behaviour calls `begin` and `responded`.

    A call with one request has its hash before `begin`; a stream's is complete once `requests_ended` was called.
    """

    __slots__ = (
        "_attributes",
        "_deserializer",
        "_hash_hex",
        "_intact",
        "_may_serialise_early",
        "_method",
        "_peer",
        "_raw_response",
        "_response",
        "_response_size",
        "_serializer",
        "_size",
        "_span",
        "_stream",
        "refusal",
    )

    def __init__(
        self,
        method: str,
        deserializer: Callable[[bytes], Any] | None,
        serializer: Callable[[Any], Any] | None,
        may_serialise_early: bool,  # noqa: FBT001
        stream: StreamHash | None,
    ) -> None:
        self._method = method
        self._deserializer = deserializer
        self._serializer = serializer
        self._may_serialise_early = may_serialise_early
        self._stream = stream
        self.refusal: str | None = None
        """After `begin`: why the call is refused; always None in observe mode."""
        self._intact = True
        self._attributes: dict[str, str | int] | None = None
        self._peer: Attributes = {}
        self._hash_hex: str | None = None
        self._size = 0
        self._span: RecordingSpan | None = None
        self._response: Any = _NOT_SERIALISED
        self._raw_response = b""
        self._response_size = 0

    @property
    def streams_requests(self) -> bool:
        """Whether there may be any number of requests."""
        return self._stream is not None

    def deserialise(self, raw: bytes) -> Any:
        """Hash a request's bytes, then let the user's deserialiser work."""
        intact, self._intact = self._intact, False  # a message that cannot be hashed leaves a hash of something else
        try:
            if self._stream is None:
                self._hash_hex, self._size = request_hash(raw), len(raw)
            else:
                self._stream.update(raw)
            self._intact = intact
        except Exception as error:  # noqa: BLE001  (as `Contained` does, for nothing where nothing fails)
            report(PLACE, error)
        return raw if self._deserializer is None else self._deserializer(raw)

    def begin(self, context: Any, *, describe: bool = True) -> str | None:
        """Describe the call on the server span, if there is one; returns the request id to carry on, if it can be used.

        Not `describe`: `answered` or `failed` will do so, together with what is known then. A refused call is described now.
        """
        headers: dict[str, str] = {}
        try:
            headers = combined(context.invocation_metadata())
            span = own_span(SpanKind.SERVER, FOREIGN_TO_RPC)
            if span is not None:
                self._attributes = incoming_attributes(
                    headers,
                    method=HTTP_METHOD,
                    target=self._method,
                    hash_hex=self._hash_hex,
                    size=self._size,
                    certified=_certified(context),
                    recording=current_recording(),
                )
                self._peer = peer_attributes(context.peer())
                self._span = span
        except Exception as error:  # noqa: BLE001  (as above)
            report(PLACE, error)
        if self._attributes is None:
            request_id = usable(headers.get(names.REQUEST_ID))
        else:
            request_id = cast("str | None", self._attributes.get(names.REQUEST_ID_ATTRIBUTE))
        guard = current_guard()
        if guard is not None:
            self.refusal = guard.refusal(headers, method=HTTP_METHOD, target=self._method, actual_hash=self._hash_hex)
        if describe or self.refusal is not None:
            self.failed()
        return request_id

    def failed(self) -> None:
        """There is no more to be said of the call than was known when it began."""
        try:
            if self._attributes is not None and self._span is not None:
                attributes, self._attributes = self._attributes, None
                add_attributes(self._span, attributes, self._peer)
        except Exception as error:  # noqa: BLE001  (as above)
            report(PLACE, error)

    def requests_ended(self) -> None:
        """The caller has no more requests: what came is all that it sent."""
        with Contained(PLACE):
            if self._stream is not None and self._intact and self._span is not None and self._span.is_recording():
                known = late_request(self._span.attributes, self._stream.hexdigest(), self._stream.size)
                say(self._span, known)

    def answered(self, response: Any) -> None:
        """The one response is there. It is serialised now, because OpenTelemetry ends its span before gRPC serialises."""
        if self._span is not None and self._may_serialise_early:
            try:
                raw = response if self._serializer is None else self._serializer(response)
            except Exception:  # noqa: BLE001  (gRPC will call it again, and report what it raises as it would without us)
                raw = None
            if isinstance(raw, bytes):
                self._response, self._raw_response = response, raw
                if self._attributes is None:  # the call was described when it began
                    self._response_size = len(raw)
                    self.responses_ended()
                else:
                    self._attributes[names.RESPONSE_SIZE] = len(raw)
        self.failed()

    def serialise(self, response: Any) -> Any:
        """The bytes that were made to be measured, if this is still that response; else the user's serialiser's."""
        if self._response is response:
            return self._raw_response
        raw = response if self._serializer is None else self._serializer(response)
        if isinstance(raw, bytes):
            self._response_size += len(raw)
        return raw

    def responses_ended(self) -> None:
        """The behaviour has no more responses; each of those before was serialised when the next was asked for."""
        with Contained(PLACE):
            if self._span is not None and self._span.is_recording():
                say(self._span, {names.RESPONSE_SIZE: self._response_size})


def _certified(context: Any) -> str | None:
    """The principal in the client's certificate; None on a connection without one."""
    if context.peer_identities() is None:  # a sixth of what it takes to ask for all that is known of the connection
        return None
    names_there = context.auth_context().get("x509_subject_alternative_name")
    return certified_principal(name.decode("utf-8", "replace") for name in names_there) if names_there else None


Observe = Callable[[Any, Callable[..., Any], IncomingCall], Callable[..., Any]]


def combined(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """Text metadata by key; of several values of one key the combined field, as RFC 9651 section 4.2 combines lines."""
    entries = tuple(metadata or ())
    headers: dict[str, Any] = dict(entries)
    if len(headers) == len(entries):  # as nearly always; what is binary has keys that nobody asks for
        return headers
    headers.clear()
    for key, value in entries:
        if isinstance(value, str):
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers

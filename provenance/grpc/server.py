"""Stamps on incoming gRPC calls: unary-unary, synchronous (`grpc.server`).

`grpc._server._find_method_handler` asks for the handler of every call, beneath every interceptor, and runs once a call.
So what the request's deserialiser sees, on gRPC's polling thread and before any span, is handed by an object of that
call alone to the behaviour, which runs on the pool's thread inside OpenTelemetry's server span.

Server streaming, client streaming, bidirectional calls and `grpc.aio` pass through untouched for now.
"""

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any, Final

from opentelemetry.trace import SpanKind

from provenance import names
from provenance.addresses import peer_attributes
from provenance.context import serving, usable
from provenance.digest import request_hash
from provenance.faults import Contained
from provenance.identity import LINKERD_CLIENT_ID, XFCC, peer_principal
from provenance.patching import Patch
from provenance.spans import FOREIGN_TO_RPC, RecordingSpan, add_attributes, own_span, stamp_attributes
from provenance.stamp import judge

PLACE: Final = "grpc.server"

_OPENTELEMETRY: Final = "opentelemetry."
_NOT_SERIALISED: Final = object()


def server_patches() -> tuple[Patch, ...]:
    """The patches of this shell, not yet applied; imports grpc."""
    return (Patch(importlib.import_module("grpc._server"), "_find_method_handler", _wrap_find_method_handler),)


def _wrap_find_method_handler(original: Callable[..., Any], patch: Patch) -> Callable[..., Any]:
    def find_method_handler(rpc_event: Any, state: Any, methods: Any, pipeline: Any) -> Any:
        if patch.active:
            with Contained(PLACE):
                methods = _observed_methods(methods, pipeline)
        return original(rpc_event, state, methods, pipeline)

    return find_method_handler


def _observed_methods(methods: Any, pipeline: Any) -> Any:
    """One method, registered or generic, as grpcio hands it on today; a list of generic handlers as until 1.64."""
    if isinstance(methods, list):
        return [_ObservedMethod(each, each.service, pipeline) for each in methods]
    return _ObservedMethod(methods, methods.handler, pipeline)


class _ObservedMethod:
    """A `grpc._server._Method`, or a `grpc.GenericRpcHandler`, whose handler observes one call."""

    __slots__ = ("_find", "_method", "_pipeline")

    def __init__(self, method: Any, find: Callable[[Any], Any], pipeline: Any) -> None:
        self._method = method
        self._find = find
        self._pipeline = pipeline

    def name(self) -> str | None:
        """The registered method's name; None for a generic one."""
        name: str | None = self._method.name()
        return name

    def handler(self, handler_call_details: Any) -> Any:
        """The user's handler, observed if it is unary-unary."""
        handler = self._find(handler_call_details)
        with Contained(PLACE):
            return _observe(handler, handler_call_details.invocation_metadata, self._pipeline)
        return handler

    service = handler


def _observe(handler: Any, metadata: Any, pipeline: Any) -> Any:
    if handler is None or handler.request_streaming or handler.response_streaming:
        return handler
    call = _Call(handler, metadata, may_serialise_early=_only_opentelemetry(pipeline))

    # What gRPC's users hang on a behaviour (`experimental_thread_pool`) has to be found on ours.
    @functools.wraps(handler.unary_unary)
    def behaviour(request: Any, context: Any) -> Any:
        return call.serve(request, context)

    return handler._replace(
        request_deserializer=call.deserialise_request,
        unary_unary=behaviour,
        response_serializer=call.serialise_response,
    )


def _only_opentelemetry(pipeline: Any) -> bool:
    """Whether nobody but OpenTelemetry stands between the behaviour and the wire.

    An interceptor of the user's own may still change the response message after the behaviour returned it.
    """
    interceptors = () if pipeline is None else pipeline.interceptors
    return all(type(each).__module__.startswith(_OPENTELEMETRY) for each in interceptors)


class _Call:
    """What is known of one call, and the three functions that gRPC calls for it, in this order."""

    __slots__ = ("_handler", "_hash", "_may_serialise_early", "_metadata", "_raw_response", "_response", "_size")

    def __init__(self, handler: Any, metadata: Any, *, may_serialise_early: bool) -> None:
        self._handler = handler
        self._metadata = metadata
        self._may_serialise_early = may_serialise_early
        self._hash: str | None = None
        self._size = 0
        self._response: Any = _NOT_SERIALISED
        self._raw_response = b""

    def deserialise_request(self, raw: bytes) -> Any:
        """Hash the message's bytes, then let the user's deserialiser work."""
        with Contained(PLACE):
            self._hash, self._size = request_hash(raw), len(raw)
        deserializer = self._handler.request_deserializer
        return raw if deserializer is None else deserializer(raw)

    def serve(self, request: Any, context: Any) -> Any:
        """Describe the call on the server span, run the behaviour, measure its response while the span still records."""
        request_id = span = None
        with Contained(PLACE):
            headers = _headers(self._metadata)
            request_id = usable(headers.get(names.REQUEST_ID))
            span = own_span(SpanKind.SERVER, FOREIGN_TO_RPC)
            if span is not None:
                self._describe(span, headers, request_id, context.peer())
        with serving(request_id):
            response = self._handler.unary_unary(request, context)
        if span is not None and self._may_serialise_early:
            with Contained(PLACE):
                self._measure(span, response)
        return response

    def serialise_response(self, response: Any) -> Any:
        """The bytes that were made to be measured, if this is still that response; else the user's serialiser's."""
        if self._response is response:
            return self._raw_response
        serializer = self._handler.response_serializer
        return response if serializer is None else serializer(response)

    def _describe(self, span: RecordingSpan, headers: dict[str, str], request_id: str | None, peer: str) -> None:
        status, stamp = judge(headers.get(names.STAMP), headers.get(names.CONTENT_DIGEST), self._hash)
        attributes = {names.STAMP_STATUS: status} | stamp_attributes(stamp)
        if self._hash is not None:
            attributes |= {names.REQUEST_HASH: self._hash, names.REQUEST_SIZE: self._size}
        if request_id is not None:
            attributes[names.REQUEST_ID_ATTRIBUTE] = request_id
        if principal := peer_principal(headers.get(XFCC), headers.get(LINKERD_CLIENT_ID)):
            attributes[names.PEER_PRINCIPAL] = principal
        add_attributes(span, attributes, peer_attributes(peer))

    def _measure(self, span: RecordingSpan, response: Any) -> None:
        """Serialise now what is due next anyway, because OpenTelemetry ends its span before gRPC serialises."""
        serializer = self._handler.response_serializer
        try:
            raw = response if serializer is None else serializer(response)
        except Exception:  # noqa: BLE001  (gRPC will call it again, and report what it raises as it would without us)
            return
        if isinstance(raw, bytes):
            self._response, self._raw_response = response, raw
            span.set_attributes({names.RESPONSE_SIZE: len(raw)})


def _headers(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """Text metadata by key; of several values of one key the combined field, as RFC 9651 section 4.2 combines lines."""
    headers: dict[str, str] = {}
    for key, value in metadata or ():
        if isinstance(value, str):
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers

"""Stamps on outgoing synchronous gRPC calls of all four kinds (`grpc.insecure_channel`, `grpc.secure_channel`).

The four methods of `grpc._channel.Channel` are the one place beneath every interceptor, OpenTelemetry's and the user's,
whatever the order in which they were activated. What they return is wrapped so that every request is serialised once, by
the user's own serialiser; its bytes are hashed, and the same bytes are handed to gRPC.

A call with one request carries its digest. Of a stream the hash is known when it is over, and goes on the span.
"""

import copy
import importlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc

from provenance.addresses import target_attributes
from provenance.faults import Contained
from provenance.grpc.outgoing import (
    PLACE,
    Callee,
    HashedRequests,
    Serializer,
    hand_over,
    measured,
    own_metadata,
    serialise,
    stamp_payload,
    stamp_stream,
    text,
)
from provenance.patching import Patch


@dataclass(frozen=True, slots=True)
class _Method:
    """What a channel was asked for: gRPC's own multicallable, and what it leaves to us."""

    inner: Any
    serializer: Serializer | None
    deserializer: Serializer | None
    callee: Callee
    patch: Patch


class _Received(threading.local):
    """How many bytes the response had that this thread took last: whoever waits for a response takes it on his own thread."""

    size: int | None = None


_received = _Received()


def _counted(deserializer: Serializer | None) -> Serializer:
    """A deserialiser that all calls of a method share, and that tells its thread what it took."""

    def deserialise(raw: Any) -> Any:
        response = raw if deserializer is None else deserializer(raw)
        _received.size = len(raw)  # after the user's, which may have called somebody itself
        return response

    return deserialise


class _Prepared(NamedTuple):
    """One call, ready to go: its request or requests, and the metadata with the stamp or as it came."""

    inner: Any
    requests: Any
    metadata: Any


def client_patches() -> tuple[Patch, ...]:
    """The patches of this shell, not yet applied."""
    channel = importlib.import_module("grpc._channel").Channel
    kinds = (
        ("unary_unary", StampedUnaryUnary, True),
        ("unary_stream", StampedUnaryStream, True),
        ("stream_unary", StampedStreamUnary, False),
        ("stream_stream", StampedStreamStream, False),
    )
    return tuple(Patch(channel, name, _wrapper(stamped, early=early)) for name, stamped, early in kinds)


def _wrapper(stamped: Callable[[_Method], Any], *, early: bool) -> Callable[[Callable[..., Any], Patch], Any]:
    """`early`: the request is serialised by us, before gRPC sees it."""

    def wrap(original: Callable[..., Any], patch: Patch) -> Callable[..., Any]:
        def multicallable(
            channel: Any,
            method: str,
            request_serializer: Serializer | None = None,
            response_deserializer: Serializer | None = None,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            if not patch.active:
                return original(channel, method, request_serializer, response_deserializer, *args, **kwargs)
            serializer = hand_over if early else request_serializer
            deserializer = _counted(response_deserializer) if stamped is StampedUnaryUnary else response_deserializer
            inner = original(channel, method, serializer, deserializer, *args, **kwargs)
            address: dict[str, str | int] = {}
            with Contained(PLACE):
                address = target_attributes(text(channel._target))  # noqa: SLF001  (what it dials is nowhere else)
            callee = Callee(text(method), address)
            return stamped(_Method(inner, request_serializer, response_deserializer, callee, patch))

        return multicallable

    return wrap


class _Stamped:
    """What a call is made of; `prepare` is `_with_payload` or `_with_stream`."""

    def __init__(self, method: _Method) -> None:
        self._method = method


class StampedUnaryUnary(_Stamped, grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]  # generic in the stubs alone
    """Stamps, whichever of the three ways is used to call."""

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Call and wait for the response."""
        return self._wait(self._method.inner, (request, timeout, metadata), args, kwargs)

    def with_call(
        self, request: Any, timeout: float | None = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Call and wait for the response and the call."""
        return self._wait(self._method.inner.with_call, (request, timeout, metadata), args, kwargs)

    def _wait(self, call: Callable[..., Any], asked: tuple[Any, float | None, Any], args: Any, kwargs: Any) -> Any:
        """The span is described once the response is here, or none will be: nobody has ended it meanwhile."""
        method = self._method
        request, timeout, metadata = asked
        payload = serialise(request, method.serializer)
        own = own_metadata(metadata)
        stamped = stamp_payload(method.patch, payload, own, method.callee)
        if stamped is None:
            return call(payload, timeout, own or None, *args, **kwargs)
        _received.size = None
        try:
            return call(payload, timeout, stamped.metadata, *args, **kwargs)
        finally:
            stamped.describe(_received.size)

    def future(
        self, request: Any, timeout: float | None = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Call and return at once; the response's size is set before anybody's done-callback runs."""
        call = _with_payload(self._method, request, metadata)
        return call.inner.future(call.requests, timeout, call.metadata, *args, **kwargs)


class StampedUnaryStream(_Stamped, grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    """Stamps; what is returned is gRPC's own call."""

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Call; the responses are iterated over."""
        call = _with_payload(self._method, request, metadata)
        return call.inner(call.requests, timeout, call.metadata, *args, **kwargs)


class StampedStreamUnary(_Stamped, grpc.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    """Stamps, whichever of the three ways is used to call."""

    def __call__(
        self, request_iterator: Any, timeout: float | None = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Call and wait for the response."""
        call = _with_stream(self._method, request_iterator, metadata)
        return call.inner(call.requests, timeout, call.metadata, *args, **kwargs)

    def with_call(
        self, request_iterator: Any, timeout: float | None = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Call and wait for the response and the call."""
        call = _with_stream(self._method, request_iterator, metadata)
        return call.inner.with_call(call.requests, timeout, call.metadata, *args, **kwargs)

    def future(
        self, request_iterator: Any, timeout: float | None = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Call and return at once."""
        call = _with_stream(self._method, request_iterator, metadata)
        return call.inner.future(call.requests, timeout, call.metadata, *args, **kwargs)


class StampedStreamStream(_Stamped, grpc.StreamStreamMultiCallable):  # type: ignore[type-arg]
    """Stamps; what is returned is gRPC's own call."""

    def __call__(
        self, request_iterator: Any, timeout: float | None = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Call; the responses are iterated over."""
        call = _with_stream(self._method, request_iterator, metadata)
        return call.inner(call.requests, timeout, call.metadata, *args, **kwargs)


def _with_payload(method: _Method, request: Any, metadata: Any) -> _Prepared:
    payload = serialise(request, method.serializer)
    own = own_metadata(metadata)
    stamped = stamp_payload(method.patch, payload, own, method.callee)
    if stamped is None:
        return _Prepared(method.inner, payload, own or None)
    stamped.describe()
    if stamped.span is None:
        return _Prepared(method.inner, payload, stamped.metadata)
    inner = copy.copy(method.inner)
    inner._response_deserializer = measured(method.deserializer, stamped.span)  # noqa: SLF001  (there since 1.0)
    return _Prepared(inner, payload, stamped.metadata)


def _with_stream(method: _Method, requests: Any, metadata: Any) -> _Prepared:
    own = own_metadata(metadata)
    stamped = stamp_stream(method.patch, own, method.callee)
    if stamped is None:
        return _Prepared(method.inner, requests, own or None)
    stamped.describe()
    if stamped.span is None:
        return _Prepared(method.inner, requests, stamped.metadata)
    hashed = HashedRequests(method.serializer, stamped.span)
    inner = copy.copy(method.inner)
    inner._request_serializer = hashed.serialise  # noqa: SLF001  (as above)
    inner._response_deserializer = measured(method.deserializer, stamped.span)  # noqa: SLF001
    return _Prepared(inner, _Watched(requests, hashed), stamped.metadata)


class _Watched:
    """The caller's iterator of requests: says when it is exhausted, which is before gRPC tells the server."""

    __slots__ = ("_hashed", "_requests")

    def __init__(self, requests: Iterator[Any], hashed: HashedRequests) -> None:
        self._requests = requests
        self._hashed = hashed

    def __iter__(self) -> "_Watched":
        return self

    def __next__(self) -> Any:
        try:
            return next(self._requests)
        except StopIteration:
            self._hashed.end()
            raise

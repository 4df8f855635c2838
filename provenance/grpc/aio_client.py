"""Stamps on outgoing `grpc.aio` calls of all four kinds.

The constructors of the four call classes of `grpc.aio._call` are the one place beneath every interceptor: a channel without
interceptors makes such a call itself, one with them where the last of them continues, in the task where OpenTelemetry's span
is current. A call's serialiser and deserialiser are its own there, so they are replaced by ours, which call the user's.
"""

import functools
import importlib
import weakref
from collections.abc import Callable
from typing import Any

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

Address = dict[str, str | int]

_REQUESTS = "_provenance_requests"
"""The attribute of a call with a stream of requests that has their hash."""


def client_patches() -> tuple[Patch, ...]:
    """The patches of this shell, not yet applied."""
    calls = importlib.import_module("grpc.aio._call")
    channel = importlib.import_module("grpc.aio._channel").Channel
    addresses = _Addresses()
    return (
        Patch(channel, "__init__", addresses.watch),
        Patch(calls.UnaryUnaryCall, "__init__", _one_request(addresses)),
        Patch(calls.UnaryStreamCall, "__init__", _one_request(addresses)),
        Patch(calls.StreamUnaryCall, "__init__", _many_requests(addresses)),
        Patch(calls.StreamStreamCall, "__init__", _many_requests(addresses)),
        # Of both styles, the caller's iterator and `write`, the one place where the requests are over.
        Patch(calls._StreamRequestMixin, "_done_writing", _watch_the_end),  # noqa: SLF001
    )


class _Addresses:
    """What each channel dials, by the object of gRPC's core that a call is given of it, which does not tell."""

    def __init__(self) -> None:
        self._of: dict[int, Address] = {}

    def watch(self, original: Callable[..., None], patch: Patch) -> Callable[..., None]:
        @functools.wraps(original)
        def init(channel: Any, target: str, *args: Any, **kwargs: Any) -> None:
            original(channel, target, *args, **kwargs)
            if patch.active:
                with Contained(PLACE):
                    core = id(channel._channel)  # noqa: SLF001
                    self._of[core] = target_attributes(text(target))
                    weakref.finalize(channel, self._of.pop, core, None)

        return init

    def of(self, core: object) -> Address:
        """The address of a channel's core; nothing for a channel that was made before."""
        return self._of.get(id(core), {})


def _one_request(addresses: _Addresses) -> Callable[[Callable[..., None], Patch], Callable[..., None]]:
    def wrap(original: Callable[..., None], patch: Patch) -> Callable[..., None]:
        @functools.wraps(original)
        def init(  # noqa: PLR0917  (gRPC's signature)
            call: Any,
            request: Any,
            deadline: float | None,
            metadata: Any,
            credentials: Any,
            wait_for_ready: bool | None,  # noqa: FBT001
            channel: Any,
            method: bytes,
            request_serializer: Serializer | None,
            response_deserializer: Serializer | None,
            *args: Any,
            **kwargs: Any,
        ) -> None:
            if patch.active:
                request, request_serializer = serialise(request, request_serializer), hand_over
                own = own_metadata(metadata)
                stamped = stamp_payload(patch, request, own, Callee(text(method), addresses.of(channel)))
                if stamped is not None:
                    metadata = stamped.metadata
                    stamped.describe()
                    if stamped.span is not None:
                        response_deserializer = measured(response_deserializer, stamped.span)
            original(
                call, request, deadline, metadata, credentials, wait_for_ready, channel, method, request_serializer,
                response_deserializer, *args, **kwargs,
            )  # fmt: skip

        return init

    return wrap


def _many_requests(addresses: _Addresses) -> Callable[[Callable[..., None], Patch], Callable[..., None]]:
    def wrap(original: Callable[..., None], patch: Patch) -> Callable[..., None]:
        @functools.wraps(original)
        def init(  # noqa: PLR0917  (gRPC's signature)
            call: Any,
            request_iterator: Any,
            deadline: float | None,
            metadata: Any,
            credentials: Any,
            wait_for_ready: bool | None,  # noqa: FBT001
            channel: Any,
            method: bytes,
            request_serializer: Serializer | None,
            response_deserializer: Serializer | None,
            *args: Any,
            **kwargs: Any,
        ) -> None:
            stamped = None
            if patch.active:
                callee = Callee(text(method), addresses.of(channel))
                stamped = stamp_stream(patch, own_metadata(metadata), callee)
            if stamped is not None:
                metadata = stamped.metadata
                stamped.describe()
                if stamped.span is not None:
                    hashed = HashedRequests(request_serializer, stamped.span)
                    setattr(call, _REQUESTS, hashed)
                    request_serializer = hashed.serialise
                    response_deserializer = measured(response_deserializer, stamped.span)
            original(
                call, request_iterator, deadline, metadata, credentials, wait_for_ready, channel, method,
                request_serializer, response_deserializer, *args, **kwargs,
            )  # fmt: skip

        return init

    return wrap


def _watch_the_end(original: Callable[..., Any], _patch: Patch) -> Callable[..., Any]:
    @functools.wraps(original)
    async def done_writing(call: Any) -> None:
        hashed: HashedRequests | None = getattr(call, _REQUESTS, None)
        if hashed is not None and not call.done():
            hashed.end()
        await original(call)

    return done_writing

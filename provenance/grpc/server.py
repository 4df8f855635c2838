"""Stamps on incoming gRPC calls of all four kinds, synchronous (`grpc.server`).

`grpc._server._find_method_handler` asks for the handler of every call, beneath every interceptor, and runs once a call.
So what the requests' deserialiser sees, on gRPC's polling thread and before any span, is handed by an object of that
call alone to the behaviour, which runs on the pool's thread inside OpenTelemetry's server span.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from provenance.context import served_id, serving
from provenance.enforcement import NOT_PROVEN, current_guard
from provenance.faults import report
from provenance.grpc.incoming import PLACE, IncomingCall, observed, only_opentelemetry
from provenance.patching import Patch


def server_patches() -> tuple[Patch, ...]:
    """The patches of this shell, not yet applied."""
    return (Patch(importlib.import_module("grpc._server"), "_find_method_handler", _wrap_find_method_handler),)


def _wrap_find_method_handler(original: Callable[..., Any], patch: Patch) -> Callable[..., Any]:
    def find_method_handler(rpc_event: Any, state: Any, methods: Any, pipeline: Any) -> Any:
        if patch.active:
            try:
                methods = _observed_methods(methods, pipeline)
            except Exception as error:  # noqa: BLE001  (as `Contained` does, for nothing where nothing fails)
                report(PLACE, error)
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
        """The user's handler, observed."""
        handler = self._find(handler_call_details)
        if handler is None:
            return None
        try:
            early = self._pipeline is None or only_opentelemetry(tuple(self._pipeline.interceptors))
            return observed(handler, handler_call_details.method, may_serialise_early=early, observe=observe)
        except Exception as error:  # noqa: BLE001  (as above)
            report(PLACE, error)
        # A handler that cannot be observed goes on as it is, but not past a guard.
        return handler if current_guard() is None else grpc.unary_unary_rpc_method_handler(_refuse)

    service = handler


def observe(handler: Any, behaviour: Callable[..., Any], call: IncomingCall) -> Callable[..., Any]:
    """The behaviour with `call` listening: what it is handed, what it returns or raises, stays what it was."""
    shell = _ManyResponses if handler.response_streaming else _OneResponse
    return shell(behaviour, call)


class _Behaviour:
    """A behaviour that is listened to. What gRPC's users hang on one (`experimental_thread_pool`) is found here too."""

    __slots__ = ("_behaviour", "_call")

    def __init__(self, behaviour: Callable[..., Any], call: IncomingCall) -> None:
        self._behaviour = behaviour
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behaviour, name)


class _OneResponse(_Behaviour):
    """Answers once; its span is described when it did, or did not."""

    __slots__ = ()

    def __call__(self, request: Any, context: Any) -> Any:
        """Serve the call."""
        call = self._call
        request_id = call.begin(context, describe=call.streams_requests)
        if call.refusal is not None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, call.refusal)
        if call.streams_requests:
            request = _Requests(request, call)
        before = served_id.set(request_id)  # as `serving`, which takes four times as long
        try:
            response = self._behaviour(request, context)
        except BaseException:
            call.failed()
            raise
        finally:
            served_id.reset(before)
        call.answered(response)
        return response


class _ManyResponses(_Behaviour):
    """Answers with an iterator, or as gRPC's experimental callbacks do."""

    __slots__ = ()

    def __call__(self, request: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Serve the call."""
        call = self._call
        request_id = call.begin(context)
        if call.refusal is not None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, call.refusal)
        if call.streams_requests:
            request = _Requests(request, call)
        with serving(request_id):
            responses = self._behaviour(request, context, *args, **kwargs)
        return _Responses(responses, call, request_id) if hasattr(responses, "__next__") else responses


def _refuse(_request: Any, context: Any) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, NOT_PROVEN)


class _Requests:
    """gRPC's iterator of requests: says when it is exhausted."""

    __slots__ = ("_call", "_requests")

    def __init__(self, requests: Any, call: IncomingCall) -> None:
        self._requests = requests
        self._call = call

    def __iter__(self) -> "_Requests":
        return self

    def __next__(self) -> Any:
        try:
            return next(self._requests)
        except StopIteration:
            self._call.requests_ended()
            raise

    next = __next__  # grpcio's has it

    def __getattr__(self, name: str) -> Any:
        return getattr(self._requests, name)


class _Responses:
    """The behaviour's iterator of responses: each is made while the call is served, and its end is seen."""

    __slots__ = ("_call", "_request_id", "_responses")

    def __init__(self, responses: Iterator[Any], call: IncomingCall, request_id: str | None) -> None:
        self._responses = responses
        self._call = call
        self._request_id = request_id

    def __iter__(self) -> "_Responses":
        return self

    def __next__(self) -> Any:
        try:
            with serving(self._request_id):
                return next(self._responses)
        except BaseException:
            self._call.responses_ended()
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._responses, name)

"""Stamps on incoming `grpc.aio` calls of all four kinds, whichever of gRPC's styles the handler is written in.

gRPC's core asks the generic handlers that a server was given, beneath every interceptor and once a call. So they are replaced,
where they are given, by one that makes an observed handler for every call. Registered handlers are not asked but looked up,
one for all calls; so they are kept here, and looked up here, before the generic ones, as gRPC does.

A handler stays of its kind, coroutine, asynchronous generator or plain function: gRPC looks at it to know how to run it. One
that has a stream of requests may take them by `context.read()`: so it has a context that listens.
"""

import functools
import importlib
import inspect
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing
from typing import Any

import grpc

from provenance.context import serving
from provenance.enforcement import NOT_PROVEN, current_guard
from provenance.faults import Contained
from provenance.grpc import server as sync
from provenance.grpc.aio_threads import on_a_thread
from provenance.grpc.incoming import PLACE, IncomingCall, Observe, is_opentelemetry, observed, only_opentelemetry
from provenance.patching import Patch

_HANDLERS = "_provenance_handlers"
"""The attribute of a server that has its `_Handlers`."""


def server_patches() -> tuple[Patch, ...]:
    """The patches of this shell, not yet applied."""
    server = importlib.import_module("grpc.aio._server").Server
    return (
        Patch(server, "__init__", _wrap_init),
        Patch(server, "add_generic_rpc_handlers", _wrap_add_generic),
        Patch(server, "add_registered_method_handlers", _wrap_add_registered),
    )


def _wrap_init(original: Callable[..., None], patch: Patch) -> Callable[..., None]:
    @functools.wraps(original)
    def init(
        server: Any, thread_pool: Any, generic_handlers: Any, interceptors: Any, *args: Any, **kwargs: Any
    ) -> None:
        if patch.active:
            with Contained(PLACE):
                interceptors = None if interceptors is None else tuple(interceptors)
                handlers = _Handlers(patch, interceptors or (), thread_pool)
                setattr(server, _HANDLERS, handlers)
                generic_handlers = [handlers, *map(handlers.of, generic_handlers or ())]
        original(server, thread_pool, generic_handlers, interceptors, *args, **kwargs)

    return init


def _wrap_add_generic(original: Callable[..., None], _patch: Patch) -> Callable[..., None]:
    @functools.wraps(original)
    def add_generic_rpc_handlers(server: Any, generic_rpc_handlers: Iterable[Any]) -> None:
        if (handlers := getattr(server, _HANDLERS, None)) is not None:
            generic_rpc_handlers = tuple(map(handlers.of, generic_rpc_handlers))
        original(server, generic_rpc_handlers)

    return add_generic_rpc_handlers


def _wrap_add_registered(original: Callable[..., None], _patch: Patch) -> Callable[..., None]:
    @functools.wraps(original)
    def add_registered_method_handlers(server: Any, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        if (handlers := getattr(server, _HANDLERS, None)) is None:
            original(server, service_name, method_handlers)
        else:
            handlers.registered.update({f"/{service_name}/{name}": each for name, each in method_handlers.items()})

    return add_registered_method_handlers


class _Handlers:
    """The handlers of one server; as a generic handler, those that were registered."""

    def __init__(self, patch: Patch, interceptors: Collection[object], thread_pool: Any) -> None:
        self._patch = patch
        self._may_serialise_early = only_opentelemetry(tuple(interceptors))
        self._observe: Observe = _observe
        if any(map(is_opentelemetry, interceptors)):
            self._observe = functools.partial(_beneath_opentelemetry, thread_pool=thread_pool)
        self.registered: dict[str, Any] = {}

    def of(self, generic: Any) -> "_Generic":
        """The generic handler, with its handlers observed."""
        return _Generic(generic, self)

    def service(self, handler_call_details: Any) -> Any:
        """The observed handler of a registered method."""
        method = handler_call_details.method
        return self.observed(self.registered.get(method), method)

    def observed(self, handler: Any, method: str) -> Any:
        """The handler, listened to for one call."""
        if handler is not None and self._patch.active:
            with Contained(PLACE):
                return observed(handler, method, may_serialise_early=self._may_serialise_early, observe=self._observe)
            if current_guard() is not None:  # it goes on as it is where it cannot be observed, but not past a guard
                return grpc.unary_unary_rpc_method_handler(_refuse)
        return handler


class _Generic:
    """A `grpc.GenericRpcHandler` whose handlers are observed."""

    def __init__(self, generic: Any, handlers: _Handlers) -> None:
        self._generic = generic
        self._handlers = handlers

    def service(self, handler_call_details: Any) -> Any:
        """The observed handler of the method; None where there is none."""
        return self._handlers.observed(self._generic.service(handler_call_details), handler_call_details.method)


def _observe(handler: Any, behaviour: Callable[..., Any], call: IncomingCall) -> Callable[..., Any]:
    """The behaviour with `call` listening, of the same kind."""

    async def begin(request: Any, context: Any, *, describe: bool = True) -> tuple[Any, str | None]:
        request_id = call.begin(context, describe=describe)
        if call.refusal is not None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, call.refusal)
        return (_Requests(request, call) if handler.request_streaming else request), request_id

    def listening(context: Any) -> Any:
        return _ReadingContext(context, call) if handler.request_streaming else context

    @functools.wraps(behaviour)
    async def one_response(request: Any, context: Any) -> Any:
        request, request_id = await begin(request, context, describe=handler.request_streaming)
        try:
            with serving(request_id):
                response = await behaviour(request, listening(context))
        except BaseException:
            call.failed()
            raise
        call.answered(response)
        return response

    @functools.wraps(behaviour)
    async def written_responses(request: Any, context: Any) -> None:
        request, request_id = await begin(request, context)
        try:
            with serving(request_id):
                await behaviour(request, listening(context))
        finally:
            call.responses_ended()

    @functools.wraps(behaviour)
    async def many_responses(request: Any, context: Any) -> AsyncIterator[Any]:
        request, request_id = await begin(request, context)
        try:
            with serving(request_id):
                async with aclosing(behaviour(request, listening(context))) as responses:
                    async for response in responses:
                        yield response
        finally:
            call.responses_ended()

    if inspect.isasyncgenfunction(behaviour):
        return many_responses
    if inspect.iscoroutinefunction(behaviour):
        return written_responses if handler.response_streaming else one_response
    plain = sync.observe(handler, behaviour, call)
    return _lazily(plain) if handler.response_streaming else plain


def _lazily(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """GRPC iterates over it on a thread, but calls it on the event loop's, where a refusal could not be waited for."""

    @functools.wraps(behaviour)
    def responses(request: Any, context: Any) -> Iterator[Any]:
        yield from behaviour(request, context)

    return responses


def _beneath_opentelemetry(
    handler: Any, behaviour: Callable[..., Any], call: IncomingCall, *, thread_pool: Any
) -> Callable[..., Any]:
    """The same, of the kinds that OpenTelemetry's interceptor can call: a coroutine, or an asynchronous generator.

    It awaits, or iterates over, whatever it calls (its issue 3066): a coroutine that writes its responses becomes an iterator
    of none, and a plain function is run on a thread.
    """
    ours = _observe(handler, behaviour, call)
    if not inspect.isasyncgenfunction(ours) and not inspect.iscoroutinefunction(ours):
        return on_a_thread(
            ours,
            thread_pool,
            streams_requests=handler.request_streaming,
            streams_responses=handler.response_streaming,
        )
    if not handler.response_streaming or not inspect.iscoroutinefunction(ours):
        return ours

    @functools.wraps(behaviour)
    async def no_responses(request: Any, context: Any) -> AsyncIterator[Any]:
        await ours(request, context)
        none: tuple[Any, ...] = ()
        for response in none:
            yield response

    return no_responses


async def _refuse(_request: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, NOT_PROVEN)


class _Requests:
    """gRPC's asynchronous iterator of requests: says when it is exhausted."""

    __slots__ = ("_call", "_requests")

    def __init__(self, requests: Any, call: IncomingCall) -> None:
        self._requests = requests
        self._call = call

    def __aiter__(self) -> "_Requests":
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._requests)
        except StopAsyncIteration:
            self._call.requests_ended()
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._requests, name)


class _ReadingContext:
    """A servicer's context that says when the requests are over for one who reads them from it."""

    __slots__ = ("_call", "_context")

    def __init__(self, context: Any, call: IncomingCall) -> None:
        self._context = context
        self._call = call

    async def read(self) -> Any:
        """The next request, or `grpc.aio.EOF`."""
        request = await self._context.read()
        if request is grpc.aio.EOF:
            self._call.requests_ended()
        return request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

"""Plain functions as handlers of a `grpc.aio` server, made into coroutines and asynchronous generators.

gRPC runs a plain function on a thread by itself, but only if it sees that it is one. OpenTelemetry's interceptor is a coroutine
around it, which awaits whatever it calls: a plain function then fails. So beneath that interceptor it is run on a thread here.
"""

import asyncio
import contextvars
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Executor
from typing import Any

_END = object()


def on_a_thread(
    behaviour: Callable[..., Any], thread_pool: Executor | None, *, streams_requests: bool, streams_responses: bool
) -> Callable[..., Any]:
    """The behaviour as a coroutine, or where it answers with a stream, as an asynchronous generator."""

    def prepared(request: Any, context: Any) -> tuple[Callable[[], Any], "ThreadContext"]:
        loop = asyncio.get_running_loop()
        own = ThreadContext(context, loop)
        if streams_requests:
            request = _Requests(request, loop)
        # What is current here, the server's span for one, is current there.
        return functools.partial(contextvars.copy_context().run, behaviour, request, own), own

    @functools.wraps(behaviour)
    async def one_response(request: Any, context: Any) -> Any:
        call, own = prepared(request, context)
        response = await asyncio.get_running_loop().run_in_executor(thread_pool, call)
        own.run_callbacks()
        return response

    @functools.wraps(behaviour)
    async def many_responses(request: Any, context: Any) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        call, own = prepared(request, context)
        responses = iter(await loop.run_in_executor(thread_pool, call))
        inside = contextvars.copy_context()

        def take() -> Any:
            return next(responses, _END)

        while True:
            response = await loop.run_in_executor(thread_pool, lambda: inside.run(take))
            if response is _END:
                break
            yield response
        own.run_callbacks()

    return many_responses if streams_responses else one_response


class ThreadContext:
    """A servicer's context as a plain function knows it: what has to be awaited is waited for."""

    def __init__(self, context: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop
        self._callbacks: list[Callable[[], None]] = []

    def abort(self, *args: Any, **kwargs: Any) -> None:
        """End the call with a status; raises."""
        self._wait(self._context.abort(*args, **kwargs))

    def send_initial_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Send it now."""
        self._wait(self._context.send_initial_metadata(*args, **kwargs))

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call it when the behaviour is done."""
        self._callbacks.append(callback)
        return True

    def run_callbacks(self) -> None:
        """The behaviour is done."""
        for callback in self._callbacks:
            callback()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class _Requests(Iterator[Any]):
    """gRPC's asynchronous iterator of requests, for a thread."""

    def __init__(self, requests: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._requests = requests
        self._loop = loop

    def __next__(self) -> Any:
        request = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
        if request is _END:
            raise StopIteration
        return request

    async def _next(self) -> Any:
        return await anext(self._requests, _END)

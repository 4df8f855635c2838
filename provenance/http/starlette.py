"""Every Starlette and FastAPI application watched, whatever started its server span and in whatever order.

Three places of an application, outermost first, at class level. Which of them is the first inside the span depends on
who starts it: FastAPI itself, or OpenTelemetry's FastAPI instrumentation (around the second `ServerErrorMiddleware` that
it adds): the error middleware. OpenTelemetry's Starlette instrumentation (a middleware of the user's list): the
exception middleware, or the router in an application that has none.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Router

from provenance.http.asgi import serve
from provenance.http.messages import Receive, Scope, Send
from provenance.patching import Patch


def server_patches() -> tuple[Patch, ...]:
    """The patches of this shell, not yet applied."""
    return tuple(
        Patch(each, "__call__", functools.partial(_wrap_call, is_last=each is Router))
        for each in (ServerErrorMiddleware, ExceptionMiddleware, Router)
    )


def _wrap_call(
    original: Callable[..., Awaitable[None]], patch: Patch, *, is_last: bool
) -> Callable[..., Awaitable[None]]:
    @functools.wraps(original)
    async def call(app: Any, scope: Scope, receive: Receive, send: Send) -> None:
        if patch.active:
            await serve(functools.partial(original, app), scope, receive, send, is_last=is_last)
        else:
            await original(app, scope, receive, send)

    return call

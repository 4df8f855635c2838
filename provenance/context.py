"""The `x-request-id` of the request that is being served, so that every outgoing call can carry it on.

Meshes log no trace id by default, but Istio's and Envoy's access logs have this one: it is what joins a span to them.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Final
from uuid import uuid4

# gRPC refuses metadata outside visible ASCII, so another character, forwarded, would break the host's call.
_USABLE: Final = re.compile(r"[\x21-\x7e]{1,256}")

_serving: ContextVar[str | None] = ContextVar("provenance.request_id", default=None)


def usable(request_id: str | None) -> str | None:
    """The request id if it can be recorded and forwarded: 1 to 256 visible ASCII characters; else None."""
    return request_id if request_id is not None and _USABLE.fullmatch(request_id) else None


@contextmanager
def serving(request_id: str | None) -> Iterator[None]:
    """While a request is served: its id, None if it brought no usable one (then none is inherited either)."""
    token = _serving.set(usable(request_id))
    try:
        yield
    finally:
        # A generator that was started in one context may be closed in another; then there is nothing to restore there.
        with suppress(ValueError):
            _serving.reset(token)


def current_request_id() -> str | None:
    """The id of the request being served here, if it brought one."""
    return _serving.get()


def outgoing_request_id() -> str:
    """The id for an outgoing call: that of the request being served, else a new one for this call alone."""
    return _serving.get() or str(uuid4())

"""The `x-request-id` of the request that is being served, so that every outgoing call can carry it on.

Meshes log no trace id by default, but Istio's and Envoy's access logs have this one: it is what joins a span to them.
"""

import os
import re
from contextvars import ContextVar
from typing import Final

# gRPC refuses metadata outside visible ASCII, so another character, forwarded, would break the host's call.
_USABLE: Final = re.compile(r"[\x21-\x7e]{1,256}")

REQUEST_ID_BYTES: Final = 16
"""Of randomness, in a new id."""

_VARIANT: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}

served_id: Final[ContextVar[str | None]] = ContextVar("provenance.request_id", default=None)
"""Of the request that is being served; set by `serving`, and by whoever has a usable one and no time for that."""


def usable(request_id: str | None) -> str | None:
    """The request id if it can be recorded and forwarded: 1 to 256 visible ASCII characters; else None."""
    return request_id if request_id is not None and _USABLE.fullmatch(request_id) else None


class serving:  # noqa: N801  (a context manager, four times as fast as a generator's)
    """While a request is served: its id, None if it brought no usable one (then none is inherited either)."""

    __slots__ = ("_request_id", "_token")

    def __init__(self, request_id: str | None) -> None:
        self._request_id = usable(request_id)

    def __enter__(self) -> None:
        self._token = served_id.set(self._request_id)

    def __exit__(self, _kind: object, _error: object, _traceback: object) -> None:
        # A generator that was started in one context may be closed in another; then there is nothing to restore there.
        try:
            served_id.reset(self._token)
        except ValueError:
            return


def current_request_id() -> str | None:
    """The id of the request being served here, if it brought one."""
    return served_id.get()


def outgoing_request_id(randomness: bytes | None = None) -> str:
    """The id for an outgoing call: that of the request being served, else a new one for this call alone.

    `randomness` is 16 bytes to make it of, from a caller who fetched more than these at once: each fetch is a system call.
    """
    return served_id.get() or _new_request_id(randomness or os.urandom(REQUEST_ID_BYTES))


def _new_request_id(randomness: bytes) -> str:
    """A UUID of version 4 (RFC 9562), which Envoy wants to see; a fifth of what `uuid` takes for it."""
    digits = randomness.hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"

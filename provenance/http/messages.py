"""What ASGI's shells share: its types, and what a request says of itself. Pure."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import quote

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


def target_of(scope: Scope) -> str:
    """Path and query as they came; the path decoded from a server that tells no other."""
    path = scope.get("raw_path") or quote(scope.get("path", "")).encode()
    query = scope.get("query_string") or b""
    return (path + b"?" + query if query else path).decode("latin-1")


def has_no_body(http_version: str, headers: dict[str, str]) -> bool:
    """Whether a request is known to have no body before anybody reads it.

    In HTTP/1 a request without Content-Length and Transfer-Encoding has none (RFC 9112 section 6.3); in later versions
    it may, so there only `content-length: 0` says so.
    """
    if "transfer-encoding" in headers:
        return False
    length = headers.get("content-length")
    return length == "0" or (length is None and http_version.startswith("1"))


def combined_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Values by lowercase name; several lines of one name are one value, joined by commas (RFC 9110 section 5.3)."""
    combined: dict[str, str] = {}
    for raw_key, raw_value in headers:
        key, value = raw_key.decode("latin-1").lower(), raw_value.decode("latin-1")
        combined[key] = f"{combined[key]}, {value}" if key in combined else value
    return combined

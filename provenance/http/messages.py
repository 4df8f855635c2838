"""What the shells of HTTP servers share: ASGI's types, and what a request says of itself. Pure."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from provenance import names
from provenance.digest import RunningHash
from provenance.identity import certified_principal
from provenance.incoming import incoming_attributes
from provenance.recording import current_recording
from provenance.spans import RecordingSpan

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# An application that is called in-process, by another's handler, must not write on that other one's span.
watched_span: ContextVar[RecordingSpan | None] = ContextVar("provenance.watched_span", default=None)


def target_of(scope: Scope) -> str:
    """Path and query as they came; the path decoded from a server that tells no other."""
    path = scope.get("raw_path") or quote(scope.get("path", "")).encode()
    query = scope.get("query_string") or b""
    return (path + b"?" + query if query else path).decode("latin-1")


def certified_of(scope: Scope) -> str | None:
    """The principal in the client's certificate, where the server tells it as ASGI's TLS extension says; None elsewhere.

    Needs the package cryptography to read it, as servers that have the extension do.
    """
    chain = ((scope.get("extensions") or {}).get("tls") or {}).get("client_cert_chain") or ()
    return _certified(chain[0]) if chain else None


@lru_cache(maxsize=256)  # a peer's certificate is the same in every request of its connections
def _certified(pem: str) -> str | None:
    try:
        from cryptography import x509
    except ModuleNotFoundError:
        return None
    certificate = x509.load_pem_x509_certificate(pem.encode())
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return certified_principal([*uris, *names.get_values_for_type(x509.DNSName)])


def request_attributes(
    headers: dict[str, str],
    body: RunningHash | None,
    response_size: int | None,
    *,
    method: str,
    target: str,
    certified: str | None = None,
) -> dict[str, str | int]:
    """What a server's span says of a request; `body` is None where it was not read to its end."""
    attributes = incoming_attributes(
        headers,
        method=method,
        target=target,
        hash_hex=None if body is None else body.hexdigest(),
        size=0 if body is None else body.size,
        certified=certified,
        recording=current_recording(),
    )
    return attributes if response_size is None else attributes | {names.RESPONSE_SIZE: response_size}


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

"""The stamp: who says that it made a call, when, and a nonce that makes the call unique.

On the wire an RFC 9651 dictionary: `v=1, kid="checkout/3", t=1763859600123, n=:<12 random bytes>:`, and where it is signed
`s=:<8 bytes, the caller's span id>:, mac=:<32 or 64 bytes>:`. Pure: time, randomness and keys are arguments. Unknown keys and
parameters are ignored, as the RFC demands.

What is signed is the SHA-256 of `signed_text`: so a callee can record what it saw of a call in 32 bytes, and whoever has the
key verifies the MAC against that, without the path, the query or the body.
"""

import re
from binascii import a2b_base64
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple, Protocol, Self, TypeVar
from urllib.parse import quote, unquote_to_bytes

from provenance.digest import DigestError, parse_content_digest, render_content_digest
from provenance.names import STAMP_ABSENT, STAMP_MALFORMED, STAMP_MISMATCHED, STAMP_SIGNED, STAMP_UNSIGNED
from provenance.structured import StructuredFieldError, Value, parse_dictionary, render_bytes, render_string

STAMP_VERSION: Final = 1
NONCE_BYTES: Final = 12
MAX_KID_BYTES: Final = 255
"""UTF-8 bytes of a kid: more than a DNS name has, and three times as many still fit a stamp."""

MAX_STAMP_LENGTH: Final = 1024
"""Characters of a stamp that are read; metadata is limited to 8 kB in all."""

SPAN_ID_BYTES: Final = 8
MAC_BYTES: Final = (32, 64)
"""HMAC-SHA-256, Ed25519."""

_T = TypeVar("_T", int, str, bytes)
_MAX_INTEGER: Final = 999_999_999_999_999  # RFC 9651 section 3.3.1
_AUTHORITY: Final = re.compile(r"https?://[^/?#]*")
_RENDERED: Final = re.compile(
    r'v=1, kid="([A-Za-z0-9_./:@-]{1,255})", t=([0-9]{1,15}), n=:([A-Za-z0-9+/]{16}):'
    r"(?:, s=:([A-Za-z0-9+/]{10}[AEIMQUYcgkosw048]=):)?"
    r"(?:, mac=:([A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=|[A-Za-z0-9+/]{85}[AQgw]==):)?"
)
"""A stamp as `render` writes it, its base64 canonical: the general parser takes eight times as long, on every call."""

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")


class StampError(ValueError):
    """A stamp that cannot be read, or values that no stamp can carry."""


class _Parts(NamedTuple):
    version: int
    kid: str
    time_unix_ms: int
    nonce: bytes
    span_id: bytes | None = None
    mac: bytes | None = None


class Stamp(_Parts):
    """What the caller says about one call; every `Stamp` that exists can be rendered.

    A tuple, because two are made for every call, and a frozen dataclass takes three times as long to be made.

    Attributes:
        version: Always 1.
        kid: Whose key made the stamp; unsigned stamps name the calling service alone. 1 to 255 bytes of UTF-8.
        time_unix_ms: When the caller made it, by the caller's clock.
        nonce: 12 random bytes.
        span_id: Of the caller's span, 8 bytes, where the call carries a trace context: then the MAC covers that.
        mac: 32 bytes of HMAC-SHA-256 or 64 of Ed25519; None where the caller has no key.

    Raises:
        StampError: A value out of these bounds.
    """

    __slots__ = ()

    def __new__(  # noqa: PLR0917  (a tuple's parts, in their order)
        cls,
        version: int,
        kid: str,
        time_unix_ms: int,
        nonce: bytes,
        span_id: bytes | None = None,
        mac: bytes | None = None,
    ) -> Self:
        """A stamp of parts that are looked at first."""
        if version != STAMP_VERSION:
            message = f"stamp version {version}, expected {STAMP_VERSION}"
            raise StampError(message)
        if not 0 < _utf8_length(kid) <= MAX_KID_BYTES:
            message = f"a kid has 1 to {MAX_KID_BYTES} bytes of UTF-8"
            raise StampError(message)
        if not 0 <= time_unix_ms <= _MAX_INTEGER:
            raise StampError("a stamp's time has up to 15 digits and no sign")
        if len(nonce) != NONCE_BYTES:
            message = f"a nonce of {len(nonce)} bytes, expected {NONCE_BYTES}"
            raise StampError(message)
        if span_id is not None and len(span_id) != SPAN_ID_BYTES:
            message = f"a span id of {len(span_id)} bytes, expected {SPAN_ID_BYTES}"
            raise StampError(message)
        if mac is not None and len(mac) not in MAC_BYTES:
            message = f"a MAC of {len(mac)} bytes, expected 32 or 64"
            raise StampError(message)
        return super().__new__(cls, version, kid, time_unix_ms, nonce, span_id, mac)


def make_kid(service_name: str) -> str:
    """The service's name as a kid: cut to what a stamp carries, never empty, no lone surrogates."""
    raw = service_name.encode(errors="replace")[:MAX_KID_BYTES]
    return raw.decode(errors="ignore") or "unknown_service"


def trusted(kid: str, time_unix_ms: int, nonce: bytes, span_id: bytes | None, mac: bytes | None) -> Stamp:
    """A stamp of parts that are in bounds already: without the checks, a third of the time that `Stamp` takes."""
    return tuple.__new__(Stamp, (STAMP_VERSION, kid, time_unix_ms, nonce, span_id, mac))


@lru_cache(maxsize=256)
def _rendered(kid: str) -> str:
    return render_string(kid)


def render(stamp: Stamp) -> str:
    """The header's value."""
    _, kid, time_unix_ms, nonce, span_id, mac = stamp
    text = f"v=1, kid={_rendered(kid)}, t={time_unix_ms}, n={render_bytes(nonce)}"  # every stamp's version is 1
    if span_id is not None:
        text += f", s={render_bytes(span_id)}"
    return text if mac is None else f"{text}, mac={render_bytes(mac)}"


class Seen(NamedTuple):
    """What one side saw of a call, as the MAC covers it.

    Attributes:
        method: The HTTP method; gRPC's is POST.
        target: Path and query as sent; gRPC's is `/package.Service/Method`.
        digest_hex: The SHA-256 that the call's `content-digest` promises; None where none travels.
        traceparent: The header's value; None where there is none.
    """

    method: str
    target: str
    digest_hex: str | None
    traceparent: str | None


def span_id_of(traceparent: str | None) -> bytes | None:
    """The parent's span id in a `traceparent`; None where there is none, or it cannot be read."""
    match = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    return None if match is None else bytes.fromhex(match[2])


class Signer(Protocol):
    """A key, as far as it signs."""

    @property
    def kid(self) -> str:
        """Its id."""

    def sign(self, message: bytes) -> bytes:
        """The MAC or signature."""


def signed_stamp(unsigned: Stamp, seen: Seen, key: Signer) -> tuple[Stamp, bytes]:
    """The stamp with this key's id and MAC, and the span id of the trace context that its call carries; and the hash of what is signed.

    The kid of a key is in bounds, and so is what it makes.
    """
    _, _, time_unix_ms, nonce, _, _ = unsigned
    kid, span_id = key.kid, span_id_of(seen.traceparent)
    signed = text_hash(trusted(kid, time_unix_ms, nonce, span_id, None), seen)
    return trusted(kid, time_unix_ms, nonce, span_id, key.sign(signed)), signed


def signed_text(stamp: Stamp, seen: Seen) -> str:
    """What a stamp's MAC is over, in lines.

    The trace id is the one that came, the span id the stamp's own: a proxy that traces puts its own span between the two, and
    keeps the trace. Where the caller sent no trace context, one that a proxy began is not the caller's to sign.
    """
    _, kid, time_unix_ms, nonce, span_id, _ = stamp
    method, target, digest_hex, traceparent = seen
    trace = span = "-"
    if span_id is not None:
        span = span_id.hex()
        if traceparent is not None and (match := _TRACEPARENT.fullmatch(traceparent)):
            trace = match[1]
    return (
        f"provenance 1\n{_rendered(kid)}\n{time_unix_ms}\n{nonce.hex()}\n{trace}\n{span}\n"
        f"{method.upper()}\n{canonical_target(target)}\n{digest_hex or '-'}"
    )


def text_hash(stamp: Stamp, seen: Seen) -> bytes:
    """The SHA-256 of `signed_text`: what is signed, and what a callee records."""
    return sha256(signed_text(stamp, seen).encode("utf-8", "surrogateescape"), usedforsecurity=False).digest()


def canonical_target(target: str) -> str:
    """Path and query in the one form in which both sides can know them: a WSGI server tells the path without its escapes.

    `/a%2Fb` and `/a/b` are one target here, and `/` is what an empty path is sent as; the query stays as it is. A proxy is
    asked for a whole URL, and asks the server for its path.
    """
    return _canonical(target) if len(target) <= _REMEMBERED_LENGTH else _canonical.__wrapped__(target)


_REMEMBERED_LENGTH: Final = 256
"""Characters: longer targets have values in them, and seldom come again."""


@lru_cache(maxsize=512)  # a service's paths repeat, and gRPC's always
def _canonical(target: str) -> str:
    if target.startswith(("http://", "https://")):
        target = _AUTHORITY.sub("", target, count=1)
    path, mark, query = target.partition("?")
    return (quote(unquote_to_bytes(path)) or "/") + mark + query


def parse(text: str) -> Stamp:
    """Read a stamp: one as `render` writes them at a glance, any other as the RFC says.

    Raises:
        StampError: Not a dictionary, too long, or v, kid, t or n missing, or any of them, s or mac of another type or out
            of bounds.
    """
    if match := _RENDERED.fullmatch(text):
        kid, time_unix_ms, nonce, span_id, mac = match.groups()
        return trusted(
            kid,
            int(time_unix_ms),
            a2b_base64(nonce),
            None if span_id is None else a2b_base64(span_id),
            None if mac is None else a2b_base64(mac),
        )
    try:
        members = parse_dictionary(text, max_length=MAX_STAMP_LENGTH)
    except StructuredFieldError as e:
        message = f"stamp: {e}"
        raise StampError(message) from e
    return Stamp(
        version=_member(members, "v", int),
        kid=_member(members, "kid", str),
        time_unix_ms=_member(members, "t", int),
        nonce=_member(members, "n", bytes),
        span_id=_member(members, "s", bytes) if "s" in members else None,
        mac=_member(members, "mac", bytes) if "mac" in members else None,
    )


def judge(
    stamp_header: str | None, digest_header: str | None, actual_hash: str | None
) -> tuple[str, Stamp | None, str | None]:
    """What a callee can say of a request: one of `names.STAMP_STATUSES`, the stamp, and the hash that the digest promises.

    Stamp and hash are None where they are not there, or cannot be read. `actual_hash` is None where the body was not read to its
    end: then nothing is claimed about the digest's truth. A digest without a stamp is somebody else's header, and says nothing
    about the caller.
    """
    if stamp_header is None:
        return STAMP_ABSENT, None, None
    try:
        stamp = parse(stamp_header)
    except StampError:
        return STAMP_MALFORMED, None, None
    if digest_header is not None and actual_hash is not None and digest_header == render_content_digest(actual_hash):
        promised: str | None = actual_hash  # as nearly always: no need to read it
    else:
        try:
            promised = None if digest_header is None else parse_content_digest(digest_header)
        except DigestError:
            return STAMP_MALFORMED, stamp, None
        if promised is not None and actual_hash is not None and promised != actual_hash:
            return STAMP_MISMATCHED, stamp, promised
    return STAMP_UNSIGNED if stamp.mac is None else STAMP_SIGNED, stamp, promised


def _member(members: dict[str, Value], key: str, kind: type[_T]) -> _T:
    value = members.get(key)
    if not isinstance(value, kind):
        message = f"stamp: {key} must be there as {kind.__name__}"
        raise StampError(message)
    return value


def _utf8_length(text: str) -> int:
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as e:
        raise StampError("a kid with a lone surrogate") from e

"""The stamp: who says that it made a call, when, and a nonce that makes the call unique.

On the wire an RFC 9651 dictionary: `v=1, kid="checkout", t=1763859600123, n=:<12 random bytes>:`. Pure: time and
randomness are arguments. Unknown keys and parameters are ignored, as the RFC demands, so that later versions can add
`mac` without breaking earlier readers.
"""

from dataclasses import dataclass
from typing import Final, TypeVar

from provenance.digest import DigestError, parse_content_digest
from provenance.names import STAMP_ABSENT, STAMP_MALFORMED, STAMP_MISMATCHED, STAMP_UNSIGNED
from provenance.structured import StructuredFieldError, Value, parse_dictionary, render_bytes, render_string

STAMP_VERSION: Final = 1
NONCE_BYTES: Final = 12
MAX_KID_BYTES: Final = 255
"""UTF-8 bytes of a kid: more than a DNS name has, and three times as many still fit a stamp."""

MAX_STAMP_LENGTH: Final = 1024
"""Characters of a stamp that are read; metadata is limited to 8 kB in all."""

_T = TypeVar("_T", int, str, bytes)
_MAX_INTEGER: Final = 999_999_999_999_999  # RFC 9651 section 3.3.1


class StampError(ValueError):
    """A stamp that cannot be read, or values that no stamp can carry."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the caller says about one call; every `Stamp` that exists can be rendered.

    Attributes:
        version: Always 1.
        kid: Whose key made the stamp; unsigned stamps name the calling service alone. 1 to 255 bytes of UTF-8.
        time_unix_ms: When the caller made it, by the caller's clock.
        nonce: 12 random bytes.

    Raises:
        StampError: A value out of these bounds.
    """

    version: int
    kid: str
    time_unix_ms: int
    nonce: bytes

    def __post_init__(self) -> None:
        if self.version != STAMP_VERSION:
            message = f"stamp version {self.version}, expected {STAMP_VERSION}"
            raise StampError(message)
        if not 0 < _utf8_length(self.kid) <= MAX_KID_BYTES:
            message = f"a kid has 1 to {MAX_KID_BYTES} bytes of UTF-8"
            raise StampError(message)
        if not 0 <= self.time_unix_ms <= _MAX_INTEGER:
            raise StampError("a stamp's time has up to 15 digits and no sign")
        if len(self.nonce) != NONCE_BYTES:
            message = f"a nonce of {len(self.nonce)} bytes, expected {NONCE_BYTES}"
            raise StampError(message)


def make_kid(service_name: str) -> str:
    """The service's name as a kid: cut to what a stamp carries, never empty, no lone surrogates."""
    raw = service_name.encode(errors="replace")[:MAX_KID_BYTES]
    return raw.decode(errors="ignore") or "unknown_service"


def render(stamp: Stamp) -> str:
    """The header's value."""
    return f"v={stamp.version}, kid={render_string(stamp.kid)}, t={stamp.time_unix_ms}, n={render_bytes(stamp.nonce)}"


def parse(text: str) -> Stamp:
    """Read a stamp.

    Raises:
        StampError: Not a dictionary, too long, or v, kid, t or n missing, of another type, or out of bounds.
    """
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
    )


def judge(stamp_header: str | None, digest_header: str | None, actual_hash: str | None) -> tuple[str, Stamp | None]:
    """What a callee can say of a request: one of `names.STAMP_STATUSES`, and the stamp where it could be read.

    `actual_hash` is None where the body was not read to its end: then nothing is claimed about `digest_header`'s truth.
    A digest without a stamp is somebody else's header, and says nothing about the caller.
    """
    if stamp_header is None:
        return STAMP_ABSENT, None
    try:
        stamp = parse(stamp_header)
    except StampError:
        return STAMP_MALFORMED, None
    try:
        promised = None if digest_header is None else parse_content_digest(digest_header)
    except DigestError:
        return STAMP_MALFORMED, stamp
    if promised is not None and actual_hash is not None and promised != actual_hash:
        return STAMP_MISMATCHED, stamp
    return STAMP_UNSIGNED, stamp


def _member(members: dict[str, Value], key: str, kind: type[_T]) -> _T:
    value = members.get(key)
    if not isinstance(value, kind):
        message = f"stamp: {key} must be there as {kind.__name__}"
        raise StampError(message)
    return value


def _utf8_length(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as e:
        raise StampError("a kid with a lone surrogate") from e

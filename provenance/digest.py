"""The request hash, and the RFC 9530 `content-digest` header that carries it.

Pure: bytes and strings in, values out. A hash is lowercase hex everywhere but in the header, which wants base64.
"""

import hashlib
import re
from binascii import a2b_base64, b2a_base64
from typing import Final

from provenance.structured import StructuredFieldError, parse_dictionary

MAX_CONTENT_DIGEST_LENGTH: Final = 1024
"""Characters of a `content-digest` that are read: every registered algorithm at once needs about 300."""

_ALGORITHM: Final = "sha-256"
_SHA256_BYTES: Final = 32
_RENDERED: Final = re.compile(r"sha-256=:([A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=):")
"""A digest as `render_content_digest` writes it: read at a glance, because every call has one."""


class DigestError(ValueError):
    """A `content-digest` header that cannot be read."""


class RunningHash:
    """SHA-256 over a body that arrives in pieces; `size` counts its bytes."""

    __slots__ = ("_sha256", "size")

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256(usedforsecurity=False)
        self.size = 0

    def update(self, piece: bytes) -> None:
        """Take in the next piece."""
        self._sha256.update(piece)
        self.size += len(piece)

    def hexdigest(self) -> str:
        """The hash of everything so far."""
        return self._sha256.hexdigest()


class StreamHash:
    """SHA-256 over a stream of messages, each with its length before it: `size` counts the messages' bytes alone.

    The length is gRPC's own, four bytes, most significant first: so two messages never hash as their concatenation.
    """

    __slots__ = ("_sha256", "size")

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256(usedforsecurity=False)
        self.size = 0

    def update(self, message: bytes) -> None:
        """Take in the next message."""
        self._sha256.update(len(message).to_bytes(4, "big"))
        self._sha256.update(message)
        self.size += len(message)

    def hexdigest(self) -> str:
        """The hash of every message so far."""
        return self._sha256.hexdigest()


def request_hash(body: bytes) -> str:
    """SHA-256 of the body, lowercase hex."""
    return hashlib.sha256(body, usedforsecurity=False).hexdigest()


EMPTY_HASH: Final = request_hash(b"")
"""What a request without a body hashes to."""


def render_content_digest(hash_hex: str) -> str:
    """The header's value for one request hash: `sha-256=:<base64>:`."""
    return f"{_ALGORITHM}=:{b2a_base64(bytes.fromhex(hash_hex), newline=False).decode()}:"


def parse_content_digest(text: str) -> str | None:
    """The SHA-256 in a `content-digest` as lowercase hex; None where the header only has other algorithms.

    Raises:
        DigestError: Not a dictionary, too long, or a `sha-256` that is no 32-byte sequence.
    """
    if match := _RENDERED.fullmatch(text):
        return a2b_base64(match[1]).hex()
    try:
        members = parse_dictionary(text, max_length=MAX_CONTENT_DIGEST_LENGTH)
    except StructuredFieldError as e:
        message = f"content-digest: {e}"
        raise DigestError(message) from e
    value = members.get(_ALGORITHM)
    if value is None:
        return None
    if not isinstance(value, bytes) or len(value) != _SHA256_BYTES:
        message = f"content-digest: {_ALGORITHM} must be a byte sequence of {_SHA256_BYTES} bytes"
        raise DigestError(message)
    return value.hex()

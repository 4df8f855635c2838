"""What telemetry says of hashes: as they are, or keyed, so that nobody guesses a short body from what was recorded of it.

`PROVENANCE_HASH=keyed` keys them with the newest key of the name `hashes` (`provenance keys new hashes`), which every service and
whoever verifies have, and nobody else who reads telemetry:

- instead of the request hash there is HMAC(key, "hash", nonce, SHA-256): both sides of a call record the same, and two calls with one
  body do not. In an attribute of its own, because sides with two versions of the key differ, and nothing was tampered with;
- the hash of the signed text, which covers the body's digest and would tell it to whoever guesses, is sealed: XOR HMAC(key, "text",
  nonce, MAC). Who has the key opens it and verifies the MAC as ever.

Which key it was stands beside them. Without one neither hash is recorded: a secret that was asked for is kept. On the wire nothing
changes. Pure, but for `current_recording`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from provenance import names
from provenance.faults import report
from provenance.keys import HMAC, Key, KeysError
from provenance.packing import recorded
from provenance.signing import HASH_SERVICE, hash_key

ENVIRONMENT: Final = "PROVENANCE_HASH"
PLACE: Final = "keys.hashes"


@dataclass(frozen=True, slots=True)
class Recording:
    """How hashes are recorded; keyed without a key: not at all."""

    is_keyed: bool = False
    key: Key | None = None

    def add_request(self, attributes: dict[str, str | int], nonce: bytes, hash_hex: str, size: int) -> None:
        """Add the attributes of a request's hash; the nonce is empty where the call brought no stamp."""
        attributes[names.REQUEST_SIZE] = size
        if not self.is_keyed:
            attributes[names.REQUEST_HASH] = hash_hex
        elif self.key is not None:
            attributes[names.KEYED_HASH] = self.key.sign(b"hash" + nonce + bytes.fromhex(hash_hex)).hex()
            attributes[names.HASH_KEY] = self.key.kid

    def add_text(self, attributes: dict[str, str | int], nonce: bytes, mac: bytes, text_hash: bytes) -> None:
        """Add the attributes of the signed text's hash."""
        if not self.is_keyed:
            attributes[names.STAMP_TEXT_HASH] = text_hash.hex()
        elif self.key is not None:
            attributes[names.STAMP_TEXT_HASH] = sealed(self.key, nonce, mac, text_hash).hex()
            attributes[names.HASH_KEY] = self.key.kid


class Signer(Protocol):
    """A key, as far as it seals."""

    def sign(self, message: bytes) -> bytes:
        """The MAC."""


PLAIN: Final = Recording()


def sealed(key: Signer, nonce: bytes, mac: bytes, text_hash: bytes) -> bytes:
    """Sealed where it was open, and open where it was sealed."""
    pad = key.sign(b"text" + nonce + mac)
    return bytes(a ^ b for a, b in zip(text_hash, pad, strict=False))


def late_request(span_attributes: Mapping[str, Any] | None, hash_hex: str, size: int) -> dict[str, str | int]:
    """The attributes of a hash that is known once the body went by; the span has its stamp already."""
    nonce = recorded(span_attributes, names.STAMP_NONCE) if _is_keyed else None
    attributes: dict[str, str | int] = {}
    current_recording().add_request(attributes, bytes.fromhex(nonce or ""), hash_hex, size)
    return attributes


_is_keyed = False


class HashModeError(ValueError):
    """A setting that cannot be used: raised where the service starts, because what is recorded cannot be taken back."""


def record_as_the_environment_says() -> None:
    """Key the recorded hashes if `PROVENANCE_HASH` says so; raises HashModeError where it says something else."""
    global _is_keyed  # noqa: PLW0603  (one process, one way to record)
    asked = os.environ.get(ENVIRONMENT, "").strip().lower() or "plain"
    if asked not in {"plain", "keyed"}:
        message = f"{ENVIRONMENT}={asked!r}: expected plain or keyed"
        raise HashModeError(message)
    _is_keyed = asked == "keyed"


def current_recording() -> Recording:
    """How this process records hashes now."""
    if not _is_keyed:
        return PLAIN
    key = hash_key()
    if key is None or key.algorithm != HMAC:
        message = f"{ENVIRONMENT}=keyed, and no HMAC key of {HASH_SERVICE!r}: hashes are not recorded; try: provenance keys new {HASH_SERVICE}"
        report(PLACE, KeysError(message))
        key = None
    return Recording(is_keyed=True, key=key)

"""Keys that sign stamps, read from a JSON Web Key Set (RFC 7517): HMAC-SHA-256 (`oct`) and Ed25519 (`OKP`, RFC 8037).

A key's id is `service/version`, as in `checkout/3`: whose key it is, and which of that service's keys. A service signs with
the newest version that it can sign with; every version verifies as long as it is in the set. Pure: text in, keys out.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from provenance.stamp import MAX_KID_BYTES

HMAC: Final = "HS256"
ED25519: Final = "EdDSA"
ALGORITHMS: Final = (HMAC, ED25519)

MIN_SECRET_BYTES: Final = 32
"""Of an HMAC key: RFC 7518 section 3.2 wants no fewer than the hash has."""

_BLOCK_BYTES: Final = 64
_ED25519_BYTES: Final = 32
_KID: Final = re.compile(r"(.+)/([1-9][0-9]{0,8})", re.DOTALL)
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")


class KeysError(ValueError):
    """A key set that cannot be used: which key, and what is wrong with it."""


class Key(Protocol):
    """One key: `sign` raises KeysError where there is only the public half."""

    @property
    def kid(self) -> str:
        """The key's id, `service/version`."""

    @property
    def algorithm(self) -> str:
        """One of `ALGORITHMS`."""

    @property
    def can_sign(self) -> bool:
        """Whether the secret half is here."""

    def sign(self, message: bytes) -> bytes:
        """The MAC or signature."""

    def verify(self, message: bytes, mac: bytes) -> bool:
        """Whether the MAC or signature is this key's, compared in constant time."""


class HmacKey:
    """HMAC-SHA-256 (RFC 2104), the hashes of both pads made once: a third of what `hmac.digest` takes for a short message."""

    algorithm: Final = HMAC
    can_sign: Final = True

    def __init__(self, kid: str, secret: bytes) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            message = f"key {kid!r}: a secret of {len(secret)} bytes, at least {MIN_SECRET_BYTES} are needed"
            raise KeysError(message)
        self.kid = kid
        self.secret = secret
        block = (hashlib.sha256(secret).digest() if len(secret) > _BLOCK_BYTES else secret).ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(b ^ 0x36 for b in block))
        self._outer = hashlib.sha256(bytes(b ^ 0x5C for b in block))

    def sign(self, message: bytes) -> bytes:
        """32 bytes."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()

    def verify(self, message: bytes, mac: bytes) -> bool:
        """Whether the MAC is this key's."""
        return hmac.compare_digest(self.sign(message), mac)


class Ed25519Key:
    """Ed25519 (RFC 8032); needs the package `cryptography`."""

    algorithm: Final = ED25519

    def __init__(self, kid: str, public: bytes, private: bytes | None = None) -> None:
        try:
            from cryptography.hazmat.primitives.asymmetric import ed25519
        except ModuleNotFoundError as e:
            message = (
                f"key {kid!r}: Ed25519 needs the package cryptography; try: pip install 'mesh-provenance[signing]'"
            )
            raise KeysError(message) from e
        if len(public) != _ED25519_BYTES or len(private or public) != _ED25519_BYTES:
            message = f"key {kid!r}: x and d of an Ed25519 key have {_ED25519_BYTES} bytes"
            raise KeysError(message)
        self.kid = kid
        self.public = public
        self.private = private
        self._verifier = ed25519.Ed25519PublicKey.from_public_bytes(public)
        self._signer = None if private is None else ed25519.Ed25519PrivateKey.from_private_bytes(private)
        if self._signer is not None and self._signer.public_key().public_bytes_raw() != public:
            message = f"key {kid!r}: d is not the secret half of x"
            raise KeysError(message)

    @property
    def can_sign(self) -> bool:
        """Whether the secret half is here."""
        return self._signer is not None

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        if self._signer is None:
            error = f"key {self.kid!r} has no secret half: it verifies, it cannot sign"
            raise KeysError(error)
        return self._signer.sign(message)

    def verify(self, message: bytes, mac: bytes) -> bool:
        """Whether the signature is this key's."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._verifier.verify(mac, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class KeySet:
    """Keys by id, in the order in which they were read."""

    by_kid: Mapping[str, Key]

    @staticmethod
    def of(keys: Iterable[Key]) -> "KeySet":
        """A set of these; raises KeysError where two have one id."""
        by_kid: dict[str, Key] = {}
        for key in keys:
            if key.kid in by_kid:
                message = f"key {key.kid!r} is there twice"
                raise KeysError(message)
            by_kid[key.kid] = key
        return KeySet(by_kid)

    def signing_key(self, service: str) -> Key | None:
        """The newest key of this service that can sign."""
        own = [key for key in self.by_kid.values() if key.can_sign and service_of(key.kid) == service]
        return max(own, key=lambda key: version_of(key.kid), default=None)

    def newest_version(self, service: str) -> int:
        """The highest version that a key of this service has; 0 where it has none."""
        return max((version_of(kid) for kid in self.by_kid if service_of(kid) == service), default=0)


def make_key_id(service: str, version: int) -> str:
    """`service/version`; raises KeysError where a stamp could not carry it."""
    kid = f"{service}/{version}"
    try:
        length = len(kid.encode())
    except UnicodeEncodeError as e:
        message = f"service {service!r}: a lone surrogate cannot be written"
        raise KeysError(message) from e
    if not service or length > MAX_KID_BYTES:
        message = f"service {service!r}: with its version a name has 3 to {MAX_KID_BYTES} bytes of UTF-8"
        raise KeysError(message)
    return kid


def service_of(kid: str) -> str:
    """Whose key it is; an unsigned stamp's kid is the service's name alone."""
    match = _KID.fullmatch(kid)
    return kid if match is None else match[1]


def version_of(kid: str) -> int:
    """Which of the service's keys."""
    match = _KID.fullmatch(kid)
    return 0 if match is None else int(match[2])


def new_key(service: str, version: int, algorithm: str) -> Key:
    """A fresh random key."""
    kid = make_key_id(service, version)
    if algorithm == HMAC:
        return HmacKey(kid, secrets.token_bytes(MIN_SECRET_BYTES))
    Ed25519Key(kid, bytes(_ED25519_BYTES))  # says what is missing where it cannot be made
    from cryptography.hazmat.primitives.asymmetric import ed25519

    private = ed25519.Ed25519PrivateKey.generate()
    return Ed25519Key(kid, private.public_key().public_bytes_raw(), private.private_bytes_raw())


def parse_key_set(text: str) -> KeySet:
    """The keys of a JWKS.

    Raises:
        KeysError: Not a JWKS, or a key in it that is not one of ours: its place, what was expected.
    """
    try:
        document = json.loads(text)
    except ValueError as e:
        message = f"not JSON: {e}"
        raise KeysError(message) from e
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise KeysError('not a JWKS: expected {"keys": [...]}')
    return KeySet.of(_parse_key(entry, at) for at, entry in enumerate(entries))


def render_key_set(keys: KeySet, *, public: bool = False) -> str:
    """The JWKS; `public`: without any secret, and so without HMAC keys."""
    shown = [key for key in keys.by_kid.values() if not public or key.algorithm != HMAC]
    return json.dumps({"keys": [_as_jwk(key, public=public) for key in shown]}, indent=2) + "\n"


def _parse_key(entry: Any, at: int) -> Key:
    if not isinstance(entry, dict):
        message = f"keys[{at}]: expected an object"
        raise KeysError(message)
    kid = entry.get("kid")
    if not isinstance(kid, str) or _KID.fullmatch(kid) is None:
        message = f'keys[{at}]: kid {kid!r}, expected "service/version" with a version from 1'
        raise KeysError(message)
    make_key_id(service_of(kid), version_of(kid))
    match entry.get("kty"), entry.get("crv"):
        case "oct", _:
            return HmacKey(kid, _member(entry, "k", kid))
        case "OKP", "Ed25519":
            return Ed25519Key(kid, _member(entry, "x", kid), _member(entry, "d", kid) if "d" in entry else None)
        case kty, crv:
            message = f"key {kid!r}: kty {kty!r} with crv {crv!r}; expected oct, or OKP with Ed25519"
            raise KeysError(message)


def _member(entry: Mapping[str, Any], name: str, kid: str) -> bytes:
    value = entry.get(name)
    if not isinstance(value, str) or _BASE64URL.fullmatch(value) is None:
        message = f"key {kid!r}: {name} must be there, in base64url without padding"
        raise KeysError(message)
    try:
        return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
    except binascii.Error as e:
        message = f"key {kid!r}: {name} is not base64url"
        raise KeysError(message) from e


def _as_jwk(key: Key, *, public: bool) -> dict[str, str]:
    common = {"kid": key.kid, "use": "sig", "alg": key.algorithm}
    if isinstance(key, Ed25519Key):
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": _base64url(key.public)} | common
        return jwk if public or key.private is None else jwk | {"d": _base64url(key.private)}
    if isinstance(key, HmacKey):
        return {"kty": "oct", "k": _base64url(key.secret)} | common
    raise TypeError(type(key))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")

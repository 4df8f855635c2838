"""Who may send and who may ask: bearer tokens from files, and what a port must have before it leaves loopback.

| what | needs |
|---|---|
| OTLP, on both ports | a token of --write-token-file, where that is given |
| /healthz, /readyz | nothing: kubelets have no token, and learn nothing but that the collector runs |
| everything else of the HTTP port: /api/*, /metrics, and paths that there are none | a token of --read-token-file |

A token for one is no token for the other. Tokens are compared by their digests and in constant time, and with all of
their list: neither lengths nor how much of one was right can be measured.
"""

import hashlib
import hmac
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from collector.errors import ConfigError
from collector.receiver.hosts import is_loopback
from collector.receiver.watched import Watched, read_secret, warn_if_public
from collector.settings import Settings

Permission = Literal["write", "read"]

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
MIN_TOKEN_CHARACTERS: Final = 16
"""Whatever is shorter can be tried out. `openssl rand -base64 32` gives 44."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""RFC 6750, section 2.1: b64token."""

_MAX_TOKENS: Final = 100

_HOW: Final[dict[Permission, str]] = {
    "write": "to send here takes a token: set OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20TOKEN",
    "read": "to ask here takes a token: set PROVENANCE_READ_TOKEN_FILE, or send Authorization: Bearer TOKEN",
}
_FOR: Final[dict[Permission, str]] = {"write": "sending", "read": "asking"}

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The SHA-256 digests of tokens: what a memory dump or a log of this object shows cannot be sent."""

    digests: tuple[bytes, ...]

    def know(self, digest: bytes) -> bool:
        """Whether a token with this digest is one of them; always as many comparisons as there are tokens."""
        known = False
        for own in self.digests:
            known |= hmac.compare_digest(own, digest)
        return known


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served: without a token that is known here, or with one for something else."""

    reason: Literal["unauthenticated", "forbidden"]
    message: str


class Credentials:
    """The tokens in use. `refresh` looks whether their files have changed; call it every now and then."""

    def __init__(self, *, write_token_file: Path | None = None, read_token_file: Path | None = None) -> None:
        """Read the files; raises ConfigError that names the flag."""
        files: dict[Permission, Path | None] = {"write": write_token_file, "read": read_token_file}
        self._tokens: dict[Permission, Watched[Tokens]] = {
            permission: _watched(path, permission) for permission, path in files.items() if path is not None
        }
        self._check_apart()

    @property
    def watched(self) -> Sequence[Watched[Tokens]]:
        """The files, as far as there are any."""
        return tuple(self._tokens.values())

    def refresh(self) -> None:
        """Read the files again that have changed."""
        changed = [tokens.refresh() for tokens in self._tokens.values()]
        if any(changed):
            try:
                self._check_apart()
            except ConfigError as e:
                _log.error("%s", e)

    def requires(self, permission: Permission) -> bool:
        """Whether this takes a token at all."""
        return permission in self._tokens

    def refusal(self, permission: Permission, headers: Sequence[str | bytes]) -> Refusal | None:
        """Why the Authorization headers of a request do not permit this; None when they do."""
        if permission not in self._tokens:
            return None
        token = _bearer(headers)
        if token is None:
            return Refusal("unauthenticated", _HOW[permission])
        digest = hashlib.sha256(token).digest()
        held = {p for p, tokens in self._tokens.items() if tokens.value.know(digest)}
        if permission in held:
            return None
        if held:
            return Refusal("forbidden", f"this token is for {_FOR[held.pop()]}, not for {_FOR[permission]}")
        return Refusal("unauthenticated", "this token is not known here: was it replaced?")

    def _check_apart(self) -> None:
        values = [set(tokens.value.digests) for tokens in self._tokens.values()]
        if len(values) == 2 and values[0] & values[1]:
            raise ConfigError("--write-token-file and --read-token-file share a token: a sender could then read all")


def needed(path: str) -> Permission | None:
    """What a path of the HTTP port takes. Paths that nobody serves take a token too: their list is nobody's business."""
    if path in OPEN_PATHS:
        return None
    return "write" if path.startswith("/v1/") else "read"


def parse_tokens(text: str, name: str) -> Tokens:
    """The tokens of a file, one a line, without blank lines and # comments; raises ConfigError, which never quotes one."""
    digests: list[bytes] = []
    for number, line in enumerate(text.splitlines(), start=1):
        token = line.strip()
        if not token or token.startswith("#"):
            continue
        if not _TOKEN.fullmatch(token):
            raise ConfigError(f"{name}, line {number}: a token has letters, digits and -._~+/= alone (RFC 6750)")
        if len(token) < MIN_TOKEN_CHARACTERS:
            raise ConfigError(
                f"{name}, line {number}: shorter than {MIN_TOKEN_CHARACTERS} characters; try: openssl rand -base64 32"
            )
        digests.append(hashlib.sha256(token.encode()).digest())
    if not digests:
        raise ConfigError(f"{name}: no token in it; write one a line: openssl rand -base64 32")
    if len(digests) > _MAX_TOKENS:
        raise ConfigError(f"{name}: {len(digests)} tokens, at most {_MAX_TOKENS} are compared with each request")
    return Tokens(tuple(digests))


def missing_protection(settings: Settings) -> tuple[str, ...]:
    """The flags that listening on `settings.host` lacks: beyond loopback, TLS and a credential for each way in."""
    if is_loopback(settings.host):
        return ()
    missing = [] if settings.tls_cert else ["--tls-cert", "--tls-key"]
    if not settings.tls_client_ca:
        missing += [] if settings.write_token_file else ["--write-token-file"]
        missing += [] if settings.read_token_file else ["--read-token-file"]
    return tuple(missing)


def check_protection(settings: Settings) -> None:
    """Raises ConfigError for TLS that is half given, and for a port that would be open to a network without --insecure."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key belong together: give both or none")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise ConfigError(
            "--tls-client-ca asks clients for certificates, which takes TLS: give --tls-cert and --tls-key"
        )
    missing = missing_protection(settings)
    if missing and not settings.insecure:
        instead = "" if settings.tls_client_ca else " (--tls-client-ca stands for both token files)"
        raise ConfigError(
            f"--host {settings.host} can be reached from other machines: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing{instead}; bind to 127.0.0.1, or say --insecure"
        )
    if missing:
        _log.warning("--insecure: whoever reaches %s may use it: %s missing", settings.host, ", ".join(missing))


def _watched(path: Path, permission: Permission) -> Watched[Tokens]:
    flag = f"--{permission}-token-file"
    warn_if_public(path, flag)

    def make() -> Tokens:
        try:
            text = read_secret(path, flag).decode("ascii")
        except UnicodeDecodeError as e:
            raise ConfigError(f"{flag} {path}: not ASCII text") from e
        return parse_tokens(text, f"{flag} {path}")

    return Watched(f"the list of {permission} tokens", [path], make)


def _bearer(headers: Sequence[str | bytes]) -> bytes | None:
    """The token of the one Authorization header; two of them are nobody's."""
    if len(headers) != 1:
        return None
    [header] = headers
    value = header.encode("utf-8", "replace") if isinstance(header, str) else header
    scheme, _, token = value.strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" and token.strip() else None

"""Keys from the transit engine of Vault or OpenBao, read in a background thread: never on the path of a call.

    vault://vault.example:8200/transit/checkout                   https; vault+http:// without TLS, for a listener on this host
    vault://vault.example/eu/transit/checkout,pay=payments/eu     two keys; the second one signs for the service `payments/eu`
    ...?refresh=15                                                seconds between two looks, 60 where nothing is said

Each key is asked for its versions (`GET keys/NAME`), and those that are new are exported (`GET export/hmac-key/NAME/VERSION`, of Ed25519
keys `signing-key`; where that is forbidden, the public half is enough to verify). Version 3 of `checkout` is the key `checkout/3`; one
below `min_decryption_version` is no more. A version signs once everybody has had two looks' time to read it, so that nobody meets a
signature with a key that he has not seen; if it is the only one, at once.

While Vault cannot be asked, the keys that were read last go on; how old they are is logged once a minute at most, and can be asked.
"""

import base64
import binascii
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from opentelemetry.instrumentation.utils import suppress_instrumentation

from provenance.faults import report
from provenance.forks import Lock, in_forked_children
from provenance.keys import Ed25519Key, HmacKey, Key, KeysError, KeySet, make_key_id, service_of

PLACE: Final = "keys.vault"
TOKEN: Final = "VAULT_TOKEN"  # noqa: S105  (the variable's name)
TOKEN_FILE: Final = "VAULT_TOKEN_FILE"  # noqa: S105  (as above)
DEFAULT_REFRESH_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 5.0
TIMEOUT_SECONDS: Final = 5.0
"""Of one request; the first look, which a service waits for as it starts, makes two for each key."""

_SCHEMES: Final = {"vault": "https", "vault+http": "http"}
_ED25519_BYTES: Final = 32
_FORM: Final = "expected vault://HOST:PORT/MOUNT/KEY[=SERVICE][,KEY...][?refresh=SECONDS]"
_KEY_NAME: Final = re.compile(r"\w(?:[\w.-]*\w)?")  # Vault's own GenericNameRegex


@dataclass(frozen=True, slots=True)
class VaultAddress:
    """Where keys are.

    Attributes:
        url: Of the server, `https://host:port`.
        mount: Of the transit engine, as in `transit` or `eu/transit`.
        keys: The names of keys there, and the service that each signs for.
        refresh_seconds: Between two looks.
    """

    url: str
    mount: str
    keys: tuple[tuple[str, str], ...]
    refresh_seconds: float = DEFAULT_REFRESH_SECONDS


class ForbiddenError(Exception):
    """The token's policy does not allow this."""


class Transit(Protocol):
    """What is asked of a transit engine; each raises KeysError where there is no answer, and ForbiddenError."""

    def describe(self, name: str) -> Mapping[str, Any]:
        """The `data` of `GET keys/NAME`."""

    def export(self, kind: str, name: str, version: int) -> str:
        """The key, in base64: `GET export/KIND/NAME/VERSION`."""


def parse_address(text: str) -> VaultAddress:
    """Read `vault://...`; raises KeysError with the form that is expected."""
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname) and parts.port != 0  # a port that is no number raises
    except ValueError:
        parts, has_host = urlsplit(""), False
    mount, _, names = parts.path.strip("/").rpartition("/")
    pairs = [entry.partition("=")[::2] for entry in names.split(",")]
    are_names = all(_KEY_NAME.fullmatch(name) for name in (*mount.split("/"), *(name for name, _ in pairs)))
    if not has_host or parts.scheme not in _SCHEMES or not are_names:
        message = f"{text!r}: {_FORM}"
        raise KeysError(message)
    url = f"{_SCHEMES[parts.scheme]}://{parts.netloc.rpartition('@')[2]}"
    keys = tuple((name, unquote(service) or name) for name, service in pairs)
    return VaultAddress(url, mount, keys, _refresh_seconds(parts.query, text))


def _refresh_seconds(query: str, text: str) -> float:
    options = parse_qs(query, keep_blank_values=True)
    values = options.pop("refresh", [str(DEFAULT_REFRESH_SECONDS)])
    try:
        seconds = float(values[-1])
    except ValueError:
        seconds = 0.0
    if options or not 1 <= seconds < float("inf"):
        message = f"{text!r}: {_FORM}, SECONDS from 1"
        raise KeysError(message)
    return seconds


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a key, and what Vault says of when it was made: another key may have its number one day."""

    created: str
    key: Key

    @property
    def created_unix(self) -> float:
        """Seconds since the Unix epoch: symmetric keys have a number, others a time of RFC 3339; 0 where it cannot be read."""
        try:
            return float(self.created)
        except ValueError:
            pass
        try:
            # Nanoseconds, which `fromisoformat` does not take before Python 3.11, are cut.
            return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", self.created)).timestamp()
        except ValueError:
            return 0.0


Versions = dict[int, Version]


def read_versions(transit: Transit, name: str, service: str, known: Versions) -> Versions:
    """The versions of a key as they are now; those that are `known` are not read again.

    Raises:
        KeysError: No answer, or none that is understood.
        ForbiddenError: Not with this token.
    """
    data = transit.describe(name)
    try:
        is_ed25519 = data["type"] == "ed25519"
        first = int(data.get("min_decryption_version") or 1)
        entries = {int(version): entry for version, entry in data["keys"].items() if int(version) >= first}
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        message = f"key {name!r}: an answer that is not understood: {e!r}"
        raise KeysError(message) from e
    versions: Versions = {}
    for number, entry in entries.items():
        created = str(entry.get("creation_time", "") if isinstance(entry, dict) else entry)
        if number in known and known[number].created == created:
            versions[number] = known[number]
            continue
        kid = make_key_id(service, number)
        key = _ed25519(transit, name, number, kid, entry) if is_ed25519 else _hmac(transit, name, number, kid)
        versions[number] = Version(created, key)
    return versions


def _hmac(transit: Transit, name: str, number: int, kid: str) -> Key:
    return HmacKey(kid, _decoded(transit.export("hmac-key", name, number), name))


def _ed25519(transit: Transit, name: str, number: int, kid: str, entry: Any) -> Key:
    public = _decoded(entry.get("public_key", "") if isinstance(entry, dict) else "", name)
    try:
        # Go's form: the secret half, and the public one after it.
        return Ed25519Key(kid, public, _decoded(transit.export("signing-key", name, number), name)[:_ED25519_BYTES])
    except ForbiddenError:
        return Ed25519Key(kid, public)


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as e:
        message = f"key {name!r}: not in base64"
        raise KeysError(message) from e


class HvacTransit:
    """A transit engine asked through hvac, with the token that is in force now; `close` it."""

    def __init__(self, address: VaultAddress, environ: Mapping[str, str]) -> None:
        try:
            import hvac  # type: ignore[import-untyped]  # it has no types
            import requests
        except ModuleNotFoundError as e:
            raise KeysError("keys from Vault need the package hvac; try: pip install 'mesh-provenance[vault]'") from e
        self._errors = (hvac.exceptions.VaultError, requests.RequestException, ValueError)
        self._forbidden = hvac.exceptions.Forbidden
        self._address = address
        self._client = hvac.Client(
            url=address.url,
            token=token_of(environ),
            timeout=TIMEOUT_SECONDS,
            namespace=environ.get("VAULT_NAMESPACE") or None,
        )

    def close(self) -> None:
        """Let its connections go."""
        self._client.adapter.close()

    def describe(self, name: str) -> Mapping[str, Any]:
        """Its type and versions."""
        return self._data(lambda transit, mount: transit.read_key(name, mount_point=mount))

    def export(self, kind: str, name: str, version: int) -> str:
        """One version of it, in base64."""
        data = self._data(lambda transit, mount: transit.export_key(name, kind, str(version), mount_point=mount))
        key = data.get("keys", {}).get(str(version))
        if not isinstance(key, str) or not key:
            message = f"key {name!r}: the answer has no {kind} of version {version}"
            raise KeysError(message)
        return key

    def _data(self, ask: Callable[[Any, str], Any]) -> Mapping[str, Any]:
        try:
            answer = ask(self._client.secrets.transit, self._address.mount)
        except self._forbidden as e:
            message = f"{self._address.url}: {e}; the token needs `read` on {self._address.mount}/keys/NAME and {self._address.mount}/export/KIND/NAME/*"
            raise ForbiddenError(message) from e
        except self._errors as e:
            message = f"{self._address.url}: {e}"
            raise KeysError(message) from e
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, dict):
            message = f"{self._address.url}: an answer without data"
            raise KeysError(message)
        return data


def token_of(environ: Mapping[str, str]) -> str | None:
    """`VAULT_TOKEN`, else what the file has that `VAULT_TOKEN_FILE` names: an agent writes it anew, so it is read every time.

    None: hvac looks where Vault's own command does, in `~/.vault-token`. Raises KeysError where the file cannot be read.
    """
    if token := environ.get(TOKEN, "").strip():
        return token
    if not (path := environ.get(TOKEN_FILE, "").strip()):
        return None
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as e:
        message = f"{TOKEN_FILE}={path}: {e}"
        raise KeysError(message) from e


def read_now(address: VaultAddress) -> KeySet:
    """Every key as it is now, once; raises KeysError where one cannot be read."""
    versions: dict[str, Versions] = {}
    if errors := _read_all(address, versions):
        raise KeysError("; ".join(errors))
    return _key_set(versions)


def _read_all(address: VaultAddress, versions: dict[str, Versions]) -> list[str]:
    """Bring `versions`, by the keys' names, up to date; what could not be read stays as it was, and is told."""
    with suppress_instrumentation():  # asking for keys must not ask for keys, nor leave spans
        try:
            transit = HvacTransit(address, os.environ)
        except KeysError as error:
            return [str(error)]
        errors = []
        try:
            for name, service in address.keys:
                try:
                    versions[name] = read_versions(transit, name, service, versions.get(name, {}))
                except (KeysError, ForbiddenError) as error:
                    errors.append(f"{name}: {error}")
        finally:
            transit.close()
        return errors


def _key_set(versions: Mapping[str, Versions]) -> KeySet:
    return KeySet.of(each.key for own in versions.values() for each in own.values())


def signing_keys(versions: Mapping[str, Versions], *, now: float, ripe_seconds: float) -> dict[str, Key]:
    """The key that each service signs with: the newest that is old enough, and where none is, the oldest.

    `now` in seconds since the Unix epoch.
    """
    chosen: dict[str, Key] = {}
    for own in versions.values():
        able = [each for _, each in sorted(own.items()) if each.key.can_sign]
        if able:
            ripe = [each for each in able if each.created_unix + ripe_seconds <= now]
            key = (ripe[-1] if ripe else able[0]).key
            chosen[service_of(key.kid)] = key
    return chosen


@dataclass(slots=True, weakref_slot=True)
class VaultKeys:
    """The keys of a Vault, as they were at the last look; a daemon thread looks again, in forked children too."""

    address: VaultAddress
    keys: KeySet = field(default_factory=lambda: KeySet({}))
    _versions: dict[str, Versions] = field(default_factory=dict)
    _signing: dict[str, Key] = field(default_factory=dict)
    _read_at: float = field(default_factory=time.monotonic)
    _was_read: bool = False
    _lock: Lock = field(default_factory=Lock)
    _wake: threading.Event = field(default_factory=threading.Event)
    _closed: bool = False

    @staticmethod
    def begin(address: VaultAddress) -> "VaultKeys":
        """Look once, so that the very first call is signed, and go on looking."""
        keys = VaultKeys(address)
        keys.look()
        keys.go_on()
        known = weakref.ref(keys)

        def in_child() -> None:
            if (mine := known()) is not None:
                mine.go_on()

        in_forked_children(in_child)
        return keys

    def signing_key(self, service: str) -> Key | None:
        """The key that this service signs with now; None where there is none."""
        return self._signing.get(service)

    def verification_key(self, kid: str) -> Key | None:
        """The key with this id; None where there is none."""
        return self.keys.by_kid.get(kid)

    def age_seconds(self) -> float:
        """How long ago every key was read; where they never were, since they were first wanted."""
        return time.monotonic() - self._read_at

    @property
    def was_read(self) -> bool:
        """Whether every key was read at some time."""
        return self._was_read

    def look(self) -> bool:
        """Read what is new; False, and a report, where something could not be read."""
        with self._lock:
            versions = dict(self._versions)
            try:
                errors = _read_all(self.address, versions)
                keys = _key_set(versions)
            except Exception as error:  # noqa: BLE001  (the thread must live: what was read before goes on)
                errors, keys = [repr(error)], self.keys
            else:
                ripe_seconds = 2 * self.address.refresh_seconds
                self._versions, self.keys = versions, keys
                self._signing = signing_keys(versions, now=time.time(), ripe_seconds=ripe_seconds)
            if errors:
                age = (
                    f"what was read {self.age_seconds():.0f} s ago goes on"
                    if self._was_read
                    else "not all was ever read"
                )
                report(PLACE, KeysError(f"{'; '.join(errors)}; {age}"))
                return False
            self._read_at, self._was_read = time.monotonic(), True
            return True

    def go_on(self) -> None:
        """Look again and again, in a daemon thread."""
        if self._closed:
            return
        self._wake = threading.Event()  # in a forked child, that of the parent may be held by a thread that is not here
        threading.Thread(
            target=_keep_looking, args=(weakref.ref(self), self._wake), name="provenance-keys", daemon=True
        ).start()

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        self._wake.set()


def _keep_looking(known: "weakref.ref[VaultKeys]", wake: threading.Event) -> None:
    keys = known()
    good = keys is not None and keys.was_read
    while keys is not None:
        seconds = keys.address.refresh_seconds if good else min(RETRY_SECONDS, keys.address.refresh_seconds)
        keys = None  # nobody who forgets it is kept from it by this thread
        # A tenth either way, or all that were started at once would ask at once for ever.
        if wake.wait(seconds * random.uniform(0.9, 1.1)):  # noqa: S311  (no secret)
            return
        keys = known()
        good = keys is not None and keys.look()

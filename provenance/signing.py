"""Which key this process signs with: from a file that is looked at again once a second, or from Vault by a thread that asks it.

No call waits for the network. What cannot be read or used is reported, and changes nothing: what was read before goes on.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from provenance.faults import report
from provenance.forks import Lock
from provenance.keys import Key, KeysError, KeySet, parse_key_set, service_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.metrics import CallbackOptions, Observation

ENVIRONMENT: Final = "PROVENANCE_KEYS"
"""The variable that names the file, or the Vault, where the program does not."""

AGE_METRIC: Final = "provenance.keys.age"
"""Seconds since the keys were last read, where the program has a meter provider."""

HASH_SERVICE: Final = "hashes"
"""Whose keys the recorded hashes are keyed with. Every service has them, so a stamp that they signed proves nobody."""

VAULT_SCHEMES: Final = ("vault://", "vault+http://")
PLACE: Final = "keys"
LOOK_AGAIN_SECONDS: Final = 1.0


class KeySource(Protocol):
    """Where keys come from; neither of its answers ever waits for the network."""

    def signing_key(self, service: str) -> Key | None:
        """The key that this service signs with now; None where there is none."""

    def verification_key(self, kid: str) -> Key | None:
        """The key with this id; None where there is none."""

    def age_seconds(self) -> float:
        """How long ago all keys were read, or found to be as they were; where they never were, since they were first wanted."""

    def close(self) -> None:
        """It is asked no more."""


class KeyFile:
    """The keys of a JWKS file, as they are now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._read_at = time.monotonic()
        self._seen: tuple[int, int, int] | None = None
        self._is_good = False
        self._look_at = 0.0
        self._signing: dict[str, Key | None] = {}
        self.keys = KeySet({})
        self._look()  # now, or calls that begin while the first of them reads it would go unsigned

    def signing_key(self, service: str) -> Key | None:
        """The newest key of this service; None where the file has none."""
        if time.monotonic() >= self._look_at:
            self._look()
        signing = self._signing
        if service not in signing:
            signing[service] = self.keys.signing_key(service)
        return signing[service]

    def verification_key(self, kid: str) -> Key | None:
        """The key with this id; None where the file has none."""
        if time.monotonic() >= self._look_at:
            self._look()
        return self.keys.by_kid.get(kid)

    def age_seconds(self) -> float:
        """How long ago the file was read, or found to be as it was; where it never was, since it was first wanted."""
        self._look()
        return time.monotonic() - self._read_at

    def close(self) -> None:
        """Nothing is open."""

    def _look(self) -> None:
        with self._lock:
            if time.monotonic() < self._look_at:
                return
            self._look_at = time.monotonic() + LOOK_AGAIN_SECONDS
            try:
                status = os.stat(self.path)  # noqa: PTH116  (a third of Path.stat's time, on the calls' path)
                seen = (status.st_mtime_ns, status.st_size, status.st_ino)
                if seen == self._seen:
                    if self._is_good:
                        self._read_at = time.monotonic()
                    return
                self._seen, self._is_good = seen, False
                self.keys = parse_key_set(self.path.read_text())
                self._signing = {}
                self._is_good, self._read_at = True, time.monotonic()
            except (OSError, UnicodeDecodeError, KeysError) as error:
                report(PLACE, KeysError(f"{self.path}: {error}; what was read before goes on"))


_source: KeySource | None = None
_is_metered = False


def sign_with(where: str | os.PathLike[str] | None) -> None:
    """Sign with the keys of this file, or of this Vault (`vault://HOST/MOUNT/KEY`), from now on; None: not at all.

    Raises:
        KeysError: An address of a Vault that cannot be read. A Vault that does not answer is asked again, as a file is.
    """
    global _source  # noqa: PLW0603  (one process, one set of keys)
    source, replaced = None if where is None else open_keys(where), _source
    _source = source
    if replaced is not None:
        replaced.close()
    if source is not None:
        _meter()


def open_keys(where: str | os.PathLike[str]) -> KeySource:
    """The keys of a file or of a Vault, read once now; raises KeysError as `sign_with`."""
    text = os.fspath(where)
    if not is_vault(text):
        return KeyFile(Path(text))
    from provenance.vault import VaultKeys, parse_address

    return VaultKeys.begin(parse_address(text))


def is_vault(text: str) -> bool:
    """Whether this names a Vault, and not a file."""
    return text.startswith(VAULT_SCHEMES)


def sign_as_the_environment_says() -> None:
    """Sign with the keys that `PROVENANCE_KEYS` names, unless the program named others."""
    if _source is None and (where := os.environ.get(ENVIRONMENT, "").strip()):
        try:
            sign_with(where)
        except KeysError as error:
            report(PLACE, error)


def keys_age_seconds() -> float | None:
    """How long ago the keys in use were read, or found to be as they were; None where none are used."""
    return None if _source is None else _source.age_seconds()


def verification_key(kid: str) -> Key | None:
    """The key with this id, to verify another's stamp with."""
    return None if _source is None or service_of(kid) == HASH_SERVICE else _source.verification_key(kid)


def signing_key(service: str) -> Key | None:
    """The key that this service signs with now."""
    return None if _source is None or service == HASH_SERVICE else _source.signing_key(service)


def hash_key() -> Key | None:
    """The key that recorded hashes are keyed with now."""
    return None if _source is None else _source.signing_key(HASH_SERVICE)


def _meter() -> None:
    """Tell the keys' age as a metric, whatever meter provider there will be; once a process."""
    global _is_metered  # noqa: PLW0603  (an instrument is made once)
    if _is_metered:
        return
    _is_metered = True
    from opentelemetry.metrics import Observation, get_meter

    def observe(_options: "CallbackOptions") -> "Iterable[Observation]":
        age = keys_age_seconds()
        return () if age is None else (Observation(age),)

    get_meter("provenance").create_observable_gauge(
        AGE_METRIC, [observe], "s", "Since the keys that sign were last read."
    )

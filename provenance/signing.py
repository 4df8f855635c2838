"""Which key this process signs with: from a file that is looked at again once a second, and never from the network.

A file that cannot be read or used is reported, and changes nothing: what was read before goes on.
"""

import os
import time
from pathlib import Path
from typing import Final

from provenance.faults import report
from provenance.forks import Lock
from provenance.keys import Key, KeysError, KeySet, parse_key_set

ENVIRONMENT: Final = "PROVENANCE_KEYS"
"""The variable that names the file, where the program does not."""

PLACE: Final = "keys"
LOOK_AGAIN_SECONDS: Final = 1.0


class KeyFile:
    """The keys of a JWKS file, as they are now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._seen: tuple[int, int, int] | None = None
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

    def _look(self) -> None:
        with self._lock:
            if time.monotonic() < self._look_at:
                return
            self._look_at = time.monotonic() + LOOK_AGAIN_SECONDS
            try:
                status = os.stat(self.path)  # noqa: PTH116  (a third of Path.stat's time, on the calls' path)
                seen = (status.st_mtime_ns, status.st_size, status.st_ino)
                if seen == self._seen:
                    return
                self._seen = seen
                self.keys = parse_key_set(self.path.read_text())
                self._signing = {}
            except (OSError, UnicodeDecodeError, KeysError) as error:
                report(PLACE, KeysError(f"{self.path}: {error}; what was read before goes on"))


_file: KeyFile | None = None


def sign_with(path: str | os.PathLike[str] | None) -> None:
    """Sign with the keys of this file from now on; None: not at all."""
    global _file  # noqa: PLW0603  (one process, one set of keys)
    _file = None if path is None else KeyFile(Path(path))


def sign_as_the_environment_says() -> None:
    """Sign with the keys that `PROVENANCE_KEYS` names, unless the program named others."""
    if _file is None and (path := os.environ.get(ENVIRONMENT, "").strip()):
        sign_with(path)


def verification_key(kid: str) -> Key | None:
    """The key with this id, to verify another's stamp with."""
    return None if _file is None else _file.verification_key(kid)


def signing_key(service: str) -> Key | None:
    """The key that this service signs with now."""
    return None if _file is None else _file.signing_key(service)

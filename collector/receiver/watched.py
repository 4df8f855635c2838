"""A value that is made of files, and made again when they change: certificates and tokens rotate without a restart.

A renewal is several writes, and any moment may fall between two of them. So what cannot be made leaves the last good value
in use, says so in the log once a change, and is tried again at the next one.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

from collector.errors import ConfigError

T = TypeVar("T")

_log: Final = logging.getLogger(__name__)

_Signature = tuple[tuple[int, int, int] | None, ...]


class Watched(Generic[T]):
    """The newest good value; `refresh` from one thread, `value` from any.

    Attributes:
        what: For messages: "the certificate".
        problem: Why the files, as they are now, cannot be used; None while they are.
    """

    def __init__(self, what: str, paths: Sequence[Path], make: Callable[[], T]) -> None:
        """Make the first value; raises the ConfigError of `make`."""
        self.what = what
        self.problem: str | None = None
        self._paths = tuple(paths)
        self._make = make
        self._seen = self._signature()
        self._value = make()

    @property
    def value(self) -> T:
        """What the files said when they last made sense."""
        return self._value

    def refresh(self) -> bool:
        """Make the value again if a file has changed; whether there is a new one."""
        before = self._signature()
        if before == self._seen:
            return False
        try:
            value = self._make()
        except ConfigError as e:
            self._seen = before
            self.problem = str(e)
            _log.error("%s; %s that was read before stays in use", e, self.what)
            return False
        if self._signature() != before:
            return False  # it changed while it was read: the next look sees it whole
        self._seen, self._value, self.problem = before, value, None
        _log.info("%s was read again", self.what)
        return True

    def _signature(self) -> _Signature:
        return tuple(_signature(path) for path in self._paths)


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Tells one content of a path from the next; a Kubernetes secret changes by its symbolic link, so by its inode."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_secret(path: Path, flag: str) -> bytes:
    """The file's bytes; raises ConfigError that names the flag."""
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{flag} {path} cannot be read: {e.strerror}") from e


def warn_if_public(path: Path, flag: str) -> None:
    """A secret that every user of the machine may read is none; groups are how Kubernetes hands secrets out."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # whoever reads it says so
    if mode & 0o004:
        _log.warning("%s %s can be read by every user of this machine: chmod o-r it", flag, path)

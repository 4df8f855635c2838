"""What the shells of HTTP share about bodies: hashing one that passes by, and a response's size by its own word."""

from typing import Final

from provenance.digest import RunningHash
from provenance.faults import Contained

Piece = bytes | bytearray | memoryview | str

_NO_BODY_STATUSES: Final = frozenset({204, 304})


class PassingHash:
    """The hash of a body that passes by piece by piece, contained: a piece that cannot be hashed costs the hash alone."""

    def __init__(self, place: str) -> None:
        self._place = place
        self.complete: RunningHash | None = None
        self.begin()

    def begin(self) -> None:
        """Anew each time: a request that met a closed connection is sent again."""
        self._running, self._intact, self.complete = RunningHash(), True, None

    def take(self, piece: Piece) -> None:
        """Take in the next piece; text is sent as UTF-8."""
        intact, self._intact = self._intact, False  # a piece that cannot be hashed leaves a hash of something else
        with Contained(self._place):
            self._running.update(as_bytes(piece))
            self._intact = intact

    def lose(self) -> None:
        """Something went by unseen."""
        self._intact = False

    def end(self) -> None:
        """The last piece went by."""
        self.complete = self.so_far

    @property
    def so_far(self) -> RunningHash | None:
        """The hash of what went by; None if not all of it could be hashed."""
        return self._running if self._intact else None


def as_bytes(piece: Piece) -> bytes:
    """A piece of a body as the bytes that are sent."""
    if isinstance(piece, bytes):
        return piece
    return piece.encode() if isinstance(piece, str) else bytes(piece)


def response_size(method: str, status: int, length: str | None) -> int | None:
    """By the response's own word, since the span ends before its body is read; None if it does not say."""
    if method == "HEAD" or status in _NO_BODY_STATUSES:
        return 0
    return int(length) if length is not None and length.isascii() and length.isdigit() else None

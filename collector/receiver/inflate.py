"""Compressed bodies, inflated with the limit on what comes out: a megabyte can hold a gibibyte of zeros.

| Content-Encoding | what it is | several one after the other |
|---|---|---|
| `gzip`, `x-gzip` | RFC 1952 | members are joined (section 2.2) |
| `deflate`, `zlib` | RFC 1950; bare RFC 1951 too, for "some non-conformant implementations send" it (RFC 9110, 8.4.1.2) | refused |
| `zstd` | RFC 8878, with a window of at most 8 MiB (RFC 9659) | frames are joined (section 3.1) |

Memory: twice what came out, at most the limit, one step of output, and the decompressor's window.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from collector.errors import DecodeError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    # The standard library's own module, for versions that came before it (PEP 784): bounded output, limited windows.
    from backports import zstd

ENCODINGS: Final = ("gzip", "zstd", "deflate")
"""What is offered to senders; `x-gzip` and `zlib` are other names for two of them."""

MAX_MEMBERS: Final = 4096
"""Members of a gzip body, or frames of a zstd body: each costs a decompressor, whatever little it holds."""

_GZIP: Final = 16 + zlib.MAX_WBITS
_STEP: Final = 1024 * 1024
_INPUT_STEP: Final = 16 * 1024
"""What follows a member's end is handed back as a copy: of a small piece, not of the whole rest."""

_WINDOW_LOG_MAX: Final = 23
"""8 MiB: "recipients ... MUST be able to decode" windows up to this, and senders must not use larger ones (RFC 9659)."""


class TooLargeError(DecodeError):
    """A body that exceeds the limit, as sent or inflated."""


def too_large(limit: int) -> TooLargeError:
    """The error for a body that exceeds `limit` bytes."""
    return TooLargeError(f"the request exceeds {limit} bytes (after decompression): send smaller batches")


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """The contents of a body in this content encoding, one of those that `is_known`.

    Raises:
        TooLargeError: It inflates to more than `limit` bytes.
        DecodeError: It is not what the encoding says, ends early, or goes on after its end.
    """
    return _joined(body, _FORMATS[encoding](body), limit)


def is_known(encoding: str) -> bool:
    """Whether `inflate` knows this content encoding, in lowercase."""
    return encoding in _FORMATS


class _Member(Protocol):
    """One gzip member, zlib stream or zstd frame that is being inflated."""

    @property
    def eof(self) -> bool:
        """Whether its end was reached."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What of the last input lies after its end."""
        ...

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Everything that this input inflates to, at most a step at a time."""
        ...


class _Zlib:
    """zlib's decompressor: what did not fit a step's output is given back, and fed again."""

    __slots__ = ("_inner",)

    def __init__(self, window: int) -> None:
        self._inner = zlib.decompressobj(window)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while True:
            piece = self._inner.decompress(data, _STEP)
            yield piece
            data = self._inner.unconsumed_tail
            if self._inner.eof or not (data or len(piece) == _STEP):
                return


class _Zstd:
    """zstd's decompressor: what did not fit a step's output stays inside it."""

    __slots__ = ("_inner",)

    def __init__(self) -> None:
        self._inner = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX})

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while True:
            yield self._inner.decompress(data, _STEP)
            data = b""
            if self._inner.eof or self._inner.needs_input:
                return


@dataclass(frozen=True, slots=True)
class _Format:
    """A compressed format: its name in messages, how a member begins, and how many may follow each other."""

    name: str
    member: Callable[[], _Member]
    max_members: int


_GZIP_FORMAT: Final = _Format("gzip", lambda: _Zlib(_GZIP), MAX_MEMBERS)
_ZSTD_FORMAT: Final = _Format("zstd", _Zstd, MAX_MEMBERS)
_ZLIB_FORMAT: Final = _Format("deflate", lambda: _Zlib(zlib.MAX_WBITS), 1)
_BARE_FORMAT: Final = _Format("deflate", lambda: _Zlib(-zlib.MAX_WBITS), 1)


def _deflate(body: bytes) -> _Format:
    """By the first two bytes: zlib's are method 8 and a multiple of 31 (RFC 1950, 2.2), which no ordinary bare stream has."""
    is_zlib = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return _ZLIB_FORMAT if is_zlib else _BARE_FORMAT


_FORMATS: Final[dict[str, Callable[[bytes], _Format]]] = {
    "gzip": lambda _: _GZIP_FORMAT,
    "x-gzip": lambda _: _GZIP_FORMAT,
    "zstd": lambda _: _ZSTD_FORMAT,
    "deflate": _deflate,
    "zlib": _deflate,
}


def _joined(body: bytes, form: _Format, limit: int) -> bytes:
    out = _Pieces(limit)
    at = members = 0
    while at < len(body):
        members += 1
        if members > form.max_members:
            what = "goes on after its end" if form.max_members == 1 else f"has more than {form.max_members} members"
            raise DecodeError(f"the {form.name} body {what}, at byte {at}")
        try:
            at = _one(body, at, form, out)
        except (zlib.error, zstd.ZstdError) as error:
            raise DecodeError(f"the body is not {form.name}: {error}") from error
    return b"".join(out.pieces)


class _Pieces:
    """What came out so far. A buffer that grows would be copied from one hole of the heap to the next, each of them resident then."""

    __slots__ = ("_left", "_limit", "pieces")

    def __init__(self, limit: int) -> None:
        self._left = self._limit = limit
        self.pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        """One more. Raises TooLargeError."""
        self._left -= len(piece)
        if self._left < 0:
            raise too_large(self._limit)
        if piece:
            self.pieces.append(piece)


def _one(body: bytes, at: int, form: _Format, out: _Pieces) -> int:
    """Inflate the member that begins at `at`; returns where it ends."""
    member = form.member()
    while at < len(body):
        data = body[at : at + _INPUT_STEP]
        at += len(data)
        for piece in member.pieces(data):
            out.add(piece)
        if member.eof:
            return at - len(member.unused_data)
    raise DecodeError(f"the {form.name} body ends early, after {len(body)} bytes")

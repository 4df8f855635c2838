"""Bytes of a file or of stdin, inflated on the way, never held whole.

A file that ends in the middle of its compression is evidence up to there: what came before is given out, and `cut`
says that something is missing.
"""

import io
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Protocol

from collector.errors import ConfigError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STDIN: Final = "-"

GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"

_PIECE_BYTES: Final = 1024 * 1024
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS


class Stream:
    """Bytes to look at, and to take from the front.

    Attributes:
        name: What the user typed.
        cut: Why it ended before its end; None while nothing is wrong.
    """

    def __init__(self, name: str, raw: IO[bytes]) -> None:
        self.name = name
        self.cut: str | None = None
        self._raw = _Counted(raw)
        self._pieces = self._inflated()
        self._buffer = bytearray()
        self._ended = False

    @property
    def bytes_read(self) -> int:
        """How much of the file was read, as it lies on the disk."""
        return self._raw.count

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, or fewer at the end, without taking them."""
        self._fill(size)
        with memoryview(self._buffer) as view:
            return bytes(view[:size])

    def read(self, size: int) -> bytes:
        """The next `size` bytes, or fewer at the end."""
        taken = self.peek(size)
        del self._buffer[: len(taken)]
        return taken

    def read_line(self, limit: int) -> bytes:
        """The next line with its end, or `limit` bytes of it; nothing at the end."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched >= limit or not self._more():
                return self.read(min(searched, limit))
        return self.read(min(end + 1, limit))

    def read_lines(self, size: int) -> bytes:
        """Whole lines, at most `size` bytes of them; nothing where the next is longer than that, and at the end."""
        self._fill(size + 1)  # one more: whether what is at hand is all
        is_all = self._ended and len(self._buffer) <= size  # the last line may have no end
        return self.read(len(self._buffer) if is_all else self._buffer.rfind(b"\n", 0, size) + 1)

    def peek_line(self, size: int, limit: int) -> bytes:
        """The next `size` bytes, more if the first line needs them, at most `limit`; without taking them."""
        ahead = self.peek(size)
        while b"\n" not in ahead and size < limit and len(ahead) == size:
            size = min(2 * size, limit)
            ahead = self.peek(size)
        return ahead

    def read_some(self) -> bytes:
        """Whatever is at hand, or the next piece; nothing at the end."""
        if not self._buffer:
            self._more()
        return self.read(len(self._buffer))

    def _fill(self, size: int) -> None:
        """Have `size` bytes at hand, or all there are."""
        while len(self._buffer) < size and self._more():
            pass

    def _more(self) -> bool:
        """Append the next piece; False at the end."""
        if not self._ended:
            piece = next(self._pieces, b"")
            self._ended = not piece
            self._buffer += piece
        return not self._ended

    def _inflated(self) -> Iterator[bytes]:
        data = self._raw.read(_PIECE_BYTES)
        if data.startswith(GZIP_MAGIC):
            yield from self._members("gzip", data, lambda: zlib.decompressobj(_GZIP_WINDOW))
        elif data.startswith(ZSTD_MAGIC):
            yield from self._members("zstd", data, _Frame)
        else:
            while data:
                yield data
                data = self._raw.read(_PIECE_BYTES)

    def _members(self, what: str, data: bytes, new: "Callable[[], _Member]") -> Iterator[bytes]:
        """Several in a row are one file, in both formats: `cat a.gz b.gz`; zeros after the last are padding."""
        while data:
            member = new()
            while not member.eof:
                try:
                    piece = member.decompress(data, _PIECE_BYTES)
                except (zlib.error, zstd.ZstdError) as error:
                    self.cut = f"its {what} is broken: {error}"
                    return
                if piece:
                    yield piece
                data = member.unconsumed_tail
                if member.eof or data or len(piece) == _PIECE_BYTES:
                    continue
                data = self._raw.read(_PIECE_BYTES)
                if not data:
                    self.cut = f"its {what} ends early"
                    return
            data = (member.unused_data or self._raw.read(_PIECE_BYTES)).lstrip(b"\0")


class _Member(Protocol):
    """One gzip member or zstd frame that is being inflated."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Frame:
    """zstd's decompressor with zlib's manners: it keeps what did not fit, and is fed nothing until that is out."""

    __slots__ = ("_inner",)

    def __init__(self) -> None:
        self._inner = zstd.ZstdDecompressor()

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def unconsumed_tail(self) -> bytes:
        return b""

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._inner.decompress(data, max_length)


class _Counted:
    """A binary file that knows how much was read."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.count = 0
        self._raw = raw

    def read(self, size: int) -> bytes:
        data = self._raw.read(size)
        self.count += len(data)
        return data


@contextmanager
def open_stream(name: str) -> Iterator[Stream]:
    """The file of this name, or stdin for `-`; raises ConfigError when it cannot be opened."""
    if name == STDIN:
        yield Stream("stdin", sys.stdin.buffer)
        return
    with _opened(name) as raw:
        yield Stream(name, raw)


def _opened(name: str) -> IO[bytes]:
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error


def inflate_message(data: bytes, limit: int) -> bytes:
    """A message that may be compressed on its own, as the Collector's file exporter does; raises ValueError."""
    if not data.startswith((GZIP_MAGIC, ZSTD_MAGIC)):
        return data
    stream = Stream("a message", io.BytesIO(data))
    inflated = stream.peek(limit + 1)
    if stream.cut:
        raise ValueError(stream.cut)
    if len(inflated) > limit:
        raise ValueError(f"it inflates to more than {limit} bytes")
    return inflated

"""Bytes of a file or of stdin, inflated on the way, never held whole.

A file that ends in the middle of its compression is evidence up to there: what came before is given out, and `cut`
says that something is missing.
"""

import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import pyarrow as pa

from collector.errors import ConfigError

STDIN: Final = "-"

GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"

_PIECE_BYTES: Final = 1024 * 1024
_ZSTD_STEP_BYTES: Final = 2048
"""Arrow's stream loses the step in which a file turns out to be cut; smaller steps cost a call each, larger ones lines."""

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
        while len(self._buffer) < size and self._more():
            pass
        return bytes(self._buffer[:size])

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

    def _more(self) -> bool:
        """Append the next piece; False at the end."""
        if not self._ended:
            piece = next(self._pieces, b"")
            self._ended = not piece
            self._buffer += piece
        return not self._ended

    def _inflated(self) -> Iterator[bytes]:
        head = self._raw.read(len(ZSTD_MAGIC))
        self._raw.unread(head)
        if head.startswith(GZIP_MAGIC):
            yield from self._gunzipped()
        elif head == ZSTD_MAGIC:
            yield from self._unzstd()
        else:
            while piece := self._raw.read(_PIECE_BYTES):
                yield piece

    def _gunzipped(self) -> Iterator[bytes]:
        """RFC 1952 allows several members in a row: `cat a.gz b.gz` is a gzip file."""
        rest = self._raw.read(_PIECE_BYTES)
        while rest:
            member = zlib.decompressobj(_GZIP_WINDOW)
            while not member.eof:
                try:
                    piece = member.decompress(rest, _PIECE_BYTES)
                except zlib.error as error:
                    self.cut = f"its gzip is broken ({error})"
                    return
                rest = member.unconsumed_tail or (b"" if member.eof else self._raw.read(_PIECE_BYTES))
                if piece:
                    yield piece
                elif not rest and not member.eof:
                    self.cut = "its gzip ends early"
                    return
            rest = (member.unused_data or self._raw.read(_PIECE_BYTES)).lstrip(b"\0")  # tape and tar pad with zeros

    def _unzstd(self) -> Iterator[bytes]:
        stream = pa.CompressedInputStream(pa.PythonFile(self._raw, mode="r"), "zstd")
        parts: list[bytes] = []
        try:
            while part := stream.read(_ZSTD_STEP_BYTES):
                parts.append(part)
                if len(parts) == _PIECE_BYTES // _ZSTD_STEP_BYTES:
                    yield b"".join(parts)
                    parts.clear()
        except OSError as error:
            self.cut = f"its zstd is broken or ends early ({error})"
        if parts:
            yield b"".join(parts)


class _Counted:
    """A binary file that knows how much was read, and takes its first bytes back."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.count = 0
        self.closed = False
        self._raw = raw
        self._unread = b""

    def unread(self, data: bytes) -> None:
        """Give these bytes out again before all others."""
        self._unread = data

    def read(self, size: int = -1) -> bytes:
        if self._unread:
            data, self._unread = self._unread, b""
            return data + (self._raw.read(size - len(data)) if size > len(data) else b"")
        data = self._raw.read(size)
        self.count += len(data)
        return data

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """The file stays open: it belongs to whoever opened it."""


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

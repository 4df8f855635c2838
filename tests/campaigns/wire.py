"""Bytes on sockets, as a hostile sender writes them: HTTP/1.1 without a library, and HTTP/2 frame by frame."""

import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

LOOPBACK = "127.0.0.1"
ANSWER_BYTES = 64 * 1024
"""Of an answer that is kept."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def connect(port: int, timeout_s: float = 60.0) -> socket.socket:
    """A connection to loopback."""
    return socket.create_connection((LOOPBACK, port), timeout_s)


def http(port: int, head: bytes, pieces: Iterable[bytes] = (), timeout_s: float = 60.0) -> bytes:
    """Send a head and pieces of a body as they are; returns what came back until the end, the time-out or enough of it.

    A server may answer and close before the body's end: what it said is read all the same.
    """
    with connect(port, timeout_s) as connection:
        with suppress(ConnectionError, TimeoutError):
            connection.sendall(head)
            for piece in pieces:
                connection.sendall(piece)
        return read(connection)


def read(connection: socket.socket) -> bytes:
    """What comes until the end of the connection, or enough of it."""
    answer = b""
    with suppress(OSError):
        while len(answer) < ANSWER_BYTES and (piece := connection.recv(ANSWER_BYTES)):
            answer += piece
    return answer


def head(path: str, *, method: str = "POST", **headers: str) -> bytes:
    """The head of a request that closes its connection; underscores in names become hyphens."""
    given = {"host": LOOPBACK, "connection": "close"} | {k.replace("_", "-"): v for k, v in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunked(piece: bytes, times: int) -> Iterable[bytes]:
    """A chunked body: the same piece so many times, and its end."""
    chunk = b"%x\r\n%s\r\n" % (len(piece), piece)
    for _ in range(times):
        yield chunk
    yield b"0\r\n\r\n"


# --- HTTP/2 ---------------------------------------------------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(text: bytes) -> bytes:
    """An HPACK string without Huffman coding."""
    size = len(text)
    if size < 127:
        return bytes([size]) + text
    rest, octets = size - 127, [127]
    while rest >= 128:
        octets.append(rest % 128 + 128)
        rest //= 128
    return bytes([*octets, rest]) + text


def fields(*pairs: tuple[str, str]) -> bytes:
    """A header block of literals that are not indexed."""
    return b"".join(b"\0" + _literal(name.encode()) + _literal(value.encode()) for name, value in pairs)


def export_fields(path: str, *more: tuple[str, str]) -> bytes:
    """The header block of a gRPC call."""
    pseudo = ((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"))
    return fields(*pseudo, ("content-type", "application/grpc"), ("te", "trailers"), *more)


class Http2:
    """A connection that does what it is told; it follows the server's flow control where `send_message` is asked to."""

    def __init__(self, port: int, timeout_s: float = 30.0) -> None:
        self.socket = connect(port, timeout_s)
        self._buffer = b""
        self._window = self._initial = 65_535
        self._streams: dict[int, int] = {}
        self.answer = b""
        self.is_over = False
        self.send(PREFACE + frame(SETTINGS, 0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, content: bytes) -> None:
        """As it is."""
        self.socket.sendall(content)

    def open(self, stream: int, path: str, *more: tuple[str, str]) -> None:
        """Begin a call."""
        self._streams[stream] = self._initial
        self.send(frame(HEADERS, END_HEADERS, stream, export_fields(path, *more)))

    def send_message(self, stream: int, message: bytes) -> None:
        """The whole message in DATA frames, as fast as the server's windows let it; ends early when the server ends the call."""
        at = 0
        while at < len(message) and stream in self._streams and not self.is_over:
            room = min(16_384, self._window, self._streams[stream], len(message) - at)
            if room <= 0:
                self._receive()
                continue
            at += room
            flags = END_STREAM if at == len(message) else 0
            self.send(frame(DATA, flags, stream, message[at - room : at]))
            self._window -= room
            self._streams[stream] -= room

    def wait(self, stream: int) -> None:
        """Until the server has ended the call, or the connection."""
        while stream in self._streams and not self.is_over:
            self._receive()

    def _receive(self) -> None:
        piece = self.socket.recv(65_536)
        if not piece:
            self.is_over = True
            return
        self._buffer += piece
        while len(self._buffer) >= 9:
            size = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + size:
                return
            kind, flags, stream = struct.unpack(">BBI", self._buffer[3:9])
            self._take(kind, flags, stream, self._buffer[9 : 9 + size])
            self._buffer = self._buffer[9 + size :]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[at : at + 6])
                if name == 4:  # SETTINGS_INITIAL_WINDOW_SIZE
                    self._streams = {s: room + value - self._initial for s, room in self._streams.items()}
                    self._initial = value
            self.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self._more_room(stream, int.from_bytes(payload, "big"))
        elif kind == GOAWAY:
            self.answer += payload
            self.is_over = True
        elif kind in {HEADERS, DATA, RST_STREAM}:
            self.answer = (self.answer + payload)[-ANSWER_BYTES:]
            if kind == RST_STREAM or flags & END_STREAM:
                self._streams.pop(stream, None)

    def _more_room(self, stream: int, count: int) -> None:
        if stream == 0:
            self._window += count
        elif stream in self._streams:
            self._streams[stream] += count

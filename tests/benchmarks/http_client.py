"""The least HTTP/1.1 client that can load a receiver: general ones take longer for a request than the receiver does.

It knows answers with a Content-Length, and nothing else; anything else is an error.
"""

import asyncio
import socket
from contextlib import suppress
from typing import Final

SEND_BUFFER_BYTES: Final = 1 << 20
TIMEOUT_S: Final = 60.0
SHOWN_BYTES: Final = 300


class RefusedError(Exception):
    """The receiver answered with another status than 200."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}: {body[:SHOWN_BYTES]!r}")
        self.status = status


class HttpConnections:
    """As many connections to one path as there are requests under way, kept for the next ones.

    Args:
        endpoint: host:port.
        path: That requests are posted to.
        content_type: Of their bodies.
    """

    def __init__(self, endpoint: str, path: str, content_type: str) -> None:
        host, _, port = endpoint.rpartition(":")
        self._address = host, int(port)
        self._head = f"POST {path} HTTP/1.1\r\nhost: {endpoint}\r\ncontent-type: {content_type}\r\ncontent-length: "
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes) -> bytes:
        """The answer's body; raises RefusedError, and OSError where the receiver gave no whole answer."""
        reader, writer = self._idle.pop() if self._idle else await self._connected()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                writer.write(f"{self._head}{len(body)}\r\n\r\n".encode() + body)
                status, answer = await _answer(reader)
        except BaseException:
            writer.transport.abort()
            raise
        self._idle.append((reader, writer))
        if status != 200:
            raise RefusedError(status, answer)
        return answer

    async def close(self) -> None:
        """Hang up."""
        for _, writer in self._idle:
            writer.close()
            with suppress(ConnectionError):  # the receiver hung up first
                await writer.wait_closed()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self._address)
        # A request goes out in one call of the system, as far as the kernel allows.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        return reader, writer


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body; raises ConnectionError where this is no such answer."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = content_length(head)
        return int(head.split(maxsplit=2)[1]), await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise ConnectionError(f"hung up after {error.partial[:SHOWN_BYTES]!r}") from error


def content_length(head: bytes) -> int:
    """Of an answer's head; raises ConnectionError where it has none."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    raise ConnectionError(f"an answer without Content-Length: {head[:SHOWN_BYTES]!r}")

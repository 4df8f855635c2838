"""Free ports that stay free until their owner takes them."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self


class Reservation:
    """Holds ports by being bound to them without listening.

    A port that is only looked up and released again can be taken by anybody before its owner starts; one that stays bound cannot:
    the kernel never draws a bound port for bind(0) or for an outgoing connection. Both SO_REUSEADDR and SO_REUSEPORT are set, so
    that the owner (same user) may bind beside it, whichever of the two it sets; nobody listens here, so connections are its own.
    """

    def __init__(self) -> None:
        self._sockets = ExitStack()

    def take(self, address: str) -> int:
        """One free port of that address; OSError if the address is not this machine's."""
        reserved = self._sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((address, 0))
        port: int = reserved.getsockname()[1]
        return port

    def take_all(self, address: str, count: int) -> Sequence[int]:
        """`count` different free ports of that address."""
        return [self.take(address) for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sockets.close()

"""How many gRPC messages are read at once: each may have 64 MiB, and whoever sends one may stop a byte before its end.

A message is read when there is a place for it; until then it waits in its sender's flow control window. What is whole is read at
once. What is not here after a quarter of a second needs one of the places for the slow, or is to be sent again: so senders
that stall take each other's places, and nobody else's.
"""

import asyncio
from typing import Any, Final

import grpc

from collector.store.memory import give_back

READING: Final = 3
"""Messages that are read at once, whatever the service."""

QUICK_S: Final = 0.25
"""A message of this machine is here by then, if it is whole."""

SLOW: Final = 2
"""Slow messages that are read at once."""

READ_TIMEOUT_S: Final = 10.0
"""For one message: who sends a byte a second must not hold one of the places for ever."""

CROWDED: Final = "too many slow messages are under way: send this request again"


LARGE_BYTES: Final = 8 * 1024 * 1024
"""A message of which a second copy is worth some milliseconds."""


class CrowdedError(Exception):
    """Every place for slow messages is taken."""


class Places:
    """The places of one port, for all of its services; used on one event loop."""

    def __init__(self, timeout_s: float = READ_TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._quick = asyncio.Semaphore(READING)
        self._slow = asyncio.Semaphore(SLOW)

    async def read(self, context: Any) -> Any:
        """The next message of a stream, or EOF. Raises TimeoutError, CrowdedError."""
        reading: asyncio.Future[Any] | None = None
        try:
            async with self._quick:
                reading = asyncio.ensure_future(context.read())
                done, _ = await asyncio.wait([reading], timeout=min(QUICK_S, self.timeout_s))
            if done:
                return _alone(reading.result())
            if self._slow.locked():
                raise CrowdedError(CROWDED)
            async with self._slow:
                return _alone(await asyncio.wait_for(reading, self.timeout_s))
        finally:
            if reading is not None:
                reading.cancel()

    def too_slow(self) -> str:
        """For who ran into the time-out."""
        return f"the message did not arrive within {self.timeout_s:g} s"


def _alone(message: Any) -> Any:
    """The message, without the pieces that a large one came in: they are freed, but the C library keeps them for others."""
    if message is not grpc.aio.EOF and len(message) >= LARGE_BYTES:
        give_back()
    return message

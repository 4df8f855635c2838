"""How many gRPC messages are read at once, and how much of them: each may have 16 MiB or more, and whoever sends one may stop a byte before its end.

A message is read when there is a place for it; until then it waits in its sender's flow control window. What is whole is read at
once. What is not here after a quarter of a second needs one of the places for the slow, or is to be sent again: so senders
that stall take each other's places, and nobody else's.

How long a message is, nobody knows before it is whole, and gRPC then has it three times: in the pieces that came, in a buffer, as bytes. So of
those that take their time one is the first, until it is answered if it is large. While the process grows beside it, the others are to be
sent again: they may be as large. While a large one that is whole is decoded and stored, others wait unread for a second.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import grpc

from collector.store.memory import give_back, resident_bytes

READING: Final = 3
"""Messages that are read at once, whatever the service."""

QUICK_S: Final = 0.25
"""A message of this machine is here by then, if it is whole."""

SLOW: Final = 2
"""Slow messages that are read at once."""

READ_TIMEOUT_S: Final = 10.0
"""For one message: who sends a byte a second must not hold one of the places for ever."""

WATCH_S: Final = 0.01
"""An ordinary message is here by then; how often those that are not are looked after."""

PATIENCE_S: Final = 1.0
"""How long messages wait, unread, for the answer to a large one: as decoding has the interpreter, nobody might see in time that another is large."""

GROWTH_BYTES: Final = 32_000_000
"""What the process may grow beside the first of those before it is the only one: more than ingesting of ordinary messages does in a moment."""

CROWDED: Final = "too many slow messages are under way: send this request again"
NO_MEMORY: Final = "a large message is under way: send this request again"

LARGE_BYTES: Final = 8 * 1024 * 1024
"""A message of which a second copy is worth some milliseconds."""


class CrowdedError(Exception):
    """Every place for slow messages is taken, or the memory for large ones."""


class TooSlowError(TimeoutError):
    """The message did not arrive in time."""


class Places:
    """The places of one port, for all of its services; used on one event loop.

    Args:
        timeout_s: For one message.
        memory: Bytes that the process holds.
        patience_s: How long messages wait for the answer to a large one.
    """

    def __init__(
        self,
        timeout_s: float = READ_TIMEOUT_S,
        memory: Callable[[], int] = resident_bytes,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.timeout_s = timeout_s
        self._patience_s = patience_s
        self._memory = memory
        self._quick = asyncio.Semaphore(READING)
        self._slow = asyncio.Semaphore(SLOW)
        self._first: object | None = None
        self._before = 0
        self._answered = asyncio.Event()
        self._answered.set()

    @asynccontextmanager
    async def message(self, context: Any) -> AsyncIterator[Any]:
        """The next message of a stream, or EOF, until it is answered. Raises TooSlowError, CrowdedError."""
        call = object()
        if not self._answered.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._answered.wait(), self._patience_s)
        try:
            yield await self._read(context, call)
        finally:
            if self._first is call:
                self._first = None
                self._answered.set()

    async def _read(self, context: Any, call: object) -> Any:
        async with self._quick:
            # Never cancelled: gRPC would not free a message that comes all the same. It ends with the call.
            reading: asyncio.Future[Any] = asyncio.ensure_future(context.read())
            reading.add_done_callback(_look_at)
            is_whole = await self._is_whole(reading, call, min(QUICK_S, self.timeout_s))
        if is_whole:
            return self._kept(reading.result(), call)
        if self._slow.locked():
            raise CrowdedError(CROWDED)
        async with self._slow:
            if not await self._is_whole(reading, call, self.timeout_s):
                raise TooSlowError(f"the message did not arrive within {self.timeout_s:g} s")
            return self._kept(reading.result(), call)

    async def _is_whole(self, reading: "asyncio.Future[Any]", call: object, timeout_s: float) -> bool:
        """Whether the message is here in time. Raises CrowdedError when it is not, and takes memory beside the first."""
        end = asyncio.get_running_loop().time() + timeout_s
        while True:
            left = end - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait([reading], timeout=min(WATCH_S, max(0.0, left)))
            if done or left <= 0:
                return bool(done)
            if not self._is_first(call) and self._memory() > self._before + GROWTH_BYTES:
                raise CrowdedError(NO_MEMORY)

    def _is_first(self, call: object) -> bool:
        """Whether this is the first that takes its time, or is large; it becomes so where none is."""
        if self._first is None:
            self._first, self._before = call, self._memory()
        return self._first is call

    def _kept(self, message: Any, call: object) -> Any:
        """The message, whole, without the pieces that a large one came in: they are freed, but the C library keeps them for others."""
        if message is not grpc.aio.EOF and len(message) >= LARGE_BYTES:
            give_back()
            if self._is_first(call):
                self._answered.clear()
        elif self._first is call:
            self._first = None
        return message


def _look_at(reading: "asyncio.Future[Any]") -> None:
    """What a reading that nobody waits for any more ended with is no news: the call is over."""
    if not reading.cancelled():
        reading.exception()

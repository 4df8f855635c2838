"""How an event loop learns of what other threads finished: of many requests at once with one wake-up.

A group of requests becomes durable at one moment, and each has somebody waiting on the event loop. `asyncio.wrap_future` would write to the
loop's pipe for each of them, from a thread that has the interpreter then, and the loop would read it as often.
"""

import asyncio
import threading
from concurrent.futures import Future
from typing import Any


class Bell:
    """Of one event loop, whose coroutines wait; made and used on it, rung from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._rung: list[asyncio.Future[None]] = []

    async def wait(self, future: Future[Any], timeout_s: float) -> None:
        """Until it is done; raises what it ended with, or TimeoutError. Who stops waiting does not cancel it."""
        waiter = self._loop.create_future()
        future.add_done_callback(lambda _: self._ring(waiter))
        async with asyncio.timeout(timeout_s):
            await waiter
        future.result()

    def _ring(self, waiter: "asyncio.Future[None]") -> None:
        with self._lock:
            self._rung.append(waiter)
            is_first = len(self._rung) == 1
        if is_first and not self._loop.is_closed():  # while it stops, nobody waits any more
            self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        with self._lock:
            rung, self._rung = self._rung, []
        for waiter in rung:
            if not waiter.done():
                waiter.set_result(None)

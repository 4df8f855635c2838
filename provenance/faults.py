"""Where the middleware's own failures go: counted always, logged seldom, raised never.

Observe mode promises that the host's call goes on untouched whatever happens in our code. That must not mean silence:
the first failure at each place is logged at WARNING with its traceback, then at most one a minute with the count.
"""

import logging
import time
from collections import Counter
from typing import Final

from provenance.forks import Lock, in_forked_children

LOG_INTERVAL_SECONDS: Final = 60.0

_log = logging.getLogger("provenance")
_lock = Lock()
_counts: Counter[str] = Counter()
_last_logged: dict[str, float] = {}


def report(place: str, error: BaseException) -> None:
    """Count one failure at `place` (`grpc.client`, `http.server`, ...) and log it unless that happened lately."""
    now = time.monotonic()
    with _lock:
        _counts[place] += 1
        count = _counts[place]
        last = _last_logged.get(place)
        if last is not None and now - last < LOG_INTERVAL_SECONDS:
            return
        _last_logged[place] = now
    _log.warning("provenance: %s failed (%d so far); the call itself went on untouched", place, count, exc_info=error)


class Contained:
    """`with Contained(PLACE):` around our own code: what it raises is reported, and goes no further."""

    __slots__ = ("_place",)

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        """Swallow what is an error; let what ends a process or a task (KeyboardInterrupt, cancellation) pass."""
        if not isinstance(error, Exception):
            return False
        report(self._place, error)
        return True


def counts() -> dict[str, int]:
    """Failures so far by place; empty is how it should be."""
    with _lock:
        return dict(_counts)


def reset() -> None:
    """Forget all counts: for tests, and in a process that was forked, whose failures are its own."""
    with _lock:
        _counts.clear()
        _last_logged.clear()


in_forked_children(reset)  # after the lock's own, which is registered where it is made

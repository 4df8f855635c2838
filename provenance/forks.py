"""What of ours has to survive a fork: a server that forks its workers (gunicorn) takes our locks with it."""

import os
import threading
from collections.abc import Callable
from types import TracebackType


def in_forked_children(function: Callable[[], None]) -> None:
    """Run `function` in every process that is forked from now on, in the order of these calls; a no-op without fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


class Lock:
    """A lock that nobody holds in a process that was forked just now.

    The thread that held it there exists in the parent alone, so in the child nobody would ever let go of it.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._renew()
        in_forked_children(self._renew)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()

"""The one thin shell of the demo: it starts processes, waits for them, notices when one dies, and stops all of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from collector.demo import tether
from collector.errors import CollectorError

POLL_SECONDS: Final = 0.05
TAIL_LINES: Final = 12


class DemoError(CollectorError):
    """The mesh did not start or did not last; carries the tail of the log that says why."""


@dataclass(frozen=True, slots=True)
class Child:
    """One process of the demo and the file that its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Children:
    """All processes of one run; leaving the `with` block stops those that are left.

    Each child is in a session of its own, so that Ctrl-C reaches us alone and we decide in which order they stop, and each is
    tethered: if this process is killed, the kernel ends them. Start them from the main thread: Linux's wish is about the thread.
    """

    def __init__(self, log_directory: Path) -> None:
        self._log_directory = log_directory
        self._children: dict[str, Child] = {}

    def start(
        self,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        *,
        if_orphaned: signal.Signals = signal.SIGKILL,
    ) -> Child:
        """Start one process, output to `NAME.log`; `if_orphaned` is what it gets when we are killed."""
        log = self._log_directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                tethered(argv, if_orphaned),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children[name] = child
        return child

    def check(self) -> None:
        """Raise DemoError if a child that should be running is not."""
        for child in self._children.values():
            status = child.process.poll()
            if status is not None:
                raise DemoError(f"{child.name} ended {describe_exit(status)}\n{tail(child.log)}")

    def wait_until(self, ready: Callable[[], bool], what: str, timeout_seconds: float) -> None:
        """Return when `ready()` is true; DemoError when a child dies first or the time is over."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(
                    f"waited {timeout_seconds:g} s for {what}; the machine may be too busy\n{self._tails()}"
                )
            time.sleep(POLL_SECONDS)

    def stop(self, names: Iterable[str], grace_seconds: float) -> list[str]:
        """SIGTERM, and SIGKILL after the grace; returns the names of those that had to be killed."""
        stopping = [self._children.pop(name) for name in names if name in self._children]
        for child in stopping:
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + grace_seconds
        return [child.name for child in stopping if not _ended(child, deadline)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The collector last: what the others flush while they end is evidence too.
        last = [name for name in self._children if name == "collector"]
        self.stop([name for name in self._children if name not in last], grace_seconds=3.0)
        self.stop(last, grace_seconds=15.0)

    def _tails(self) -> str:
        return "\n".join(f"{child.name}:\n{tail(child.log, lines=3)}" for child in self._children.values())


def tethered(argv: Sequence[str], if_orphaned: signal.Signals) -> list[str]:
    """The command line that runs `argv` as a process that cannot outlive this one."""
    # -I -S: no site packages, so that the detour costs 10 ms and the user's environment cannot change it.
    return [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), str(int(if_orphaned)), *argv]


def describe_exit(status: int) -> str:
    """An exit status as `subprocess` has it, in words."""
    return f"with exit status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, indented."""
    text = log.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in text or ["(it printed nothing)"])


def _ended(child: Child, deadline: float) -> bool:
    try:
        child.process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.process.kill()
        child.process.wait()
        return False
    return True

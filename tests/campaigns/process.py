"""A real `provenance collect` on fixed ports and a real file, to be killed, stopped, frozen, measured and started again."""

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

DEADLINE_S = 60.0
POLL_S = 0.001

_EPHEMERAL = 20_000, 32_000
"""Below the range from which the kernel gives ports away: a port must stay ours while nobody listens on it."""


class CampaignError(Exception):
    """The campaign itself cannot go on: what it waited for did not come."""


def wait_until(what: Callable[[], bool], why: str, deadline_s: float = DEADLINE_S, poll_s: float = 0.01) -> float:
    """Seconds until `what()` was true; raises CampaignError."""
    begun = time.monotonic()
    while not what():
        if time.monotonic() - begun > deadline_s:
            raise CampaignError(f"{why}: not within {deadline_s:g} s")
        time.sleep(poll_s)
    return time.monotonic() - begun


def free_port() -> int:
    """A port of loopback that nobody has now, and that no outgoing connection will be given."""
    while True:
        port = random.SystemRandom().randrange(*_EPHEMERAL)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(slots=True)
class Collector:
    """One evidence file and the process that holds it, if any does.

    Attributes:
        directory: Where the file is, and what the process says on stderr.
        arguments: Further ones of `provenance collect`.
        said: stderr of all its processes, one after the other.
        failed_starts: Exit codes and last lines of processes that ended before they were ready.
    """

    directory: Path
    arguments: tuple[str, ...] = ()
    grpc_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None
    failed_starts: list[str] = field(default_factory=list)

    @property
    def db(self) -> Path:
        return self.directory / "evidence.duckdb"

    @property
    def wal(self) -> Path:
        return self.directory / "evidence.duckdb.wal"

    @property
    def journal(self) -> Path:
        return self.directory / "evidence.duckdb.journal"

    @property
    def ready_file(self) -> Path:
        return self.directory.parent / f"{self.directory.name}.ready"

    @property
    def said(self) -> Path:
        return self.directory.parent / f"{self.directory.name}.stderr"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def spawn(self) -> None:
        """Start a process, and wait for nothing."""
        assert not self.is_alive
        self.ready_file.unlink(missing_ok=True)
        command = Path(sys.executable).with_name("provenance")
        ports = ["--grpc-port", str(self.grpc_port), "--http-port", str(self.http_port)]
        argv = [str(command), "collect", "--db", str(self.db), *ports, "--ready-file", str(self.ready_file)]
        with self.said.open("ab") as stderr:
            self.process = subprocess.Popen([*argv, *self.arguments], stderr=stderr, stdout=stderr)
        _started.append(self)

    @property
    def is_ready(self) -> bool:
        with suppress(FileNotFoundError, json.JSONDecodeError):
            return bool(json.loads(self.ready_file.read_text())["pid"] == self.pid)
        return False

    def start(self) -> float:
        """Start a process; returns after how many seconds it was ready. Raises CampaignError where it does not start."""
        self.spawn()
        return self.wait_ready()

    def wait_ready(self) -> float:
        """Seconds from now until it is ready; raises CampaignError where it ends instead."""
        process = self._running()
        seconds = wait_until(lambda: self.is_ready or process.poll() is not None, "the collector's start")
        if process.poll() is not None:
            raise CampaignError(f"the collector ended with {process.returncode} at its start: {self.last_words()}")
        return seconds

    def kill(self) -> None:
        """SIGKILL, and its end; nothing if it has ended."""
        process = self._running()
        process.kill()
        process.wait(DEADLINE_S)

    def terminate(self) -> None:
        """SIGTERM, and wait for nothing."""
        self._running().send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.terminate()
        return self._running().wait(DEADLINE_S)

    def snapshot(self, target: Path) -> None:
        """Copy the file, its WAL and its journal to another directory at one moment: the process stands still meanwhile."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: _state(process.pid) == "T", "the process to stand still", poll_s=POLL_S)
            shutil.copytree(self.directory, target)
        finally:
            process.send_signal(signal.SIGCONT)

    def last_words(self) -> str:
        """The last line of stderr."""
        lines = self.said.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def _running(self) -> "subprocess.Popen[bytes]":
        if self.process is None:
            raise CampaignError("the collector was never started")
        return self.process


_started: list[Collector] = []


def end_all() -> None:
    """Leave no process behind."""
    for collector in _started:
        if collector.is_alive:
            collector.kill()
    _started.clear()


def _state(pid: int) -> str:
    """The state of every thread of a process, where they agree; else nothing."""
    states = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return states.pop() if len(states) == 1 else ""


# --- memory ---------------------------------------------------------------------------------------------------------------


def reset_peak(pid: int) -> None:
    """Make the peak of the process's memory what it holds now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory now, and its peak, in MB of 10^6 bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {line.partition(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return round(kib["VmRSS"] * 1024 / 1e6, 1), round(kib["VmHWM"] * 1024 / 1e6, 1)


def descriptors(pid: int) -> int:
    """How many files and sockets it has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))

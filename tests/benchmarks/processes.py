"""The processes that are measured: our collector on a real file, its peer, the load generator; and what /proc says of them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final, Self

import httpx

from collector.client import CollectorSource, FileSource

LOAD: Final = Path(__file__).with_name("otlp_load.py")
DEADLINE_S: Final = 60.0
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")

QUIET_S: Final = 0.3
QUIET_RATIO: Final = 0.05
"""A process is quiet that took less than this part of a core for so long."""


class BenchmarkError(Exception):
    """What was to be measured did not happen."""


def wait_until(what: Callable[[], bool], why: str, *, deadline_s: float = DEADLINE_S, poll_s: float = 0.02) -> float:
    """Seconds until `what()` was true; raises BenchmarkError."""
    begun = time.perf_counter()
    while not what():
        if time.perf_counter() - begun > deadline_s:
            raise BenchmarkError(f"{why}: not within {deadline_s:g} s")
        time.sleep(poll_s)
    return time.perf_counter() - begun


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- /proc ------------------------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """Of all threads, in user and kernel mode, since the process began."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def memory_mb(pid: int) -> dict[str, float]:
    """`VmRSS`, `RssAnon` and the peak `VmHWM`, in MB of 10^6 bytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: round(int(values[name].split()[0]) * 1024 / 1e6, 1) for name in ("VmRSS", "RssAnon", "VmHWM")}


def wait_quiet(pid: int) -> float:
    """Seconds until the process had nothing left to do; raises BenchmarkError."""

    def is_quiet() -> bool:
        before = cpu_seconds(pid)
        time.sleep(QUIET_S)
        return cpu_seconds(pid) - before <= QUIET_S * QUIET_RATIO

    return wait_until(is_quiet, f"process {pid} to have nothing left to do", poll_s=0)


# --- receivers --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Receiver:
    """A process that takes OTLP.

    Attributes:
        name: In the report.
        pid: Of the process.
        ports: By protocol: grpc, http, json.
        sent_spans: That were acknowledged.
    """

    name: str
    pid: int
    ports: dict[str, int]
    sent_spans: int

    def endpoint(self, protocol: str) -> str:
        """host:port."""
        return f"127.0.0.1:{self.ports[protocol]}"

    def drain(self) -> None:
        """Wait until everything that was sent is where it belongs."""
        wait_quiet(self.pid)


@dataclass(slots=True)
class Collector(Receiver):
    """`provenance collect` on a file of its own.

    Attributes:
        db: The evidence file.
        ready_s: From the start of the process until /readyz answered 200.
    """

    db: Path
    ready_s: float
    source: CollectorSource

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['http']}"

    def stored_spans(self) -> int:
        """What a reader counts now."""
        return int(self.source.query("SELECT count(*) AS n FROM spans").item())

    def drain(self) -> None:
        """Wait until a reader sees every span that was acknowledged, and the rest of the work is done; raises BenchmarkError."""
        with contextlib.suppress(BenchmarkError):
            # Asked seldom: what the questions take is counted as the collector's.
            wait_until(lambda: self.stored_spans() >= self.sent_spans, "all spans to be seen", poll_s=0.1)
        stored = self.stored_spans()
        if stored != self.sent_spans:
            raise BenchmarkError(f"{self.sent_spans} spans were acknowledged, and readers see {stored}")
        wait_quiet(self.pid)


@contextmanager
def collector(folder: Path, *arguments: str, sent_spans: int = 0) -> Iterator[Collector]:
    """A collector on `folder`/evidence.duckdb, which may exist; stopped as an operator would, which must succeed."""
    grpc_port, http_port = free_port(), free_port()
    db, said = folder / "evidence.duckdb", folder / "stderr.txt"
    program = Path(sys.executable).with_name("provenance")
    ports = ["--grpc-port", str(grpc_port), "--http-port", str(http_port)]
    command = [str(program), "collect", "--db", str(db), *ports, *arguments]
    begun = time.perf_counter()
    with said.open("ab") as stderr, running(command, stderr) as process:
        _wait_ready(process, http_port, said)
        ready_s = time.perf_counter() - begun
        with contextlib.closing(CollectorSource(f"http://127.0.0.1:{http_port}")) as source:
            listening = {"grpc": grpc_port, "http": http_port, "json": http_port}
            yield Collector("ours", process.pid, listening, sent_spans, db, ready_s, source)
        process.send_signal(signal.SIGTERM)
        if process.wait(DEADLINE_S) != 0:
            raise BenchmarkError(f"the collector ended with {process.returncode}: {_last_line(said)}")


def check_file(stopped: Collector) -> int:
    """How many spans the file has that a stopped collector left; raises BenchmarkError unless all are in it that were acknowledged."""
    with contextlib.closing(FileSource(str(stopped.db))) as source:
        stored = int(source.query("SELECT count(*) AS n FROM spans").item())
    if stored != stopped.sent_spans:
        raise BenchmarkError(f"{stopped.sent_spans} spans were acknowledged, and {stored} are in {stopped.db}")
    return stored


@contextmanager
def rotel(folder: Path) -> Iterator[Receiver]:
    """The peer: Rotel, which receives and throws away."""
    grpc_port, http_port = free_port(), free_port()
    said = folder / "rotel.txt"
    command = [str(rotel_program()), "start", "--exporter", "blackhole", "--otlp-grpc-max-recv-msg-size-mib", "16"]
    command += ["--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}", "--otlp-http-endpoint", f"127.0.0.1:{http_port}"]
    with said.open("ab") as stderr, running(command, stderr) as process:

        def listens() -> bool:
            if process.poll() is not None:
                raise BenchmarkError(f"rotel ended with {process.returncode}: {_last_line(said)}")
            return all(_accepts(port) for port in (grpc_port, http_port))

        wait_until(listens, "rotel to listen")
        yield Receiver("rotel", process.pid, {"grpc": grpc_port, "http": http_port, "json": http_port}, 0)


@contextmanager
def running(command: list[str], output: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that does not outlive the block."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(DEADLINE_S)


def rotel_program() -> Path:
    """Its binary in the wheel; raises BenchmarkError where it is not installed."""
    found = find_spec("rotel")
    program = Path(found.origin).parent / "rotel-agent" if found and found.origin else None
    if program is None or not program.exists():
        raise BenchmarkError("the peer is not installed: make setup, or pip install rotel (Linux only)")
    return program


def _wait_ready(process: "subprocess.Popen[bytes]", port: int, said: Path) -> None:
    """Ask /readyz every 10 ms until it answers 200."""
    with httpx.Client(trust_env=False, verify=False, timeout=DEADLINE_S) as http:

        def is_ready() -> bool:
            if process.poll() is not None:
                raise BenchmarkError(f"the collector ended with {process.returncode}: {_last_line(said)}")
            try:
                return http.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_ready, "the collector to be ready", poll_s=0.01)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


# --- load -------------------------------------------------------------------------------------------------------------


class Load:
    """The load generator at work; see otlp_load.py for the arguments and what it reports.

    Every load has a seed of its own, so that no span is ever sent twice.
    """

    _seed = 0

    def __init__(self, receiver: Receiver, **arguments: str | float) -> None:
        Load._seed += 1_000
        self._receiver = receiver
        endpoint = receiver.endpoint(str(arguments.get("protocol", "grpc")))
        options = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, str(LOAD), endpoint, "--announce", "--seed", str(Load._seed), *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._stdout = self._process.stdout

    def __enter__(self) -> Self:
        """Returns when the first request is sent."""
        if self._stdout.readline() != "sending\n":
            self._end()
            raise BenchmarkError("the load generator did not start; its reason is above")
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def is_sending(self) -> bool:
        return self._process.poll() is None

    def result(self) -> dict[str, Any]:
        """What it saw, once all is acknowledged."""
        said = self._stdout.read()
        if self._process.wait(DEADLINE_S) != 0:
            raise BenchmarkError("the load was refused; the reason is above")
        seen: dict[str, Any] = json.loads(said)
        self._receiver.sent_spans += seen["spans"]
        return seen

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(DEADLINE_S)
        self._stdout.close()


def send(receiver: Receiver, **arguments: str | float) -> dict[str, Any]:
    """A load from beginning to end."""
    with Load(receiver, **arguments) as load:
        return load.result()


@contextmanager
def work_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder for evidence files, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mesh-provenance-bench-", dir=parent) as folder:
        yield Path(folder)

"""How the services of this mesh find each other, and how they start and stop.

Each service listens on a port of its own and reaches the others through its sidecar, by name: the sidecar's outbound listener
routes `payment.demo` to the sidecar in front of payment. `provenance demo` sets the environment:

    PORT           where this service listens, on 127.0.0.1
    SIDECAR        host:port of the outbound listener of this service's sidecar
    CARD_NETWORK   host:port of the card network (payment alone)
    SEED           of random draws
    INCIDENTS      a JSON file that says when which incident begins: the script of the demo, no part of the traffic
    OTEL_EXPORTER_OTLP_ENDPOINT   the collector
"""

import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import grpc
import httpx

HOST = "127.0.0.1"
CALL_TIMEOUT_SECONDS = 5.0
DRAIN_SECONDS = 3.0


def port() -> int:
    """Where this service listens."""
    return int(os.environ["PORT"])


def channel(service: str) -> grpc.Channel:
    """A gRPC channel to `service`: it dials our own sidecar, and the authority tells the sidecar where to go."""
    return grpc.insecure_channel(os.environ["SIDECAR"], options=[("grpc.default_authority", f"{service}.demo")])


def http_client() -> httpx.Client:
    """An HTTP client whose calls go through our own sidecar, as through any forward proxy: `http://inventory.demo/...`."""
    return httpx.Client(proxy=f"http://{os.environ['SIDECAR']}", timeout=CALL_TIMEOUT_SECONDS)


def serve_grpc(register: Callable[[grpc.Server], None]) -> None:
    """Serve until SIGTERM, then let the calls in flight finish."""
    server = grpc.server(ThreadPoolExecutor(max_workers=16))
    register(server)
    server.add_insecure_port(f"{HOST}:{port()}")
    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    server.start()
    terminated.wait()
    server.stop(DRAIN_SECONDS).wait()


def exit_on_sigterm() -> None:
    """Make SIGTERM end the program in the ordinary way, so that `finally` clauses run (uvicorn raises it again when done)."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)


class Incident(NamedTuple):
    """One line of the demo's script: from when on, and against which address."""

    begins_at_unix_seconds: float
    target: str


def incident(name: str) -> Incident | None:
    """The incident of that name once it has begun, else None."""
    planned = script().get(name)
    return planned if planned and time.time() >= planned.begins_at_unix_seconds else None


def script() -> dict[str, Incident]:
    """Every planned incident by name; empty until the file is there, because the mesh starts before the script is written."""
    path = os.environ.get("INCIDENTS")
    return _read_script(path) if path and Path(path).exists() else {}


@functools.cache
def _read_script(path: str) -> dict[str, Incident]:
    """The file is renamed into place complete and never changes: once read, it is known."""
    return {name: Incident(**planned) for name, planned in json.loads(Path(path).read_text()).items()}

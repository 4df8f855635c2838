"""`provenance collect`: receive OTLP and follow access logs into one DuckDB file, and answer queries on it.

Threads: the main one waits for a signal; gRPC's pool and uvicorn's loop receive; one follows access logs; one writes.
Shutdown goes the way of the data: stop accepting, read the access logs once more, drain the writer, checkpoint.
"""

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from collector.commands.terminal import complain
from collector.errors import CollectorError, ConfigError, StoreError, exit_code
from collector.receiver.hosts import is_loopback

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from collector.receiver.ingest import Ingest
    from collector.store.database import Store
    from collector.store.writer import Writer
    from collector.witnesses.follow import Follower, LogFile

_GRACE_SECONDS: Final = 5.0
"""How long requests that run at shutdown may take."""

_WATCH_SECONDS: Final = 0.5

_EPILOG: Final = """\
Services send OTLP to either port; nothing is acknowledged before it is committed:
  OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317   (gRPC; 4318 for http/protobuf)

Proxies write access logs; name the workload whose proxy wrote each, and the direction where its lines do not say it
(Istio's do). Files are followed across rotation, and read on after a restart where they were left:
  --access-log checkout:inbound=/var/log/envoy/checkout.json

The HTTP port also answers SELECTs. There is no authentication: bind to loopback, or to a network that you trust. Bound to
loopback, it answers only to localhost and addresses as Host, so that no page in a browser can ask it.
  provenance scan http://127.0.0.1:4318

exit codes: 0 stopped by SIGTERM or SIGINT with everything committed, 2 could not start or could not write
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    db: Path
    host: str
    grpc_port: int
    http_port: int
    access_logs: tuple["LogFile", ...]
    policy: Path | None
    ready_file: Path | None


def main(argv: Sequence[str]) -> int:
    """Collect until SIGTERM or SIGINT; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        options = parse(argv)
        _collect(options)
    except CollectorError as e:
        complain("collect", str(e))
        return exit_code(e)
    return 0


def parse(argv: Sequence[str]) -> Options:
    """The options; raises ConfigError, and SystemExit where argparse refuses."""
    raw = _parser().parse_args(argv)
    logs = tuple(parse_access_log(text) for text in raw.access_log)
    paths = [log.source for log in logs]
    if twice := {path for path in paths if paths.count(path) > 1}:
        raise ConfigError(f"--access-log: {', '.join(sorted(twice))} is given twice; each file has one workload")
    return Options(raw.db, raw.host, raw.grpc_port, raw.http_port, logs, raw.policy, raw.ready_file)


def parse_access_log(text: str) -> "LogFile":
    """`SERVICE[:inbound|outbound]=PATH`; raises ConfigError."""
    from collector.witnesses.follow import LogFile

    who, separator, path = text.partition("=")
    service, _, direction = who.partition(":")
    if not (separator and service and path):
        raise ConfigError(f"--access-log {text!r}: expected SERVICE[:inbound|outbound]=PATH")
    match direction:
        case "":
            return LogFile(Path(path), service)
        case "inbound" | "outbound":
            return LogFile(Path(path), service, direction)
        case _:
            raise ConfigError(f"--access-log {text!r}: the direction is inbound or outbound, not {direction!r}")


def _collect(options: Options) -> None:
    from collector.receiver.ingest import Ingest
    from collector.store.database import Store
    from collector.store.writer import Writer

    stop = _stop_at_signal()
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(options.db))
        _replace_policy(store, options.policy)
        writer = stack.enter_context(Writer(store))
        follower = _follow(store, writer, options.access_logs)
        stack.callback(follower.close)
        app = _app(Ingest(writer), store, follower, loopback_only=is_loopback(options.host))
        http_port = stack.enter_context(_serve_http(app, options.host, options.http_port))
        grpc_port = stack.enter_context(_serve_grpc(writer, options.host, options.grpc_port))
        follower.start()
        ready = {"pid": os.getpid(), "grpc_port": grpc_port, "http_port": http_port, "database": str(store.path)}
        stack.enter_context(_ready(options.ready_file, ready))
        _announce(options, ready)
        while not stop.wait(_WATCH_SECONDS):
            if reason := writer.status().broken:
                raise StoreError(reason)


# --- the parts ------------------------------------------------------------------------------------------------------------


def _stop_at_signal() -> threading.Event:
    """Set at the first SIGTERM or SIGINT; a second one ends the process, and what is not committed is sent again."""
    stop = threading.Event()

    def request(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request)
    return stop


def _replace_policy(store: "Store", path: Path | None) -> None:
    """Put the file's rules into the store; without a file the rules that are there stay."""
    if path is None:
        return
    from collector.policy import read_policy, to_batch
    from collector.store.writer import replace_rows

    replace_rows(store, "egress_allow", to_batch(read_policy(path)))


def _follow(store: "Store", writer: "Writer", logs: Sequence["LogFile"]) -> "Follower":
    from collector.store.reader import Reader
    from collector.witnesses.follow import Follower, positions_from

    positions = positions_from(Reader(store).query("SELECT * FROM access_logs").to_pylist())
    return Follower(logs, writer, positions)


def _app(ingest: "Ingest", store: "Store", follower: "Follower", *, loopback_only: bool) -> "Starlette":
    from collector.api import API_LIMITS, api_routes
    from collector.receiver.http_app import create_app
    from collector.store.reader import Reader

    routes = api_routes(Reader(store, API_LIMITS), database=str(store.path), access_logs=follower.status)
    return create_app(ingest=ingest, extra_routes=routes, loopback_only=loopback_only)


@contextmanager
def _serve_grpc(writer: "Writer", host: str, port: int) -> Iterator[int]:
    from collector.receiver.grpc_server import create_server
    from collector.receiver.ingest import Ingest
    from collector.receiver.signals import AccessLogs, logs_service

    logs = logs_service(AccessLogs(writer))
    server, bound = create_server(Ingest(writer), address=f"{_bracketed(host)}:{port}", handlers=[logs])
    server.start()
    try:
        yield bound
    finally:
        server.stop(_GRACE_SECONDS).wait()


@contextmanager
def _serve_http(app: "Starlette", host: str, port: int) -> Iterator[int]:
    """Uvicorn on a thread of its own, so that signals stay with the main one."""
    import uvicorn

    listener = _listen(host, port)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=int(_GRACE_SECONDS)
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket: connections queue in it even before the server's loop runs."""
    try:
        [family, *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as e:
        raise ConfigError(
            f"cannot listen for OTLP/HTTP on {_bracketed(host)}:{port}: {e.strerror or e}; "
            "is another collector running? --http-port 0 takes a free port"
        ) from e


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextmanager
def _ready(path: Path | None, ready: dict[str, object]) -> Iterator[None]:
    """The ready file, whole or not there, for as long as the collector runs."""
    if path is None:
        yield
        return
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(ready) + "\n", encoding="utf-8")
        unfinished.rename(path)
    except OSError as e:
        raise ConfigError(f"--ready-file {path} cannot be written: {e.strerror}") from e
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


def _announce(options: Options, ready: dict[str, object]) -> None:
    host = _bracketed(options.host)
    logs = f", {len(options.access_logs)} access logs" if options.access_logs else ""
    complain(
        "collect",
        f"into {ready['database']}: OTLP/gRPC on {host}:{ready['grpc_port']}, "
        f"OTLP/HTTP and queries on http://{host}:{ready['http_port']}{logs}",
    )
    if not is_loopback(options.host):
        _log.warning("%s is not loopback: whoever reaches it can write and read the evidence", options.host)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provenance collect",
        description="Receive OTLP traces and follow proxies' access logs into one DuckDB file, and answer queries on it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--db", type=Path, required=True, metavar="PATH", help="the evidence file; created if it does not exist")
    add("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    add(
        "--grpc-port",
        type=_port,
        default=4317,
        metavar="PORT",
        help="OTLP/gRPC (default: %(default)s; 0: any free port)",
    )
    add(
        "--http-port",
        type=_port,
        default=4318,
        metavar="PORT",
        help="OTLP/HTTP and queries (default: %(default)s; 0: any)",
    )
    add(
        "--access-log",
        action="append",
        default=[],
        metavar="SERVICE[:inbound|outbound]=PATH",
        help="an Envoy or Istio access log to follow, JSON or default text; may be given several times",
    )
    add(
        "--policy",
        type=Path,
        metavar="FILE",
        help="provenance.toml, whose [egress] allow replaces the stored rules; an empty list allows nothing",
    )
    add(
        "--ready-file", type=Path, metavar="PATH", help="written once all is listening: pid, ports and database as JSON"
    )
    return parser


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)

"""`provenance collect`: receive OTLP and follow access logs into one DuckDB file, and answer queries on it.

Threads: the main one waits for a signal; gRPC's pool and uvicorn's loop receive; one follows access logs; one writes.
Shutdown goes the way of the data: stop accepting, read the access logs once more, drain the writer, checkpoint.
"""

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

from collector.commands.lean import leave_out_pandas
from collector.commands.terminal import complain
from collector.errors import CollectorError, ConfigError, StoreError, exit_code
from collector.logs import Format, configure
from collector.receiver.hosts import is_loopback
from collector.settings import Settings, access_log_parts, load, tail_parts

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from collector.commands.opening import Room
    from collector.receiver.counters import Counters
    from collector.receiver.credentials import Credentials
    from collector.receiver.health import Health
    from collector.receiver.ingest import Ingest
    from collector.receiver.tls import Tls
    from collector.store.database import Store
    from collector.store.writer import Writer
    from collector.witnesses.follow import Follower, LogFile

_GRACE_SECONDS: Final = 5.0
"""How long requests that run at shutdown may take."""

_KEEP_ALIVE_SECONDS: Final = 5
"""How long a connection may be idle. Longer than our own client uses one (`collector.client.KEPT_SECONDS`)."""

_WATCH_SECONDS: Final = 0.5

_SWITCH_SECONDS: Final = 0.0005
"""Python's default of 5 ms lets the thread that reads the network wait behind the one that decodes: a third less throughput."""

_DESCRIPTION: Final = (
    "Receive OTLP traces and follow proxies' access logs into one DuckDB file, and answer queries on it."
)

_EPILOG: Final = """\
Services send OTLP to either port; nothing is acknowledged before it is committed:
  OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317   (gRPC; 4318 for http/protobuf)

Proxies write access logs; name the workload whose proxy wrote each, and the direction where its lines do not say it
(Istio's do). Files are followed across rotation, and read on after a restart where they were left:
  --access-log checkout:inbound=/var/log/envoy/checkout.json

Other witnesses are followed likewise; what each of them can prove is in docs/witnesses.md:
  --tail linkerd@checkout:/var/log/linkerd/access.log --tail ztunnel:/var/log/ztunnel.log
  --tail zeek:/opt/zeek/logs/current/conn.log --tail hubble:/var/run/cilium/hubble/events.log

Without a limit the file grows; by age, by size or by both the oldest evidence makes room for new:
  --keep 7d --max-size 20GiB

The HTTP port also answers SELECTs, /healthz, /readyz and /metrics:
  provenance scan http://127.0.0.1:4318

Bound to loopback, it needs no credentials, and answers only to localhost and addresses as Host, so that no page in a browser
can ask it. A --host that other machines reach takes TLS and credentials, or --insecure:
  provenance collect --db evidence.duckdb --host 0.0.0.0 --tls-cert tls.crt --tls-key tls.key \\
    --write-token-file write-tokens --read-token-file read-tokens
Certificates and tokens are read again when their files change.

Each setting is also a variable (--grpc-port: PROVENANCE_COLLECT_GRPC_PORT) and a key of [collector] in the --config file
(grpc_port); a flag wins over a variable, a variable over the file. --print-config shows what wins, and from where.

exit codes: 0 stopped by SIGTERM or SIGINT with everything committed, 2 could not start or could not write
"""

_log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Collect until SIGTERM or SIGINT; returns the exit code."""
    form: Format = "text"
    try:
        loaded = load(argv, os.environ, description=_DESCRIPTION, epilog=_EPILOG)
        if loaded.print_config:
            print(loaded.to_toml(), end="")
            return 0
        form = loaded.settings.log_format
        configure(form, loaded.settings.log_level)
        _collect(loaded.settings)
    except CollectorError as e:
        if form == "json":
            _log.critical("%s", e)
        else:
            complain("collect", str(e))
        return exit_code(e)
    return 0


def log_files(settings: Settings) -> tuple["LogFile", ...]:
    """The logs to follow; raises ConfigError where a file is given twice."""
    logs = (*map(_log_file, settings.access_log), *map(_tailed_file, settings.tail))
    paths = [log.source for log in logs]
    if twice := {path for path in paths if paths.count(path) > 1}:
        flag = "--tail" if twice.isdisjoint(map(_source, settings.access_log)) else "--access-log"
        raise ConfigError(
            f"{flag}: {', '.join(sorted(twice))} is given twice; each file has one workload and one format"
        )
    return logs


def _source(access_log: str) -> str:
    return _log_file(access_log).source


def _tailed_file(text: str) -> "LogFile":
    from collector.witnesses.follow import LogFile
    from collector.witnesses.reading import UNKNOWN_SERVICE

    tail = tail_parts(text)
    direction = tail.direction or None
    # `tail_parts` has checked both words.
    return LogFile(Path(tail.path), tail.service or UNKNOWN_SERVICE, direction, tail.format)  # type: ignore[arg-type]


def _log_file(text: str) -> "LogFile":
    from collector.witnesses.follow import LogFile

    match access_log_parts(text):
        case service, ("inbound" | "outbound") as direction, path:
            return LogFile(Path(path), service, direction)
        case service, _, path:
            return LogFile(Path(path), service)


@dataclass(frozen=True, slots=True)
class _Trust:
    """What guards the ports, and what is renewed while they are open."""

    credentials: "Credentials"
    tls: "Tls | None"

    @property
    def scheme(self) -> str:
        """Of the HTTP port's URL."""
        return "https" if self.tls else "http"

    def refresh(self) -> None:
        """Look whether a file has changed."""
        self.credentials.refresh()
        if self.tls is not None:
            self.tls.watched.refresh()


def _collect(settings: Settings) -> None:
    from collector.commands.opening import Room, make_room, open_store
    from collector.receiver.counters import Counters
    from collector.receiver.health import Phase, newest_received
    from collector.receiver.ingest import Ingest, replay
    from collector.receiver.relief import Relief
    from collector.store.journal import open_journal
    from collector.store.memory import tune_allocator
    from collector.store.reader import Reader
    from collector.store.retention import Policy, Retention
    from collector.store.writer import Writer

    leave_out_pandas()
    tune_allocator()
    # Large C calls hold the interpreter's lock for milliseconds; who waits for it should get it soon after.
    sys.setswitchinterval(_SWITCH_SECONDS)
    stop = _stop_at_signal()
    logs, trust = log_files(settings), _trust(settings)
    with ExitStack() as stack:
        store = stack.enter_context(open_store(settings.db.absolute(), memory_bytes=settings.memory))
        policy = Policy(settings.keep, settings.max_size)
        retention = Retention(store.path, policy)
        make_room(store, retention, policy.max_size_bytes, stop.is_set)
        _replace_policy(store, settings.policy)
        counters = Counters(newest_received_unix_nano=newest_received(Reader(store).query))
        room = Room.under(settings.max_size)
        journal = open_journal(store, segment_bytes=room.segment_bytes)
        stack.callback(journal.close)
        writer = stack.enter_context(
            Writer(
                store,
                max_queued_bytes=room.queue_bytes,
                metrics=counters,
                on_commit=journal.release,
                chore=None if policy == Policy() else retention.step,
            )
        )
        if count := replay(journal.replay(), writer):
            _log.warning(
                "%d requests were acknowledged and not stored when the last collector ended: stored now", count
            )
        follower = _follow(store, writer, logs)
        stack.callback(follower.close)
        ingest = Ingest(writer, (journal, writer))
        stack.callback(ingest.close)
        health = _health(store, writer, follower, counters, trust, room=room, max_size_bytes=settings.max_size)
        app = _app(settings, store, writer, ingest, follower, health=health, trust=trust)
        http_port = stack.enter_context(_serve_http(app, settings, trust.tls))
        grpc_port = stack.enter_context(_serve_grpc(writer, ingest, settings, counters, trust))
        follower.start()
        health.phase = Phase.SERVING
        ready = {"pid": os.getpid(), "grpc_port": grpc_port, "http_port": http_port, "database": str(store.path)}
        stack.enter_context(_ready(settings.ready_file, ready))
        _announce(settings, ready, trust.scheme)
        relief = Relief()
        try:
            while not stop.wait(_WATCH_SECONDS):
                trust.refresh()
                relief.look()
                store.lower_memory()
                if reason := writer.status().broken:
                    raise StoreError(reason)
        finally:
            health.phase = Phase.STOPPING


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
    from collector.store.replace import replace_rows

    replace_rows(store, "egress_allow", to_batch(read_policy(path)))


def _follow(store: "Store", writer: "Writer", logs: Sequence["LogFile"]) -> "Follower":
    from collector.store.reader import Reader
    from collector.witnesses.follow import Follower, positions_from

    positions = positions_from(Reader(store).query("SELECT * FROM access_logs").to_pylist())
    return Follower(logs, writer, positions)


def _trust(settings: Settings) -> _Trust:
    """TLS and tokens as the settings have them; raises ConfigError, also where the host needs more of them."""
    from collector.receiver.credentials import Credentials, check_protection
    from collector.receiver.tls import Tls, TlsFiles

    check_protection(settings)
    credentials = Credentials(write_token_file=settings.write_token_file, read_token_file=settings.read_token_file)
    if settings.tls_cert is None or settings.tls_key is None:
        return _Trust(credentials, None)
    return _Trust(credentials, Tls(TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)))


def _health(
    store: "Store",
    writer: "Writer",
    follower: "Follower",
    counters: "Counters",
    trust: _Trust,
    *,
    room: "Room",
    max_size_bytes: int | None,
) -> "Health":
    from collector.receiver.health import Health, Stale
    from collector.store.database import release
    from collector.store.reader import Limits, Reader

    watched: list[Stale] = [*trust.credentials.watched]
    if trust.tls is not None:
        watched.append(trust.tls.watched)
    return Health(
        path=store.path,
        query=Reader(store, Limits(seconds=5.0)).query,
        writer=writer.status,
        queue_limit_bytes=room.queue_bytes,
        max_size_bytes=max_size_bytes,
        counters=counters,
        version=release(),
        access_logs=follower.status,
        watched=watched,
    )


def _app(
    settings: Settings,
    store: "Store",
    writer: "Writer",
    ingest: "Ingest",
    follower: "Follower",
    *,
    health: "Health",
    trust: _Trust,
) -> "ASGIApp":
    from collector.api import api_limits, api_routes
    from collector.commands.anew import start_anew
    from collector.receiver.doors import HttpDoor
    from collector.receiver.http_app import create_app
    from collector.receiver.http_export import ROOM_BYTES
    from collector.receiver.signals import AccessLogs, logs_signal
    from collector.receiver.socket_reports import SocketReports
    from collector.store.reader import Reader

    sockets = SocketReports(writer, health.counters)
    reader = Reader(store, api_limits(store.memory.largest), on_deaf=start_anew)
    routes = api_routes(reader, database=str(store.path), access_logs=follower.status)
    app = create_app(
        ingest=ingest,
        signals=[logs_signal(AccessLogs(writer))],
        extra_routes=[*routes, *health.routes(), *sockets.routes()],
        loopback_only=is_loopback(settings.host),
        counters=health.counters,
        max_request_bytes=settings.max_request_bytes,
        # Lowering the limit is no wish to turn ordinary requests away that come together.
        room_bytes=max(ROOM_BYTES, 2 * settings.max_request_bytes),
    )
    return HttpDoor(app, trust.credentials, health.counters)


@contextmanager
def _serve_grpc(
    writer: "Writer", ingest: "Ingest", settings: Settings, counters: "Counters", trust: _Trust
) -> Iterator[int]:
    from collector.receiver.doors import GrpcDoor
    from collector.receiver.grpc_server import create_server
    from collector.receiver.reading import Places
    from collector.receiver.signals import AccessLogs, logs_service

    places = Places()

    server, bound = create_server(
        ingest,
        address=f"{_bracketed(settings.host)}:{settings.grpc_port}",
        max_request_bytes=min(settings.max_request_bytes, settings.max_grpc_request_bytes),
        handlers=[logs_service(AccessLogs(writer), places=places)],
        places=places,
        interceptors=[GrpcDoor(trust.credentials, counters)] if trust.credentials.requires("write") else [],
        credentials=trust.tls.grpc_credentials() if trust.tls else None,
        counters=counters,
    )
    server.start()
    try:
        yield bound
    finally:
        server.stop(_GRACE_SECONDS)


@contextmanager
def _serve_http(app: "ASGIApp", settings: Settings, tls: "Tls | None") -> Iterator[int]:
    """Uvicorn on a thread of its own, so that signals stay with the main one."""
    import uvicorn

    listener = _listen(settings.host, settings.http_port)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(_GRACE_SECONDS),
    )
    config.load()
    config.ssl = tls.http_context() if tls else None
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


def _announce(settings: Settings, ready: dict[str, object], scheme: str) -> None:
    host = _bracketed(settings.host)
    followed = len(settings.access_log) + len(settings.tail)
    logs = f", {followed} log{'' if followed == 1 else 's'} followed" if followed else ""
    _log.info(
        "collecting into %s: OTLP/gRPC on %s:%s%s, OTLP/HTTP and queries on %s://%s:%s%s",
        ready["database"],
        host,
        ready["grpc_port"],
        " (TLS)" if scheme == "https" else "",
        scheme,
        host,
        ready["http_port"],
        logs,
    )

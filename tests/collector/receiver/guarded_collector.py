"""A collector in this process with the shells of `provenance collect`, and clients that come with and without credentials."""

import itertools
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import trustme

from collector.api import api_routes
from collector.commands.collect import _serve_http, _Trust, _trust
from collector.otlp.synthetic import trace_request
from collector.receiver.counters import Counters
from collector.receiver.doors import GrpcDoor, HttpDoor
from collector.receiver.grpc_server import create_server
from collector.receiver.health import Health, Phase, Stale
from collector.receiver.http_app import create_app
from collector.receiver.ingest import Ingest
from collector.settings import Settings
from collector.store.database import Store
from collector.store.reader import Limits, Reader
from collector.store.writer import MAX_QUEUED_BYTES, Writer

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
DEADLINE = 20

WRITE, READ = "write-" + "w" * 20, "read-" + "r" * 20


_seeds = itertools.count()


def one_span() -> bytes:
    """A request with a span that was never sent before: the store keeps each span once."""
    payload: bytes = trace_request(1, seed=next(_seeds)).SerializeToString()
    return payload


@dataclass(frozen=True)
class Guarded:
    """Where it listens, and what a test may turn."""

    grpc_port: int
    http_port: int
    scheme: str
    trust: _Trust
    health: Health
    store: Store

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.http_port}"

    def spans(self) -> int:
        [row] = Reader(self.store).query("SELECT count(*) AS n FROM spans").to_pylist()
        return int(row["n"])

    def refused(self, reason: str) -> int:
        return {str(k): v for k, v in self.health.counters.read().refused.items()}[reason].requests


@contextmanager
def running(directory: Path, *, query_seconds: float = 10.0, **settings: object) -> Iterator[Guarded]:
    """For as long as the block runs; `settings` are those of collector/settings.py."""
    told = Settings(db=directory / "evidence.duckdb", grpc_port=0, http_port=0, **settings)  # type: ignore[arg-type]
    trust = _trust(told)
    counters = Counters()
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(told.db))
        writer = stack.enter_context(Writer(store))
        query = Reader(store, Limits(rows=1000, size_bytes=1_000_000, seconds=10.0)).query
        watched: list[Stale] = [*trust.credentials.watched, *([trust.tls.watched] if trust.tls else [])]
        health = Health(
            store.path, query, writer.status, MAX_QUEUED_BYTES, counters, watched=watched, phase=Phase.SERVING
        )
        routes = [
            *api_routes(Reader(store, Limits(1000, 1_000_000, query_seconds)), database=str(store.path)),
            *health.routes(),
        ]
        app = HttpDoor(create_app(ingest=Ingest(writer), extra_routes=routes), trust.credentials, counters)
        http_port = stack.enter_context(_serve_http(app, told, trust.tls))
        server, grpc_port = create_server(
            Ingest(writer),
            address="localhost:0",
            interceptors=[GrpcDoor(trust.credentials, counters)],
            credentials=trust.tls.grpc_credentials() if trust.tls else None,
        )
        server.start()
        stack.callback(server.stop, None)
        yield Guarded(grpc_port, http_port, trust.scheme, trust, health, store)


class Files:
    """Certificates and tokens in a directory, replaced as an operator or Kubernetes would."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = trustme.CA()
        self.cert, self.key = directory / "tls.crt", directory / "tls.key"
        self.authority = directory / "ca.crt"
        self.client_ca = directory / "client-ca.crt"
        self.clients = trustme.CA()
        self.write_tokens, self.read_tokens = directory / "write-tokens", directory / "read-tokens"
        self.issue()
        self.clients.cert_pem.write_to_path(self.client_ca)
        self.put(self.write_tokens, WRITE)
        self.put(self.read_tokens, READ)

    def issue(self, ca: trustme.CA | None = None) -> None:
        """A new server certificate."""
        leaf = (ca or self.ca).issue_cert("localhost", "127.0.0.1")
        self.replace(self.key, leaf.private_key_pem.bytes())
        self.replace(self.cert, b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        (ca or self.ca).cert_pem.write_to_path(self.authority)

    def put(self, path: Path, *lines: str) -> None:
        self.replace(path, "".join(line + "\n" for line in lines).encode())

    def replace(self, path: Path, content: bytes) -> None:
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(content)
        fresh.chmod(0o600)
        fresh.rename(path)

    def tls(self, *, mutual: bool = False) -> dict[str, Any]:
        mtls = {"tls_client_ca": self.client_ca} if mutual else {}
        return {"tls_cert": self.cert, "tls_key": self.key, **mtls}

    def tokens(self) -> dict[str, Any]:
        return {"write_token_file": self.write_tokens, "read_token_file": self.read_tokens}


@dataclass(frozen=True)
class Client:
    """One who sends and asks: with what token, trusting whom, showing which certificate."""

    token: str | None = None
    trusts: bytes | None = None
    shows: trustme.LeafCert | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"authorization": f"Bearer {self.token}"}

    def send_grpc(self, collector: Guarded) -> str:
        """The status code's name."""
        target = f"localhost:{collector.grpc_port}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self.trusts is None:
            channel = grpc.insecure_channel(target, options)
        else:
            pair = self._pair()
            channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(self.trusts, *pair), options)
        with channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(EXPORT)
            try:
                call(one_span(), timeout=DEADLINE, metadata=tuple(self.headers.items()))
            except grpc.RpcError as e:
                code: str = e.code().name
                return code
        return "OK"

    def send_http(self, collector: Guarded, **headers: str) -> httpx.Response:
        named = {"content-type": "application/x-protobuf", **self.headers, **headers}
        with self.http() as http:
            return http.post(f"{collector.url}/v1/traces", content=one_span(), headers=named)

    def ask(self, collector: Guarded, sql: str = "SELECT 1") -> httpx.Response:
        with self.http() as http:
            return http.post(f"{collector.url}/api/v1/query", json={"sql": sql}, headers=self.headers)

    def get(self, collector: Guarded, path: str) -> httpx.Response:
        with self.http() as http:
            return http.get(collector.url + path, headers=self.headers)

    def http(self) -> httpx.Client:
        context = ssl.create_default_context()
        if self.trusts is not None:
            context = ssl.create_default_context(cadata=self.trusts.decode())
        if self.shows is not None:
            with self.shows.private_key_and_cert_chain_pem.tempfile() as path:
                context.load_cert_chain(path)
        return httpx.Client(verify=context, timeout=DEADLINE, trust_env=False)

    def _pair(self) -> tuple[bytes, bytes] | tuple[None, None]:
        if self.shows is None:
            return None, None
        chain = b"".join(blob.bytes() for blob in self.shows.cert_chain_pems)
        return self.shows.private_key_pem.bytes(), chain

"""Sources to ask: `open_source` takes what a user typed, a DuckDB file or a collector's URL.

A source may be asked from several threads at once. DuckDB is imported only when a file is opened, httpx only for a URL.

    Source.query(sql) -> polars.DataFrame    raises QueryError, SourceUnreachableError
    Source.interrupt()                       every running query of this source ends with QueryError

What a collector that is not on loopback wants to see, how it is known, and how much memory a file may take comes from flags or from the
environment: see `collector.access`.
"""

import argparse
import io
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

import polars as pl

from collector.access import Access, add_access_arguments, add_memory_argument
from collector.errors import QueryError, SourceUnreachableError, StoreError
from collector.query_protocol import QUERY_ID, QUERY_PATH, STATUS_PATH
from collector.units import show_size

if TYPE_CHECKING:
    import ssl

    import httpx

    from collector.store.database import Store

__all__ = [
    "Access",
    "CollectorSource",
    "FileSource",
    "Source",
    "add_access_arguments",
    "add_memory_argument",
    "is_collector",
    "open_source",
]

_CONNECT_SECONDS: Final = 5.0

KEPT_SECONDS: Final = 2.0
"""How long an idle connection is used again. A collector closes its end after five seconds, and a question that is on its way just then is lost:
who asks every five seconds would meet that moment."""

_ANSWER_SECONDS: Final = 120.0
"""Longer than a collector's own limit: it is the collector that should end a query, since it can say why."""

_INTERRUPT_ATTEMPTS: Final = 40
_INTERRUPT_AGAIN_SECONDS: Final = 0.05


class Source(Protocol):
    """What can be asked."""

    name: str
    """What the user typed."""

    @property
    def lacks(self) -> str:
        """What belongs to it and is in none of its answers, and the remedy; empty where nothing is known to."""

    def query(self, sql: str) -> pl.DataFrame:
        """The answer to one SELECT; raises QueryError, SourceUnreachableError."""

    def interrupt(self) -> None:
        """From another thread: every running query ends with QueryError."""

    def close(self) -> None:
        """Release the file or the connections."""


def is_collector(text: str) -> bool:
    """Whether a source is a collector's URL. A file that can be opened has no collector: nothing more is on its way there."""
    return text.startswith(("http://", "https://"))


def open_source(text: str, access: Access | None = None) -> Source:
    """A source for a file's path or an http(s) URL; raises SourceUnreachableError, which says what to try.

    Without `access` the environment says how it is asked; raises ConfigError for what it says wrongly.
    """
    access = Access.of(argparse.Namespace()) if access is None else access
    if is_collector(text):
        return CollectorSource(text, access)
    if "://" in text:
        scheme = text.partition("://")[0]
        raise SourceUnreachableError(f"{text}: a source is a DuckDB file or an http(s) URL, not {scheme}://")
    return FileSource(text, memory_bytes=access.memory_bytes)


class FileSource:
    """An evidence file that no collector holds, opened read-only; `memory_bytes` is what DuckDB may hold (None: see `Store`)."""

    def __init__(self, path: str, *, memory_bytes: int | None = None) -> None:
        from collector.store.database import Store
        from collector.store.reader import Interrupt, Reader

        self.name = path
        try:
            self._store = Store.open_read_only(Path(path).expanduser(), memory_bytes=memory_bytes)
        except StoreError as e:
            raise SourceUnreachableError(str(e)) from e
        self.lacks = _unread(self._store)
        self._reader = Reader(self._store)
        self._new_interrupt = Interrupt
        self._running = _Running()

    def query(self, sql: str) -> pl.DataFrame:
        """The answer to one SELECT; raises QueryError, and SourceUnreachableError once it is closed."""
        interrupt = self._new_interrupt()
        with self._running.one(interrupt):
            try:
                table = self._reader.query(sql, interrupt=interrupt)
            except StoreError as e:
                raise SourceUnreachableError(str(e)) from e
            except QueryError as e:
                if self._took_too_much(e):
                    raise QueryError(self._too_little(e)) from e
                raise
        return _frame(lambda: pl.from_arrow(table), self.name)

    def _took_too_much(self, error: QueryError) -> bool:
        """Whether there was too little memory for it, and no room, no directory or no right to spill the rest."""
        from collector.store.failures import is_out_of_memory

        return is_out_of_memory(error.__cause__ or error) or f"{self._store.path}.tmp" in str(error)

    def _too_little(self, error: QueryError) -> str:
        store = self._store
        return (
            f"{self.name}: the question takes more than the {show_size(store.memory.largest)} of memory that it may have and what could be "
            f"spilled into {store.path.name}.tmp: give it more with --memory or PROVENANCE_MEMORY, see that this directory may be written and "
            f"has room, or ask about less time (--since, --until). DuckDB says: {error}"
        )

    def interrupt(self) -> None:
        """Every running query ends with QueryError."""
        self._running.interrupt()

    def close(self) -> None:
        """Interrupt what runs, and release the file."""
        self._running.interrupt()
        self._store.close()


class CollectorSource:
    """A running collector, asked over HTTP."""

    lacks = ""

    def __init__(self, url: str, access: Access | None = None) -> None:
        self.name = url
        try:
            host = urlsplit(url).hostname
        except ValueError as e:
            raise SourceUnreachableError(f"{url}: {e}; expected something like http://127.0.0.1:4318") from e
        if not host:
            raise SourceUnreachableError(f"{url}: no host in this URL; expected something like http://127.0.0.1:4318")
        self._base = url.rstrip("/")
        self._access = access or Access()
        self._tls = _context(self._access) if url.startswith("https://") else None
        self._http = self._client(_ANSWER_SECONDS)
        self._running = _Running()
        try:
            self.status()
        except SourceUnreachableError:
            self._http.close()
            raise

    def status(self) -> dict[str, object]:
        """What `GET /api/v1/status` answers; raises SourceUnreachableError."""
        response = self._send("GET", STATUS_PATH)
        self._check_admitted(response)
        if response.status_code != 200:
            raise SourceUnreachableError(
                f"{self.name} answered {response.status_code} to {STATUS_PATH}: no collector of mesh-provenance there; "
                "give the URL of its OTLP/HTTP port, 4318 by default"
            )
        try:
            status: dict[str, object] = response.json()
        except ValueError as e:
            raise SourceUnreachableError(
                f"{self.name} does not speak a collector's protocol: its status is no JSON"
            ) from e
        return status

    def query(self, sql: str) -> pl.DataFrame:
        """The answer to one SELECT; raises QueryError, SourceUnreachableError."""
        query_id = uuid.uuid4().hex
        with self._running.one(lambda: self._interrupt_later(query_id)):
            response = self._send("POST", QUERY_PATH, json={"sql": sql}, headers={QUERY_ID: query_id})
        if response.status_code == 200:
            return _decode(response.content, self.name)
        self._check_admitted(response)
        raise QueryError(_reason(response))

    def interrupt(self) -> None:
        """Every running query ends with QueryError, soon: the collector is told on a thread of its own."""
        self._running.interrupt()

    def close(self) -> None:
        """Interrupt what runs, and close the connections."""
        self._running.interrupt()
        self._http.close()

    def _client(self, seconds: float) -> "httpx.Client":
        import httpx

        timeout = httpx.Timeout(seconds, connect=_CONNECT_SECONDS)
        # trust_env: a proxy from the environment has no business between an investigator and a sidecar.
        # verify: there is nothing to verify over http://, and no redirect leads from there to https://.
        verify = False if self._tls is None else self._tls
        limits = httpx.Limits(keepalive_expiry=KEPT_SECONDS)
        return httpx.Client(timeout=timeout, limits=limits, trust_env=False, verify=verify)

    def _credential(self) -> dict[str, str]:
        """The header with the token, if there is one."""
        path = self._access.token_file
        return {} if path is None else {"authorization": f"Bearer {_token(path)}"}

    def _check_admitted(self, response: "httpx.Response") -> None:
        """Raises SourceUnreachableError where the collector asks for another token."""
        if response.status_code not in {401, 403}:
            return
        path = self._access.token_file
        if path is None:
            what = "asks for a read token: give --token-file or PROVENANCE_READ_TOKEN_FILE"
        else:
            what = f"does not take the token of {path}: {_reason(response)}"
        raise SourceUnreachableError(f"{self.name} {what}")

    def _send(
        self, method: str, path: str, *, json: dict[str, str] | None = None, headers: dict[str, str] | None = None
    ) -> "httpx.Response":
        import httpx

        all_headers = {**(headers or {}), **self._credential()}
        try:
            return self._http.request(method, self._base + path, json=json, headers=all_headers)
        except httpx.TimeoutException as e:
            raise SourceUnreachableError(
                f"{self.name} did not answer in time ({type(e).__name__}); is that host reachable, and the collector alive?"
            ) from e
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise SourceUnreachableError(_unanswered(self.name, e)) from e
        except RuntimeError as e:  # httpx's word for a client that was closed
            raise SourceUnreachableError(f"{self.name}: this source is closed") from e

    def _interrupt_later(self, query_id: str) -> None:
        threading.Thread(target=self._interrupt, args=(query_id,), name="query-interrupt", daemon=True).start()

    def _interrupt(self, query_id: str) -> None:
        """Tell the collector, again while the query is on its way there."""
        import httpx

        url = f"{self._base}{QUERY_PATH}/{query_id}"
        with self._client(_CONNECT_SECONDS) as http:
            for _ in range(_INTERRUPT_ATTEMPTS):
                try:
                    if http.delete(url, headers=self._credential()).status_code == 204:
                        return
                except (httpx.HTTPError, SourceUnreachableError):
                    return  # it cannot be told; the query itself meets the same fate, and says so
                if self._running.idle.wait(_INTERRUPT_AGAIN_SECONDS):
                    return


class _Running:
    """The queries that run now, each by what interrupts it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._interrupts: dict[int, Callable[[], None]] = {}
        self._next = 0
        self.idle = threading.Event()

    @contextmanager
    def one(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """For as long as one query runs."""
        with self._lock:
            self._next += 1
            key = self._next
            self._interrupts[key] = interrupt
            self.idle.clear()
        try:
            yield
        finally:
            with self._lock:
                del self._interrupts[key]
                if not self._interrupts:
                    self.idle.set()

    def interrupt(self) -> None:
        """Interrupt them all."""
        with self._lock:
            interrupts = list(self._interrupts.values())
        for interrupt in interrupts:
            interrupt()


def _unread(store: "Store") -> str:
    """What a crashed collector acknowledged and never brought into the tables, in words."""
    from collector.store.journal import folder_of, unread

    folder = folder_of(store.path)
    try:
        left = unread(store)
    except StoreError as e:
        return f"what a collector may have left in {folder} is in no answer: {e}"
    if not left.requests:
        return ""
    requests = "1 request" if left.requests == 1 else f"{left.requests:,} requests"
    return (
        f"{requests} ({left.size_bytes:,} bytes) that a collector acknowledged before it ended out of order "
        f"{'is' if left.requests == 1 else 'are'} in {folder.name}/ and in no answer; bring them in with "
        f"`provenance import --into {store.path}`, or start a collector on the file"
    )


def _context(access: Access) -> "ssl.SSLContext":
    """Whom to trust and what to show; raises SourceUnreachableError naming the file."""
    import ssl

    try:
        context = ssl.create_default_context(cafile=access.ca_file)
    except OSError as e:  # ssl.SSLError is one
        raise SourceUnreachableError(
            f"the CA file {access.ca_file} cannot be used: {e.strerror or e}; expected PEM certificates"
        ) from e
    if access.client_cert_file is not None:
        try:
            context.load_cert_chain(access.client_cert_file, access.client_key_file)
        except OSError as e:
            raise SourceUnreachableError(
                f"the client certificate {access.client_cert_file} cannot be used: {e.strerror or e}; expected PEM, "
                "and its private key in it or in --client-key-file"
            ) from e
    return context


def _token(path: Path) -> str:
    """The first token of a file; raises SourceUnreachableError, which never quotes one."""
    try:
        lines = path.read_text(encoding="ascii").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not ASCII text"
        raise SourceUnreachableError(f"the token file {path} cannot be read: {reason}") from e
    tokens = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not tokens or not tokens[0].isprintable():
        raise SourceUnreachableError(f"the token file {path} has no token in it; expected one a line")
    return tokens[0]


def _unanswered(name: str, error: Exception) -> str:
    """Why nobody answered, and what to try."""
    said = str(error) or type(error).__name__
    lowered = said.lower()
    if "certificate_verify_failed" in lowered:
        return (
            f"{name}: its certificate is not trusted ({said}); give its authority with --ca-file or PROVENANCE_CA_FILE"
        )
    if "wrong_version_number" in lowered or "record_layer_failure" in lowered:
        return f"{name} does not speak TLS ({said}); try http://"
    hung_up = "disconnected" in lowered or "reset" in lowered or "eof" in lowered or "broken pipe" in lowered
    # TLS 1.3 refuses a client's certificate after the handshake, and often has no time to say so.
    if "certificate_required" in lowered or "certificate required" in lowered or (hung_up and name.startswith("https")):
        return (
            f"{name} ended the connection ({said}); if it asks for a client's certificate, give --client-cert-file and "
            "--client-key-file (PROVENANCE_CLIENT_CERT_FILE, PROVENANCE_CLIENT_KEY_FILE)"
        )
    if hung_up:
        return f"{name} hung up without an answer ({said}); if that port speaks TLS, try https://"
    return (
        f"no collector answers at {name} ({said}); start one with `provenance collect --db evidence.duckdb`, "
        "or name its file"
    )


def _decode(content: bytes, name: str) -> pl.DataFrame:
    return _frame(lambda: pl.read_ipc_stream(io.BytesIO(content)), name)


def _frame(read: Callable[[], pl.DataFrame | pl.Series], name: str) -> pl.DataFrame:
    """The answer as a frame; QueryError where it has what a frame cannot hold."""
    try:
        value = read()
    # Polars panics, which is no Exception, on types that it does not know.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, TypeError) as e:
        raise QueryError(f"{name}: the answer cannot be read as a table ({e}); cast unusual types to VARCHAR") from e
    return value if isinstance(value, pl.DataFrame) else value.to_frame()


def _reason(response: "httpx.Response") -> str:
    """The collector's own words, or the status where there are none."""
    try:
        body = response.json()
    except ValueError:
        body = None
    match body:
        case {"error": str(reason)}:
            return reason
        case _:
            return f"the collector answered {response.status_code} {response.reason_phrase}"

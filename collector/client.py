"""Sources to ask: `open_source` takes what a user typed, a DuckDB file or a collector's URL.

A source may be asked from several threads at once. DuckDB is imported only when a file is opened, httpx only for a URL.

    Source.query(sql) -> polars.DataFrame    raises QueryError, SourceUnreachableError
    Source.interrupt()                       every running query of this source ends with QueryError
"""

import io
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

import polars as pl

from collector.errors import QueryError, SourceUnreachableError, StoreError
from collector.query_protocol import QUERY_ID, QUERY_PATH, STATUS_PATH

if TYPE_CHECKING:
    import httpx

_CONNECT_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 120.0
"""Longer than a collector's own limit: it is the collector that should end a query, since it can say why."""

_INTERRUPT_ATTEMPTS: Final = 40
_INTERRUPT_AGAIN_SECONDS: Final = 0.05


class Source(Protocol):
    """What can be asked."""

    name: str
    """What the user typed."""

    def query(self, sql: str) -> pl.DataFrame:
        """The answer to one SELECT; raises QueryError, SourceUnreachableError."""

    def interrupt(self) -> None:
        """From another thread: every running query ends with QueryError."""

    def close(self) -> None:
        """Release the file or the connections."""


def open_source(text: str) -> Source:
    """A source for a file's path or an http(s) URL; raises SourceUnreachableError, which says what to try."""
    if text.startswith(("http://", "https://")):
        return CollectorSource(text)
    if "://" in text:
        scheme = text.partition("://")[0]
        raise SourceUnreachableError(f"{text}: a source is a DuckDB file or an http(s) URL, not {scheme}://")
    return FileSource(text)


class FileSource:
    """An evidence file that no collector holds, opened read-only."""

    def __init__(self, path: str) -> None:
        from collector.store.database import Store
        from collector.store.reader import Interrupt, Reader

        self.name = path
        try:
            self._store = Store.open_read_only(Path(path).expanduser())
        except StoreError as e:
            raise SourceUnreachableError(str(e)) from e
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
        return _frame(lambda: pl.from_arrow(table), self.name)

    def interrupt(self) -> None:
        """Every running query ends with QueryError."""
        self._running.interrupt()

    def close(self) -> None:
        """Interrupt what runs, and release the file."""
        self._running.interrupt()
        self._store.close()


class CollectorSource:
    """A running collector, asked over HTTP."""

    def __init__(self, url: str) -> None:
        import httpx

        self.name = url
        try:
            host = urlsplit(url).hostname
        except ValueError as e:
            raise SourceUnreachableError(f"{url}: {e}; expected something like http://127.0.0.1:4318") from e
        if not host:
            raise SourceUnreachableError(f"{url}: no host in this URL; expected something like http://127.0.0.1:4318")
        self._base = url.rstrip("/")
        timeout = httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
        # trust_env: a proxy from the environment has no business between an investigator and a sidecar.
        self._http = httpx.Client(timeout=timeout, trust_env=False)
        self._running = _Running()
        try:
            self.status()
        except SourceUnreachableError:
            self._http.close()
            raise

    def status(self) -> dict[str, object]:
        """What `GET /api/v1/status` answers; raises SourceUnreachableError."""
        response = self._send("GET", STATUS_PATH)
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
        raise QueryError(_reason(response))

    def interrupt(self) -> None:
        """Every running query ends with QueryError, soon: the collector is told on a thread of its own."""
        self._running.interrupt()

    def close(self) -> None:
        """Interrupt what runs, and close the connections."""
        self._running.interrupt()
        self._http.close()

    def _send(
        self, method: str, path: str, *, json: dict[str, str] | None = None, headers: dict[str, str] | None = None
    ) -> "httpx.Response":
        import httpx

        try:
            return self._http.request(method, self._base + path, json=json, headers=headers)
        except httpx.TimeoutException as e:
            raise SourceUnreachableError(
                f"{self.name} did not answer in time ({type(e).__name__}); is that host reachable, and the collector alive?"
            ) from e
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise SourceUnreachableError(
                f"no collector answers at {self.name} ({e}); start one with `provenance collect --db evidence.duckdb`, "
                "or name its file"
            ) from e
        except RuntimeError as e:  # httpx's word for a client that was closed
            raise SourceUnreachableError(f"{self.name}: this source is closed") from e

    def _interrupt_later(self, query_id: str) -> None:
        threading.Thread(target=self._interrupt, args=(query_id,), name="query-interrupt", daemon=True).start()

    def _interrupt(self, query_id: str) -> None:
        """Tell the collector, again while the query is on its way there."""
        import httpx

        url = f"{self._base}{QUERY_PATH}/{query_id}"
        with httpx.Client(timeout=_CONNECT_SECONDS, trust_env=False) as http:
            for _ in range(_INTERRUPT_ATTEMPTS):
                try:
                    if http.delete(url).status_code == 204:
                        return
                except httpx.HTTPError:
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

"""POST /v1/sockets: where socket witnesses report. JSON in, committed before it is answered, as for OTLP.

| outcome | status | the witness |
|---|---|---|
| committed | 200 `{"accepted": n, "rejected": {reason: n}}` | forgets the report |
| no report, not the encoding that it says | 400 | drops it |
| larger than `MAX_REPORT_BYTES`, also after decompression | 413 | drops it |
| not application/json, an encoding that is not spoken here | 415 | drops it |
| too slow a body | 408 | drops it |
| the store failed, is full, or took too long; too many reports at once | 503 with Retry-After | sends it again |

A write token is asked for at the door, as for every path under /v1/. Rows that are left out are counted in `ingest_errors` under the
witness's name; the good ones of the same report count.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from collector.errors import DecodeError, StoreError
from collector.receiver.counters import Counters, Reason
from collector.receiver.http_export import COMMIT_TIMEOUT_S, READ_TIMEOUT_S, media_type
from collector.receiver.inflate import ENCODINGS, TooLargeError, inflate, is_known, too_large
from collector.receiver.ingest import Batches, Writer, refusals, store_failure
from collector.receiver.statuses import RETRY_AFTER_S
from collector.witnesses.sockets_report import Decoded, decode_report

LOG: Final = logging.getLogger(__name__)

SOCKETS_PATH: Final = "/v1/sockets"
MAX_REPORT_BYTES: Final = 8 * 1024 * 1024
"""Our witness sends 5,000 rows at most, of some 400 bytes."""

CONCURRENT_REPORTS: Final = 4
"""Read and decoded at once: each may cost ten times its bytes. More wait a moment, and are then told to come again."""

_WAIT_S: Final = 5.0


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, reason: Reason, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class SocketReports:
    """The endpoint; takes reports for a writer."""

    def __init__(
        self,
        writer: Writer,
        counters: Counters,
        *,
        clock: Callable[[], int] = time.time_ns,
        read_timeout_s: float = READ_TIMEOUT_S,
        commit_timeout_s: float = COMMIT_TIMEOUT_S,
    ) -> None:
        self._writer = writer
        self._counters = counters
        self._clock = clock
        self._read_timeout_s = read_timeout_s
        self._commit_timeout_s = commit_timeout_s
        self._turn = asyncio.Semaphore(CONCURRENT_REPORTS)

    def routes(self) -> list[Route]:
        """To be mounted beside OTLP/HTTP's."""
        return [Route(SOCKETS_PATH, self.endpoint, methods=["POST"])]

    async def endpoint(self, request: Request) -> Response:
        """Read, decode, hand over, wait for the commit, answer."""
        try:
            async with asyncio.timeout(_WAIT_S):
                await self._turn.acquire()
        except TimeoutError:
            return self._refused(_later("too many reports are here at once", "queue_full"))
        try:
            decoded = await self._accept(request)
        except _RefusedError as error:
            return self._refused(error)
        finally:
            self._turn.release()
        accepted = decoded.batches["sockets"].num_rows if "sockets" in decoded.batches else 0
        return JSONResponse({"accepted": accepted, "rejected": dict(decoded.rejected)})

    async def _accept(self, request: Request) -> Decoded:
        """Committed, or a _RefusedError."""
        encoding = _spoken(request)
        body = await self._body(request)
        now = self._clock()
        try:
            decoded = await run_in_threadpool(_decode, body, encoding, now)
        except TooLargeError as e:
            raise _RefusedError(413, str(e), "too_large") from e
        except DecodeError as e:
            raise _RefusedError(400, str(e), "malformed") from e
        await self._commit(decoded, now)
        return decoded

    async def _commit(self, decoded: Decoded, now: int) -> None:
        batches: Batches = decoded.batches
        if decoded.rejected:
            batches = {**batches, "ingest_errors": refusals(now, decoded.rejected, source=f"sockets:{decoded.source}")}
        try:
            # A timeout must not cancel the writer's future: its rows may be in the next commit.
            committed = asyncio.wrap_future(self._writer.append(batches))
            await asyncio.wait_for(asyncio.shield(committed), self._commit_timeout_s)
        except (StoreError, CancelledError, TimeoutError) as e:
            raise _later(store_failure(e), "store_failed") from e

    async def _body(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(self._read_timeout_s):
                body = bytearray()
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > MAX_REPORT_BYTES:
                        raise _RefusedError(413, str(too_large(MAX_REPORT_BYTES)), "too_large")
                return bytes(body)
        except TimeoutError as e:
            message = f"the body did not arrive within {self._read_timeout_s:g} s"
            raise _RefusedError(408, message, "too_slow", connection="close") from e
        except ClientDisconnect as e:
            raise _RefusedError(400, "the sender went away before the body's end", "other") from e

    def _refused(self, error: _RefusedError) -> Response:
        self._counters.refused(error.reason, 1)
        LOG.warning("a report of sockets was refused: %s", error)
        return JSONResponse({"error": str(error)}, error.status, error.headers)


def _decode(body: bytes, encoding: str, now: int) -> Decoded:
    plain = inflate(body, encoding, MAX_REPORT_BYTES) if encoding else body
    return decode_report(plain, received_unix_nano=now)


def _spoken(request: Request) -> str:
    """The content encoding to undo, empty for none. Raises _RefusedError."""
    if media_type(request) != "application/json":
        raise _RefusedError(415, "a report of sockets is application/json", "unsupported", accept="application/json")
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in {"", "identity"}:
        return ""
    if not is_known(encoding):
        one_of = ", ".join(ENCODINGS)
        raise _RefusedError(415, f"content-encoding: one of {one_of}, or none", "unsupported", accept_encoding=one_of)
    return encoding


def _later(message: str, reason: Reason) -> _RefusedError:
    return _RefusedError(503, message, reason, retry_after=str(RETRY_AFTER_S))

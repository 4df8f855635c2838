"""The investigator's door to a running collector: SQL in, Arrow out, over HTTP.

    POST   /api/v1/query         {"sql": "SELECT ..."} -> an Arrow IPC stream; 400 {"error"}, 504 at the time limit
    DELETE /api/v1/query/{id}    interrupt the query that was sent with `x-query-id: id`; 204, or 404 if none runs
    GET    /api/v1/status        what is stored and since when, what was removed, what is followed and how far behind

A client that hangs up interrupts its query. The query's body must be declared as JSON: a browser then asks before it
sends one for a foreign page.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from collector.errors import QueryError, StoreError
from collector.query_protocol import ARROW_STREAM, QUERY_ID, QUERY_PATH, STATUS_PATH
from collector.store.database import release
from collector.store.kept import read_kept
from collector.store.reader import Interrupt, Limits, QueryTimeoutError, Reader

API_LIMITS: Final = Limits(rows=2_000_000, size_bytes=256 * 1024 * 1024, seconds=60.0, guarded=True)
MAX_BODY_BYTES: Final = 1024 * 1024
CONCURRENT_QUERIES: Final = 4
"""Further ones wait: each uses every core that it gets, and the writer needs some."""


def api_limits(memory_bytes: int) -> Limits:
    """What a question may cost where all of them together have so much memory (`Allowance.largest`).

    Beside that the process has answers, as Arrow and as they are sent, what functions build within one step, and what ingesting takes.
    """
    return replace(API_LIMITS, process_bytes=2 * memory_bytes + 2 * (API_LIMITS.size_bytes or 0))


_TOTALS: Final = """\
SELECT (SELECT count(*) FROM spans) AS spans,
       (SELECT count(*) FROM proxy_records) AS proxy_records,
       (SELECT coalesce(sum(count), 0) FROM ingest_errors) AS refused,
       (SELECT max(received_unix_nano) FROM spans) AS last_received_unix_nano"""

LogStatus = Callable[[], Sequence[Mapping[str, object]]]
"""The access logs that are followed: `source, service_name, direction, lag_bytes, read_age_seconds, lines, refused, error`."""


class _RefusedError(Exception):
    """A request that is answered with this status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Api:
    reader: Reader
    database: str
    access_logs: LogStatus
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENT_QUERIES))
    running: dict[str, Interrupt] = field(default_factory=dict)

    async def query(self, request: Request) -> Response:
        """Answer one SELECT."""
        try:
            sql = _sql(await _body(request), request.headers.get("content-type", ""))
            content = await self._answer(request, sql)
        except _RefusedError as e:
            return _error(e.status, str(e))
        except QueryTimeoutError as e:
            return _error(504, str(e))
        except QueryError as e:
            return _error(400, str(e))
        except StoreError as e:
            return _error(503, str(e))
        except ClientDisconnect:
            return Response(status_code=400)
        return Response(content, media_type=ARROW_STREAM)

    async def _answer(self, request: Request, sql: str) -> bytes:
        """Run the query on a thread, for as long as the client waits for it."""
        interrupt = Interrupt()
        query_id = request.headers.get(QUERY_ID, "")
        if query_id in self.running:
            raise _RefusedError(409, f"a query with {QUERY_ID} {query_id!r} is running already")
        if query_id:
            self.running[query_id] = interrupt
        hang_up = asyncio.create_task(_interrupt_at_hang_up(request, interrupt))
        try:
            async with self.turn:
                return await asyncio.to_thread(self._run, sql, interrupt)
        finally:
            interrupt()  # nothing happens if it is over; if this task was cancelled, its thread must not go on
            self.running.pop(query_id, None)
            hang_up.cancel()
            with suppress(asyncio.CancelledError):
                await hang_up

    def _run(self, sql: str, interrupt: Interrupt) -> bytes:
        return ipc_stream(self.reader.query(sql, interrupt=interrupt))

    def _totals(self) -> dict[str, object]:
        [totals] = self.reader.query(_TOTALS).to_pylist()
        since_unix_nano, removed = read_kept(self.reader.query)
        return {**totals, "evidence_since_unix_nano": since_unix_nano, "removed": removed}

    async def interrupt(self, request: Request) -> Response:
        """Interrupt a running query by its id."""
        interrupt = self.running.get(request.path_params["query_id"])
        if interrupt is None:
            return _error(404, "no query with this id is running")
        interrupt()
        return Response(status_code=204)

    async def status(self, _: Request) -> Response:
        """What is stored and what is followed."""
        try:
            totals = await asyncio.to_thread(self._totals)
        except (QueryError, StoreError) as e:
            return _error(503, str(e))
        logs = [dict(log) for log in self.access_logs()]
        return JSONResponse({"version": release(), "database": self.database, **totals, "access_logs": logs})


def api_routes(reader: Reader, *, database: str, access_logs: LogStatus = tuple) -> list[BaseRoute]:
    """The routes, to be mounted beside OTLP/HTTP's."""
    api = _Api(reader, database, access_logs)
    return [
        Route(QUERY_PATH, api.query, methods=["POST"]),
        Route(QUERY_PATH + "/{query_id}", api.interrupt, methods=["DELETE"]),
        Route(STATUS_PATH, api.status, methods=["GET"]),
    ]


def ipc_stream(table: pa.Table) -> bytes:
    """The table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


async def _body(request: Request) -> bytes:
    """The request's body; refused once it is larger than any SQL should be."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _RefusedError(413, f"the request is larger than {MAX_BODY_BYTES} bytes")
    return bytes(body)


def _sql(body: bytes, content_type: str) -> str:
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise _RefusedError(
            415, f'expected application/json like {{"sql": "SELECT 1"}}, got {content_type or "no type"!r}'
        )
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise _RefusedError(400, f"the request is not JSON: {e}") from e
    match document:
        case {"sql": str(sql)} if len(document) == 1:
            return sql
        case _:
            raise _RefusedError(400, 'expected {"sql": "SELECT ..."} and nothing else')


async def _interrupt_at_hang_up(request: Request, interrupt: Interrupt) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    interrupt()


def _error(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status_code=status)

"""OTLP's other two signals: logs that are proxies' access logs are stored, every other log and all metrics are not.

A Collector serves the signals for which it has a pipeline, and registers no service and no route for the others (its
`otlpreceiver`: gRPC answers UNIMPLEMENTED, HTTP 404). So does this one:

| | gRPC | HTTP |
|---|---|---|
| traces | `grpc_server` | `http_app` |
| logs | `LogsService/Export`: access logs; other records are refused in `partial_success`, with the reason | `/v1/logs`, the same |
| metrics | UNIMPLEMENTED, by gRPC itself | 404 with a Status, by `http_app` |

Outcomes and statuses of a log request are those of a trace request: see `grpc_server` and `http_app`.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from collector.errors import DecodeError, StoreError
from collector.otlp.access_logs import decode_access_logs
from collector.receiver.grpc_server import COMMIT_TIMEOUT_S
from collector.receiver.http_export import Signal
from collector.receiver.inflate import TooLargeError
from collector.receiver.ingest import Writer, refusals, store_failure
from collector.receiver.reading import CrowdedError, Places
from collector.receiver.statuses import DEFECT, bad_request, grpc_trailer, status, unavailable

LOG: Final = logging.getLogger(__name__)

LOGS_SERVICE: Final = "opentelemetry.proto.collector.logs.v1.LogsService"
LOGS_PATH: Final = "/v1/logs"

MAX_LOGS_BYTES: Final = 8 * 1024 * 1024
"""Of a log request: its records become Python objects. Envoy sends 16 KiB at a time, a Collector 8,192 records, or 4 MiB."""


@dataclass(frozen=True, slots=True)
class AcceptedLogs:
    """A log request that was decoded and handed to the store.

    Attributes:
        rejected: Log records that were refused, by reason.
        committed: Done when everything else is committed; fails with a StoreError.
    """

    rejected: Mapping[str, int]
    committed: "Future[None]"

    def response(self) -> bytes:
        """The ExportLogsServiceResponse: `partial_success` is set when records were refused, and only then."""
        response = ExportLogsServiceResponse()
        if self.rejected:
            response.partial_success.rejected_log_records = sum(self.rejected.values())
            response.partial_success.error_message = _describe(self.rejected)
        return response.SerializeToString()


class AccessLogs:
    """Accepts log requests for a writer, from any thread."""

    def __init__(self, writer: Writer, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._writer = writer
        self._clock = clock
        # As for traces: decoding holds the GIL, and several at once would cost each one's memory.
        self._decoding = threading.Lock()

    def logs(self, payload: bytes) -> AcceptedLogs:
        """Decode a serialised ExportLogsServiceRequest and queue its rows.

        Raises:
            TooLargeError: It has more than `MAX_LOGS_BYTES`.
            DecodeError: It is not one; the refusal itself is recorded in `ingest_errors`.
            StoreError: The store takes no more; the same request may be sent again.
        """
        if len(payload) > MAX_LOGS_BYTES:
            raise TooLargeError(
                f"a log request of {len(payload)} bytes: {MAX_LOGS_BYTES} are accepted, send smaller batches"
            )
        now = self._clock()
        try:
            with self._decoding:
                decoded = decode_access_logs(payload, received_unix_nano=now)
        except DecodeError as error:
            self._record_refusal(now, f"log request refused: {error}")
            raise
        batches = {table: batch for table, batch in decoded.batches.items() if batch.num_rows}
        if amended := {**decoded.rejected, **decoded.notes}:
            batches["ingest_errors"] = refusals(now, amended)
        return AcceptedLogs(decoded.rejected, self._writer.append(batches) if batches else _done())

    def _record_refusal(self, now: int, reason: str) -> None:
        """Nobody waits for this one: the sender learns what was wrong with its request either way."""
        try:
            recorded = self._writer.append({"ingest_errors": refusals(now, {reason: 1})})
        except StoreError as error:
            LOG.error("%s; not recorded: %s", reason, error)  # noqa: TRY400 - the sender's mistake, no trace of ours
        else:
            recorded.add_done_callback(_log_failure)


def logs_service(
    logs: AccessLogs, commit_timeout_s: float = COMMIT_TIMEOUT_S, *, places: Places | None = None
) -> grpc.GenericRpcHandler:
    """LogsService for a gRPC server; `places` are those of its port. A request's bytes go to the decoder as they came."""
    reading = places or Places()

    async def export(_: Any, context: Any) -> bytes:
        try:
            async with reading.message(context) as payload:
                if payload is grpc.aio.EOF:
                    return _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, bad_request("the call has no message"))
                accepted = await asyncio.to_thread(logs.logs, payload)
                del payload
                async with asyncio.timeout(commit_timeout_s):
                    await asyncio.shield(asyncio.wrap_future(accepted.committed))
        except TooLargeError as error:
            return _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, bad_request(str(error)))
        except DecodeError as error:
            return _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, bad_request(str(error)))
        except (CrowdedError, StoreError, CancelledError, TimeoutError) as error:
            message = str(error) if isinstance(error, CrowdedError) else store_failure(error)
            return _refuse(context, grpc.StatusCode.UNAVAILABLE, unavailable(message))
        except Exception:
            LOG.exception("a log request could not be handled")
            return _refuse(context, grpc.StatusCode.INTERNAL, status(code_pb2.INTERNAL, DEFECT))
        return accepted.response()

    return grpc.method_handlers_generic_handler(LOGS_SERVICE, {"Export": grpc.stream_unary_rpc_method_handler(export)})


def logs_signal(logs: AccessLogs) -> Signal:
    """/v1/logs for the HTTP application."""
    response = ExportLogsServiceResponse
    return Signal(LOGS_PATH, ExportLogsServiceRequest, response, logs.logs, max_bytes=MAX_LOGS_BYTES)


def _refuse(context: Any, code: Any, body: Status) -> bytes:
    """End the call with a status; what a handler returns beside one is not sent."""
    context.set_code(code)
    context.set_details(body.message)
    context.set_trailing_metadata(grpc_trailer(body))
    return b""


def _describe(counts: Mapping[str, int]) -> str:
    """`3 log records: not an access log; 1 log record: ...`, the most frequent reason first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} log record{'' if count == 1 else 's'}: {reason}" for reason, count in ordered)


def _done() -> "Future[None]":
    future: Future[None] = Future()
    future.set_result(None)
    return future


def _log_failure(future: "Future[None]") -> None:
    if future.cancelled():
        LOG.warning("the store closed before a refused request was recorded")
    elif (error := future.exception()) is not None:
        LOG.error("a refused request was not recorded: %s", error)

"""One trace request, from its bytes to the store: what both shells, gRPC and HTTP, do.

Decode, count what was refused, hand everything to the writer, and give back a future that is done when it is committed.
A shell answers the sender after that and not before: **acknowledged means committed**. A sender that got no answer in
time sends again, so a span may arrive twice, and never not at all.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Final, Protocol

import pyarrow as pa
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from collector.errors import DecodeError, StoreError
from collector.otlp import decode_traces
from collector.schema import arrow_schema

LOG: Final = logging.getLogger(__name__)

MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024
"""opentelemetry-proto: "it is RECOMMENDED to limit ... to 64 MiB", after decompression too."""

SOURCE: Final = "otlp"


class Writer(Protocol):
    """The store, as far as a receiver knows it."""

    def append(self, batches: Mapping[str, pa.RecordBatch]) -> "Future[None]":
        """Queue the batches; the future is done when they are committed. Raises StoreError when it takes no more."""
        ...


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that was decoded and handed to the store.

    Attributes:
        rejected: Spans that were refused, by reason.
        committed: Done when everything else is committed; fails with a StoreError.
    """

    rejected: Mapping[str, int]
    committed: "Future[None]"

    def response(self) -> bytes:
        """The ExportTraceServiceResponse: `partial_success` is set when spans were refused, and only then."""
        response = ExportTraceServiceResponse()
        if self.rejected:
            response.partial_success.rejected_spans = sum(self.rejected.values())
            response.partial_success.error_message = describe(self.rejected)
        return response.SerializeToString()


class Ingest:
    """Accepts trace requests for a writer, from any thread."""

    def __init__(self, writer: Writer, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._writer = writer
        self._clock = clock
        # Decoding holds the GIL: several at once would gain no time and cost each one's memory.
        self._decoding = threading.Lock()
        # Arrow and NumPy load their parts on first use (pandas too, where it is installed: a second or more). That
        # belongs to the start, not to the first sender's wait.
        decode_traces(b"", received_unix_nano=0)

    def traces(self, payload: bytes) -> Accepted:
        """Decode a serialised ExportTraceServiceRequest and queue its rows.

        Raises:
            DecodeError: It is not one; the refusal itself is recorded in `ingest_errors`.
            StoreError: The store takes no more; the same request may be sent again.
        """
        now = self._clock()
        try:
            with self._decoding:
                decoded = decode_traces(payload, received_unix_nano=now)
        except DecodeError as error:
            self._record_refusal(now, f"request refused: {error}")
            raise
        batches = {table: batch for table, batch in decoded.batches.items() if batch.num_rows}
        if amended := {**decoded.rejected, **decoded.notes}:
            batches["ingest_errors"] = refusals(now, amended)
        return Accepted(decoded.rejected, self._writer.append(batches) if batches else _done())

    def _record_refusal(self, now: int, reason: str) -> None:
        """Nobody waits for this one: the sender learns what was wrong with its request either way."""
        try:
            recorded = self._writer.append({"ingest_errors": refusals(now, {reason: 1})})
        except StoreError as error:
            LOG.error("%s; not recorded: %s", reason, error)  # noqa: TRY400 - the sender's mistake, no trace of ours
        else:
            recorded.add_done_callback(_log_failure)


def refusals(received_unix_nano: int, counts: Mapping[str, int]) -> pa.RecordBatch:
    """Rows of `ingest_errors`, one a reason."""
    rows = [
        {"received_unix_nano": received_unix_nano, "source": SOURCE, "reason": reason, "count": count}
        for reason, count in counts.items()
    ]
    return pa.RecordBatch.from_pylist(rows, schema=arrow_schema("ingest_errors"))


def describe(counts: Mapping[str, int]) -> str:
    """`3 spans: trace_id is all zeros; 1 span: ...`, the most frequent reason first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} span{'' if count == 1 else 's'}: {reason}" for reason, count in ordered)


def store_failure(error: BaseException) -> str:
    """Why a commit did not happen, for the sender; anything but the store's own failures is raised again."""
    match error:
        case StoreError():
            return str(error)
        case CancelledError():
            return "the collector is shutting down: send this request again"
        case TimeoutError():
            return "not committed in time: send this request again"
        case _:
            raise error


def _done() -> "Future[None]":
    future: Future[None] = Future()
    future.set_result(None)
    return future


def _log_failure(future: "Future[None]") -> None:
    if future.cancelled():
        LOG.warning("the store closed before a refused request was recorded")
    elif (error := future.exception()) is not None:
        LOG.error("a refused request was not recorded: %s", error)

"""Trace requests, from their bytes to the store: what both shells, gRPC and HTTP, do with them.

    traces(payload) ─▶ waiting ─▶ decode, a group at a time ─▶ journal, one fdatasync a group ─▶ writer
                          │             │                          │
                     StoreFullError  DecodeError              acknowledged

Decoding costs mostly per call, a journal's fdatasync does too: so whatever arrived meanwhile goes together. A shell answers the
sender when the request's future is done and not before: **acknowledged means durable**. A sender that got no answer in time
sends again; what was stored already is recognised then (see `collector.store.recent`).
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

import pyarrow as pa
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from collector.errors import StoreError, StoreFullError
from collector.otlp import decode_group
from collector.otlp.decode import Group
from collector.schema import arrow_schema
from collector.store.journal import Entry, Journal, Position

LOG: Final = logging.getLogger(__name__)

MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024
"""opentelemetry-proto: "it is RECOMMENDED to limit ... to 64 MiB", after decompression too."""

MAX_WAITING_BYTES: Final = 32 * 1024 * 1024
"""Of requests that are not acknowledged yet. A single one may be larger."""

GROUP_BYTES: Final = 2 * 1024 * 1024
"""What is decoded together: some 4,500 spans. More gains little, and every one of them waits for the last."""

MANY: Final = 8
GATHER_S: Final = 0.015
"""Where so many small requests came together, the next ones are given so long to come: of requests with a few spans each, decoding a group
takes as long as decoding one. Who sends alone is never waited for."""

SOURCE: Final = "otlp"

Batches = Mapping[str, pa.RecordBatch]


class Writer(Protocol):
    """The store, as far as a receiver knows it."""

    def append(self, batches: Batches) -> "Future[None]":
        """Queue the batches; the future is done when they are committed. Raises StoreError when it takes no more."""
        ...


class JournaledWriter(Writer, Protocol):
    """A store whose journal holds what is appended."""

    def append_journaled(self, parts: Sequence[Batches], position: Position) -> None:
        """Queue what the journal holds up to there, after waiting for room. Raises StoreError when it takes no more."""
        ...


@dataclass(slots=True, eq=False)
class Accepted:
    """A request that is under way.

    Attributes:
        payload: As it arrived.
        received_unix_nano: When it did.
        committed: Done when it is durable; fails with a StoreError, or with a DecodeError when it is no trace request.
        span_count: Spans that are kept, and
        rejected: spans that were refused, by reason; both are known when `committed` is done.
    """

    payload: bytes
    received_unix_nano: int
    committed: "Future[None]" = field(default_factory=Future)
    span_count: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)

    def response(self) -> bytes:
        """The ExportTraceServiceResponse: `partial_success` is set when spans were refused, and only then."""
        response = ExportTraceServiceResponse()
        if self.rejected:
            response.partial_success.rejected_spans = sum(self.rejected.values())
            response.partial_success.error_message = describe(self.rejected)
        return response.SerializeToString()


class Ingest:
    """Accepts trace requests for a writer, from any thread.

    Args:
        writer: Takes the rows.
        journal: Makes requests durable before their rows are in the tables; without one, `writer.append` does.
        clock: ns since the Unix epoch.
        max_waiting_bytes: Of requests that are not acknowledged yet.
    """

    def __init__(
        self,
        writer: Writer,
        journal: "tuple[Journal, JournaledWriter] | None" = None,
        *,
        clock: Callable[[], int] = time.time_ns,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self._keep = _Directly(writer) if journal is None else _Journaled(*journal)
        self._clock = clock
        self._max_waiting_bytes = max_waiting_bytes
        self._changed = threading.Condition()
        self._waiting: deque[Accepted] = deque()
        self._waiting_bytes = 0
        self._undecoded_bytes = 0
        self._is_crowd = False
        self._closing = False
        # Arrow and NumPy load their parts on first use (pandas too, where it is installed: a second or more). That
        # belongs to the start, not to the first sender's wait.
        decode_group([b""], [0])
        self._decoder = threading.Thread(target=self._decode, name="otlp-decode", daemon=True)
        self._decoder.start()

    @property
    def waiting_bytes(self) -> int:
        """Of requests that are not acknowledged yet."""
        return self._waiting_bytes

    def traces(self, payload: bytes) -> Accepted:
        """Take a serialised ExportTraceServiceRequest; what becomes of it, `committed` says.

        Raises:
            StoreFullError: Too much waits already; the same request may be sent again.
            StoreError: The collector is shutting down.
        """
        request = Accepted(payload, self._clock())
        with self._changed:
            if self._closing:
                raise StoreError("the collector is shutting down: send this request again")
            self.check_room(len(payload))
            self._waiting.append(request)
            self._waiting_bytes += len(payload)
            self._undecoded_bytes += len(payload)
            # Waking the decoder for each would cost more than decoding.
            if len(self._waiting) == 1 or self._is_enough():
                self._changed.notify()
        # Not the request: a future keeps its callbacks, and both would wait for the garbage collector, with the bytes.
        size = len(payload)
        request.committed.add_done_callback(lambda _: self._answered(size))
        return request

    def check_room(self, size_bytes: int = 1) -> None:
        """Raise StoreFullError where a request of that size would not be taken now."""
        if self._waiting_bytes and self._waiting_bytes + size_bytes > self._max_waiting_bytes:
            raise StoreFullError(
                f"{self._waiting_bytes} bytes of requests wait to be written, the limit is {self._max_waiting_bytes}: "
                "send this request again in a moment"
            )

    def close(self, timeout_s: float = 30.0) -> None:
        """Take no more requests, and wait until those that are under way are answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._decoder.join(timeout_s)
        self._keep.close(timeout_s)

    def _answered(self, size_bytes: int) -> None:
        with self._changed:
            self._waiting_bytes -= size_bytes

    def _decode(self) -> None:
        while self._decode_group(self._next_group()):
            pass

    def _decode_group(self, requests: list[Accepted]) -> bool:
        """Decode them and hand them on; False when there are none. A function: its frame keeps no request until the next ones come."""
        try:
            if requests:
                self._keep.keep(_Decoded.of(requests))
        except BaseException as error:
            LOG.exception("a group of %d requests could not be decoded", len(requests))
            fail(requests, StoreError(f"the collector failed: {error!r}"))
        return bool(requests)

    def _next_group(self) -> list[Accepted]:
        """Everything that waits, up to a group's size; empty only when closing and drained."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if self._is_crowd:
                self._changed.wait_for(lambda: self._is_enough() or self._closing, GATHER_S)
            group: list[Accepted] = []
            size = 0
            while self._waiting and (not group or size + len(self._waiting[0].payload) <= GROUP_BYTES):
                group.append(self._waiting.popleft())
                size += len(group[-1].payload)
            self._undecoded_bytes -= size
            self._is_crowd = len(group) >= MANY and size < GROUP_BYTES // 4
            return group

    def _is_enough(self) -> bool:
        return self._undecoded_bytes >= GROUP_BYTES


def replay(entries: Iterable[Entry], writer: JournaledWriter) -> int:
    """Hand over what a journal still holds, before anything else arrives; returns how many requests. Raises StoreError."""
    count = 0
    for group in _grouped(entries):
        decoded = decode_group([e.payload for e in group], [e.received_unix_nano for e in group])
        writer.append_journaled(_parts(decoded, group[-1].received_unix_nano), group[-1].end)
        count += len(group)
    return count


def _grouped(entries: Iterable[Entry]) -> "Iterable[list[Entry]]":
    group: list[Entry] = []
    for entry in entries:
        group.append(entry)
        if sum(len(e.payload) for e in group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


# --- how requests become durable --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Decoded:
    """A group of requests after decoding: those that are kept, and their rows with the record of what was refused."""

    requests: list[Accepted]
    parts: list[dict[str, pa.RecordBatch]]

    @staticmethod
    def of(requests: Sequence[Accepted]) -> "_Decoded":
        """Decode; answer those that are no trace requests."""
        group = decode_group([r.payload for r in requests], [r.received_unix_nano for r in requests])
        parts = _parts(group, requests[-1].received_unix_nano)
        kept = []
        for request, outcome in zip(requests, group.outcomes, strict=True):
            if outcome.error is not None:
                request.committed.set_exception(outcome.error)
                continue
            request.span_count, request.rejected = outcome.span_count, outcome.rejected
            kept.append(request)
        return _Decoded(kept, parts)


def _parts(group: Group, now: int) -> list[dict[str, pa.RecordBatch]]:
    """The group's rows, and one of `ingest_errors` for each reason why something was not stored as it came."""
    parts = [{table: batch for table, batch in part.items() if batch.num_rows} for part in group.parts]
    counts = dict(group.notes)
    for outcome in group.outcomes:
        reasons = {f"request refused: {outcome.error}": 1} if outcome.error else outcome.rejected
        for reason, count in reasons.items():
            counts[reason] = counts.get(reason, 0) + count
    return [part for part in (*parts, {"ingest_errors": refusals(now, counts)} if counts else {}) if part]


class _Directly:
    """A request is durable when its rows are committed."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def keep(self, decoded: _Decoded) -> None:
        """Answer the requests when all of their rows are committed."""
        left = len(decoded.parts)

        def part_is_done(future: "Future[None]") -> None:
            nonlocal left
            left -= 1
            error = CancelledError() if future.cancelled() else future.exception()
            if error is not None:
                fail(decoded.requests, error)
            elif left == 0:
                _succeed(decoded.requests)

        if not decoded.parts:
            _succeed(decoded.requests)
        try:
            for part in decoded.parts:
                self._writer.append(part).add_done_callback(part_is_done)
        except StoreError as error:
            fail(decoded.requests, error)

    def close(self, timeout_s: float) -> None:
        """Nothing to do: the writer answers."""


class _Journaled:
    """A request is durable when it is in the journal; its rows follow."""

    def __init__(self, journal: Journal, writer: JournaledWriter) -> None:
        self._journal = journal
        self._writer = writer
        # One group is written while the next is decoded; a third would only take memory.
        self._decoded: queue.Queue[_Decoded | None] = queue.Queue(maxsize=1)
        self._end = journal.end  # a group of nothing but refusals must not set the position back
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def keep(self, decoded: _Decoded) -> None:
        """Hand the group to the journal's thread."""
        self._decoded.put(decoded)

    def close(self, timeout_s: float) -> None:
        """Wait until everything is written."""
        with suppress(queue.Full):
            self._decoded.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while self._write(self._decoded.get()):
            pass

    def _write(self, decoded: _Decoded | None) -> bool:
        """Journal a group, answer, hand on its rows; False for None. A function: its frame keeps no group until the next one comes."""
        if decoded is None:
            return False
        count = len(decoded.requests)
        try:
            if count:
                self._end = self._journal.write([(r.received_unix_nano, r.payload) for r in decoded.requests])
        except StoreError as error:
            fail(decoded.requests, error)
            return True
        _succeed(decoded.requests)
        parts = decoded.parts
        # The requests' bytes: handing on may wait for room, and the writer makes several copies of what is large.
        del decoded
        try:
            self._writer.append_journaled(parts, self._end)
        except StoreError as error:
            LOG.error("%d requests wait in the journal for the next start: %s", count, error)  # noqa: TRY400
        self._journal.retire()
        return True


def _succeed(requests: Iterable[Accepted]) -> None:
    for request in requests:
        with suppress(InvalidStateError):
            request.committed.set_result(None)


def fail(requests: Sequence[Accepted], error: BaseException) -> None:
    """Answer whoever is not answered yet with this error; what has no sender, a record of refusals, is logged."""
    if not requests:
        LOG.error("refused requests were not recorded: %s", error)
    for request in requests:
        with suppress(InvalidStateError):
            request.committed.set_exception(error)


def refusals(received_unix_nano: int, counts: Mapping[str, int], *, source: str = SOURCE) -> pa.RecordBatch:
    """Rows of `ingest_errors`, one a reason."""
    rows = [
        {"received_unix_nano": received_unix_nano, "source": source, "reason": reason, "count": count}
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

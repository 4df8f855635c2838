"""One OTLP request over HTTP, from its headers to its answer.

Every answer is in the request's language, protobuf or JSON, and every failure's body is a Status (see `statuses`).

Memory: what bodies hold while they are read, or wait for the decoder, is limited for all senders together, and one body
at a time is inflated and converted from JSON. Nobody waits for a slow sender: without room the answer is a 503.
"""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from typing import Protocol as Structure

from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from collector.errors import DecodeError, StoreError, StoreFullError
from collector.otlp.json_form import Converted, convert, request_to_json
from collector.otlp.json_scan import JsonFormError
from collector.receiver.counters import Counters, Protocol, Reason
from collector.receiver.inflate import ENCODINGS, TooLargeError, inflate, is_known, too_large
from collector.receiver.ingest import MAX_REQUEST_BYTES, Accepted, store_failure
from collector.receiver.reading import LARGE_BYTES
from collector.receiver.statuses import JSON, PROTOBUF, RETRY_AFTER_S, as_json, bad_request, status, unavailable
from collector.store.memory import give_back

LOG: Final = logging.getLogger(__name__)

READ_TIMEOUT_S: Final = 30.0
"""For the whole body: who sends a byte a second must not hold a connection for ever."""

COMMIT_TIMEOUT_S: Final = 30.0

ROOM_BYTES: Final = MAX_REQUEST_BYTES * 3 // 2
"""One of the largest bodies and many others, or some thousands of ordinary ones."""


_PIECE_BYTES: Final = 1024 * 1024
"""One buffer that grows to 64 MiB is copied from one hole of the heap to the next, and each of them is resident then."""


class Pending(Structure):
    """A request that was handed to the store."""

    @property
    def committed(self) -> "Future[None]":
        """Done when it is committed; fails with a StoreError."""
        ...

    def response(self) -> bytes:
        """The serialised Export…ServiceResponse, once it is committed."""
        ...


@dataclass(frozen=True, slots=True)
class Signal:
    """One of OTLP's signals, as HTTP sees it.

    Attributes:
        path: Where its requests are sent, `/v1/traces`.
        request: Its Export…ServiceRequest.
        response: Its Export…ServiceResponse.
        accept: Takes a serialised request; raises DecodeError or StoreError.
        is_quick: `accept` neither decodes nor waits, so it needs no thread.
        max_bytes: Of a request in protobuf, where that is less than what every signal may have; JSON says the same in more.
        check_room: Raises StoreError where nothing is accepted now: asked before a body is inflated or converted in vain.
    """

    path: str
    request: type[Message]
    response: type[Message]
    accept: Callable[[bytes], Pending]
    is_quick: bool = False
    max_bytes: int | None = None
    check_room: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests may cost; sizes in bytes, times in seconds."""

    max_request_bytes: int = MAX_REQUEST_BYTES
    room_bytes: int = ROOM_BYTES
    read_timeout_s: float = READ_TIMEOUT_S
    commit_timeout_s: float = COMMIT_TIMEOUT_S


class Receiver:
    """Makes the signals' endpoints, which share its limits and count what they answer."""

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self._limits = limits
        self._counters = counters
        self._room = _Room(limits.room_bytes)
        self._turn = asyncio.Semaphore(1)

    def endpoint(self, signal: Signal) -> Callable[[Request], Awaitable[Response]]:
        """The signal's endpoint: reads, inflates, converts, hands over, waits for the commit, and answers."""

        async def endpoint(request: Request) -> Response:
            try:
                return await self._export(request, signal)
            except _RefusedError as error:
                _let_go(error)
                self._counters.refused(error.reason, 1)
                LOG.warning("OTLP/HTTP: a request to %s was refused: %s", signal.path, error)
                return failed(request, error.http_status, error.body, error.headers)

        return endpoint

    async def _export(self, request: Request, signal: Signal) -> Response:
        """Acknowledged, or a _RefusedError."""
        try:
            with self._room.hold() as hold:
                converted = await self._payload(request, signal, hold)
                if signal.is_quick:
                    pending = signal.accept(converted.payload)
                else:
                    pending = await run_in_threadpool(signal.accept, converted.payload)
            await _committed(pending, self._limits.commit_timeout_s)
        except TooLargeError as error:
            raise _too_large(error) from error
        except DecodeError as error:
            raise _malformed(error) from error
        except (StoreError, CancelledError, TimeoutError) as error:
            reason: Reason = "queue_full" if isinstance(error, StoreFullError) else "store_failed"
            raise _later(store_failure(error), reason) from error
        self._count(request, pending)
        return _succeeded(request, signal, pending.response(), converted.bad_ids)

    def _count(self, request: Request, pending: Pending) -> None:
        protocol: Protocol = "http/json" if media_type(request) == JSON else "http/protobuf"
        if not isinstance(pending, Accepted):
            self._counters.accepted(protocol, 1, 0)
            return
        self._counters.accepted(protocol, 1, pending.span_count)
        if pending.rejected:
            self._counters.refused("invalid_span", 0, sum(pending.rejected.values()))

    async def _payload(self, request: Request, signal: Signal, hold: "_Hold") -> Converted:
        """The request as protobuf. Raises _RefusedError."""
        converted = await self._converted(request, signal, hold)
        if len(converted.payload) >= LARGE_BYTES:
            give_back()  # the pieces that it came in: they are freed, but the C library keeps them for others
        return converted

    async def _converted(self, request: Request, signal: Signal, hold: "_Hold") -> Converted:
        encoding = _spoken(request)
        message_class = signal.request if media_type(request) == JSON else None
        limit = self._limits.max_request_bytes
        if signal.max_bytes is not None and message_class is None:
            limit = min(limit, signal.max_bytes)
        body = await self._body(request, limit, hold)
        if not encoding and message_class is None:
            return Converted(body, ())
        async with self._turn:
            if signal.check_room is not None:
                signal.check_room()
            try:
                converted = await run_in_threadpool(_prepare, body, encoding, message_class, limit)
            except TooLargeError as error:
                raise _too_large(error) from error
            hold.exactly(len(converted.payload))
        return converted

    async def _body(self, request: Request, limit: int, hold: "_Hold") -> bytes:
        """The body as sent. Raises _RefusedError."""
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise _too_large(too_large(limit))
        try:
            return await asyncio.wait_for(_read(request, limit, hold), self._limits.read_timeout_s)
        except TooLargeError as error:
            raise _too_large(error) from error
        except TimeoutError as error:
            body = status(
                code_pb2.DEADLINE_EXCEEDED, f"the body did not arrive within {self._limits.read_timeout_s:g} s"
            )
            # RFC 9110, 15.5.9: the server that does not want to wait any longer closes the connection.
            raise _RefusedError(408, body, "too_slow", connection="close") from error
        except ClientDisconnect as error:
            gone = status(code_pb2.CANCELLED, "the sender went away before the body's end")
            raise _RefusedError(400, gone, "other") from error


async def _read(request: Request, limit: int, hold: "_Hold") -> bytes:
    """The limit counts what arrives: a chunked body announces no length. Raises TooLargeError."""
    pieces: list[bytes] = []
    piece = bytearray()
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        hold.exactly(size)
        piece += chunk  # chunks may have a byte each
        if len(piece) >= _PIECE_BYTES:
            pieces.append(bytes(piece))
            piece.clear()
    return b"".join((*pieces, piece))


def _prepare(body: bytes, encoding: str, message_class: type[Message] | None, limit: int) -> Converted:
    """Inflate, and convert from JSON; the limit holds for what comes out of both. Raises DecodeError."""
    plain = inflate(body, encoding, limit) if encoding else body
    if message_class is None:
        return Converted(plain, ())
    converted = convert(plain, message_class)
    if len(converted.payload) > limit:
        raise too_large(limit)
    return converted


async def _committed(pending: Pending, timeout_s: float) -> None:
    """Wait for the commit. A timeout must not cancel the writer's future: its rows may be in the next commit."""
    committed = asyncio.wrap_future(pending.committed)
    done, _ = await asyncio.wait([committed], timeout=timeout_s)
    if not done:
        raise TimeoutError
    committed.result()


# --- refusals ---------------------------------------------------------------------------------------------------------


class _RefusedError(Exception):
    """A request that ends with this status before its signal has seen it."""

    def __init__(self, http_status: int, body: status_pb2.Status, reason: Reason, **headers: str) -> None:
        super().__init__(body.message)
        self.http_status = http_status
        self.body = body
        self.reason = reason
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def _too_large(error: TooLargeError) -> _RefusedError:
    """RESOURCE_EXHAUSTED without RetryInfo: it will be as large the next time."""
    return _RefusedError(413, status(code_pb2.RESOURCE_EXHAUSTED, str(error)), "too_large")


def _malformed(error: DecodeError) -> _RefusedError:
    """400: with the field, where it is known."""
    where = (error.path, error.reason) if isinstance(error, JsonFormError) else ()
    return _RefusedError(400, bad_request(str(error), *where), "malformed")


def _later(message: str, reason: Reason) -> _RefusedError:
    """503: the same request is welcome in a moment."""
    return _RefusedError(503, unavailable(message), reason, retry_after=str(RETRY_AFTER_S))


def _let_go(error: BaseException) -> None:
    """Empty the frames that a refusal came through: they hold the body, until the garbage collector finds them."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


class _Room:
    """Bytes that all bodies may hold together."""

    def __init__(self, size: int) -> None:
        self._free = size

    @contextmanager
    def hold(self) -> Iterator["_Hold"]:
        """One body's share, given back at the end."""
        hold = _Hold(self)
        try:
            yield hold
        finally:
            hold.exactly(0)

    def take(self, count: int) -> None:
        """So many bytes more, or fewer. Raises _RefusedError."""
        if count > self._free:
            raise _later("too many large bodies are here at once: send this request again", "queue_full")
        self._free -= count


@dataclass(slots=True)
class _Hold:
    """What one body holds of a room."""

    room: _Room
    count: int = field(default=0)

    def exactly(self, count: int) -> None:
        """Hold so many bytes from now on. Raises _RefusedError."""
        self.room.take(count - self.count)
        self.count = count


# --- languages --------------------------------------------------------------------------------------------------------


def media_type(request: Request) -> str:
    """The request's content type without parameters: a charset says nothing new, both languages have theirs."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _spoken(request: Request) -> str:
    """The content encoding to undo, empty for none. Raises _RefusedError for a language that is not spoken here."""
    kind = media_type(request)
    if kind not in {PROTOBUF, JSON}:
        message = f"content-type {kind!a} is not supported, {PROTOBUF} and {JSON} are"
        raise _RefusedError(415, bad_request(message), "unsupported", accept=f"{PROTOBUF}, {JSON}")
    encodings = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
    named = [name for encoding in encodings if (name := encoding.strip()) not in {"", "identity"}]
    if len(named) > 1 or not all(map(is_known, named)):
        one = "several in a row are" if len(named) > 1 else "is"
        message = (
            f"content-encoding {', '.join(named)!a}: {one} not supported; one of {', '.join(ENCODINGS)} is, or none"
        )
        raise _RefusedError(415, bad_request(message), "unsupported", accept_encoding=", ".join(ENCODINGS))
    return named[0] if named else ""


def failed(
    request: Request, http_status: int, body: status_pb2.Status, headers: Mapping[str, str] | None = None
) -> Response:
    """A Status in the request's language; in protobuf where the request has none that is spoken here."""
    if media_type(request) == JSON:
        return Response(as_json(body), http_status, headers, JSON)
    return Response(body.SerializeToString(), http_status, headers, PROTOBUF)


def _succeeded(request: Request, signal: Signal, response: bytes, bad_ids: tuple[str, ...]) -> Response:
    """The signal's answer in the request's language; to JSON it adds where the ids are that were refused."""
    if media_type(request) != JSON:
        return Response(response, media_type=PROTOBUF)
    message: Any = signal.response.FromString(response)
    if bad_ids and message.HasField("partial_success"):
        message.partial_success.error_message += f" ({'; '.join(bad_ids)})"
    return Response(request_to_json(message), media_type=JSON)

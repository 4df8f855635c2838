"""Attacks on a collector: each is a function that returns when it is over and all its connections are closed."""

import gzip
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc

from tests.campaigns import hostile, wire
from tests.campaigns.clients import METHOD
from tests.campaigns.hostile import GIB, MIB
from tests.campaigns.mutate import INTERESTING, json_seeds, mutate, mutate_json, seeds
from tests.campaigns.shapes import POST, SHAPES

PROTOBUF, JSON = "application/x-protobuf", "application/json"
TRACES, LOGS, QUERY = "/v1/traces", "/v1/logs", "/api/v1/query"
LOGS_METHOD = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
AT_ONCE = 16


@dataclass(slots=True)
class Target:
    """What is attacked, and what it answers.

    Attributes:
        seconds: How long attacks last that could go on for ever.
        answers: Statuses, counted.
        leaks: Answers that show the inside: a traceback, or a path of a source file.
    """

    grpc_port: int
    http_port: int
    seconds: float = 5.0
    seed: int = 1
    answers: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def saw(self, status: str, answer: bytes) -> None:
        """Remember an answer."""
        with self.lock:
            self.answers[status] += 1
            if b"Traceback" in answer or b'.py"' in answer or b"site-packages" in answer:
                self.leaks.append(answer[-400:].decode("utf-8", "replace"))

    def http(self, head: bytes, pieces: Iterable[bytes] = (), timeout_s: float = 60.0) -> None:
        """One request over HTTP."""
        try:
            answer = wire.http(self.http_port, head, pieces, timeout_s)
        except OSError as error:
            self.saw(f"no connection: {error.__class__.__name__}", b"")
            return
        self.saw(_status_of(answer), answer)

    def post(
        self, body: bytes, kind: str = PROTOBUF, *, path: str = TRACES, encoding: str = "", timeout_s: float = 60.0
    ) -> None:
        """One POST with a length."""
        headers = {"content_type": kind, "content_length": str(len(body))}
        if encoding:
            headers["content_encoding"] = encoding
        self.http(wire.head(path, **headers), hostile.in_pieces(body), timeout_s)

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """A gRPC channel of its own that sends what it is given."""
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
        ]
        with grpc.insecure_channel(f"{wire.LOOPBACK}:{self.grpc_port}", options=options) as channel:
            yield channel

    def call(self, body: bytes, *, method: str = METHOD, timeout_s: float = 60.0) -> None:
        """One gRPC call."""
        with self.channel() as channel:
            self.call_on(channel, body, method=method, timeout_s=timeout_s)

    def call_on(self, channel: grpc.Channel, body: bytes, *, method: str = METHOD, timeout_s: float = 60.0) -> None:
        """One gRPC call on a channel that is open."""
        export: Any = channel.unary_unary(method)
        try:
            answer = export(body, timeout=timeout_s)
        except grpc.RpcError as error:
            self.saw(f"gRPC {error.code().name}", str(error.details()).encode())
        else:
            self.saw("gRPC OK", answer)


def _status_of(answer: bytes) -> str:
    return (
        answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.") else "no answer" if not answer else "not HTTP"
    )


Attack = Callable[[Target], None]


def at_once(count: int, work: Callable[[int], None]) -> None:
    """On so many threads; returns when all are done, and raises what one of them raised."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# --- bodies ---------------------------------------------------------------------------------------------------------------


def _bomb(make: Callable[[int], bytes], encoding: str, size_bytes: int, kind: str, target: Target) -> None:
    body = make(size_bytes)
    at_once(AT_ONCE, lambda _: target.post(body, kind, encoding=encoding))


def _grpc_bomb(make: Callable[[int], bytes], encoding: str, size_bytes: int, target: Target) -> None:
    body = make(size_bytes)
    message = struct.pack(">BI", 1, len(body)) + body

    def send(_: int) -> None:
        with wire.Http2(target.grpc_port, 60.0) as connection, suppress(ConnectionError, TimeoutError):
            connection.open(1, METHOD, ("grpc-encoding", encoding))
            connection.send_message(1, message)
            connection.wait(1)
            target.saw("HTTP/2 answer" if connection.answer else "no answer", connection.answer)

    at_once(AT_ONCE, send)


def _chunked(target: Target) -> None:
    head = wire.head(TRACES, content_type=PROTOBUF, transfer_encoding="chunked")
    at_once(AT_ONCE, lambda _: target.http(head, wire.chunked(bytes(MIB), 1024)))


def _tiny_chunks(target: Target) -> None:
    head = wire.head(TRACES, content_type=PROTOBUF, transfer_encoding="chunked")
    chunks = b"1\r\nx\r\n" * 10_000
    at_once(4, lambda _: target.http(head, [chunks] * 100))


def _announced(target: Target) -> None:
    head = wire.head(TRACES, content_type=PROTOBUF, content_length=str(GIB))
    at_once(AT_ONCE, lambda _: target.http(head, [bytes(MIB)] * 80))


def _whole_bodies(target: Target) -> None:
    body = bytes(hostile.FULL)
    at_once(AT_ONCE, lambda _: target.post(body))


def _whole_messages(size_bytes: int, target: Target) -> None:
    body = bytes(size_bytes)
    at_once(AT_ONCE, lambda _: target.call(body))


def _over_http(make: Callable[[], bytes], kind: str, path: str, target: Target) -> None:
    body = make()
    for _ in range(2):  # one after the other: two at once would be refused for want of room
        target.post(body, kind, path=path)


def _compressed_over_http(make: Callable[[], bytes], kind: str, target: Target) -> None:
    body = gzip.compress(make(), 1)
    at_once(AT_ONCE, lambda _: target.post(body, kind, encoding="gzip"))


def _over_grpc(make: Callable[[], bytes], method: str, target: Target) -> None:
    body = make()
    at_once(2, lambda _: target.call(body, method=method))


def _all_small(make: Iterable[Callable[[], bytes]], kind: str, target: Target) -> None:
    for one in make:
        target.post(one(), kind)


# --- slow and idle --------------------------------------------------------------------------------------------------------


def _trickle(connections: list[socket.socket], seconds: float, piece: Callable[[int], bytes]) -> None:
    """Write a little on every connection every tenth of a second."""
    end = time.monotonic() + seconds
    for turn in range(1_000_000):
        for connection in connections:
            with suppress(OSError):
                connection.sendall(piece(turn))
        if time.monotonic() > end:
            return
        time.sleep(0.1)


def _slow(port: str, count: int, opening: bytes, piece: Callable[[int], bytes], target: Target) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(wire.connect(getattr(target, port))) for _ in range(count)]
        for connection in connections:
            with suppress(OSError):  # refused and closed before its end
                connection.sendall(opening)
        _trickle(connections, target.seconds, piece)
        for connection in connections:
            connection.settimeout(0.01)
            target.saw("slow", wire.read(connection))


def _headers_for_ever(turn: int) -> bytes:
    return b"x-%d: y\r\n" % turn


SLOW_BODY = wire.head(TRACES, content_type=PROTOBUF, content_length=str(10 * MIB))
HALF_BODY = SLOW_BODY + bytes(5 * MIB)
CALL = (
    wire.PREFACE
    + wire.frame(wire.SETTINGS, 0, 0)
    + wire.frame(wire.HEADERS, wire.END_HEADERS, 1, wire.export_fields(METHOD))
)


def _byte_of_data(turn: int) -> bytes:
    return wire.frame(wire.DATA, 0, 1, struct.pack(">BI", 0, 100)[turn : turn + 1] or b"\n")


def _half_messages(target: Target) -> None:
    """Forty calls, each with half of its message; good calls must find a place all the same."""
    half = wire.frame(wire.DATA, 0, 1, struct.pack(">BI", 0, 60_000) + bytes(16_000))
    _slow("grpc_port", 40, CALL + half, lambda _: b"", target)


def _half_messages_of_one(target: Target) -> None:
    """A hundred streams on one connection, each with half of a message."""
    with wire.Http2(target.grpc_port) as connection, suppress(ConnectionError):
        for stream in range(1, 200, 2):
            connection.open(stream, METHOD)
            connection.send(wire.frame(wire.DATA, 0, stream, struct.pack(">BI", 0, 60_000) + bytes(500)))
        time.sleep(target.seconds)


def _big_half_messages(target: Target) -> None:
    """Sixty-four messages of 16 MiB, each of which stops a byte before its end."""
    message = struct.pack(">BI", 0, hostile.GRPC_FULL) + bytes(hostile.GRPC_FULL)
    end = time.monotonic() + target.seconds * 2

    def send(_: int) -> None:
        with wire.Http2(target.grpc_port, 5.0) as connection, suppress(OSError):
            connection.open(1, METHOD)
            connection.send_message(1, message[:-1] + b"")
            time.sleep(max(0.0, end - time.monotonic()))

    at_once(64, send)


def _idle(port: str, opening: bytes, target: Target) -> None:
    with ExitStack() as stack:
        for _ in range(2_000):
            connection = stack.enter_context(wire.connect(getattr(target, port)))
            connection.sendall(opening)
        time.sleep(target.seconds)


# --- HTTP/2 ---------------------------------------------------------------------------------------------------------------


def _flood(opening: bytes, piece: Callable[[int], bytes], target: Target) -> None:
    """Write frames as fast as they are taken, on four connections; answers are read and thrown away."""

    def send(_: int) -> None:
        end, turn = time.monotonic() + target.seconds, 0
        while time.monotonic() < end:
            with suppress(OSError), wire.connect(target.grpc_port, 2.0) as connection:
                connection.sendall(wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0) + opening)
                drain = threading.Thread(target=wire.read, args=(connection,), daemon=True)
                drain.start()
                while time.monotonic() < end:
                    connection.sendall(b"".join(piece(turn + n) for n in range(200)))
                    turn += 200
            turn = 0

    at_once(4, send)


def _rapid_reset(turn: int) -> bytes:
    stream = 2 * turn + 1
    return wire.frame(wire.HEADERS, wire.END_HEADERS, stream, _EXPORT) + wire.frame(
        wire.RST_STREAM, 0, stream, b"\0\0\0\x08"
    )


_EXPORT = wire.export_fields(METHOD)

FLOODS: dict[str, tuple[bytes, Callable[[int], bytes]]] = {
    "rapid reset": (b"", _rapid_reset),
    "streams that are only opened": (b"", lambda n: wire.frame(wire.HEADERS, wire.END_HEADERS, 2 * n + 1, _EXPORT)),
    "calls without a message": (b"", lambda n: wire.frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, 2 * n + 1, _EXPORT)),
    "pings": (b"", lambda _: wire.frame(wire.PING, 0, 0, b"12345678")),
    "settings": (b"", lambda _: wire.frame(wire.SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535))),
    "continuations": (wire.frame(wire.HEADERS, 0, 1, _EXPORT), lambda _: wire.frame(wire.CONTINUATION, 0, 1, b"\0\1x\1y" * 500)),
    "empty continuations": (wire.frame(wire.HEADERS, 0, 1, _EXPORT), lambda _: wire.frame(wire.CONTINUATION, 0, 1)),
    "empty data": (wire.frame(wire.HEADERS, wire.END_HEADERS, 1, _EXPORT), lambda _: wire.frame(wire.DATA, 0, 1)),
    "window updates": (b"", lambda _: wire.frame(wire.WINDOW_UPDATE, 0, 0, b"\0\0\0\1")),
    "unknown frames": (b"", lambda _: wire.frame(99, 0, 0, bytes(1_000))),
}  # fmt: skip


def _grpc_noise(target: Target) -> None:
    """Random bytes where a preface is expected, and random frames behind one."""
    random_ = random.Random(target.seed)
    for number in range(300):
        opening = wire.PREFACE if number % 2 else b""
        with suppress(OSError), wire.connect(target.grpc_port, 1.0) as connection:
            connection.sendall(opening + random_.randbytes(random_.randrange(1, 4_000)))


# --- HTTP/1.1 -------------------------------------------------------------------------------------------------------------


def _shapes(target: Target) -> None:
    for name, shape in SHAPES.items():
        with suppress(OSError), wire.connect(target.http_port, 2.0) as connection:
            with suppress(OSError):
                connection.sendall(shape)
            connection.settimeout(0.3)
            answer = wire.read(connection)
            target.saw(f"{_status_of(answer)}", answer)
            if b"process_resident" in answer and b"length" in name.encode():
                target.leaks.append(f"smuggled through: {name}")


# --- noise ----------------------------------------------------------------------------------------------------------------


def _mutants(target: Target) -> None:
    """Requests with mistakes, as fast as they are answered: protobuf, JSON and compressed ones, over both protocols."""
    plain, texts = seeds(), json_seeds()

    def send(number: int) -> None:
        random_ = random.Random(f"{target.seed}/{number}")
        end = time.monotonic() + target.seconds * 4
        with target.channel() as channel:
            while time.monotonic() < end:
                body = mutate(random_.choice(plain), random_, INTERESTING)
                match random_.randrange(5):
                    case 0:
                        target.post(mutate_json(random_.choice(texts), random_), JSON)
                    case 1:
                        packed = mutate(gzip.compress(body, 1), random_, INTERESTING)
                        target.post(packed, encoding=random_.choice(("gzip", "zstd", "deflate")))
                    case 2:
                        target.post(body, path=random_.choice((TRACES, LOGS)))
                    case _:
                        target.call_on(channel, body, method=random_.choice((METHOD, METHOD, LOGS_METHOD)))

    at_once(4, send)


def bodies() -> dict[str, Attack]:
    """Attacks by what is sent."""
    bombs: dict[str, Callable[[int], bytes]] = {
        "gzip": hostile.gzip_bomb,
        "deflate": hostile.deflate_bomb,
        "zstd": hostile.zstd_bomb,
    }
    attacks: dict[str, Attack] = {}
    for size in (1, 10):
        for encoding, make in bombs.items():
            attacks[f"bomb: {encoding}, {size} GiB, 16 at once"] = partial(_bomb, make, encoding, size * GIB, PROTOBUF)
        attacks[f"bomb: gzip of one member, {size} GiB, 16 at once"] = partial(
            _bomb, hostile.single_gzip_bomb, "gzip", size * GIB, PROTOBUF
        )
        attacks[f"bomb: gRPC gzip, {size} GiB, 16 at once"] = partial(
            _grpc_bomb, hostile.single_gzip_bomb, "gzip", size * GIB
        )
        attacks[f"bomb: gRPC deflate, {size} GiB, 16 at once"] = partial(
            _grpc_bomb, hostile.deflate_bomb, "deflate", size * GIB
        )
    attacks["bomb: JSON in gzip, 1 GiB, 16 at once"] = partial(_bomb, hostile.gzip_bomb, "gzip", GIB, JSON)
    attacks["body: 1 GiB in chunks, 16 at once"] = _chunked
    attacks["body: chunks of one byte"] = _tiny_chunks
    attacks["body: 1 GiB announced, 16 at once"] = _announced
    attacks["body: 64 MiB of zeros, 16 at once"] = _whole_bodies
    attacks["body: gRPC, 16 MiB of zeros, 16 at once"] = partial(_whole_messages, hostile.GRPC_FULL)
    attacks["body: gRPC, 64 MiB of zeros, 16 at once"] = partial(_whole_messages, hostile.FULL)
    for kind, group in (("dense", hostile.DENSE), ("deep", hostile.DEEP)):
        for name, make_body in group.items():
            attacks[f"{kind}: {name}, HTTP"] = partial(_over_http, partial(make_body, hostile.FULL), PROTOBUF, TRACES)
            attacks[f"{kind}: {name}, gRPC"] = partial(_over_grpc, partial(make_body, hostile.GRPC_FULL), METHOD)
    for name in ("tiny spans", "a wide array", "deep values", "same span 1,999,000 times"):
        compressed = partial(hostile.DENSE[name], hostile.FULL)
        attacks[f"dense: {name}, gzip, 16 at once"] = partial(_compressed_over_http, compressed, PROTOBUF)
    for name, make_json in hostile.JSON.items():
        attacks[f"JSON: {name}"] = partial(_over_http, make_json, JSON, TRACES)
    for name in ("tiny spans", "open arrays", "tiny values"):
        attacks[f"JSON: {name}, gzip, 16 at once"] = partial(_compressed_over_http, hostile.JSON[name], JSON)
    attacks["noise: mutants"] = _mutants
    return attacks


def connections() -> dict[str, Attack]:
    """Attacks by how it is sent."""
    attacks: dict[str, Attack] = {
        "slow: headers, 200 connections": partial(_slow, "http_port", 200, POST, _headers_for_ever),
        "slow: bodies, 200 connections": partial(_slow, "http_port", 200, SLOW_BODY, lambda _: b"x"),
        "slow: halves of 10 MiB bodies, 40 connections": partial(_slow, "http_port", 40, HALF_BODY, lambda _: b"x"),
        "slow: gRPC prefaces, 200 connections": partial(_slow, "grpc_port", 200, wire.PREFACE[:10], lambda _: b""),
        "slow: gRPC, a byte in a frame": partial(_slow, "grpc_port", 100, CALL, _byte_of_data),
        "slow: gRPC, 40 halves of messages": _half_messages,
        "slow: gRPC, 100 halves of messages on one connection": _half_messages_of_one,
        "slow: gRPC, 64 messages of 16 MiB without their ends": _big_half_messages,
        "idle: 2,000 HTTP connections": partial(_idle, "http_port", b""),
        "idle: 2,000 HTTP connections with half a head": partial(_idle, "http_port", POST),
        "idle: 2,000 gRPC connections": partial(_idle, "grpc_port", wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0)),
        "HTTP: shapes of smuggling and of nonsense": _shapes,
        "HTTP/2: noise": _grpc_noise,
    }
    for name, (opening, piece) in FLOODS.items():
        attacks[f"HTTP/2: {name}"] = partial(_flood, opening, piece)
    return attacks

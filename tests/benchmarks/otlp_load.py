"""A load generator for OTLP receivers, in a process of its own: prints one JSON object about what it saw.

    python otlp_load.py HOST:PORT (--requests N | --seconds S) [--spans 512] [--clients 16] [--rate SPANS_PER_S]
                        [--protocol grpc|http|json] [--seed 0] [--announce]

No span is ever sent twice, unless two processes have one seed: receivers that recognise a span that they know get none such.
With --requests all of them are made before the clock starts; with --seconds, which may be many, each is made when it is due.
With a rate, requests are sent when they are due, whether the last ones are answered or not, so that waiting shows as latency.
A refusal that may be retried is, after a tenth of a second; the latency goes on, and the refusal is counted. Any other ends the run.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Final

import grpc

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.http_client import HttpConnections, RefusedError
from tests.benchmarks.payloads import TEMPLATES, Encoding, bodies

METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
CONNECTIONS: Final = 4
TIMEOUT_S: Final = 60
RETRY_S: Final = 0.1
CONTENT_TYPES: Final = {"http": "application/x-protobuf", "json": "application/json"}

Post = Callable[[bytes], Awaitable[object]]


@dataclass(slots=True)
class Seen:
    """What the senders saw.

    Attributes:
        latencies_s: Of every acknowledged request.
        sent_bytes: Of the bodies of those.
        refused: Refusals after which a request was sent again.
    """

    latencies_s: list[float] = field(default_factory=list)
    sent_bytes: int = 0
    refused: int = 0

    async def send(self, post: Post, body: bytes, due: float) -> None:
        """Send until it is acknowledged; its latency counts from `due`."""
        while True:
            try:
                await post(body)
            except (grpc.aio.AioRpcError, RefusedError) as error:
                if not is_retryable(error) or time.perf_counter() - due > TIMEOUT_S:
                    raise
                self.refused += 1
                await asyncio.sleep(RETRY_S)
                continue
            self.latencies_s.append(time.perf_counter() - due)
            self.sent_bytes += len(body)
            return


def is_retryable(error: "grpc.aio.AioRpcError | RefusedError") -> bool:
    """Whether the receiver asks for the same request later."""
    if isinstance(error, RefusedError):
        return error.status in {429, 502, 503, 504}
    return error.code() is grpc.StatusCode.UNAVAILABLE


# --- how requests travel ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def over_grpc(endpoint: str) -> AsyncIterator[Post]:
    """Bytes in, bytes out, over connections that take turns: clients that are many do not share one."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(endpoint, options=options))
            for _ in range(CONNECTIONS)
        ]
        for channel in channels:
            await asyncio.wait_for(channel.channel_ready(), TIMEOUT_S)
        calls: cycle[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = cycle([c.unary_unary(METHOD) for c in channels])

        async def post(body: bytes) -> None:
            await next(calls)(body, timeout=TIMEOUT_S)

        yield post


@asynccontextmanager
async def over_http(endpoint: str, content_type: str) -> AsyncIterator[Post]:
    """A connection for each request that is under way."""
    connections = HttpConnections(endpoint, "/v1/traces", content_type)
    try:
        yield connections.post
    finally:
        await connections.close()


def opened(protocol: str, endpoint: str):
    """The way to the receiver."""
    return over_grpc(endpoint) if protocol == "grpc" else over_http(endpoint, CONTENT_TYPES[protocol])


# --- when they are sent -----------------------------------------------------------------------------------------------


async def as_fast_as_possible(seen: Seen, post: Post, waiting: Iterator[bytes], clients: int) -> None:
    """Every client sends its next request when its last one is acknowledged."""

    async def client() -> None:
        for body in waiting:
            await seen.send(post, body, time.perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())


async def at_rate(seen: Seen, post: Post, waiting: Iterator[bytes], interval_s: float) -> None:
    """Request n is due n intervals after the start, and its latency counts from then."""
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, body in enumerate(waiting):
            due = start + number * interval_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(seen.send(post, body, due))


def until(seconds: float, made: Iterator[bytes]) -> Iterator[bytes]:
    """What is made before the time is over."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield next(made)


async def run(options: argparse.Namespace) -> dict[str, object]:
    """Send everything, and say what was seen."""
    encoding: Encoding = "json" if options.protocol == "json" else "protobuf"
    made = bodies(options.spans, seed=options.seed, start_unix_nano=time.time_ns(), encoding=encoding)
    before = list(islice(made, options.requests or TEMPLATES))
    seen = Seen()
    async with opened(options.protocol, options.endpoint) as post:
        if options.announce:
            print("sending", flush=True)
        begun, worked = time.perf_counter(), time.process_time()
        waiting = iter(before) if options.requests else until(options.seconds, chain(before, made))
        if options.rate:
            await at_rate(seen, post, waiting, options.spans / options.rate)
        else:
            await as_fast_as_possible(seen, post, waiting, options.clients)
        seconds, cpu_s = time.perf_counter() - begun, time.process_time() - worked
    return report(seen, options.spans, seconds, cpu_s)


def report(seen: Seen, spans: int, seconds: float, cpu_s: float) -> dict[str, object]:
    """As JSON; a percentile needs two requests at least."""
    requests = len(seen.latencies_s)
    percentiles = statistics.quantiles(seen.latencies_s, n=100, method="inclusive") if requests > 1 else [0.0] * 99
    return {
        "requests": requests,
        "spans": requests * spans,
        "seconds": round(seconds, 3),
        "spans_per_s": round(requests * spans / seconds),
        "bytes_per_span": round(seen.sent_bytes / max(1, requests * spans)),
        "client_cpu_us_per_span": round(cpu_s / max(1, requests * spans) * 1e6, 2),
        "ack_ms_p50": round(percentiles[49] * 1e3, 1),
        "ack_ms_p99": round(percentiles[98] * 1e3, 1),
        "ack_ms_max": round(max(seen.latencies_s, default=0.0) * 1e3, 1),
        "refused_and_retried": seen.refused,
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("endpoint", help="host:port")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--requests", type=int, help="made beforehand")
    length.add_argument("--seconds", type=float, help="made as they are sent")
    parser.add_argument("--spans", type=int, default=512, help="in a request")
    parser.add_argument("--clients", type=int, default=16, help="requests under way at once")
    parser.add_argument("--rate", type=float, help="spans a second; without it as fast as they are answered")
    parser.add_argument("--protocol", choices=["grpc", "http", "json"], default="grpc")
    parser.add_argument("--seed", type=int, default=0, help="another one for each process that sends to one receiver")
    parser.add_argument("--announce", action="store_true", help="print a line `sending` when the clock starts")
    options = parser.parse_args()
    if (options.requests is not None and options.requests < 1) or options.spans < 1 or options.clients < 1:
        parser.error("--requests, --spans and --clients are at least 1")
    return options


def main() -> int:
    """Send, and print what was seen; 1 where the receiver refused a request for good."""
    failures: list[BaseException] = []
    try:
        print(json.dumps(asyncio.run(run(parsed()))))
    except* (grpc.aio.AioRpcError, RefusedError, OSError) as group:
        failures.extend(group.exceptions)
    for failure in failures[:1]:
        print(f"otlp_load: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

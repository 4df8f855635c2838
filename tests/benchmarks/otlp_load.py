"""A load generator for OTLP receivers, in a process of its own: prints one JSON object about what it saw.

    python otlp_load.py ENDPOINT --requests N [--spans 512] [--clients 16] [--rate SPANS_PER_S] [--protocol grpc|http]

Every request is made before the clock starts and is sent once: receivers that recognise a span that they know already get none.
With a rate, requests are sent when they are due, whether the last ones are answered or not, so that waiting shows as latency.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time

import grpc
import httpx

from collector.otlp.synthetic import trace_request

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
TEMPLATES = 24


def payloads(count, spans, seed):
    """Requests of about 450 bytes and 9 attributes a span; ids differ, the rest repeats every few requests.

    Making every span from nothing would take longer than sending it.
    """
    made = [trace_request(spans, seed=seed + n) for n in range(min(count, TEMPLATES))]
    result = []
    for number in range(count):
        request = made[number % len(made)]
        if number >= len(made):
            renumber(request, number)
        result.append(request.SerializeToString())
    return result


def renumber(request, number):
    """Give every span of the request new ids, the same for the spans of one trace."""
    high = number.to_bytes(8, "big")
    for span in request.resource_spans[0].scope_spans[0].spans:
        span.trace_id = high + span.trace_id[8:]


async def over_grpc(endpoint, clients, send):
    """Run `send(post)` with that many requests under way at most."""
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(endpoint, options=options) as channel:
        await asyncio.wait_for(channel.channel_ready(), 30)
        call = channel.unary_unary(METHOD)
        await send(lambda payload: call(payload, timeout=60))


async def over_http(endpoint, clients, send):
    """The same over HTTP/1.1 with as many connections."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=f"http://{endpoint}", limits=limits, timeout=60) as client:

        async def post(payload):
            headers = {"content-type": "application/x-protobuf"}
            answer = await client.post("/v1/traces", content=payload, headers=headers)
            answer.raise_for_status()

        await send(post)


async def as_fast_as_possible(post, bodies, clients, latencies):
    """Every client sends its next request when its last one is answered."""
    waiting = iter(bodies)

    async def client():
        for body in waiting:
            sent = time.perf_counter()
            await post(body)
            latencies.append(time.perf_counter() - sent)

    await asyncio.gather(*(client() for _ in range(clients)))


async def at_rate(post, bodies, interval, latencies):
    """Request n is due n intervals after the start, and its latency counts from then."""
    start = time.perf_counter()

    async def one(number, body):
        due = start + number * interval
        await asyncio.sleep(max(0, due - time.perf_counter()))
        await post(body)
        latencies.append(time.perf_counter() - due)

    await asyncio.gather(*(one(number, body) for number, body in enumerate(bodies)))


def main():
    """Send, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("endpoint", help="host:port")
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--spans", type=int, default=512, help="in a request")
    parser.add_argument("--clients", type=int, default=16, help="requests under way at once")
    parser.add_argument("--rate", type=float, help="spans a second; without it as fast as they are answered")
    parser.add_argument("--protocol", choices=["grpc", "http"], default="grpc")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bodies = payloads(options.requests, options.spans, options.seed)
    latencies: list[float] = []
    begun = [0.0, 0.0]

    async def send(post):
        begun[0], begun[1] = time.perf_counter(), time.process_time()
        if options.rate:
            await at_rate(post, bodies, options.spans / options.rate, latencies)
        else:
            await as_fast_as_possible(post, bodies, options.clients, latencies)

    protocols = {"grpc": over_grpc, "http": over_http}
    asyncio.run(protocols[options.protocol](options.endpoint, options.clients, send))
    seconds, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
    percentiles = statistics.quantiles(latencies, n=100)
    json.dump(
        {
            "spans": options.requests * options.spans,
            "seconds": seconds,
            "spans_per_s": round(options.requests * options.spans / seconds),
            "bytes_per_span": round(sum(map(len, bodies)) / options.requests / options.spans),
            "client_cpu_us_per_span": round(cpu / (options.requests * options.spans) * 1e6, 2),
            "ack_ms_p50": round(percentiles[49] * 1e3, 1),
            "ack_ms_p99": round(percentiles[98] * 1e3, 1),
        },
        sys.stdout,
    )
    print()


if __name__ == "__main__":
    main()

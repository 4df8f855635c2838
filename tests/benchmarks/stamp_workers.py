"""One variant of `bench_stamps` in a process of its own, server and client in it: bare, with OpenTelemetry, or with ours on top.

    python stamp_workers.py TRANSPORT VARIANT [KEYS]

Prints the port of its server; then answers every line `SIZE CALLS PORT` (port 0: its own) with the processor and wall time that these
calls took, in µs a call, as one line of JSON. Spans are made and ended, and exported to nobody.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent import futures
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[2]))

VARIANTS: Final = ("bare", "opentelemetry", "unsigned", "hmac", "ed25519", "unsigned, packed", "hmac, packed")
METHOD: Final = "/bench.Echo/Call"
HOST: Final = "127.0.0.1"

SERVER_OPTIONS: Final = [("grpc.max_receive_message_length", -1)]
CHANNEL_OPTIONS: Final = [("grpc.max_send_message_length", -1)]


def instrumented(transport: str, variant: str, keys: str) -> None:
    """Set up what the variant has, before its frameworks are used."""
    if variant == "bare":
        return
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider(resource=Resource({"service.name": "bench"})))
    if transport == "http":
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

        FastAPIInstrumentor().instrument(exclude_spans=["receive", "send"])  # as `provenance.instrument` does
        HTTPXClientInstrumentor().instrument()
    else:
        from opentelemetry.instrumentation import grpc as instrumentation

        for side in ("Client", "Server"):
            getattr(instrumentation, f"Grpc{'Aio' if transport == 'grpc.aio' else ''}Instrumentor{side}")().instrument()
    if variant != "opentelemetry":
        from provenance.instrumentor import ProvenanceInstrumentor
        from provenance.signing import sign_with

        if variant.endswith(", packed"):
            os.environ["PROVENANCE_ATTRIBUTES"] = "packed"
        ProvenanceInstrumentor().instrument()
        if keys:
            sign_with(keys)


def timed(calls: int, spent: tuple[float, float], now: tuple[float, float]) -> None:
    """Tell what a block of calls took: (processor, wall) seconds before and after."""
    cpu, wall = ((b - a) / calls * 1e6 for a, b in zip(spent, now, strict=True))
    print(json.dumps({"cpu_us": cpu, "wall_us": wall}), flush=True)


def clocks() -> tuple[float, float]:
    """Processor seconds of this process, and seconds."""
    return time.process_time(), time.perf_counter()


def serve_blocks(own_port: int, client_of: Callable[[int], Callable[[bytes], object]]) -> None:
    """Answer stdin until it ends; `client_of` makes the call to a port, which every block to it uses."""
    clients: dict[int, Callable[[bytes], object]] = {}
    print(own_port, flush=True)
    for line in sys.stdin:
        size, calls, port = map(int, line.split())
        if port not in clients:
            clients[port] = client_of(port or own_port)
        call, body = clients[port], os.urandom(size)
        begun = clocks()
        for _ in range(calls):
            call(body)
        timed(calls, begun, clocks())


# --- transports ---------------------------------------------------------------------------------------------------------------


def handlers(behaviour: Callable[..., Any]) -> tuple[Any]:
    """The one method, which answers two bytes."""
    import grpc
    from google.protobuf.wrappers_pb2 import BytesValue

    handler = grpc.unary_unary_rpc_method_handler(behaviour, BytesValue.FromString, BytesValue.SerializeToString)
    service, name = METHOD[1:].split("/")
    return (grpc.method_handlers_generic_handler(service, {name: handler}),)


def run_grpc() -> None:
    """Synchronous gRPC: a server with one thread, and the main thread calls."""
    import grpc
    from google.protobuf.wrappers_pb2 import BytesValue

    server = grpc.server(futures.ThreadPoolExecutor(1), options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers(handlers(lambda request, _: BytesValue(value=b"ok")))
    own_port = server.add_insecure_port(f"{HOST}:0")
    server.start()

    def client_of(port: int) -> Callable[[bytes], object]:
        channel = grpc.insecure_channel(f"{HOST}:{port}", options=CHANNEL_OPTIONS)
        call = channel.unary_unary(METHOD, BytesValue.SerializeToString, BytesValue.FromString)
        return lambda body: call(BytesValue(value=body))

    serve_blocks(own_port, client_of)
    server.stop(None)


async def run_grpc_aio() -> None:
    """grpc.aio: server and client in one event loop, which stands still between two blocks."""
    import grpc.aio
    from google.protobuf.wrappers_pb2 import BytesValue

    async def echo(_request: Any, _context: Any) -> Any:
        return BytesValue(value=b"ok")

    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers(handlers(echo))
    own_port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"{HOST}:{own_port}", options=CHANNEL_OPTIONS)
    call: Callable[[Any], Awaitable[Any]] = channel.unary_unary(
        METHOD, BytesValue.SerializeToString, BytesValue.FromString
    )
    print(own_port, flush=True)
    for line in sys.stdin:
        size, calls, _ = map(int, line.split())
        body = os.urandom(size)
        begun = clocks()
        for _ in range(calls):
            await call(BytesValue(value=body))
        timed(calls, begun, clocks())
    await channel.close()
    await server.stop(None)


def run_http() -> None:
    """Httpx → FastAPI: uvicorn in a thread, and the main thread posts on one connection."""
    import httpx
    import uvicorn
    from fastapi import FastAPI, Request

    app = FastAPI()

    @app.post("/echo")
    async def echo(request: Request) -> str:
        await request.body()
        return "ok"

    server = uvicorn.Server(uvicorn.Config(app, host=HOST, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    own_port = server.servers[0].sockets[0].getsockname()[1]

    def client_of(port: int) -> Callable[[bytes], object]:
        client = httpx.Client(trust_env=False)

        def post(body: bytes) -> None:
            client.post(f"http://{HOST}:{port}/echo", content=body).raise_for_status()

        return post

    try:
        serve_blocks(own_port, client_of)
    finally:
        server.should_exit = True
        thread.join()


TRANSPORTS: Final[dict[str, Callable[[], None]]] = {
    "grpc": run_grpc,
    "grpc.aio": lambda: asyncio.run(run_grpc_aio()),
    "http": run_http,
}


def main(transport: str, variant: str, keys: str = "") -> None:
    """Serve one variant."""
    instrumented(transport, variant, keys)
    TRANSPORTS[transport]()


if __name__ == "__main__":
    main(*sys.argv[1:])

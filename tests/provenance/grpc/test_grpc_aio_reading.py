"""Handlers of `grpc.aio` that take a stream of requests by `context.read()`."""

import asyncio
from typing import Any

import grpc
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcAioInstrumentorServer

from provenance import names
from provenance.digest import StreamHash


async def upload(_requests: Any, context: Any) -> bytes:
    """Reads all, and answers with how much that was."""
    size = 0
    while (request := await context.read()) is not grpc.aio.EOF:
        size += len(request)
    context.set_trailing_metadata((("read", str(size)),))
    return str(size).encode()


async def call() -> bytes:
    server = grpc.aio.server()
    handlers: Any = {"Upload": grpc.stream_unary_rpc_method_handler(upload)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        upload_to: Any = channel.stream_unary("/t.T/Upload")
        answer: bytes = await upload_to(iter([b"one", b"two"]), timeout=20)
    await server.stop(None)
    return answer


def test_a_handler_that_reads_leaves_the_hash_of_what_it_read(spans: Any, activate: Any, no_faults: Any) -> None:
    activate(GrpcAioInstrumentorServer(), GrpcAioInstrumentorClient())
    whole = StreamHash()
    whole.update(b"one")
    whole.update(b"two")

    assert asyncio.run(call()) == b"6"
    assert spans.server()[names.REQUEST_HASH] == spans.client()[names.REQUEST_HASH] == whole.hexdigest()
    assert spans.server()[names.REQUEST_SIZE] == 6

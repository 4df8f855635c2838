"""Large messages over gRPC: one at a time where the process grows, and nothing of those that were refused stays."""

import asyncio
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from collector.otlp.synthetic import trace_request
from collector.receiver.grpc_server import create_server
from collector.receiver.ingest import MAX_REQUEST_BYTES, Ingest
from collector.receiver.reading import GROWTH_BYTES, LARGE_BYTES, NO_MEMORY, CrowdedError, Places, TooSlowError
from collector.receiver.statuses import GRPC_DETAILS
from collector.store.memory import resident_bytes
from tests.collector.receiver.receiver_fakes import DEADLINE_S, FakeWriter

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Call:
    """A call whose message comes when the test says so."""

    def __init__(self) -> None:
        self.message: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.is_read = False

    async def read(self) -> bytes:
        self.is_read = True
        return await self.message


class Process:
    """What /proc would say."""

    def __init__(self) -> None:
        self.held = 100_000_000

    def __call__(self) -> int:
        return self.held


async def answered(places: Places, call: Call, until: "asyncio.Event | None" = None) -> bytes:
    async with places.message(call) as payload:
        if until is not None:
            await until.wait()
        return bytes(payload)


async def until_read(call: Call) -> None:
    """The call is being read, and has been looked at more than once."""
    await asyncio.sleep(0.05)
    assert not call.message.done()


def test_beside_the_first_nobody_goes_on_while_the_process_grows() -> None:
    async def scenario() -> None:
        process = Process()
        places = Places(memory=process)
        first, second = Call(), Call()
        reading = asyncio.create_task(answered(places, first))
        await until_read(first)
        beside = asyncio.create_task(answered(places, second))
        await until_read(second)
        assert not beside.done(), "small and slow ones are read side by side"

        process.held += GROWTH_BYTES + 1
        with pytest.raises(CrowdedError, match=NO_MEMORY):
            await beside
        await asyncio.sleep(0)
        assert not second.message.cancelled(), (
            "gRPC would never free a message that comes after its reading was cancelled"
        )
        first.message.set_result(b"first")
        assert await reading == b"first"

    asyncio.run(scenario())


def test_what_is_whole_at_once_is_read_however_much_is_held() -> None:
    async def scenario() -> None:
        process = Process()
        places = Places(memory=process)
        large, slow, small = Call(), Call(), Call()
        reading = asyncio.create_task(answered(places, large))
        await until_read(large)
        process.held += 10 * GROWTH_BYTES
        small.message.set_result(b"small")
        assert await answered(places, small) == b"small"

        with pytest.raises(CrowdedError, match=NO_MEMORY):
            await answered(places, slow)
        large.message.set_result(b"large")
        await reading

    asyncio.run(scenario())


def test_a_large_message_is_the_first_until_it_is_answered() -> None:
    async def scenario() -> None:
        process, committed = Process(), asyncio.Event()
        places = Places(memory=process, patience_s=0.01)
        large, second, third = Call(), Call(), Call()
        large.message.set_result(bytes(LARGE_BYTES))
        decoding = asyncio.create_task(answered(places, large, committed))
        await asyncio.sleep(0.05)
        process.held += GROWTH_BYTES + 1
        with pytest.raises(CrowdedError, match=NO_MEMORY):
            await answered(places, second)

        committed.set()
        await decoding
        reading = asyncio.create_task(answered(places, third))
        await until_read(third)
        third.message.set_result(b"third")
        assert await reading == b"third"

    asyncio.run(scenario())


def test_messages_wait_unread_for_the_answer_to_a_large_one_and_not_for_ever() -> None:
    async def scenario() -> None:
        committed = asyncio.Event()
        places = Places(memory=Process(), patience_s=DEADLINE_S)
        large, second, third = Call(), Call(), Call()
        large.message.set_result(bytes(LARGE_BYTES))
        decoding = asyncio.create_task(answered(places, large, committed))
        await asyncio.sleep(0.05)
        second.message.set_result(b"second")
        waiting = asyncio.create_task(answered(places, second))
        await asyncio.sleep(0.05)
        assert not second.is_read
        committed.set()
        assert await waiting == b"second"
        await decoding

        impatient = Places(memory=Process(), patience_s=0.05)
        large.message = asyncio.get_running_loop().create_future()
        large.message.set_result(bytes(LARGE_BYTES))
        never = asyncio.Event()
        decoding = asyncio.create_task(answered(impatient, large, never))
        await asyncio.sleep(0.02)
        third.message.set_result(b"third")
        assert await answered(impatient, third) == b"third"
        never.set()
        await decoding

    asyncio.run(scenario())


def test_a_small_one_that_was_slow_is_the_first_no_longer_once_it_is_whole() -> None:
    async def scenario() -> None:
        process, committed = Process(), asyncio.Event()
        places = Places(memory=process)
        slow, second = Call(), Call()
        waiting = asyncio.create_task(answered(places, slow, committed))
        await until_read(slow)
        slow.message.set_result(b"slow")
        await asyncio.sleep(0.05)
        process.held += 10 * GROWTH_BYTES
        reading = asyncio.create_task(answered(places, second))
        await until_read(second)
        second.message.set_result(b"second")
        assert await reading == b"second"
        committed.set()
        await waiting

    asyncio.run(scenario())


def test_who_runs_into_the_time_out_is_the_first_no_longer() -> None:
    async def scenario() -> None:
        process = Process()
        places = Places(timeout_s=0.05, memory=process)
        slow = Call()
        with pytest.raises(TooSlowError):
            await answered(places, slow)
        await asyncio.sleep(0)
        assert not slow.message.cancelled()
        process.held += 10 * GROWTH_BYTES
        with pytest.raises(TooSlowError):
            await answered(places, Call())

    asyncio.run(scenario())


# --- with gRPC itself -------------------------------------------------------------------------------------------------


@contextmanager
def listening(places: Places) -> Iterator[int]:
    server, port = create_server(
        Ingest(FakeWriter()), address="127.0.0.1:0", places=places, max_request_bytes=MAX_REQUEST_BYTES
    )
    server.start()
    try:
        yield port
    finally:
        server.stop(None)


def refusals(port: int, body: bytes, count: int) -> list[Any]:
    """So many senders at once; what those were told that were refused."""
    refused: list[Any] = []

    def send() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1)]) as channel:
            call: Any = channel.unary_unary(TRACES)
            try:
                call(body, timeout=DEADLINE_S)
            except grpc.RpcError as error:
                refused.append(error)

    threads = [threading.Thread(target=send) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * DEADLINE_S)
    return refused


@pytest.mark.slow
def test_nothing_of_refused_messages_stays_and_their_senders_are_told_when_to_send_again() -> None:
    size = 63 * 1024 * 1024
    body = bytes([0xFA, 0x3F]) + _varint(size - 6) + bytes(size - 6)  # an unknown field: a request without spans
    growing = iter(range(0, 10**15, GROWTH_BYTES + 1))
    with listening(Places(memory=lambda: next(growing))) as port:
        refusals(port, body, 3)  # once for what stays of the first time
        gc.collect()
        gc.disable()
        try:
            before = resident_bytes()
            refused = [error for _ in range(4) for error in refusals(port, body, 3)]
            grown = resident_bytes() - before
        finally:
            gc.enable()

    assert len(refused) >= 4, "of three at once at most one is read"
    assert grown < 1.5 * size, "some of what was freed may be held by the C library, and no more"
    crowded = [error for error in refused if str(error.details()) == NO_MEMORY]
    assert crowded
    trailer: dict[str, bytes] = dict(crowded[0].trailing_metadata())
    [packed] = status_pb2.Status.FromString(trailer[GRPC_DETAILS]).details
    info = error_details_pb2.RetryInfo()
    assert packed.Unpack(info)
    assert info.retry_delay.seconds >= 1


@pytest.mark.parametrize("payload", [trace_request(3).SerializeToString(), b"\xff" * 100], ids=["good", "malformed"])
def test_a_request_that_was_answered_is_freed_without_the_garbage_collector(payload: bytes) -> None:
    ingest = Ingest(FakeWriter())
    gc.collect()
    gc.disable()
    try:
        before = sys.getrefcount(payload)
        accepted = ingest.traces(payload)
        accepted.committed.exception(DEADLINE_S)
        del accepted
        ingest.close()
        assert sys.getrefcount(payload) == before
    finally:
        gc.enable()


def _varint(number: int) -> bytes:
    return bytes([*(number >> shift & 127 | 128 for shift in (0, 7, 14)), number >> 21])

"""gRPC senders that stop in the middle of a message, next to one that does not; and log requests that are too large."""

import struct
import threading
import time
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import status_pb2

from collector.receiver.grpc_server import MAX_STREAMS, create_server
from collector.receiver.http_app import create_app
from collector.receiver.ingest import Ingest
from collector.receiver.reading import READING, SLOW, Places
from collector.receiver.signals import MAX_LOGS_BYTES, AccessLogs, logs_service, logs_signal
from collector.receiver.statuses import PROTOBUF
from tests.campaigns import wire
from tests.collector.receiver.receiver_fakes import DEADLINE_S, FakeWriter, http_server

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
ENHANCE_YOUR_CALM = struct.pack(">I", 11)
LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"


@pytest.fixture
def port():
    """A server whose services share their places."""
    places, writer = Places(timeout_s=5.0), FakeWriter()
    handlers = [logs_service(AccessLogs(writer), places=places)]
    server, port = create_server(Ingest(writer), address="127.0.0.1:0", handlers=handlers, places=places)
    server.start()
    yield port
    server.stop(None)


def stalled(port, path):
    """A call that has sent half of its message."""
    connection = wire.Http2(port, DEADLINE_S)
    connection.open(1, path)
    connection.send(wire.frame(wire.DATA, 0, 1, struct.pack(">BI", 0, 1_000) + bytes(500)))
    return connection


def answer(connection):
    connection.wait(1)
    connection.socket.close()
    return connection.answer


def export(channel, path, payload) -> bytes:
    call: Any = channel.unary_unary(path)
    answered: bytes = call(payload, timeout=DEADLINE_S)
    return answered


def refusal(port, payload):
    """Code and words of the answer to a log request."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            export(channel, LOGS, payload)
        return raised.value.code(), str(raised.value.details())


@pytest.mark.slow
@pytest.mark.parametrize("path", [TRACES, LOGS])
def test_stalled_senders_do_not_keep_out_a_good_one(port, path):
    many = [stalled(port, path) for _ in range(4 * (READING + SLOW))]
    begun = time.monotonic()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert export(channel, TRACES, b"") == export(channel, LOGS, b"") == b""
    waited = time.monotonic() - begun

    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda c=c: answers.append(answer(c))) for c in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    crowded = [said for said in answers if b"too many slow messages" in said]
    assert len(answers) == len(many)
    assert len(crowded) == len(many) - SLOW
    assert waited < 5.0, "a good sender waits for nobody's time-out"


def test_a_client_that_acknowledges_no_settings_has_no_more_calls_than_others(port):
    beyond = [2 * number + 1 for number in range(MAX_STREAMS, MAX_STREAMS + 8)]
    opened = [
        wire.frame(wire.HEADERS, wire.END_HEADERS, 2 * n + 1, wire.export_fields(TRACES))
        for n in range(MAX_STREAMS + 8)
    ]
    with wire.connect(port, DEADLINE_S) as connection:
        connection.sendall(wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0) + b"".join(opened))
        said = b""
        while any(wire.frame(wire.RST_STREAM, 0, stream, ENHANCE_YOUR_CALM) not in said for stream in beyond):
            piece = connection.recv(65_536)
            assert piece, "the server ended the connection"
            said += piece


def test_a_log_request_that_is_too_large_is_refused_for_good(port):
    code, words = refusal(port, bytes(MAX_LOGS_BYTES + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "send smaller batches" in words


def test_a_log_request_that_is_too_large_is_413_over_http():
    writer = FakeWriter()
    app = create_app(ingest=Ingest(writer), signals=[logs_signal(AccessLogs(writer))])
    headers = {"content-type": PROTOBUF}
    with http_server(app) as port:
        url = f"http://127.0.0.1:{port}/v1/logs"
        refused = httpx.post(url, content=bytes(MAX_LOGS_BYTES + 1), headers=headers, timeout=DEADLINE_S)
        unread = wire.http(port, wire.head("/v1/logs", content_type=PROTOBUF, content_length=str(MAX_LOGS_BYTES + 1)))
    assert refused.status_code == 413
    assert "send smaller batches" in status_pb2.Status.FromString(refused.content).message
    assert unread.startswith(b"HTTP/1.1 413"), "before anything of the body is read"


def test_a_log_request_of_too_many_records_is_refused(port):
    records = b"\x12\x00" * 200_001
    scope = b"\x12" + _varint(len(records)) + records
    request = b"\x0a" + _varint(len(scope)) + scope
    code, words = refusal(port, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 200000" in words


def _varint(number):
    return bytes([number & 127 | 128, number >> 7 & 127 | 128, number >> 14 & 127 | 128, number >> 21])

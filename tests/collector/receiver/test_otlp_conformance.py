"""docs/otlp.md says which test shows each of OTLP's demands; what no other file's tests show is shown here."""

import ast
import re
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2

from collector.errors import StoreError
from collector.otlp.synthetic import trace_request
from collector.receiver.grpc_server import MAX_GRPC_REQUEST_BYTES, SERVICE, create_server
from collector.receiver.http_app import create_app
from collector.receiver.ingest import MAX_REQUEST_BYTES, Ingest
from collector.receiver.statuses import GRPC_DETAILS
from tests.collector.receiver.receiver_fakes import DEADLINE_S, FakeWriter

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parents[1] / "docs" / "otlp.md"
LEVELS = ("MUST", "SHOULD", "says")


def demands():
    """The tables' rows that demand something: demand, how much, whether it is met, how, and by which tests."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in DOCUMENT.read_text().splitlines()]
    return [row for row in rows if len(row) == 5 and row[1] in LEVELS]


def test_names(path):
    """The tests that a file defines."""
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


test_names.__test__ = False  # type: ignore[attr-defined]


def test_every_row_of_the_tables_is_read():
    marked = re.findall(r"\| (MUST|SHOULD|says) \|", DOCUMENT.read_text())
    assert Counter(row[1] for row in demands()) == Counter(marked) == {"MUST": 26, "SHOULD": 15, "says": 10}


@pytest.mark.parametrize("row", demands(), ids=lambda row: row[0])
def test_every_demand_names_tests_that_exist(row):
    _, _, met, how, shown = row
    assert met in {"yes", "partly", "no"}
    assert met == "yes" or how, "what is not met has its reason"
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", shown)
    assert named
    assert len(named) == shown.count("`") // 2
    for file, test in named:
        assert test in test_names(TESTS / file), f"{file} has no {test}"


# --- shown here -------------------------------------------------------------------------------------------------------


@contextmanager
def export(writer, **options):
    """A call of Export with bytes, to a server of this writer."""
    server, port = create_server(Ingest(writer), address="127.0.0.1:0", **options)
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1)]) as channel:
            call: Any = channel.unary_unary(f"/{SERVICE}/Export")
            yield lambda payload: call(payload, timeout=DEADLINE_S)
    finally:
        server.stop(None)


def details(error, message_class):
    """The one detail of this kind in the call's trailer."""
    [trailer] = [value for key, value in error.trailing_metadata() if key == GRPC_DETAILS]
    [packed] = status_pb2.Status.FromString(trailer).details
    made = message_class()
    assert packed.Unpack(made)
    return made


def test_the_limit_over_http_is_the_recommended_one_and_over_grpc_a_quarter_of_it():
    assert MAX_REQUEST_BYTES == 64 * 1024 * 1024
    assert MAX_GRPC_REQUEST_BYTES == 16 * 1024 * 1024
    with export(FakeWriter()) as call:
        call(ignored(MAX_GRPC_REQUEST_BYTES))
        with pytest.raises(grpc.RpcError) as caught:
            call(ignored(MAX_GRPC_REQUEST_BYTES + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def ignored(size):
    """A request of that size, of one field that nobody knows."""
    head = b"\xfa\x3f" + bytes([*(size - 6 >> shift & 127 | 128 for shift in (0, 7, 14)), size - 6 >> 21])
    return head + bytes(size - 6)


def test_over_grpc_unavailable_carries_retry_info():
    with export(FakeWriter(failure=StoreError("no space"))) as call, pytest.raises(grpc.RpcError) as caught:
        call(trace_request(1).SerializeToString())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert details(caught.value, error_details_pb2.RetryInfo).retry_delay.seconds == 1


def test_over_grpc_bad_data_carries_a_bad_request():
    with export(FakeWriter()) as call, pytest.raises(grpc.RpcError) as caught:
        call(b"\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    [violation] = details(caught.value, error_details_pb2.BadRequest).field_violations
    assert violation.description == caught.value.details()


def test_over_grpc_too_large_has_no_retry_info():
    with export(FakeWriter(), max_request_bytes=1000) as call, pytest.raises(grpc.RpcError) as caught:
        call(bytes(2000))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailer: Any = caught.value.trailing_metadata() or ()
    assert GRPC_DETAILS not in {key for key, _ in trailer}


def from_the_future(payload):
    """The message with fields that no version knows yet: a varint, a string, a fixed64."""
    return payload + b"\xf8\x3f\x05" + b"\xfa\x3f\x03new" + b"\xf9\x3f" + bytes(8)


def test_fields_from_the_future_are_ignored():
    request = trace_request(1)
    [resource_spans] = request.resource_spans
    [scope_spans] = resource_spans.scope_spans
    scope_spans.spans[0].MergeFromString(from_the_future(b""))
    scope_spans.MergeFromString(from_the_future(b""))
    resource_spans.MergeFromString(from_the_future(b""))
    writer, known = FakeWriter(), FakeWriter()
    with export(writer) as call:
        call(from_the_future(request.SerializeToString()))
    with export(known) as call:
        call(trace_request(1).SerializeToString())
    [row], [expected] = writer.rows("spans"), known.rows("spans")
    assert {**row, "received_unix_nano": 0} == {**expected, "received_unix_nano": 0}


@pytest.mark.parametrize("language", ["application/x-protobuf", "application/json"])
async def test_a_response_is_small_whatever_was_refused(language):
    span = {"traceId": "x" * 5000, "spanId": "y" * 5000, "parentSpanId": "z" * 5000}
    text = str({"resourceSpans": [{"scopeSpans": [{"spans": [span] * 500}]}]}).replace("'", '"')
    request = trace_request(10_000)
    for index, bad in enumerate(request.resource_spans[0].scope_spans[0].spans):
        bad.trace_id, bad.span_id = bytes(index % 20), bytes(index % 9)
    body = text.encode() if language == "application/json" else request.SerializeToString()
    transport = httpx.ASGITransport(create_app(ingest=Ingest(FakeWriter())))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        response = await client.post("/v1/traces", content=body, headers={"content-type": language})
    assert response.status_code == 200
    assert 20 < len(response.content) < 4096

"""The load: no span twice, traces that hang together, and a client that notices every refusal."""

import asyncio
import time
from itertools import islice

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from collector.otlp.json_form import json_to_request
from collector.otlp.synthetic import START_UNIX_NANO
from tests.benchmarks.http_client import HttpConnections, RefusedError, content_length
from tests.benchmarks.otlp_load import RETRY_S, Seen, is_retryable
from tests.benchmarks.payloads import TEMPLATES, Encoding, bodies

COUNT = TEMPLATES + 6
"""Six more than are made whole."""


def sent(encoding: Encoding, *, seed: int = 0, spans: int = 20, start: int = START_UNIX_NANO) -> list[list[Span]]:
    """The spans of some requests, as a receiver reads them."""
    requests = islice(bodies(spans, seed=seed, start_unix_nano=start, encoding=encoding), COUNT)
    read = [json_to_request(r, ExportTraceServiceRequest) if encoding == "json" else r for r in requests]
    return [list(ExportTraceServiceRequest.FromString(r).resource_spans[0].scope_spans[0].spans) for r in read]


def attribute(span: Span, key: str) -> str:
    [value] = [kv.value.string_value for kv in span.attributes if kv.key == key]
    return value


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_no_two_spans_of_all_requests_and_seeds_are_alike(encoding: Encoding) -> None:
    spans = [span for seed in (0, 1000) for request in sent(encoding, seed=seed) for span in request]

    assert len(spans) == 2 * COUNT * 20
    assert len({(span.trace_id, span.span_id) for span in spans}) == len(spans)
    for key in ("provenance.request.hash", "provenance.request_id"):
        assert len({attribute(span, key) for span in spans}) == len(spans)


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_traces_hang_together_and_begin_when_they_should(encoding: Encoding) -> None:
    start = START_UNIX_NANO + 86_400 * 10**9 + 7

    for number, spans in enumerate(sent(encoding, start=start)):
        trace_of = {span.span_id: span.trace_id for span in spans}
        roots = [span for span in spans if not span.parent_span_id]
        assert len(roots) == 3  # of 20 spans, eight a trace
        assert all(trace_of[span.parent_span_id] == span.trace_id for span in spans if span.parent_span_id)
        assert spans[0].start_time_unix_nano == start + number * 10**6
        assert all(0 < span.end_time_unix_nano - span.start_time_unix_nano < 50_000_000 for span in spans)


def test_both_encodings_say_the_same() -> None:
    assert sent("json") == sent("protobuf")


def test_equal_arguments_give_equal_bytes() -> None:
    def made() -> list[bytes]:
        return list(islice(bodies(3, seed=5, start_unix_nano=START_UNIX_NANO), COUNT))

    assert made() == made()


def test_a_span_is_as_heavy_as_the_benchmarks_say() -> None:
    [body] = islice(bodies(512, seed=0, start_unix_nano=START_UNIX_NANO), 1)
    spans = ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans

    assert 430 <= len(body) / 512 <= 470
    assert len(spans) == 512
    assert {len(span.attributes) for span in spans} == {9}


# --- the client -------------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def posted(answers: list[bytes], *, times: int = 1, fragment: int = 10**6) -> tuple[list[object], int]:
    """What `post` gave or raised, each time, and on how many connections, where the server answers so, in pieces."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while answers:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            assert await reader.readexactly(content_length(head)) == b"spans"
            answer = answers.pop(0)
            for at in range(0, len(answer), fragment):
                writer.write(answer[at : at + fragment])
                await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def run() -> list[object]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            client = HttpConnections(f"127.0.0.1:{port}", "/v1/traces", "text/plain")
            results = [await asyncio.wait_for(outcome(client), 10) for _ in range(times)]
            await client.close()
            return results

    async def outcome(client: HttpConnections) -> object:
        try:
            return await client.post(b"spans")
        except (RefusedError, ConnectionError) as error:
            return error

    return asyncio.run(run()), connections


@pytest.mark.parametrize("fragment", [1, 7, 10**6])
def test_a_connection_is_used_again(fragment: int) -> None:
    assert posted([OK, OK, OK], times=3, fragment=fragment) == ([b"ok", b"ok", b"ok"], 1)


def test_a_refusal_is_an_error_with_its_status_and_the_connection_goes_on() -> None:
    refusal = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nfull"
    (first, second), connections = posted([refusal, OK], times=2)

    assert isinstance(first, RefusedError)
    assert first.status == 503
    assert "full" in str(first)
    assert second == b"ok"
    assert connections == 1


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"]
)
def test_what_is_no_whole_answer_is_an_error(answer: bytes) -> None:
    ([error], _) = posted([answer])

    assert isinstance(error, ConnectionError)


def test_only_what_the_specification_lets_retry_is_retried() -> None:
    statuses = (400, 401, 404, 408, 413, 415, 429, 500, 501, 502, 503, 504)

    assert [status for status in statuses if is_retryable(RefusedError(status, b""))] == [429, 502, 503, 504]


def test_a_retried_request_counts_once_with_all_of_its_time() -> None:
    seen = Seen()
    refusals = [RefusedError(503, b"full")]

    async def post(body: bytes) -> None:
        if refusals:
            raise refusals.pop()

    asyncio.run(seen.send(post, b"12345", time.perf_counter()))

    assert seen.refused == 1
    assert seen.sent_bytes == 5
    [latency] = seen.latencies_s
    assert latency >= RETRY_S


def test_a_request_that_is_refused_for_good_ends_the_run() -> None:
    async def post(body: bytes) -> bytes:
        raise RefusedError(400, b"no trace request")

    with pytest.raises(RefusedError, match="400"):
        asyncio.run(Seen().send(post, b"", time.perf_counter()))

"""Real clients against a listening server."""

from contextlib import contextmanager

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

from collector.errors import ConfigError, StoreError, StoreFullError
from collector.otlp.synthetic import trace_request
from collector.receiver.counters import Counters
from collector.receiver.grpc_server import create_server
from collector.receiver.ingest import Ingest
from collector.receiver.statuses import DEFECT
from tests.collector.receiver.receiver_fakes import DEADLINE_S, FakeWriter


@contextmanager
def listening(writer, **options):
    server, port = create_server(Ingest(writer), address="127.0.0.1:0", **options)
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel, port
    finally:
        server.stop(None)


def export(channel, request):
    return TraceServiceStub(channel).Export(request, timeout=DEADLINE_S)


def export_bytes(channel, payload):
    """The call with any bytes for a request."""
    call = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
    return call(payload, timeout=DEADLINE_S)


class Recording(OTLPSpanExporter):
    """The exporter, which also keeps what it sent and how that went."""

    def __init__(self, **options):
        super().__init__(**options)
        self.sent, self.results = [], []

    def export(self, spans):
        self.sent += [(s.context.trace_id, s.context.span_id) for s in spans]
        self.results.append(super().export(spans))
        return self.results[-1]


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_every_span_of_the_python_exporter_arrives(compression):
    writer = FakeWriter()
    with listening(writer) as (_, port):
        exporter = Recording(endpoint=f"127.0.0.1:{port}", insecure=True, compression=compression)
        provider = TracerProvider(resource=Resource({"service.name": "cart"}))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("test")
        for index in range(5):
            with tracer.start_as_current_span(f"span {index}", attributes={"http.route": "/", "n": [1, 2]}) as span:
                span.add_event("event", {"k": "v"})
        provider.shutdown()
    assert exporter.results == [SpanExportResult.SUCCESS] * 5
    rows = writer.rows("spans")
    assert [(row["trace_id"].int, row["span_id"]) for row in rows] == exporter.sent
    assert {row["service_name"] for row in rows} == {"cart"}
    assert {row["attributes_json"][0] for row in rows} == {("n", "[1, 2]")}
    assert len(writer.rows("span_events")) == 5


def test_no_answer_before_the_commit():
    writer = FakeWriter(held=True)
    with listening(writer) as (channel, _):
        call = TraceServiceStub(channel).Export.future(trace_request(2), timeout=DEADLINE_S)
        writer.wait_for(1)
        with pytest.raises(grpc.FutureTimeoutError):
            call.result(timeout=0.2)
        writer.commit(writer.futures[0])
        assert not call.result(timeout=DEADLINE_S).HasField("partial_success")


def test_many_requests_can_wait_for_one_commit():
    writer = FakeWriter(held=True)
    with listening(writer) as (channel, _):
        calls = [
            TraceServiceStub(channel).Export.future(trace_request(1, seed=n), timeout=DEADLINE_S) for n in range(32)
        ]
        while len(writer.rows("spans")) < 32:
            writer.wait_for(1)
        assert not any(call.done() for call in calls)
        for future in writer.futures:
            writer.commit(future)
        for call in calls:
            call.result(timeout=DEADLINE_S)


def test_refused_spans_are_a_partial_success():
    request = trace_request(3)
    request.resource_spans[0].scope_spans[0].spans[0].span_id = b"short"
    with listening(FakeWriter()) as (channel, _):
        partial = export(channel, request).partial_success
    assert (partial.rejected_spans, partial.error_message) == (1, "1 span: span_id is not 8 bytes")


def test_an_empty_request_succeeds():
    with listening(FakeWriter()) as (channel, _):
        assert not export(channel, ExportTraceServiceRequest()).HasField("partial_success")


@pytest.mark.parametrize("payload", [b"\xff", trace_request(3).SerializeToString()[:-3], b"\x0b" * 1_000_000])
def test_bad_data_is_an_invalid_argument(payload):
    writer = FakeWriter()
    with listening(writer) as (channel, _), pytest.raises(grpc.RpcError) as caught:
        export_bytes(channel, payload)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a protobuf message" in str(caught.value.details())
    assert writer.rows("spans") == []


def test_a_defect_is_internal_and_tells_nothing_of_the_inside(monkeypatch, caplog):
    def broken(_self, _payload):
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(Ingest, "traces", broken)
    counters = Counters()
    with listening(FakeWriter(), counters=counters) as (channel, _), pytest.raises(grpc.RpcError) as caught:
        export(channel, trace_request(1))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, DEFECT)
    assert "hunter2" in caplog.text
    assert counters.read().refused["other"].requests == 1


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_request_beyond_the_limit_is_refused_also_when_it_travels_small(compression):
    writer = FakeWriter()
    payload = b"\x0a\x00" * 100_000
    with listening(writer, max_request_bytes=100_000) as (channel, _):
        call = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        with pytest.raises(grpc.RpcError) as caught:
            call(payload, timeout=DEADLINE_S, compression=compression)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert writer.appended == []


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        ({"refusal": StoreFullError("the queue is full")}, "the queue is full"),
        ({"failure": StoreError("no space")}, "no space"),
    ],
)
def test_a_failing_store_is_unavailable_so_that_the_sender_tries_again(writer, message):
    with listening(FakeWriter(**writer)) as (channel, _), pytest.raises(grpc.RpcError) as caught:
        export(channel, trace_request(1))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == message


def test_a_commit_that_takes_too_long_is_unavailable():
    with (
        listening(FakeWriter(held=True), commit_timeout_s=0.05) as (channel, _),
        pytest.raises(grpc.RpcError) as caught,
    ):
        export(channel, trace_request(1))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "not committed in time" in str(caught.value.details())


@pytest.mark.parametrize(
    ("stub", "request_"),
    [(MetricsServiceStub, ExportMetricsServiceRequest()), (LogsServiceStub, ExportLogsServiceRequest())],
)
def test_metrics_and_logs_are_unimplemented(stub, request_):
    with listening(FakeWriter()) as (channel, _), pytest.raises(grpc.RpcError) as caught:
        stub(channel).Export(request_, timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_port_that_is_taken_is_a_config_error():
    with listening(FakeWriter()) as (_, port), pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
        create_server(Ingest(FakeWriter()), address=f"127.0.0.1:{port}")

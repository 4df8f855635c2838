"""Logs that are access logs over gRPC and HTTP; everything else that is no trace is answered as a Collector without it would."""

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import httpx
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub

from collector.errors import StoreError, StoreFullError
from collector.otlp.access_logs import NOT_AN_ACCESS_LOG
from collector.otlp.json_form import request_to_json
from collector.receiver.grpc_server import create_server
from collector.receiver.http_app import create_app
from collector.receiver.ingest import Ingest
from collector.receiver.signals import AccessLogs, logs_service, logs_signal
from collector.receiver.statuses import DEFECT, GRPC_DETAILS
from tests.collector.receiver.receiver_fakes import DEADLINE_S, FakeWriter, http_server

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
LINE = '[2016-04-15T20:17:00.310Z] "POST /a HTTP/2" 204 - 154 0 226 100 "10.0.35.28" "nsq2http" "cc21d9b0" "a" "10.0.2.1:80"'
REFUSED = f"1 log record: {NOT_AN_ACCESS_LOG}"


def request(*bodies):
    message = ExportLogsServiceRequest()
    resource_logs = message.resource_logs.add()
    resource_logs.resource.attributes.add(key="service.name").value.string_value = "sleep"
    records = resource_logs.scope_logs.add().log_records
    for body in bodies:
        records.add(time_unix_nano=1_460_751_420_310_000_001, trace_id=bytes(range(16))).body.string_value = body
    return message


@contextmanager
def over_grpc(writer, **options):
    handler = logs_service(AccessLogs(writer), **options)
    server, port = create_server(Ingest(writer), address="127.0.0.1:0", handlers=[handler])
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        server.stop(None)


@contextmanager
def over_http(writer):
    app = create_app(ingest=Ingest(writer), signals=[logs_signal(AccessLogs(writer))])
    with http_server(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S) as client:
        yield client


def export(channel, *bodies):
    return LogsServiceStub(channel).Export(request(*bodies), timeout=DEADLINE_S)


# --- gRPC -----------------------------------------------------------------------------------------------------------------


def test_access_logs_are_stored_over_grpc():
    writer = FakeWriter()
    with over_grpc(writer) as channel:
        assert not export(channel, LINE, LINE.replace("/a", "/b")).HasField("partial_success")
        assert not export(channel).HasField("partial_success")

    assert [(row["service_name"], row["path"]) for row in writer.rows("proxy_records")] == [
        ("sleep", "/a"),
        ("sleep", "/b"),
    ]
    assert writer.errors() == {}


def test_other_logs_are_refused_one_by_one_with_the_reason():
    writer = FakeWriter()
    with over_grpc(writer) as channel:
        partial = export(channel, "user logged in", LINE).partial_success

    assert (partial.rejected_log_records, partial.error_message) == (1, REFUSED)
    assert len(writer.rows("proxy_records")) == 1
    assert writer.errors() == {NOT_AN_ACCESS_LOG: 1}


def test_bad_data_is_an_invalid_argument_and_recorded():
    writer = FakeWriter()
    with over_grpc(writer) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/opentelemetry.proto.collector.logs.v1.LogsService/Export")(b"\xff", timeout=DEADLINE_S)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a protobuf message" in str(caught.value.details())
    [reason] = writer.errors()
    assert reason.startswith("log request refused: ")


def test_no_answer_before_the_commit():
    writer = FakeWriter(held=True)
    with over_grpc(writer) as channel:
        call = LogsServiceStub(channel).Export.future(request(LINE), timeout=DEADLINE_S)
        writer.wait_for(1)
        with pytest.raises(grpc.FutureTimeoutError):
            call.result(timeout=0.2)
        writer.commit(writer.futures[0])
        call.result(timeout=DEADLINE_S)


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        ({"refusal": StoreFullError("the queue is full")}, "the queue is full"),
        ({"failure": StoreError("no space")}, "no space"),
        ({"held": True}, "not committed in time"),
    ],
)
def test_a_failing_store_is_unavailable_and_says_when_to_try_again(writer, message):
    with over_grpc(FakeWriter(**writer), commit_timeout_s=0.05) as channel, pytest.raises(grpc.RpcError) as caught:
        export(channel, LINE)

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert message in str(caught.value.details())
    [details] = [item.value for item in caught.value.trailing_metadata() if item.key == GRPC_DETAILS]
    retry = error_details_pb2.RetryInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(retry)
    assert retry.retry_delay.seconds >= 1


def test_a_defect_is_internal_and_tells_nothing_of_the_inside(monkeypatch, caplog):
    monkeypatch.setattr(AccessLogs, "logs", _broken)
    with over_grpc(FakeWriter()) as channel, pytest.raises(grpc.RpcError) as caught:
        export(channel, LINE)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, DEFECT)
    assert "hunter2" in caplog.text


def _broken(_self, _payload):
    raise RuntimeError("the password is hunter2")


def test_metrics_are_unimplemented():
    with over_grpc(FakeWriter()) as channel, pytest.raises(grpc.RpcError) as caught:
        MetricsServiceStub(channel).Export(ExportMetricsServiceRequest(), timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_many_senders_at_once():
    writer = FakeWriter()
    with over_grpc(writer) as channel, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: export(channel, *[LINE] * 20), range(24)))
    assert not any(answer.HasField("partial_success") for answer in answers)
    assert len(writer.rows("proxy_records")) == 480


# --- HTTP -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize("language", [PROTOBUF, JSON])
def test_access_logs_are_stored_over_http(language, encoding):
    writer = FakeWriter()
    message = request(LINE, "not a line")
    body = message.SerializeToString() if language == PROTOBUF else request_to_json(message).encode()
    headers = {"content-type": language} | ({"content-encoding": encoding} if encoding else {})
    with over_http(writer) as client:
        answer = client.post("/v1/logs", content=gzip.compress(body) if encoding else body, headers=headers)

    assert (answer.status_code, answer.headers["content-type"]) == (200, language)
    if language == PROTOBUF:
        partial = ExportLogsServiceResponse.FromString(answer.content).partial_success
        assert (partial.rejected_log_records, partial.error_message) == (1, REFUSED)
    else:
        assert answer.json() == {"partialSuccess": {"rejectedLogRecords": "1", "errorMessage": REFUSED}}
    [row] = writer.rows("proxy_records")
    assert (row["path"], row["trace_id"].bytes) == ("/a", bytes(range(16)))


def test_json_of_a_log_record_as_a_collector_writes_it():
    writer = FakeWriter()
    record = {
        "timeUnixNano": "1460751420310000001",
        "body": {"stringValue": LINE},
        "attributes": [{"key": "weight", "value": {"intValue": "5"}}],
        "traceId": "000102030405060708090A0B0C0D0E0F",
        "somethingNew": 1,
    }
    body = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}
    with over_http(writer) as client:
        answer = client.post("/v1/logs", json=body)

    assert (answer.status_code, answer.json()) == (200, {})
    [row] = writer.rows("proxy_records")
    assert row["start_time_unix_nano"] == 1_460_751_420_310_000_001
    assert row["trace_id"].bytes == bytes(range(16))
    assert ("weight", "5") in row["attributes"]


@pytest.mark.parametrize("language", [PROTOBUF, JSON])
def test_metrics_have_no_route_over_http(language):
    with over_http(FakeWriter()) as client:
        answer = client.post("/v1/metrics", content=b"", headers={"content-type": language})

    assert (answer.status_code, answer.headers["content-type"]) == (404, language)
    code = answer.json()["code"] if language == JSON else status_pb2.Status.FromString(answer.content).code
    assert code == code_pb2.NOT_FOUND


def test_bad_data_over_http_is_a_status():
    with over_http(FakeWriter()) as client:
        bad = client.post("/v1/logs", content=b"\xff", headers={"content-type": PROTOBUF})
        odd = client.post("/v1/logs", content=json.dumps({"resourceLogs": 5}), headers={"content-type": JSON})

    assert (bad.status_code, odd.status_code) == (400, 400)
    assert status_pb2.Status.FromString(bad.content).code == code_pb2.INVALID_ARGUMENT
    assert "resourceLogs" in odd.json()["message"]


def test_a_full_store_over_http_says_when_to_try_again():
    with over_http(FakeWriter(refusal=StoreFullError("the queue is full"))) as client:
        answer = client.post("/v1/logs", content=request(LINE).SerializeToString(), headers={"content-type": PROTOBUF})

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert status_pb2.Status.FromString(answer.content).message == "the queue is full"

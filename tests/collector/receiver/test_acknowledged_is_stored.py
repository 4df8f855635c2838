"""The real writer behind the real receiver: what was acknowledged is in the file."""

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from collector.otlp.synthetic import trace_request
from collector.receiver.grpc_server import create_server
from collector.receiver.ingest import Ingest
from collector.store.database import Store
from collector.store.writer import Writer
from tests.collector.receiver.receiver_fakes import DEADLINE_S


@pytest.mark.slow
def test_every_acknowledged_span_is_in_the_file(tmp_path):
    path = tmp_path / "evidence.duckdb"
    requests = [trace_request(20, seed=seed, service_name=f"service-{seed % 3}") for seed in range(12)]
    requests[0].resource_spans[0].scope_spans[0].spans[3].kind = Span.SpanKind.ValueType(99)
    with Store.open(path) as store, Writer(store) as writer:
        server, port = create_server(Ingest(writer), address="127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = TraceServiceStub(channel)
            for call in [stub.Export.future(request, timeout=DEADLINE_S) for request in requests]:
                assert not call.result().HasField("partial_success")
        server.stop(None)
    sent = {
        (span.trace_id.hex(), int.from_bytes(span.span_id, "big"))
        for request in requests
        for span in request.resource_spans[0].scope_spans[0].spans
    }
    with Store.open_read_only(path) as store:
        rows = store.cursor().execute("SELECT replace(trace_id::VARCHAR, '-', ''), span_id FROM spans").fetchall()
        joined = store.cursor().execute(
            "SELECT count(*) FROM spans s JOIN resources r USING (resource_id) JOIN scopes USING (scope_id) "
            "WHERE s.service_name = r.service_name AND s.attributes['app.tenant'] LIKE 'tenant-%'"
        )
        assert set(rows) == sent
        assert len(rows) == len(sent)
        assert joined.fetchone() == (240,)
        noted = store.cursor().execute("SELECT reason, count FROM ingest_errors").fetchall()
        assert noted == [("unknown span kind: stored as UNSPECIFIED", 1)]

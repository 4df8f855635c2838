"""What a request becomes, whichever way it came."""

import logging
from concurrent.futures import CancelledError

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from collector.errors import DecodeError, StoreError, StoreFullError
from collector.otlp import decode
from collector.otlp.synthetic import trace_request
from collector.receiver.ingest import Ingest, describe, store_failure
from tests.collector.receiver.receiver_fakes import DEADLINE_S, FakeWriter

NOW = 1_763_859_600_000_000_000


def make_ingest(*, max_waiting_bytes=10**6, **writer):
    fake = FakeWriter(**writer)
    return Ingest(fake, clock=lambda: NOW, max_waiting_bytes=max_waiting_bytes), fake


def settled(ingest, payload):
    """The request, once it is answered; raises what its sender is told."""
    accepted = ingest.traces(payload)
    accepted.committed.result(DEADLINE_S)
    return accepted


def request_with_a_bad_span():
    request = trace_request(3)
    request.resource_spans[0].scope_spans[0].spans[1].trace_id = b"\0" * 16
    return request.SerializeToString()


def test_every_span_is_handed_to_the_writer_with_the_time_of_arrival():
    ingest, writer = make_ingest()
    accepted = settled(ingest, trace_request(3).SerializeToString())
    assert [row["received_unix_nano"] for row in writer.rows("spans")] == [NOW] * 3
    assert set(writer.appended[0]) == {"spans", "resources", "scopes"}
    assert accepted.response() == b""


def test_the_future_is_the_writers():
    ingest, writer = make_ingest(held=True)
    accepted = ingest.traces(trace_request(1).SerializeToString())
    writer.wait_for(1)
    assert not accepted.committed.done()
    writer.commit(writer.futures[0])
    assert accepted.committed.result(DEADLINE_S) is None


def test_rejected_spans_are_counted_for_the_sender_and_in_the_store():
    ingest, writer = make_ingest()
    accepted = settled(ingest, request_with_a_bad_span())
    response = ExportTraceServiceResponse.FromString(accepted.response())
    assert response.partial_success.rejected_spans == 1
    assert response.partial_success.error_message == f"1 span: {decode.TRACE_ID_ZERO}"
    assert writer.rows("ingest_errors") == [
        {"received_unix_nano": NOW, "source": "otlp", "reason": decode.TRACE_ID_ZERO, "count": 1}
    ]
    assert len(writer.rows("spans")) == 2


def test_notes_are_recorded_and_are_no_rejections():
    request = trace_request(1)
    request.resource_spans[0].scope_spans[0].spans[0].kind = Span.SpanKind.ValueType(99)
    ingest, writer = make_ingest()
    accepted = settled(ingest, request.SerializeToString())
    assert accepted.response() == b""
    assert writer.errors() == {decode.UNKNOWN_KIND: 1}


def test_an_empty_request_waits_for_no_commit():
    ingest, writer = make_ingest(held=True)
    assert settled(ingest, b"").span_count == 0
    assert writer.appended == []


def test_a_refused_request_is_recorded():
    ingest, writer = make_ingest()
    with pytest.raises(DecodeError, match="not a protobuf message"):
        settled(ingest, b"\xff\xff")
    writer.wait_for(1)
    ((reason, count),) = writer.errors().items()
    assert reason.startswith("request refused: Request: not a protobuf message")
    assert count == 1


def test_a_refused_request_is_the_senders_fault_whatever_the_store_does(caplog):
    for writer in ({"refusal": StoreFullError("full")}, {"failure": StoreError("disk gone")}):
        caplog.clear()
        ingest, _ = make_ingest(**writer)
        with caplog.at_level(logging.ERROR), pytest.raises(DecodeError):
            settled(ingest, b"\xff\xff")
        ingest.close()
        assert "not recorded" in caplog.text


def test_a_store_that_takes_no_more_says_so():
    ingest, _ = make_ingest(refusal=StoreFullError("full"))
    with pytest.raises(StoreFullError, match="full"):
        settled(ingest, trace_request(1).SerializeToString())


def test_more_than_may_wait_is_refused_at_once_and_welcome_when_there_is_room():
    payload = trace_request(2).SerializeToString()
    ingest, writer = make_ingest(held=True, max_waiting_bytes=int(1.5 * len(payload)))
    first = ingest.traces(payload)
    with pytest.raises(StoreFullError, match="in a moment"):
        ingest.traces(payload)
    writer.wait_for(1)
    writer.commit(writer.futures[0])
    first.committed.result(DEADLINE_S)
    second = ingest.traces(payload)
    writer.wait_for(1)
    writer.commit(writer.futures[1])
    assert second.committed.result(DEADLINE_S) is None


def test_a_bad_request_costs_its_neighbours_nothing():
    """They are decoded together: the first is held, so that the others wait for the decoder as one group."""
    ingest, writer = make_ingest()
    with ingest._changed:
        good = [ingest.traces(trace_request(n, seed=n).SerializeToString()) for n in (1, 2)]
        bad = ingest.traces(b"\xff\xff")
        good.append(ingest.traces(trace_request(3, seed=3).SerializeToString()))
    with pytest.raises(DecodeError):
        bad.committed.result(DEADLINE_S)
    for accepted in good:
        accepted.committed.result(DEADLINE_S)
    assert [accepted.span_count for accepted in good] == [1, 2, 3]
    assert len(writer.rows("spans")) == 6


def test_a_closed_ingest_has_answered_everything_and_takes_nothing_more():
    ingest, writer = make_ingest()
    accepted = [ingest.traces(trace_request(1, seed=seed).SerializeToString()) for seed in range(5)]
    ingest.close()
    assert all(a.committed.done() for a in accepted)
    assert len(writer.rows("spans")) == 5
    with pytest.raises(StoreError, match="shutting down"):
        ingest.traces(b"")


def test_reasons_are_described_most_frequent_first():
    assert describe({"b": 1, "a": 1, "c": 3}) == "3 spans: c; 1 span: a; 1 span: b"


def test_only_the_stores_failures_are_explained():
    assert store_failure(StoreError("no space")) == "no space"
    assert "shutting down" in store_failure(CancelledError())
    assert "not committed in time" in store_failure(TimeoutError())
    with pytest.raises(ZeroDivisionError):
        store_failure(ZeroDivisionError())

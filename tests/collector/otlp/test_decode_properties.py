"""Whatever arrives: valid requests decode as the reference says, everything else decodes or is refused, and nothing else happens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from collector.errors import DecodeError
from collector.otlp import decode_traces
from collector.otlp.synthetic import trace_request
from collector.schema import HOT_ATTRIBUTES, arrow_schema
from tests.collector.otlp.reference_decoder import reference_spans

RECEIVED = 1_763_859_600_000_000_000
TABLES = ["spans", "span_events", "span_links", "resources", "scopes"]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
uint32 = st.integers(0, 2**32 - 1)
times = st.integers(0, 2**63 - 1) | st.integers(0, 2**64 - 1)
keys = st.sampled_from([k for hot in HOT_ATTRIBUTES for k in (hot.key, *hot.older)]) | texts
scalars = st.one_of(
    texts.map(lambda v: AnyValue(string_value=v)),
    st.just(AnyValue(string_value="proxy")),
    st.integers(-(2**63), 2**63 - 1).map(lambda v: AnyValue(int_value=v)),
    st.booleans().map(lambda v: AnyValue(bool_value=v)),
    st.floats().map(lambda v: AnyValue(double_value=v)),
    st.binary(max_size=12).map(lambda v: AnyValue(bytes_value=v)),
    st.just(AnyValue()),
)
any_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda v: AnyValue(array_value=ArrayValue(values=v)))
        | st.lists(st.builds(KeyValue, key=texts, value=inner), max_size=3).map(
            lambda v: AnyValue(kvlist_value=KeyValueList(values=v))
        )
    ),
    max_leaves=6,
)
attributes = st.lists(st.builds(KeyValue, key=keys, value=any_values), max_size=6)
ids16 = st.binary(min_size=16, max_size=16)
ids8 = st.binary(min_size=8, max_size=8)
odd_ids = st.sampled_from([b"", b"\0" * 8, b"\0" * 16, b"x"]) | st.binary(max_size=20)
events = st.builds(Span.Event, time_unix_nano=times, name=texts, attributes=attributes, dropped_attributes_count=uint32)
links = st.builds(
    Span.Link,
    trace_id=ids16 | odd_ids,
    span_id=ids8 | odd_ids,
    trace_state=texts,
    attributes=attributes,
    dropped_attributes_count=uint32,
    flags=uint32,
)
spans = st.builds(
    Span,
    trace_id=ids16 | ids16 | odd_ids,
    span_id=ids8 | ids8 | odd_ids,
    parent_span_id=st.just(b"") | ids8 | odd_ids,
    trace_state=texts,
    flags=uint32,
    name=texts,
    kind=st.integers(-3, 9),
    start_time_unix_nano=times,
    end_time_unix_nano=times,
    attributes=attributes,
    dropped_attributes_count=uint32,
    events=st.lists(events, max_size=2),
    dropped_events_count=uint32,
    links=st.lists(links, max_size=2),
    dropped_links_count=uint32,
    status=st.none() | st.builds(Status, message=texts, code=st.integers(-1, 4)),
)
resource_keys = st.sampled_from(
    ["service.name", "service.namespace", "service.instance.id", "k8s.pod.name", "host.name", "telemetry.sdk.name"]
)
resource_values = st.sampled_from(["", "envoy", "linkerd-proxy", "cart"]).map(lambda v: AnyValue(string_value=v))
resource_attributes = st.lists(
    st.builds(KeyValue, key=resource_keys | keys, value=resource_values | any_values), max_size=6
)
requests = st.builds(
    ExportTraceServiceRequest,
    resource_spans=st.lists(
        st.builds(
            ResourceSpans,
            resource=st.none() | st.builds(Resource, attributes=resource_attributes, dropped_attributes_count=uint32),
            schema_url=texts,
            scope_spans=st.lists(
                st.builds(
                    ScopeSpans,
                    scope=st.none()
                    | st.builds(
                        InstrumentationScope,
                        name=texts | st.just("linkerd-proxy"),
                        version=texts,
                        attributes=attributes,
                    ),
                    spans=st.lists(spans, max_size=3),
                    schema_url=texts,
                ),
                max_size=2,
            ),
        ),
        max_size=2,
    ),
)


def rows(batch):
    """The rows with their maps as dicts, without the ids that the reference does not compute."""
    return [
        {
            name: dict(value) if name.startswith("attributes") else value
            for name, value in row.items()
            if name not in {"resource_id", "scope_id"}
        }
        for row in batch.to_pylist()
    ]


def decode_or_refuse(payload):
    try:
        decoded = decode_traces(payload, received_unix_nano=RECEIVED)
    except DecodeError:
        return None
    for table in TABLES:
        decoded.batches[table].validate(full=True)
    return decoded


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(requests)
def test_a_valid_request_decodes_as_the_reference_says(request):
    payload = request.SerializeToString()
    decoded = decode_traces(payload, received_unix_nano=RECEIVED)
    spans_, events_, links_, rejected = reference_spans(payload, RECEIVED)
    assert rows(decoded.batches["spans"]) == spans_
    assert rows(decoded.batches["span_events"]) == events_
    assert rows(decoded.batches["span_links"]) == links_
    assert decoded.rejected == rejected
    assert decoded.span_count == len(spans_)
    for table in TABLES:
        assert decoded.batches[table].schema == arrow_schema(table)
        decoded.batches[table].validate(full=True)
    stored = {
        table: set(decoded.batches[table + "s"].column(f"{table}_id").to_pylist()) for table in ("resource", "scope")
    }
    for span in decoded.batches["spans"].to_pylist():
        assert span["resource_id"] in stored["resource"]
        assert span["scope_id"] in stored["scope"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_decode_or_are_refused(payload):
    decode_or_refuse(payload)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(request=requests, data=st.data())
def test_mutated_requests_decode_or_are_refused(request, data):
    payload = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(payload)))
        payload[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=11))
    decode_or_refuse(bytes(payload))


def test_a_request_cut_anywhere_decodes_or_is_refused():
    payload = trace_request(3).SerializeToString()
    whole = decode_or_refuse(payload)
    assert whole is not None
    outcomes = [decode_or_refuse(payload[:length]) for length in range(len(payload))]
    # Protobuf has no end mark, so a cut between two fields of the request itself leaves a request: here, none at all.
    assert [o.span_count for o in outcomes if o is not None] == [0]


@pytest.mark.parametrize("trailing", [b"\x00", b"\xff", b"\x0b", b"\x0a\x7f"])
def test_trailing_garbage_is_refused(trailing):
    assert decode_or_refuse(trace_request(3).SerializeToString() + trailing) is None

"""Whatever message there is, its JSON form says all of it; whatever JSON arrives is converted or refused, and nothing else happens."""

import json
import math
import string
from contextlib import suppress

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.errors import DecodeError
from collector.otlp import decode_traces
from collector.otlp.json_form import convert, json_to_request, request_to_json
from collector.otlp.json_wire import NOT_AN_ID, compiled
from collector.otlp.synthetic import trace_request
from tests.collector.otlp.test_decode_properties import any_values, requests, texts

SIGNALS = [ExportTraceServiceRequest, ExportLogsServiceRequest, ExportMetricsServiceRequest]
TEXT = request_to_json(trace_request(3)).encode()


def with_one_nan(message):
    """The message with every NaN as math.nan: there are 2^53 of them, and JSON has one name."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                with_one_nan(inner)
        elif field.type == field.TYPE_DOUBLE and math.isnan(value):
            setattr(message, field.name, math.nan)
    return message


@settings(max_examples=50)
@given(requests)
def test_every_request_survives_its_json_form(request):
    text = request_to_json(request)
    original = with_one_nan(request).SerializeToString(deterministic=True)
    assert json_to_request(text, ExportTraceServiceRequest) == original
    assert (
        json_to_request(json.dumps(json.loads(text), sort_keys=True, indent=3), ExportTraceServiceRequest) == original
    )


@given(any_values)
def test_values_are_written_as_protobuf_s_own_json_has_them(value):
    """Where OTLP does not deviate, the other implementation must agree: an AnyValue holds no id and no enum."""
    with_one_nan(value)
    ours = json.loads(request_to_json(value))
    assert json_format.ParseDict(ours, type(value)()).SerializeToString() == value.SerializeToString()
    theirs = json_format.MessageToJson(value)
    assert json_to_request(theirs, type(value)) == value.SerializeToString(deterministic=True)


names = [
    *compiled(ExportTraceServiceRequest.DESCRIPTOR).fields,
    "scopeSpans", "spans", "traceId", "spanId", "name", "kind", "attributes", "key", "value", "stringValue", "intValue", "doubleValue",
    "arrayValue", "values", "kvlistValue", "bytesValue", "events", "links", "status", "code", "resource", "scope", "startTimeUnixNano", "flags",
]  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from(["1", "NaN", "ab", "A" * 32, "0f" * 8])
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(names) | texts, inner, max_size=4),
    max_leaves=20,
)


def wrapped(spans):
    return {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}


@pytest.mark.parametrize("message_class", SIGNALS)
@given(documents | documents.map(wrapped) | st.lists(documents).map(wrapped))
def test_any_json_is_a_message_or_a_decode_error(message_class, document):
    with suppress(DecodeError):
        message_class.FromString(json_to_request(json.dumps(document), message_class))


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_message_or_a_decode_error(body):
    with suppress(DecodeError):
        ExportTraceServiceRequest.FromString(json_to_request(body, ExportTraceServiceRequest))


@given(st.text(st.characters(categories=["Cs", "Lu"]), max_size=20))
def test_any_text_is_a_message_or_a_decode_error(text):
    with suppress(DecodeError):
        json_to_request(text, ExportTraceServiceRequest)


@given(st.lists(st.tuples(st.integers(0, len(TEXT) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(TEXT)))
def test_damaged_json_is_decoded_or_refused_and_nothing_else(flips, length):
    body = bytearray(TEXT)
    for place, byte in flips:
        body[place] = byte
    for damaged in (bytes(body), bytes(body[:length])):
        with suppress(DecodeError):
            decode_traces(json_to_request(damaged, ExportTraceServiceRequest), received_unix_nano=1)


@given(st.text(max_size=40))
def test_any_text_as_an_id_costs_at_most_its_span(text):
    good = {"traceId": "ab" * 16, "spanId": "cd" * 8, "name": "x" * 30}
    converted = convert(json.dumps(wrapped([good, good | {"traceId": text}])), ExportTraceServiceRequest)
    [kept, doubtful] = ExportTraceServiceRequest.FromString(converted.payload).resource_spans[0].scope_spans[0].spans
    assert (kept.trace_id, kept.name) == (b"\xab" * 16, "x" * 30)
    if len(text) % 2 == 0 and set(text) <= set(string.hexdigits):
        assert doubtful.trace_id == bytes.fromhex(text)
    else:
        assert doubtful.trace_id == NOT_AN_ID
        assert converted.bad_ids

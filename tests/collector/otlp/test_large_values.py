"""Arrays and maps that are too large to be written as JSON keep their bytes, with a note; smaller ones are as ever."""

import base64
import json

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from collector.otlp import decode_traces, values
from collector.otlp.synthetic import trace_request


def array(count):
    return AnyValue(array_value=ArrayValue(values=[AnyValue(bool_value=True)] * count))


def kvlist(count):
    return AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=AnyValue(int_value=1))] * count))


def stored(value):
    """The JSON of the attribute, and the notes."""
    request = trace_request(1)
    request.resource_spans[0].scope_spans[0].spans[0].attributes.append(KeyValue(key="wide", value=value))
    decoded = decode_traces(request.SerializeToString(), received_unix_nano=1)
    [row] = decoded.batches["spans"].to_pylist()
    return json.loads(dict(row["attributes_json"])["wide"]), decoded.notes


@pytest.mark.parametrize("value", [array(100_000), kvlist(40_000)])
def test_a_large_value_keeps_its_bytes(value):
    encoded = (value.array_value if value.HasField("array_value") else value.kvlist_value).SerializeToString()
    assert len(encoded) > values.MAX_NESTED_BYTES

    plain, notes = stored(value)

    assert base64.b64decode(plain["bytesValue"]) == encoded
    assert notes == {values.TOO_LARGE: 1}


def test_a_smaller_one_is_json():
    assert stored(array(1_000)) == ([True] * 1_000, {})
    assert stored(kvlist(3)) == ({"k": 1}, {})

"""OTLP's JSON form: its rules one by one, what is refused and where, and what a hostile document may cost."""

import base64
import json
import math
import tracemalloc
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from collector.errors import DecodeError
from collector.otlp import decode_traces, json_form, json_scan
from collector.otlp.json_form import convert, json_to_request, request_to_json
from collector.otlp.json_scan import JsonFormError
from collector.otlp.json_wire import MAX_DEPTH, MAX_REPORTED_IDS
from collector.otlp.synthetic import trace_request

MIB = 1024 * 1024
TRACE_ID = "5B8EFFF798038103D269B633813FC60C"
SPAN_ID = "EEE19B7EC3C1B174"

SPECIFICATION_EXAMPLE = {
    "resourceSpans": [
        {
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "my.service"}}]},
            "scopeSpans": [
                {
                    "scope": {
                        "name": "my.library",
                        "version": "1.0.0",
                        "attributes": [{"key": "my.scope.attribute", "value": {"stringValue": "some scope attribute"}}],
                    },
                    "spans": [
                        {
                            "traceId": TRACE_ID,
                            "spanId": SPAN_ID,
                            "parentSpanId": "EEE19B7EC3C1B173",
                            "name": "I'm a server span",
                            "startTimeUnixNano": 1544712660000000000,
                            "endTimeUnixNano": 1544712661000000000,
                            "kind": 2,
                            "attributes": [{"key": "my.span.attr", "value": {"stringValue": "some value"}}],
                        }
                    ],
                }
            ],
        }
    ]
}
"""examples/trace.json of opentelemetry-proto."""


def request(*spans):
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


def traces(document):
    text = document if isinstance(document, str | bytes) else json.dumps(document)
    return ExportTraceServiceRequest.FromString(json_to_request(text, ExportTraceServiceRequest))


def span(**fields):
    """The span of that request, which our converter made."""
    return traces(request({"traceId": TRACE_ID, "spanId": SPAN_ID, **fields})).resource_spans[0].scope_spans[0].spans[0]


def value(document):
    return span(attributes=[{"key": "k", "value": document}]).attributes[0].value


def refusal(document, message_class=ExportTraceServiceRequest):
    text = document if isinstance(document, str | bytes) else json.dumps(document)
    with pytest.raises(JsonFormError) as caught:
        json_to_request(text, message_class)
    assert isinstance(caught.value, DecodeError)
    return caught.value


# --- OTLP's deviations from protobuf's mapping ------------------------------------------------------------------------


def test_the_specification_s_example():
    [resource_spans] = traces(SPECIFICATION_EXAMPLE).resource_spans
    [scope_spans] = resource_spans.scope_spans
    [made] = scope_spans.spans
    assert resource_spans.resource.attributes[0].value.string_value == "my.service"
    assert (scope_spans.scope.name, scope_spans.scope.version) == ("my.library", "1.0.0")
    assert (made.trace_id.hex(), made.span_id.hex()) == (TRACE_ID.lower(), SPAN_ID.lower())
    assert (made.kind, made.start_time_unix_nano) == (Span.SPAN_KIND_SERVER, 1544712660000000000)
    decoded = decode_traces(
        json_to_request(json.dumps(SPECIFICATION_EXAMPLE), ExportTraceServiceRequest), received_unix_nano=1
    )
    assert (decoded.span_count, decoded.rejected) == (1, {})


@pytest.mark.parametrize("write", [str.lower, str.upper, str.title])
def test_ids_are_hex_of_any_case(write):
    made = span(
        traceId=write(TRACE_ID), spanId=write(SPAN_ID), links=[{"traceId": write(TRACE_ID), "spanId": write(SPAN_ID)}]
    )
    assert made.trace_id == made.links[0].trace_id == bytes.fromhex(TRACE_ID)
    assert made.span_id == made.links[0].span_id == bytes.fromhex(SPAN_ID)


def test_enums_are_integers_and_open():
    assert span(kind=3).kind == 3
    assert span(kind=77).kind == 77
    assert span(kind=-1).kind == -1
    assert span(status={"code": 2}).status.code == 2


@pytest.mark.parametrize("kind", ["SPAN_KIND_SERVER", "2", 2.5, True, 2**31, {}])
def test_enum_names_are_refused(kind):
    error = refusal(request({"kind": kind}))
    assert error.path == "resourceSpans[0].scopeSpans[0].spans[0].kind"
    assert "an enum is an integer in OTLP/JSON" in error.reason or "expected -2147483648 to 2147483647" in error.reason


def test_unknown_fields_are_ignored_wherever_they_are():
    document = json.loads(
        json.dumps(SPECIFICATION_EXAMPLE), object_hook=lambda found: found | {"fromTheFuture": [{"x": [1]}, None]}
    )
    assert traces(document) == traces(SPECIFICATION_EXAMPLE)


def test_original_field_names_are_unknown():
    made = span(parent_span_id=SPAN_ID, start_time_unix_nano="5", name="n")
    assert (made.parent_span_id, made.start_time_unix_nano, made.name) == (b"", 0, "n")
    assert not traces({"resource_spans": [{}]}).resource_spans


# --- protobuf's mapping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("write", [int, str])
def test_64_bit_integers_are_numbers_or_strings(number, write):
    assert span(startTimeUnixNano=write(number)).start_time_unix_nano == number


@pytest.mark.parametrize(
    ("written", "number"),
    [(5, 5), ("5", 5), ("-5", -5), (5.0, 5), (1e3, 1000), ("5.0", 5), ("1e3", 1000), (-(2**63), -(2**63)), (str(-(2**63)), -(2**63))],
)  # fmt: skip
def test_integers(written, number):
    assert value({"intValue": written}).int_value == number


@pytest.mark.parametrize(
    "written", [2**63, str(2**63), "9" * 30, -(2**63) - 1, 1.5, "1.5", "", " 5", "5 ", "0x5", "five", "1e400", "\u0665", True, [], {}, 1e300]
)  # fmt: skip
def test_what_is_no_64_bit_integer(written):
    error = refusal(request({"attributes": [{"key": "k", "value": {"intValue": written}}]}))
    assert error.path == "resourceSpans[0].scopeSpans[0].spans[0].attributes[0].value.intValue"
    assert "expected" in error.reason


@pytest.mark.parametrize("written", [-1, 2**32, "-1"])
def test_32_bit_fields_have_their_range(written):
    assert refusal(request({"flags": written})).reason.startswith("expected 0 to 4294967295, got ")
    assert refusal(request({"droppedLinksCount": written})).reason.startswith("expected 0 to 4294967295, got ")


@pytest.mark.parametrize(
    ("written", "number"),
    [(0, 0.0), (5, 5.0), (-0.5, -0.5), ("5.5", 5.5), ("Infinity", math.inf), ("-Infinity", -math.inf), (1e300, 1e300)],
)
def test_doubles(written, number):
    made = value({"doubleValue": written})
    assert (made.WhichOneof("value"), made.double_value) == ("double_value", number)


def test_doubles_that_are_none():
    assert math.isnan(value({"doubleValue": "NaN"}).double_value)
    for written in ["nan", "inf", "", "1_0", " 1", True, [], 10**400]:
        assert refusal(request({"attributes": [{"value": {"doubleValue": written}}]})).path.endswith("doubleValue")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have(text):
    document = '{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[{"value":{"doubleValue":%s}}]}]}]}]}'
    assert refusal(document % text).reason


@pytest.mark.parametrize("raw", [b"", b"\0", b"\xff\xfe\xfd", bytes(range(256))])
def test_bytes_are_base64_of_either_alphabet_with_or_without_padding(raw):
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for text in (encode(raw).decode(), encode(raw).decode().rstrip("=")):
            assert value({"bytesValue": text}).bytes_value == raw


@pytest.mark.parametrize("written", ["!!!!", "A", "AA=A", "AAA\n", "Ä", 5, []])
def test_what_is_not_base64(written):
    assert refusal(request({"attributes": [{"value": {"bytesValue": written}}]})).reason.startswith("expected base64")


def test_null_is_the_default():
    assert span(name=None, attributes=None, status=None, kind=None, traceState=None, startTimeUnixNano=None) == span()
    assert value({"stringValue": None, "intValue": 5}).int_value == 5
    assert value(None) == AnyValue()
    assert traces({"resourceSpans": None}) == ExportTraceServiceRequest()
    assert (
        traces({"resourceSpans": [{"scopeSpans": None, "resource": None, "schemaUrl": None}]})
        .resource_spans[0]
        .schema_url
        == ""
    )


def test_an_empty_message_is_not_an_absent_one():
    assert span(status={}).HasField("status")
    assert value({}) == AnyValue()
    assert value({"stringValue": ""}).WhichOneof("value") == "string_value"
    assert value({"boolValue": False}).WhichOneof("value") == "bool_value"
    assert value({"arrayValue": {}}).WhichOneof("value") == "array_value"


def test_a_value_has_one_member():
    error = refusal(request({"attributes": [{"value": {"stringValue": "a", "intValue": 1}}]}))
    assert error.path.endswith("attributes[0].value")
    assert error.reason == "stringValue and intValue: only one of them can be set"


def test_the_order_of_keys_does_not_matter():
    document = '{"resourceSpans":[{"schemaUrl":"s","scopeSpans":[{"spans":[{"name":"n","spanId":"%s","traceId":"%s"}],"scope":{"name":"x"}}],"resource":{}}]}'
    made = json_to_request(document % (SPAN_ID, TRACE_ID), ExportTraceServiceRequest)
    assert made == ExportTraceServiceRequest.FromString(made).SerializeToString(deterministic=True)


def test_of_a_key_that_is_there_twice_the_last_counts_but_a_list_of_spans_is_not_lost():
    prefix = '{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"a","name":"b"}]'
    assert traces(prefix + "}]}]}").resource_spans[0].scope_spans[0].spans[0].name == "b"
    error = refusal(prefix + ',"spans":[]}]}]}')
    assert str(error) == "resourceSpans[0].scopeSpans[0].spans: is there twice"


# --- ids that are none ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "written", "reason"),
    [
        ("traceId", "5b8", "trace_id is not 16 bytes"),
        ("traceId", TRACE_ID[:-2], "trace_id is not 16 bytes"),
        ("traceId", "z" * 32, "trace_id is not 16 bytes"),
        ("traceId", "z" * 16, "trace_id is not 16 bytes"),
        ("traceId", base64.b64encode(bytes(16)).decode(), "trace_id is not 16 bytes"),
        ("traceId", " " + TRACE_ID[1:], "trace_id is not 16 bytes"),
        ("traceId", "\u0665" * 32, "trace_id is not 16 bytes"),
        ("traceId", "0" * 32, "trace_id is all zeros"),
        ("spanId", "12345678", "span_id is not 8 bytes"),
        ("spanId", SPAN_ID + "00", "span_id is not 8 bytes"),
        ("parentSpanId", "xx", "parent_span_id is neither empty nor 8 bytes"),
    ],
)
def test_a_span_with_a_malformed_id_is_rejected_alone(field, written, reason):
    good = {"traceId": TRACE_ID, "spanId": SPAN_ID, "name": "a name that is long enough"}
    converted = convert(json.dumps(request(good, good | {field: written}, good)), ExportTraceServiceRequest)
    decoded = decode_traces(converted.payload, received_unix_nano=1)
    assert (decoded.span_count, decoded.rejected) == (2, {reason: 1})
    if "zeros" not in reason:
        [bad] = converted.bad_ids
        assert bad.startswith(f"resourceSpans[0].scopeSpans[0].spans[1].{field}: expected ")
        assert "hex digits, got the string" in bad


@pytest.mark.parametrize(
    "missing", [{"spanId": SPAN_ID}, {"traceId": None, "spanId": SPAN_ID}, {"traceId": "", "spanId": SPAN_ID}]
)
def test_a_missing_id_is_a_rejected_span(missing):
    decoded = decode_traces(
        json_to_request(json.dumps(request(missing | {"name": "x" * 30})), ExportTraceServiceRequest),
        received_unix_nano=1,
    )
    assert (decoded.span_count, decoded.rejected) == (0, {"trace_id is not 16 bytes": 1})


def test_a_link_with_a_malformed_id_costs_the_link():
    document = request({"traceId": TRACE_ID, "spanId": SPAN_ID, "links": [{"traceId": "x", "spanId": SPAN_ID}]})
    converted = convert(json.dumps(document), ExportTraceServiceRequest)
    assert converted.bad_ids[0].startswith("resourceSpans[0].scopeSpans[0].spans[0].links[0].traceId: ")
    decoded = decode_traces(converted.payload, received_unix_nano=1)
    assert (decoded.span_count, len(decoded.notes)) == (1, 1)


def test_only_the_first_malformed_ids_are_named():
    converted = convert(json.dumps(request(*[{"traceId": "x"}] * 100)), ExportTraceServiceRequest)
    assert len(converted.bad_ids) == MAX_REPORTED_IDS


# --- what is refused, and where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected an object, got an array"),
        ("5", "expected an object, got the number 5"),
        ('"x"', "expected an object, got the string 'x'"),
        ("null", "expected an object, got null"),
        ({"resourceSpans": {}}, "resourceSpans: expected an array, got an object"),
        ({"resourceSpans": [5]}, "resourceSpans[0]: expected an object, got the number 5"),
        ({"resourceSpans": [None]}, "resourceSpans[0]: expected an object, got null"),
        ({"resourceSpans": [{}, {"scopeSpans": "x"}]}, "resourceSpans[1].scopeSpans: expected an array, got the string 'x'"),
        ({"resourceSpans": [{"resource": []}]}, "resourceSpans[0].resource: expected an object, got an array"),
        ({"resourceSpans": [{"schemaUrl": 5}]}, "resourceSpans[0].schemaUrl: expected a string, got the number 5"),
        (request({}, []), "resourceSpans[0].scopeSpans[0].spans[1]: expected an object, got an array"),
        (request({"name": 5}), "resourceSpans[0].scopeSpans[0].spans[0].name: expected a string, got the number 5"),
        (request({"traceId": 5}), "resourceSpans[0].scopeSpans[0].spans[0].traceId: expected 32 hex digits, got the number 5"),
        (request({"events": [{}, {"name": True}]}), "resourceSpans[0].scopeSpans[0].spans[0].events[1].name: expected a string, got true"),
        (request({"events": {}}), "resourceSpans[0].scopeSpans[0].spans[0].events: expected an array, got an object"),
        (request({"status": "OK"}), "resourceSpans[0].scopeSpans[0].spans[0].status: expected an object, got the string 'OK'"),
        (
            request({"attributes": [{"value": {"arrayValue": {"values": [{"boolValue": "x"}]}}}]}),
            "resourceSpans[0].scopeSpans[0].spans[0].attributes[0].value.arrayValue.values[0].boolValue: expected true or false, got the string 'x'",
        ),
    ],
)  # fmt: skip
def test_a_wrong_type_names_its_place(document, message):
    assert str(refusal(document)) == message


def test_values_in_messages_are_short_and_plain():
    error = refusal(request({"kind": "\x1b[2J" + "x" * 10_000}))
    assert len(str(error)) < 200
    assert str(error).isprintable()
    error = refusal({"\x1b[2J" + "k" * 10_000: float("nan")})
    assert len(str(error)) < 200
    assert str(error).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "{", "}", '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', "{a:1}", "{'a':1}", '{"a" 1}', '{"a":1 "b":2}', "{} {}", "{}x",
        '{"resourceSpans":[', '{"resourceSpans":[{}', '{"resourceSpans":[{},', '{"resourceSpans":[{},]}', '{"resourceSpans":[{}{}]}',
        '{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"a\nb"}]}]}]}', '{"a":tru}', '{"a":01}', '{"a":1.}', '{"a":+1}',
        '{"a":"\\x"}', '{"a":"\\u12"}', '{"a":"', "\0", "{\f}",
    ],
)  # fmt: skip
def test_what_is_not_json(text):
    assert "not JSON" in refusal(text).reason


def test_an_empty_document_is_no_request():
    assert refusal("").reason == refusal(" \n").reason == "the document is empty; a request without contents is {}"
    assert json_to_request("{}", ExportTraceServiceRequest) == b""
    assert json_to_request(' \t\r\n{ "resourceSpans" : [ ] } \n', ExportTraceServiceRequest) == b""


def test_utf_8():
    assert span(name="Grüße 🦔\u2028\0").name == "Grüße 🦔\u2028\0"
    text = json.dumps(request({"traceId": TRACE_ID, "spanId": SPAN_ID, "name": "🦔"}), ensure_ascii=False)
    assert traces(text.encode()) == traces(text) == traces(json.dumps(json.loads(text)))
    assert traces(b"\xef\xbb\xbf" + text.encode()) == traces(text)
    for broken in (
        text.encode().replace("🦔".encode(), b"\xff"),
        text.encode("utf-16"),
        text.encode("latin-1", "replace") + b"\xe9",
    ):
        assert refusal(broken).reason.startswith(("not UTF-8", "not JSON"))


def test_a_lone_surrogate_becomes_a_replacement_character():
    text = '{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"a\\ud83ez \\ud83e\\udd94","traceState":"\\udd94"}]}]}]}'
    made = traces(text).resource_spans[0].scope_spans[0].spans[0]
    assert (made.name, made.trace_state) == ("a\ufffdz 🦔", "\ufffd")
    assert refusal('{"\ud83e":1}').reason.startswith("not UTF-8")


# --- how deep, how large ----------------------------------------------------------------------------------------------


def nested(arrays):
    """A span's attribute of so many arrays in each other."""
    inner: dict[str, object] = {"intValue": 1}
    for _ in range(arrays):
        inner = {"arrayValue": {"values": [inner]}}
    return request({"traceId": TRACE_ID, "spanId": SPAN_ID, "attributes": [{"key": "deep", "value": inner}]})


def test_the_depth_is_the_one_that_protobuf_accepts():
    deepest = (MAX_DEPTH - 6) // 2  # request, resource, scope, span, attribute, value: six
    assert traces(nested(deepest)).ByteSize() > 2 * deepest
    error = refusal(nested(deepest + 1))
    assert error.reason == f"more than {MAX_DEPTH} messages inside each other"
    assert error.path.startswith(
        "resourceSpans[0].scopeSpans[0].spans[0].attributes[0].value.arrayValue.values[0].arrayValue"
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"unknown":' + "[" * 200_000,
        '{"resourceSpans":[{"scopeSpans":[{"spans":[' + '{"a":' * 200_000,
        '{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[{"value":' + '{"arrayValue":{"values":[' * 50_000,
    ],
)
def test_depth_bombs_end_in_an_error(text):
    assert refusal(text).reason == "nested too deeply"


@pytest.mark.parametrize("window", [1, 2, 3, 7, 64])
def test_windows_cut_a_document_anywhere(window, monkeypatch):
    monkeypatch.setattr(json_scan, "WINDOW_BYTES", window)
    document = request(
        {"traceId": TRACE_ID, "spanId": SPAN_ID, "name": "Grüße 🦔", "startTimeUnixNano": 12345678901234567890}
    )
    document["n"] = [1, -2.5e-3, 1e10, True, None, "x"]
    document["m"], document["resourceSpans"][0]["schemaUrl"] = 1.25e10, "ü"
    for text in (json.dumps(document), json.dumps(document, ensure_ascii=False, indent=1)):
        assert json_to_request(text, ExportTraceServiceRequest) == json_to_request(
            json.dumps(document), ExportTraceServiceRequest
        )
    for text in ('{"a":12', '{"a":1.', '{"a":1e', '{"a":-', '{"a":tru', '{"a":"\\u00', "{", '{"a"'):
        assert "not JSON" in refusal(text).reason


def peak_bytes(text, message_class=ExportTraceServiceRequest):
    tracemalloc.start()
    try:
        with pytest.raises(JsonFormError):
            json_to_request(text, message_class)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


PREFIX = b'{"resourceSpans":[{"scopeSpans":[{"spans":['


@pytest.mark.parametrize(
    ("start", "unit", "reason"),
    [
        (b'{"unknown":[', b"{},", "values"),
        (b'{"unknown":[', b"[],", "values"),
        (b'{"unknown":{', b'"":{},', "values"),
        (b'{"unknown":[', b"1," * 1000, "values"),
        (PREFIX + b'{"attributes":[', b'{"":0},', "values"),
        (PREFIX + b'{"name":"', b"x", "characters"),
        (PREFIX + b'{"name":"\xf0\x9f\xa6\x94', b"x", "characters"),
    ],
)  # fmt: skip
def test_one_huge_value_is_refused_before_its_objects_are_made(start, unit, reason):
    body = start + unit * (20 * MIB // len(unit))
    assert f"one value {'holds' if reason == 'values' else 'is longer'}" in refusal(body).reason
    assert refusal(body).reason.endswith(reason)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "unit", "size"),
    [
        (b'{"unknown":[', b"{},", 64 * MIB),
        (PREFIX + b'{"attributes":[', b'{"":{"":0}},', 64 * MIB),
        (PREFIX + b'{"name":"\xf0\x9f\xa6\x94', b"x", 64 * MIB),
        (PREFIX, b'{"name":"\xf0\x9f\xa6\x94"},', MIB // 2),
        (PREFIX, b"{},", MIB // 2),
    ],
)
def test_a_hostile_document_costs_less_than_160_mib_beside_itself(start, unit, size):
    assert peak_bytes(start + unit * (size // len(unit))) < (160 * MIB if size > MIB else 16 * size)


def test_items_are_counted(monkeypatch):
    monkeypatch.setattr(json_form, "MAX_ITEMS", 10)
    assert traces(request(*[{}] * 8))
    error = refusal(request(*[{}] * 9))
    assert (
        str(error) == "resourceSpans[0].scopeSpans[0].spans[8]: more than 10 items in one request: send smaller batches"
    )


# --- to JSON, and other messages --------------------------------------------------------------------------------------


def test_the_json_that_we_write():
    message = ExportTraceServiceRequest.FromString(
        json_to_request(json.dumps(SPECIFICATION_EXAMPLE), ExportTraceServiceRequest)
    )
    written = json.loads(request_to_json(message))
    [made] = written["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert (made["traceId"], made["spanId"]) == (TRACE_ID.lower(), SPAN_ID.lower())
    assert (made["kind"], made["startTimeUnixNano"]) == (2, "1544712660000000000")
    assert "\n" not in request_to_json(message)
    assert list(written["resourceSpans"][0]["scopeSpans"][0]) == ["scope", "spans"]


@pytest.mark.parametrize(
    ("message", "written"),
    [
        (AnyValue(double_value=math.nan), {"doubleValue": "NaN"}),
        (AnyValue(double_value=-math.inf), {"doubleValue": "-Infinity"}),
        (AnyValue(double_value=5), {"doubleValue": 5.0}),
        (AnyValue(int_value=-(2**63)), {"intValue": "-9223372036854775808"}),
        (AnyValue(bool_value=False), {"boolValue": False}),
        (AnyValue(bytes_value=b"\xff\xfe"), {"bytesValue": "//4="}),
        (AnyValue(string_value=""), {"stringValue": ""}),
        (AnyValue(), {}),
        (Span(flags=257, dropped_links_count=1), {"droppedLinksCount": 1, "flags": 257}),
        (ExportTraceServiceResponse(), {}),
        (
            ExportTraceServiceResponse(partial_success=ExportTracePartialSuccess(rejected_spans=2, error_message="ß")),
            {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "ß"}},
        ),
    ],
)
def test_each_kind_of_value_in_json(message, written):
    assert json.loads(request_to_json(message)) == written
    assert (
        type(message).FromString(json_to_request(request_to_json(message), type(message))).SerializeToString()
        == message.SerializeToString()
    )


def test_a_large_request_survives_both_ways():
    made = trace_request(2000)
    assert json_to_request(request_to_json(made), ExportTraceServiceRequest) == made.SerializeToString(
        deterministic=True
    )


def test_logs():
    record = {
        "timeUnixNano": "5",
        "severityNumber": 9,
        "body": {"stringValue": "b"},
        "traceId": TRACE_ID,
        "spanId": SPAN_ID,
    }
    document: Any = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}
    made = ExportLogsServiceRequest.FromString(json_to_request(json.dumps(document), ExportLogsServiceRequest))
    [log] = made.resource_logs[0].scope_logs[0].log_records
    assert (log.time_unix_nano, log.severity_number, log.trace_id.hex()) == (5, 9, TRACE_ID.lower())
    assert json.loads(request_to_json(made)) == document | {
        "resourceLogs": [
            {"scopeLogs": [{"logRecords": [record | {"traceId": TRACE_ID.lower(), "spanId": SPAN_ID.lower()}]}]}
        ]
    }
    document["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["severityNumber"] = "INFO"
    assert (
        refusal(document, ExportLogsServiceRequest).path == "resourceLogs[0].scopeLogs[0].logRecords[0].severityNumber"
    )


def test_repeated_scalars_as_metrics_have_them():
    point: dict[str, Any] = {"bucketCounts": ["1", 2, "3"], "explicitBounds": [0.5, "Infinity"], "min": -0.0, "sum": 0}
    document = {
        "resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "m", "histogram": {"dataPoints": [point]}}]}]}]
    }
    payload = json_to_request(json.dumps(document), ExportMetricsServiceRequest)
    made = ExportMetricsServiceRequest.FromString(payload)
    [made_point] = made.resource_metrics[0].scope_metrics[0].metrics[0].histogram.data_points
    assert (list(made_point.bucket_counts), list(made_point.explicit_bounds)) == ([1, 2, 3], [0.5, math.inf])
    assert made_point.HasField("sum")
    assert payload == made.SerializeToString(deterministic=True)
    assert json_to_request(request_to_json(made), ExportMetricsServiceRequest) == payload
    point["bucketCounts"][1] = "x"
    assert refusal(document, ExportMetricsServiceRequest).path.endswith("histogram.dataPoints[0].bucketCounts[1]")

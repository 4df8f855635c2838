"""One case a promise: what is rejected, what is amended, where each value goes, and what cannot hurt."""

import hashlib
import json
import struct

import pyarrow as pa
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from collector.errors import DecodeError
from collector.otlp import decode, decode_traces, origins, projection
from collector.otlp.attributes import DUPLICATE_KEY, NOT_UTF8
from collector.otlp.synthetic import attribute, trace_request
from collector.otlp.values import UNDECODABLE
from collector.schema import arrow_schema

TRACE_ID = bytes(range(1, 17))
SPAN_ID = bytes(range(1, 9))


def make_span(**overrides):
    return Span(**{"trace_id": TRACE_ID, "span_id": SPAN_ID, "name": "GET /", "start_time_unix_nano": 5, **overrides})


def make_request(*spans, resource=(), scope=None):
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.extend(resource)
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = scope or ""
    scope_spans.spans.extend(spans)
    return request


def decode_request(request):
    payload = request if isinstance(request, bytes) else request.SerializeToString()
    return decode_traces(payload, received_unix_nano=7)


def the_span(*spans, **request):
    return decode_request(make_request(*spans, **request)).batches["spans"].to_pylist()[0]


def delimited(tag, body):
    """A length-delimited field: protobuf by hand, for what its classes refuse to write."""
    length, size = b"", len(body)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return tag + length + bytes([size]) + body


def in_request(span):
    return delimited(b"\x0a", delimited(b"\x12", delimited(b"\x12", span)))


# --- rejections and notes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"trace_id": b"", "name": "x" * 30}, decode.TRACE_ID_LENGTH),
        ({"trace_id": TRACE_ID[:15]}, decode.TRACE_ID_LENGTH),
        ({"trace_id": TRACE_ID + b"x"}, decode.TRACE_ID_LENGTH),
        ({"trace_id": b"\0" * 16}, decode.TRACE_ID_ZERO),
        ({"span_id": b"", "name": "x" * 30}, decode.SPAN_ID_LENGTH),
        ({"span_id": SPAN_ID + b"x"}, decode.SPAN_ID_LENGTH),
        ({"span_id": b"\0" * 8}, decode.SPAN_ID_ZERO),
        ({"parent_span_id": b"1234567"}, decode.PARENT_ID_LENGTH),
        ({"start_time_unix_nano": 2**63}, decode.TIME_RANGE),
        ({"end_time_unix_nano": 2**64 - 1}, decode.TIME_RANGE),
    ],
)
def test_a_bad_span_is_rejected_with_its_reason_and_its_neighbours_are_kept(overrides, reason):
    good = [make_span(span_id=struct.pack(">Q", n), name=f"span {n}") for n in (1, 2)]
    decoded = decode_request(make_request(good[0], make_span(**overrides), good[1]))
    assert decoded.rejected == {reason: 1}
    assert decoded.span_count == 2
    assert decoded.batches["spans"].column("name").to_pylist() == ["span 1", "span 2"]


def test_the_rejected_spans_events_and_links_go_with_it():
    event, link = Span.Event(name="e"), Span.Link(trace_id=TRACE_ID, span_id=SPAN_ID)
    bad = make_span(trace_id=b"\0" * 16, events=[event], links=[link])
    good = make_span(span_id=b"\0" * 7 + b"\x09", events=[event], links=[link])
    decoded = decode_request(make_request(bad, good))
    assert decoded.batches["span_events"].column("span_id").to_pylist() == [9]
    assert decoded.batches["span_links"].column("span_id").to_pylist() == [9]


def test_a_span_keeps_its_own_resource_when_an_earlier_one_is_rejected():
    request = make_request(make_span(trace_id=b"\0" * 16), resource=[attribute("service.name", "a")])
    request.resource_spans.append(
        make_request(make_span(), resource=[attribute("service.name", "b")]).resource_spans[0]
    )
    decoded = decode_request(request)
    assert decoded.batches["spans"].column("service_name").to_pylist() == ["b"]
    (row,) = [r for r in decoded.batches["resources"].to_pylist() if r["service_name"] == "b"]
    assert decoded.batches["spans"].column("resource_id").to_pylist() == [row["resource_id"]]


@pytest.mark.parametrize(("kind", "stored"), [(0, "UNSPECIFIED"), (1, "INTERNAL"), (5, "CONSUMER")])
def test_kinds_are_named(kind, stored):
    assert the_span(make_span(kind=kind))["kind"] == stored


def test_unknown_enum_values_are_kept_with_a_note():
    decoded = decode_request(make_request(make_span(kind=77, status=Status(code=Status.StatusCode.ValueType(-1)))))
    (row,) = decoded.batches["spans"].to_pylist()
    assert (row["kind"], row["status_code"]) == ("UNSPECIFIED", "UNSET")
    assert decoded.notes == {decode.UNKNOWN_KIND: 1, decode.UNKNOWN_STATUS: 1}
    assert decoded.rejected == {}


def test_a_link_to_nowhere_and_an_event_after_2262_are_dropped_with_a_note():
    span = make_span(events=[Span.Event(time_unix_nano=2**63)], links=[Span.Link(trace_id=TRACE_ID)])
    decoded = decode_request(make_request(span))
    assert decoded.notes == {decode.BAD_EVENT: 1, decode.BAD_LINK: 1}
    assert decoded.batches["span_events"].num_rows == decoded.batches["span_links"].num_rows == 0


def test_a_parent_of_zeros_is_no_parent():
    assert the_span(make_span(parent_span_id=b"\0" * 8))["parent_span_id"] is None


def test_a_clock_that_stepped_back_gives_a_negative_duration():
    assert the_span(make_span(start_time_unix_nano=9, end_time_unix_nano=4))["duration_ns"] == -5


def test_an_empty_request_succeeds():
    decoded = decode_request(b"")
    assert decoded.span_count == 0
    assert {t: (b.num_rows, b.schema) for t, b in decoded.batches.items()} == {
        t: (0, arrow_schema(t)) for t in ("spans", "span_events", "span_links", "resources", "scopes")
    }


# --- attributes -------------------------------------------------------------------------------------------------------


def test_every_type_of_value_keeps_it():
    values = {
        "text": AnyValue(string_value="5"),
        "int": AnyValue(int_value=-(2**63)),
        "double": AnyValue(double_value=5.0),
        "bool": AnyValue(bool_value=False),
        "bytes": AnyValue(bytes_value=b"\xff"),
        "nothing": AnyValue(),
        "array": AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue(double_value=1.0)])),
        "nan": AnyValue(double_value=float("nan")),
    }
    row = the_span(make_span(attributes=[KeyValue(key=k, value=v) for k, v in values.items()]))
    assert row["attributes"] == [("text", "5")]
    assert dict(row["attributes_json"]) == {
        "int": "-9223372036854775808",
        "double": "5.0",
        "bool": "false",
        "bytes": '{"bytesValue": "/w=="}',
        "nothing": "null",
        "array": "[1, 1.0]",
        "nan": '{"doubleValue": "NaN"}',
    }


def test_a_current_name_leaves_the_maps_and_an_older_one_stays():
    row = the_span(make_span(attributes=[attribute("http.method", "PUT"), attribute("server.port", 80)]))
    assert (row["http_request_method"], row["server_port"]) == ("PUT", 80)
    assert (row["attributes"], row["attributes_json"]) == ([("http.method", "PUT")], [])


def test_the_current_name_wins_over_an_older_one():
    row = the_span(make_span(attributes=[attribute("http.request.method", "GET"), attribute("http.method", "PUT")]))
    assert row["http_request_method"] == "GET"


def test_a_value_that_does_not_fit_its_column_stays_in_the_maps():
    row = the_span(make_span(attributes=[attribute("server.port", "80"), attribute("http.route", 5)]))
    assert (row["server_port"], row["http_route"]) == (None, None)
    assert (row["attributes"], row["attributes_json"]) == ([("server.port", "80")], [("http.route", "5")])


def test_of_two_equal_keys_the_last_wins_with_a_note():
    pairs = [attribute("a", "1"), attribute("b", "2"), attribute("a", 3), attribute("c", "4")]
    decoded = decode_request(make_request(make_span(attributes=pairs), make_span(attributes=pairs[:1])))
    row, other = decoded.batches["spans"].to_pylist()
    assert (row["attributes"], row["attributes_json"]) == ([("b", "2"), ("c", "4")], [("a", "3")])
    assert (other["attributes"], other["attributes_json"]) == ([("a", "1")], [])
    assert decoded.notes == {DUPLICATE_KEY: 1}


def test_strings_that_are_not_utf8_are_kept_as_far_as_they_are():
    value = delimited(b"\x0a", b"caf\xe9")
    pair = delimited(b"\x0a", b"k\xff") + delimited(b"\x12", value)
    span = make_span(name="").SerializeToString() + delimited(b"\x2a", b"\xc3(") + delimited(b"\x4a", pair)
    decoded = decode_request(in_request(span))
    (row,) = decoded.batches["spans"].to_pylist()
    assert (row["name"], row["attributes"]) == ("�(", [("k�", "caf�")])
    assert decoded.notes == {NOT_UTF8: 3}
    decoded.batches["spans"].validate(full=True)


def test_keys_that_become_equal_when_repaired_do_not_break_the_map():
    pairs = b"".join(
        delimited(b"\x4a", delimited(b"\x0a", key) + delimited(b"\x12", delimited(b"\x0a", value)))
        for key, value in ((b"k\xff", b"1"), (b"k\xfe", b"2"))
    )
    decoded = decode_request(in_request(make_span().SerializeToString() + pairs))
    assert decoded.batches["spans"].to_pylist()[0]["attributes"] == [("k�", "2")]


def test_of_several_members_in_one_value_the_last_on_the_wire_counts():
    for members, expected in (
        (b"\x0a\x01x\x18\x05", ([], [("k", "5")])),
        (b"\x18\x05\x0a\x01x", ([("k", "x")], [])),
    ):
        pair = delimited(b"\x0a", b"k") + delimited(b"\x12", members)
        decoded = decode_request(in_request(make_span().SerializeToString() + delimited(b"\x4a", pair)))
        (row,) = decoded.batches["spans"].to_pylist()
        assert (row["attributes"], row["attributes_json"]) == expected


# --- resources, scopes, witnesses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "resource", "scope", "witness"),
    [
        ([], [], None, "app"),
        ([attribute("component", "proxy")], [], None, "proxy"),
        ([attribute("component", "http")], [], None, "app"),
        ([], [attribute("telemetry.sdk.name", "envoy")], None, "proxy"),
        ([], [attribute("telemetry.sdk.name", "opentelemetry")], None, "app"),
        ([], [attribute("service.name", "linkerd-proxy")], None, "proxy"),
        ([], [], "linkerd-proxy", "proxy"),
    ],
)
def test_a_witness_is_a_proxy_when_it_says_so(span, resource, scope, witness):
    assert the_span(make_span(attributes=span), resource=resource, scope=scope)["witness"] == witness


@pytest.mark.parametrize(
    ("resource", "instance"),
    [
        ([], None),
        (["host.name"], "host.name"),
        (["host.name", "k8s.pod.name"], "k8s.pod.name"),
        (["host.name", "k8s.pod.name", "service.instance.id"], "service.instance.id"),
    ],
)
def test_the_instance_is_the_most_specific_that_the_resource_names(resource, instance):
    row = the_span(make_span(), resource=[attribute(key, key) for key in resource])
    assert row["service_instance_id"] == instance


def test_a_resource_without_a_service_name_is_unknown():
    assert the_span(make_span())["service_name"] == "unknown_service"
    assert the_span(make_span(), resource=[attribute("service.name", 5)])["service_name"] == "unknown_service"


def test_a_content_id_ignores_the_order_of_attributes_and_nothing_else():
    pairs = [attribute("a", "1"), attribute("b", 2)]

    def ids(resource):
        return (
            decode_request(make_request(make_span(), resource=resource)).batches["resources"]["resource_id"][0].as_py()
        )

    assert ids(pairs) == ids(pairs[::-1])
    others = [ids(pairs), ids(pairs[:1]), ids([attribute("a", "1"), attribute("b", "2")]), ids([])]
    assert len(set(others)) == len(others)
    # The same in every process and release, or a store would hold one resource twice.
    canonical = b'["resource","",[["a","1"]],[["b","2"]],0]'
    assert ids(pairs) == int.from_bytes(hashlib.blake2b(canonical, digest_size=8).digest(), "big")


def test_a_resource_that_is_there_twice_is_one_row():
    request = make_request(make_span())
    request.resource_spans.append(request.resource_spans[0])
    assert decode_request(request).batches["resources"].num_rows == 1
    assert decode_request(request).batches["scopes"].num_rows == 1


# --- what cannot hurt -------------------------------------------------------------------------------------------------


def nested(depth):
    value = b"\x0a\x01x"
    for _ in range(depth):
        value = delimited(b"\x2a", delimited(b"\x0a", value))
    return value


def test_nesting_is_followed_as_far_as_protobuf_does():
    pair = delimited(b"\x0a", b"k") + delimited(b"\x12", nested(20))
    decoded = decode_request(in_request(make_span().SerializeToString() + delimited(b"\x4a", pair)))
    value = json.loads(dict(decoded.batches["spans"].to_pylist()[0]["attributes_json"])["k"])
    for _ in range(20):
        (value,) = value
    assert value == "x"


@pytest.mark.parametrize("depth", [200, 20_000])
def test_deeper_nesting_keeps_the_span_and_the_bytes(depth):
    pair = delimited(b"\x0a", b"k") + delimited(b"\x12", nested(depth))
    decoded = decode_request(in_request(make_span().SerializeToString() + delimited(b"\x4a", pair)))
    value = json.loads(dict(decoded.batches["spans"].to_pylist()[0]["attributes_json"])["k"])
    assert set(value) == {"bytesValue"}
    assert decoded.notes == {UNDECODABLE: 1}


def test_deep_nesting_in_a_resource_keeps_it():
    pair = delimited(b"\x0a", b"k") + delimited(b"\x12", nested(200))
    resource = delimited(b"\x0a", delimited(b"\x0a", pair))
    decoded = decode_request(delimited(b"\x0a", resource))
    assert decoded.notes == {UNDECODABLE: 1}
    assert decoded.batches["resources"].num_rows == 1


@pytest.mark.parametrize("tags", [1_000_000, 3_000_000])
@pytest.mark.parametrize("where", ["request", "span", "attribute"])
def test_megabytes_of_group_tags_are_refused_and_do_not_overflow_the_stack(where, tags, monkeypatch):
    monkeypatch.setattr(projection, "MAX_ROWS", 10_000_000)
    bomb = b"\x0b" * tags
    span = make_span().SerializeToString()
    payload = {
        "request": bomb,
        "span": in_request(span + bomb),
        "attribute": in_request(span + delimited(b"\x4a", bomb)),
    }[where]
    with pytest.raises(DecodeError, match="not a protobuf message"):
        decode_request(payload)


def test_a_length_beyond_the_address_space_is_refused():
    with pytest.raises(DecodeError, match="a length beyond"):
        decode_request(in_request(make_span().SerializeToString() + b"\x2a" + b"\xff" * 9 + b"\x01"))


def test_two_byte_spans_are_counted_without_becoming_rows():
    decoded = decode_request(delimited(b"\x0a", delimited(b"\x12", b"\x12\x00" * 100_000)))
    assert decoded.rejected == {decode.SHORT_SPAN: 100_000}


def test_more_rows_than_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr(projection, "MAX_ROWS", 8)
    with pytest.raises(DecodeError, match="KeyValue: 9 in one request, at most 8"):
        decode_request(trace_request(2))


def test_more_fields_of_large_messages_than_the_limit_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(projection, "MAX_ROWS", 1000)
    monkeypatch.setattr(projection, "COUNTED_BYTES", 8000)
    fitting = delimited(b"\x12", b"") * 1000
    empty = {decode.SHORT_SPAN: 1000}
    assert decode_request(delimited(b"\x0a", delimited(b"\x12", fitting))).rejected == empty
    padded = fitting[:-2] + delimited(b"\x1a", bytes(7000))
    assert decode_request(delimited(b"\x0a", delimited(b"\x12", padded))).rejected == {decode.SHORT_SPAN: 999}
    with pytest.raises(DecodeError, match="ScopeSpans: more than 1000 fields in one request are not accepted"):
        decode_request(delimited(b"\x0a", delimited(b"\x12", padded + b"\x12\x00")))


def test_fields_of_several_large_messages_are_counted_together(monkeypatch):
    monkeypatch.setattr(projection, "MAX_ROWS", 1000)
    monkeypatch.setattr(projection, "COUNTED_BYTES", 4500)
    half = delimited(b"\x12", b"") * 600 + delimited(b"\x1a", bytes(4000))
    resources = delimited(b"\x0a", delimited(b"\x12", half)) * 2
    with pytest.raises(DecodeError, match="ScopeSpans: more than 1000 fields"):
        decode_request(resources)


def test_a_span_that_is_too_long_is_rejected_alone(monkeypatch):
    spans = [make_span(), make_span(name="n" * 500), make_span()]
    monkeypatch.setattr(decode, "MAX_SPAN_BYTES", len(spans[1].SerializeToString()) - 1)
    decoded = decode_request(make_request(*spans))
    assert decoded.rejected == {decode.LONG_SPAN: 1}
    assert decoded.span_count == 2
    monkeypatch.setattr(decode, "MAX_SPAN_BYTES", len(spans[1].SerializeToString()))
    assert decode_request(make_request(*spans)).rejected == {}


def test_the_reason_for_a_long_span_names_the_limit():
    assert f"{decode.MAX_SPAN_BYTES // 2**20} MiB" in decode.LONG_SPAN


def test_a_resource_or_scope_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(decode, "MAX_ORIGIN_BYTES", 100)
    with pytest.raises(DecodeError, match=r"a resource has 1\d\d bytes, at most 100 are accepted"):
        decode_request(make_request(make_span(), resource=[attribute("long", "v" * 101)]))


@pytest.mark.parametrize(
    ("slice_spans", "max_rows", "slice_bytes"),
    [(7, 1_000, 10**6), (1_000, 30, 10**6), (3, 12, 10**6), (1_000, 1_000, 2_000), (7, 1_000, 2_000), (100, 1_000, 1)],
)
def test_a_large_request_is_decoded_in_slices_to_the_same_rows(monkeypatch, slice_spans, max_rows, slice_bytes):
    requests = [trace_request(50, seed=seed) for seed in range(2)]
    spans = requests[1].resource_spans[0].scope_spans[0].spans
    spans[20].span_id = b"short"
    spans[30].kind = Span.SpanKind.ValueType(99)
    spans[40].events.add(name="e", time_unix_nano=7)
    payloads = [request.SerializeToString() for request in requests]
    whole = decode.decode_group(payloads, [1, 2])
    monkeypatch.setattr(decode, "SLICE_SPANS", slice_spans)
    monkeypatch.setattr(decode, "SLICE_BYTES", slice_bytes)
    monkeypatch.setattr(projection, "MAX_ROWS", max_rows)
    sliced = decode.decode_group(payloads, [1, 2])

    assert len(sliced.parts) > len(whole.parts) == 1
    assert sliced.outcomes == whole.outcomes
    assert sliced.notes == whole.notes
    for table, batch in whole.parts[0].items():
        rows = [row for part in sliced.parts for row in part.get(table, batch.slice(0, 0)).to_pylist()]
        assert rows == batch.to_pylist(), table


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("MAX_ORIGINS", "ResourceSpans: 3 in one request, at most 2"),
        ("MAX_SPANS", "Span: 3 in one request, at most 2"),
    ],
)
def test_more_resources_or_spans_than_the_limit_are_refused(monkeypatch, limit, message):
    monkeypatch.setattr(projection, limit, 2)
    request = make_request(make_span())
    if limit == "MAX_SPANS":
        request.resource_spans[0].scope_spans[0].spans.extend([make_span()] * 2)
    else:
        request.resource_spans.extend([request.resource_spans[0]] * 2)
    with pytest.raises(DecodeError, match=message):
        decode_request(request)


def test_more_scopes_than_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr(projection, "MAX_ORIGINS", 2)
    request = make_request()
    request.resource_spans[0].scope_spans.extend([request.resource_spans[0].scope_spans[0]] * 2)
    with pytest.raises(DecodeError, match="ScopeSpans: 3 in one request, at most 2"):
        decode_request(request)


def test_more_attributes_of_a_resource_than_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr(origins, "MAX_ATTRIBUTES", 1)
    with pytest.raises(DecodeError, match="a resource has 2 attributes"):
        decode_request(make_request(resource=[attribute("only", "here"), attribute("and", "there")]))


def test_an_error_says_what_was_broken_and_never_the_data():
    with pytest.raises(DecodeError) as caught:
        decode_request(in_request(make_span(name="secret").SerializeToString() + b"\xff"))
    assert "Span" in str(caught.value)
    assert "secret" not in str(caught.value)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_offsets_of_a_slice_count_from_its_first_value():
    array = pa.array([b"a", b"bb", b"", b"dddd"], pa.binary())
    assert projection.lengths(array).tolist() == [1, 2, 0, 4]
    assert projection.lengths(array.slice(1, 2)).tolist() == [2, 0]
    assert projection.lengths(array.slice(0, 0)).tolist() == []


def test_synthetic_requests_are_repeatable_and_weigh_what_they_say():
    payload = trace_request(512, seed=3).SerializeToString()
    assert payload == trace_request(512, seed=3).SerializeToString()
    assert payload != trace_request(512, seed=4).SerializeToString()
    assert 400 < len(payload) / 512 < 500
    assert {len(s.attributes) for s in trace_request(9).resource_spans[0].scope_spans[0].spans} == {9}


# --- what rows weigh --------------------------------------------------------------------------------------------------


def _buffers(batch):
    return [buffer for column in batch.columns for buffer in column.buffers() if buffer is not None and buffer.size]


def test_rows_that_wait_keep_nothing_else_in_memory():
    """A table is one piece of memory: a column as ptars made it would keep the whole request's attributes beside it."""
    group = decode.decode_group([trace_request(512, seed=seed).SerializeToString() for seed in range(3)], [1, 2, 3])
    [part] = group.parts

    buffers = _buffers(part["spans"])
    first, end = min(b.address for b in buffers), max(b.address + b.size for b in buffers)

    assert part["spans"].num_rows == 3 * 512
    assert end - first <= sum(b.size for b in buffers) + 64 * len(buffers)

"""OTLP logs → proxy records: what each sender sends, what is refused, and anything at all."""

import json
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from collector.errors import DecodeError
from collector.otlp import access_logs, log_records, projection, values
from collector.otlp.access_logs import decode_access_logs
from collector.schema import arrow_schema
from collector.witnesses.envoy import KNOWN_KEYS, MAX_LINE_BYTES, Origin, decode_line

RECEIVED = 1_763_859_600_000_000_000
START = 1_606_339_578_409_123_456
MILLISECOND = 1_606_339_578_409_000_000
TRACE_ID = bytes(range(16))

OUTBOUND = (
    '[2020-11-25T21:26:18.409Z] "GET /status/418 HTTP/1.1" 418 - via_upstream - "-" 0 135 4 4 "-" "curl/7.73.0-DEV" '
    '"84961386-6d84-929d-98bd-c5aee93b5c88" "httpbin:8000" "10.44.1.27:80" outbound|8000||httpbin.foo.svc.cluster.local '
    "10.44.1.23:37652 10.0.45.184:8000 10.44.1.23:46520 - default"
)
INBOUND = (
    '[2020-11-25T21:26:18.409Z] "GET /status/418 HTTP/1.1" 418 - via_upstream - "-" 0 135 3 1 "-" "curl/7.73.0-DEV" '
    '"84961386-6d84-929d-98bd-c5aee93b5c88" "httpbin:8000" "127.0.0.1:80" inbound|8000|| 127.0.0.1:41854 10.44.1.27:80 '
    "10.44.1.23:37652 outbound_.8000_._.httpbin.foo.svc.cluster.local default"
)
FIELDS = {
    "start_time": "2020-11-25T21:26:18.409Z",
    "method": "GET",
    "path": "/a?b=c",
    "protocol": "HTTP/2",
    "response_code": "503",
    "response_flags": "UF",
    "bytes_received": "10",
    "bytes_sent": "20",
    "duration": "7",
    "request_id": "r-1",
    "authority": "httpbin",
    "upstream_host": "10.44.1.27:80",
    "upstream_cluster": "some_cluster",
    "user_agent": "-",
    "x_forwarded_for": "10.0.0.1",
}
ENVOY = {
    "log_name": "otel_envoy_accesslog",
    "zone_name": "",
    "cluster_name": "sleep.foo",
    "node_name": "sidecar~10.44.1.23~sleep-5f4d.foo~foo.svc.cluster.local",
}


def value_of(plain):
    match plain:
        case AnyValue():
            return plain
        case bool():
            return AnyValue(bool_value=plain)
        case int():
            return AnyValue(int_value=plain)
        case float():
            return AnyValue(double_value=plain)
        case str():
            return AnyValue(string_value=plain)
        case dict():
            return AnyValue(kvlist_value=KeyValueList(values=pairs(plain)))
        case list():
            return AnyValue(array_value=ArrayValue(values=[value_of(v) for v in plain]))
        case _:
            return AnyValue()


def pairs(attributes):
    return [KeyValue(key=key, value=value_of(plain)) for key, plain in attributes.items()]


def record(body=None, attributes=None, *, time=START, trace_id=b""):
    return {"body": body, "attributes": attributes or {}, "time": time, "trace_id": trace_id}


def request(*records, resource=None):
    message = ExportLogsServiceRequest()
    resource_logs = message.resource_logs.add()
    resource_logs.resource.attributes.extend(pairs(resource or {}))
    scope_logs = resource_logs.scope_logs.add()
    for r in records:
        one = scope_logs.log_records.add(
            time_unix_nano=r["time"], trace_id=r["trace_id"], attributes=pairs(r["attributes"])
        )
        if r["body"] is not None:
            one.body.CopyFrom(value_of(r["body"]))
    return message.SerializeToString()


def decode(*records, resource=None):
    return decode_access_logs(request(*records, resource=resource), received_unix_nano=RECEIVED)


def rows(decoded):
    return decoded.batches["proxy_records"].to_pylist()


def only_row(*records, resource=None):
    decoded = decode(*records, resource=resource)
    assert (decoded.rejected, decoded.record_count) == ({}, 1)
    [row] = rows(decoded)
    return row


# --- what each sender sends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "direction"), [(OUTBOUND, "outbound"), (INBOUND, "inbound")])
def test_istio_logs_a_text_line_and_no_resource_but_a_label_can_name_the_workload(line, direction):
    row = only_row(record(line + "\n", {"service.name": "sleep"}))

    from_file = decode_line(line.encode(), Origin("file", "sleep"), offset=0, received_unix_nano=RECEIVED)
    same = set(from_file) - {"record_id", "source", "start_time_unix_nano"}
    assert {key: row[key] for key in same} == {key: from_file[key] for key in same}
    assert row["direction"] == direction
    assert row["source"] == "otlp:sleep"
    assert from_file["start_time_unix_nano"] == MILLISECOND
    assert row["start_time_unix_nano"] == START  # the envelope has the same time with more digits


def test_a_line_that_names_no_workload_is_kept_under_a_name_that_no_app_has():
    decoded = decode(record(OUTBOUND), record(INBOUND))

    assert {row["service_name"] for row in rows(decoded)} == {"unknown_service:envoy"}
    assert decoded.notes == {access_logs.NO_WORKLOAD: 2}


def test_envoy_logs_attributes_and_its_node():
    row = only_row(record(None, FIELDS, trace_id=TRACE_ID), resource=ENVOY)

    assert row["service_name"] == "sleep"
    assert row["service_instance_id"] == "sleep-5f4d"
    assert row["source"] == "otlp:sleep-5f4d"
    assert row["direction"] is None
    assert row["trace_id"] == UUID(bytes=TRACE_ID)
    assert (row["method"], row["path"], row["protocol"], row["authority"]) == ("GET", "/a?b=c", "HTTP/2", "httpbin")
    assert (row["response_code"], row["response_flags"], row["request_id"]) == (503, "UF", "r-1")
    assert (row["bytes_received"], row["bytes_sent"], row["duration_ns"]) == (10, 20, 7_000_000)
    assert row["user_agent"] is None
    assert row["received_unix_nano"] == RECEIVED
    assert dict(row["attributes"]) == {
        "x_forwarded_for": '"10.0.0.1"',
        "cluster_name": '"sleep.foo"',
        "node_name": json.dumps(ENVOY["node_name"]),
    }


def test_envoy_gateway_logs_json_in_the_body_and_its_pod_in_the_attributes():
    body = {"start_time": FIELDS["start_time"], ":authority": "shop", "x-request-id": "r-2", "response_code": "200"}
    pod = {"k8s.namespace.name": "gateways", "k8s.pod.name": "eg-1"}
    row = only_row(
        record(json.dumps(body), pod), resource={"log_name": access_logs.LOG_NAME, "cluster_name": "default/eg"}
    )

    assert (row["authority"], row["request_id"], row["response_code"]) == ("shop", "r-2", 200)
    assert (row["service_name"], row["service_instance_id"]) == ("default/eg", "eg-1")
    assert dict(row["attributes"])["k8s.namespace.name"] == '"gateways"'


def test_the_body_may_be_fields_too_and_attributes_add_to_it():
    row = only_row(
        record(FIELDS | {"authority": "-"}, {"authority": "shop", "path": "-"}), resource={"service.name": "a"}
    )

    assert (row["authority"], row["path"], row["service_name"]) == ("shop", "/a?b=c", "a")


def test_a_collector_in_between_turns_numbers_into_doubles():
    numbers = {"response_code": 200.0, "duration": 3.0, "bytes_sent": 17, "weight": 0.5, "odd": float("nan")}
    row = only_row(record(None, FIELDS | numbers), resource=ENVOY)

    assert (row["response_code"], row["duration_ns"], row["bytes_sent"]) == (200, 3_000_000, 17)
    assert dict(row["attributes"])["weight"] == "0.5"
    assert dict(row["attributes"])["odd"] == '{"doubleValue": "NaN"}'


def test_values_of_every_other_kind_are_kept_as_json():
    kinds = {"yes": True, "list": ["a", 1], "map": {"k": "v"}, "bytes": AnyValue(bytes_value=b"\xff"), "nothing": None}
    kept = dict(only_row(record(None, FIELDS | kinds), resource=ENVOY)["attributes"])

    assert kept["yes"] == "true"
    assert json.loads(kept["list"]) == ["a", 1]
    assert json.loads(kept["map"]) == {"k": "v"}
    assert json.loads(kept["bytes"]) == {"bytesValue": "/w=="}
    assert "nothing" not in kept


def test_a_format_of_the_operators_own_is_kept_where_the_attributes_say_enough():
    row = only_row(record("GET it", FIELDS), resource=ENVOY)

    assert dict(row["attributes"])["body"] == '"GET it"'


def test_attributes_of_envoy_make_an_access_log_whatever_its_name():
    resource = {"log_name": "my_log", "service.name": "a", "service.instance.id": "a-1"}
    row = only_row(record(None, FIELDS), resource=resource)

    assert (row["service_name"], row["service_instance_id"]) == ("a", "a-1")
    assert dict(row["attributes"])["log_name"] == '"my_log"'


@pytest.mark.parametrize("where", ["resource", "attributes"])
def test_the_direction_can_be_said(where):
    said = {"direction": "INBOUND"}
    attributes = FIELDS | (said if where == "attributes" else {})
    row = only_row(record(None, attributes), resource=ENVOY | (said if where == "resource" else {}))
    lined = only_row(record(OUTBOUND, attributes), resource=ENVOY)

    assert row["direction"] == "inbound"
    assert "direction" not in dict(row["attributes"])
    assert lined["upstream_cluster"] == "some_cluster"  # attributes go before the body: they are the more specific


def test_istios_own_cluster_name_goes_before_what_is_said():
    row = only_row(record(OUTBOUND, {"direction": "inbound"}), resource=ENVOY)

    assert row["direction"] == "outbound"


@pytest.mark.parametrize(
    ("resource", "service", "instance"),
    [
        ({"service.name": "a", "cluster_name": "b"}, "a", None),
        ({"service.name": "unknown_service", "cluster_name": "b"}, "b", None),
        ({"cluster_name": "sleep.foo", "node_name": "n1"}, "sleep.foo", "n1"),
        ({"cluster_name": "sleep.bar", "node_name": "sidecar~1.2.3.4~p.foo~x"}, "sleep.bar", "p"),
        ({"cluster_name": "b", "host.name": "h", "node_name": "n1"}, "b", "h"),
        ({"cluster_name": "b", "k8s.pod.name": "p"}, "b", "p"),
    ],
)
def test_whose_records_they_are(resource, service, instance):
    row = only_row(record(OUTBOUND), resource=resource)

    assert (row["service_name"], row["service_instance_id"]) == (service, instance)


def test_the_lines_own_time_counts_where_the_envelope_has_another_or_none():
    for time in (0, START + 5_000_000_000):
        assert only_row(record(OUTBOUND, time=time), resource=ENVOY)["start_time_unix_nano"] == MILLISECOND
    untimed = {key: value for key, value in FIELDS.items() if key != "start_time"}
    assert only_row(record(None, untimed), resource=ENVOY)["start_time_unix_nano"] == START


@pytest.mark.parametrize("trace_id", [b"", bytes(16), b"short"])
def test_a_trace_id_that_is_none(trace_id):
    assert only_row(record(OUTBOUND, trace_id=trace_id), resource=ENVOY)["trace_id"] is None


def test_bytes_that_are_not_utf8_spoil_one_value():
    payload = request(record(None, FIELDS | {"path": "/marker"}), resource=ENVOY).replace(b"/marker", b"/\xff\xfemark")
    decoded = decode_access_logs(payload, received_unix_nano=RECEIVED)

    assert rows(decoded)[0]["path"] == "/\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}mark"
    assert decoded.notes == {log_records.NOT_UTF8: 1}


# --- record ids -----------------------------------------------------------------------------------------------------------


def test_a_request_that_is_sent_again_gives_the_same_ids():
    payload = request(*(record(OUTBOUND, time=START + i) for i in range(50)), resource=ENVOY)
    first, second = (decode_access_logs(payload, received_unix_nano=received) for received in (RECEIVED, RECEIVED + 1))

    ids = [row["record_id"] for row in rows(first)]
    assert ids == [row["record_id"] for row in rows(second)]
    assert len(set(ids)) == 50


def test_equal_records_are_two_and_senders_have_their_own():
    twins = [row["record_id"] for row in rows(decode(record(OUTBOUND), record(OUTBOUND), resource=ENVOY))]
    other = [row["record_id"] for row in rows(decode(record(OUTBOUND), resource=ENVOY | {"node_name": "n2"}))]

    assert len({*twins, *other}) == 3


# --- refusals -------------------------------------------------------------------------------------------------------------

BEYOND = "a time is beyond 2^63 - 1 ns"
NO_TIME = "access log: no start_time that is an RFC 3339 time"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record("user logged in", {"method": "GET", "path": "/", "duration": 3}), access_logs.NOT_AN_ACCESS_LOG),
        (record('{"level": "info", "path": "/"}'), access_logs.NOT_AN_ACCESS_LOG),
        (record('{"broken'), access_logs.NOT_AN_ACCESS_LOG),
        (record(["a"]), access_logs.NOT_AN_ACCESS_LOG),
        (record(), access_logs.NOT_AN_ACCESS_LOG),
        (record("GET /", {"log_name": access_logs.LOG_NAME}), access_logs.UNREADABLE),
        (record(OUTBOUND, time=1 << 63), BEYOND),
        (record({k: v for k, v in FIELDS.items() if k != "start_time"}, time=0), NO_TIME),
        (record("x" * (MAX_LINE_BYTES + 1)), access_logs.TOO_LONG),
        (record(OUTBOUND, {f"k{i}": i for i in range(log_records.MAX_ATTRIBUTES + 1)}), log_records.TOO_MANY),
    ],
)
def test_a_record_that_is_no_access_log_is_refused_alone(bad, reason):
    decoded = decode(record(OUTBOUND), bad, record(INBOUND), resource={"service.name": "a"})

    assert decoded.rejected == {reason: 1}
    assert [row["direction"] for row in rows(decoded)] == ["outbound", "inbound"]


def test_a_named_log_in_an_unknown_format_says_what_to_do():
    decoded = decode(record("GET / 200"), resource=ENVOY)

    assert decoded.rejected == {access_logs.UNREADABLE: 1}


def test_an_empty_request_has_no_rows():
    for payload in (b"", request(), request(resource=ENVOY)):
        decoded = decode_access_logs(payload, received_unix_nano=RECEIVED)
        assert (decoded.record_count, decoded.rejected, decoded.notes) == (0, {}, {})
        assert decoded.batches["proxy_records"].schema == arrow_schema("proxy_records")


def test_more_records_than_are_held_at_once():
    count = access_logs._CHUNK + 7
    bad = {0, access_logs._CHUNK, count - 1}
    made = [record("x" if i in bad else OUTBOUND, {"n": i}, time=START + i % 1000) for i in range(count)]
    decoded = decode(*made, resource={"service.name": "a"})

    numbers = [int(dict(row["attributes"])["n"]) for row in rows(decoded)]
    assert numbers == [i for i in range(count) if i not in bad]
    assert decoded.rejected == {access_logs.NOT_AN_ACCESS_LOG: 3}


def test_a_record_of_megabytes_is_a_record():
    decoded = decode(record("x" * 3_000_000), record(OUTBOUND), resource={"service.name": "a"})
    assert decoded.rejected == {"access log line too long": 1}
    assert len(rows(decoded)) == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b"\x0b" * 3_000_000,
        b"\x0b" * 100_000,  # groups that never end
        request(record(OUTBOUND), resource=ENVOY)[:-3],
        b"\x0a\x00" * 70_000,  # more resources than are accepted
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ],
)
def test_what_is_no_log_request_is_refused_whole(payload):
    with pytest.raises(DecodeError):
        decode_access_logs(payload, received_unix_nano=RECEIVED)


def nested(tag, message):
    """A field of wire type 2 with its length."""
    length = bytearray()
    rest = len(message)
    while rest > 0x7F:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([tag << 3 | 2, *length, rest]) + message


@pytest.mark.parametrize(
    ("level", "most"),
    [(0, projection.MAX_ORIGINS), (1, projection.MAX_ORIGINS), (2, log_records.MAX_RECORDS)],
)
def test_items_of_long_messages_are_counted_before_they_are_parsed(monkeypatch, level, most):
    payload = bytes([0x0A if level == 0 else 0x12, 0]) * (projection.COUNTED_BYTES // 2 + 1)
    for tag in (b"\x12", b"\x0a")[2 - level :]:
        payload = tag + _varint(len(payload)) + payload
    kind = (log_records._REQUEST, log_records._RESOURCE_LOGS, log_records._SCOPE_LOGS)[level]
    parse = type(kind).parse

    def parsed(self, message):
        assert self is not kind
        return parse(self, message)

    monkeypatch.setattr(type(kind), "parse", parsed)
    with pytest.raises(DecodeError, match=f"at most {most} are accepted"):
        decode_access_logs(payload, received_unix_nano=1)


def _varint(number):
    return bytes([*(number >> shift & 127 | 128 for shift in (0, 7, 14)), number >> 21])


def test_a_value_that_is_nested_too_deep_is_kept_as_bytes():
    deep = AnyValue(string_value="x").SerializeToString()
    for _ in range(200):
        deep = nested(5, nested(1, deep))  # an AnyValue with an ArrayValue of one value
    fields = b"".join(nested(6, pair.SerializeToString()) for pair in pairs(FIELDS))
    log_record = fields + nested(6, nested(1, b"deep") + nested(2, deep))
    decoded = decode_access_logs(nested(1, nested(2, nested(2, log_record))), received_unix_nano=RECEIVED)

    assert decoded.record_count == 1
    assert decoded.notes == {access_logs.NO_WORKLOAD: 1, values.UNDECODABLE: 1}
    assert "bytesValue" in dict(rows(decoded)[0]["attributes"])["deep"]


# --- anything -------------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain = st.recursive(
    st.one_of(texts, st.sampled_from(["-", "", "200", "2020-11-25T21:26:18Z"]), st.integers(-(2**63), 2**63 - 1))
    | st.one_of(st.booleans(), st.floats(), st.none()),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=3,
)
keys = st.sampled_from([*sorted(KNOWN_KEYS), "direction", "service.name", "k8s.pod.name", "log_name"]) | texts
fields = st.dictionaries(keys, plain, max_size=5)
lines = st.sampled_from([OUTBOUND, INBOUND, json.dumps(FIELDS), "", " ", "{}", '{"a": 1e999}', "[" * 5_000])
records = st.builds(
    record,
    st.one_of(st.none(), lines, texts, fields, st.just(FIELDS)),
    st.one_of(fields, fields.map(lambda f: FIELDS | f)),
    time=st.integers(0, 2**64 - 1) | st.just(START) | st.just(0),
    trace_id=st.binary(max_size=17),
)
resources = st.dictionaries(st.sampled_from([*ENVOY, "service.name", "direction"]) | texts, plain, max_size=4)


@settings(deadline=None)
@given(st.lists(records, max_size=6), resources | st.just(ENVOY))
def test_every_record_is_a_row_or_counted(some, resource):
    decoded = decode(*some, resource=resource)

    batch = decoded.batches["proxy_records"]
    batch.validate(full=True)
    assert batch.schema == arrow_schema("proxy_records")
    assert batch.num_rows == decoded.record_count
    assert decoded.record_count + sum(decoded.rejected.values()) == len(some)
    ids = batch.column("record_id").to_pylist()
    assert len(set(ids)) == len(ids)
    assert all(batch.column(f.name).null_count == 0 for f in batch.schema if not f.nullable)


def is_refused_or_valid(payload):
    try:
        decoded = decode_access_logs(payload, received_unix_nano=RECEIVED)
    except DecodeError:
        return
    decoded.batches["proxy_records"].validate(full=True)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_rows_or_a_decode_error(payload):
    is_refused_or_valid(payload)


@settings(deadline=None)
@given(st.lists(records, min_size=1, max_size=3), st.data())
def test_a_damaged_request_is_rows_or_a_decode_error(some, data):
    payload = bytearray(request(*some, resource=ENVOY))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    is_refused_or_valid(bytes(payload[: data.draw(st.integers(1, len(payload)))]))

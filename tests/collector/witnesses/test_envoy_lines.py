"""Envoy's and Istio's access log lines: every documented form becomes a row, everything else a DecodeError."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import DecodeError
from collector.schema import arrow_schema
from collector.witnesses.envoy import MAX_LINE_BYTES, Origin, Row, decode_line, record_id, to_batch, unix_nano

ORIGIN = Origin("/var/log/envoy.json", "checkout", "inbound", "pod-1")

ISTIO_OUTBOUND = (
    '[2020-11-25T21:26:18.409Z] "GET /status/418 HTTP/1.1" 418 - via_upstream - "-" 0 135 4 4 "-" "curl/7.73.0-DEV" '
    '"84961386-6d84-929d-98bd-c5aee93b5c88" "httpbin:8000" "10.44.1.27:80" '
    "outbound|8000||httpbin.foo.svc.cluster.local 10.44.1.23:37652 10.0.45.184:8000 10.44.1.23:46520 - default"
)
ISTIO_INBOUND = (
    '[2020-11-25T21:26:18.409Z] "GET /status/418 HTTP/1.1" 418 - via_upstream - "-" 0 135 3 1 "-" "curl/7.73.0-DEV" '
    '"84961386-6d84-929d-98bd-c5aee93b5c88" "httpbin:8000" "127.0.0.1:80" inbound|8000|| 127.0.0.1:41854 '
    "10.44.1.27:80 10.44.1.23:37652 outbound_.8000_._.httpbin.foo.svc.cluster.local default"
)
ENVOY = (
    '[2016-04-15T20:17:00.310Z] "POST /api/v1/locations HTTP/2" 204 - 154 0 226 100 "10.0.35.28" "nsq2http" '
    '"cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2" "locations" "tcp://10.0.2.1:80"'
)
ISTIO_JSON = {
    "start_time": "2020-11-25T21:26:18.409Z",
    "route_name": "default",
    "method": "GET",
    "path": "/status/418?q=1",
    "protocol": "HTTP/1.1",
    "response_code": 418,
    "response_flags": "-",
    "response_code_details": "via_upstream",
    "connection_termination_details": None,
    "bytes_received": 7,
    "bytes_sent": 135,
    "duration": 4,
    "upstream_service_time": "3",
    "x_forwarded_for": None,
    "user_agent": "curl/7.73.0-DEV",
    "request_id": "84961386-6d84-929d-98bd-c5aee93b5c88",
    "authority": "httpbin:8000",
    "upstream_host": "10.44.1.27:80",
    "upstream_cluster": "outbound|8000||httpbin.foo.svc.cluster.local",
    "upstream_local_address": "10.44.1.23:37652",
    "downstream_local_address": "10.0.45.184:8000",
    "downstream_remote_address": "10.44.1.23:46520",
    "requested_server_name": None,
    "upstream_transport_failure_reason": None,
}
GATEWAY_JSON = {
    "start_time": "2024-05-01T10:00:00.001Z",
    "method": "GET",
    "x-envoy-origin-path": "/get",
    "protocol": "HTTP/1.1",
    "response_code": "200",
    "response_flags": "-",
    "bytes_received": "0",
    "bytes_sent": "12",
    "duration": "5",
    "x-envoy-upstream-service-time": "4",
    "x-forwarded-for": "10.0.0.9",
    "user-agent": "curl/8",
    "x-request-id": "a2b1",
    ":authority": "www.example.com",
    "upstream_host": "10.1.0.7:3000",
    "upstream_cluster": "httproute/default/backend/rule/0",
    "downstream_remote_address": "10.0.0.9:4000",
}


def decode(line: str | dict[str, Any] | bytes, origin: Origin = ORIGIN, *, offset: int = 0) -> Row:
    text = json.dumps(line) if isinstance(line, dict) else line
    raw = text if isinstance(text, bytes) else text.encode()
    return decode_line(raw, origin, offset=offset, received_unix_nano=99)


def test_istio_json() -> None:
    row = decode(ISTIO_JSON)

    assert row == {
        "record_id": record_id(ORIGIN.source, 0, json.dumps(ISTIO_JSON).encode()),
        "source": "/var/log/envoy.json",
        "service_name": "checkout",
        "service_instance_id": "pod-1",
        "direction": "outbound",
        "start_time_unix_nano": 1606339578409000000,
        "duration_ns": 4_000_000,
        "request_id": "84961386-6d84-929d-98bd-c5aee93b5c88",
        "trace_id": None,
        "method": "GET",
        "path": "/status/418?q=1",
        "authority": "httpbin:8000",
        "protocol": "HTTP/1.1",
        "response_code": 418,
        "response_flags": None,
        "bytes_received": 7,
        "bytes_sent": 135,
        "upstream_host": "10.44.1.27:80",
        "upstream_cluster": "outbound|8000||httpbin.foo.svc.cluster.local",
        "upstream_local_address": "10.44.1.23:37652",
        "downstream_local_address": "10.0.45.184:8000",
        "downstream_remote_address": "10.44.1.23:46520",
        "requested_server_name": None,
        "user_agent": "curl/7.73.0-DEV",
        "received_unix_nano": 99,
        "attributes": [
            ("route_name", '"default"'),
            ("response_code_details", '"via_upstream"'),
            ("upstream_service_time", '"3"'),
        ],
        "format": "istio",
        "downstream_peer": None,
    }


XFCC = (
    "By=spiffe://cluster.local/ns/foo/sa/httpbin;URI=spiffe://evil/forged,"
    'By=spiffe://cluster.local/ns/foo/sa/httpbin;Hash=ab;Subject="";URI=spiffe://cluster.local/ns/foo/sa/sleep'
)


@pytest.mark.parametrize("key", ["x-forwarded-client-cert", "x_forwarded_client_cert", "xfcc"])
def test_the_peer_is_whom_the_last_proxy_vouched_for(key: str) -> None:
    row = decode(GATEWAY_JSON | {key: XFCC})

    assert row["downstream_peer"] == "spiffe://cluster.local/ns/foo/sa/sleep"
    assert row["format"] == "envoy-gateway"
    assert (key, json.dumps(XFCC)) in row["attributes"]  # type: ignore[operator]


def test_what_the_workload_itself_sends_vouches_for_nobody() -> None:
    assert decode(ISTIO_JSON | {"xfcc": XFCC})["downstream_peer"] is None
    assert decode(ENVOY)["format"] == "envoy"


def test_a_certificates_own_name_goes_first() -> None:
    assert (
        decode(GATEWAY_JSON | {"xfcc": XFCC, "downstream_peer_uri_san": "spiffe://a/b,spiffe://c"})["downstream_peer"]
        == "spiffe://a/b"
    )


def test_envoy_gateway_json_has_other_keys_and_numbers_as_text() -> None:
    row = decode(GATEWAY_JSON)

    expected = {
        "request_id": "a2b1",
        "authority": "www.example.com",
        "path": "/get",
        "user_agent": "curl/8",
        "response_code": 200,
        "bytes_sent": 12,
        "duration_ns": 5_000_000,
        "direction": "inbound",
        "attributes": [("x-envoy-upstream-service-time", '"4"'), ("x-forwarded-for", '"10.0.0.9"')],
    }
    assert {key: row[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("line", "direction", "duration_ms", "upstream_host", "server_name"),
    [
        (ISTIO_OUTBOUND, "outbound", 4, "10.44.1.27:80", None),
        (ISTIO_INBOUND, "inbound", 3, "127.0.0.1:80", "outbound_.8000_._.httpbin.foo.svc.cluster.local"),
        (ENVOY, None, 226, "tcp://10.0.2.1:80", None),
    ],
)
def test_text_formats(
    line: str, direction: str | None, duration_ms: int, upstream_host: str, server_name: str | None
) -> None:
    row = decode(line + "\n", Origin("f", "s"))

    assert row["direction"] == direction
    assert row["duration_ns"] == duration_ms * 1_000_000
    assert row["upstream_host"] == upstream_host
    assert row["requested_server_name"] == server_name
    assert str(row["request_id"]).count("-") == 4


def test_a_text_line_and_its_json_twin_say_the_same() -> None:
    text, twin = decode(ISTIO_OUTBOUND), decode(ISTIO_JSON | {"path": "/status/418", "bytes_received": 0})

    ignored = {"record_id", "attributes"}
    assert {k: v for k, v in text.items() if k not in ignored} == {k: v for k, v in twin.items() if k not in ignored}


def test_a_quote_that_a_client_sent_cannot_forge_the_fields_after_it() -> None:
    forged = ISTIO_OUTBOUND.replace("curl/7.73.0-DEV", 'curl" "00000000-0000-0000-0000-000000000000" "elsewhere')

    with pytest.raises(DecodeError, match="neither JSON nor a default text format"):
        decode(forged)


@pytest.mark.parametrize(
    ("cluster", "configured", "direction"),
    [
        ("inbound|80||", "outbound", "inbound"),
        ("outbound|80|v1|a.b", "inbound", "outbound"),
        ("PassthroughCluster", "inbound", "outbound"),
        ("BlackHoleCluster", None, "outbound"),
        ("InboundPassthroughCluster", "outbound", "inbound"),
        ("InboundPassthroughClusterIpv4", None, "inbound"),
        ("local_app", "inbound", "inbound"),
        ("inbound_but_not_istio", None, None),
        (None, "outbound", "outbound"),
        ("-", None, None),
    ],
)
def test_direction(cluster: str | None, configured: Any, direction: str | None) -> None:
    row = decode(ISTIO_JSON | {"upstream_cluster": cluster}, Origin("f", "s", configured))

    assert row["direction"] == direction


TRACE = UUID("4bf92f3577b34da6a3ce929d0e0e4736")


@pytest.mark.parametrize(
    ("logged", "trace_id"),
    [
        ({"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}, TRACE),
        ({"trace_id": "4BF92F3577B34DA6A3CE929D0E0E4736"}, TRACE),
        ({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}, TRACE),
        ({"trace_id": "-", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}, TRACE),
        ({"trace_id": "0" * 32}, None),
        ({"trace_id": "4bf92f3577b34da6"}, None),
        ({"trace_id": 7}, None),
        ({"traceparent": "00-xyz-1-01"}, None),
        ({}, None),
    ],
)
def test_trace_id(logged: dict[str, object], trace_id: UUID | None) -> None:
    assert decode(ISTIO_JSON | logged)["trace_id"] == trace_id


@pytest.mark.parametrize("value", [True, -1, 1.5, "1.5", "\u0661", "abc", [1], {"a": 1}, 2**63, "9" * 30, 10**400])
def test_a_value_that_does_not_fit_its_column_is_kept_in_attributes(value: object) -> None:
    row = decode(ISTIO_JSON | {"bytes_sent": value})

    assert row["bytes_sent"] is None
    assert dict(row["attributes"])["bytes_sent"] == json.dumps(value, ensure_ascii=False)  # type: ignore[call-overload]


def test_unknown_keys_keep_their_types_as_json() -> None:
    row = decode(ISTIO_JSON | {"a": 5, "b": 5.0, "c": True, "d": [1, {"e": None}], "f": "ü", "g": "", "h": "-"})

    attributes = dict(row["attributes"])  # type: ignore[call-overload]
    assert {k: attributes.get(k) for k in "abcdfgh"} == {
        "a": "5", "b": "5.0", "c": "true", "d": '[1, {"e": null}]', "f": '"ü"', "g": None, "h": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2020-11-25T21:26:18.409Z", 1606339578409000000),
        ("2020-11-25T21:26:18.123456789Z", 1606339578123456789),
        ("2020-11-25T21:26:18.1234567891234Z", 1606339578123456789),
        ("2020-11-25T23:26:18.409+02:00", 1606339578409000000),
        ("2020-11-25T16:26:18.409-0500", 1606339578409000000),
        ("2016-12-31T23:59:60Z", 1483228800000000000),
        ("1969-12-31T23:59:59Z", None),
        ("2020-13-01T00:00:00Z", None),
        ("9999-12-31T23:59:59Z", None),
        ("9999-12-31T23:59:60-23:59", None),
        ("2020-11-25T21:26:18", None),
        ("2020-11-25", None),
        ("٢٠٢٠-11-25T21:26:18Z", None),
        (1606339578, None),
        (None, None),
    ],
)
def test_times(text: object, nanos: int | None) -> None:
    assert unix_nano(text) == nanos


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "neither JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"{", "not JSON"),
        (b'{"start_time": NaN}', "not JSON"),
        (b'{"a": 1e999, "start_time": "2020-11-25T21:26:18Z"}', "no float"),
        (b'{"start_time": "2020-11-25T21:26:18Z", "a": "\\ud800"}', "surrogate"),
        (b'{"start_time": "2020-11-25T21:26:18Z", "a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "not JSON|too deep"),
        (b'{"start_time": "2020-11-25T21:26:18Z", "a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"{}", "no start_time"),
        (b'{"start_time": "yesterday"}', "no start_time"),
        (b'{"start_time": null}', "no start_time"),
        (b"[]", "neither JSON"),
        (b"x" * (MAX_LINE_BYTES + 1), "too long"),
        (ENVOY.replace("204", "abc").encode(), "neither JSON"),
        (ENVOY[:-20].encode(), "neither JSON"),
    ],
)
def test_what_is_no_line_is_refused_without_repeating_it(line: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason) as refused:
        decode(line)
    assert len(str(refused.value)) < 80


def test_record_ids_are_stable_and_tell_lines_apart() -> None:
    same = {decode(ISTIO_JSON, offset=5)["record_id"] for _ in range(2)}
    other = {
        decode(ISTIO_JSON, offset=6)["record_id"],
        decode(ISTIO_JSON, Origin("other", "checkout"), offset=5)["record_id"],
        decode(ISTIO_JSON | {"duration": 5}, offset=5)["record_id"],
    }

    assert len(same) == 1
    assert len(other | same) == 4
    assert all(isinstance(i, int) and 0 <= i < 2**64 for i in same | other)


def test_rows_become_a_batch_with_the_schema() -> None:
    batch = to_batch([decode(ISTIO_JSON), decode(ENVOY), decode(GATEWAY_JSON)])

    assert batch.schema == arrow_schema("proxy_records")
    assert batch.column("response_code").to_pylist() == [418, 204, 200]
    assert to_batch([]).num_rows == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
json_lines = st.dictionaries(
    st.sampled_from([*ISTIO_JSON, *GATEWAY_JSON, "trace_id", "traceparent"]) | st.text(), json_values
)
lines = st.one_of(
    st.binary(max_size=300),
    json_lines.map(lambda d: json.dumps({"start_time": "2020-11-25T21:26:18Z"} | d).encode()),
    st.builds(
        lambda line, at, junk: line[:at].encode() + junk + line[at:].encode(),
        st.sampled_from([ISTIO_OUTBOUND, ISTIO_INBOUND, ENVOY, json.dumps(ISTIO_JSON)]),
        st.integers(0, 300),
        st.binary(max_size=4),
    ),
)


@given(lines)
def test_any_line_is_a_row_that_fits_the_table_or_a_decode_error(line: bytes) -> None:
    try:
        row = decode(line)
    except DecodeError:
        return
    batch = to_batch([row])
    assert batch.num_rows == 1
    batch.validate(full=True)

"""Envoy's format strings: lines that were written with one are read with it."""

import json
from typing import Any

import pytest

from collector.errors import ConfigError, DecodeError
from collector.witnesses.envoy import Origin
from collector.witnesses.envoy_format import compile_format
from collector.witnesses.reading import make_reader

ISTIO_FORMAT = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    '"%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID):36%" %UPSTREAM_CLUSTER_RAW% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% '
    "%REQ(X-TENANT)% %DYNAMIC_METADATA(a:b)% 100%%\\n"
)
LINE = '[2020-11-25T21:26:18.409Z] "GET /a HTTP/1.1" 200 - "curl (x; y)" "8496" inbound|80|| 3 acme {"k":"v"} 100%'


def row(format_: str, line: str) -> dict[str, Any]:
    reader = make_reader("envoy", Origin("/log", "checkout"), log_format=format_)
    decoded = reader.read(line.encode(), offset=0, header=None, received_unix_nano=1)
    assert not decoded.refused
    return dict(decoded.batch.to_pylist()[0])


def test_a_text_format_of_the_operators_own() -> None:
    found = row(ISTIO_FORMAT, LINE)

    assert (found["method"], found["path"], found["response_code"]) == ("GET", "/a", 200)
    assert (found["user_agent"], found["request_id"], found["direction"]) == ("curl (x; y)", "8496", "inbound")
    attributes = {key: json.loads(value) for key, value in found["attributes"]}
    assert attributes == {"upstream_service_time": "3", "x-tenant": "acme", "dynamic_metadata.a:b": '{"k":"v"}'}


@pytest.mark.parametrize(
    ("format_", "text", "nanos"),
    [
        ("%START_TIME(%s.%3f)%", "1606339578.409", 409_000_000),
        ("%START_TIME(%s)%", "1606339578", 0),
        ("%START_TIME(%Y/%m/%dT%H:%M:%S%z)%", "2020/11/25T22:26:18+01:00", 0),
        ("%START_TIME(%Y-%m-%dT%H:%M:%E6S)%", "2020-11-25T21:26:18.000001", 1_000),
        ("%START_TIME(%d/%b/%Y:%T %z)%", "25/Nov/2020:21:26:18 +0000", 0),
        ("%START_TIME%", "2020-11-25T21:26:18.409Z", 409_000_000),
    ],
)
def test_times_in_formats_of_their_own(format_: str, text: str, nanos: int) -> None:
    assert row(f"[{format_}] %RESPONSE_CODE%", f"[{text}] 200")["start_time_unix_nano"] == 1606339578 * 10**9 + nanos


def test_a_json_format() -> None:
    found = row(
        '{"t": "%START_TIME(%s.%3f)%", "id": "%REQ(X-REQUEST-ID)%", "up": "%UPSTREAM_HOST%", "v": "fixed"}',
        '{"t": "1606339578.409", "id": "abc", "up": "10.0.0.1:80", "v": "fixed"}',
    )
    assert (found["request_id"], found["upstream_host"]) == ("abc", "10.0.0.1:80")
    assert found["start_time_unix_nano"] == 1606339578409000000


def test_usual_keys_of_custom_json_are_understood() -> None:
    line = {"timestamp": "2020-11-25T21:26:18Z", "status": 503, "uri": "/a", "requestId": "r", "duration_ms": "7"}
    found = make_reader("envoy", Origin("/log", "checkout")).read(
        json.dumps(line).encode(), offset=0, header=None, received_unix_nano=1
    )
    [only] = found.batch.to_pylist()
    assert (only["response_code"], only["path"], only["request_id"], only["duration_ns"]) == (503, "/a", "r", 7_000_000)


@pytest.mark.parametrize(
    ("format_", "message"),
    [
        ("", "is empty"),
        ("%RESPONSE_CODE%", "no %START_TIME%"),
        ("%START_TIME%%RESPONSE_CODE%", "nothing stands between start_time and response_code"),
        ("[%START_TIME(%Q)%] %RESPONSE_CODE%", "has %Q, which cannot be read back"),
        ('{"a": ', "is not JSON"),
        ('{"a": "%RESPONSE_CODE%"}', "no key whose value is %START_TIME%"),
    ],
)
def test_a_format_that_cannot_be_read_back_is_refused(format_: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compile_format(format_)


def test_a_format_is_envoys_alone() -> None:
    with pytest.raises(ConfigError, match="says nothing of zeek"):
        make_reader("zeek", Origin("/log", "x"), log_format="[%START_TIME%]")


def test_a_line_of_another_format_is_refused() -> None:
    with pytest.raises(DecodeError, match="not a line of --log-format"):
        compile_format("[%START_TIME%] %RESPONSE_CODE%")("hello")

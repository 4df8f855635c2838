"""Reading by the column gives the rows and the refusals that reading line by line gives, whatever the lines are."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collector.witnesses import reading
from collector.witnesses.blocks import Lines
from collector.witnesses.envoy import Origin
from collector.witnesses.reading import UNKNOWN_SERVICE, Decoded, Format, make_reader
from tests.collector.witnesses.test_witness_lines import ENVOY, ISTIO, VPCFLOW, VPCFLOW_ANSWER, ZEEK, ZEEK_HEADER

BASE: dict[str, Any] = {
    "start_time": "2020-11-25T21:26:18.409Z",
    "route_name": "default",
    "method": "GET",
    "path": "/status/418?q=1",
    "response_code": 418,
    "response_flags": "-",
    "bytes_sent": "135",
    "duration": 4,
    "x_forwarded_for": None,
    "x_forwarded_client_cert": "By=spiffe://a;URI=spiffe://b",
    "request_id": "84961386-6d84-929d-98bd-c5aee93b5c88",
    "x-request-id": "other",
    "authority": "httpbin:8000",
    "upstream_cluster": "inbound|8000||",
    "requested_server_name": "outbound_.8000_._.httpbin.foo.svc.cluster.local",
    "retries": -3,
    "is_retry": True,
}

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(0, 2000),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(
        ["-", "", "007", "5", "999999999999999999999", "outbound|80||x", "PassthroughCluster", "é", '"', "\\", "\u0000", ",", "}",
         "2020-11-25T21:26:18Z", "2020-11-25 21:26:18.123456789Z", "2020-11-25T21:26Z", "2020-02-30T00:00:00Z",
         "1969-12-31T23:59:59Z", "2020-11-25T21:26:18+01:00", "9999-01-01T00:00:00Z", "4bf92f3577b34da6a3ce929d0e0e4736"]
    ),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip
changes = st.dictionaries(
    st.sampled_from([*BASE, "trace_id", "traceparent", ":authority", "extra", "timestamp", "downstream_peer_uri_san"]),
    values,
    max_size=3,
)


def json_line(change: dict[str, Any], *, spaced: bool) -> bytes:
    separators = (", ", ": ") if spaced else (",", ":")
    return json.dumps(BASE | change, ensure_ascii=False, separators=separators).encode("utf-8", "surrogatepass")


@contextmanager
def columns(*, used: bool) -> Iterator[None]:
    with mock.patch.object(reading, "FEWEST_BYTES", 0 if used else 1 << 60):
        yield


def read(format_: Format, data: bytes, *, used: bool, service: str = UNKNOWN_SERVICE) -> Decoded:
    with columns(used=used):
        reader = make_reader(format_, Origin("/log", service, None, "pod-1"))
        return reader.read(data, offset=1000, header=None, received_unix_nano=99)


def comparable(decoded: Decoded) -> list[dict[str, Any]]:
    decoded.batch.validate(full=True)
    rows = [row | {"attributes": dict(row["attributes"])} for row in decoded.batch.to_pylist()]
    return sorted(rows, key=lambda row: row["record_id"])


def check_equal(format_: Format, data: bytes) -> Decoded:
    by_column, by_line = read(format_, data, used=True), read(format_, data, used=False)
    assert comparable(by_column) == comparable(by_line)
    assert sorted(by_column.refused, key=lambda r: r.line) == by_line.refused
    assert (by_column.lines, by_column.header) == (by_line.lines, by_line.header)
    return by_column


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(
    odd=st.lists(st.tuples(changes, st.integers(0, 40)), max_size=4),
    spaced=st.booleans(),
    junk=st.lists(st.binary(max_size=20), max_size=2),
)
def test_json_access_logs(odd: list[tuple[dict[str, Any], int]], spaced: bool, junk: list[bytes]) -> None:  # noqa: FBT001
    lines = [json_line({"bytes_sent": str(i), "response_code": 200 + i}, spaced=spaced) for i in range(40)]
    for change, count in odd:
        lines += [json_line(change | {"request_id": str(i)}, spaced=spaced) for i in range(count)]
    check_equal("envoy", b"\n".join([*lines, *junk]))


@settings(max_examples=25, deadline=None)
@given(
    format_=st.sampled_from(["istio", "zeek", "vpcflow"]),
    at=st.integers(0, 300),
    cut=st.integers(0, 9),
    put=st.binary(max_size=5) | st.sampled_from([b"\t", b" ", b"-", b'"', b"\xc2\xa0", b"\n#x\n", b"1e5", b"."]),
    times=st.integers(1, 40),
)
@example(format_="zeek", at=124, cut=1, put=b" ", times=1)  # a last column of one space
def test_text_with_a_damage(format_: Format, at: int, cut: int, put: bytes, times: int) -> None:
    whole = {
        "istio": [ISTIO, ENVOY],
        "zeek": [ZEEK, ZEEK.replace("10.55.100.100", "2001:db8::1").replace("1131", "-")],
        "vpcflow": [VPCFLOW, VPCFLOW_ANSWER],
    }[format_]
    head = ZEEK_HEADER if format_ == "zeek" else ""
    line = whole[0].encode()
    damaged = line[:at] + put + line[at + cut :] + b"\n"
    check_equal(format_, head.encode() + ("\n".join(whole * 20) + "\n").encode() + damaged * times)


@settings(max_examples=60, deadline=None)
@given(
    at=st.integers(0, 620),
    cut=st.integers(0, 9),
    put=st.binary(max_size=5)
    | st.sampled_from(
        [
            b"\r",
            b"\n\n",
            b"\\u00e9",
            b"\\ud800",
            b'"method":"PUT",',
            b"null",
            b'"',
            b'":"',
            b"1.5",
            b"1" * 25,
            b",",
            b"{",
            b"\xff",
        ]
    ),
    times=st.integers(1, 40),
    end=st.sampled_from([b"\n", b"\r\n", b" \n", b""]),
)
@example(at=0, cut=0, put=b" ", times=20, end=b"  \n")  # white space around a line is no part of it
@example(at=1, cut=0, put=b'"method":"PUT",', times=20, end=b"\n")  # a key twice
@example(at=2, cut=1, put=b"x", times=20, end=b"\n")  # another key, as long
@example(at=18, cut=2, put=b"", times=40, end=b"\r\n")
def test_json_with_a_damage(at: int, cut: int, put: bytes, times: int, end: bytes) -> None:
    whole = [
        json_line(change, spaced=False) + b"\n"
        for change in ({}, {"bytes_sent": None}, {"path": None, "duration": "7"})
    ]
    damaged = whole[0][:at] + put + whole[0][at + cut : -1] + end
    check_equal("envoy", b"".join(whole * 20) + damaged * times)


@pytest.mark.parametrize(
    "literal", ["007", "0", "-0", "1.0", "1e3", "", "tru", "true", "nul", "NaN", "-5", "9" * 19, "9" * 30]
)
@pytest.mark.parametrize("key", ["response_code", "duration", "retries"])
def test_what_stands_where_others_have_a_number(key: str, literal: str) -> None:
    whole = json_line({}, spaced=False) + b"\n"
    other = whole.replace(f'"{key}":{BASE[key]}'.encode(), f'"{key}":{literal}'.encode())
    assert other != whole
    check_equal("envoy", whole * 20 + other * 20)


def test_most_lines_are_read_by_the_column() -> None:
    lines = [json_line({"bytes_sent": str(i)}, spaced=False) for i in range(100)]
    with mock.patch.object(reading, "record_id", side_effect=AssertionError("read line by line")):
        assert read("istio", b"\n".join(lines), used=True).batch.num_rows == 100
        assert read("istio", "\n".join([ISTIO] * 100).encode(), used=True).batch.num_rows == 100
        assert read("zeek", (ZEEK_HEADER + (ZEEK + "\n") * 100).encode(), used=True).batch.num_rows == 100
        assert read("vpcflow", "\n".join([VPCFLOW, VPCFLOW_ANSWER] * 50).encode(), used=True).batch.num_rows == 100


def test_values_that_only_some_lines_have_leave_them_in_one_shape_and_in_order() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"path": None, "request_id": None},
        {"path": None, "x_forwarded_for": "10.0.0.1", "retries": "often"},
        {"bytes_sent": None, "requested_server_name": None, "is_retry": None, "response_code": "503"},
    ]
    data = b"\n".join(json_line(changes[i % 4] | {"duration": i}, spaced=False) for i in range(400))
    [shape] = Lines(data, 10_000).shapes()
    assert shape.lines.tolist() == list(range(400))
    with mock.patch.object(reading, "record_id", side_effect=AssertionError("read line by line")):
        found = read("istio", data, used=True).batch
    assert found.column("duration_ns").to_pylist() == [i * 1_000_000 for i in range(400)]
    check_equal("istio", data)


@pytest.mark.parametrize("key", [b'"a"', b'"a":1,"a"'])
def test_a_key_that_comes_twice_is_left_to_the_parser(key: bytes) -> None:
    data = b'{"start_time":"2020-11-25T21:26:18Z",' + key + b":2}\n"
    assert dict(check_equal("envoy", data * 40).batch.to_pylist()[0]["attributes"]) == {"a": "2"}


def test_a_log_that_was_appended_to_another_has_its_own_header() -> None:
    other = ZEEK_HEADER.replace("\tuid\t", "\tid.vlan\t")
    data = (ZEEK_HEADER + (ZEEK + "\n") * 30 + other + (ZEEK + "\n") * 30 + "#close\tx\n" * 3).encode()
    decoded = check_equal("zeek", data)
    assert [("uid" in dict(row["attributes"])) for row in decoded.batch.to_pylist()].count(True) == 30


def test_many_header_lines_do_not_take_the_square_of_the_time() -> None:
    check_equal("zeek", (ZEEK_HEADER + ("#open\tx\n" + ZEEK + "\n") * 150).encode())


@pytest.mark.parametrize("data", [b"", b"\n", b"\n\n", b"{", b'""\n""', b'"' * 100 + b"\n"])
def test_the_smallest_blocks(data: bytes) -> None:
    assert Lines(data, 100).shapes() == []
    for format_ in ("envoy", "zeek", "vpcflow"):
        check_equal(format_, data)

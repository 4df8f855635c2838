"""Lines of every witness: what each becomes, and what is refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.schema import arrow_schema
from collector.witnesses.envoy import Origin
from collector.witnesses.reading import FORMATS, UNKNOWN_SERVICE, Decoded, Format, make_reader
from collector.witnesses.recognise import recognise

SEEN = 1_800_000_000_000_000_000

ISTIO = (
    '[2020-11-25T21:26:18.409Z] "GET /status/418 HTTP/1.1" 418 - via_upstream - "-" 0 135 3 1 "-" "curl/7.73.0-DEV" '
    '"84961386-6d84-929d-98bd-c5aee93b5c88" "httpbin:8000" "127.0.0.1:80" inbound|8000|| 127.0.0.1:41854 '
    "10.44.1.27:80 10.44.1.23:37652 outbound_.8000_._.httpbin.foo.svc.cluster.local default"
)
ENVOY = (
    '[2016-04-15T20:17:00.310Z] "POST /api/v1/locations HTTP/2" 204 - 154 0 226 100 "10.0.35.28" "nsq2http" '
    '"cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2" "locations" "tcp://10.0.2.1:80"'
)
GATEWAY = json.dumps(
    {
        "start_time": "2024-05-01T10:00:00.001Z", "method": "GET", "x-envoy-origin-path": "/get", "response_code": "200",
        "x-request-id": "a2b1", ":authority": "www.example.com",
    }
)  # fmt: skip
LINKERD = (
    "10.42.0.63:51160 traffic.booksapp.serviceaccount.identity.linkerd.cluster.local - "
    '[2022-08-23T20:28:20.071809491Z] "GET http://webapp:7000/books?q=1 HTTP/2.0" 200'
)
LINKERD_PLAIN = '10.42.0.1:43682 - - [2022-08-23T20:28:23.049685223Z] "GET /ping HTTP/1.1" 200'
LINKERD_JSON = (
    '{"client.addr":"10.42.0.1:56300","client.id":"-","host":"10.42.0.69:7000","method":"GET","processing_ns":"35848",'
    '"request_bytes":"","response_bytes":"4","status":200,"timestamp":"2022-08-23T20:33:49.254262428Z",'
    '"total_ns":"1416066","trace_id":"","uri":"/ping","user_agent":"kube-probe/1.24","version":"HTTP/1.1"}'
)
ZTUNNEL = (
    "2025-04-01T14:01:02.476412Z\tinfo\taccess\tconnection complete\tsrc.addr=10.244.3.9:52462 "
    'src.workload="waypoint-1" src.namespace="default" src.identity="spiffe://cluster.local/ns/default/sa/waypoint" '
    'dst.addr=10.244.3.8:15008 dst.hbone_addr=10.244.3.8:8080 dst.service="httpbin.default.svc.cluster.local" '
    'dst.workload="httpbin-1" dst.namespace="default" dst.identity="spiffe://cluster.local/ns/default/sa/httpbin" '
    'direction="inbound" bytes_sent=564 bytes_recv=156 duration="5013ms"'
)
ZTUNNEL_PLAIN = (
    "2025-04-01T14:01:02.476412Z\terror\taccess\tconnection complete\tsrc.addr=10.244.3.9:52462 "
    'dst.addr=10.244.3.8:8080 direction="inbound" bytes_sent=0 bytes_recv=0 duration="1ms" '
    'error="connection closed due to policy rejection: \\"deny\\""'
)
ZTUNNEL_JSON = json.dumps(
    {
        "level": "info", "time": "2025-04-01T14:01:02.476412Z", "scope": "access", "message": "connection complete",
        "src.addr": "10.244.3.9:52462", "src.identity": "spiffe://cluster.local/ns/default/sa/sleep",
        "dst.addr": "192.0.2.1:443", "direction": "outbound", "bytes_sent": 5, "bytes_recv": 7, "duration": "2ms",
    }
)  # fmt: skip
HUBBLE = json.dumps(
    {
        "flow": {
            "time": "2026-09-20T14:56:45.779111730Z", "verdict": "DROPPED", "drop_reason": 133,
            "IP": {"source": "10.0.1.116", "destination": "10.0.1.117", "ipVersion": "IPv4"},
            "l4": {"TCP": {"source_port": 38160, "destination_port": 8080, "flags": {"SYN": True}}},
            "source": {"identity": 60176, "namespace": "agents", "pod_name": "probe"},
            "destination": {"identity": 1, "namespace": "prod", "pod_name": "target-1", "workloads": [{"name": "target"}]},
            "Type": "L3_L4", "drop_reason_desc": "POLICY_DENIED",
            "trace_context": {"parent": {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}},
        },
        "node_name": "n1",
    }
)  # fmt: skip
ZEEK_HEADER = (
    "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n#open\t2018-01-31-18-12-06\n"
    "#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tservice\tduration\torig_bytes\tresp_bytes\t"
    "conn_state\tmissed_bytes\torig_pkts\torig_ip_bytes\tresp_pkts\tresp_ip_bytes\ttunnel_parents\n"
    "#types\ttime\tstring\taddr\tport\taddr\tport\tenum\tstring\tinterval\tcount\tcount\tstring\tcount\tcount\tcount\t"
    "count\tcount\tset[string]\n"
)
ZEEK = (
    "1517422326.539915\tCxHo3m4N8uGxrMlcl2\t10.55.100.100\t61843\t205.204.101.182\t80\ttcp\thttp\t108.985496\t719\t336\tSF\t20"
    "\t10\t1131\t4\t508\t-"
)
ZEEK_JSON = (
    '{"ts":1517422326.539915,"uid":"CxHo3m4N8uGxrMlcl2","id.orig_h":"10.55.100.100","id.orig_p":61843,'
    '"id.resp_h":"205.204.101.182","id.resp_p":80,"proto":"tcp","service":"http","duration":108.985496,"orig_bytes":719,'
    '"resp_bytes":336,"conn_state":"SF","orig_pkts":10,"orig_ip_bytes":1131,"resp_pkts":4,"resp_ip_bytes":508}'
)
VPCFLOW = "2 123456789010 eni-1235b8ca 172.31.16.139 172.31.16.21 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK"
VPCFLOW_ANSWER = (
    "2 123456789010 eni-1235b8ca 172.31.16.21 172.31.16.139 22 40641 6 18 4000 1418530010 1418530070 REJECT OK"
)
CONNTRACK = (
    "tcp      6 431999 ESTABLISHED src=10.9.0.1 dst=10.9.0.2 sport=58548 dport=8080 packets=5 bytes=400 src=127.0.0.1 "
    "dst=10.9.0.1 sport=15001 dport=58548 packets=4 bytes=300 [ASSURED] mark=0 use=1"
)
CONNTRACK_EVENT = (
    "[1517422326.539915\t]\t    [NEW] ipv4     2 tcp      6 120 SYN_SENT src=10.0.0.1 dst=10.0.0.2 sport=45678 dport=443 "
    "[UNREPLIED] src=10.0.0.2 dst=10.0.0.1 sport=443 dport=45678"
)
CONNTRACK_AGED = (
    "ipv4     2 udp      17 29 src=10.0.0.1 dst=10.0.0.53 sport=40000 dport=53 src=10.0.0.53 dst=10.0.0.1 sport=53 "
    "dport=40000 mark=0 zone=0 delta-time=7 use=2"
)

SAMPLES: list[tuple[Format, str, dict[str, Any]]] = [
    ("istio", ISTIO, {"service_name": "httpbin", "direction": "inbound", "format": "istio", "duration_ns": 3_000_000}),
    ("envoy", ENVOY, {"service_name": UNKNOWN_SERVICE, "format": "envoy", "authority": "locations", "bytes_received": 154}),
    ("envoy-gateway", GATEWAY, {"format": "envoy-gateway", "path": "/get", "request_id": "a2b1", "response_code": 200}),
    (
        "linkerd",
        LINKERD,
        {
            "direction": "inbound", "format": "linkerd", "method": "GET", "path": "/books?q=1", "authority": "webapp:7000",
            "downstream_remote_address": "10.42.0.63:51160", "response_code": 200,
            "downstream_peer": "traffic.booksapp.serviceaccount.identity.linkerd.cluster.local",
            "start_time_unix_nano": 1661286500071809491,
        },
    ),
    ("linkerd", LINKERD_PLAIN, {"downstream_peer": None, "path": "/ping", "authority": None}),
    ("linkerd", LINKERD_JSON, {"downstream_peer": None, "duration_ns": 1416066, "bytes_sent": 4, "bytes_received": None}),
    (
        "ztunnel",
        ZTUNNEL,
        {
            "format": "ztunnel", "protocol": "tcp", "source_address": "10.244.3.9", "source_port": 52462,
            "destination_address": "10.244.3.8", "destination_port": 8080, "bytes_out": 156, "bytes_in": 564,
            "mesh_tls": True, "source_identity": "spiffe://cluster.local/ns/default/sa/waypoint", "state": "complete",
            "start_time_unix_nano": 1743516062476412000 - 5_013_000_000, "duration_ns": 5_013_000_000,
            "destination_name": "httpbin.default.svc.cluster.local",
        },
    ),
    ("ztunnel", ZTUNNEL_PLAIN, {"mesh_tls": False, "state": "error", "source_identity": None}),
    ("ztunnel", ZTUNNEL_JSON, {"mesh_tls": False, "state": "complete", "bytes_out": 7, "bytes_in": 5}),
    (
        "hubble",
        HUBBLE,
        {
            "state": "DROPPED", "protocol": "tcp", "source_port": 38160, "destination_port": 8080, "node": "n1",
            "source_workload": "probe", "destination_workload": "target", "destination_namespace": "prod",
            "mesh_tls": None, "start_time_unix_nano": 1789916205779111730,
        },
    ),
    (
        "zeek",
        ZEEK_JSON,
        {
            "start_time_unix_nano": 1517422326539915000, "duration_ns": 108985496000, "bytes_out": 1131, "bytes_in": 508,
            "packets_out": 10, "source_address": "10.55.100.100", "destination_port": 80, "state": "SF",
        },
    ),
    (
        "zeek",
        ZEEK_HEADER + ZEEK,
        {
            "start_time_unix_nano": 1517422326539915000, "duration_ns": 108985496000, "bytes_out": 1131, "bytes_in": 508,
            "packets_out": 10, "source_address": "10.55.100.100", "destination_port": 80, "state": "SF",
        },
    ),
    (
        "vpcflow",
        VPCFLOW,
        {
            "source_port": 20641, "destination_port": 22, "bytes_out": 4249, "bytes_in": None, "packets_out": 20,
            "start_time_unix_nano": 1418530010 * 10**9, "duration_ns": 60 * 10**9, "state": "ACCEPT", "protocol": "tcp",
        },
    ),
    (
        "vpcflow",
        VPCFLOW_ANSWER,
        {"source_address": "172.31.16.139", "source_port": 40641, "destination_port": 22, "bytes_in": 4000, "bytes_out": None},
    ),
    (
        "vpcflow",
        "srcaddr dstaddr start tcp-flags srcport dstport protocol bytes\n10.0.0.1 10.0.0.2 1418530010 18 50000 40000 6 9",
        {"source_address": "10.0.0.2", "destination_port": 50000, "bytes_in": 9, "duration_ns": None},
    ),
    (  # a load balancer or a NAT gateway opens connections from any port above the well-known ones
        "vpcflow",
        "2 123456789010 eni-1 10.0.0.5 203.0.113.4 443 20641 6 18 3249 1790000000 1790000060 ACCEPT OK",
        {"source_address": "203.0.113.4", "source_port": 20641, "destination_port": 443, "bytes_in": 3249, "bytes_out": None},
    ),
    (
        "conntrack",
        CONNTRACK,
        {
            "protocol": "tcp", "state": "ESTABLISHED", "bytes_out": 400, "bytes_in": 300, "destination_port": 8080,
            "start_time_unix_nano": SEEN,
        },
    ),
    ("conntrack", CONNTRACK_EVENT, {"start_time_unix_nano": 1517422326539915000, "state": "SYN_SENT"}),
    ("conntrack", CONNTRACK_AGED, {"start_time_unix_nano": SEEN - 7 * 10**9, "protocol": "udp", "state": None}),
]  # fmt: skip


def read(format_: Format, data: bytes, *, service: str = UNKNOWN_SERVICE) -> Decoded:
    reader = make_reader(format_, Origin("/log", service), seen_unix_nano=SEEN)
    return reader.read(data, offset=0, header=None, received_unix_nano=99)


def only_row(format_: Format, text: str) -> dict[str, Any]:
    decoded = read(format_, text.encode())
    assert not decoded.refused
    [row] = decoded.batch.to_pylist()
    return dict(row)


@pytest.mark.parametrize(
    ("format_", "text", "expected"), SAMPLES, ids=lambda v: v if isinstance(v, str) and len(v) < 15 else ""
)
def test_a_line_becomes_its_row(format_: Format, text: str, expected: dict[str, Any]) -> None:
    row = only_row(format_, text)

    assert {key: row[key] for key in expected} == expected
    assert row["source"] == "/log"
    assert row["received_unix_nano"] == 99


@pytest.mark.parametrize(
    ("format_", "text", "expected"), SAMPLES, ids=lambda v: v if isinstance(v, str) and len(v) < 15 else ""
)
def test_a_format_is_recognised_by_its_first_line(format_: Format, text: str, expected: object) -> None:
    assert recognise(text.encode() + b"\n") == format_
    assert recognise(b"\xef\xbb\xbf" + text.encode() + b"\r\n") == format_


@pytest.mark.parametrize("text", ["", "hello", "{}", '{"a": 1}', "[1,2]", "x y z", "\0\0", '{"resourceSpans": []}'])
def test_what_is_no_witnesses_file_is_not_recognised(text: str) -> None:
    assert recognise(text.encode()) is None


def test_a_redirected_connection_shows_where_its_answer_comes_from() -> None:
    attributes = dict(only_row("conntrack", CONNTRACK)["attributes"])

    assert attributes["reply.src"] == '"127.0.0.1"'
    assert attributes["reply.sport"] == '"15001"'
    assert attributes["time"] == '"when it was seen"'


def test_a_reply_of_hubble_is_turned_round() -> None:
    flow = json.loads(HUBBLE)
    flow["flow"]["is_reply"] = True
    row = only_row("hubble", json.dumps(flow))

    assert (row["source_address"], row["source_port"], row["source_workload"]) == ("10.0.1.117", 8080, "target")
    assert dict(row["attributes"])["is_reply"] == "true"
    assert str(row["trace_id"]) == "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("ztunnel", "2025-04-01T14:01:02.476412Z\tinfo\txds::client\treceived response\tsize=1"),
        (
            "ztunnel",
            "2025-04-01T14:01:02.476412Z\tdebug\taccess\tconnection opened\tsrc.addr=10.0.0.1:1 dst.addr=10.0.0.2:2",
        ),
        ("hubble", '{"lost_events":{"source":"HUBBLE_RING_BUFFER","num_events_lost":"3"},"node_name":"n1"}'),
        ("vpcflow", "2 123456789010 eni-1 - - - - - - - 1431280876 1431280934 - NODATA"),
        ("conntrack", "conntrack v1.4.6 (conntrack-tools): 2 flow entries have been shown."),
        ("zeek", "#close\t2018-02-01-00-00-00"),
        ("envoy", "   "),
    ],
)
def test_a_line_about_something_else_is_no_row_and_no_error(format_: Format, text: str) -> None:
    decoded = read(format_, text.encode())

    assert (decoded.batch.num_rows, decoded.refused) == (0, [])


@pytest.mark.parametrize(
    ("format_", "text", "reason"),
    [
        ("envoy", "garbage", "neither JSON nor a default text format"),
        ("envoy", '{"start_time": "9999-12-31T00:00:00Z"}', "RFC 3339 time"),
        ("envoy", '{"start_time": NaN}', "not JSON"),
        ("envoy", "[" * 100_000, "neither JSON nor"),
        ("envoy", '{"a":' * 40_000, "not JSON"),
        ("envoy", "x" * 1_000_000, "line too long"),
        ("linkerd", "garbage", "apache format"),
        ("linkerd", "{}", "no timestamp"),
        ("ztunnel", "garbage", "tabs between"),
        ("ztunnel", ZTUNNEL.replace("10.244.3.9:52462", "nowhere"), "no src.addr"),
        ("hubble", '{"flow": {}}', "no time"),
        ("hubble", '{"flow": {"time": "2026-09-20T14:56:45Z"}}', "no IP.source"),
        ("zeek", ZEEK, "no #fields line"),
        ("zeek", '{"ts": 1e400}', "ts is no time"),
        ("zeek", ZEEK_JSON.replace("1517422326.539915", "15174223260000000"), "ts is no time"),
        ("zeek", "#path\tdns\n#fields\tts\n1\n", "says another #path"),
        ("zeek", "#fields\tts\tuid\n", "a header without id.orig_h"),
        ("vpcflow", "2 x", "14 fields expected"),
        ("vpcflow", VPCFLOW.replace("1418530010", "99999999999"), "start is no time"),
        ("vpcflow", "2 123456789010 eni-1 - - - - - - - 1431280876 1431280934 - SKIPDATA", "SKIPDATA"),
        ("conntrack", "garbage", "not a line of conntrack"),
        ("conntrack", "tcp 6 1 ESTABLISHED src=x dst=y", "no src="),
    ],
)
def test_a_bad_line_is_refused_with_its_reason_and_number(format_: Format, text: str, reason: str) -> None:
    decoded = read(format_, f"\n{text}".encode())

    assert reason in decoded.refused[0].reason
    assert decoded.refused[0].line >= 1


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=15, deadline=None)
@given(data=st.binary(max_size=2000) | st.text(max_size=500).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_rows_or_reasons(format_: Format, data: bytes) -> None:
    decoded = read(format_, data)

    assert decoded.batch.schema == arrow_schema(decoded.table)
    assert decoded.batch.num_rows + len(decoded.refused) <= decoded.lines


DAMAGED = [(format_, text.encode()) for format_, text, _ in SAMPLES]


@settings(max_examples=100, deadline=None)
@given(sample=st.sampled_from(DAMAGED), at=st.integers(0, 400), cut=st.integers(0, 30), put=st.binary(max_size=12))
def test_a_damaged_line_gives_a_row_or_a_reason(sample: tuple[Format, bytes], at: int, cut: int, put: bytes) -> None:
    format_, line = sample
    decoded = read(format_, line[:at] + put + line[at + cut :])

    decoded.batch.validate(full=True)
    assert decoded.batch.num_rows + len(decoded.refused) <= decoded.lines


def test_what_is_read_in_pieces_is_read_the_same() -> None:
    data = (ZEEK_HEADER + ZEEK + "\n" + ZEEK.replace("61843", "61844") + "\n").encode()
    whole = read("zeek", data)
    reader = make_reader("zeek", Origin("/log", UNKNOWN_SERVICE))
    middle = data.index(b"1517") + len(ZEEK) + 1
    rest = reader.read(data[middle:], offset=middle, header=reader.begin(data[:middle]), received_unix_nano=99)

    assert rest.batch.to_pylist() == whole.batch.to_pylist()[1:]
    assert rest.header == whole.header

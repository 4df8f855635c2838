"""Lines of every witness's file, no two alike in what differs on a real node: ids, times, addresses, ports, sizes."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from collector.witnesses.reading import Format

START_S: Final = 1_780_000_000

ZEEK_HEADER: Final = (
    "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n"
    "#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tservice\tduration\torig_bytes\tresp_bytes\t"
    "conn_state\tmissed_bytes\torig_pkts\torig_ip_bytes\tresp_pkts\tresp_ip_bytes\ttunnel_parents\n"
)


class Draw:
    """What one line says, drawn at random; the line of number `i` is `i` ms after the first."""

    def __init__(self, random_: random.Random, number: int) -> None:
        self.seconds = START_S + number / 1000
        moment = datetime.fromtimestamp(self.seconds, UTC).isoformat(timespec="milliseconds")
        self.time = moment.removesuffix("+00:00") + "Z"
        digits = f"{random_.getrandbits(128):032x}"
        self.request_id = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
        self.uid = digits[:18]
        self.service = f"service-{random_.randrange(40)}"
        self.caller = f"10.244.{random_.randrange(8)}.{random_.randrange(250)}"
        self.callee = f"10.244.{random_.randrange(8)}.{random_.randrange(250)}"
        self.port = random_.randrange(32768, 61000)
        self.path = f"/api/v1/items/{random_.randrange(100_000)}?page={random_.randrange(9)}"
        self.status = random_.choice((200, 200, 200, 200, 201, 404, 503))
        self.sent, self.received = random_.randrange(100_000), random_.randrange(2_000)
        self.milliseconds = random_.randrange(900)
        self.chances = random_.getrandbits(32)

    def either(self, number: int, value: str) -> str:
        """In one line of two this text in JSON, in the other null; lines with several numbers have all combinations."""
        return f'"{value}"' if self.chances >> number & 1 else "null"


def _istio_json(d: Draw) -> str:
    return (
        f'{{"start_time":"{d.time}","method":"GET","path":"{d.path}","protocol":"HTTP/1.1","response_code":{d.status},'
        f'"response_flags":"-","response_code_details":"via_upstream","connection_termination_details":null,'
        f'"upstream_transport_failure_reason":null,"bytes_received":{d.received},"bytes_sent":{d.sent},'
        f'"duration":{d.milliseconds},"upstream_service_time":"{d.milliseconds}","x_forwarded_for":null,'
        f'"user_agent":"python-httpx/0.28","request_id":"{d.request_id}","authority":"{d.service}:8000",'
        f'"upstream_host":"{d.callee}:8080","upstream_cluster":"inbound|8000||","upstream_local_address":"127.0.0.6:{d.port}",'
        f'"downstream_local_address":"{d.callee}:8000","downstream_remote_address":"{d.caller}:{d.port}",'
        f'"requested_server_name":"outbound_.8000_._.{d.service}.shop.svc.cluster.local","route_name":"default"}}'
    )


def _istio_json_with_nulls(d: Draw) -> str:
    """Five values that are not in every line, as where requests come in and go out, with and without mTLS, and some fail."""
    is_bad = d.chances % 20 == 0
    reason = '"delayed connect error: 111"' if is_bad else "null"
    return (
        f'{{"start_time":"{d.time}","method":"GET","path":"{d.path}","protocol":"HTTP/1.1","response_code":{d.status},'
        f'"response_flags":"{"UF" if is_bad else "-"}","response_code_details":"via_upstream","connection_termination_details":null,'
        f'"upstream_transport_failure_reason":{reason},"bytes_received":{d.received},"bytes_sent":{d.sent},'
        f'"duration":{d.milliseconds},"upstream_service_time":{d.either(8, str(d.milliseconds))},'
        f'"x_forwarded_for":{d.either(9, d.caller)},"user_agent":"python-httpx/0.28","request_id":"{d.request_id}",'
        f'"authority":"{d.service}:8000","upstream_host":"{d.callee}:8080","upstream_cluster":"inbound|8000||",'
        f'"upstream_local_address":{d.either(10, f"127.0.0.6:{d.port}")},"downstream_local_address":"{d.callee}:8000",'
        f'"downstream_remote_address":"{d.caller}:{d.port}",'
        f'"requested_server_name":{d.either(11, f"outbound_.8000_._.{d.service}.shop.svc.cluster.local")},"route_name":"default"}}'
    )


def _envoy_json(d: Draw) -> str:
    return (
        f'{{"authority":"{d.service}:8000","bytes_received":{d.received},"bytes_sent":{d.sent},"duration":{d.milliseconds},'
        f'"downstream_local_address":"{d.callee}:8000","downstream_remote_address":"{d.caller}:{d.port}","method":"GET",'
        f'"path":"{d.path}","protocol":"HTTP/1.1","request_id":"{d.request_id}","response_code":{d.status},'
        f'"response_flags":"-","route_name":"default","start_time":"{d.time}","upstream_cluster":"{d.service}",'
        f'"upstream_host":"{d.callee}:8080","upstream_service_time":"{d.milliseconds}","user_agent":"python-httpx/0.28",'
        f'"x_forwarded_for":null}}'
    )


def _istio_text(d: Draw) -> str:
    return (
        f'[{d.time}] "GET {d.path} HTTP/1.1" {d.status} - via_upstream - "-" {d.received} {d.sent} {d.milliseconds} '
        f'{d.milliseconds} "-" "python-httpx/0.28" "{d.request_id}" "{d.service}:8000" "{d.callee}:8080" inbound|8000|| '
        f"127.0.0.6:{d.port} {d.callee}:8000 {d.caller}:{d.port} outbound_.8000_._.{d.service}.shop.svc.cluster.local default"
    )


def _linkerd_apache(d: Draw) -> str:
    peer = "web.shop.serviceaccount.identity.linkerd.cluster.local"
    return f'{d.caller}:{d.port} {peer} - [{d.time}] "GET http://{d.service}:7000{d.path} HTTP/2.0" {d.status}'


def _linkerd_json(d: Draw) -> str:
    return (
        f'{{"client.addr":"{d.caller}:{d.port}","client.id":"web.shop.serviceaccount.identity.linkerd.cluster.local",'
        f'"host":"{d.service}:7000","method":"GET","processing_ns":"35848","request_bytes":"{d.received}",'
        f'"response_bytes":"{d.sent}","status":{d.status},"timestamp":"{d.time}","total_ns":"{d.milliseconds}000000",'
        f'"trace_id":"","uri":"{d.path}","user_agent":"python-httpx/0.28","version":"HTTP/2.0"}}'
    )


def _ztunnel(d: Draw) -> str:
    return (
        f"{d.time}\tinfo\taccess\tconnection complete\tsrc.addr={d.caller}:{d.port} "
        f'src.workload="web-1" src.namespace="shop" src.identity="spiffe://cluster.local/ns/shop/sa/web" '
        f'dst.addr={d.callee}:15008 dst.hbone_addr={d.callee}:8080 dst.service="{d.service}.shop.svc.cluster.local" '
        f'dst.workload="{d.service}-1" dst.namespace="shop" dst.identity="spiffe://cluster.local/ns/shop/sa/{d.service}" '
        f'direction="inbound" bytes_sent={d.sent} bytes_recv={d.received} duration="{d.milliseconds}ms"'
    )


def _hubble(d: Draw) -> str:
    return (
        f'{{"flow":{{"time":"{d.time}","verdict":"FORWARDED","IP":{{"source":"{d.caller}","destination":"{d.callee}",'
        f'"ipVersion":"IPv4"}},"l4":{{"TCP":{{"source_port":{d.port},"destination_port":8080,"flags":{{"SYN":true}}}}}},'
        f'"source":{{"identity":60176,"namespace":"shop","pod_name":"web-1"}},"destination":{{"identity":601,'
        f'"namespace":"shop","pod_name":"{d.service}-1","workloads":[{{"name":"{d.service}"}}]}},"Type":"L3_L4",'
        f'"is_reply":false}},"node_name":"n1"}}'
    )


def _zeek_tsv(d: Draw) -> str:
    return (
        f"{d.seconds:.6f}\tC{d.uid}\t{d.caller}\t{d.port}\t{d.callee}\t80\ttcp\thttp\t{d.milliseconds / 1000:.6f}\t{d.received}"
        f"\t{d.sent}\tSF\t0\t10\t{d.received + 400}\t9\t{d.sent + 400}\t-"
    )


def _zeek_json(d: Draw) -> str:
    return (
        f'{{"ts":{d.seconds:.6f},"uid":"C{d.uid}","id.orig_h":"{d.caller}","id.orig_p":{d.port},"id.resp_h":"{d.callee}",'
        f'"id.resp_p":80,"proto":"tcp","service":"http","duration":{d.milliseconds / 1000:.6f},"orig_bytes":{d.received},'
        f'"resp_bytes":{d.sent},"conn_state":"SF","orig_pkts":10,"orig_ip_bytes":{d.received + 400},"resp_pkts":9,'
        f'"resp_ip_bytes":{d.sent + 400}}}'
    )


def _vpcflow(d: Draw) -> str:
    begun = int(d.seconds)
    return (
        f"2 123456789010 eni-1235b8ca {d.caller} {d.callee} {d.port} 443 6 20 {d.sent} {begun} {begun + 60} ACCEPT OK"
    )


def _conntrack(d: Draw) -> str:
    return (
        f"tcp      6 431999 ESTABLISHED src={d.caller} dst={d.callee} sport={d.port} dport=8080 packets=5 bytes={d.sent} "
        f"src=127.0.0.1 dst={d.caller} sport=15001 dport={d.port} packets=4 bytes={d.received} [ASSURED] mark=0 use=1"
    )


FORMS: Final[dict[str, tuple[Format, Callable[[Draw], str]]]] = {
    "istio_json": ("istio", _istio_json),
    "istio_json_with_nulls": ("istio", _istio_json_with_nulls),
    "envoy_json": ("envoy", _envoy_json),
    "istio_text": ("istio", _istio_text),
    "linkerd_apache": ("linkerd", _linkerd_apache),
    "linkerd_json": ("linkerd", _linkerd_json),
    "ztunnel": ("ztunnel", _ztunnel),
    "hubble": ("hubble", _hubble),
    "zeek_tsv": ("zeek", _zeek_tsv),
    "zeek_json": ("zeek", _zeek_json),
    "vpcflow": ("vpcflow", _vpcflow),
    "conntrack": ("conntrack", _conntrack),
}
"""What is measured, by name: its format, and a line of it."""


def file_of(form: str, lines: int, seed: int = 0) -> bytes:
    """A whole file."""
    random_ = random.Random(seed)
    _, line = FORMS[form]
    head = ZEEK_HEADER if form == "zeek_tsv" else ""
    return (head + "".join(line(Draw(random_, number)) + "\n" for number in range(lines))).encode()

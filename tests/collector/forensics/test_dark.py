"""Dark traffic: connections that went past the proxies or that no call explains, and all that is meant to be so."""

from typing import Any

import pytest

from collector.forensics.findings import Finding
from collector.forensics.shadow import ShadowParams, examine_shadow
from collector.forensics.tables import Window
from tests.collector.forensics.factories import (
    T0,
    Row,
    S,
    make_flow,
    make_socket,
    make_span,
    make_workload,
    next_id,
    store,
)

PODS = [
    make_workload(),
    make_workload(address="10.0.0.2", service_name="pay"),
    make_workload(address="10.0.0.3", service_name="stock"),
]


def answered(caller: str = "web", callee: str = "stock") -> list[Row]:
    """A call, so that both services are known to send spans."""
    trace, span = next_id(), next_id()
    return [
        make_span(trace_id=trace, span_id=span, kind="CLIENT", service_name=caller, server_address=callee),
        make_span(trace_id=trace, parent_span_id=span, service_name=callee),
    ]


def found(spans: list[Row] | None = None, params: ShadowParams | None = None, **tables: Any) -> list[Finding]:
    query = store(spans or [], **({"workloads": PODS} | tables))
    return examine_shadow(query, Window(T0 - 60 * S, T0 + 600 * S), params).findings


def test_a_bypassing_socket_between_two_workloads_is_high_and_says_what_closes_it() -> None:
    annotated = make_workload(attributes={"traffic.sidecar.istio.io/excludeOutboundPorts": "8080"})
    [finding] = found(sockets=[make_socket(capture="bypassed", uid=1000)], workloads=[annotated, *PODS[1:]])
    assert (finding.caller, finding.callee, finding.way) == ("web", "pay", "excluded_port")
    assert (finding.reasons, finding.severity, finding.count) == (("mesh_bypass", "dark_traffic"), "high", 1)
    assert "excludeOutboundPorts" in finding.remedy
    assert finding.explanation == (
        "web to pay: 1 connection (port 8080, 10.0.0.2) is a socket whose other end the proxy did not have; "
        "the port is excluded from redirection"
    )


def test_a_connection_that_both_ends_saw_is_one() -> None:
    ends = [
        make_socket(capture="bypassed", record_id=71),
        make_socket(
            capture="bypassed",
            record_id=72,
            direction="inbound",
            service_name="pay",
            local_address="10.0.0.2",
            local_port=8080,
            remote_address="10.0.0.1",
            remote_port=40_000,
        ),
    ]
    [finding] = found(sockets=ends)
    assert (finding.caller, finding.callee, finding.count) == ("web", "pay", 1)
    assert set(finding.record_ids) == {"71", "72"}


def test_two_ways_of_one_edge_are_two_findings() -> None:
    sockets = [make_socket(capture="bypassed", uid=1337), make_socket(capture="bypassed", uid=1000, local_port=40_001)]
    findings = found(sockets=sockets)
    assert {f.way for f in findings} == {"proxy_uid", ""}
    assert len({f.finding_id for f in findings}) == 2


@pytest.mark.parametrize(
    "socket",
    [
        {"capture": "captured"},
        {"capture": "not_mesh"},
        {"capture": None},
        {"remote_port": 53, "remote_address": "10.96.0.10"},
        {"remote_port": 4317},
        {"remote_port": 15012},
        {"remote_address": "127.0.0.1"},
        {"remote_address": "8.8.8.8", "remote_port": 443},
        {"service_name": "prometheus-server"},
        {"direction": None, "remote_address": None, "remote_port": None, "state": "LISTEN"},
    ],
    ids=[
        "captured",
        "not mesh",
        "undecided",
        "dns",
        "telemetry",
        "control plane",
        "loopback",
        "egress",
        "scrape",
        "listen",
    ],
)
def test_what_is_meant_to_go_past_the_proxy_is_no_finding(socket: Row) -> None:
    assert found(sockets=[make_socket(**({"capture": "bypassed"} | socket))]) == []


def test_a_scraped_port_is_no_finding() -> None:
    scrape = {"direction": "inbound", "service_name": "pay", "local_port": 9102, "remote_address": "10.0.9.9"}
    socket = make_socket(capture="bypassed", **scrape)
    pay = make_workload(address="10.0.0.2", service_name="pay", attributes={"prometheus.io/port": "9102"})
    assert [f.caller for f in found(sockets=[socket])] == [None]
    assert found(sockets=[socket], workloads=[pay]) == []


def test_a_flow_between_two_workloads_that_no_span_explains() -> None:
    [finding] = found(
        answered("web", "stock") + answered("stock", "pay"), flows=[make_flow(), make_flow(source_port=40_001)]
    )
    assert (finding.reasons, finding.severity, finding.count) == (("dark_traffic",), "medium", 2)
    assert (finding.caller, finding.callee) == ("web", "pay")
    assert "sampled" in finding.completeness
    assert finding.attack_ids == ()


@pytest.mark.parametrize(
    ("spans", "flow"),
    [
        (answered("web", "pay"), {}),
        ([make_span(kind="CLIENT", service_name="web", server_address="10.0.0.2"), *answered("stock", "pay")], {}),
        ([make_span(kind="CLIENT", service_name="web", server_address="pay.shop.svc"), *answered("stock", "pay")], {}),
        (answered("web", "stock"), {}),
        (answered("stock", "pay"), {"state": "REJ"}),
        (answered("stock", "pay"), {"bytes_out": 0, "bytes_in": 0}),
        (answered("stock", "pay"), {"source_port": 8080, "destination_port": 40_000}),
        (answered("stock", "pay"), {"destination_port": 15008}),
        (answered("stock", "pay"), {"source_address": "10.0.9.9"}),
        (answered("stock", "pay"), {"protocol": "icmp"}),
        (answered("stock", "pay"), {"start_time_unix_nano": T0 + 3600 * S}),
    ],
    ids=["called", "dialled by address", "dialled by name", "callee sends no spans", "refused", "empty", "reply", "tunnel",
         "unknown source", "ping", "later"],
)  # fmt: skip
def test_a_flow_that_is_explained_or_proves_nothing_is_no_finding(spans: list[Row], flow: Row) -> None:
    assert found(spans, flows=[make_flow(**flow)]) == []


def test_plaintext_into_a_workload_that_takes_mtls() -> None:
    named = {"source_workload": "web", "destination_workload": "pay", "format": "ztunnel"}
    [finding] = found(flows=[make_flow(mesh_tls=False, **named)])
    assert (finding.way, finding.severity, finding.reasons[0]) == ("plaintext_accepted", "medium", "mesh_bypass")
    outside = make_workload(address="10.0.0.2", service_name="pay", mesh="none")
    assert found(flows=[make_flow(mesh_tls=False, **named)], workloads=[outside]) == []


def test_plaintext_from_an_unknown_address_is_low_and_an_entry_point_takes_it() -> None:
    flow = make_flow(mesh_tls=False, source_address="10.0.9.9")
    [finding] = found(flows=[flow])
    assert (finding.caller, finding.severity) == (None, "low")
    assert "10.0.9.9" in finding.explanation
    assert found(flows=[flow], params=ShadowParams(entry_services=("pay",))) == []


def test_udp_between_workloads_is_told() -> None:
    [finding] = found(flows=[make_flow(protocol="udp", destination_port=9999)])
    assert (finding.way, finding.severity) == ("udp", "low")

"""What sockets and flows prove of a call, and what they do not: the strongest join that there is decides."""

from typing import Any

import polars as pl
import pytest

from collector.forensics.call_list import CallFilter, call_verdicts
from collector.forensics.shadow import examine_shadow
from collector.forensics.tables import Window
from tests.collector.forensics.factories import (
    MINUTE,
    T0,
    Row,
    S,
    make_flow,
    make_proxy_record,
    make_socket,
    make_span,
    make_watch,
    make_workload,
    next_id,
    store,
)

DIALLED = {"server_address": "pay", "server_port": 8080, "network_peer_address": "10.96.0.2", "network_peer_port": 8080}
DIRECT = {"network_peer_address": "10.0.0.1", "network_peer_port": 40_000}
PROXIED = {"network_peer_address": "127.0.0.6", "network_peer_port": 50_000}


def call(at: int = 10 * S, *, client: Row | None = None, server: Row | None = None) -> list[Row]:
    """A call from web to pay without any access log; `server` says what pay's application saw of its peer."""
    trace, span = next_id(), next_id()
    common = {"trace_id": trace, "url_path": "/charge", "start_time_unix_nano": T0 + at}
    return [
        make_span(span_id=span, kind="CLIENT", service_name="web", **common, **(DIALLED | (client or {}))),
        make_span(span_id=next_id(), parent_span_id=span, service_name="pay", **common, **(server or {})),
    ]


def judged(spans: list[Row], **tables: Any) -> list[dict[str, Any]]:
    return call_verdicts(store(spans, **tables), Window()).to_dicts()


def only(spans: list[Row], **tables: Any) -> tuple[str, str, str, str]:
    """(verdict, side, outbound verdict or reason, inbound verdict or reason) of the only call."""
    [row] = judged(spans, **tables)
    return (
        row["verdict"],
        row["side"] or "",
        row["outbound_reason"] or row["outbound_verdict"],
        row["inbound_reason"] or row["inbound_verdict"],
    )


INBOUND = {"direction": "inbound", "service_name": "pay", "source": "witness/pay-1", "local_address": "10.0.0.2"}


def inbound(remote: str, port: int, capture: str | None, **more: Any) -> Row:
    return make_socket(
        **(INBOUND | {"local_port": 8080, "remote_address": remote, "remote_port": port, "capture": capture} | more)
    )


def test_a_socket_that_bypassed_is_proof_whatever_the_spans_say() -> None:
    spans = call(server=DIRECT)
    sockets = [make_socket(capture="bypassed", remote_address="10.96.0.2"), inbound("10.0.0.1", 40_000, "bypassed")]
    assert only(spans, sockets=sockets) == ("bypassed", "both", "missed", "missed")


def test_a_socket_with_the_proxy_at_its_other_end_is_proof_of_passage() -> None:
    assert only(call(server=PROXIED), sockets=[inbound("127.0.0.6", 50_000, "captured")]) == (
        "unknown",  # on the caller's side nobody looked
        "",
        "witness_not_deployed",
        "seen",
    )


def test_a_connection_that_was_opened_long_before_carries_the_call() -> None:
    old = make_socket(
        capture="bypassed",
        remote_address="10.96.0.2",
        first_seen_unix_nano=T0 - 60 * MINUTE,
        last_seen_unix_nano=T0 + 60 * MINUTE,
    )
    assert only(call(server=DIRECT), sockets=[old])[0] == "bypassed"


@pytest.mark.parametrize(
    "socket",
    [
        {"first_seen_unix_nano": T0 + 5 * MINUTE, "last_seen_unix_nano": T0 + 6 * MINUTE},
        {"local_port": 41_000, "remote_address": "10.96.0.9"},
        {"service_name": "other"},
        {"capture": None},
        {"capture": "not_mesh"},
    ],
    ids=["another time", "another destination", "another service", "undecided", "not the mesh's"],
)
def test_another_connection_says_nothing(socket: Row) -> None:
    row = {"capture": "bypassed", "remote_address": "10.96.0.2", **socket}
    assert only(call(server=DIRECT), sockets=[make_socket(**row)])[0] == "unknown"


def test_all_connections_to_where_it_dialled_went_past_the_proxy_so_did_the_call() -> None:
    sockets = [make_socket(capture="bypassed", remote_address="10.96.0.2", local_port=40_000 + n) for n in range(3)]
    assert only(call(), sockets=sockets) == ("bypassed", "client", "missed", "witness_not_deployed")


def test_some_connections_past_the_proxy_do_not_say_which_call_they_carried() -> None:
    sockets = [
        make_socket(capture=capture, remote_address="10.96.0.2", local_port=40_000 + n)
        for n, capture in enumerate(("captured", "bypassed"))
    ]
    assert only(call(), sockets=sockets) == ("unknown", "", "mixed_connections", "witness_not_deployed")


def test_another_replicas_sockets_say_nothing() -> None:
    socket = make_socket(capture="bypassed", remote_address="10.96.0.2", service_instance_id="web-2")
    spans = call(client={"service_instance_id": "web-1"})
    assert only(spans, sockets=[socket])[0] == "unknown"
    assert only(call(client={"service_instance_id": "web-2"}), sockets=[socket])[0] == "bypassed"


def test_loopback_is_not_compared_between_pods() -> None:
    # 127.0.0.6:50000 is web's own proxy's end in web's pod, and pay's in pay's.
    stray = make_socket(local_address="127.0.0.6", local_port=50_000, capture="bypassed", remote_address="10.0.0.9")
    assert only(call(server=PROXIED), sockets=[stray])[0] == "unknown"


def test_the_port_of_the_peer_is_found_in_the_attributes_too() -> None:
    server = {"client_address": "10.0.0.1", "attributes_json": {"client.port": "40000"}}
    assert only(call(server=server), sockets=[inbound("10.0.0.1", 40_000, "bypassed")])[3] == "missed"
    broken = {"client_address": "10.0.0.1", "attributes_json": {"client.port": '"forty thousand"'}}
    assert only(call(server=broken), sockets=[inbound("10.0.0.1", 40_001, "captured")])[3] in {"seen", "unknown"}


def test_a_flow_with_the_meshs_tls_vouches_for_both_sides_and_plaintext_accuses_the_callers() -> None:
    workloads = [make_workload(), make_workload(address="10.0.0.2", service_name="pay")]
    start = T0 + 9 * S
    secure = make_flow(mesh_tls=True, start_time_unix_nano=start, duration_ns=5 * S)
    plain = make_flow(mesh_tls=False, start_time_unix_nano=start, duration_ns=5 * S)
    assert only(call(server=DIRECT), flows=[secure], workloads=workloads) == ("meshed", "", "seen", "seen")
    verdict, side, out, _ = only(call(server=DIRECT), flows=[plain], workloads=workloads)
    assert (verdict, side, out) == ("bypassed", "client", "missed")
    assert only(call(), flows=[plain], workloads=workloads)[0] == "unknown"  # another flow may not have ended yet


def test_an_address_that_two_services_had_names_neither() -> None:
    workloads = [
        make_workload(),
        make_workload(address="10.0.0.2", service_name="pay"),
        make_workload(address="10.0.0.2", service_name="stock"),
    ]
    plain = make_flow(mesh_tls=False)
    assert examine_shadow(store(call(), flows=[plain], workloads=workloads), Window()).findings == []


def proxied(spans: list[Row], **lines: Row) -> list[Row]:
    """Lines of both proxies about a call, each with what `outbound` and `inbound` add."""
    client = spans[0]
    client["provenance_request_id"] = spans[1]["provenance_request_id"] = key = f"request-{client['trace_id']}"
    at = {"request_id": key, "path": "/charge", "start_time_unix_nano": client["start_time_unix_nano"]}
    whose = {"outbound": "web", "inbound": "pay"}
    return [make_proxy_record(**{"direction": d, "service_name": whose[d], **at, **lines[d]}) for d in lines]


NAMED = {"downstream_peer": "spiffe://mesh/ns/shop/sa/web", "requested_server_name": "outbound_.8080_._.pay"}


def test_plaintext_is_held_against_the_caller_where_the_proxy_took_others_with_an_identity() -> None:
    bare, named = call(20 * S), call(10 * S)
    records = proxied(bare, inbound={}) + proxied(named, inbound=NAMED)
    verdicts = {row["start_time_unix_nano"]: row for row in judged(bare + named, proxy_records=records)}
    assert verdicts[T0 + 20 * S]["verdict"] == "bypassed"
    assert (verdicts[T0 + 20 * S]["side"], verdicts[T0 + 20 * S]["way"]) == ("client", "plaintext_accepted")
    assert verdicts[T0 + 10 * S]["verdict"] == "meshed"
    alone = call(20 * S)
    assert judged(alone, proxy_records=proxied(alone, inbound={}))[0]["verdict"] == "unknown"
    assert judged(alone, proxy_records=proxied(alone, outbound={}, inbound={}))[0]["verdict"] == "meshed"


def test_plaintext_from_nobody_is_not_meshed() -> None:
    bare, named = call(20 * S)[1:], call(10 * S)
    bare[0] |= {"parent_span_id": None, "provenance_request_id": "bare"}
    line = {"request_id": "bare", "path": "/charge", "start_time_unix_nano": bare[0]["start_time_unix_nano"]}
    records = [make_proxy_record(direction="inbound", service_name="pay", **line), *proxied(named, inbound=NAMED)]
    verdicts = {row["start_time_unix_nano"]: row["verdict"] for row in judged(bare + named, proxy_records=records)}
    assert verdicts[bare[0]["start_time_unix_nano"]] == "unknown"
    assert verdicts[T0 + 10 * S] == "meshed"


def test_a_call_that_was_passed_through_to_a_pods_own_address() -> None:
    spans = call(client={"network_peer_address": "10.0.0.2"})
    records = proxied(spans, outbound={"upstream_cluster": "PassthroughCluster"}, inbound={})
    workloads = [make_workload(address="10.0.0.2", service_name="pay")]
    [row] = judged(spans, proxy_records=records, workloads=workloads)
    assert (row["verdict"], row["side"], row["way"]) == ("bypassed", "client", "direct_pod_ip")


def test_what_lies_outside_the_mesh_is_passed_through_by_design() -> None:
    spans = call()
    records = proxied(spans, outbound={"upstream_cluster": "PassthroughCluster"})
    [row] = judged(spans, proxy_records=records)
    assert (row["verdict"], row["outbound_verdict"], row["inbound_reason"]) == (
        "unknown",
        "seen",
        "witness_not_deployed",
    )


def test_an_identity_in_a_header_that_the_proxy_did_not_log_is_forged() -> None:
    spans = call(server={"provenance_peer_principal": "spiffe://mesh/ns/shop/sa/admin"})
    records = proxied(spans, outbound={}, inbound=NAMED)
    [finding] = examine_shadow(store(spans, records), Window()).findings
    assert finding.reasons == ("forged_identity",)
    spans[1]["provenance_peer_principal"] = NAMED["downstream_peer"]
    assert examine_shadow(store(spans, records), Window()).findings == []


def test_a_caller_without_a_sidecar_is_told_where_the_callee_has_one() -> None:
    watches = [make_watch(proxy_found=False)]
    spans = call(server=PROXIED)
    [row] = judged(spans, sockets=[inbound("127.0.0.6", 50_000, "captured")], socket_watches=watches)
    assert (row["verdict"], row["side"], row["way"]) == ("bypassed", "client", "no_sidecar")
    assert only(call(), socket_watches=watches)[0] == "unknown"  # no mesh at all


def test_a_callee_without_a_sidecar_is_told_where_the_caller_has_one() -> None:
    spans = call()
    pay = [make_workload(address="10.0.0.2", service_name="pay", mesh="none")]
    [row] = judged(spans, proxy_records=proxied(spans, outbound={}), workloads=pay)
    assert (row["verdict"], row["side"], row["way"]) == ("bypassed", "server", "no_sidecar")
    assert judged(call(), workloads=pay)[0]["verdict"] == "unknown"  # nothing says that the caller is in a mesh


def test_an_identity_at_the_callees_proxy_proves_the_callers() -> None:
    spans = call()
    [row] = judged(spans, proxy_records=proxied(spans, inbound=NAMED))
    assert (row["verdict"], row["outbound_verdict"], row["inbound_verdict"]) == ("meshed", "seen", "seen")


def test_linkerds_opaque_ports_leave_no_lines_and_accuse_nobody() -> None:
    others = [call(n * 5 * S) for n in range(12)]
    records = [line for spans in others for line in proxied(spans, outbound={}, inbound={})]
    lone = call(31 * S, client={"server_port": 5432, "network_peer_port": 5432})
    for span in lone:
        span["provenance_request_id"] = "lone"
    spans = [span for spans in others for span in spans] + lone
    pay = make_workload(address="10.0.0.2", service_name="pay", mesh="linkerd")
    assert [f.reasons for f in examine_shadow(store(spans, records), Window()).findings] == [("mesh_bypass",)]
    assert examine_shadow(store(spans, records, workloads=[pay]), Window()).findings == []


def test_calls_are_chosen_by_trace_service_and_verdict() -> None:
    spans = call(server=DIRECT) + call(20 * S, server=PROXIED)
    sockets = [inbound("10.0.0.1", 40_000, "bypassed"), inbound("127.0.0.6", 50_000, "captured")]
    query = store(spans, sockets=sockets)

    def chosen(**wanted: str) -> pl.Series:
        return call_verdicts(query, Window(), CallFilter(**wanted))["verdict"]

    assert sorted(chosen()) == ["bypassed", "unknown"]
    assert chosen(verdict="bypassed").to_list() == ["bypassed"]
    assert chosen(verdict="unknown", service="web").to_list() == ["unknown"]
    assert chosen(verdict="meshed").to_list() == []
    assert chosen(service="nobody").to_list() == []
    assert chosen(trace_id=f"{spans[2]['trace_id']:032x}").to_list() == ["unknown"]

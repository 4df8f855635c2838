"""How a call went past the mesh: named by what says so, and by nothing else."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.forensics.ways import WAYS, Knowledge, Named, Workload, in_ports, in_ranges, is_opaque, way_of

ISTIO = "traffic.sidecar.istio.io/"


def knowing(service: str = "web", **annotations: str) -> Knowledge:
    """What is known of one service: its annotations, `_` for what a keyword cannot have."""
    named = {key: (value,) for key, value in annotations.items()}
    return Knowledge({service: Workload(annotations=named, meshes=frozenset({"istio"}))}, frozenset({"10.0.0.2"}))


def bypass(**facts: Any) -> dict[str, Any]:
    return {"caller": "web", "callee": "pay", "bypass_outbound": True, "destination_port": 8080} | facts


@pytest.mark.parametrize(
    ("annotation", "value", "facts", "way"),
    [
        (f"{ISTIO}excludeOutboundPorts", "5432, 8080", {}, "excluded_port"),
        (f"{ISTIO}excludeOutboundPorts", "5432", {}, ""),
        (f"{ISTIO}excludeOutboundIPRanges", "10.1.0.0/16", {"destination_address": "10.1.2.3"}, "excluded_ip_range"),
        (f"{ISTIO}excludeOutboundIPRanges", "10.1.0.0/16", {"destination_address": "10.2.2.3"}, ""),
        (f"{ISTIO}excludeOutboundIPRanges", "10.1.0.0/16", {"destination_address": "pay.shop"}, ""),
        (f"{ISTIO}includeOutboundIPRanges", "10.96.0.0/12", {"destination_address": "10.0.0.2"}, "excluded_ip_range"),
        (f"{ISTIO}includeOutboundIPRanges", "*", {"destination_address": "10.0.0.2"}, ""),
        (f"{ISTIO}includeOutboundIPRanges", "10.96.0.0/12", {"destination_address": None}, ""),
        (f"{ISTIO}excludeInboundPorts", "8080", {}, ""),
        ("config.linkerd.io/skip-outbound-ports", "8000-8100", {}, "skip_port"),
        ("config.linkerd.io/skip-outbound-ports", "8000-8079", {}, ""),
    ],
)
def test_an_annotation_of_the_caller_names_the_way_if_it_is_about_this_port_or_address(
    annotation: str, value: str, facts: dict[str, Any], way: str
) -> None:
    named = way_of(bypass(**facts), knowing(**{annotation: value}))
    assert named.way == way
    assert not way or annotation in named.remedy("web", "pay")


def test_an_annotation_of_the_callee_names_what_its_own_proxy_missed() -> None:
    known = knowing("pay", **{f"{ISTIO}excludeInboundPorts": "8080"})
    assert way_of(bypass(bypass_outbound=False, bypass_inbound=True), known).way == "excluded_port"
    assert way_of(bypass(), known).way == ""


def test_the_proxys_own_uid_is_named_whatever_the_pod_says() -> None:
    known = knowing(**{f"{ISTIO}excludeOutboundPorts": "8080"})
    named = way_of(bypass(uid=1337), known)
    assert named.way == "proxy_uid"
    assert "1337" in named.remedy("web", "pay")
    assert way_of(bypass(uid=1000), known).way == "excluded_port"


@pytest.mark.parametrize(
    ("facts", "way"),
    [
        ({"passed_through": True, "destination_address": "10.0.0.2"}, "direct_pod_ip"),
        ({"passed_through": True, "destination_address": "10.96.0.7"}, "passthrough_cluster"),
        ({"plaintext": True}, "plaintext_accepted"),
        ({}, ""),
    ],
)
def test_what_the_proxies_wrote_names_the_way(facts: dict[str, Any], way: str) -> None:
    assert way_of(bypass(**facts), knowing()).way == way


def test_a_pod_without_a_sidecar_and_one_in_the_nodes_network() -> None:
    bare = Knowledge({"web": Workload(unproxied=True)})
    assert way_of(bypass(), bare).way == "no_sidecar"
    assert way_of(bypass(), Knowledge({"web": Workload(host_network=True)})).way == "host_network"
    assert way_of(bypass(bypass_outbound=False, bypass_inbound=True), bare).way == ""


def test_linkerds_defaults_hold_where_no_annotation_says_otherwise() -> None:
    linkerd = Workload(meshes=frozenset({"linkerd"}))
    chosen = Workload({"config.linkerd.io/opaque-ports": ("9000",)}, frozenset({"linkerd"}))
    assert (is_opaque(5432, linkerd), is_opaque(8080, linkerd), is_opaque(None, linkerd)) == (True, False, False)
    assert (is_opaque(5432, chosen), is_opaque(9000, chosen)) == (False, True)
    assert not is_opaque(5432, Workload(meshes=frozenset({"istio"})))
    assert way_of(bypass(destination_port=4567), Knowledge({"web": linkerd})).way == "skip_port"


@given(st.integers(1, 65_535), st.lists(st.text(max_size=12)))
def test_what_is_no_port_and_no_range_is_passed_over(port: int, values: list[str]) -> None:
    assert in_ports(port, [*values, str(port)])
    assert in_ports(port, [*values, f"1-{port}"])
    in_ranges("10.0.0.1", values)
    assert in_ranges("10.0.0.1", [*values, "10.0.0.0/8"])


@pytest.mark.parametrize("way", WAYS)
def test_every_way_fills_its_sentences(way: str) -> None:
    named = Named(way, "web", "some/annotation", 1337)
    for text in (named.how("web", "pay"), named.remedy("web", "pay"), named.how(None, None)):
        assert "{" not in text
    assert named.remedy("web", "pay") or way == "opaque"

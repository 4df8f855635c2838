"""What is suggested allows everything unflagged and nothing flagged, judged by our own reader."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.policy.calls import Call
from collector.policy.documents import parse_documents
from collector.policy.policies import Policies, policies_of
from collector.policy.suggest import suggest

NAMES = ["api.stripe.com", "a.example", "b.c.example", "under_score.example", "x" * 60 + ".example", "a-b.example"]
ADDRESSES = ["203.0.113.7", "198.51.100.9", "2001:db8::9"]


@st.composite
def rows(draw):
    """Rows as `provenance egress` has them; every name resolves to an address of its own."""
    ways = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["checkout", "cart", "10.0.0.5"]),
                st.sampled_from(NAMES + ADDRESSES),
                st.sets(st.sampled_from([80, 443, 5000, 8443]), min_size=1, max_size=3),
                st.booleans(),
            ),
            unique_by=lambda way: way[:2],
            max_size=12,
        )
    )
    namespace = draw(st.sampled_from([None, "shop"]))
    return [
        {
            "source": source,
            "namespace": namespace if source == "cart" else "shop",
            "destination": host,
            "ports": sorted(ports),
            "protocols": ["tcp"],
            "flagged": flagged,
            "addresses": [] if host in ADDRESSES else [f"192.0.2.{NAMES.index(host)}"],
        }
        for source, host, ports, flagged in ways
    ]


def verdicts(row, policies: Policies):
    workload = policies.workload(row["source"], row["namespace"])
    for port in row["ports"]:
        yield policies.judge(Call.of(workload, row["destination"], port, row["addresses"]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["istio", "networkpolicy"])
@settings(max_examples=25)
@given(rows=rows())
def test_the_unflagged_is_allowed_and_the_flagged_is_not(kind, rows):
    suggestion = suggest(kind, rows)
    read = policies_of(parse_documents(suggestion.text, name=f"{kind}.yaml"))
    assert not suggestion.notes
    for row in rows:
        for verdict in verdicts(row, read):
            # Whoever has nothing that may be reached has no policy of Istio's either.
            assert (verdict is not None and verdict.allowed) is not row["flagged"]


@pytest.mark.slow
@settings(max_examples=25)
@given(rows=rows())
def test_linkerd_keeps_no_workloads_of_a_namespace_apart_and_says_so(rows):
    rows = [row | {"namespace": "shop"} for row in rows]
    suggestion = suggest("linkerd", rows)
    read = policies_of(parse_documents(suggestion.text, name="linkerd.yaml"))
    for row in rows:
        for port, verdict in zip(row["ports"], verdicts(row, read), strict=True):
            shared = any(
                not r["flagged"] and r["destination"] == row["destination"] and port in r["ports"] for r in rows
            )
            assert verdict is not None
            assert verdict.allowed is (shared or not row["flagged"])
            if row["flagged"] and shared:
                assert any(n.startswith(f"{row['source']} -> ") and "keeps no workloads" in n for n in suggestion.notes)


ROW: dict[str, Any] = {
    "source": "cart",
    "namespace": "shop",
    "destination": "a.example",
    "ports": [443],
    "protocols": ["tcp"],
}
ROW |= {"flagged": False, "addresses": []}


def test_what_cannot_be_said_is_a_note():
    assert "no port is known" in suggest("istio", [ROW | {"ports": []}]).notes[0]
    assert "Istio captures no udp" in suggest("istio", [ROW | {"protocols": ["udp"]}]).notes[0]
    assert "knows no names" in suggest("networkpolicy", [ROW]).notes[0]
    near = {"addresses": ["192.0.2.1"]}
    bad = ROW | near | {"destination": "evil.example", "flagged": True}
    assert "shares 192.0.2.1:443" in suggest("networkpolicy", [ROW | near, bad]).notes[0]
    assert suggest("linkerd", []).text.startswith("#")


def test_objects_are_kubernetes_names_and_select_by_known_labels():
    deployment = parse_documents(
        "kind: Deployment\nmetadata: {name: cart, namespace: shop}\n"
        "spec: {template: {metadata: {labels: {component: cart}}}}",
        name="d.yaml",
    )
    text = suggest("istio", [ROW | {"destination": "UPPER_case.example"}], policies_of(deployment)).text
    entry, sidecar = yaml.safe_load_all(text)
    assert entry["metadata"]["name"].islower()
    assert "_" not in entry["metadata"]["name"]
    assert sidecar["spec"]["workloadSelector"] == {"labels": {"component": "cart"}}

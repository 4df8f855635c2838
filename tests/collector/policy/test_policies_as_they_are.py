"""Istio, Linkerd, NetworkPolicy and our own list, read as in Git and as kubectl prints them, asked of calls."""

import json

import pytest
import yaml

from collector.errors import ConfigError
from collector.policy.documents import parse_documents
from collector.policy.listed import parse_policy
from collector.policy.policies import policies_of, read_policies
from tests.collector.policy.policy_samples import ISTIO, KUBERNETES, LINKERD, ask, read

SIDECAR = """
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: tight, namespace: shop}
spec:
  workloadSelector: {labels: {app: checkout}}
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  egress: [{port: {number: 443, protocol: TLS, name: t}, hosts: ["./api.stripe.com"]}, {hosts: ["~/*"]}]
"""
MESH = "---\napiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec: {meshConfig: {outboundTrafficPolicy: {mode: %s}}}\n"
CONFIG_MAP = """
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    outboundTrafficPolicy: {mode: ALLOW_ANY}
"""


@pytest.mark.parametrize(
    ("host", "port", "rule"),
    [
        ("api.stripe.com", 443, "ServiceEntry shop/stripe: hosts[0] api.stripe.com, port 443"),
        ("API.stripe.com.", 443, "ServiceEntry shop/stripe: hosts[0] api.stripe.com, port 443"),
        ("a.b.stripe.network", 443, "ServiceEntry shop/stripe: hosts[1] *.stripe.network, port 443"),
        ("192.0.2.3", 5000, "ServiceEntry shop/legacy: addresses 192.0.2.0/28, port 5000"),
        ("api.stripe.com", 80, None),
        ("api.stripe.com", None, None),
        ("stripe.network", 443, None),
        ("evil-api.stripe.com", 443, None),
        ("192.0.2.16", 5000, None),
        ("bank.example.com", 443, None),
    ],
)
def test_istio_s_registry(host, port, rule):
    verdict = ask(read(ISTIO), host, port)
    assert verdict is not None
    assert (verdict.allowed, verdict.rule) == (rule is not None, rule or "")


def test_what_is_against_a_call_is_named():
    istio = read(ISTIO)
    assert "ServiceEntry shop/stripe: hosts[0] api.stripe.com has ports 443" in ask(istio, "api.stripe.com", 80).against
    assert "no ServiceEntry has x.example:443 (no outboundTrafficPolicy is given)" in ask(istio, "x.example").against
    strict = read(ISTIO + MESH % "REGISTRY_ONLY")
    assert "IstioOperator: outboundTrafficPolicy REGISTRY_ONLY" in ask(strict, "x.example").against


def test_a_service_entry_is_seen_where_it_is_exported():
    assert ask(read(ISTIO), "bank.example.com", namespace="billing").allowed
    assert ask(
        read(ISTIO), "bank.example.com", namespace=None
    ).allowed  # where the namespace is not known, all are tried


def test_a_sidecar_imports_what_it_says_at_the_port_it_says():
    tight = read(ISTIO + SIDECAR)
    assert ask(tight, "api.stripe.com").rule.endswith("; imported by Sidecar shop/tight, egress[0]")
    assert "is not imported by Sidecar shop/tight" in ask(tight, "a.stripe.network").against
    assert not ask(tight, "192.0.2.3", 5000).allowed
    assert ask(tight, "a.stripe.network", source="cart").allowed  # selected by label


@pytest.mark.parametrize(
    "mesh", [MESH % "ALLOW_ANY", CONFIG_MAP, "---\nmeshConfig: {outboundTrafficPolicy: {mode: ALLOW_ANY}}"]
)
def test_a_mesh_that_lets_everything_out_says_so(mesh):
    verdict = ask(read(ISTIO + mesh), "anything.example", 9)
    assert verdict.allowed
    assert "outboundTrafficPolicy ALLOW_ANY" in verdict.rule
    assert not ask(read(ISTIO + mesh + SIDECAR), "anything.example", 9).allowed  # a Sidecar's own mode counts more


@pytest.mark.parametrize(
    ("host", "port", "more", "expected"),
    [
        (
            "api.stripe.com",
            443,
            {},
            "TLSRoute shop/stripe: hostname api.stripe.com, port 443 of EgressNetwork shop/own",
        ),
        ("x.stripe.network", 443, {"addresses": ["203.0.113.9"]}, "TLSRoute shop/stripe: hostname *.stripe.network"),
        ("api.stripe.com", 8443, {}, None),
        ("shop.example.com", 443, {}, None),  # that route hangs on a gateway
        ("203.0.113.9", 443, {}, None),
        ("10.1.1.1", 443, {}, "EgressNetwork linkerd-egress/all: trafficPolicy Allow"),  # own network excepts it
        ("any.example", 9, {"namespace": "cart"}, "EgressNetwork linkerd-egress/all: trafficPolicy Allow"),
    ],
)
def test_linkerd_s_networks_and_routes(host, port, more, expected):
    verdict = ask(read(LINKERD), host, port, **more)
    assert verdict is not None
    if expected is None:
        assert verdict.against.startswith("no route of EgressNetwork shop/own (trafficPolicy Deny) has ")
    else:
        assert verdict.rule.startswith(expected)


@pytest.mark.parametrize(
    ("host", "port", "more", "expected"),
    [
        ("198.51.100.7", 443, {}, "NetworkPolicy shop/checkout: egress[1] ipBlock 198.51.100.0/24"),
        ("198.51.100.7", 8010, {}, "NetworkPolicy shop/checkout: egress[1]"),
        ("198.51.100.7", 8011, {}, False),
        ("198.51.100.200", 443, {}, False),
        ("api.example", 443, {"addresses": ["198.51.100.7"]}, "NetworkPolicy shop/checkout: egress[1]"),
        ("api.example", 443, {"addresses": ["198.51.100.7", "203.0.113.1"]}, False),
        ("api.example", 443, {}, False),
        ("ntp.example", 123, {"protocol": "udp"}, "NetworkPolicy shop/ntp: egress[0] (every destination)"),
        ("ntp.example", 123, {}, False),
        ("198.51.100.7", 443, {"source": "cart"}, False),
        ("198.51.100.7", 443, {"source": "other"}, None),
        ("198.51.100.7", 443, {"namespace": "elsewhere"}, None),
        ("198.51.100.7", 443, {"labels": {"app": "other"}}, None),
    ],
)
def test_network_policies(host, port, more, expected):
    verdict = ask(read(KUBERNETES), host, port, **more)
    if expected is None:
        assert verdict is None
    elif expected is False:
        assert not verdict.allowed
        assert "NetworkPolicy shop/" in verdict.against
    else:
        assert verdict.rule.startswith(expected)


def test_kubectl_s_json_says_the_same():
    as_json = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(yaml.safe_load_all(ISTIO))})
    assert read(as_json, name="all.json") == read(ISTIO)


def test_all_layers_have_to_allow_and_our_own_list_is_a_person_s_word():
    both = ISTIO + "---" + KUBERNETES
    assert "NetworkPolicy shop/checkout" in ask(read(both), "api.stripe.com").against
    allowed = ask(read(both), "api.stripe.com", addresses=["198.51.100.7"])
    assert "ServiceEntry shop/stripe" in allowed.rule
    assert "NetworkPolicy shop/checkout" in allowed.rule
    listed = parse_policy('[egress]\nallow = ["x.example:9"]', name="x")
    policies = policies_of(parse_documents(both, name="x.yaml"), [listed])
    assert ask(policies, "x.example", 9).rule == "egress.allow: x.example:9"
    assert ask(policies_of([], [listed]), "y.example").against == "egress.allow has no entry for y.example:443"
    assert ask(policies_of([]), "y.example") is None


def test_a_deployment_tells_its_pods_labels(tmp_path):
    deployment = {"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "front", "namespace": "shop"},
                  "spec": {"template": {"metadata": {"labels": {"app": "checkout"}}}}}  # fmt: skip
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "np.yaml").write_text(KUBERNETES)
    (tmp_path / "deploy.json").write_text(json.dumps(deployment))
    (tmp_path / "other.toml").write_text("[tool]\nx = 1")
    (tmp_path / "service.yml").write_text("kind: Service\napiVersion: v1\nmetadata: {name: x}")
    policies = read_policies([tmp_path])
    front = policies.workload("front")
    assert front.namespace == "shop"
    assert policies.network_policies.policies[0].selector.selects(front)
    assert policies.notes == ("1 document of Service say nothing of egress that is read here",)


ENTRY = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: "
NETWORK = "apiVersion: policy.linkerd.io/v1alpha1\nkind: EgressNetwork\nmetadata: {name: a}\nspec: "
POLICY = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, namespace: n}\nspec: "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTRY + "{}", "document 1 (ServiceEntry a): spec.hosts: expected a list with at least one host, got nothing"),
        (ENTRY + "{hosts: x}", "document 1 (ServiceEntry a): spec.hosts: expected a list, got str 'x'"),
        (ENTRY + "{hosts: [x], ports: [{number: 70000}]}", "spec.ports[0].number: expected a port from 1 to 65535"),
        (ENTRY + "{hosts: [x], ports: [{number: true}]}", "spec.ports[0].number: expected a port"),
        (ENTRY + "[]", "document 1 (ServiceEntry a): spec: expected a mapping, got list"),
        (
            "a: 1\n---\n" + NETWORK + "{trafficPolicy: Perhaps}",
            "document 2 (EgressNetwork a): spec.trafficPolicy: expected Allow or Deny",
        ),
        (
            NETWORK + "{trafficPolicy: Deny, networks: [{cidr: 10.0.0.0/99}]}",
            "spec.networks[0].cidr: expected a CIDR block",
        ),
        (POLICY + "{policyTypes: [Out]}", "(NetworkPolicy n/a): spec.policyTypes[0]: expected Ingress or Egress"),
        (
            POLICY + "{egress: [{to: [{}]}]}",
            "spec.egress[0].to[0].ipBlock: expected ipBlock, podSelector or namespaceSelector",
        ),
        (
            POLICY + "{egress: [{ports: [{port: 9, endPort: 8}]}]}",
            "spec.egress[0].ports[0].endPort: expected a port from 9",
        ),
        (
            POLICY + "{podSelector: {matchExpressions: [{key: a, operator: Like}]}, egress: [{}]}",
            "operator: expected In or NotIn",
        ),
        ("a: [", "egress.yaml: not YAML in line 2, column 1: "),
        ("host: {{ .Values.x }}: y", "a template has to be rendered first"),
        ("- a", "document 1: expected a mapping with kind and spec, got list"),
    ],
)
def test_mistakes_name_file_document_and_field(text, message):
    with pytest.raises(ConfigError) as error:
        read(text)
    assert str(error.value).startswith("egress.yaml")
    assert message in str(error.value)


def test_an_empty_directory_is_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="no policy in there"):
        read_policies([tmp_path])

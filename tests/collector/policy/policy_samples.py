"""Policies as people write them, and a short way to ask them."""

from typing import Any

from collector.policy.calls import Call, Workload
from collector.policy.documents import parse_documents
from collector.policy.policies import Policies, policies_of


def read(text: str, name: str = "egress.yaml") -> Policies:
    return policies_of(parse_documents(text, name=name))


def ask(policies: Policies, host: str, port: int | None = 443, source: str = "checkout", **more) -> Any:
    workload = Workload(source, more.pop("namespace", "shop"), more.pop("labels", None))
    return policies.judge(Call.of(workload, host, port, more.pop("addresses", ()), more.pop("protocol", None)))


ISTIO = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: stripe, namespace: shop}
spec:
  hosts: [api.stripe.com, "*.stripe.network"]
  ports: [{number: 443, name: tls, protocol: TLS}]
  location: MESH_EXTERNAL
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hidden, namespace: billing}
spec: {hosts: [bank.example.com], ports: [{number: 443, name: a, protocol: TLS}], exportTo: ["."]}
---
apiVersion: networking.istio.io/v1beta1
kind: ServiceEntry
metadata: {name: legacy, namespace: shop}
spec:
  hosts: [legacy.internal.example]
  addresses: [192.0.2.0/28]
  ports: [{number: 5000, name: tcp, protocol: TCP}]
  resolution: NONE
"""

LINKERD = """
apiVersion: policy.linkerd.io/v1alpha1
kind: EgressNetwork
metadata: {name: all, namespace: linkerd-egress}
spec: {trafficPolicy: Allow}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: EgressNetwork
metadata: {name: own, namespace: shop}
spec:
  trafficPolicy: Deny
  networks: [{cidr: 0.0.0.0/0, except: [10.0.0.0/8]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TLSRoute
metadata: {name: stripe, namespace: shop}
spec:
  hostnames: [api.stripe.com, "*.stripe.network"]
  parentRefs: [{kind: EgressNetwork, group: policy.linkerd.io, name: own, port: 443}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: ingress, namespace: shop}
spec: {hostnames: [shop.example.com], parentRefs: [{name: gateway}]}
"""

KUBERNETES = """
apiVersion: v1
kind: List
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: checkout, namespace: shop}
  spec:
    podSelector: {matchLabels: {app: checkout}}
    policyTypes: [Egress]
    egress:
    - to: [{namespaceSelector: {}}]
    - to: [{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.128/25]}}]
      ports: [{protocol: TCP, port: 443}, {port: 8000, endPort: 8010}]
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: ntp, namespace: shop}
  spec:
    podSelector: {matchExpressions: [{key: app, operator: In, values: [checkout, cart]}]}
    egress: [{ports: [{protocol: UDP, port: 123}]}]
"""

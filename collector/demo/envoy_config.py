"""The bootstrap of one sidecar, as Envoy reads it: Istio's cluster names and access log keys, OpenTelemetry for traces. Pure."""

from typing import Any, Final

from collector.demo.plan import MESH_ADDRESS, SERVICES, Plan, Service

Config = dict[str, Any]

COLLECTOR_CLUSTER: Final = "opentelemetry-collector"

SPAN_FLUSH_MILLISECONDS: Final = 1000
"""Envoy's own default is 5 s: too long to look at a mesh live."""

SPAN_FLUSH_COUNT: Final = 512
"""Envoy's own default of 5 would be an export every few requests, and each is a transaction of the collector."""

ACCESS_LOG_FORMAT: Final[dict[str, str]] = {
    # Istio's default JSON keys: istio/pkg/config/mesh, `EnvoyJSONLogFormatIstio`.
    "start_time": "%START_TIME%",
    "route_name": "%ROUTE_NAME%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration": "%DURATION%",
    "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
    "user_agent": "%REQ(USER-AGENT)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "authority": "%REQ(:AUTHORITY)%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_cluster": "%UPSTREAM_CLUSTER%",
    "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
    "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "requested_server_name": "%REQUESTED_SERVER_NAME%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}


def bootstrap(service: Service, plan: Plan, *, collector_grpc_port: int, access_log: str) -> Config:
    """The whole configuration of `service`'s sidecar: one listener each way, one cluster for each service that it calls."""
    ports = plan.ports[service.name]
    flush = {"flush_interval_ms": SPAN_FLUSH_MILLISECONDS, "min_flush_spans": SPAN_FLUSH_COUNT}
    inbound_cluster = f"inbound|{ports.app}||"
    inbound = _virtual_host("inbound", ["*"], inbound_cluster)
    callees = [callee for callee in SERVICES if callee.name in service.calls]
    outbound = [
        _virtual_host(c.host, [c.host, f"{c.host}:*"], outbound_cluster_name(c, plan)) for c in callees
    ]  # an unknown host gets 404, as under Istio's REGISTRY_ONLY
    return {
        "node": {"id": f"{service.name}-sidecar", "cluster": service.name},
        # The address as it is in the end goes to the file named by --admin-address-path.
        "admin": {"address": _address(MESH_ADDRESS, 0)},
        "layered_runtime": {
            "layers": [
                {
                    "name": "static",
                    "static_layer": {
                        "tracing": {"opentelemetry": flush},
                    },
                }
            ]
        },
        "static_resources": {
            "listeners": [
                _listener("inbound", ports.inbound, [inbound], service=service, access_log=access_log),
                _listener("outbound", ports.outbound, outbound, service=service, access_log=access_log),
            ],
            "clusters": [
                _cluster(inbound_cluster, ports.app, http2=service.protocol == "grpc"),
                *(
                    _cluster(outbound_cluster_name(c, plan), plan.ports[c.name].inbound, http2=c.protocol == "grpc")
                    for c in callees
                ),
                _cluster(COLLECTOR_CLUSTER, collector_grpc_port, http2=True),
            ],
        },
    }


def outbound_cluster_name(callee: Service, plan: Plan) -> str:
    """Istio's name for the way to `callee`: direction, port, subset (none), host."""
    return f"outbound|{plan.ports[callee.name].inbound}||{callee.host}"


def _address(address: str, port: int) -> Config:
    return {"socket_address": {"address": address, "port_value": port}}


def _typed(type_name: str, **fields: Any) -> Config:
    return {"@type": f"type.googleapis.com/{type_name}", **fields}


def _virtual_host(name: str, domains: list[str], cluster: str) -> Config:
    return {
        "name": name,
        "domains": domains,
        "routes": [{"name": "default", "match": {"prefix": "/"}, "route": {"cluster": cluster}}],
    }


def _listener(direction: str, port: int, virtual_hosts: list[Config], *, service: Service, access_log: str) -> Config:
    """One listener; `traffic_direction` is what makes Envoy's spans SERVER (inbound) or CLIENT (outbound)."""
    manager = _typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=direction,
        codec_type="AUTO",
        generate_request_id=True,
        tracing={"provider": _tracer(service.name)},
        access_log=[_access_log(access_log)],
        route_config={"name": direction, "virtual_hosts": virtual_hosts},
        http_filters=[
            {
                "name": "envoy.filters.http.router",
                "typed_config": _typed("envoy.extensions.filters.http.router.v3.Router"),
            }
        ],
    )
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {
        "name": f"virtual{direction.capitalize()}",
        "traffic_direction": direction.upper(),
        "address": _address(MESH_ADDRESS, port),
        "filter_chains": [{"filters": filters}],
    }


def _tracer(service_name: str) -> Config:
    return {
        "name": "envoy.tracers.opentelemetry",
        "typed_config": _typed(
            "envoy.config.trace.v3.OpenTelemetryConfig",
            grpc_service={"envoy_grpc": {"cluster_name": COLLECTOR_CLUSTER}, "timeout": "5s"},
            service_name=service_name,
        ),
    }


def _access_log(path: str) -> Config:
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": _typed(
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            path=path,
            log_format={"json_format": ACCESS_LOG_FORMAT},
        ),
    }


def _cluster(name: str, port: int, *, http2: bool) -> Config:
    protocol = "http2_protocol_options" if http2 else "http_protocol_options"
    options = _typed("envoy.extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config={protocol: {}})
    endpoint = {"endpoint": {"address": _address(MESH_ADDRESS, port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }

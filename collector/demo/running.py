"""A mesh that runs: its traffic begins, its incidents are scripted, and it ends in the order in which evidence is flushed."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from collector.client import Source
from collector.demo.incidents import NANOSECONDS, Planted, signatures
from collector.demo.plan import MESH_ADDRESS, SERVICES, Incident, Plan, Service
from collector.demo.processes import Children, DemoError, tail
from collector.demo.resources import mesh_directory, service_environment

DRAIN_SECONDS: Final = 30.0
QUIET_SECONDS: Final = 2.5
"""No new row for that long after the load has ended: two flushes of a sidecar's spans, ten of its access log."""

TRAFFIC: Final = ("load", "rogue")


@dataclass(frozen=True, slots=True)
class Mesh:
    """A mesh that runs.

    Attributes:
        plan: What was started.
        directory: Configurations, logs, the script.
        children: Its processes.
        url: The collector's, for `open_source`.
    """

    plan: Plan
    directory: Path
    children: Children
    url: str

    def begin(self) -> list[Planted]:
        """Start the load, write the script of the incidents; returns what is planted when."""
        environment = service_environment(
            seed=self.plan.seed,
            script=script_path(self.directory),
            GATEWAY=f"{MESH_ADDRESS}:{self.plan.ports['gateway'].inbound}",
        )
        start_script(self.children, "load", environment)
        if "rogue" in self.plan.incidents:
            start_script(self.children, "rogue", environment)
        started = time.time()
        script = incident_script(self.plan, started)
        unfinished = self.directory / "incidents.json.part"
        unfinished.write_text(json.dumps(script))
        unfinished.rename(script_path(self.directory))
        known = signatures(self.plan)
        begins = {name: int((started + offset) * NANOSECONDS) for name, offset in self.plan.offsets().items()}
        return sorted((Planted(n, at, known[n]) for n, at in begins.items()), key=lambda p: p.planted_at_unix_nano)

    def end(self, source: Source) -> dict[str, int]:
        """Stop the traffic, then the services, and when all of it is recorded the sidecars.

        Returns what the load counted: {"requests": n, "failed": n}.
        """
        self.children.check()
        self._stop(TRAFFIC)
        self._stop([service.name for service in SERVICES])
        wait_until_quiet(self.children, source)
        self._stop([sidecar_name(service) for service in SERVICES])
        counts: dict[str, int] = json.loads((self.directory / "load.log").read_text().splitlines()[-1])
        return counts

    def _stop(self, names: Sequence[str]) -> None:
        killed = self.children.stop(names, grace_seconds=15.0)
        if killed:
            # Its last spans are lost with it, and a verdict on lost evidence would be about the demo.
            logs = "\n".join(tail(self.directory / f"{name}.log") for name in killed)
            raise DemoError(f"{', '.join(killed)} did not end within 15 s of SIGTERM\n{logs}")


def incident_script(plan: Plan, started_unix_seconds: float) -> dict[str, dict[str, float | str]]:
    """The file that tells the services when to misbehave, and against which address: see examples/mesh/mesh.py."""
    targets: Mapping[Incident, str] = {
        "rogue": f"{MESH_ADDRESS}:{plan.ports['payment'].app}",
        "bypass": f"{MESH_ADDRESS}:{plan.ports['inventory'].app}",
        "egress": plan.drop,
        "slow": "",
    }
    return {
        name: {"begins_at_unix_seconds": started_unix_seconds + offset, "target": targets[name]}
        for name, offset in plan.offsets().items()
    }


def script_path(directory: Path) -> Path:
    """Where the services look for the script."""
    return directory / "incidents.json"


def sidecar_name(service: Service) -> str:
    """The sidecar's name among the children."""
    return f"{service.name}-sidecar"


def start_script(
    children: Children, name: str, environment: Mapping[str, str], *arguments: str, process: str = ""
) -> None:
    """Start one file of examples/mesh as a process, which is called like the file unless `process` names it."""
    children.start(process or name, [sys.executable, str(mesh_directory() / f"{name}.py"), *arguments], environment)


def wait_until_quiet(children: Children, source: Source) -> None:
    """Return when no span and no access log line has arrived for `QUIET_SECONDS`; DemoError when they never stop."""
    rows, since = -1, time.monotonic()

    def quiet() -> bool:
        nonlocal rows, since
        now = source.query("SELECT (SELECT count(*) FROM spans) + (SELECT count(*) FROM proxy_records) AS n").item()
        if now != rows:
            rows, since = now, time.monotonic()
        return time.monotonic() - since >= QUIET_SECONDS

    children.wait_until(quiet, "the last spans and access log lines", DRAIN_SECONDS)

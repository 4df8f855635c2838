"""The lab's network: namespaces joined by a bridge, and the redirection that istio-init writes. What is run is decided by pure functions."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from collector.errors import CollectorError, ConfigError
from collector.lab.plan import BRIDGE, GATEWAY, NAMESPACE_PREFIX, PROXY_UID, Pod

Argv = Sequence[str]

INBOUND: Final = 15006
OUTBOUND: Final = 15001
STATUS: Final = 15021
_UNGUARDED: Final = (15008, 15090, STATUS, 15020)
"""Ports of the proxy that istio-init never redirects: HBONE, statistics, readiness, the agent."""

PROGRAMS: Final = {"ip": "iproute2", "iptables-restore": "iptables", "iptables": "iptables"}
CGROUP: Final = "provenance-lab"

PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
"""Where programs are looked for: root's shell has the folders of administration, root's services often do not."""


class LabError(CollectorError):
    """The lab's network could not be made, or not be removed."""


def missing(programs: Argv = tuple(PROGRAMS), path: str = PATH) -> list[str]:
    """The programs that the lab needs and that are in none of the folders of `path`."""
    return [name for name in programs if shutil.which(name, path=path) is None]


def missing_message(names: Argv) -> str:
    """What to do about them."""
    packages = " ".join(sorted({PROGRAMS[name] for name in names}))
    return f"{', '.join(names)} not found: the lab builds its network with them; try: apt-get install {packages}"


def bridge_commands() -> list[Argv]:
    """Make the bridge, with the collector's address."""
    return [
        ["ip", "link", "add", BRIDGE, "type", "bridge"],
        ["ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE],
        ["ip", "link", "set", BRIDGE, "up"],
    ]


def pod_commands(pod: Pod) -> list[Argv]:
    """Make one pod's namespace and wire it to the bridge; its services' addresses leave by the default route."""
    inside, outside = "eth0", f"plab{pod.number}"
    ip = ["ip", "-n", pod.namespace]
    return [
        ["ip", "netns", "add", pod.namespace],
        ["ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", pod.namespace],
        ["ip", "link", "set", outside, "master", BRIDGE, "up"],
        [*ip, "link", "set", "lo", "up"],
        [*ip, "address", "add", f"{pod.address}/24", "dev", inside],
        [*ip, "link", "set", inside, "up"],
        [*ip, "route", "add", "default", "via", GATEWAY],
    ]


def redirection(pod: Pod) -> str:
    """The pod's nat table as istio-init writes it for REDIRECT, in iptables-restore's form.

    Source: istio/tools/istio-iptables/pkg/capture/run.go.
    """
    inbound = [
        f"-A ISTIO_INBOUND -p tcp --dport {port} -j RETURN" for port in (*_UNGUARDED, *pod.exclude_inbound_ports)
    ]
    ports = [f"-A ISTIO_OUTPUT -p tcp --dport {port} -j RETURN" for port in pod.exclude_outbound_ports]
    ranges = [f"-A ISTIO_OUTPUT -d {block} -j RETURN" for block in pod.exclude_outbound_ranges]
    owned = [rule for kind in ("uid", "gid") for rule in _owned(kind)]
    return "\n".join(
        [
            "*nat",
            ":ISTIO_INBOUND - [0:0]",
            ":ISTIO_REDIRECT - [0:0]",
            ":ISTIO_IN_REDIRECT - [0:0]",
            ":ISTIO_OUTPUT - [0:0]",
            f"-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports {OUTBOUND}",
            f"-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports {INBOUND}",
            "-A PREROUTING -p tcp -j ISTIO_INBOUND",
            *inbound,
            "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT",
            "-A OUTPUT -p tcp -j ISTIO_OUTPUT",
            *ports,
            "-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN",
            *owned,
            "-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN",
            *ranges,
            "-A ISTIO_OUTPUT -j ISTIO_REDIRECT",
            "COMMIT",
            "",
        ]
    )


def _owned(kind: str) -> list[str]:
    """What the proxy's user and group may: their connections are left alone, those to the own pod go to its inbound side."""
    owner = f"-m owner --{kind}-owner {PROXY_UID}"
    return [
        f"-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp ! --dport 15008 {owner} -j ISTIO_IN_REDIRECT",
        f"-A ISTIO_OUTPUT -o lo -m owner ! --{kind}-owner {PROXY_UID} -j RETURN",
        f"-A ISTIO_OUTPUT {owner} -j RETURN",
    ]


# --- the shell ----------------------------------------------------------------------------------------------------------------


@contextmanager
def network(pods: Sequence[Pod]) -> Iterator[None]:
    """The network for as long as the block runs; what an earlier lab left behind is removed first. Raises LabError."""
    remove()
    try:
        for command in bridge_commands():
            _run(command)
        for pod in pods:
            for command in pod_commands(pod):
                _run(command)
            if pod.meshed:
                _run(["ip", "netns", "exec", pod.namespace, "iptables-restore"], redirection(pod))
        yield
    finally:
        remove()


def remove() -> None:
    """Remove every namespace, link and control group that has a lab's name; nothing happens where there is none."""
    listed = _run(["ip", "netns", "list"]).split("\n")
    for line in listed:
        name = line.split(" ", maxsplit=1)[0]
        if name.startswith(NAMESPACE_PREFIX):
            _run(["ip", "netns", "delete", name])
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        _run(["ip", "link", "delete", BRIDGE])
    root = cgroup_root()
    if root is not None and (root / CGROUP).is_dir():
        _remove_cgroups(root / CGROUP)


def cgroup_root(mounts: Path = Path("/proc/mounts")) -> Path | None:
    """Where control groups of version 2 are mounted."""
    for line in mounts.read_text("utf-8").splitlines():
        _, mount_point, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(mount_point)
    return None


def make_cgroup(name: str) -> Path | None:
    """A control group, as a container has one; None where this machine has no version 2."""
    root = cgroup_root()
    if root is None:
        return None
    group = root / CGROUP / name
    try:
        group.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise LabError(f"cannot make the control group {group}: {e.strerror}") from e
    return group


def _remove_cgroups(group: Path) -> None:
    """From the leaves; a group with processes in it stays, and is taken again by the next lab."""
    for child in group.iterdir():
        if child.is_dir():
            _remove_cgroups(child)
    try:
        group.rmdir()
    except OSError as e:
        if not (group / "cgroup.procs").read_text("ascii"):
            raise LabError(f"cannot remove the control group {group}: {e.strerror}") from e


def _run(argv: Argv, given: str | None = None) -> str:
    env = {**os.environ, "PATH": PATH}
    done = subprocess.run(argv, input=given, env=env, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603 our own
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"`{' '.join(argv)}` failed with status {done.returncode}: {said}")
    return done.stdout


def check_kernel() -> None:
    """Raise ConfigError where this kernel or container cannot redirect within a namespace of its own."""
    name = f"{NAMESPACE_PREFIX}try"
    try:
        _run(["ip", "netns", "add", name])
        rule = ["OUTPUT", "-p", "tcp", "-m", "owner", "--uid-owner", str(PROXY_UID), "-j", "REDIRECT", "--to-ports"]
        _run(["ip", "netns", "exec", name, "iptables", "-t", "nat", "-A", *rule, str(OUTBOUND)])
    except LabError as e:
        raise ConfigError(
            f"this machine cannot redirect connections in a network namespace: {e}; the lab needs root, CAP_NET_ADMIN "
            "and the kernel's nat table"
        ) from e
    finally:
        if Path(f"/run/netns/{name}").exists():
            _run(["ip", "netns", "delete", name])

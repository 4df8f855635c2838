"""Sockets as a pod has them: `app_socket`, the proxy's end of it, and whole tables."""

import zlib
from typing import Any

from collector.witnesses.sockets import Socket
from collector.witnesses.sockets_judge import Snapshot

POD = "10.1.0.7"
PEER = "10.1.0.9"
APP_CGROUP = 11
PROXY_CGROUP = 22
PROXY_UID = 1337


def make_socket(**overrides):
    """An application's connection to another pod; override any field."""
    fields: dict[str, Any] = {
        "protocol": "tcp",
        "local_address": POD,
        "local_port": 40000,
        "remote_address": PEER,
        "remote_port": 8080,
        "state": "ESTABLISHED",
        "uid": 1000,
        "cgroup_id": APP_CGROUP,
        "transparent": False,
    }
    fields |= overrides
    if "cookie" not in overrides:
        ends = (fields["local_address"], fields["local_port"], fields["remote_address"], fields["remote_port"])
        fields["cookie"] = zlib.crc32(repr((fields["protocol"], *ends)).encode())
    return Socket(**fields)


def listener(port, uid=1000, cgroup_id=APP_CGROUP, **overrides):
    nowhere = {"local_address": "0.0.0.0", "remote_address": "0.0.0.0", "remote_port": 0}
    return make_socket(**nowhere, local_port=port, state="LISTEN", uid=uid, cgroup_id=cgroup_id, **overrides)


def proxy_end(of, **overrides):
    """The proxy's end of a redirected connection out of the pod."""
    ends = {"local_address": "127.0.0.1", "local_port": 15001}
    ends |= {"remote_address": of.local_address, "remote_port": of.local_port}
    return make_socket(**(ends | {"uid": PROXY_UID, "cgroup_id": PROXY_CGROUP} | overrides))


def sidecar(**overrides):
    """The proxy's two listeners."""
    return [listener(port, PROXY_UID, PROXY_CGROUP, **overrides) for port in (15001, 15006)]


def snapshot(*sockets, **overrides):
    return Snapshot(sockets=tuple(sockets), addresses=frozenset({POD, "127.0.0.1"}), **overrides)

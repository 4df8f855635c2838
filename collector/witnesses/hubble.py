"""Hubble's flows as JSON: lines of its exporter and of `hubble observe -o jsonpb` become rows of `flows`.

One connection is several lines: Hubble reports what its datapath saw at each point. A reply (`is_reply`) is turned round, so that
`source` is who opened the connection on every line. Encryption between nodes (`IP.encrypted`) and `auth_type` are no
mTLS of a mesh: `mesh_tls` stays unknown. Lines about lost events or nodes are no flows. Source: cilium/cilium, `api/v1/flow/flow.proto`.
"""

from typing import Any, Final
from uuid import UUID

from collector.errors import DecodeError
from collector.witnesses.envoy import trace_id, unix_nano
from collector.witnesses.values import Row, address, attributes_of, flow_row, json_object, port

_OTHERS: Final = frozenset({"lost_events", "node_status", "agent_event", "debug_event"})
"""What an answer of Hubble may be beside a flow."""

_COLUMNS: Final = frozenset(
    {"time", "verdict", "IP", "l4", "source", "destination", "node_name", "is_reply", "trace_context"}
)
_NOISE: Final = frozenset({"ethernet", "uuid", "Summary", "emitter"})
"""Left out of `attributes`: hardware addresses, ids of the report itself, and a text that says the same."""


def hubble_row(text: str) -> Row | None:
    """The row of one line, without what its file says; None for a line that is no flow. Raises DecodeError."""
    answer = json_object(text)
    flow = answer.get("flow")
    if flow is None:
        if not _OTHERS.isdisjoint(answer):
            return None
        flow = answer
    if not isinstance(flow, dict):
        raise DecodeError("its flow is no object")
    start = unix_nano(flow.get("time"))
    if start is None:
        raise DecodeError("no time that is an RFC 3339 time")
    ip = _object(flow, "IP")
    addresses = address(ip.get("source")), address(ip.get("destination"))
    if None in addresses:
        raise DecodeError("no IP.source or no IP.destination that is an address")
    protocol, ports = _transport(_object(flow, "l4"))
    ends = _object(flow, "source"), _object(flow, "destination")
    names = _names(flow, "source_names"), _names(flow, "destination_names")
    if _is_reply(flow):
        addresses, ports, ends, names = addresses[::-1], ports[::-1], ends[::-1], names[::-1]
    row = flow_row("hubble")
    row |= {
        "start_time_unix_nano": start,
        "protocol": protocol,
        "source_address": addresses[0],
        "source_port": ports[0],
        "destination_address": addresses[1],
        "destination_port": ports[1],
        "destination_name": names[1],
        "state": flow.get("verdict") if isinstance(flow.get("verdict"), str) else None,
        "trace_id": _trace(flow),
        "node": next(
            (str(n) for n in (answer.get("node_name"), flow.get("node_name")) if isinstance(n, str) and n), None
        ),
    }
    for side, end in zip(("source", "destination"), ends, strict=True):
        row[f"{side}_workload"], row[f"{side}_namespace"] = _workload(end), _string(end.get("namespace"))
    row["attributes"] = attributes_of(_rest(flow, ends))
    return row


def _object(of: dict[str, Any], key: str) -> dict[str, Any]:
    value = of.get(key)
    return value if isinstance(value, dict) else {}


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _transport(l4: dict[str, Any]) -> tuple[str | None, tuple[int | None, int | None]]:
    for name, fields in l4.items():
        if isinstance(fields, dict):
            return name.lower(), (port(fields.get("source_port")), port(fields.get("destination_port")))
    return None, (None, None)


def _is_reply(flow: dict[str, Any]) -> bool:
    """Protobuf's JSON leaves false out; older versions had no wrapper and a plain `reply`."""
    return flow.get("is_reply") is True or flow.get("reply") is True


def _workload(end: dict[str, Any]) -> str | None:
    workloads = end.get("workloads")
    if (
        isinstance(workloads, list)
        and workloads
        and isinstance(workloads[0], dict)
        and (name := _string(workloads[0].get("name")))
    ):
        return name
    return _string(end.get("pod_name"))


def _names(flow: dict[str, Any], key: str) -> str | None:
    names = flow.get(key)
    return _string(names[0]) if isinstance(names, list) and names else None


def _trace(flow: dict[str, Any]) -> UUID | None:
    return trace_id(_object(_object(flow, "trace_context"), "parent").get("trace_id"))


def _rest(flow: dict[str, Any], ends: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, object]:
    rest: dict[str, object] = {key: value for key, value in flow.items() if key not in _COLUMNS | _NOISE}
    rest["is_reply"] = _is_reply(flow)
    if flags := _object(_object(flow, "l4"), "TCP").get("flags"):
        rest["tcp_flags"] = flags
    for side, end in zip(("source", "destination"), ends, strict=True):
        for key in ("identity", "pod_name", "labels"):
            rest[f"{side}.{key}"] = end.get(key)
    if "encrypted" in _object(flow, "IP"):
        rest["encrypted"] = flow["IP"]["encrypted"]
    return rest

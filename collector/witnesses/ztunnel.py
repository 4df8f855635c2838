"""ztunnel's log: the lines of scope `access`, text or JSON, become rows of `flows`; its other lines are no flows.

    2024-06-01T12:00:00.123456Z	info	access	connection complete	src.addr=10.244.1.5:45678 src.workload="sleep-1" … duration="12ms"
    {"level":"info","time":"2024-06-01T12:00:00.123456Z","scope":"access","message":"connection complete","src.addr":"10.244.1.5:45678",…}

A line is written when the connection ends; it began `duration` before. `bytes_recv` is what came from the source, `bytes_sent`
what went back to it. `dst.hbone_addr` is what was dialled, where the connection was tunnelled (HBONE: mTLS of the mesh);
`dst.addr` is then the tunnel's own end, port 15008. Source: istio/ztunnel, `src/proxy/metrics.rs`.
"""

import json
import re
from typing import Any, Final

from collector.errors import DecodeError
from collector.witnesses.envoy import unix_nano
from collector.witnesses.values import Row, address_and_port, attributes_of, count, flow_row, json_object

_PAIR: Final = re.compile(r'\s*([A-Za-z_][\w.]*)=("(?:[^"\\]|\\.)*"|\S*)', re.ASCII)
_DURATION: Final = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?(ns|us|µs|ms|s|m|h)", re.ASCII)
_UNIT_NS: Final = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}

_MESSAGES: Final = {"connection complete": "complete", "connection failed": "failed"}

_KEYS: Final = frozenset({
    "time", "level", "scope", "message", "src.addr", "src.workload", "src.namespace", "src.identity", "dst.service",
    "dst.workload", "dst.namespace", "dst.identity", "bytes_sent", "bytes_recv", "duration",
})  # fmt: skip
"""Keys that have a column, or say nothing more."""


def ztunnel_row(text: str) -> Row | None:
    """The row of one line, without what its file says; None for a line about something else. Raises DecodeError."""
    logged = json_object(text) if text.startswith("{") else _text_fields(text)
    if logged.get("scope") != "access":
        return None
    state = _MESSAGES.get(str(logged.get("message")))
    if state is None:
        return None
    end = unix_nano(logged.get("time"))
    if end is None:
        raise DecodeError("no time that is an RFC 3339 time")
    duration = duration_ns(logged.get("duration"))
    source, source_port = address_and_port(logged.get("src.addr"))
    tunnelled = _text(logged, "dst.hbone_addr")
    destination, destination_port = address_and_port(tunnelled)
    if destination is None:  # no tunnel, or to a name
        destination, outer_port = address_and_port(logged.get("dst.addr"))
        destination_port = destination_port or outer_port
    if source is None or destination is None:
        raise DecodeError("no src.addr or no dst.addr that is an address with a port")
    row = flow_row("ztunnel")
    row |= {
        "start_time_unix_nano": max(0, end - (duration or 0)),
        "duration_ns": duration,
        "protocol": "tcp",
        "source_address": source,
        "source_port": source_port,
        "destination_address": destination,
        "destination_port": destination_port,
        "destination_name": _text(logged, "dst.service"),
        "bytes_out": count(logged.get("bytes_recv")),
        "bytes_in": count(logged.get("bytes_sent")),
        "state": "error" if logged.get("error") and state == "complete" else state,
        "source_workload": _text(logged, "src.workload"),
        "source_namespace": _text(logged, "src.namespace"),
        "source_identity": _text(logged, "src.identity"),
        "destination_workload": _text(logged, "dst.workload"),
        "destination_namespace": _text(logged, "dst.namespace"),
        "destination_identity": _text(logged, "dst.identity"),
        "mesh_tls": _mesh_tls(logged.get("direction"), tunnelled, _text(logged, "src.identity")),
        "attributes": attributes_of((key, value) for key, value in logged.items() if key not in _KEYS),
    }
    return row


def _mesh_tls(direction: object, tunnelled: str | None, peer: str | None) -> bool | None:
    """Whether the connection was tunnelled. A source's own identity proves nothing of what it sent: only the receiver's view does."""
    if tunnelled is not None:
        return True
    match direction:
        case "inbound":
            return peer is not None
        case "outbound":
            return False
        case _:
            return None


def duration_ns(value: object) -> int | None:
    """Nanoseconds of `12ms`, `1.5s`; None if it is no duration."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    whole, fraction, unit = match.groups()
    scale = _UNIT_NS[unit]
    nanos = int(whole) * scale + int((fraction or "0").ljust(9, "0")) * scale // 10**9
    return nanos if nanos < 2**63 else None


def _text(logged: dict[str, Any], key: str) -> str | None:
    value = logged.get(key)
    return value if isinstance(value, str) and value not in {"", "-"} else None


def _text_fields(text: str) -> dict[str, Any]:
    parts = text.split("\t", 4)
    if len(parts) < 4:
        raise DecodeError("neither JSON nor ztunnel's text: time, level, scope, message and fields, with tabs between")
    logged: dict[str, Any] = dict(zip(("time", "level", "scope", "message"), parts, strict=False))
    rest = parts[4] if len(parts) > 4 else ""
    at = 0
    while match := _PAIR.match(rest, at):
        key, value = match.groups()
        logged[key] = _unquoted(value)
        at = match.end()
    if rest[at:].strip() and logged["scope"] == "access":
        raise DecodeError("fields that are not key=value")
    return logged


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    if "\\" not in value:
        return value[1:-1]
    try:
        return str(json.loads(value))
    except ValueError:  # Rust escapes more than JSON does
        return value[1:-1]

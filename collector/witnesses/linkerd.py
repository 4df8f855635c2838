"""Linkerd's access log, which its inbound proxy writes: apache or JSON lines in, rows of `proxy_records` out.

    10.42.0.63:51160 traffic.booksapp.serviceaccount.identity.linkerd.cluster.local - [2022-08-23T20:28:20.071809491Z] "GET http://webapp:7000/ HTTP/2.0" 200
    {"client.addr":"10.42.0.1:56300","client.id":"-","host":"10.42.0.69:7000","method":"GET","processing_ns":"35848",...}

`client.id` is the identity that mTLS proved: `-` means that the peer came without (its port is skipped, its pod is not
meshed, or the kubelet asks). Source: linkerd2-proxy, `linkerd/http/access-log`.
"""

import re
from typing import Any, Final
from urllib.parse import urlsplit

from collector.errors import DecodeError
from collector.witnesses.envoy import trace_id, unix_nano
from collector.witnesses.values import Row, attributes_of, count, json_object

_APACHE: Final = re.compile(
    r'(?P<client_addr>\S+) (?P<client_id>\S+) (?P<user>\S+) \[(?P<timestamp>[^\]]+)\] "(?P<method>[^" ]+) (?P<uri>[^" ]*)'
    r' (?P<version>[^" ]+)" (?P<status>\d+|-)(?: (?P<rest>.*))?'
)

_KEYS: Final = frozenset({
    "client.addr", "client.id", "host", "method", "request_bytes", "response_bytes", "status", "timestamp", "total_ns",
    "uri", "user_agent", "version", "trace_id",
})  # fmt: skip
"""Keys that have a column."""


def linkerd_row(text: str) -> Row:
    """The row of one line, without what its file says; raises DecodeError."""
    logged = json_object(text) if text.startswith("{") else _apache(text)
    start = unix_nano(logged.get("timestamp"))
    if start is None:
        raise DecodeError("no timestamp that is an RFC 3339 time")
    authority, path = _target(logged)
    seen = _text(logged, "trace_id")
    row: Row = {
        "direction": "inbound",
        "start_time_unix_nano": start,
        "duration_ns": count(logged.get("total_ns")),
        # Linkerd's `trace_id` is the first of x-b3-traceid, x-request-id, x-amzn-trace-id that the request has.
        "request_id": seen,
        "trace_id": trace_id(seen),
        "method": _text(logged, "method"),
        "path": path,
        "authority": authority,
        "protocol": _text(logged, "version"),
        "response_code": count(logged.get("status")),
        "response_flags": None,
        "bytes_received": count(logged.get("request_bytes")),
        "bytes_sent": count(logged.get("response_bytes")),
        "upstream_host": None,
        "upstream_cluster": None,
        "upstream_local_address": None,
        "downstream_local_address": None,
        "downstream_remote_address": _text(logged, "client.addr"),
        "requested_server_name": None,
        "user_agent": _text(logged, "user_agent"),
        "attributes": attributes_of((key, value) for key, value in logged.items() if key not in _KEYS),
        "format": "linkerd",
        "downstream_peer": _text(logged, "client.id"),
    }
    if row["downstream_remote_address"] is None and row["method"] is None:
        raise DecodeError("neither client.addr nor method: not a line of Linkerd's access log")
    return row


def _text(logged: dict[str, Any], key: str) -> str | None:
    value = logged.get(key)
    return value if isinstance(value, str) and value not in {"", "-"} else None


def _target(logged: dict[str, Any]) -> tuple[str | None, str | None]:
    """Authority and path: HTTP/2 has both in its uri, HTTP/1.1 the path there and the rest in `host`."""
    host, uri = _text(logged, "host"), _text(logged, "uri")
    if uri is None or "://" not in uri:
        return host, uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        return host, uri
    return host or parts.netloc or None, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _apache(text: str) -> dict[str, Any]:
    match = _APACHE.fullmatch(text)
    if match is None:
        raise DecodeError("neither JSON nor Linkerd's apache format")
    found = match.groupdict()
    found["client.addr"], found["client.id"] = found.pop("client_addr"), found.pop("client_id")
    return found

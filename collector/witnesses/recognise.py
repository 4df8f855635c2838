"""Which witness wrote a file, by its first lines. Pure.

    recognise(head) -> "istio", "zeek", ... or None

A format is recognised by what no other has; a custom format by nothing, and has to be named.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from collector.errors import DecodeError
from collector.witnesses.envoy import read_fields
from collector.witnesses.linkerd import linkerd_row
from collector.witnesses.reading import Format
from collector.witnesses.vpcflow import header_of, vpcflow_row

_LOOKED_AT: Final = 20
"""Lines that may come before the first one that says something: a program's greeting, a line that was cut off."""

_CONNTRACK: Final = re.compile(
    r"(?:\[\d[\d.]*\s*\]\s*)?(?:\[(?:NEW|UPDATE|DESTROY)\]\s*)?(?:ipv[46]\s+\d+\s+)?[a-z][a-z0-9]*\s+\d+\s.*\bsrc=\S+ dst=\S+"
)
_ZTUNNEL: Final = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z\t(?:trace|debug|info|warn|error)\t[\w:]+")
_ISTIO_KEYS: Final = frozenset({"upstream_transport_failure_reason", "route_name", "requested_server_name"})


def recognise(head: bytes) -> Format | None:
    """The format of a file that begins like this."""
    lines = head.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    whole = lines[:-1] if len(lines) > 1 else lines
    texts = (line.decode("utf-8", "replace").strip() for line in whole)
    for text in [text for text in texts if text][:_LOOKED_AT]:
        found = _json(text) if text.startswith("{") else _text(text)
        if found is not None:
            return found
    return None


def _json(text: str) -> Format | None:
    try:
        keys = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return by_keys(keys) if isinstance(keys, dict) else None


def by_keys(line: Mapping[str, Any]) -> Format | None:
    """By the keys of a JSON line."""
    keys = line.keys()
    flow = line.get("flow")
    match line:
        case _ if {"id.orig_h", "id.resp_h"} <= keys:
            return "zeek"
        case _ if {"client.addr", "client.id"} <= keys:
            return "linkerd"
        case _ if "scope" in keys and {"level", "message"} <= keys:
            return "ztunnel"
        case _ if isinstance(flow, dict) and "IP" in flow:
            return "hubble"
        case _ if {"IP", "verdict"} <= keys or {"lost_events"} & keys or "node_status" in keys:
            return "hubble"
        case _ if {":authority", "x-envoy-origin-path"} <= keys:
            return "envoy-gateway"
        case _ if keys >= _ISTIO_KEYS:
            return "istio"
        case _ if "start_time" in keys and {"method", "response_code", "upstream_host", "duration", "protocol"} & keys:
            return "envoy"
        case _:
            return None


def _text(text: str) -> Format | None:
    if text.startswith(("#separator", "#fields")):
        return "zeek"
    if _ZTUNNEL.match(text):
        return "ztunnel"
    if text.startswith("conntrack v") or _CONNTRACK.match(text):
        return "conntrack"
    if text.startswith("["):
        return _envoy(text)
    return _by_reading(text)


def _envoy(text: str) -> Format | None:
    try:
        return "istio" if "route_name" in read_fields(text) else "envoy"
    except DecodeError:
        return None


def _by_reading(text: str) -> Format | None:
    try:
        if header_of(text) is not None:
            return "vpcflow"
    except DecodeError:
        return "vpcflow"
    if text.startswith("2 "):
        try:
            vpcflow_row(text)
        except DecodeError:
            return "vpcflow" if text.endswith("SKIPDATA") else None
        return "vpcflow"
    try:
        linkerd_row(text)
    except DecodeError:
        return None
    return "linkerd"

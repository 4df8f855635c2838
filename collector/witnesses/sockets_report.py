"""A socket witness's report as it arrives: JSON in, rows of `sockets` and `socket_watches` out. Pure: no socket, no clock.

    {"source": "checkout-7d9f", "service_name": "checkout", "service_instance_id": "checkout-7d9f",
     "watch": {"addresses": ["10.1.0.7"], "since_unix_nano": 1, "until_unix_nano": 2, "interval_ns": 1, "samples": 1, "proxy_found": true},
     "sockets": [{"record_id": 1, "protocol": "tcp", "direction": "outbound", "local_address": "10.1.0.7", "local_port": 58548, ...}]}

| | |
|---|---|
| no JSON, not this form, a watch that cannot be | DecodeError: nothing of the report counts |
| a socket that is not one | left out, counted under its reason; the others count |

A report is hostile until it was read: lengths, counts and ranges are limited, addresses must be addresses.
"""

import ipaddress
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from collector.errors import DecodeError
from collector.schema import arrow_schema

MAX_SOCKETS: Final = 20_000
"""Of one report: four times what our witness sends at once."""

MAX_TEXT: Final = 256
_MAX_ADDRESSES: Final = 256
_MAX_ATTRIBUTES: Final = 16
_LAST_NANO: Final = 2**63 - 1
_LAST_ID: Final = 2**64 - 1
_LAST_UID: Final = 2**32 - 1

_PROTOCOLS: Final = frozenset({"tcp", "udp"})
_DIRECTIONS: Final = frozenset({"outbound", "inbound"})
_CAPTURES: Final = frozenset({"captured", "bypassed", "not_mesh"})


class _BadRowError(Exception):
    """A row that does not count; its text is the reason, without the data."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One report.

    Attributes:
        batches: By table name: `socket_watches`, and `sockets` where there are any.
        source: The witness's name.
        rejected: Rows that were left out, by reason.
    """

    batches: Mapping[str, pa.RecordBatch]
    source: str
    rejected: Mapping[str, int]


def decode_report(payload: bytes, *, received_unix_nano: int) -> Decoded:
    """The rows of a report; raises DecodeError."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as e:
        raise DecodeError(f"a report of sockets is JSON: {type(e).__name__}") from e
    try:
        report = _fields(document, "a report")
        source = _text(report, "source")
        own = {
            "source": source,
            "service_name": _text(report, "service_name"),
            "service_instance_id": _optional_text(report, "service_instance_id"),
            "received_unix_nano": received_unix_nano,
        }
        watch = _watch(_fields(report.get("watch"), "watch"))
    except _BadRowError as e:
        raise DecodeError(f"a report of sockets: {e}") from e
    sockets = report.get("sockets", [])
    if not isinstance(sockets, list):
        raise DecodeError("a report of sockets: `sockets` is not a list")
    if len(sockets) > MAX_SOCKETS:
        raise DecodeError(f"a report of {len(sockets)} sockets: {MAX_SOCKETS} are accepted, send them in several")
    rows, rejected = _rows(sockets)
    batches = {"socket_watches": _batch("socket_watches", [watch | own])}
    if rows:
        batches["sockets"] = _batch("sockets", [row | own for row in rows])
    return Decoded(batches, source, rejected)


def _rows(sockets: list[Any]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The good rows, the last of each id, and the bad ones' reasons."""
    rows: dict[int, dict[str, Any]] = {}
    rejected: Counter[str] = Counter()
    for entry in sockets:
        try:
            row = _socket(_fields(entry, "a socket"))
        except _BadRowError as e:
            rejected[str(e)] += 1
            continue
        rows[row["record_id"]] = row
    return list(rows.values()), rejected


def _batch(table: str, rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=arrow_schema(table))


def _watch(given: dict[str, Any]) -> dict[str, Any]:
    addresses = given.get("addresses") or []
    if not isinstance(addresses, list) or len(addresses) > _MAX_ADDRESSES:
        raise _BadRowError(f"`addresses` is not a list of at most {_MAX_ADDRESSES}")
    since, until = _time(given, "since_unix_nano"), _time(given, "until_unix_nano")
    if until < since:
        raise _BadRowError("`until_unix_nano` is before `since_unix_nano`")
    return {
        "addresses": ",".join(_address(a, "addresses") for a in addresses) or None,
        "since_unix_nano": since,
        "until_unix_nano": until,
        "interval_ns": _optional_number(given, "interval_ns", _LAST_NANO),
        "samples": _optional_number(given, "samples", _LAST_NANO),
        "proxy_found": _optional_boolean(given, "proxy_found"),
    }


def _socket(given: dict[str, Any]) -> dict[str, Any]:
    first, last = _time(given, "first_seen_unix_nano"), _time(given, "last_seen_unix_nano")
    if last < first:
        raise _BadRowError("`last_seen_unix_nano` is before `first_seen_unix_nano`")
    remote = given.get("remote_address")
    return {
        "record_id": _number(given, "record_id", _LAST_ID),
        "protocol": _one_of(given, "protocol", _PROTOCOLS),
        "direction": None if given.get("direction") is None else _one_of(given, "direction", _DIRECTIONS),
        "local_address": _address(given.get("local_address"), "local_address"),
        "local_port": _number(given, "local_port", 65535),
        "remote_address": None if remote is None else _address(remote, "remote_address"),
        "remote_port": _optional_number(given, "remote_port", 65535),
        "state": _text(given, "state"),
        "capture": None if given.get("capture") is None else _one_of(given, "capture", _CAPTURES),
        "proxy_port": _optional_number(given, "proxy_port", 65535),
        "uid": _optional_number(given, "uid", _LAST_UID),
        "first_seen_unix_nano": first,
        "last_seen_unix_nano": last,
        "attributes": _attributes(given.get("attributes") or {}),
    }


# --- values -----------------------------------------------------------------------------------------------------------------


def _fields(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _BadRowError(f"{what} is not an object")
    return value


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not _is_unicode(value):
        raise _BadRowError(f"`{name}` is not a text of 1 to {MAX_TEXT} characters")
    return value


def _is_unicode(value: str) -> bool:
    """JSON may have half a surrogate pair, which no UTF-8 has."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _optional_text(given: Mapping[str, Any], name: str) -> str | None:
    return None if given.get(name) in {None, ""} else _text(given, name)


def _number(given: Mapping[str, Any], name: str, last: int) -> int:
    value = given.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= last:
        raise _BadRowError(f"`{name}` is not a whole number from 0 to {last}")
    return value


def _optional_number(given: Mapping[str, Any], name: str, last: int) -> int | None:
    return None if given.get(name) is None else _number(given, name, last)


def _optional_boolean(given: Mapping[str, Any], name: str) -> bool | None:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise _BadRowError(f"`{name}` is neither true nor false")
    return value


def _time(given: Mapping[str, Any], name: str) -> int:
    return _number(given, name, _LAST_NANO)


def _one_of(given: Mapping[str, Any], name: str, names: frozenset[str]) -> str:
    value = given.get(name)
    if not isinstance(value, str) or value not in names:
        raise _BadRowError(f"`{name}` is none of {', '.join(sorted(names))}")
    return value


def _address(value: object, name: str) -> str:
    """As ipaddress writes it, so that the two ends of a connection compare as texts."""
    if not isinstance(value, str):
        raise _BadRowError(f"`{name}` is not an IP address")
    try:
        parsed = ipaddress.ip_address(value)
    except ValueError as e:
        raise _BadRowError(f"`{name}` is not an IP address") from e
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def _attributes(value: object) -> list[tuple[str, str]]:
    if not isinstance(value, dict) or len(value) > _MAX_ATTRIBUTES:
        raise _BadRowError(f"`attributes` is not an object of at most {_MAX_ATTRIBUTES} texts")
    for key, text in value.items():
        if not isinstance(text, str) or max(len(key), len(text)) > MAX_TEXT or not _is_unicode(key + text):
            raise _BadRowError(f"`attributes` has more than texts of at most {MAX_TEXT} characters")
    return list(value.items())

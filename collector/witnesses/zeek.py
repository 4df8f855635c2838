r"""Zeek's conn.log, TSV or JSON: lines in, rows of `flows` out.

A TSV log says in its header what its columns are (`#fields`), how they are separated (`#separator \x09`) and what stands for no
value (`#unset_field -`, `#empty_field (empty)`); a log that was rotated into another file begins with a header of its own.
Bytes are IP bytes with headers where Zeek counted them, else payload. Source: Zeek, "conn.log" and "Log Formats".
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from collector.errors import DecodeError
from collector.witnesses.envoy import unix_nano
from collector.witnesses.values import (
    Row,
    address,
    attributes_of,
    count,
    epoch_ns,
    flow_row,
    json_object,
    port,
    seconds_ns,
)

NEEDED: Final = ("ts", "id.orig_h", "id.resp_h")

COLUMNS: Final = frozenset({
    *NEEDED, "id.orig_p", "id.resp_p", "proto", "duration", "conn_state", "orig_pkts", "resp_pkts",
    "orig_ip_bytes", "resp_ip_bytes",
})  # fmt: skip
"""Fields that have a column; payload bytes stay in `attributes` beside the IP bytes."""


@dataclass(frozen=True, slots=True)
class ZeekHeader:
    """What a TSV log says of itself."""

    separator: str = "\t"
    unset: str = "-"
    empty: str = "(empty)"
    path: str = "conn"
    fields: tuple[str, ...] = ()


def header_line(text: str, before: ZeekHeader) -> ZeekHeader:
    """What is known after a line that begins with `#`; raises DecodeError where the log is another one, or lacks a field."""
    if text.startswith("#separator"):
        return replace(ZeekHeader(), separator=_separator(text[len("#separator") :].strip()))
    name, *values = text.split(before.separator)
    match name, values:
        case "#unset_field", [value]:
            return replace(before, unset=value)
        case "#empty_field", [value]:
            return replace(before, empty=value)
        case "#path", [value]:
            return replace(before, path=value, fields=())
        case "#fields", fields:
            if before.path == "conn" and (missing := [f for f in NEEDED if f not in fields]):
                raise DecodeError(f"a header without {', '.join(missing)}: not a conn.log")
            return replace(before, fields=tuple(fields))
        case _:
            return before


def _separator(text: str) -> str:
    if text.startswith("\\x") and len(text) == 4:
        try:
            return bytes.fromhex(text[2:]).decode("latin-1")
        except ValueError:
            raise DecodeError("a #separator that is no character") from None
    return text or "\t"


def zeek_row(text: str, header: ZeekHeader = ZeekHeader()) -> Row:
    """The row of one line, without what its file says; raises DecodeError."""
    if text.startswith("{"):
        record: Mapping[str, object] = json_object(text)
    else:
        record = _columns(text, header)
    start = _time(record.get("ts"))
    if start is None:
        raise DecodeError("ts is no time since 1970")
    source, destination = address(record.get("id.orig_h")), address(record.get("id.resp_h"))
    if source is None or destination is None:
        raise DecodeError("id.orig_h or id.resp_h is no address")
    row = flow_row("zeek")
    protocol, state = record.get("proto"), record.get("conn_state")
    row |= {
        "start_time_unix_nano": start,
        "duration_ns": seconds_ns(record.get("duration")),
        "protocol": protocol.lower() if isinstance(protocol, str) and protocol else None,
        "source_address": source,
        "source_port": port(record.get("id.orig_p")),
        "destination_address": destination,
        "destination_port": port(record.get("id.resp_p")),
        "bytes_out": _first(record, "orig_ip_bytes", "orig_bytes"),
        "bytes_in": _first(record, "resp_ip_bytes", "resp_bytes"),
        "packets_out": count(record.get("orig_pkts")),
        "packets_in": count(record.get("resp_pkts")),
        "state": state if isinstance(state, str) and state else None,
        "attributes": attributes_of((key, value) for key, value in record.items() if key not in COLUMNS),
    }
    return row


def _columns(text: str, header: ZeekHeader) -> dict[str, object]:
    if header.path != "conn":
        raise DecodeError("not of a conn.log: the header says another #path")
    if not header.fields:
        raise DecodeError("no #fields line before it")
    values = text.split(header.separator)
    if len(values) != len(header.fields):
        raise DecodeError("not as many columns as #fields names")
    nothing = (header.unset, header.empty)
    return {key: None if value in nothing else value for key, value in zip(header.fields, values, strict=True)}


def _time(value: object) -> int | None:
    match value:
        case bool():
            return None
        case int() | float():
            return seconds_ns(value)
        case str():
            found = epoch_ns(value)
            return unix_nano(value) if found is None else found
        case _:
            return None


def _first(record: Mapping[str, object], *keys: str) -> int | None:
    return next((number for key in keys if (number := count(record.get(key))) is not None), None)

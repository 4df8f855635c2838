"""Zeek's and AWS's columns, by the block: what `zeek.zeek_row` and `vpcflow.vpcflow_row` say of each line, of all at once."""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collector.witnesses import vpcflow, zeek
from collector.witnesses.blocks import Lines, Mask, Values
from collector.witnesses.columns import Rows, first_of, mapped
from collector.witnesses.proxy_columns import Found, usual_rows
from collector.witnesses.values import address, schema_of

_TABLE: Final = schema_of("flows")
_TAB, _BLANK = 9, 32


def zeek_columns(lines: Lines, header: zeek.ZeekHeader) -> list[Found]:
    """The rows of ordinary lines of a TSV log; the others are to be read one by one."""
    fields = header.fields
    if (
        header.path != "conn"
        or header.separator != "\t"
        or header.unset != "-"
        or len(set(fields)) != len(fields)
        or not fields
    ):
        return []
    numbers, values = lines.separated(_TAB, len(fields))
    if not len(numbers):
        return []
    columns = dict(zip(fields, values, strict=True))
    rows = Rows(columns, len(numbers), ("-", header.empty, ""))
    made = {
        "start_time_unix_nano": rows.epochs("ts", is_needed=True),
        "duration_ns": rows.epochs("duration", is_needed=False) if rows.has("duration") else None,
        "protocol": rows.mapped("proto", pa.string(), str.lower) if rows.has("proto") else None,
        "source_address": _addresses(rows, "id.orig_h"),
        "source_port": _ports(rows, "id.orig_p"),
        "destination_address": _addresses(rows, "id.resp_h"),
        "destination_port": _ports(rows, "id.resp_p"),
        "bytes_out": _first_count(rows, "orig_ip_bytes", "orig_bytes"),
        "bytes_in": _first_count(rows, "resp_ip_bytes", "resp_bytes"),
        "packets_out": _first_count(rows, "orig_pkts"),
        "packets_in": _first_count(rows, "resp_pkts"),
        "state": rows.strings("conn_state") if rows.has("conn_state") else None,
    }
    # A text without a value where the format has another word for that is a value to one reader and none to the other.
    rest = {key: mask for key in fields if key not in zeek.COLUMNS and (mask := rows.present(key)).any()}
    made["attributes"] = rows.attributes(rest)
    return _found(rows, numbers, made, "zeek")


def vpcflow_columns(lines: Lines, fields: vpcflow.Fields) -> list[Found]:
    """The rows of ordinary records; the others are to be read one by one."""
    if len(set(fields)) != len(fields) or not lines.is_ascii:
        return []
    numbers, values = lines.separated(_BLANK, len(fields))
    if not len(numbers):
        return []
    columns = dict(zip(fields, values, strict=True))
    rows = Rows(columns, len(numbers), ("-",))
    for column in values:
        rows.unusual |= column.are(b"")
    if "log-status" in columns:
        rows.unusual |= columns["log-status"].are(b"NODATA", b"SKIPDATA")
    start = rows.epochs("start", is_needed=True)
    end = rows.epochs("end", is_needed=False) if "end" in columns else pa.nulls(rows.count, pa.int64())
    for key in ("start", "end"):
        if key in columns:
            rows.unusual |= np.asarray(pc.match_substring(columns[key].text, ".").to_numpy(zero_copy_only=False))
    duration = pc.subtract(end, start)
    made: dict[str, pa.Array | None] = {
        "start_time_unix_nano": start,
        "duration_ns": pc.if_else(pc.greater_equal(duration, 0), duration, pa.scalar(None, pa.int64())),
        "protocol": mapped(columns["protocol"].text, pa.string(), vpcflow.protocol_of)
        if "protocol" in columns
        else None,
        "state": rows.strings("action") if "action" in columns else None,
    }
    ends = (
        (_addresses(rows, "srcaddr"), _ports(rows, "srcport")),
        (_addresses(rows, "dstaddr"), _ports(rows, "dstport")),
    )
    answers = _answers(rows, columns, ends[0][1], ends[1][1])
    chosen = pa.array(answers)
    for place, name in enumerate(("address", "port")):
        made[f"source_{name}"] = pc.if_else(chosen, ends[1][place], ends[0][place])
        made[f"destination_{name}"] = pc.if_else(chosen, ends[0][place], ends[1][place])
    for name in ("bytes", "packets"):
        counted = _first_count(rows, name)
        nothing = pa.scalar(None, pa.int64())
        made[f"{name}_out"], made[f"{name}_in"] = (
            pc.if_else(chosen, nothing, counted),
            pc.if_else(chosen, counted, nothing),
        )
    rest = {key: rows.present(key) for key in fields if key not in vpcflow.COLUMNS}
    made["attributes"] = rows.attributes(rest, truths={"reply": answers})
    return _found(rows, numbers, made, "vpcflow")


def _found(
    rows: Rows, numbers: np.ndarray[tuple[int], np.dtype[np.int64]], made: dict[str, pa.Array | None], format_: str
) -> list[Found]:
    """The usual rows, with what these formats never know."""
    columns = {}
    for field in _TABLE:
        if field.name in {"record_id", "source", "received_unix_nano"}:
            continue
        column = pa.repeat(pa.scalar(format_), rows.count) if field.name == "format" else made.get(field.name)
        columns[field.name] = pa.nulls(rows.count, field.type) if column is None else column.cast(field.type)
    found = usual_rows(numbers, columns, rows.unusual)
    return [] if found is None else [found]


def _addresses(rows: Rows, key: str) -> pa.Array:
    found = rows.mapped(key, pa.string(), address)
    rows.unusual |= np.asarray(found.is_null().to_numpy(zero_copy_only=False))
    return found


def _ports(rows: Rows, key: str) -> pa.Array:
    if not rows.has(key):
        return pa.nulls(rows.count, pa.int64())
    found = rows.counts(key)
    rows.unusual |= np.asarray(pc.fill_null(pc.greater(found, 65535), fill_value=False).to_numpy(zero_copy_only=False))
    return found


def _first_count(rows: Rows, *keys: str) -> pa.Array:
    arrays = [rows.counts(key) for key in keys if rows.has(key)]
    return first_of(arrays) if arrays else pa.nulls(rows.count, pa.int64())


def _answers(rows: Rows, columns: dict[str, Values], source_port: pa.Array, destination_port: pa.Array) -> Mask:
    """Which records are of the direction that answers, as `vpcflow.is_answer` decides it."""
    if "protocol" not in columns:
        return np.zeros(rows.count, np.bool_)
    protocol = columns["protocol"]
    source, destination = (np.asarray(pc.fill_null(ports, 0)) for ports in (source_port, destination_port))
    by_ports: Mask = (
        protocol.are(b"6", b"17") & (source > 0) & (source < vpcflow.EPHEMERAL) & (destination >= vpcflow.EPHEMERAL)
    )
    if "tcp-flags" not in columns:
        return by_ports
    flags = np.asarray(pc.fill_null(rows.counts("tcp-flags"), 0))
    begins = protocol.are(b"6") & (flags & vpcflow.SYN > 0)
    return np.where(begins, flags & vpcflow.ACK > 0, by_ports)

"""AWS VPC flow logs as text, version 2 and later: lines in, rows of `flows` out.

    2 123456789010 eni-1235b8ca 172.31.16.139 172.31.16.21 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK

Without a header line the fields are version 2's, in their order; a header line names them in any order. A record is one direction
of a connection over some minutes. The answering direction is turned round, so that `source` is who opened the connection: told
by `tcp-flags` (SYN with ACK), else by ports (from a well-known one to another, or from below 32768 to an ephemeral one); `attributes.reply` says so.
Times are whole seconds. NODATA is no flow; SKIPDATA says that AWS lost some, and is counted.
Source: "Flow log records", Amazon VPC user guide.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from collector.errors import DecodeError
from collector.witnesses.values import NS_PER_S, Row, address, attributes_of, count, flow_row, port

Fields = tuple[str, ...]

VERSION_2: Final[Fields] = (
    "version", "account-id", "interface-id", "srcaddr", "dstaddr", "srcport", "dstport", "protocol", "packets", "bytes",
    "start", "end", "action", "log-status",
)  # fmt: skip

_NEEDED: Final = frozenset({"srcaddr", "dstaddr", "start"})
COLUMNS: Final = frozenset(VERSION_2) - {"account-id", "interface-id"}
"""Fields that have a column, or say nothing more."""

PROTOCOLS: Final = {
    "1": "icmp",
    "2": "igmp",
    "6": "tcp",
    "17": "udp",
    "47": "gre",
    "50": "esp",
    "58": "icmpv6",
    "132": "sctp",
}
"""IANA's numbers, as far as they are seen in clusters."""

EPHEMERAL: Final = 32768
"""Linux hands out ports from here on to who opens a connection."""

WELL_KNOWN: Final = 1024
"""Below it services answer, and load balancers and NAT gateways, which open connections from any port above, do not begin."""

SYN, ACK = 2, 16


def header_of(text: str) -> Fields | None:
    """The fields that a header line names; None if it is no header line. Raises DecodeError where one lacks what rows need."""
    words = tuple(word.strip("${}").replace("_", "-").lower() for word in text.replace(",", " ").split())
    if not {"srcaddr", "dstaddr"}.issubset(words):
        return None
    if missing := _NEEDED.difference(words):
        raise DecodeError(f"a header without {', '.join(sorted(missing))}")
    return words


def vpcflow_row(text: str, fields: Fields = VERSION_2) -> Row | None:
    """The row of one record, without what its file says; None where there was no traffic. Raises DecodeError."""
    values = text.split()
    if len(values) != len(fields):
        raise DecodeError(f"{len(fields)} fields expected: {_found(values)}")
    record = dict(zip(fields, values, strict=True))
    match record.get("log-status"):
        case "NODATA":
            return None
        case "SKIPDATA":
            raise DecodeError("SKIPDATA: AWS recorded less than there was")
    start, end = _seconds(record["start"]), _seconds(record.get("end", "-"))
    if start is None:
        raise DecodeError("start is no time in seconds")
    ends = [
        (address(record["srcaddr"]), port(record.get("srcport"))),
        (address(record["dstaddr"]), port(record.get("dstport"))),
    ]
    if ends[0][0] is None or ends[1][0] is None:
        raise DecodeError("srcaddr or dstaddr is no address")
    protocol = record.get("protocol", "-")
    is_reply = is_answer(protocol, ends[0][1], ends[1][1], count(record.get("tcp-flags")))
    sent = "in" if is_reply else "out"
    if is_reply:
        ends.reverse()
    row = flow_row("vpcflow")
    row["protocol"] = protocol_of(protocol)
    (row["source_address"], row["source_port"]), (row["destination_address"], row["destination_port"]) = ends
    row["start_time_unix_nano"], row["duration_ns"] = start, None if end is None or end < start else end - start
    row[f"bytes_{sent}"], row[f"packets_{sent}"] = count(record.get("bytes")), count(record.get("packets"))
    row["state"] = None if record.get("action", "-") == "-" else record["action"]
    rest: Mapping[str, object] = {key: value for key, value in record.items() if key not in COLUMNS}
    row["attributes"] = attributes_of({**rest, **({"reply": True} if is_reply else {})})
    return row


def protocol_of(number: str) -> str | None:
    """The name of a protocol's number; the number where it has none here."""
    return PROTOCOLS.get(number, None if number == "-" else number.lower())


def is_answer(protocol: str, source_port: int | None, destination_port: int | None, tcp_flags: int | None) -> bool:
    """Whether a record is of the direction that answers; where nothing tells, it is not."""
    if protocol == "6" and tcp_flags is not None and tcp_flags & SYN:
        return bool(tcp_flags & ACK)
    if protocol not in {"6", "17"} or not source_port or not destination_port:
        return False
    return source_port < EPHEMERAL <= destination_port or source_port < WELL_KNOWN <= destination_port


def _seconds(text: str) -> int | None:
    return (
        int(text) * NS_PER_S
        if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= 9_223_372_036
        else None
    )


def _found(values: Sequence[str]) -> str:
    return "too few" if len(values) < len(VERSION_2) else "another number"

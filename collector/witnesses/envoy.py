r"""One line of an Envoy or Istio access log: text in, a row of `proxy_records` out, or DecodeError. No file, no clock.

`decode_line` reads a file's lines; `read_fields` and `row_of` are its two halves, for senders that deliver a line's fields
one by one (OTLP logs).

Three forms are read, told apart by the line itself:
- JSON with Istio's and Envoy's key names (`start_time`, `request_id`, `authority`, ...);
- JSON with Envoy Gateway's (`x-request-id`, `:authority`, `x-envoy-origin-path`, ...);
- the default text formats of Istio (1.6 and later) and of plain Envoy.

`-`, an empty string and null mean: not logged. Every key that has no column goes into `attributes` as JSON text, and so
does a value that does not fit its column.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Final, Literal
from uuid import UUID

import numpy as np
import pyarrow as pa

from collector.errors import DecodeError
from collector.schema import arrow_schema
from provenance.identity import XFCC, peer_principal

Direction = Literal["inbound", "outbound"]
Format = Literal["envoy", "istio", "envoy-gateway"]
Row = dict[str, object]

MAX_LINE_BYTES: Final = 256 * 1024
"""Envoy cuts nothing; its own limit on all request headers is 60 KiB, escaped up to six bytes a byte in JSON."""

_INT64_MAX: Final = 2**63 - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SCHEMA: Final = arrow_schema("proxy_records")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a line comes from.

    Attributes:
        source: The file or stream.
        service_name: The workload whose proxy wrote it.
        direction: What the operator says about the file; a line's own `upstream_cluster` (Istio) goes before it.
        service_instance_id: Which replica, where known.
        format: Whose format all of its lines have, where somebody said so; else each line speaks for itself.
    """

    source: str
    service_name: str
    direction: Direction | None = None
    service_instance_id: str | None = None
    format: Format | None = None


def decode_line(line: bytes, origin: Origin, *, offset: int, received_unix_nano: int) -> Row:
    """The row of one line, whose first byte is at `offset`; raises DecodeError, whose reason never contains the data."""
    if len(line) > MAX_LINE_BYTES:
        raise DecodeError("line too long")
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        raise DecodeError("not UTF-8") from None
    row = row_of(read_fields(text))
    set_direction(row, origin.direction)
    row["format"] = origin.format or row["format"]
    row["record_id"] = record_id(origin.source, offset, line)
    row["source"] = origin.source
    row["service_name"] = origin.service_name
    row["service_instance_id"] = origin.service_instance_id
    row["received_unix_nano"] = received_unix_nano
    return row


def read_fields(text: str) -> dict[str, object]:
    """What a line logs, by key: its JSON object, or one of the default text formats. Raises DecodeError."""
    return _json_line(text) if text.startswith("{") else _text_line(text)


def record_id(source: str, offset: int, line: bytes) -> int:
    """A hash of what was read and where.

    The line is part of it, because offsets start again when a file is rotated; the offset is, because one proxy may
    log the same line twice.
    """
    content = source.encode("utf-8", "surrogateescape") + b"\0%d\0" % offset + line.strip()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def to_batch(rows: Sequence[Row]) -> pa.RecordBatch:
    """The rows as a record batch for `proxy_records`."""
    values = zip(*map(_in_order, rows), strict=True) if rows else [()] * len(_SCHEMA)
    columns = [_column(column, field.type) for column, field in zip(values, _SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


_in_order: Final = itemgetter(*_SCHEMA.names)


def _column(values: Sequence[object], type_: pa.DataType) -> pa.Array:
    """An Arrow array. Through NumPy where numbers exceed 2^63: from a list they take Arrow 55 µs each, 400 times as long."""
    return pa.array(np.array(values, dtype=np.uint64) if type_ == pa.uint64() else values, type_)


# --- keys ---------------------------------------------------------------------------------------------------------------


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    """A whole number that fits a BIGINT, from a number or its text."""
    match value:
        case bool():
            return None
        case int():
            number = value
        case float() if value.is_integer():  # a JSON number that passed through a Collector
            number = int(value)
        case str() if value.isascii() and value.isdigit() and len(value) < 20:
            number = int(value)
        case _:
            return None
    return number if 0 <= number <= _INT64_MAX else None


def _milliseconds(value: object) -> int | None:
    """Nanoseconds of a duration in milliseconds."""
    number = _count(value)
    return None if number is None or number > _INT64_MAX // 1_000_000 else number * 1_000_000


def _trace_id(value: object) -> UUID | None:
    """A trace id in hex, or the one inside a traceparent."""
    text = _string(value) or ""
    match = _TRACEPARENT.fullmatch(text)
    digits = match[1] if match else text
    return UUID(digits) if _HEX_32.fullmatch(digits) and int(digits, 16) else None


_HEX_32: Final = re.compile("[0-9a-fA-F]{32}")
_TRACEPARENT: Final = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9})\d*)?(?:Z|([+-])(\d\d):?(\d\d))", re.ASCII
)


def unix_nano(value: object) -> int | None:
    """Nanoseconds since the epoch of an RFC 3339 time, to its last digit; None if it is none, or before the epoch."""
    match = _TIME.fullmatch(_string(value) or "")
    if match is None:
        return None
    minute = _unix_minute(match.group(1, 2, 3, 4, 5), match.group(8, 9, 10))
    if minute is None:
        return None
    # A leap second is the second after: 23:59:60 is 00:00:00.
    seconds = minute * 60 + min(int(match[6]), 60)
    nanos = seconds * 1_000_000_000 + int((match[7] or "0").ljust(9, "0"))
    return nanos if 0 <= nanos <= _INT64_MAX else None


@lru_cache(maxsize=1024)
def _unix_minute(digits: tuple[str, ...], zone: tuple[str | None, ...]) -> int | None:
    """Minutes since the epoch; None if there is no such minute. Cached: the lines of one reading are of a few minutes."""
    year, month, day, hour, minute = map(int, digits)
    sign, hours, minutes = zone
    try:
        instant = datetime(year, month, day, hour, minute, tzinfo=UTC)
        if hours and minutes:
            shift = timedelta(hours=int(hours), minutes=int(minutes))
            instant += -shift if sign == "+" else shift
    except (ValueError, OverflowError):
        return None
    return (instant - _EPOCH) // timedelta(minutes=1)


_Convert = Callable[[object], object]

_COLUMNS: Final[dict[str, tuple[_Convert, tuple[str, ...]]]] = {
    "start_time_unix_nano": (unix_nano, ("start_time",)),
    "duration_ns": (_milliseconds, ("duration",)),
    "request_id": (_string, ("request_id", "x-request-id", "x_request_id")),
    "trace_id": (_trace_id, ("trace_id", "traceparent")),
    "method": (_string, ("method", ":method")),
    "path": (_string, ("path", "x-envoy-origin-path", "x-envoy-original-path", ":path")),
    "authority": (_string, ("authority", ":authority")),
    "protocol": (_string, ("protocol",)),
    "response_code": (_count, ("response_code",)),
    "response_flags": (_string, ("response_flags",)),
    "bytes_received": (_count, ("bytes_received",)),
    "bytes_sent": (_count, ("bytes_sent",)),
    "upstream_host": (_string, ("upstream_host",)),
    "upstream_cluster": (_string, ("upstream_cluster",)),
    "upstream_local_address": (_string, ("upstream_local_address",)),
    "downstream_local_address": (_string, ("downstream_local_address",)),
    "downstream_remote_address": (_string, ("downstream_remote_address",)),
    "requested_server_name": (_string, ("requested_server_name",)),
    "user_agent": (_string, ("user_agent", "user-agent")),
}
"""Column to (conversion, keys that fill it): the first key whose value converts does; the others go to `attributes`."""


_ONLY_KEYS: Final = {keys[0]: (column, convert) for column, (convert, keys) in _COLUMNS.items() if len(keys) == 1}
_SEVERAL_KEYS: Final = {column: way for column, way in _COLUMNS.items() if len(way[1]) > 1}
_NOWHERE: Final[tuple[str, _Convert]] = ("", lambda _: None)

KNOWN_KEYS: Final = frozenset(key for _, keys in _COLUMNS.values() for key in keys)


def row_of(logged: Mapping[str, object], *, start_time_unix_nano: int | None = None) -> Row:
    """Every column that the line itself determines. Raises DecodeError.

    `start_time_unix_nano` is what its envelope says of the time, if it has one: it counts where the line says nothing,
    or the same with fewer digits.
    """
    rest: dict[str, object] = {}
    row: Row = dict.fromkeys(_COLUMNS)
    for key, value in logged.items():
        if value is None or value in ("", "-"):
            continue
        column, convert = _ONLY_KEYS.get(key, _NOWHERE)
        if (converted := convert(value)) is None:
            rest[key] = value
        else:
            row[column] = converted
    for column, (convert, keys) in _SEVERAL_KEYS.items():
        for key in keys:
            if key in rest and (converted := convert(rest[key])) is not None:
                row[column] = converted
                del rest[key]
                break
    row["start_time_unix_nano"] = _start(row["start_time_unix_nano"], start_time_unix_nano)
    if row["start_time_unix_nano"] is None:
        raise DecodeError("no start_time that is an RFC 3339 time")
    row["attributes"] = [(key, _json_text(value)) for key, value in rest.items()]
    row["format"] = _format(row["upstream_cluster"], logged)
    row["downstream_peer"] = next(
        (peer for key in PEER_KEYS if key in rest and (peer := peer_of(key, rest[key]))), None
    )
    return row


PEER_KEYS: Final = ("downstream_peer_uri_san", XFCC, "x_forwarded_client_cert", "xfcc")
"""Keys under which formats log who the peer proved to be: what TLS said itself goes first."""


def peer_of(key: str, value: object) -> str | None:
    """The identity that a value of `PEER_KEYS` proves; of several addresses of one certificate the first."""
    text = _string(value)
    if text is None:
        return None
    return text.partition(",")[0] if key == PEER_KEYS[0] else peer_principal(text, None)


def set_direction(row: Row, said: Direction | None) -> None:
    """Give the row its direction: the line's own goes before what somebody said of its file.

    What a proxy is sent by its own workload is no proof of a peer, so outbound rows have none.
    """
    row["direction"] = direction_of(row["upstream_cluster"]) or said
    if row["direction"] == "outbound":
        row["downstream_peer"] = None


def _format(cluster: object, logged: Mapping[str, object]) -> Format:
    if any(logged.get(key) not in (None, "", "-") for key in GATEWAY_KEYS):
        return "envoy-gateway"
    return "istio" if direction_of(cluster) else "envoy"


GATEWAY_KEYS: Final = (":authority", "x-envoy-origin-path")
"""Keys that Envoy Gateway's default format has, and no other."""


def _start(logged: object, enveloped: int | None) -> object:
    """Envoy logs milliseconds by default, and puts nanoseconds of the same instant on the envelope."""
    if enveloped is None or (isinstance(logged, int) and enveloped // 1_000_000 != logged // 1_000_000):
        return logged
    return enveloped


_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode  # `json.dumps` would make one a value


def _json_text(value: object) -> str:
    try:
        return _encode(value)
    except RecursionError:
        raise DecodeError("nested too deep") from None
    except ValueError:
        raise DecodeError("a number that no float can hold") from None


def direction_of(cluster: object) -> Direction | None:
    """Istio's cluster names carry it: `outbound|8000||httpbin.foo.svc.cluster.local`, `inbound|8000||`."""
    prefix = str(cluster).partition("|")[0]
    match prefix:
        case (
            "inbound" | "InboundPassthroughCluster" | "InboundPassthroughClusterIpv4" | "InboundPassthroughClusterIpv6"
        ):
            return "inbound"
        case "outbound" | "PassthroughCluster" | "BlackHoleCluster":
            return "outbound"
        case _:
            return None


# --- JSON ---------------------------------------------------------------------------------------------------------------


def _json_line(text: str) -> dict[str, object]:
    try:
        logged = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise DecodeError("not JSON") from None
    if not isinstance(logged, dict):
        raise DecodeError("not a JSON object")
    if _has_surrogate(text):
        raise DecodeError("not Unicode: an unpaired surrogate")
    return logged


def _no_constant(name: str) -> object:
    raise ValueError(name)


def _has_surrogate(text: str) -> bool:
    r"""Whether an escape such as \ud800 may stand alone; only then is it worth looking."""
    if "\\ud" not in text and "\\uD" not in text:
        return False
    decoded = json.dumps(json.loads(text), ensure_ascii=False)
    try:
        decoded.encode()
    except UnicodeEncodeError:
        return True
    return False


# --- text ---------------------------------------------------------------------------------------------------------------

# Quoted fields hold what a client sent, and Envoy does not escape quotes in them. A line with a quote inside a field has
# more than one reading, one of them the client's choice: it is refused and counted, not guessed.
_REQUEST: Final = (
    r'\[(?P<start_time>[^\]]+)\] "(?P<method>[^" ]+) (?P<path>[^" ]+) (?P<protocol>[^" ]+)"'
    r" (?P<response_code>\d+) (?P<response_flags>\S+)"
)
_COUNTERS: Final = (
    r"(?P<bytes_received>\d+|-) (?P<bytes_sent>\d+|-) (?P<duration>\d+|-) (?P<upstream_service_time>\d+|-)"
)
_HEADERS: Final = (
    r'"(?P<x_forwarded_for>[^"]*)" "(?P<user_agent>[^"]*)" "(?P<request_id>[^"]*)" "(?P<authority>[^"]*)"'
    r' "(?P<upstream_host>[^"]*)"'
)

_TEXT_FORMATS: Final = (
    # Istio: https://istio.io/latest/docs/tasks/observability/logs/access-log/#default-access-log-format
    re.compile(
        _REQUEST
        + r' (?P<response_code_details>\S+) (?P<connection_termination_details>\S+) "(?P<upstream_transport_failure_reason>[^"]*)" '
        + _COUNTERS
        + " "
        + _HEADERS
        + r" (?P<upstream_cluster>\S+) (?P<upstream_local_address>\S+) (?P<downstream_local_address>\S+)"
        r" (?P<downstream_remote_address>\S+) (?P<requested_server_name>\S+) (?P<route_name>\S+)"
    ),
    # Envoy: https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage#default-format-string
    re.compile(_REQUEST + " " + _COUNTERS + " " + _HEADERS),
)


def _text_line(text: str) -> dict[str, object]:
    for pattern in _TEXT_FORMATS:
        if match := pattern.fullmatch(text):
            return dict(match.groupdict())
    raise DecodeError("neither JSON nor a default text format of Envoy or Istio")

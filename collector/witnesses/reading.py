"""Lines of a witness's file → rows of its table: one reader a file, whatever its format. No file, no clock.

    reader(format, origin, ...) -> Reader            raises ConfigError
    Reader.begin(head) -> header                     of a file that is read from its middle: what its first lines say
    Reader.read(data, offset, header, received) -> Decoded

`data` is whole lines; where it was cut out of the file does not matter. A line becomes a row, or a reason why not, or nothing where it
is no record at all (a header, another kind of message). What one line says of those after it, Zeek's and AWS's headers, is
the `header`: a value that the caller keeps, so that data which is read again is read as the first time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collector.errors import ConfigError, DecodeError
from collector.witnesses import vpcflow
from collector.witnesses.blocks import FEWEST_LINES, Lines, Numbers
from collector.witnesses.columns import mapped
from collector.witnesses.conntrack import conntrack_row
from collector.witnesses.envoy import MAX_LINE_BYTES, Origin, read_fields, row_of, set_direction
from collector.witnesses.envoy_format import ReadFields, compile_format
from collector.witnesses.flow_columns import vpcflow_columns, zeek_columns
from collector.witnesses.hubble import hubble_row
from collector.witnesses.linkerd import linkerd_row
from collector.witnesses.proxy_columns import Found, json_columns, text_columns
from collector.witnesses.values import Row, hash_of, id_prefix, record_id, schema_of, to_batch
from collector.witnesses.vpcflow import vpcflow_row
from collector.witnesses.zeek import ZeekHeader, header_line, zeek_row
from collector.witnesses.ztunnel import ztunnel_row

Format = Literal["envoy", "istio", "envoy-gateway", "linkerd", "ztunnel", "hubble", "zeek", "vpcflow", "conntrack"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

PROXY_FORMATS: Final = frozenset({"envoy", "istio", "envoy-gateway", "linkerd"})
"""Formats whose lines become `proxy_records`; those of the others become `flows`."""

UNKNOWN_SERVICE: Final = "unknown_service"

Header = ZeekHeader | vpcflow.Fields | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A line that is no row: its number within the data, from 0, and why, without the data."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line, its number within the data, where its first byte is in the file, and when it was read."""

    data: bytes
    number: int
    offset: int
    received_unix_nano: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """What some lines of a file say.

    Attributes:
        table: Whose rows they are.
        batch: The rows, in an order of their own.
        refused: The lines that are none, in their order.
        lines: How many lines there were, empty ones too.
        header: What is known for the lines that come next.
    """

    table: str
    batch: pa.RecordBatch
    refused: list[Refused]
    lines: int
    header: Header


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one file's lines.

    Attributes:
        format: Of the file.
        origin: Where its lines come from; `service_name` UNKNOWN_SERVICE where nobody said it.
        read_fields: How a line of a custom format (`--log-format`) is read.
        seen_unix_nano: When the file was written, for lines that have no time (conntrack); None: when they are read.
    """

    format: Format
    origin: Origin
    read_fields: ReadFields | None = None
    seen_unix_nano: int | None = None
    table: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", "proxy_records" if self.format in PROXY_FORMATS else "flows")

    def begin(self, head: bytes) -> Header:
        """What the first bytes of a file say of the lines in its middle."""
        header: Header = None
        for line in head.split(b"\n")[:-1]:
            try:
                text = line.decode().strip("\r\n")
                header = self._header(text, header) or header
            except (DecodeError, UnicodeDecodeError):
                break
            if not text.startswith("#"):
                break
        return header

    def read(self, data: bytes, *, offset: int, header: Header, received_unix_nano: int) -> Decoded:
        """The rows of these lines, whose first byte is at `offset` of the file."""
        if self._is_columnar and len(data) >= FEWEST_BYTES:
            return self._read_columns(data, offset, header, received_unix_nano)
        rows: list[Row] = []
        refused: list[Refused] = []
        number, at = -1, offset
        for number, line in enumerate(lines_of(data)):
            header = self._read_line(Line(line, number, at, received_unix_nano), header, rows, refused)
            at += len(line)
        return Decoded(self.table, to_batch(self.table, rows), refused, number + 1, header)

    def _read_line(self, line: "Line", header: Header, rows: list[Row], refused: list[Refused]) -> Header:
        """Add the line's row to `rows`, or say why there is none; returns the header for the lines after it."""
        try:
            text = _text(line.data, "\r\n" if self.format == "zeek" else "\r\n ")
            if not text.strip():
                return header
            if (said := self._header(text, header)) is not None:
                return said
            if (row := self._row(text, header, line.received_unix_nano)) is not None:
                rows.append(self._placed(row, line))
        except DecodeError as e:
            refused.append(Refused(line.number, str(e)))
        return header

    # --- by the block -----------------------------------------------------------------------------------------------------

    @property
    def _is_columnar(self) -> bool:
        return self.format in _COLUMNAR and self.read_fields is None

    def _read_columns(self, data: bytes, offset: int, header: Header, received: int) -> Decoded:
        """The same rows, most of them column by column; header lines divide the block."""
        parts: list[pa.RecordBatch] = []
        refused: list[Refused] = []
        lines = Lines(data, MAX_LINE_BYTES)
        runs = _runs(lines, self.format)
        if len(runs) > MOST_RUNS:
            runs = [(number, number + 1) for number in range(len(lines))]
        for first, last in runs:
            part = lines if (first, last) == (0, len(lines)) else lines.part(first, last)
            rows: list[Row] = []
            done = np.zeros(len(part), np.bool_)
            for found in self._columns(part, header) if last - first >= FEWEST_LINES else []:
                parts.append(self._batch(part, found, offset, received))
                done[found.lines] = True
            for number in np.flatnonzero(~done).tolist():
                line = Line(part.text(number), number + first, offset + int(part.starts[number]), received)
                header = self._read_line(line, header, rows, refused)
            if rows:
                parts.append(to_batch(self.table, rows))
        return Decoded(self.table, _together(self.table, parts), refused, len(lines), header)

    def _columns(self, lines: Lines, header: Header) -> list[Found]:
        match self.format, header:
            case "zeek", ZeekHeader():
                return zeek_columns(lines, header)
            case "zeek", _:
                return []
            case "vpcflow", _:
                return vpcflow_columns(lines, header if isinstance(header, tuple) else vpcflow.VERSION_2)
            case _:
                return [*json_columns(lines, self.origin), *text_columns(lines, self.origin)]

    def _batch(self, lines: Lines, found: Found, offset: int, received: int) -> pa.RecordBatch:
        """The found rows with their ids and what the file says."""
        count = len(found.lines)
        columns = found.columns | {
            "record_id": self._record_ids(lines, found.lines, offset),
            "source": pa.repeat(pa.scalar(self.origin.source), count),
            "received_unix_nano": pa.repeat(pa.scalar(received), count),
        }
        if self.table == "proxy_records":
            instance = pa.scalar(self.origin.service_instance_id, pa.string())
            columns["service_instance_id"] = pa.repeat(instance, count)
            columns["service_name"] = self._service_names(found.columns, count)
        schema = schema_of(self.table)
        return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)

    def _service_names(self, columns: Mapping[str, pa.Array], count: int) -> pa.Array:
        said = pa.repeat(pa.scalar(self.origin.service_name), count)
        if self.origin.service_name != UNKNOWN_SERVICE:
            return said
        names = mapped(columns["requested_server_name"], pa.string(), service_of_sni)
        is_inbound = pc.fill_null(pc.equal(columns["direction"], "inbound"), fill_value=False)
        return pc.coalesce(pc.if_else(is_inbound, names, pa.scalar(None, pa.string())), said)

    def _record_ids(self, lines: Lines, wanted: Numbers, offset: int) -> pa.Array:
        """`record_id` of each of these lines."""
        copy_of = hash_of(id_prefix(self.origin.source), usedforsecurity=False).copy
        data = memoryview(lines.data)
        digests = []
        for place, start, end in zip((offset + lines.starts[wanted]).tolist(), *lines.stripped(wanted), strict=True):
            new = copy_of()
            new.update(b"%d\0" % place)
            new.update(data[start:end])
            digests.append(new.digest())
        return pa.array(np.frombuffer(b"".join(digests), ">u8")[::4].astype(np.uint64))

    # --- line by line -----------------------------------------------------------------------------------------------------

    def _header(self, text: str, header: Header) -> Header:
        """What is known after this line, if it is a header line; None if it is none. Raises DecodeError."""
        match self.format:
            case "zeek" if text.startswith("#"):
                return header_line(text, header if isinstance(header, ZeekHeader) else ZeekHeader())
            case "vpcflow" if "addr" in text:
                return vpcflow.header_of(text)
            case _:
                return None

    def _row(self, text: str, header: Header, received: int) -> Row | None:
        match self.format:
            case "linkerd":
                return linkerd_row(text)
            case "ztunnel":
                return ztunnel_row(text)
            case "hubble":
                return hubble_row(text)
            case "zeek":
                return zeek_row(text, header if isinstance(header, ZeekHeader) else ZeekHeader())
            case "vpcflow":
                return vpcflow_row(text, header if isinstance(header, tuple) else vpcflow.VERSION_2)
            case "conntrack":
                return conntrack_row(text, received if self.seen_unix_nano is None else self.seen_unix_nano)
            case _:
                return self._envoy_row(text)

    def _envoy_row(self, text: str) -> Row:
        fields = self.read_fields(text) if self.read_fields else with_usual_keys(read_fields(text))
        row = row_of(fields)
        set_direction(row, self.origin.direction)
        row["format"] = self.origin.format or row["format"]
        return row

    def _placed(self, row: Row, line: "Line") -> Row:
        """The row with what its file says."""
        row["record_id"] = record_id(self.origin.source, line.offset, line.data)
        row["source"] = self.origin.source
        row["received_unix_nano"] = line.received_unix_nano
        if self.table == "proxy_records":
            row["service_name"] = self.origin.service_name
            row["service_instance_id"] = self.origin.service_instance_id
            if self.origin.service_name == UNKNOWN_SERVICE:
                row["service_name"] = service_of(row) or UNKNOWN_SERVICE
        return row


def make_reader(
    format_: Format, origin: Origin, *, log_format: str | None = None, seen_unix_nano: int | None = None
) -> Reader:
    """A reader of this format; raises ConfigError where `log_format` cannot be read back, or belongs to no proxy."""
    if log_format is not None and format_ not in PROXY_FORMATS - {"linkerd"}:
        raise ConfigError(f"--log-format is Envoy's: it says nothing of {format_}; leave it out, or --format envoy")
    if format_ in {"envoy", "istio", "envoy-gateway"}:
        # What the operator calls a format is its name; `envoy` may be any of them, and each line speaks for itself.
        origin = replace(origin, format=None if format_ == "envoy" else format_)
    return Reader(format_, origin, compile_format(log_format) if log_format else None, seen_unix_nano)


def lines_of(data: bytes) -> list[bytes]:
    r"""The lines with their \n; `bytes.splitlines` would also cut at a lone \r."""
    return [line + b"\n" for line in data.split(b"\n")[:-1]] + ([tail] if (tail := data.rpartition(b"\n")[2]) else [])


def _text(line: bytes, around: str) -> str:
    if len(line) > MAX_LINE_BYTES:
        raise DecodeError("line too long")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise DecodeError("not UTF-8") from None
    # A tab at the end of a Zeek line is an empty column, and a space a value.
    return text.strip(around)


# --- what formats of an operator's own call things ------------------------------------------------------------------------

USUAL_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "start_time": ("timestamp", "time", "@timestamp", "ts", "startTime"),
    "response_code": ("status", "status_code", "responseCode", "code"),
    "duration": ("duration_ms", "response_time", "latency_ms", "time_ms"),
    "request_id": ("requestId", "req_id", "reqid", "x-request-id"),
    "user_agent": ("userAgent", "http_user_agent", "agent"),
    "authority": ("host", "Host"),
    "path": ("uri", "url", "request_path"),
    "method": ("request_method", "verb"),
    "downstream_remote_address": ("downstream_remote", "client", "remote_address", "remote_addr"),
    "upstream_host": ("upstream", "upstream_address", "upstream_addr"),
    "upstream_cluster": ("cluster", "upstreamCluster"),
    "bytes_received": ("bytesReceived", "request_size", "bytes_in"),
    "bytes_sent": ("bytesSent", "response_size", "bytes_out"),
}
"""Our key to the names that custom JSON formats give it: they are looked at only where a line has no `start_time` of its own."""


def with_usual_keys(fields: dict[str, object]) -> dict[str, object]:
    """The line's fields under our keys, where it has a time under one of the usual other names."""
    if fields.get("start_time") not in {None, "", "-"} if isinstance(fields.get("start_time"), str | None) else True:
        return fields
    renamed = dict(fields)
    for key, names in USUAL_KEYS.items():
        if key not in renamed and (name := next((n for n in names if n in renamed), None)) is not None:
            renamed[key] = renamed.pop(name)
    return renamed


def service_of(row: Mapping[str, object]) -> str | None:
    """The workload whose proxy wrote the line, where the line proves it; else None.

    Only what reached an inbound proxy does: the SNI that Istio's client proxy sends names the service that it was sent to.
    """
    return service_of_sni(row["requested_server_name"]) if row["direction"] == "inbound" else None


def service_of_sni(name: object) -> str | None:
    """Of `outbound_.8000_._.httpbin.foo.svc.cluster.local` the service, httpbin; None for other names."""
    if not isinstance(name, str) or not name.startswith("outbound_."):
        return None
    host = name.rpartition("_.")[2]
    return host.partition(".")[0] or None


# --- blocks ---------------------------------------------------------------------------------------------------------------

_COLUMNAR: Final = frozenset({"envoy", "istio", "envoy-gateway", "zeek", "vpcflow"})
"""Formats that have a reader of columns; JSON of all of them, and Zeek's and AWS's text."""

FEWEST_BYTES: Final = 16 * 1024
"""Less is faster read line by line."""

MOST_RUNS: Final = 100
"""Each takes a look at all of a block: header lines are no way to make that the square of its length."""


def _runs(lines: Lines, format_: Format) -> list[tuple[int, int]]:
    """First and last lines of what one header is about: a header line alone, and the lines behind it."""
    heads = (
        lines.beginning_with(b"#") if format_ == "zeek" else lines.containing(b"addr") if format_ == "vpcflow" else []
    )
    edges = sorted({0, len(lines), *(edge for head in heads for edge in (head, head + 1))})
    return list(pairwise(edges))


def _together(table: str, parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    if not parts:
        return to_batch(table, [])
    if len(parts) == 1:
        return parts[0]
    [batch] = pa.Table.from_batches(parts).combine_chunks().to_batches()
    return batch

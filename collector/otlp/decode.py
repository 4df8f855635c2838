"""OTLP trace requests → Arrow record batches. Sans-I/O: bytes and times in, tables out.

Requests are decoded in groups: most of what decoding costs is paid once a call, not once a span (of 512 spans it is two
thirds). Of each request the outcome is one of two:

- an `Outcome` without an error: every span is either a row of `spans` or counted in `rejected`, with the reason. What was
  amended in a row that was kept (an enum value that nobody knows, a string that is not UTF-8) is counted in `notes`.
- a `DecodeError`: the bytes are not a trace request, or exceed what `projection` accepts. It costs its neighbours nothing:
  a group with such a request in it is halved until the request stands alone. Nothing else is raised.

A span is rejected when it is longer than `MAX_SPAN_BYTES`, or cannot be stored truthfully: its ids are not 16 and 8 bytes with at least one that is not
zero ("The ID ... with all zeroes is considered invalid", trace.proto), its parent's id is neither absent nor 8 bytes, or
a time exceeds 2^63 - 1 ns (the year 2262). An unknown kind or status code is kept as UNSPECIFIED or UNSET with a note:
proto3 enums are open, and what else the span says may matter.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa

from collector.errors import DecodeError
from collector.otlp import attributes as attrs
from collector.otlp import packed, projection
from collector.otlp.attributes import Indices, Mask, Notes
from collector.otlp.origins import Origin, read_resource, read_scope, resource_rows, scope_rows
from collector.otlp.projection import (
    EVENT,
    LINK,
    REQUEST,
    RESOURCE_SPANS,
    SCOPE_SPANS,
    SPAN,
    TooManyRowsError,
    lengths,
    owners,
)
from collector.schema import arrow_schema

KINDS: Final = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
STATUS_CODES: Final = ("UNSET", "OK", "ERROR")

LONG_SPAN: Final = "span is longer than 8 MiB"
SHORT_SPAN: Final = "span is shorter than a trace_id and a span_id"
TRACE_ID_LENGTH: Final = "trace_id is not 16 bytes"
TRACE_ID_ZERO: Final = "trace_id is all zeros"
SPAN_ID_LENGTH: Final = "span_id is not 8 bytes"
SPAN_ID_ZERO: Final = "span_id is all zeros"
PARENT_ID_LENGTH: Final = "parent_span_id is neither empty nor 8 bytes"
TIME_RANGE: Final = "a time is beyond 2^63 - 1 ns"

UNKNOWN_KIND: Final = "unknown span kind: stored as UNSPECIFIED"
UNKNOWN_STATUS: Final = "unknown status code: stored as UNSET"
BAD_EVENT: Final = "event dropped: its time is beyond 2^63 - 1 ns"
BAD_LINK: Final = "link dropped: it has no valid trace_id and span_id"

SLICE_SPANS: Final = 16_384
SLICE_BYTES: Final = 16 * 1024 * 1024
"""Spans of a large request, and their bytes, that are decoded together, so that it costs what it weighs and not four times as much."""

MAX_SPAN_BYTES: Final = 8 * 1024 * 1024
"""One value of tens of MiB is copied by every layer that it passes, the database among them, which writes it in one piece. Other receivers take
4 MiB a request."""

MAX_ORIGIN_BYTES: Final = 16 * 1024 * 1024
"""Of a resource or a scope."""

_MIN_SPAN_BYTES: Final = 28
"""Tag, length and 16 bytes of trace_id, tag, length and 8 bytes of span_id. What is shorter never becomes a row, so a
request of two-byte spans costs what it weighs."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What one trace request said.

    Attributes:
        batches: `spans`, `span_events`, `span_links`, `resources` and `scopes`, each with its `arrow_schema`, possibly
            without rows.
        span_count: Spans that were accepted: rows of `spans`.
        rejected: Spans that were not, by reason.
        notes: What was amended in the accepted ones, by reason.
    """

    batches: dict[str, pa.RecordBatch]
    span_count: int
    rejected: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request of a group.

    Attributes:
        span_count: Its spans that were accepted.
        rejected: Its spans that were not, by reason.
        error: Why nothing of it was.
    """

    span_count: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    error: DecodeError | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """What several requests said.

    Attributes:
        parts: Tables as in `Decoded`; one part where no request was refused or is large. `resources` and `scopes` come first.
        outcomes: One a request, in their order.
        notes: What was amended in the accepted spans, by reason.
    """

    parts: tuple[dict[str, pa.RecordBatch], ...]
    outcomes: tuple[Outcome, ...]
    notes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Envelope:
    """The spans of some requests, still serialised, and whose each is: indices into `resources`, `scopes`, the requests."""

    resources: list[Origin]
    scopes: list[Origin]
    spans: pa.BinaryArray
    resource: Indices
    scope: Indices
    request: Indices

    def slice(self, first: int, count: int) -> "_Envelope":
        """Some of its spans, copied: what decodes them knows nothing of slices."""
        places = slice(first, first + count)
        spans = self.spans.take(pa.array(np.arange(first, min(first + count, len(self.spans)))))
        return replace(
            self, spans=spans, resource=self.resource[places], scope=self.scope[places], request=self.request[places]
        )


def decode_traces(payload: bytes, *, received_unix_nano: int) -> Decoded:
    """A serialised ExportTraceServiceRequest as tables. Raises DecodeError, and nothing else, whatever the bytes."""
    group = _decode([payload], [received_unix_nano])
    [outcome] = group.outcomes
    return Decoded(_joined(group.parts), outcome.span_count, dict(outcome.rejected), dict(group.notes))


def _joined(parts: Sequence[dict[str, pa.RecordBatch]]) -> dict[str, pa.RecordBatch]:
    """Each table of all the parts as one batch."""
    first, *rest = parts
    return {
        table: pa.concat_batches([batch, *(part[table] for part in rest if table in part)]) if rest else batch
        for table, batch in first.items()
    }


def decode_group(payloads: Sequence[bytes], received_unix_nano: Sequence[int]) -> Group:
    """Serialised ExportTraceServiceRequests, and when each arrived, as tables. Raises nothing, whatever the bytes."""
    try:
        return _decode(payloads, received_unix_nano)
    except DecodeError as error:
        if len(payloads) == 1:
            # Without its traceback, and without its causes': the frames hold the request and all that was made of it.
            error.__cause__ = error.__context__ = None
            return Group((), (Outcome(error=error.with_traceback(None)),), {})
    half = len(payloads) // 2
    groups = [decode_group(payloads[part], received_unix_nano[part]) for part in (slice(half), slice(half, None))]
    return Group(
        tuple(part for group in groups for part in group.parts),
        tuple(outcome for group in groups for outcome in group.outcomes),
        Counter(groups[0].notes) + Counter(groups[1].notes),
    )


def _decode(payloads: Sequence[bytes], received_unix_nano: Sequence[int]) -> Group:
    notes: Notes = Counter()
    rejected: list[Counter[str]] = [Counter() for _ in payloads]
    envelope = _open(payloads, notes)
    accepted = np.zeros(len(payloads), dtype=np.int64)
    received = np.array(received_unix_nano, dtype=np.int64)
    parts = list(_parts(envelope, received, rejected, notes, accepted))
    parts[0] |= {"resources": resource_rows(envelope.resources), "scopes": scope_rows(envelope.scopes)}
    outcomes = tuple(Outcome(count, dict(refused)) for count, refused in zip(accepted.tolist(), rejected, strict=True))
    return Group(tuple(parts), outcomes, dict(notes))


def _parts(
    envelope: "_Envelope", received: Indices, rejected: list[Counter[str]], notes: Notes, accepted: Indices
) -> Iterator[dict[str, pa.RecordBatch]]:
    """The spans' tables, a slice at a time; adds to the counts. Smaller slices where these have too many attributes or events."""
    bounds = _slices(envelope.spans)
    if len(bounds) > 2:
        for first, end in pairwise(bounds):
            yield from _parts(envelope.slice(first, end - first), received, rejected, notes, accepted)
        return
    noted: Notes = Counter()
    refused: list[Counter[str]] = [Counter() for _ in rejected]
    try:
        spans = _Spans.decode(envelope, refused)
        tables = {
            "spans": _span_rows(spans, received, noted),
            "span_events": _event_rows(spans, noted),
            "span_links": _link_rows(spans, noted),
        }
    except TooManyRowsError:
        half = len(envelope.spans) // 2
        if not half:
            raise
        for part in (envelope.slice(0, half), envelope.slice(half, len(envelope.spans) - half)):
            yield from _parts(part, received, rejected, notes, accepted)
        return
    notes.update(noted)
    for counted, more in zip(rejected, refused, strict=True):
        counted.update(more)
    accepted += np.bincount(spans.request_index, minlength=len(rejected))
    yield tables


def _slices(spans: pa.BinaryArray) -> list[int]:
    """Where slices begin and the last one ends: at most `SLICE_SPANS` each, and `SLICE_BYTES` or one span."""
    ends = np.cumsum(lengths(spans), dtype=np.int64)
    bounds = [0]
    while bounds[-1] < len(spans):
        first = bounds[-1]
        begin = ends[first - 1] if first else 0
        fitting = int(np.searchsorted(ends, begin + SLICE_BYTES, side="right"))
        bounds.append(min(max(fitting, first + 1), first + SLICE_SPANS, len(spans)))
    return bounds


# --- whose spans ------------------------------------------------------------------------------------------------------


def _open(payloads: Sequence[bytes], notes: Notes) -> _Envelope:
    """Three levels of messages, each decoded as one array and let go before the next one; the spans stay serialised."""
    origins = projection.MAX_ORIGINS
    encoded, request = _unnested(REQUEST.rows(_as_array(payloads)), "resource_spans", RESOURCE_SPANS, origins)
    messages = RESOURCE_SPANS.rows(encoded)
    resources = [read_resource(*origin) for origin in _pairs(messages, "resource")]
    encoded, resource = _unnested(messages, "scope_spans", SCOPE_SPANS, origins)
    messages = SCOPE_SPANS.rows(encoded)
    scopes = [read_scope(*origin) for origin in _pairs(messages, "scope")]
    encoded, scope = _unnested(messages, "spans", SPAN, projection.MAX_SPANS)
    for origin in (*resources, *scopes):
        notes.update(dict(origin.notes))
    return _Envelope(resources, scopes, encoded, resource[scope], scope, request[resource[scope]])


def _as_array(payloads: Sequence[bytes]) -> pa.BinaryArray:
    """One value a payload; a single one, which may be large, is not copied."""
    if len(payloads) > 1:
        return pa.array(payloads, pa.binary())
    [payload] = payloads
    bounds = pa.array([0, len(payload)], pa.int32()).buffers()[1]
    return pa.BinaryArray.from_buffers(pa.binary(), 1, [None, bounds, pa.py_buffer(payload)])


def _unnested(
    messages: pa.RecordBatch, column: str, kind: projection.Projected, most: int
) -> tuple[pa.BinaryArray, Indices]:
    """The items of every message's list, at most so many, and whose each is. Raises DecodeError."""
    lists = messages.column(column)
    items = lists.flatten()
    kind.limit(len(items), most)
    return items, owners(lists)


def _pairs(messages: pa.RecordBatch, column: str) -> Iterator[tuple[bytes, bytes]]:
    """Each message's origin and schema URL; a message that is not there is an empty one. Raises DecodeError where one is too long."""
    longest = int(lengths(messages.column(column)).max(initial=0))
    if longest > MAX_ORIGIN_BYTES:
        raise DecodeError(f"a {column} has {longest} bytes, at most {MAX_ORIGIN_BYTES} are accepted")
    origins, urls = messages.column(column).to_pylist(), messages.column("schema_url").to_pylist()
    return ((origin or b"", url or b"") for origin, url in zip(origins, urls, strict=True))


# --- which spans ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Spans:
    """The accepted spans: their decoded columns, their ids, and whose each is."""

    columns: pa.RecordBatch
    trace_id: pa.Array
    span_id: pa.Array
    resource: list[Origin]
    scope: list[Origin]
    resource_index: Indices
    scope_index: Indices
    request_index: Indices

    def __len__(self) -> int:
        return len(self.resource_index)

    @staticmethod
    def decode(envelope: _Envelope, rejected: Sequence[Counter[str]]) -> "_Spans":
        """Decode the envelope's spans, and count those that cannot be kept, by request."""

        def kept_of(bad: Mask, reason: str, whose: Indices) -> Indices:
            for request, count in zip(*np.unique(whose[bad], return_counts=True), strict=True):
                rejected[request][reason] += int(count)
            return np.flatnonzero(~bad)

        sizes = lengths(envelope.spans)
        accepted = kept_of(sizes > MAX_SPAN_BYTES, LONG_SPAN, envelope.request)
        accepted = accepted[kept_of(sizes[accepted] < _MIN_SPAN_BYTES, SHORT_SPAN, envelope.request[accepted])]
        columns = SPAN.rows(_chosen(envelope.spans, accepted))
        for column, check, reason in _CHECKS:
            if (bad := check(columns.column(column))).any():
                kept = kept_of(bad, reason, envelope.request[accepted])
                columns, accepted = _chosen(columns, kept), accepted[kept]
        return _Spans(
            columns,
            _uuids(columns.column("trace_id")),
            pa.array(_big_endian(columns.column("span_id"))),
            envelope.resources,
            envelope.scopes,
            envelope.resource[accepted],
            envelope.scope[accepted],
            envelope.request[accepted],
        )


def _without(rows: Indices, bad: Mask, reason: str, notes: Notes) -> Indices:
    if not bad.any():
        return rows
    notes[reason] += int(bad.sum())
    return rows[~bad]


def _chosen(table: Any, rows: Indices) -> Any:
    """`table`, a batch or an array, with these rows only."""
    return table if len(rows) == len(table) else table.take(pa.array(rows))


def _fixed(width: int) -> Any:
    return lambda column: lengths(column) != width


def _zeros(width: int) -> Any:
    return lambda column: ~_bytes_of(column).reshape(-1, width).any(axis=1)


def _neither_empty_nor_8(column: pa.Array) -> Mask:
    sizes = lengths(column)
    return np.asarray((sizes != 8) & (sizes != 0), dtype=np.bool_)


def _beyond_int64(column: pa.Array) -> Mask:
    return np.asarray(column.to_numpy() >= 1 << 63, dtype=np.bool_)


_CHECKS: Final = (
    ("trace_id", _fixed(16), TRACE_ID_LENGTH),
    ("trace_id", _zeros(16), TRACE_ID_ZERO),
    ("span_id", _fixed(8), SPAN_ID_LENGTH),
    ("span_id", _zeros(8), SPAN_ID_ZERO),
    ("parent_span_id", _neither_empty_nor_8, PARENT_ID_LENGTH),
    ("start_time_unix_nano", _beyond_int64, TIME_RANGE),
    ("end_time_unix_nano", _beyond_int64, TIME_RANGE),
)


# --- ids and times ----------------------------------------------------------------------------------------------------


def _bytes_of(column: pa.BinaryArray) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The values of a binary array, end to end."""
    if len(column) == 0 or column.buffers()[2] is None:
        return np.empty(0, dtype=np.uint8)
    first, last = np.frombuffer(column.buffers()[1], dtype=np.int32, offset=column.offset * 4)[[0, len(column)]]
    return np.frombuffer(column.buffers()[2], dtype=np.uint8)[first:last]


def _big_endian(column: pa.BinaryArray) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """8-byte ids as numbers."""
    return _bytes_of(column).view(">u8").astype(np.uint64)


def _uuids(column: pa.BinaryArray) -> pa.Array:
    """16-byte ids as UUIDs."""
    storage = pa.Array.from_buffers(pa.binary(16), len(column), [None, pa.py_buffer(_bytes_of(column))])
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


def _parents(column: pa.BinaryArray) -> pa.Array:
    """Parents' ids; NULL where there is none. Some senders write a root's as zeros."""
    numbers = np.zeros(len(column), dtype=np.uint64)
    numbers[lengths(column) == 8] = _big_endian(column)
    return pa.array(numbers, mask=numbers == 0)


def _nanos(column: pa.Array) -> "np.ndarray[Any, np.dtype[np.int64]]":
    return np.asarray(column.to_numpy().view(np.int64))


def _enum(column: Any, names: tuple[str, ...], reason: str, notes: Notes) -> pa.Array:
    """Enum numbers by name; unknown ones become the first name, with a note."""
    numbers = np.asarray(column)
    unknown = (numbers < 0) | (numbers >= len(names))
    if unknown.any():
        notes[reason] += int(unknown.sum())
        numbers = np.where(unknown, 0, numbers)
    return pa.array(names, pa.string()).take(pa.array(numbers))


def _text_or_null(column: pa.BinaryArray, notes: Notes) -> pa.Array:
    """Strings, NULL when empty."""
    empty = lengths(column) == 0
    if empty.all():
        return pa.nulls(len(column), pa.string())
    texts = attrs.strings(column, notes)
    rows = np.arange(len(column))
    return texts.take(pa.array(rows, mask=empty)) if empty.any() else texts


def _of_each(values: list[str | None], index: Indices) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(index))


# --- rows -------------------------------------------------------------------------------------------------------------


def _batch(table: str, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    schema = _schema(table)
    arrays = [c if c.type == f.type else c.cast(f.type) for f in schema if (c := columns[f.name]) is not None]
    return _alone(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _alone(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows in one piece of memory that nothing else is in.

    A column that is handed on as ptars made it keeps all the others of its message alive: rows that wait for the writer would weigh more
    than twice what they say.
    """
    return pa.ipc.read_record_batch(batch.serialize(), batch.schema)


def _span_rows(spans: _Spans, received_unix_nano: Indices, notes: Notes) -> pa.RecordBatch:
    columns = spans.columns
    start, end = _nanos(columns.column("start_time_unix_nano")), _nanos(columns.column("end_time_unix_nano"))
    status = columns.column("status")
    code = np.nan_to_num(status.field("code").to_numpy(zero_copy_only=False)).astype(np.int64)
    attributes = packed.unpack(attrs.read(columns.column("attributes"), notes))
    hot, remaining = attrs.pivot(attributes)
    texts, others = attrs.maps(attributes, remaining, notes)
    return _batch(
        "spans",
        {
            "trace_id": spans.trace_id,
            "span_id": spans.span_id,
            "parent_span_id": _parents(columns.column("parent_span_id")),
            "trace_state": _text_or_null(columns.column("trace_state"), notes),
            "flags": columns.column("flags"),
            "name": attrs.strings(columns.column("name"), notes),
            "kind": _enum(columns.column("kind"), KINDS, UNKNOWN_KIND, notes),
            "start_time_unix_nano": pa.array(start),
            "end_time_unix_nano": pa.array(end),
            "duration_ns": pa.array(end - start),
            "status_code": _enum(code, STATUS_CODES, UNKNOWN_STATUS, notes),
            "status_message": _text_or_null(status.field("message"), notes),
            "service_name": _of_each([r.name for r in spans.resource], spans.resource_index),
            "service_namespace": _of_each([r.get("service.namespace") for r in spans.resource], spans.resource_index),
            "service_instance_id": _of_each([r.instance_id for r in spans.resource], spans.resource_index),
            "witness": _witness(spans, hot["component"]),
            "resource_id": pa.array([r.id for r in spans.resource], pa.uint64()).take(pa.array(spans.resource_index)),
            "scope_id": pa.array([s.id for s in spans.scope], pa.uint64()).take(pa.array(spans.scope_index)),
            "received_unix_nano": pa.array(received_unix_nano[spans.request_index]),
            **hot,
            "attributes": texts,
            "attributes_json": others,
            "dropped_attributes_count": columns.column("dropped_attributes_count"),
            "dropped_events_count": columns.column("dropped_events_count"),
            "dropped_links_count": columns.column("dropped_links_count"),
        },
    )


def _witness(spans: _Spans, component: pa.Array) -> pa.Array:
    by_resource = np.array([r.is_proxy for r in spans.resource], dtype=np.bool_)[spans.resource_index]
    by_scope = np.array([s.is_proxy for s in spans.scope], dtype=np.bool_)[spans.scope_index]
    proxy = by_resource | by_scope
    if component.null_count < len(component):
        proxy = proxy | np.array([c == "proxy" for c in component.to_pylist()], dtype=np.bool_)
    return pa.array(["app", "proxy"]).take(pa.array(proxy.astype(np.int8)))


def _event_rows(spans: _Spans, notes: Notes) -> pa.RecordBatch:
    lists = spans.columns.column("events")
    encoded = lists.flatten()
    if len(encoded) == 0:
        return _batch_without_rows("span_events")
    columns = EVENT.rows(encoded)
    owner = owners(lists)
    kept = _without(np.arange(len(owner)), _beyond_int64(columns.column("time_unix_nano")), BAD_EVENT, notes)
    columns, owner = _chosen(columns, kept), owner[kept]
    return _batch(
        "span_events",
        {
            "trace_id": _take_uuids(spans.trace_id, owner),
            "span_id": spans.span_id.take(pa.array(owner)),
            "time_unix_nano": pa.array(_nanos(columns.column("time_unix_nano"))),
            "name": attrs.strings(columns.column("name"), notes),
            **_all_in_maps(columns, notes),
        },
    )


def _link_rows(spans: _Spans, notes: Notes) -> pa.RecordBatch:
    lists = spans.columns.column("links")
    encoded = lists.flatten()
    if len(encoded) == 0:
        return _batch_without_rows("span_links")
    columns = LINK.rows(encoded)
    owner = owners(lists)
    for column, check, _ in _CHECKS[:4]:
        kept = _without(np.arange(len(owner)), check(columns.column(column)), BAD_LINK, notes)
        columns, owner = _chosen(columns, kept), owner[kept]
    return _batch(
        "span_links",
        {
            "trace_id": _take_uuids(spans.trace_id, owner),
            "span_id": spans.span_id.take(pa.array(owner)),
            "linked_trace_id": _uuids(columns.column("trace_id")),
            "linked_span_id": pa.array(_big_endian(columns.column("span_id"))),
            "trace_state": _text_or_null(columns.column("trace_state"), notes),
            "flags": columns.column("flags"),
            **_all_in_maps(columns, notes),
        },
    )


def _all_in_maps(columns: pa.RecordBatch, notes: Notes) -> dict[str, pa.Array]:
    attributes = attrs.read(columns.column("attributes"), notes)
    texts, others = attrs.maps(attributes, np.ones(len(attributes.owner), dtype=np.bool_), notes)
    return {
        "attributes": texts,
        "attributes_json": others,
        "dropped_attributes_count": columns.column("dropped_attributes_count"),
    }


def _take_uuids(ids: pa.Array, rows: Indices) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.uuid(), ids.storage.take(pa.array(rows)))


@cache
def _schema(table: str) -> pa.Schema:
    return arrow_schema(table)


@cache
def _batch_without_rows(table: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=_schema(table))

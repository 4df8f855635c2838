"""OTLP log requests → log records, as Python values, whatever they log. Sans-I/O.

Log records are declared and decoded as `projection` does it for spans, with the same precautions: level by level through
ptars, so that no protobuf object is made for a record or an attribute unless a value is of a rare kind.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import ptars
import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from collector.otlp import projection, values
from collector.otlp.fields import fields_of
from collector.otlp.origins import Origin, read_resource
from collector.otlp.projection import Projected, lengths, offsets

MAX_ATTRIBUTES: Final = 1_000
"""Attributes of one record: they become one dictionary. Istio's access log format has 24."""

MAX_RECORDS: Final = 200_000
"""Records of one request: each is held as a Python object. A Collector's batch has 8,192."""

TOO_MANY: Final = f"more than {MAX_ATTRIBUTES} attributes"
NOT_UTF8: Final = "string is not UTF-8: the bad bytes were replaced"

_F: Final = descriptor_pb2.FieldDescriptorProto

_DECLARATIONS: Final[dict[str, tuple[tuple[str, int, int | str], ...]]] = {
    # As in `projection`, whose header says why: name (trailing *: repeated), field number, type.
    "LogsRequest": (("resource_logs*", 1, _F.TYPE_BYTES),),
    "ResourceLogs": (
        ("resource", 1, _F.TYPE_BYTES),
        ("scope_logs*", 2, _F.TYPE_BYTES),
        ("schema_url", 3, _F.TYPE_BYTES),
    ),
    "ScopeLogs": (("log_records*", 2, _F.TYPE_BYTES),),
    "LogRecord": (
        ("time_unix_nano", 1, _F.TYPE_FIXED64),
        ("body", 5, "Value"),
        ("attributes*", 6, _F.TYPE_BYTES),
        ("trace_id", 9, _F.TYPE_BYTES),
    ),
    "KeyAndValue": (("key", 1, _F.TYPE_BYTES), ("value", 2, "Value")),
    "Value": (
        ("string_value", 1, _F.TYPE_BYTES),
        ("bool_value", 2, _F.TYPE_BOOL),
        ("int_value", 3, _F.TYPE_INT64),
        ("double_value", 4, _F.TYPE_DOUBLE),
        ("array_value", 5, _F.TYPE_BYTES),
        ("kvlist_value", 6, _F.TYPE_BYTES),
        ("bytes_value", 7, _F.TYPE_BYTES),
    ),
}


def _declare() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="access_logs.proto", package="access_logs", syntax="proto3")
    for message_name, fields in _DECLARATIONS.items():
        message = file.message_type.add(name=message_name)
        is_value = message_name == "Value"
        if is_value:
            message.oneof_decl.add(name="value")
        for name, number, kind in fields:
            one = message.field.add(name=name.rstrip("*"), number=number)
            one.label = _F.LABEL_REPEATED if name.endswith("*") else _F.LABEL_OPTIONAL
            one.type = _F.TYPE_MESSAGE if isinstance(kind, str) else kind  # type: ignore[assignment]
            if isinstance(kind, str):
                one.type_name = f".access_logs.{kind}"
            if is_value:
                one.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName("access_logs.proto")


_FILE: Final = _declare()
_HANDLERS: Final = ptars.HandlerPool([_FILE])


class _Declared(Projected):
    """A message that is declared here, with the precautions of `projection`."""

    __slots__ = ()

    def __init__(self, name: str) -> None:  # its own declarations instead of projection's, hence no super()
        self.name = name
        self._class = self._check = message_factory.GetMessageClass(_FILE.message_types_by_name[name])
        self._handler = _HANDLERS.get_for_message(_FILE.message_types_by_name[name])


_REQUEST: Final = _Declared("LogsRequest")
_RESOURCE_LOGS: Final = _Declared("ResourceLogs")
_SCOPE_LOGS: Final = _Declared("ScopeLogs")
_LOG_RECORD: Final = _Declared("LogRecord")
_KEY_AND_VALUE: Final = _Declared("KeyAndValue")


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One log record: its time, its body (text, fields or nothing) and its attributes."""

    time_unix_nano: int
    trace_id: bytes
    body: object
    attributes: dict[str, object]


def open_request(payload: bytes, notes: Counter[str]) -> tuple[list[Origin], list[bytes], list[int]]:
    """Resources, records still serialised, and whose each record is (an index into the resources). Raises DecodeError."""
    resources: list[Origin] = []
    encoded: list[bytes] = []
    owner: list[int] = []
    _count(payload, _RESOURCE_LOGS, projection.MAX_ORIGINS)
    request = _REQUEST.parse(payload)
    _RESOURCE_LOGS.limit(len(request.resource_logs), projection.MAX_ORIGINS)
    scopes = 0
    for encoded_resource in request.resource_logs:
        _count(encoded_resource, _SCOPE_LOGS, projection.MAX_ORIGINS)
        resource_logs = _RESOURCE_LOGS.parse(encoded_resource)
        resource = read_resource(resource_logs.resource, resource_logs.schema_url)
        notes.update(dict(resource.notes))
        resources.append(resource)
        scopes += len(resource_logs.scope_logs)
        _SCOPE_LOGS.limit(scopes, projection.MAX_ORIGINS)
        for encoded_scope in resource_logs.scope_logs:
            _count(encoded_scope, _LOG_RECORD, MAX_RECORDS)
            records = _SCOPE_LOGS.parse(encoded_scope).log_records
            _LOG_RECORD.limit(len(encoded) + len(records), MAX_RECORDS)
            encoded.extend(records)
            owner.extend([len(resources) - 1] * len(records))
    return resources, encoded, owner


def _count(message: bytes, kind: Projected, most: int) -> None:
    """Raise DecodeError where a long message has more fields than it may have items of this kind: parsed, four million of two bytes take 300 MB."""
    if len(message) > projection.COUNTED_BYTES:
        kind.limit(fields_of(message, most)[0], most)


def read_records(encoded: list[bytes], rejected: Counter[str], notes: Counter[str]) -> Iterator[tuple[int, LogRecord]]:
    """The records with their indices, without those that have too many attributes. Raises DecodeError."""
    columns = _LOG_RECORD.rows(pa.array(encoded, pa.binary()))
    counts = lengths(columns.column("attributes"))
    kept = np.flatnonzero(counts <= MAX_ATTRIBUTES)
    if len(kept) < len(encoded):
        rejected[TOO_MANY] += len(encoded) - len(kept)
        columns = columns.take(pa.array(kept))
    lists = columns.column("attributes")
    keys, plain = _attributes(lists.flatten(), notes)
    ends = offsets(lists).tolist()
    bodies = _bodies(columns.column("body"), [encoded[i] for i in kept.tolist()], notes)
    times = columns.column("time_unix_nano").to_numpy().tolist()
    trace_ids = columns.column("trace_id").to_numpy(zero_copy_only=False).tolist()
    for place, index in enumerate(kept.tolist()):
        first, last = ends[place], ends[place + 1]
        attributes = dict(zip(keys[first:last], plain[first:last], strict=True))
        yield index, LogRecord(times[place], trace_ids[place], bodies[place], attributes)


def _attributes(encoded: pa.BinaryArray, notes: Counter[str]) -> tuple[list[str], list[object]]:
    """Key and value of each attribute, values as JSON knows them; None for a value that is absent."""
    if len(encoded) == 0:
        return [], []
    columns = _KEY_AND_VALUE.rows(encoded)
    distinct = columns.column("key").dictionary_encode()  # the keys of all records of a log are the same few
    names = _texts(distinct.dictionary, notes)
    keys = [names[code] for code in distinct.indices.to_numpy().tolist()]
    plain = _texts(columns.column("value").field("string_value"), notes)
    for index in _not_only_text(columns.column("value")):
        plain[index] = _plain(_KEY_AND_VALUE.parse(encoded[index].as_py()).value, notes)
    return keys, plain


def _bodies(column: pa.StructArray, encoded: list[bytes], notes: Counter[str]) -> list[object]:
    bodies = _texts(column.field("string_value"), notes)
    for index in _not_only_text(column):
        bodies[index] = _plain(_LOG_RECORD.parse(encoded[index]).body, notes)
    return bodies


def _not_only_text(column: pa.StructArray) -> list[int]:
    """Where a value has another member than `string_value`: those few are parsed by upb, which knows which one counts."""
    members = [column.field(i) for i in range(1, column.type.num_fields)]
    present = [np.asarray(m.is_valid()) for m in members if m.null_count < len(m)]
    return np.flatnonzero(np.any(present, axis=0)).tolist() if present else []


def _texts(column: pa.BinaryArray, notes: Counter[str]) -> list[Any]:
    """The strings. Through NumPy: that takes a quarter of `to_pylist`, which makes an Arrow scalar of each one first."""
    try:
        return column.cast(pa.string()).to_numpy(zero_copy_only=False).tolist()  # type: ignore[no-any-return]
    except pa.ArrowInvalid:
        texts = [None if raw is None else values.text(raw) for raw in column.to_pylist()]
        notes[NOT_UTF8] += sum(text is not None and "\N{REPLACEMENT CHARACTER}" in text for text in texts)
        return texts


def _plain(value: Any, notes: Counter[str]) -> object:
    """A value as JSON knows it; what is too deep stays bytes, with a note."""
    return json.loads(values.value_json(value, notes))

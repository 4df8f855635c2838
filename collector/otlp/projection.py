"""OTLP's trace messages, projected: the same wire form, declared the way that Arrow wants to receive it.

Protobuf decoders go by field number and wire type, so a message may be decoded under any declaration that agrees on
both. The declarations here differ from OTLP's in two ways:

- every `string` is `bytes`: invalid UTF-8 is then one bad value, not a broken request;
- every message that can repeat or contain itself is `bytes`, to be decoded level by level, each level as one array.
  So a level's size is known before any row of it exists, and no nesting is followed until one value is asked for.

ptars turns an array of serialised messages into Arrow columns without an object per message. It trusts its input more
than a socket deserves, and this module, the only one that knows it, makes up for that:

- it skips unknown groups by recursion, without a limit: a megabyte of start-group tags overflows the stack and kills
  the process. A message longer than `TRUSTED_BYTES` is therefore parsed first by upb, whose depth is limited to 100, unless it is
  known to have no group.
- a length beyond 2^63 makes it panic, which arrives as a `BaseException`: it becomes a `DecodeError`.
- a two-byte message makes a row of fifty bytes and more: an array longer than `MAX_ROWS` is refused. A list's items take
  memory in both decoders before anybody can count them: those of a message longer than `COUNTED_BYTES` are counted first.
"""

from typing import Any, Final

import numpy as np
import ptars
import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError as ProtobufDecodeError

from collector.errors import DecodeError
from collector.otlp.fields import fields_of

TRUSTED_BYTES: Final = 4096
"""A message this short nests at most this deep, which takes less than 512 KiB of stack (measured)."""

MAX_ROWS: Final = 400_000
"""Messages of one kind that are decoded together: an attribute takes up to half a kilobyte meanwhile."""

COUNTED_BYTES: Final = 1024 * 1024
"""Of messages longer than this no more than `MAX_ROWS` fields are decoded together."""

MAX_SPANS: Final = 200_000
"""In a request: a row of each is in memory until they are stored. 64 MiB of ordinary spans hold 150 thousand."""

MAX_ORIGINS: Final = 65_536
"""ResourceSpans, and ScopeSpans, in a request: they are read one by one, in Python. A gateway's batch holds 8,192 spans."""

VALUE_MEMBERS: Final = ("string", "bool", "int", "double", "array", "kvlist", "bytes")
"""AnyValue's members in the order of their field numbers, 1 to 7."""

_F: Final = descriptor_pb2.FieldDescriptorProto

_DECLARATIONS: Final[dict[str, tuple[tuple[str, int, int | str], ...]]] = {
    # name, field number, type; a string names a message, a trailing * says repeated.
    "Request": (("resource_spans*", 1, _F.TYPE_BYTES),),
    "ResourceSpans": (
        ("resource", 1, _F.TYPE_BYTES),
        ("scope_spans*", 2, _F.TYPE_BYTES),
        ("schema_url", 3, _F.TYPE_BYTES),
    ),
    "ScopeSpans": (("scope", 1, _F.TYPE_BYTES), ("spans*", 2, _F.TYPE_BYTES), ("schema_url", 3, _F.TYPE_BYTES)),
    "Resource": (("attributes*", 1, _F.TYPE_BYTES), ("dropped_attributes_count", 2, _F.TYPE_UINT32)),
    "InstrumentationScope": (
        ("name", 1, _F.TYPE_BYTES),
        ("version", 2, _F.TYPE_BYTES),
        ("attributes*", 3, _F.TYPE_BYTES),
        ("dropped_attributes_count", 4, _F.TYPE_UINT32),
    ),
    "Status": (("message", 2, _F.TYPE_BYTES), ("code", 3, _F.TYPE_INT32)),
    "Span": (
        ("trace_id", 1, _F.TYPE_BYTES),
        ("span_id", 2, _F.TYPE_BYTES),
        ("trace_state", 3, _F.TYPE_BYTES),
        ("parent_span_id", 4, _F.TYPE_BYTES),
        ("name", 5, _F.TYPE_BYTES),
        ("kind", 6, _F.TYPE_INT32),
        ("start_time_unix_nano", 7, _F.TYPE_FIXED64),
        ("end_time_unix_nano", 8, _F.TYPE_FIXED64),
        ("attributes*", 9, _F.TYPE_BYTES),
        ("dropped_attributes_count", 10, _F.TYPE_UINT32),
        ("events*", 11, _F.TYPE_BYTES),
        ("dropped_events_count", 12, _F.TYPE_UINT32),
        ("links*", 13, _F.TYPE_BYTES),
        ("dropped_links_count", 14, _F.TYPE_UINT32),
        ("status", 15, "Status"),
        ("flags", 16, _F.TYPE_FIXED32),
    ),
    "Event": (
        ("time_unix_nano", 1, _F.TYPE_FIXED64),
        ("name", 2, _F.TYPE_BYTES),
        ("attributes*", 3, _F.TYPE_BYTES),
        ("dropped_attributes_count", 4, _F.TYPE_UINT32),
    ),
    "Link": (
        ("trace_id", 1, _F.TYPE_BYTES),
        ("span_id", 2, _F.TYPE_BYTES),
        ("trace_state", 3, _F.TYPE_BYTES),
        ("attributes*", 4, _F.TYPE_BYTES),
        ("dropped_attributes_count", 5, _F.TYPE_UINT32),
        ("flags", 6, _F.TYPE_FIXED32),
    ),
    "KeyValue": (("key", 1, _F.TYPE_BYTES), ("value", 2, "AnyValue")),
    "AnyValue": (
        ("string_value", 1, _F.TYPE_BYTES),
        ("bool_value", 2, _F.TYPE_BOOL),
        ("int_value", 3, _F.TYPE_INT64),
        ("double_value", 4, _F.TYPE_DOUBLE),
        ("array_value", 5, _F.TYPE_BYTES),
        ("kvlist_value", 6, _F.TYPE_BYTES),
        ("bytes_value", 7, _F.TYPE_BYTES),
    ),
    # For values that are asked for one by one: here AnyValue contains itself, and upb counts the depth.
    "ArrayValue": (("values*", 1, "DeepValue"),),
    "KeyValueList": (("values*", 1, "DeepKeyValue"),),
    "DeepKeyValue": (("key", 1, _F.TYPE_BYTES), ("value", 2, "DeepValue")),
    "DeepValue": (
        ("string_value", 1, _F.TYPE_BYTES),
        ("bool_value", 2, _F.TYPE_BOOL),
        ("int_value", 3, _F.TYPE_INT64),
        ("double_value", 4, _F.TYPE_DOUBLE),
        ("array_value", 5, "ArrayValue"),
        ("kvlist_value", 6, "KeyValueList"),
        ("bytes_value", 7, _F.TYPE_BYTES),
    ),
}


def _declare() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="rows.proto", package="rows", syntax="proto3")
    for message_name, fields in _DECLARATIONS.items():
        message = file.message_type.add(name=message_name)
        oneof = message_name.endswith("Value") and len(fields) == len(VALUE_MEMBERS)
        if oneof:
            message.oneof_decl.add(name="value")
        for name, number, kind in fields:
            field = message.field.add(name=name.rstrip("*"), number=number)
            field.label = _F.LABEL_REPEATED if name.endswith("*") else _F.LABEL_OPTIONAL
            field.type = _F.TYPE_MESSAGE if isinstance(kind, str) else kind  # type: ignore[assignment]
            if isinstance(kind, str):
                field.type_name = f".rows.{kind}"
            if oneof:
                field.oneof_index = 0
        _declare_check(file, message)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _declare_check(file: descriptor_pb2.FileDescriptorProto, message: descriptor_pb2.DescriptorProto) -> None:
    """The same message with nothing but the messages in it: to upb the rest is unknown, and takes what it weighs.

    Of a span with 33 million empty attributes, a list of them would take a gigabyte.
    """
    check = file.message_type.add(name=f"{message.name}Check")
    check.field.extend(field for field in message.field if field.type == _F.TYPE_MESSAGE)
    for field in check.field:
        field.ClearField("oneof_index")


_POOL: Final = _declare()
FILE: Final = _POOL.FindFileByName("rows.proto")
"""The declarations as a protobuf file."""

_HANDLERS: Final = ptars.HandlerPool([FILE])


class TooManyRowsError(DecodeError):
    """More messages of one kind than are decoded together."""


class Projected:
    """One declared message: parsed singly by upb, or by the array through ptars."""

    __slots__ = ("_check", "_class", "_handler", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._class: Any = message_factory.GetMessageClass(FILE.message_types_by_name[name])
        self._check: Any = message_factory.GetMessageClass(FILE.message_types_by_name[f"{name}Check"])
        self._handler = _HANDLERS.get_for_message(FILE.message_types_by_name[name])

    def parse(self, payload: bytes) -> Any:
        """The message as a protobuf object. Raises DecodeError."""
        return self._parsed(self._class, payload)

    def _parsed(self, kind: Any, payload: bytes) -> Any:
        try:
            return kind.FromString(payload)
        except ProtobufDecodeError as error:
            raise DecodeError(f"{self.name}: not a protobuf message ({len(payload)} bytes): {error}") from error

    def limit(self, count: int, most: int) -> None:
        """Raise DecodeError when a request holds more than `most` of these messages."""
        if count > most:
            raise DecodeError(f"{self.name}: {count} in one request, at most {most} are accepted: send smaller batches")

    def rows(self, messages: pa.BinaryArray) -> pa.RecordBatch:
        """One row a message, in order, one column a field. Raises DecodeError when any of them is broken."""
        if len(messages) > MAX_ROWS:
            raise TooManyRowsError(
                f"{self.name}: {len(messages)} in one request, at most {MAX_ROWS} are accepted: send smaller batches"
            )
        left = MAX_ROWS
        for index in np.flatnonzero(lengths(messages) > TRUSTED_BYTES).tolist():
            left -= self._checked(view_of(messages, index), left)
        try:
            return self._handler.array_to_record_batch(messages)
        except ValueError as error:
            raise DecodeError(f"{self.name}: not a protobuf message: {error}") from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise DecodeError(f"{self.name}: not a protobuf message: a length beyond 2^63") from error

    def _checked(self, message: memoryview, most: int) -> int:
        """How many fields a message has that is long enough to be counted; raises DecodeError where ptars must not see it."""
        count = 0
        if len(message) > COUNTED_BYTES:
            count, is_flat = fields_of(message, most)
            if count > most:
                raise TooManyRowsError(
                    f"{self.name}: more than {MAX_ROWS} fields in one request are not accepted: send smaller batches"
                )
            if is_flat and not any(field.message_type for field in self._check.DESCRIPTOR.fields):
                return count
        self._parsed(self._check, bytes(message))
        return count


def lengths(array: pa.Array) -> "np.ndarray[Any, np.dtype[np.int32]]":
    """Bytes of each value of a binary array, or items of each value of a list array (null: 0)."""
    return np.diff(offsets(array))


def view_of(array: pa.BinaryArray, index: int) -> memoryview:
    """One value, where it lies. Arrow's own way copies it twice, and it may be of 64 MiB."""
    _, bounds, data = array.buffers()
    first, end = np.frombuffer(bounds, dtype=np.int32, count=2, offset=(array.offset + index) * 4).tolist()
    return memoryview(data)[first:end].cast("B")


def offsets(array: pa.Array) -> "np.ndarray[Any, np.dtype[np.int32]]":
    """Where each value begins and the last one ends, counted from the first."""
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return np.zeros(len(array) + 1, dtype=np.int32)
    raw = np.frombuffer(buffer, dtype=np.int32, count=len(array) + 1, offset=array.offset * 4)
    return np.asarray(raw - raw[0])


def owners(lists: pa.ListArray) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Of each item of the lists, which list it is in: eight bytes each, so only of items whose number is limited."""
    return np.repeat(np.arange(len(lists), dtype=np.int64), lengths(lists))


REQUEST: Final = Projected("Request")
RESOURCE_SPANS: Final = Projected("ResourceSpans")
SCOPE_SPANS: Final = Projected("ScopeSpans")
RESOURCE: Final = Projected("Resource")
SCOPE: Final = Projected("InstrumentationScope")
SPAN: Final = Projected("Span")
EVENT: Final = Projected("Event")
LINK: Final = Projected("Link")
KEY_VALUE: Final = Projected("KeyValue")

"""One JSON value → the protobuf wire form of a message, by the message's descriptor.

The rules are those of OTLP (specification, "JSON Protobuf Encoding"), which are protobuf's JSON mapping except that

- `traceId`, `spanId` and `parentSpanId` are hex, of any case, not base64;
- enums are integers only;
- keys are lowerCamelCase only, and unknown keys are ignored;

and these of protobuf's mapping: `null` is the default, integers may be numbers or decimal strings, doubles may be numbers
or strings ("NaN", "Infinity"), bytes are base64 of either alphabet. What is left open there: of a key that is there twice
the last one counts, and a lone surrogate, which no UTF-8 can say, becomes U+FFFD.
"""

import binascii
import math
import re
import struct
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from collector.otlp.json_scan import JsonFormError, shown

MAX_DEPTH: Final = 100
"""Messages inside messages: what protobuf's own parser accepts. Each array or map of an attribute's value takes two or three."""

MAX_REPORTED_IDS: Final = 5

NOT_AN_ID: Final = b"\0"
"""Stands for an id that is not hex, so that only what bears it is refused: it has the wrong length."""

ID_DIGITS: Final = {"trace_id": 32, "span_id": 16, "parent_span_id": 16}

type_: Final = FieldDescriptor

BadIds = list[str]
"""`spans[3].traceId: expected 32 hex digits, got …`, for the first few ids that are not hex."""

Encode = Callable[[object, BadIds, int], bytes]
"""A value, the bad ids so far, the depth → tag and contents; empty for a default that need not be said."""

_VARINTS: Final = tuple(bytes([n]) for n in range(128))
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
_REAL: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
_UNNAMED: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_URL_SAFE: Final = str.maketrans("-_", "+/")


def varint(number: int) -> bytes:
    """A number from 0 to 2^64 - 1 in base 128, least significant digit first."""
    if number < 128:
        return _VARINTS[number]
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


class Field:
    """One field of a message: its number, how its value is written, and the message type of its items, if they have one."""

    __slots__ = ("encode", "is_repeated", "message", "number", "tag")

    def __init__(
        self, number: int, tag: bytes, encode: Encode, message: "Message | None", *, is_repeated: bool
    ) -> None:
        self.number = number
        self.tag = tag
        self.encode = encode
        self.message = message
        self.is_repeated = is_repeated


class Message:
    """One message type: its fields by their JSON names, in the order of their numbers."""

    __slots__ = ("_ordered", "fields", "is_oneof")

    def __init__(self) -> None:
        self.fields: dict[str, Field] = {}
        self._ordered: tuple[tuple[str, Encode], ...] = ()
        self.is_oneof = False

    def declare(self, fields: dict[str, Field], *, is_oneof: bool) -> None:
        """The fields, once all message types exist: AnyValue contains itself."""
        self.fields = fields
        self._ordered = tuple((key, field.encode) for key, field in fields.items())
        self.is_oneof = is_oneof

    def contents(self, value: object, bad: BadIds, depth: int) -> bytes:
        """The message without tag and length, its fields in order, as protobuf's deterministic serialisation has it."""
        if type(value) is not dict:
            raise JsonFormError(f"expected an object, got {shown(value)}")
        if depth > MAX_DEPTH:
            raise JsonFormError(f"more than {MAX_DEPTH} messages inside each other")
        return self._one(value, bad, depth) if self.is_oneof else self._all(value, bad, depth)

    def _all(self, value: dict[str, object], bad: BadIds, depth: int) -> bytes:
        parts = []
        get = value.get
        for key, encode in self._ordered:
            if (item := get(key)) is not None:
                try:
                    parts.append(encode(item, bad, depth))
                except JsonFormError as error:
                    raise error.inside(key) from None
        return b"".join(parts)

    def _one(self, value: dict[str, object], bad: BadIds, depth: int) -> bytes:
        """The one member that is set; two are an error, as in protobuf."""
        fields = self.fields
        members = [(key, item) for key, item in value.items() if item is not None and key in fields]
        if not members:
            return b""
        if len(members) > 1:
            raise JsonFormError(f"{' and '.join(key for key, _ in members)}: only one of them can be set")
        [(key, item)] = members
        try:
            return fields[key].encode(item, bad, depth)
        except JsonFormError as error:
            raise error.inside(key) from None


@cache
def compiled(descriptor: Descriptor) -> Message:
    """How objects of this message type, and of all inside it, are written."""
    return _compile(descriptor, {})


def _compile(descriptor: Descriptor, known: dict[str, Message]) -> Message:
    if descriptor.full_name in known:
        return known[descriptor.full_name]
    message = known[descriptor.full_name] = Message()
    ordered = sorted(descriptor.fields, key=lambda field: field.number)
    is_oneof = len(descriptor.oneofs) == 1 and len(descriptor.oneofs[0].fields) == len(ordered)
    message.declare({field.json_name: _field(field, known) for field in ordered}, is_oneof=is_oneof)
    return message


def _field(field: FieldDescriptor, known: dict[str, Message]) -> Field:
    message = _compile(field.message_type, known) if field.message_type is not None else None
    tag = varint(field.number << 3 | _WIRE_TYPES[field.type])
    if message is not None:
        encode = _messages(message, tag, field.json_name) if field.is_repeated else _message(message, tag)
    elif field.is_repeated:
        encode = _scalars(field)
    else:
        encode = _scalar(field, tag)
    return Field(field.number, tag, encode, message, is_repeated=field.is_repeated)


# --- messages and lists -----------------------------------------------------------------------------------------------


def _message(message: Message, tag: bytes) -> Encode:
    def encode(value: object, bad: BadIds, depth: int) -> bytes:
        contents = message.contents(value, bad, depth + 1)
        return b"%b%b%b" % (tag, varint(len(contents)), contents)

    return encode


def _messages(message: Message, tag: bytes, key: str) -> Encode:
    def encode(value: object, bad: BadIds, depth: int) -> bytes:
        parts: list[bytes] = []
        for index, item in enumerate(_array(value)):
            known = len(bad)
            try:
                contents = message.contents(item, bad, depth + 1)
            except JsonFormError as error:
                raise error.inside(f"[{index}]") from None
            if len(bad) > known:
                bad[known:] = [f"{key}[{index}].{text}" for text in bad[known:]]
            parts += (tag, varint(len(contents)), contents)
        return b"".join(parts)

    return encode


def _scalars(field: FieldDescriptor) -> Encode:
    """A repeated scalar: packed where the wire form allows it, as proto3 writes it."""
    contents = _CONTENTS[field.type]
    packed_tag = varint(field.number << 3 | 2)
    tag = varint(field.number << 3 | _WIRE_TYPES[field.type])

    def encode(value: object, _: BadIds, __: int) -> bytes:
        parts = []
        for index, item in enumerate(_array(value)):
            try:
                parts.append(contents(item))
            except JsonFormError as error:
                raise error.inside(f"[{index}]") from None
        if not field.is_packed:
            return b"".join(b"%b%b" % (tag, part) for part in parts)
        packed = b"".join(parts)
        return b"%b%b%b" % (packed_tag, varint(len(packed)), packed) if packed else b""

    return encode


def _array(value: object) -> list[object]:
    if type(value) is not list:
        raise JsonFormError(f"expected an array, got {shown(value)}")
    return value


# --- scalars ----------------------------------------------------------------------------------------------------------


def _scalar(field: FieldDescriptor, tag: bytes) -> Encode:
    if field.type == type_.TYPE_BYTES and field.name in ID_DIGITS:
        return _id(tag, field.json_name, ID_DIGITS[field.name])
    contents = _CONTENTS[field.type]
    # A field without presence says nothing when it has its default; one that can be absent says so.
    default = None if field.has_presence else contents(_DEFAULTS.get(field.type, 0))

    def encode(value: object, _: BadIds, __: int) -> bytes:
        written = contents(value)
        return b"" if written == default else tag + written

    return encode


def _id(tag: bytes, key: str, digits: int) -> Encode:
    """Hex. What is none is noted, and written as `NOT_AN_ID`: one bad span must not cost its whole request."""

    def encode(value: object, bad: BadIds, _: int) -> bytes:
        if type(value) is not str:
            raise JsonFormError(f"expected {digits} hex digits, got {shown(value)}")
        try:
            raw = binascii.unhexlify(value)
        except ValueError:
            raw = NOT_AN_ID
        if (raw is NOT_AN_ID or len(value) not in {0, digits}) and len(bad) < MAX_REPORTED_IDS:
            bad.append(f"{key}: expected {digits} hex digits, got {shown(value)}")
        return b"%b%b%b" % (tag, varint(len(raw)), raw) if raw else b""

    return encode


def _string(value: object) -> bytes:
    if type(value) is not str:
        raise JsonFormError(f"expected a string, got {shown(value)}")
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raw = _SURROGATES.sub("\ufffd", value).encode()
    return varint(len(raw)) + raw


def _bytes(value: object) -> bytes:
    if type(value) is not str:
        raise JsonFormError(f"expected base64, got {shown(value)}")
    text = value.translate(_URL_SAFE).rstrip("=")
    try:
        raw = binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError as error:
        raise JsonFormError(f"expected base64, got {shown(value)}") from error
    return varint(len(raw)) + raw


def _bool(value: object) -> bytes:
    if value is True:
        return b"\1"
    if value is False:
        return b"\0"
    raise JsonFormError(f"expected true or false, got {shown(value)}")


def _integer(lowest: int, highest: int) -> Callable[[object], int]:
    """Numbers and decimal strings, in range and without a fraction."""

    def read(value: object) -> int:
        number = value if type(value) is int else _whole(value)
        if not lowest <= number <= highest:
            raise JsonFormError(f"expected {lowest} to {highest}, got {shown(value)}")
        return number

    return read


def _whole(value: object) -> int:
    match value:
        case str() if value.isascii() and value.isdigit() and len(value) <= 20:
            return int(value)
        case str() if _DECIMAL.fullmatch(value) and (number := Decimal(value)) == number.to_integral_value():
            return int(number)
        case float() if value.is_integer():
            return int(value)
        case _:
            raise JsonFormError(f"expected a whole number, got {shown(value)}")


def _double(value: object) -> bytes:
    match value:
        case bool():
            number = None
        case float() | int():
            number = _finite(value)
        case str() if value in _UNNAMED:
            number = _UNNAMED[value]
        case str() if _REAL.fullmatch(value):
            number = _finite(float(value))
        case _:
            number = None
    if number is None:
        raise JsonFormError(f'expected a number, "NaN", "Infinity" or "-Infinity", got {shown(value)}')
    return _DOUBLE.pack(number)


def _finite(value: float) -> float:
    """The number as a double; JSON can say larger ones than there are."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise JsonFormError("a number beyond the range of a double")
    return number


def _enum(value: object) -> bytes:
    """Integers: "the enum name strings MUST NOT be used" (OTLP). Numbers without a name are kept: proto3 enums are open."""
    if type(value) is not int:
        raise JsonFormError(f"an enum is an integer in OTLP/JSON, got {shown(value)}")
    return varint(_INT32(value) & _UINT64_MAX)


_UINT64_MAX: Final = (1 << 64) - 1
_INT32: Final = _integer(-(1 << 31), (1 << 31) - 1)
_INT64: Final = _integer(-(1 << 63), (1 << 63) - 1)
_UINT32: Final = _integer(0, (1 << 32) - 1)
_UINT64: Final = _integer(0, _UINT64_MAX)
_DOUBLE: Final = struct.Struct("<d")


def _zigzag(read: Callable[[object], int]) -> Callable[[object], bytes]:
    def encode(value: object) -> bytes:
        number = read(value)
        return varint(number << 1 if number >= 0 else (-number << 1) - 1)

    return encode


def _base_128(read: Callable[[object], int]) -> Callable[[object], bytes]:
    return lambda value: varint(read(value) & _UINT64_MAX)


def _fixed(layout: str, read: Callable[[object], int]) -> Callable[[object], bytes]:
    pack = struct.Struct(layout).pack
    return lambda value: pack(read(value))


_CONTENTS: Final[dict[int, Callable[[object], bytes]]] = {
    type_.TYPE_STRING: _string,
    type_.TYPE_BYTES: _bytes,
    type_.TYPE_BOOL: _bool,
    type_.TYPE_ENUM: _enum,
    type_.TYPE_DOUBLE: _double,
    type_.TYPE_INT32: _base_128(_INT32),
    type_.TYPE_INT64: _base_128(_INT64),
    type_.TYPE_UINT32: _base_128(_UINT32),
    type_.TYPE_UINT64: _base_128(_UINT64),
    type_.TYPE_SINT32: _zigzag(_INT32),
    type_.TYPE_SINT64: _zigzag(_INT64),
    type_.TYPE_FIXED32: _fixed("<I", _UINT32),
    type_.TYPE_FIXED64: _fixed("<Q", _UINT64),
    type_.TYPE_SFIXED32: _fixed("<i", _INT32),
    type_.TYPE_SFIXED64: _fixed("<q", _INT64),
}
_DEFAULTS: Final[dict[int, object]] = {type_.TYPE_STRING: "", type_.TYPE_BYTES: "", type_.TYPE_BOOL: False}
_WIRE_TYPES: Final[dict[int, int]] = dict.fromkeys(_CONTENTS, 0) | {
    type_.TYPE_STRING: 2,
    type_.TYPE_BYTES: 2,
    type_.TYPE_MESSAGE: 2,
    type_.TYPE_DOUBLE: 1,
    type_.TYPE_FIXED64: 1,
    type_.TYPE_SFIXED64: 1,
    type_.TYPE_FIXED32: 5,
    type_.TYPE_SFIXED32: 5,
}

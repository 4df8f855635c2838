"""OTLP's JSON form, both ways: of trace requests, and of every other message that opentelemetry.proto declares.

`json_to_request` writes protobuf's wire form straight from the JSON text, element by element, so that a request's spans
never exist together as objects; `request_to_json` writes the JSON form of a message. See `json_wire` for the rules.

Possible outcomes of `convert`: `Converted`, or a `JsonFormError` (a DecodeError) that names the place. Nothing else.
"""

import base64
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message as ProtobufMessage

from collector.otlp.json_scan import JsonFormError, Scanner, shown_key
from collector.otlp.json_wire import ID_DIGITS, Field, Message, compiled, varint

ENVELOPES: Final = 3
"""The request, the resource's and the scope's messages: their lists are read item by item."""

MAX_ITEMS: Final = 200_000
"""Items of all those lists together; the same limit as for protobuf (`projection.MAX_SPANS`)."""

type_: Final = FieldDescriptor


@dataclass(frozen=True, slots=True)
class Converted:
    """A request in protobuf's wire form.

    Attributes:
        payload: The serialised message, its fields in the order of their numbers.
        bad_ids: Ids that are not hex or too long or short, each with its place; the first few only. In `payload` they
            have a length that no id has, so that a decoder refuses the span that bears one, and no other.
    """

    payload: bytes
    bad_ids: tuple[str, ...]


def json_to_request(text: str | bytes, message_class: type[ProtobufMessage]) -> bytes:
    """The serialised `message_class` of which `text` is the JSON form. Raises DecodeError, and nothing else."""
    return convert(text, message_class).payload


def convert(text: str | bytes, message_class: type[ProtobufMessage]) -> Converted:
    """Like `json_to_request`, and which ids were malformed. Raises JsonFormError."""
    try:
        body = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise JsonFormError(f"not UTF-8: {error.reason}, at character {error.start}") from error
    scanner = Scanner(body)
    if not scanner.peek():
        raise JsonFormError("the document is empty; a request without contents is {}")
    reading = _Reading(scanner)
    payload = reading.envelope(compiled(message_class.DESCRIPTOR), 1)
    scanner.end()
    return Converted(bytes(payload), tuple(reading.bad_ids))


def request_to_json(message: ProtobufMessage) -> str:
    """The OTLP/JSON form of a message on one line: ids in lowercase hex, 64-bit integers as strings, enums as integers.

    It says all that the message says, but which of the 2^53 NaNs a NaN is.
    """
    return json.dumps(_writer(message.DESCRIPTOR)(message), ensure_ascii=False, separators=(",", ":"))


# --- from JSON --------------------------------------------------------------------------------------------------------


class _Reading:
    """One document on its way into the wire form."""

    __slots__ = ("_items", "_scanner", "bad_ids")

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self._items = 0
        self.bad_ids: list[str] = []

    def envelope(self, message: Message, level: int) -> bytearray:
        """The contents of a message whose lists may be as long as the request."""
        parts: dict[int, bytes | bytearray] = {}
        for key in self._scanner.members():
            field = message.fields.get(key)
            try:
                if field is None:
                    self._scanner.value()
                else:
                    parts[field.number] = self._field(field, key, level, seen=field.number in parts)
            except JsonFormError as error:
                raise error.inside(key if field else shown_key(key)) from None
        contents = bytearray()
        for number in sorted(parts):
            contents += parts.pop(number)
        return contents

    def _field(self, field: Field, key: str, level: int, *, seen: bool) -> bytes | bytearray:
        if seen:
            # The last one could count, as further in; but then all that the first one held would be lost in silence.
            raise JsonFormError("is there twice")
        if field.is_repeated and field.message is not None and self._scanner.peek() == "[":
            return self._list(field, field.message, key, level)
        value = self._scanner.value()
        return b"" if value is None else field.encode(value, self.bad_ids, level)

    def _list(self, field: Field, message: Message, key: str, level: int) -> bytearray:
        out = bytearray()
        for index in self._scanner.items():
            known = len(self.bad_ids)
            try:
                contents = self._item(message, level)
            except JsonFormError as error:
                raise error.inside(f"[{index}]") from None
            if len(self.bad_ids) > known:
                self.bad_ids[known:] = [f"{key}[{index}].{bad}" for bad in self.bad_ids[known:]]
            out += field.tag
            out += varint(len(contents))
            out += contents
        return out

    def _item(self, message: Message, level: int) -> bytes | bytearray:
        self._items += 1
        if self._items > MAX_ITEMS:
            raise JsonFormError(f"more than {MAX_ITEMS} items in one request: send smaller batches")
        if level < ENVELOPES:
            return self.envelope(message, level + 1)
        return message.contents(self._scanner.value(), self.bad_ids, level + 1)


# --- to JSON ----------------------------------------------------------------------------------------------------------

_STRINGS: Final = {type_.TYPE_INT64, type_.TYPE_UINT64, type_.TYPE_FIXED64, type_.TYPE_SFIXED64, type_.TYPE_SINT64}

Write = Callable[[ProtobufMessage], dict[str, object]]


@cache
def _writer(descriptor: Descriptor) -> Write:
    """How a message of this type becomes an object of JSON's types; made at its first use, for AnyValue contains itself."""
    names = {field.number: (field.json_name, _to_json(field)) for field in descriptor.fields}

    def write(message: ProtobufMessage) -> dict[str, object]:
        out = {}
        for field, value in message.ListFields():
            name, to_json = names[field.number]
            out[name] = to_json(value)
        return out

    return write


def _to_json(field: FieldDescriptor) -> Callable[..., object]:
    one = _one_to_json(field)
    return (lambda values: [one(value) for value in values]) if field.is_repeated else one


def _one_to_json(field: FieldDescriptor) -> Callable[..., object]:
    match field.type:
        case type_.TYPE_MESSAGE:
            inner = field.message_type
            return lambda message: _writer(inner)(message)  # noqa: PLW0108 - looked up when called: AnyValue contains itself
        case type_.TYPE_BYTES:
            return bytes.hex if field.name in ID_DIGITS else _base64
        case type_.TYPE_DOUBLE:
            return _double
        case kind:
            return str if kind in _STRINGS else lambda value: value


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _double(value: float) -> object:
    """A number, or the name of one for which JSON has no number."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value

"""Attribute values as JSON that keeps their type, one value at a time: for what is rare.

`5` is an int, `5.0` a double, `true` a bool, `"x"` a string (inside arrays and maps only: strings of their own go to
`attributes`), `null` an empty value, `{"bytesValue": "<base64>"}` bytes. JSON has no number for a double that is not
finite, so it is `{"doubleValue": "NaN"}` (or Infinity, -Infinity), as in protobuf's JSON mapping.
"""

import base64
import json
import math
from collections.abc import Callable
from typing import Any, Final

from collector.errors import DecodeError
from collector.otlp.projection import Projected

_ARRAY: Final = Projected("ArrayValue")
_KVLIST: Final = Projected("KeyValueList")

MAX_NESTED_BYTES: Final = 256 * 1024
"""Of an array or map that is written as JSON: each of its values becomes a Python object, of forty times its weight."""

TOO_LARGE: Final = f"array or map of more than {MAX_NESTED_BYTES} bytes as an attribute: its bytes were kept"
UNDECODABLE: Final = "attribute value nested too deeply or malformed: its bytes were kept"


def text(raw: bytes) -> str:
    """The string that these bytes should have been; what is not UTF-8 becomes U+FFFD."""
    return raw.decode("utf-8", "replace")


def double_json(value: float) -> str:
    """`5.0`, `1e+300`, `{"doubleValue": "NaN"}`."""
    return json.dumps(_double(value))


def bytes_json(raw: bytes) -> str:
    """`{"bytesValue": "<base64>"}`. Base64 needs no escapes; looking for some would cost two more copies of what may have 64 MiB."""
    return f'{{"bytesValue": "{base64.b64encode(raw).decode("ascii")}"}}'


def array_json(encoded: bytes) -> str:
    """A serialised ArrayValue as a JSON array. Raises DecodeError when it is broken or nested deeper than upb allows."""
    return json.dumps([_plain(v) for v in _ARRAY.parse(encoded).values], ensure_ascii=False)


def kvlist_json(encoded: bytes) -> str:
    """A serialised KeyValueList as a JSON object; of a key that is there twice, the last wins. Raises DecodeError."""
    return json.dumps({text(kv.key): _plain(kv.value) for kv in _KVLIST.parse(encoded).values}, ensure_ascii=False)


def value_json(value: Any, notes: dict[str, int]) -> str:
    """An AnyValue of `projection`, whose arrays and maps are still serialised, as JSON."""
    match value.WhichOneof("value"):
        case "array_value":
            return tolerant_json(value.array_value, array_json, notes)
        case "kvlist_value":
            return tolerant_json(value.kvlist_value, kvlist_json, notes)
        case _:
            return json.dumps(_plain(value), ensure_ascii=False)


def tolerant_json(encoded: bytes, decode: Callable[[bytes], str], notes: dict[str, int]) -> str:
    """`decode(encoded)`, or the bytes themselves and a note when that cannot be, or costs too much: evidence is not thrown away."""
    if len(encoded) > MAX_NESTED_BYTES:
        notes[TOO_LARGE] = notes.get(TOO_LARGE, 0) + 1
        return bytes_json(encoded)
    try:
        return decode(encoded)
    except DecodeError:
        notes[UNDECODABLE] = notes.get(UNDECODABLE, 0) + 1
        return bytes_json(encoded)


def _plain(value: Any) -> object:
    match value.WhichOneof("value"):
        case "string_value":
            return text(value.string_value)
        case "bool_value":
            return bool(value.bool_value)
        case "int_value":
            return int(value.int_value)
        case "double_value":
            return _double(value.double_value)
        case "bytes_value":
            return _bytes(value.bytes_value)
        case "array_value":
            return [_plain(v) for v in value.array_value.values]
        case "kvlist_value":
            return {text(kv.key): _plain(kv.value) for kv in value.kvlist_value.values}
        case _:
            return None


def _double(value: float) -> object:
    if math.isnan(value):
        return {"doubleValue": "NaN"}
    if math.isinf(value):
        return {"doubleValue": "Infinity" if value > 0 else "-Infinity"}
    return value


def _bytes(raw: bytes) -> dict[str, str]:
    return {"bytesValue": base64.b64encode(raw).decode("ascii")}

"""Payloads that cost a careless collector more than they weigh: legal protobuf and JSON that is dense or deep, and bombs.

All are built without their own cost: repetition, not construction.
"""

import gzip
import struct
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np

from collector.receiver.grpc_server import MAX_GRPC_REQUEST_BYTES
from collector.receiver.ingest import MAX_REQUEST_BYTES

MIB = 1024 * 1024
GIB = 1024 * MIB
FULL = MAX_REQUEST_BYTES - 4096
"""As large as a request may be, with room for what is around it, and """
GRPC_FULL = MAX_GRPC_REQUEST_BYTES - 4096
"""over gRPC."""

ROWS = 1_999_000
"""Messages of some thirty bytes in 64 MiB."""


def scaled(count: int, full: int) -> int:
    """So many of what 64 MiB has `count` of."""
    return count * full // FULL


def varint(number: int) -> bytes:
    """As protobuf writes it."""
    octets = []
    while number > 127:
        octets.append(number & 127 | 128)
        number >>= 7
    return bytes([*octets, number])


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def request(spans: bytes, *, resource: bytes = b"", scope: bytes = b"") -> bytes:
    """A trace request; `spans` are fields of ScopeSpans already."""
    return field(1, field(1, resource) + field(2, field(1, scope) + spans))


IDS = field(1, b"\1" * 16) + field(2, b"\2" * 8)


def span(content: bytes = b"") -> bytes:
    """One span with ids, as a field of ScopeSpans."""
    return field(2, IDS + content)


def attribute(key: bytes, value: bytes, number: int = 9) -> bytes:
    """A KeyValue; `value` is the content of an AnyValue."""
    return field(number, field(1, key) + field(2, value))


def numbered(template: bytes, at: int, width: int, count: int) -> bytes:
    """The template so many times, each with its number in `width` bytes at `at`, in hexadecimal so that it is text too."""
    rows = np.tile(np.frombuffer(template, dtype=np.uint8), (count, 1))
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    numbers = np.arange(1, count + 1)
    for place in range(width):
        rows[:, at + width - 1 - place] = digits[(numbers >> (4 * place)) & 15]
    return rows.tobytes()


# --- protobuf -------------------------------------------------------------------------------------------------------------


def deep_value(depth: int) -> bytes:
    """An AnyValue's content: arrays inside each other."""
    value = field(1, b"x")
    for _ in range(depth // 2):
        value = field(5, field(1, value))
    return value


def deep_tags(depth: int) -> bytes:
    """Far deeper than any parser should go: the tags and lengths of nested values, from the inside out."""
    value = b""
    pieces: list[bytes] = []
    size = 0
    for _ in range(depth):
        head = b"\x2a" + varint(size)
        size += len(head)
        pieces.append(head)
    return b"".join(reversed(pieces)) + value


def _groups(count: int) -> bytes:
    return (varint(100 << 3 | 3) + varint(100 << 3 | 4)) * count


def _nested_groups(depth: int) -> bytes:
    return varint(100 << 3 | 3) * depth + varint(100 << 3 | 4) * depth


def _tiny_span(ids: bytes) -> bytes:
    return field(2, ids)


def _many_attributes(number: int, width: int, count: int) -> bytes:
    one = attribute(b"k" * width, field(1, b"v"), number)
    return numbered(one, one.index(b"k" * width), width, count)


def _same_key(count: int) -> bytes:
    return span(attribute(b"k", field(1, b"v")) * count)


DENSE = {
    "same span 1,999,000 times": lambda full: request(_tiny_span(IDS) * scaled(ROWS, full)),
    "tiny spans": lambda full: request(numbered(_tiny_span(IDS), 6, 8, scaled(ROWS, full))),
    "tiny attributes": lambda full: request(_same_key(scaled(ROWS, full))),
    "a million keys": lambda full: request(span(_many_attributes(9, 8, scaled(1_000_000, full)))),
    "a million keys, one a span": lambda full: request(
        numbered(span(attribute(b"k" * 8, field(1, b"v"))), span(attribute(b"k" * 8, b"")).index(b"k" * 8), 8, scaled(1_000_000, full))
    ),
    "a resource of a million keys": lambda full: request(span(), resource=_many_attributes(1, 8, scaled(1_000_000, full))),
    "a scope of a million keys": lambda full: request(span(), scope=_many_attributes(3, 8, scaled(1_000_000, full))),
    "tiny events": lambda full: request(span(field(11, b"\x12\x01e") * scaled(ROWS, full))),
    "tiny links": lambda full: request(span(field(13, IDS) * scaled(ROWS, full))),
    "attributes of events": lambda full: request(span(field(11, attribute(b"k", field(1, b"v"), 3) * 20) * scaled(90_000, full))),
    "deep values": lambda full: request(span(attribute(b"deep", deep_value(80)) * (full // len(attribute(b"d", deep_value(80))) // 2))),
    "a wide array": lambda full: request(span(attribute(b"wide", field(5, field(1, b"\x10\x01") * (full // 4))))),
    "a wide kvlist": lambda full: request(span(attribute(b"wide", field(6, field(1, b"\x0a\x01k\x12\x02\x10\x01") * (full // 9))))),
    "wide arrays": lambda full: request(span(attribute(b"wide", field(5, field(1, b"\x10\x01") * 100)) * (full // 420))),
    "one string": lambda full: request(span(attribute(b"k", field(1, b"s" * full)))),
    "one string of bad UTF-8": lambda full: request(span(attribute(b"k", field(1, b"\xff" * full)))),
    "one value of bytes": lambda full: request(span(attribute(b"k", field(7, b"\0" * full)))),
    "one key": lambda full: request(span(attribute(b"k" * full, field(1, b"v")))),
    "names": lambda full: request(span(field(5, b"n" * 1_000_000)) * (full >> 20)),
    "unknown groups": lambda full: _groups(full // 4),
    "unknown groups in a span": lambda full: request(span(_groups(full // 4))),
    "unknown fields": lambda full: request(span(b"\xa8\x06\x01" * (full // 3))),
    "empty resources": lambda full: b"\x0a\x00" * (full // 2),
    "65,000 resources and scopes": lambda full: field(1, field(1, b"") + field(2, field(1, b"") + span())) * 65_000,
    "empty scopes": lambda full: field(1, b"\x12\x00" * (full // 2)),
    "empty spans": lambda full: request(b"\x12\x00" * (full // 2)),
    "empty attributes": lambda full: request(span(b"\x4a\x00" * (full // 2))),
    "empty events": lambda full: request(span(b"\x5a\x00" * (full // 2))),
    "empty attributes of a resource": lambda full: request(span(), resource=b"\x0a\x00" * (full // 2)),
    "repeated scalars": lambda full: request(span(b"\x30\x01" * (full // 2))),
}  # fmt: skip
"""By name: `full` bytes of a legal trace request, or as many messages as 64 MiB may have, in proportion."""

DEEP = {
    "values 100 deep": lambda full: request(span(attribute(b"deep", deep_value(100)))),
    "values 100,000 deep": lambda full: request(span(attribute(b"deep", deep_tags(100_000)))),
    "values 10,000,000 deep": lambda full: request(span(attribute(b"deep", deep_tags(scaled(10_000_000, full))))),
    "groups 1,000,000 deep": lambda full: _nested_groups(1_000_000),
    "groups 8,000,000 deep in a span": lambda full: request(span(_nested_groups(scaled(8_000_000, full)))),
    "groups 2,000 deep in a small span": lambda full: request(span(_nested_groups(1_000))),
    "open groups": lambda full: varint(100 << 3 | 3) * (full // 2),
}


# --- JSON -----------------------------------------------------------------------------------------------------------------


def _json(spans: bytes) -> bytes:
    return b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + spans + b"]}]}]}"


_JSON_IDS = b'"traceId":"01010101010101010101010101010101","spanId":"0202020202020202"'


def _json_span(value: bytes) -> bytes:
    return _json(b"{" + _JSON_IDS + b',"attributes":[{"key":"k","value":' + value + b"}]}")


def _list(item: bytes, size: int = FULL) -> bytes:
    return b",".join([item] * (size // (len(item) + 1)))


JSON = {
    "arrays 1,000,000 deep": lambda: b"[" * 1_000_000 + b"]" * 1_000_000,
    "open arrays": lambda: b"[" * FULL,
    "open objects": lambda: b'{"a":' * (FULL // 5),
    "values 100,000 deep": lambda: _json_span(b'{"arrayValue":{"values":[' * 100_000 + b"{}" + b"]}}" * 100_000),
    "an unknown field 1,000,000 deep": lambda: b'{"x":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
    "a number of 60 M digits": lambda: _json_span(b'{"intValue":' + b"9" * (FULL - 200) + b"}"),
    "a number of 60 M digits in quotes": lambda: _json_span(b'{"intValue":"' + b"9" * (FULL - 200) + b'"}'),
    "a fraction of 60 M digits": lambda: _json_span(b'{"doubleValue":0.' + b"9" * (FULL - 200) + b"}"),
    "an exponent of 60 M digits": lambda: _json_span(b'{"doubleValue":1e' + b"9" * (FULL - 200) + b"}"),
    "one string": lambda: _json_span(b'{"stringValue":"' + b"s" * (FULL - 200) + b'"}'),
    "one string of escapes": lambda: _json_span(b'{"stringValue":"' + b"\\u0041" * ((FULL - 200) // 6) + b'"}'),
    "one string of halves of surrogates": lambda: _json_span(b'{"stringValue":"' + b"\\ud800" * ((FULL - 200) // 6) + b'"}'),
    "one key": lambda: b'{"' + b"k" * (FULL - 10) + b'":1}',
    "one id": lambda: _json(b'{"traceId":"' + b"0" * (FULL - 200) + b'"}'),
    "bytes": lambda: _json_span(b'{"bytesValue":"' + b"A" * ((FULL - 200) // 4 * 4) + b'"}'),
    "empty objects": lambda: _json(_list(b"{}")),
    "tiny spans": lambda: _json(_list(b"{" + _JSON_IDS + b"}")),
    "numbers for spans": lambda: _json(_list(b"0")),
    "tiny attributes": lambda: _json(b"{" + _JSON_IDS + b',"attributes":[' + _list(b'{"key":"k"}', FULL - 300) + b"]}"),
    "tiny values": lambda: _json_span(b'{"arrayValue":{"values":[' + _list(b"{}", FULL - 300) + b"]}}"),
    "unknown keys": lambda: b'{"x":[' + _list(b'{"y":0}') + b"]}",
    "a million different keys": lambda: b"{" + numbered(b'"kkkkkkkk":0,', 1, 8, 1_000_000) + b'"z":0}',
    "white space": lambda: b" " * FULL + b"{}",
    "not UTF-8": lambda: b'{"\xff\xfe":1}',
    "UTF-16": lambda: "{}".encode("utf-16"),
    "an empty body": lambda: b"",
    "NaN": lambda: _json_span(b'{"doubleValue":NaN}'),
}  # fmt: skip
"""By name: JSON bodies, most of them 64 MiB."""


# --- bombs ----------------------------------------------------------------------------------------------------------------


@cache
def gzip_bomb(size_bytes: int) -> bytes:
    """A valid gzip body of that many zeros: members of 64 MiB, one after the other."""
    member = gzip.compress(bytes(64 * MIB), 9)
    return member * (size_bytes // (64 * MIB))


@cache
def deflate_bomb(size_bytes: int) -> bytes:
    """One zlib stream of that many zeros and more; its checksum is wrong, which only its last bytes show."""
    packer = zlib.compressobj(9)
    first = packer.compress(bytes(16 * MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(16 * MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (size_bytes // (16 * MIB)) + packer.flush()


@cache
def single_gzip_bomb(size_bytes: int) -> bytes:
    """One gzip member of that many zeros and more; its checksum is wrong, which only its last bytes show."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = packer.compress(bytes(16 * MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(16 * MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (size_bytes // (16 * MIB)) + packer.flush()


def zstd_bomb(size_bytes: int) -> bytes:
    """One zstd frame of that many zeros, in blocks that repeat one byte: four bytes for 128 KiB."""
    block_bytes = 128 * 1024
    # RFC 8878, 3.1.1: magic, a descriptor without content size, a window of 128 KiB; then blocks: size << 3 | type << 1 | last.
    head = b"\x28\xb5\x2f\xfd" + b"\x00" + b"\x38"
    block = struct.pack("<I", block_bytes << 3 | 1 << 1)[:3] + b"\0"
    last = struct.pack("<I", block_bytes << 3 | 1 << 1 | 1)[:3] + b"\0"
    return head + block * (size_bytes // block_bytes - 1) + last


def in_pieces(body: bytes, size_bytes: int = MIB) -> Iterator[bytes]:
    """The body piece by piece."""
    for at in range(0, len(body), size_bytes):
        yield body[at : at + size_bytes]

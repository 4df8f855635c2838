"""Requests with mistakes: what real ones become when bytes of them are changed, moved, cut or repeated."""

import copy
import json
import random
import struct
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.otlp.json_form import request_to_json
from tests.campaigns.ledger import make_request

INTERESTING = (
    b"\0",
    b"\xff",
    b"\x80",
    b"\x7f",
    b"\xff" * 9 + b"\x01",
    b"\xff" * 10,
    b"\x80" * 10,
    struct.pack("<Q", 1 << 63),
)
TOKENS = (
    b"null", b"true", b"-", b"1e999", b"-0", b'""', b"[]", b"{}", b"[", b"}", b'"', b"\\u0000", b"\\ud800", b"\\", b",",
    b"9" * 400, b"0.1e-400", b'"__proto__"', b"\xef\xbb\xbf", b"\xff", b"NaN", b"//", b"\0", b"\x7f",
)  # fmt: skip
SPLICE = 200


def seeds(count: int = 8) -> list[bytes]:
    """Real requests of different sizes."""
    return [make_request(number, 1 << (number % 5)) for number in range(count)]


def json_seeds(count: int = 8) -> list[bytes]:
    """The same as JSON."""
    return [request_to_json(ExportTraceServiceRequest.FromString(seed)).encode() for seed in seeds(count)]


def mutate(seed: bytes, random_: random.Random, words: tuple[bytes, ...]) -> bytes:
    """A few mistakes; sometimes all of it is noise."""
    if random_.random() < 0.02:
        return random_.randbytes(random_.randrange(300))
    body = bytearray(seed)
    for _ in range(random_.choice((1, 1, 2, 3, 8))):
        _once(body, random_, words)
    return bytes(body)


def _once(body: bytearray, random_: random.Random, words: tuple[bytes, ...]) -> None:
    at = random_.randrange(len(body) + 1)
    until = min(len(body), at + random_.randrange(1, SPLICE))
    match random_.randrange(7):
        case 0 if at < len(body):
            body[at] ^= 1 << random_.randrange(8)
        case 1 if at < len(body):
            body[at] = random_.randrange(256)
        case 2:
            body[at:at] = random_.choice(words)
        case 3:
            del body[at:until]
        case 4:
            body[at:at] = body[at:until]
        case 5:
            del body[at:]
        case _:
            word = random_.choice(words)
            body[at : at + len(word)] = word


def mutate_json(seed: bytes, random_: random.Random) -> bytes:
    """A JSON request with mistakes, in its bytes or in its structure."""
    if random_.random() < 0.5:
        return mutate(seed, random_, TOKENS)
    document: Any = json.loads(seed)
    for _ in range(random_.choice((1, 2, 5))):
        _change(document, random_)
    return json.dumps(document).encode()


_VALUES: tuple[Any, ...] = (None, True, "", "x", -1, 1 << 64, 1.5, [], {}, [[]], {"": {}}, "9" * 30, [None], {"key": 1})


def _change(document: Any, random_: random.Random) -> None:
    """Walk down at random, and put something else there."""
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = random_.choice(keys)
        if isinstance(place[key], dict | list) and random_.random() < 0.85:
            place = place[key]
            continue
        if isinstance(place, dict) and random_.random() < 0.2:
            place[random_.choice(("", "traceId", "spans", "value", "Key", "__class__"))] = place.pop(key)
        else:
            place[key] = copy.deepcopy(random_.choice(_VALUES))
        return

"""OTLP in files → serialised trace requests.

What the OpenTelemetry Collector's file exporter writes: JSON, one request a line; with `format: proto` or with
`compression`, each message after its length (4 bytes, big-endian), and compressed on its own. Besides: a request alone,
as JSON of any layout or as protobuf, and a JSON list of requests.
"""

from collections.abc import Iterator
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.errors import DecodeError
from collector.exchange.documents import Element, elements
from collector.exchange.records import Bad, Payload, Record
from collector.exchange.sniff import MAX_MESSAGE_BYTES
from collector.exchange.streams import Stream, inflate_message
from collector.otlp.json_form import json_to_request
from collector.otlp.projection import REQUEST

_LISTS: Final = frozenset({"resourceSpans"})
_BOM: Final = b"\xef\xbb\xbf"


def read_lines(stream: Stream) -> Iterator[Record]:
    """One JSON request a line."""
    number = 0
    while line := stream.read_line(MAX_MESSAGE_BYTES):
        number += 1
        if len(line) == MAX_MESSAGE_BYTES and not line.endswith(b"\n"):
            yield Bad(f"longer than {MAX_MESSAGE_BYTES} bytes", number, "line")
            while rest := stream.read_line(MAX_MESSAGE_BYTES):
                if rest.endswith(b"\n"):
                    break
        elif text := line.removeprefix(_BOM).strip():
            yield _json(text, number, "line")


def read_documents(stream: Stream) -> Iterator[Record]:
    """JSON documents of any layout: requests, lists of them, and requests too large to be read at once."""
    for element in elements(stream, _LISTS):
        match element:
            case Element(dict() as value):
                # The elements of `resourceSpans`, and everything else that is not a request, cannot have this key.
                is_request = "resourceSpans" in value or not value
                text = element.text if is_request else f'{{"resourceSpans":[{element.text}]}}'
                yield _json(text, element.line, "document")
            case Element():
                yield Bad("not a request", element.line, "document")
            case Bad():
                yield element


def read_framed(stream: Stream) -> Iterator[Record]:
    """Messages, each after its length; each may be compressed, and may be JSON."""
    number = 0
    while prefix := stream.read(4):
        number += 1
        size = int.from_bytes(prefix, "big")
        if len(prefix) < 4:
            yield Bad("the file ends within a message's length", number, "message")
            return
        if size > MAX_MESSAGE_BYTES:
            # Whatever follows has lost its beginning.
            yield Bad(f"a length of {size} bytes, at most {MAX_MESSAGE_BYTES}: the rest is unread", number, "message")
            return
        message = stream.read(size)
        if len(message) < size:
            yield Bad("the file ends within a message", number, "message")
            return
        yield _message(message, number)


def read_whole(stream: Stream) -> Iterator[Record]:
    """One protobuf request."""
    request = stream.read(MAX_MESSAGE_BYTES + 1)
    if len(request) > MAX_MESSAGE_BYTES:
        yield Bad(f"one request of more than {MAX_MESSAGE_BYTES} bytes", 1, "message")
    else:
        yield _protobuf(request, 1)


def _message(message: bytes, number: int) -> Record:
    try:
        inflated = inflate_message(message, MAX_MESSAGE_BYTES)
    except ValueError as error:
        return Bad(f"not decompressed: {error}", number, "message")
    return _json(inflated, number, "message") if inflated.startswith(b"{") else _protobuf(inflated, number)


def _protobuf(request: bytes, number: int) -> Record:
    """A request that is one by itself: requests are decoded end to end, and a broken one would reach into the next."""
    try:
        REQUEST.parse(request)
    except DecodeError as error:
        return Bad(str(error), number, "message")
    return Payload(request, number)


def _json(text: str | bytes, place: int, unit: str) -> Record:
    try:
        return Payload(json_to_request(text, ExportTraceServiceRequest), place)
    except DecodeError as error:
        return Bad(str(error), place, unit)

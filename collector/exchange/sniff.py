"""What a file is, judged by its first bytes. Pure: bytes in, a shape out.

{"resourceSpans": …}                    OTLP JSON, one request a line or one document
00 00 01 f4 0a …, 00 00 01 f4 28 b5 …   the Collector's file exporter: each message after its length, 4 bytes
0a …                                    one ExportTraceServiceRequest
{"data": [{"traceID": …                 Jaeger's API and its UI's download
[{"traceId": …, "id": …                 Zipkin v2; [[{…}]] is its answer to a search
PAR1                                    Parquet
{"items": [… "kind": "Pod"              kubectl get pods -o json
lines                                   of proxies and of network witnesses: see collector.witnesses.recognise
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeGuard, get_args

from collector.errors import ConfigError
from collector.exchange.streams import GZIP_MAGIC, ZSTD_MAGIC
from collector.witnesses import reading
from collector.witnesses.recognise import recognise

SpanFormat = Literal["otlp-json", "otlp-proto", "jaeger", "zipkin", "parquet"]
Format = SpanFormat | reading.Format | Literal["pods"]
WITNESS_FORMATS: Final[tuple[reading.Format, ...]] = reading.FORMATS
FORMATS: Final[tuple[Format, ...]] = (*get_args(SpanFormat), *WITNESS_FORMATS, "pods")

Framing = Literal["lines", "document", "framed", "whole"]

HEAD_BYTES: Final = 64 * 1024
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""As for a request over the network."""

_TOKEN: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"(\s*:)?|[\[\]{}]', re.DOTALL)
_POD: Final = re.compile(rb'"kind"\s*:\s*"(?:List|PodList|Pod)"')
_API: Final = re.compile(rb'"apiVersion"\s*:\s*"v1"')
_BOM: Final = b"\xef\xbb\xbf"
_SHOWN_BYTES: Final = 24


@dataclass(frozen=True, slots=True)
class Shape:
    """What a file is.

    Attributes:
        format: Whose.
        framing: How its records follow each other. `lines`: one JSON document a line. `document`: JSON documents of any
            layout, whose lists are read element by element. `framed`: each message after its length. `whole`: the file.
    """

    format: Format
    framing: Framing


def is_witness(format_: Format) -> TypeGuard[reading.Format]:
    """Whether it is a format of lines that `collector.witnesses` reads."""
    return format_ in WITNESS_FORMATS


def sniff(name: str, head: bytes, wanted: Format | None = None) -> Shape | None:
    """The shape of a file that begins like this; None when it is empty. Raises ConfigError when it is none of them."""
    text = head.removeprefix(_BOM).lstrip()
    if not text and wanted is None:
        return None
    found = _found(head, text)
    if wanted is None:
        if found is None:
            raise ConfigError(
                f"{name}: not recognised: {_seen(head, text)}; expected OTLP, Jaeger, Zipkin v2, Parquet, "
                f"an access log or a flow log: name its format with --format {'|'.join(FORMATS)}"
            )
        return found
    if wanted in WITNESS_FORMATS and (found is None or {found.format, wanted} <= reading.PROXY_FORMATS):
        return Shape(wanted, "lines")  # proxies' formats contain each other, and custom ones look like any
    if found is not None and wanted in {found.format, *(("otlp-json",) if found.framing == "framed" else ())}:
        return found
    if found is not None:
        raise ConfigError(f"{name}: --format {wanted}, but it looks like {found.format} ({_seen(head, text)})")
    return _forced(name, head, text, wanted)


def _found(head: bytes, text: bytes) -> Shape | None:
    if head.startswith(b"PAR1"):
        return Shape("parquet", "whole")
    if text.startswith(b"{") and _POD.search(text, 0, HEAD_BYTES) and _API.search(text, 0, HEAD_BYTES):
        return Shape("pods", "whole")
    if witness := recognise(text):
        return Shape(witness, "lines")
    if text.startswith((b"{", b"[")):
        format_ = _json_format(text)
        if format_ is None:
            return None
        return Shape(format_, "lines" if format_ == "otlp-json" and _is_lines(text) else "document")
    if framed := _framed(head):
        return Shape(framed, "framed")
    if head[:1] == b"\n" and _is_request(head):
        return Shape("otlp-proto", "whole")
    return None


def _forced(name: str, head: bytes, text: bytes, wanted: Format) -> Shape:
    """The user knows better than the first bytes, as far as that is possible: damage at the start, unusual key order."""
    is_json = text.startswith((b"{", b"["))
    match wanted:
        case "parquet":
            raise ConfigError(f"{name}: --format parquet, but it does not begin with PAR1: {_seen(head, text)}")
        case "pods":
            return Shape(wanted, "whole")
        case "otlp-proto" if is_json:
            raise ConfigError(f"{name}: --format otlp-proto, but it is JSON ({_seen(head, text)}); try otlp-json")
        case "otlp-proto":
            return Shape(wanted, "whole" if head[:1] == b"\n" else "framed")
        case "otlp-json":
            return Shape(wanted, "lines" if _is_lines(text) or not is_json else "document")
        case _:
            return Shape(wanted, "document")


# --- JSON ---------------------------------------------------------------------------------------------------------------


def _json_format(text: bytes) -> Format | None:
    """By the keys of the first object: those of itself or, for lists in it, of their first object."""
    for depth, key in _keys(text):
        if key in {b"resourceSpans", b"scopeSpans"} and depth <= 2:
            return "otlp-json"
        if key in {b"traceID", b"spanID", b"operationName", b"processes"}:
            return "jaeger"
        if key in {b"traceId", b"localEndpoint", b"remoteEndpoint", b"parentId"} and depth <= 3:
            return "zipkin"
        if key in {b"resourceLogs", b"resourceMetrics"}:
            return None
    return _empty_format(text)


def _empty_format(text: bytes) -> Format | None:
    """Documents without a span in them: nothing to import, and no error."""
    squeezed = re.sub(rb"\s+", b"", text[:_SHOWN_BYTES])
    if squeezed.startswith(b'{"data":[]'):
        return "jaeger"
    if squeezed in {b"[]", b"[[]]"}:
        return "zipkin"
    return "otlp-json" if squeezed.startswith(b"{}") else None


def _keys(text: bytes) -> Iterator[tuple[int, bytes]]:
    """Each key with the depth of its object: 1 for the outermost bracket."""
    depth = 0
    for token in _TOKEN.finditer(text):
        match token.group()[:1]:
            case b"{" | b"[":
                depth += 1
            case b"}" | b"]":
                depth -= 1
            case _ if token.group(2) is not None:
                yield depth, token.group(1)


def _is_lines(text: bytes) -> bool:
    """Whether each line is a document: the first one is whole, or the second one begins like one."""
    first, newline, rest = text.partition(b"\n")
    if not text.startswith(b"{"):
        return False
    if not newline and len(text) >= MAX_MESSAGE_BYTES:  # more than one request: the reader of documents takes it apart
        return False
    stripped = first.rstrip()
    return (len(stripped) > 1 and stripped.endswith(b"}")) or rest.lstrip().startswith(b'{"resourceSpans"')


# --- bytes --------------------------------------------------------------------------------------------------------------


def _framed(head: bytes) -> Format | None:
    """A length of 4 bytes, then a message of that length, which may be compressed on its own."""
    rest = head
    while rest[:4] == b"\0\0\0\0":  # an empty request
        rest = rest[4:]
    size = int.from_bytes(rest[:4], "big")
    body = rest[4:]
    if len(rest) < 5 or size > MAX_MESSAGE_BYTES:
        return "otlp-proto" if rest != head and not rest else None
    if body.startswith(b"{"):
        return "otlp-json"
    if body.startswith((ZSTD_MAGIC, GZIP_MAGIC)):
        return "otlp-proto"  # or JSON within: the reader looks at each message
    return "otlp-proto" if body[:1] == b"\n" else None


def _is_request(head: bytes) -> bool:
    """Whether field 1 of a request holds a plausible ResourceSpans: fields 1 to 3, length-delimited."""
    size = shift = 0
    for position, byte in enumerate(head[1:6], start=2):
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return size == 0 or head[position : position + 1] in {b"\x0a", b"\x12", b"\x1a"}
    return False


def _seen(head: bytes, text: bytes) -> str:
    """The first bytes, for a message."""
    if text.startswith((b"{", b"[")):
        keys = [key.decode("utf-8", "replace") for _, key in _keys(text[:4096])][:4]
        return f"it is JSON with the keys {', '.join(keys)}" if keys else f"it begins with {head[:_SHOWN_BYTES]!r}"
    return f"it begins with {head[:_SHOWN_BYTES]!r}"

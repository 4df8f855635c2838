"""Jaeger's JSON, as its API answers and its UI downloads it → trace requests.

    {"data": [{"traceID", "spans": [{"traceID", "spanID", "operationName", "references", "startTime", "duration",
      "tags": [{"key", "type", "value"}], "logs": [{"timestamp", "fields"}], "processID", "warnings"}],
      "processes": {"p1": {"serviceName", "tags"}}}]}

Times are microseconds. The mapping is that of the OpenTelemetry specification's "Jaeger" page, read backwards, and where
that is silent the Collector's: the parent is the first CHILD_OF reference into the same trace, else the first
FOLLOWS_FROM; every other reference is a link. Nothing is guessed from HTTP status codes. What has no place in OTLP stays
as an attribute: `jaeger.flags` (unless just sampled or not) and `jaeger.warnings` (clock skew adjustments, for one).
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from collector.errors import DecodeError
from collector.exchange.building import (
    MAX_NANOS,
    ForeignSpan,
    Value,
    build_request,
    key_values,
    list_of,
    nanos_of,
    object_of,
    span_id_of,
    split_shared,
    text_of,
    trace_id_of,
    utf8,
)
from collector.exchange.documents import Element, elements
from collector.exchange.records import Bad, Payload, Record
from collector.exchange.streams import Stream

KINDS: Final = {
    "client": Span.SPAN_KIND_CLIENT,
    "server": Span.SPAN_KIND_SERVER,
    "producer": Span.SPAN_KIND_PRODUCER,
    "consumer": Span.SPAN_KIND_CONSUMER,
    "internal": Span.SPAN_KIND_INTERNAL,
}
_STATUS: Final = {"OK": Status.STATUS_CODE_OK, "ERROR": Status.STATUS_CODE_ERROR, "UNSET": Status.STATUS_CODE_UNSET}
_LISTS: Final = frozenset({"data"})
_SAMPLED: Final = 1
_REF_TYPES: Final = {"CHILD_OF": "child_of", "FOLLOWS_FROM": "follows_from"}

Tags = dict[str, Value]


def read_jaeger(stream: Stream) -> Iterator[Record]:
    """One request a trace."""
    for element in elements(stream, _LISTS):
        match element:
            case Bad():
                yield element
            case Element(value, _, line):
                yield from _trace(value, line)


def _trace(trace: object, line: int) -> Iterator[Record]:
    try:
        members = object_of(trace, "a trace")
        spans = list_of(members.get("spans"), "spans")
        processes = object_of(members.get("processes") or {}, "processes")
        resources = {key: _resource(process) for key, process in processes.items()}
    except DecodeError as error:
        yield Bad(str(error), line, "trace")
        return
    kept: list[ForeignSpan] = []
    for span in spans:
        try:
            kept.append(_span(object_of(span, "a span"), resources))
        except DecodeError as error:
            yield Bad(str(error), line, "span")
    split_shared(kept)
    if kept:
        yield Payload(build_request(kept), line)


def _resource(process: object) -> tuple[tuple[str, Value], ...]:
    members = object_of(process, "a process")
    attributes: Tags = {}
    if service := text_of(members.get("serviceName"), "serviceName"):
        attributes["service.name"] = service
    tags = _tags(members.get("tags"), "tags of a process")
    if "hostname" in tags and "host.name" not in tags:
        tags["host.name"] = tags.pop("hostname")
    return tuple({**tags, **attributes}.items())


def _span(span: Mapping[str, object], resources: Mapping[str, tuple[tuple[str, Value], ...]]) -> ForeignSpan:
    tags = _tags(span.get("tags"), "tags")
    start = nanos_of(span.get("startTime"), "startTime")
    otlp = Span(
        trace_id=trace_id_of(span.get("traceID")),
        span_id=span_id_of(span.get("spanID")),
        name=utf8(text_of(span.get("operationName"), "operationName")),
        start_time_unix_nano=start,
        end_time_unix_nano=min(start + nanos_of(span.get("duration", 0), "duration"), MAX_NANOS),
        kind=_kind(tags),
        trace_state=utf8(_take_text(tags, "w3c.tracestate") or ""),
        events=[_event(log) for log in list_of(span.get("logs"), "logs")],
    )
    _refer(otlp, span)
    _flags(otlp, span, tags)
    scope = _scope(tags)
    _status(otlp.status, tags)
    otlp.attributes.extend(key_values(tags))
    process = span.get("process")
    resource = _resource(process) if process is not None else resources.get(str(span.get("processID")), ())
    return ForeignSpan(otlp, resource, scope)


def _kind(tags: Tags) -> "Span.SpanKind.ValueType":
    kind = tags.get("span.kind")
    if not isinstance(kind, str) or kind.lower() not in KINDS:
        return Span.SPAN_KIND_UNSPECIFIED
    del tags["span.kind"]
    return KINDS[kind.lower()]


def _flags(otlp: Span, span: Mapping[str, object], tags: Tags) -> None:
    flags = span.get("flags")
    if not isinstance(flags, int) or flags < 0:
        flags = 0
    otlp.flags = flags & _SAMPLED
    if flags & ~_SAMPLED:
        tags.setdefault("jaeger.flags", flags)
    warnings: list[Value] = [w for w in list_of(span.get("warnings"), "warnings") if isinstance(w, str)]
    if warnings:
        tags.setdefault("jaeger.warnings", warnings)


def _scope(tags: Tags) -> tuple[str, str]:
    """Name and version; `otel.library.*` is what they were called before OpenTelemetry 1.10."""
    name = _take_text(tags, "otel.scope.name") or _take_text(tags, "otel.library.name") or ""
    version = _take_text(tags, "otel.scope.version") or _take_text(tags, "otel.library.version") or ""
    return name, version


def _status(status: Status, tags: Tags) -> None:
    """`error` is the last word of what Jaeger shows as an error; `otel.status_code` is finer where it is absent."""
    code = tags.get("otel.status_code")
    if isinstance(code, str) and code.upper() in _STATUS:
        status.code = _STATUS[code.upper()]
        del tags["otel.status_code"]
    error = tags.get("error")
    if error is True or (isinstance(error, str) and error.lower() == "true"):
        status.code = Status.STATUS_CODE_ERROR
        del tags["error"]
    if status.code != Status.STATUS_CODE_UNSET:
        status.message = utf8(_take_text(tags, "otel.status_description") or "")


def _refer(otlp: Span, span: Mapping[str, object]) -> None:
    """The parent and the links."""
    parent: bytes | None = None
    follows: bytes | None = None
    links: list[Span.Link] = []
    for reference in list_of(span.get("references"), "references"):
        members = object_of(reference, "a reference")
        trace_id, span_id = trace_id_of(members.get("traceID")), span_id_of(members.get("spanID"))
        kind = text_of(members.get("refType"), "refType").upper()
        if kind == "CHILD_OF" and trace_id == otlp.trace_id and parent is None:
            parent = span_id
            continue
        if kind == "FOLLOWS_FROM" and trace_id == otlp.trace_id and follows is None:
            follows = span_id
        reason: dict[str, Value] = {"opentracing.ref_type": _REF_TYPES.get(kind, kind)}
        links.append(Span.Link(trace_id=trace_id, span_id=span_id, attributes=key_values(reason)))
    otlp.links.extend(links)
    otlp.parent_span_id = parent or follows or _older_parent(span)


def _older_parent(span: Mapping[str, object]) -> bytes:
    """`parentSpanID`, which Jaeger wrote before it had references."""
    value = span.get("parentSpanID")
    return b"" if value in {None, "", "0", "0000000000000000"} else span_id_of(value)


def _event(log: object) -> Span.Event:
    members = object_of(log, "a log")
    fields = _tags(members.get("fields"), "fields of a log")
    return Span.Event(
        time_unix_nano=nanos_of(members.get("timestamp"), "timestamp of a log"),
        name=utf8(_take_text(fields, "event") or "log"),
        attributes=key_values(fields),
    )


# --- tags ---------------------------------------------------------------------------------------------------------------


def _tags(value: object, what: str) -> Tags:
    tags: Tags = {}
    for entry in list_of(value, what):
        members = object_of(entry, f"one of the {what}")
        key = members.get("key")
        if not isinstance(key, str):
            raise DecodeError(f"one of the {what} has no key")
        tags[key] = _tag(members.get("type"), members.get("value"))
    return tags


def _tag(kind: object, value: object) -> Value:
    """The value as its declared type, as far as it is one; else as JSON has it."""
    match kind, value:
        case ("int64", str()) if value.lstrip("-").isdigit() and value.isascii() and len(value) < 21:
            return int(value)
        case ("int64", float()) if value.is_integer():
            return int(value)
        case ("float64", int()) if not isinstance(value, bool):
            return float(value)
        case ("float64", str()):
            return _float(value)
        case ("bool", str()) if value.lower() in {"true", "false"}:
            return value.lower() == "true"
        case ("binary", str()):
            return _binary(value)
        case _:
            return _plain(value)


def _plain(value: object) -> Value:
    match value:
        case None | str() | bool() | int() | float():
            return value
        case list():
            return [_plain(v) for v in value]
        case dict():
            return {str(k): _plain(v) for k, v in value.items()}
        case _:
            return str(value)


def _float(text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        return text


def _binary(text: str) -> Value:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return text


def _take_text(tags: Tags, key: str) -> str | None:
    """A tag's string, taken away; a value of another type stays."""
    value = tags.get(key)
    if not isinstance(value, str):
        return None
    del tags[key]
    return value

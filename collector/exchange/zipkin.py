"""Zipkin's v2 JSON → trace requests: what its API answers (`[span, …]` of a trace, `[[span, …], …]` of a search).

    {"traceId", "id", "parentId", "kind", "name", "timestamp", "duration", "localEndpoint", "remoteEndpoint",
     "annotations": [{"timestamp", "value"}], "tags": {}, "shared", "debug"}

Times are microseconds. Zipkin's tags are strings and stay strings. `localEndpoint` is the resource and `network.local.*`,
`remoteEndpoint` is `peer.service` and `network.peer.*`; a tag of that name comes first. `error` says that the call failed,
and why. A client and a server that share one span become two, see `building.split_shared`.
"""

from collections.abc import Iterator
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

WINDOW_SPANS: Final = 8192
"""Spans of a request, within which both halves of a shared span are looked for."""

_KINDS: Final = {
    "CLIENT": Span.SPAN_KIND_CLIENT,
    "SERVER": Span.SPAN_KIND_SERVER,
    "PRODUCER": Span.SPAN_KIND_PRODUCER,
    "CONSUMER": Span.SPAN_KIND_CONSUMER,
}
_STATUS: Final = {
    f"{prefix}{name}": code
    for prefix in ("", "STATUS_CODE_")
    for name, code in (("OK", Status.STATUS_CODE_OK), ("ERROR", Status.STATUS_CODE_ERROR))
}
_NO_LISTS: Final[frozenset[str]] = frozenset()

Tags = dict[str, Value]


def read_zipkin(stream: Stream) -> Iterator[Record]:
    """Requests of up to `WINDOW_SPANS` spans."""
    window: list[ForeignSpan] = []
    first = 1
    for element in elements(stream, _NO_LISTS):
        match element:
            case Bad():
                yield element
            case Element(value, _, line):
                first = first if window else line
                try:
                    window.append(_span(object_of(value, "a span")))
                except DecodeError as error:
                    yield Bad(str(error), line, "span")
        if len(window) >= WINDOW_SPANS:
            yield _request(window, first)
            window = []
    if window:
        yield _request(window, first)


def _request(window: list[ForeignSpan], first: int) -> Payload:
    split_shared(window)
    return Payload(build_request(window), first)


def _span(span: dict[str, object]) -> ForeignSpan:
    tags: Tags = {key: text_of(value, f"tag {key}") for key, value in object_of(span.get("tags") or {}, "tags").items()}
    local = object_of(span.get("localEndpoint") or {}, "localEndpoint")
    remote = object_of(span.get("remoteEndpoint") or {}, "remoteEndpoint")
    events = [_event(a) for a in list_of(span.get("annotations"), "annotations")]
    start = _start(span, events)
    otlp = Span(
        trace_id=trace_id_of(span.get("traceId")),
        span_id=span_id_of(span.get("id")),
        parent_span_id=_parent(span),
        name=utf8(text_of(span.get("name"), "name")),
        kind=_kind(span, tags),
        start_time_unix_nano=start,
        end_time_unix_nano=min(start + nanos_of(span.get("duration") or 0, "duration"), MAX_NANOS),
        events=events,
        trace_state=utf8(_take(tags, "w3c.tracestate") or ""),
    )
    if span.get("debug") is True:
        tags.setdefault("zipkin.debug", True)
    _status(otlp.status, tags)
    scope = (
        _take(tags, "otel.scope.name") or _take(tags, "otel.library.name") or "",
        _take(tags, "otel.scope.version") or _take(tags, "otel.library.version") or "",
    )
    _endpoint(local, "local", tags)
    _endpoint(remote, "peer", tags)
    if service := text_of(remote.get("serviceName"), "serviceName"):
        tags.setdefault("peer.service", service)
    otlp.attributes.extend(key_values(tags))
    service = text_of(local.get("serviceName"), "serviceName")
    resource: tuple[tuple[str, Value], ...] = (("service.name", service),) if service else ()
    return ForeignSpan(otlp, resource, scope, is_shared=span.get("shared") is True)


def _start(span: dict[str, object], events: list[Span.Event]) -> int:
    """`timestamp`; a span that was never finished may have none, but annotations."""
    if span.get("timestamp") is not None:
        return nanos_of(span["timestamp"], "timestamp")
    if not events:
        raise DecodeError("a span has neither a timestamp nor an annotation")
    return min(event.time_unix_nano for event in events)


def _parent(span: dict[str, object]) -> bytes:
    value = span.get("parentId")
    if value is None or value == "" or (isinstance(value, str) and not value.strip("0")):
        return b""
    parent = span_id_of(value)
    return b"" if parent == span_id_of(span.get("id")) else parent


def _kind(span: dict[str, object], tags: Tags) -> "Span.SpanKind.ValueType":
    """Zipkin has no word for INTERNAL; the Collector writes it as a tag."""
    kind = text_of(span.get("kind"), "kind").upper()
    if kind:
        if kind not in _KINDS:
            raise DecodeError("kind is none of CLIENT, SERVER, PRODUCER, CONSUMER")
        return _KINDS[kind]
    if tags.get("span.kind") == "internal":
        del tags["span.kind"]
        return Span.SPAN_KIND_INTERNAL
    return Span.SPAN_KIND_UNSPECIFIED


def _status(status: Status, tags: Tags) -> None:
    """`error` is a failure whatever it says, but `false`; its text, unless it is just `true`, is the message."""
    code = tags.get("otel.status_code")
    if isinstance(code, str) and code.upper() in _STATUS:
        status.code = _STATUS[code.upper()]
        del tags["otel.status_code"]
        status.message = utf8(_take(tags, "otel.status_description") or "")
    error = tags.get("error")
    if not isinstance(error, str) or error.lower() == "false":
        return
    status.code = Status.STATUS_CODE_ERROR
    if error.lower() in {"", "true"}:
        del tags["error"]
    elif not status.message:
        status.message = utf8(error)
        del tags["error"]


def _endpoint(endpoint: dict[str, object], side: str, tags: Tags) -> None:
    address = text_of(endpoint.get("ipv4"), "ipv4") or text_of(endpoint.get("ipv6"), "ipv6")
    if address:
        tags.setdefault(f"network.{side}.address", address)
    port = endpoint.get("port")
    if isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536:
        tags.setdefault(f"network.{side}.port", port)


def _event(annotation: object) -> Span.Event:
    members = object_of(annotation, "an annotation")
    return Span.Event(
        time_unix_nano=nanos_of(members.get("timestamp"), "timestamp of an annotation"),
        name=utf8(text_of(members.get("value"), "value of an annotation")),
    )


def _take(tags: Tags, key: str) -> str | None:
    value = tags.pop(key, None)
    return value if isinstance(value, str) else None
